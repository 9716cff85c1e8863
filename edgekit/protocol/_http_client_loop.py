"""One request of the HTTP client in the event loop of the server whose thread sends it (the router's): no other thread has to wake up for it, twice.

Takes a connection that is open already, and knows only answers with a Content-Length, which is what servers send; the client's threads do the rest.
"""

from __future__ import annotations

import http.client
import itertools
import socket
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from edgekit.protocol._event_loop import Host

__all__ = ["Answer", "LoopExchange", "StaleError", "UnframedError"]

_READ_BYTES = 64 << 10
_MOST_HEAD_BYTES = 64 << 10  # what http.client allows for one line
_MOST_PARTS = 64  # of one call; IOV_MAX is 1024 at the most
_END = b"\r\n\r\n"


class StaleError(ConnectionError):
    """The connection ended before a byte of the answer came: a server closes idle ones."""


class UnframedError(Exception):
    """An answer that only a full reader knows what to do with: no Content-Length, or a large one; ``begin`` is what came of it."""

    def __init__(self, begin: bytes) -> None:
        super().__init__("an answer for a full reader")
        self.begin = begin


class Answer(msgspec.Struct, gc=False):
    """An HTTP answer. Look ``fields`` up by lower-case names; ``keep``: the connection may be used again."""

    status: int
    fields: dict[str, str] | http.client.HTTPMessage
    body: bytes | bytearray
    keep: bool


Ended = Callable[[Answer | Exception], None]


class LoopExchange:
    """See the module. A `Guest`; everything happens in the loop's thread. Another one may shut the socket down, which ends it.

    Args:
        host: this thread's.
        sock: of an idle connection; set to non-blocking. It is the caller's again when ``ended`` is called.
        data: the request, in parts.
        timeout_s: until its answer must be here.
        most_bytes: of an answer's body that is read here.
        ended: hears the answer or what went wrong, once: `TimeoutError`, `StaleError`, `UnframedError`, `OSError`, `http.client.HTTPException`.
    """

    __slots__ = ("_body", "_ended", "_got", "_head", "_host", "_left", "_most_bytes", "_sock", "_timer", "_writes")

    def __init__(
        self, host: Host, sock: socket.socket, data: Sequence[bytes | memoryview], timeout_s: float, most_bytes: int, ended: Ended
    ) -> None:
        self._host = host
        self._sock = sock
        self._left = deque(memoryview(part) for part in data if len(part))
        self._most_bytes = most_bytes
        self._ended: Ended | None = ended
        self._got = b""  # until the head is complete
        self._head: Answer | None = None
        self._body = memoryview(b"")  # what is left to be filled of the head's body
        self._writes = False
        sock.settimeout(0)
        host.guests.add(self)
        host.loop.add_reader(sock, self._readable)
        self._timer = host.loop.call_later(timeout_s, self._end, TimeoutError())
        self._write()

    def loop_ends(self) -> None:
        """See `Guest`."""
        self._end(ConnectionAbortedError("the server that asked is stopping"))

    def _write(self) -> None:
        left = self._left
        try:
            sent = self._sock.sendmsg(list(itertools.islice(left, _MOST_PARTS)))
        except BlockingIOError:
            sent = 0
        except ConnectionError as exc:
            self._end(StaleError(str(exc)))
            return
        except OSError as exc:
            self._end(exc)
            return
        while left and sent >= len(left[0]):
            sent -= len(left.popleft())
        if sent:
            left[0] = left[0][sent:]
        if bool(left) != self._writes:
            self._writes = not self._writes
            if self._writes:
                self._host.loop.add_writer(self._sock, self._write)
            else:
                self._host.loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            if self._head is None:
                piece = self._sock.recv(_READ_BYTES)
                count = len(piece)
            else:
                count = self._sock.recv_into(self._body)
        except BlockingIOError:
            return
        except OSError as exc:
            self._end(exc if self._got else StaleError(str(exc)))
            return
        if not count:
            self._end(http.client.IncompleteRead(b"") if self._got else StaleError("closed"))
        elif self._head is None:
            self._read_head(piece)
        else:
            self._body = self._body[count:]
            if not self._body:
                self._end(self._head)

    def _read_head(self, piece: bytes) -> None:
        self._got = got = self._got + piece if self._got else piece
        end = got.find(_END)
        if end < 0:
            if len(got) > _MOST_HEAD_BYTES:
                self._end(http.client.LineTooLong("answer's head"))
            return
        try:
            status, fields, keep = read_head(got[:end])
        except ValueError:
            self._end(http.client.BadStatusLine(got[:80].decode("latin-1")))
            return
        length = fields.get("content-length", "")
        known = length.isascii() and length.isdigit() and len(length) < 19 and "transfer-encoding" not in fields
        if not known or status < http.client.OK or int(length) > self._most_bytes:
            self._end(UnframedError(got))
            return
        size, start = int(length), end + len(_END)
        if len(got) >= start + size:  # bytes after it are nobody's, and make the connection useless
            self._end(Answer(status, fields, got[start : start + size], keep and len(got) == start + size))
        else:
            body = bytearray(size)
            body[: len(got) - start] = got[start:]
            self._head = Answer(status, fields, body, keep)
            self._body = memoryview(body)[len(got) - start :]

    def _end(self, outcome: Answer | Exception) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        self._timer.cancel()
        loop = self._host.loop
        loop.remove_reader(self._sock)
        if self._writes:
            loop.remove_writer(self._sock)
        self._host.guests.discard(self)
        if self._left and isinstance(outcome, Answer):
            outcome.keep = False  # it answered before it had all of the request
        ended(outcome)


def read_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, fields by lower-case name, and whether the connection stays open, of an answer's head without its last line end.

    Raises:
        ValueError: no HTTP/1 answer.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError(first)
    fields = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        fields[name.lower()] = value.strip()
    keep = version == "HTTP/1.1" and fields.get("connection", "").lower() != "close"
    return int(rest[:3]), fields, keep
