"""HTTP/1.1 requests from bytes, strictly: what could be read in two ways is refused. Pure.

References: RFC 9112 (message syntax; sections 6.1 and 6.3 for what smuggles requests past a proxy), RFC 9110 (fields).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from edgekit.errors import EdgeKitError

__all__ = ["END_OF_HEAD", "ChunkedBody", "HeadLimits", "HttpError", "RequestHead", "check_partial_head", "parse_head"]

END_OF_HEAD = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*")
_ABSOLUTE = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t \x21-\x7e\x80-\xff]*)?")
_MAX_CHUNK_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8 << 10
# Fields whose repetition two readers could understand differently.
_ONCE = frozenset(
    {"content-length", "transfer-encoding", "host", "authorization", "inference-header-content-length", "content-encoding", "expect"}
)


class HttpError(EdgeKitError):
    """A request that HTTP itself has a status for (404 unknown path, 405, 408, 413, 415, ...)."""

    def __init__(self, status: int, thing: str, found: str, expected: str = "", next_step: str = "") -> None:
        super().__init__(thing, found, expected, next_step)
        self.http_status = status


class HeadLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the head of a request may hold.

    Attributes:
        line_bytes: the request line.
        head_bytes: request line and fields together.
        fields: how many fields.
    """

    line_bytes: int = 8 << 10
    head_bytes: int = 32 << 10
    fields: int = 100


class RequestHead(msgspec.Struct, frozen=True):
    """Request line and fields.

    Attributes:
        method: as sent (``GET``).
        path: of the target, still percent-encoded, without the query.
        fields: by lower-case name; repeated ones joined by ", ".
        length: bytes of the body; ``None`` for a chunked one.
        keep_alive: the connection stays open after the answer.
        minor: minor HTTP version, 0 or 1.
        expects_continue: the client waits for ``100 Continue`` before it sends the body.
    """

    method: str
    path: str
    fields: dict[str, str]
    length: int | None
    keep_alive: bool
    minor: int
    expects_continue: bool


def parse_head(raw: bytes, limits: HeadLimits) -> RequestHead:
    """The head of a request; ``raw`` ends with the empty line.

    Raises:
        HttpError: 400, 414, 417, 431, 501 or 505.
    """
    if len(raw) > limits.head_bytes:
        raise _too_large(limits)
    if _BARE_NEWLINE.search(raw):
        raise _bad("head", "a line that ends without CR", "CRLF after each line")
    lines = raw[: -len(END_OF_HEAD)].split(b"\r\n")
    if len(lines[0]) > limits.line_bytes:
        raise HttpError(414, "request line", f"{len(lines[0])} bytes", f"at most {limits.line_bytes}")
    if len(lines) - 1 > limits.fields:
        raise HttpError(431, "head", f"{len(lines) - 1} fields", f"at most {limits.fields}")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise _bad("request line", repr(lines[0][:60].decode("latin-1")), "METHOD, target and HTTP/1.1, with one space between them")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1" or minor not in "01":
        raise HttpError(505, "request line", f"HTTP/{major}.{minor}", "HTTP/1.1")
    fields = _fields(lines[1:])
    if minor == "1" and not fields.get("host"):
        raise _bad("head", "no Host", "one Host")
    length = _length(fields, minor)
    return RequestHead(method, _path(target), fields, length, _keep_alive(fields, minor), int(minor), _expects_continue(fields, minor))


def check_partial_head(raw: bytes, limits: HeadLimits) -> None:
    """Refuse what cannot become a good head any more, before its end has come.

    Raises:
        HttpError: as `parse_head`.
    """
    if _BARE_NEWLINE.search(raw):
        raise _bad("head", "a line that ends without CR", "CRLF after each line")
    if raw and not raw[:1].isalpha():
        raise _bad("request line", f"byte {raw[0]:#04x}", "a method")
    if len(raw) > limits.head_bytes:
        raise _too_large(limits)
    if len(raw) > limits.line_bytes and b"\r\n" not in raw[: limits.line_bytes + 2]:
        raise HttpError(414, "request line", f"more than {limits.line_bytes} bytes", f"at most {limits.line_bytes}")


class ChunkedBody:
    """A body in chunks, as it comes in. Chunk extensions and trailers are read over.

    Args:
        limit: most bytes of the body.

    Attributes:
        data: what has come so far.
    """

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit
        self._left = 0  # bytes of the current chunk
        self._step: Any = self._size_line
        self._pending = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take more; the bytes after the body once it is complete, ``None`` before.

        Raises:
            HttpError: 400 for a bad chunk, 413 when the body grows beyond the limit.
        """
        if self._pending:
            data = self._pending + data
            self._pending = b""
        at = 0
        while self._step is not None:
            after = self._step(data, at)
            if after is None:
                self._pending = data[at:]
                return None
            at = after
        return data[at:]

    def _size_line(self, data: bytes, at: int) -> int | None:
        line, after = _line(data, at, _MAX_CHUNK_LINE_BYTES, "chunk size")
        if line is None:
            return None
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise _bad("chunk size", repr(line[:40].decode("latin-1")), "hexadecimal digits")
        self._left = int(match[1], 16)
        if len(self.data) + self._left > self._limit:
            raise HttpError(413, "request body", f"more than {self._limit} bytes", f"at most {self._limit}")
        self._step = self._chunk if self._left else self._trailer
        return after

    def _chunk(self, data: bytes, at: int) -> int | None:
        if at == len(data):
            return None
        piece = data[at : at + self._left]
        self.data += piece
        self._left -= len(piece)
        if not self._left:
            self._step = self._chunk_end
        return at + len(piece)

    def _chunk_end(self, data: bytes, at: int) -> int | None:
        if not b"\r\n".startswith(data[at : at + 2]):
            raise _bad("chunk", f"bytes {data[at : at + 2]!r} after its data", "CRLF")
        if len(data) < at + 2:
            return None
        self._step = self._size_line
        return at + 2

    def _trailer(self, data: bytes, at: int) -> int | None:
        line, after = _line(data, at, _MAX_TRAILER_BYTES - self._trailer_bytes, "trailers")
        if line is None:
            return None
        self._trailer_bytes += len(line) + 2
        if not line:
            self._step = None
        elif _FIELD.fullmatch(line) is None:
            raise _bad("trailer", repr(line[:60].decode("latin-1")), "NAME: value")
        return after


def _line(data: bytes, at: int, limit: int, thing: str) -> tuple[bytes | None, int]:
    """The line that begins at ``at``, and where the next one begins; ``None`` when its end has not come."""
    end = data.find(b"\n", at, at + limit + 2)
    if end < 0:
        if len(data) - at > limit + 1:
            raise _bad(thing, f"more than {limit} bytes", f"at most {limit}")
        return None, at
    if end == at or data[end - 1] != 0x0D:
        raise _bad(thing, "a line that ends without CR", "CRLF after each line")
    return data[at : end - 1], end + 1


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _bad("field", repr(line[:60].decode("latin-1")), "NAME: value, on one line, no space before the colon")
        name, value = match[1].decode("ascii").lower(), match[2].decode("latin-1")
        if name not in fields:
            fields[name] = value
        elif name in _ONCE:
            raise _bad(f"field {name}", "given more than once", "one of it")
        else:
            fields[name] += f", {value}"
    return fields


def _length(fields: dict[str, str], minor: str) -> int | None:
    """Bytes of the body, ``None`` for chunks (RFC 9112, 6.3; both ways at once are an attack more often than a mistake)."""
    coding, text = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if text is not None:
            raise _bad("head", "both Content-Length and Transfer-Encoding", "one of them")
        if minor == "0":
            raise _bad("head", "Transfer-Encoding in HTTP/1.0", "Content-Length")
        if coding.lower() != "chunked":
            raise HttpError(501, "field transfer-encoding", repr(coding[:40]), "chunked")
        return None
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _bad("field content-length", repr(text[:40]), "digits")
    return int(text)


def _path(target: str) -> str:
    """The path of an origin-form or absolute-form target."""
    if not target.startswith("/"):
        match = _ABSOLUTE.match(target)
        if match is None:
            raise _bad("request line", f"target {target[:60]!r}", "a path")
        target = target[match.end() :]
    return target.partition("?")[0].partition("#")[0] or "/"


def _keep_alive(fields: dict[str, str], minor: str) -> bool:
    options = {option.strip().lower() for option in fields.get("connection", "").split(",")}
    return "close" not in options and (minor == "1" or "keep-alive" in options)


def _expects_continue(fields: dict[str, str], minor: str) -> bool:
    expect = fields.get("expect")
    if expect is None or minor == "0":
        return False
    if expect.lower() != "100-continue":
        raise HttpError(417, "field expect", repr(expect[:40]), "100-continue")
    return True


def _bad(thing: str, found: str, expected: str) -> HttpError:
    return HttpError(400, thing, found, expected)


def _too_large(limits: HeadLimits) -> HttpError:
    return HttpError(431, "head", f"more than {limits.head_bytes} bytes", f"at most {limits.head_bytes}")
