"""Calls of the gRPC client in the event loop of the server whose thread makes them (the router's): no other thread has to wake up for one, twice.

HTTP/2 is ngh2's, as on the server's side. A `LoopChannel` is one connection, kept open for unary calls of one method. It takes calls once it is connected and the
server has greeted it; all others, and those that the server says it has not seen, are grpcio's.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgeKitError, OverloadedError
from edgekit.protocol._connecting import connected_socket
from edgekit.protocol._event_loop import Host
from edgekit.protocol._grpc_wire import (
    Message,
    MessageReader,
    RefusedError,
    answer_encoding,
    is_grpc,
    not_grpc,
    prefixed,
    read_end,
    read_reset,
    timeout_text,
)
from edgekit.protocol._target import Target

if TYPE_CHECKING:
    import ngh2

__all__ = ["Ended", "LoopCall", "LoopChannel", "UnseenError"]

_log = logging.getLogger(__name__)
_READ_BYTES = 128 << 10
_WRITE_BYTES = 1 << 20  # given to the system at once
_CONNECT_S = 5.0
_AGAIN_S = 0.25  # from one try to connect to the next: a server that comes back is used soon, one that is gone costs little
_STREAM_WINDOW_BYTES = 4 << 20  # what grpcio gives
_CONNECTION_WINDOW_BYTES = 16 << 20
_MAX_FRAME_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 10


class UnseenError(ConnectionError):
    """The server has not seen the call, and says so: it may be sent again."""


Ended = Callable[[Message | Exception], None]
"""Hears the answer's message, or what went wrong: `TimeoutError`, `RefusedError`, `UnseenError`, `OSError`, or `EdgeKitError` for an answer that cannot be read."""


class LoopCall:
    """One call under way; only for the loop's thread."""

    __slots__ = ("ended", "heard", "message", "reader", "stream_id", "timer")

    def __init__(self, stream_id: int, reader: MessageReader, heard: int, ended: Ended) -> None:
        self.stream_id = stream_id
        self.reader = reader
        self.heard = heard  # what the connection had heard when it began
        self.ended: Ended | None = ended
        self.message: Message | None = None
        self.timer: Any = None


class LoopChannel:
    """See the module. A `Guest`; begins to connect at once, in a thread. All but `cancel` and `close` belongs to the loop's thread.

    Args:
        host: this thread's.
        target: without TLS.
        path: of the method.
        fields: further headers of every call.
        limit_bytes: the longest answer.
        gone: called, in the loop's thread, when it is closed.

    Attributes:
        ready: takes calls.
        done: takes none any more.
        again_s: from when on another channel may be tried (`time.monotonic`).
    """

    def __init__(
        self, host: Host, target: Target, path: str, fields: dict[str, str], limit_bytes: int, gone: Callable[[LoopChannel], object]
    ) -> None:
        self._host = host
        self._target = target
        told = {":method": "POST", ":scheme": "http", ":path": path, ":authority": target.address if target.host else "localhost"}
        told |= {"te": "trailers", "content-type": "application/grpc", "grpc-accept-encoding": "identity", **fields}
        self._headers = [(name.encode(), value.encode()) for name, value in told.items()]
        self._limit_bytes = limit_bytes
        self._gone = gone
        self._lock = threading.Lock()  # of the three that the connecting thread shares
        self._sock: socket.socket | None = None
        self._h2: Any = None
        self._closed = False
        self._engine: ngh2.Connection
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._left = memoryview(b"")  # what the system has not taken yet
        self._calls: dict[int, LoopCall] = {}
        self._heard = 0  # pieces that have come
        self._flush_planned = False
        self.ready = self.done = False
        self.again_s = time.monotonic() + _AGAIN_S
        host.guests.add(self)
        threading.Thread(target=self._connect, name="edgekit-grpc-connect", daemon=True).start()

    def start(self, parts: Sequence[bytes | memoryview], timeout_s: float, ended: Ended) -> LoopCall | None:
        """Send a call whose request is ``parts``; ``None`` when it has ended at once. The channel is `ready`."""
        engine = self._engine
        try:
            stream_id = engine.send_request([*self._headers, (b"grpc-timeout", timeout_text(timeout_s))])
            for part in prefixed(parts):
                if len(part):
                    engine.send_data(stream_id, part)
            engine.end_stream(stream_id)
        except self._h2.NGH2Error as exc:  # no more streams
            self._retire()
            ended(UnseenError(str(exc)))
            return None
        call = self._calls[stream_id] = LoopCall(stream_id, MessageReader(self._limit_bytes), self._heard, ended)
        call.timer = self._host.loop.call_later(timeout_s, self._expire, call)
        self._plan_flush()
        return call

    def cancel(self, call: LoopCall) -> None:
        """Nobody waits for the answer any more: tell the server. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the channel
            self._host.loop.call_soon_threadsafe(self._drop, call, ConnectionAbortedError("cancelled"))

    def close(self) -> None:
        """End all calls. Any thread; does not wait."""
        with contextlib.suppress(RuntimeError):
            self._host.loop.call_soon_threadsafe(self._close, ConnectionAbortedError("the client was closed"))

    def loop_ends(self) -> None:
        """See `Guest`."""
        self._close(ConnectionAbortedError("the server that asked is stopping"))

    def _connect(self) -> None:
        """In a thread."""
        sock: socket.socket | None = None
        try:
            import ngh2

            sock = connected_socket(self._target, _CONNECT_S)
            with self._lock:
                if self._closed:
                    sock.close()
                    return
                self._sock, self._h2 = sock, ngh2
            self._host.loop.call_soon_threadsafe(self._greet)
        except (OSError, ImportError, RuntimeError):  # grpcio tells what is wrong; or the loop is closed
            if sock is not None:
                sock.close()
            with contextlib.suppress(RuntimeError):
                self._host.loop.call_soon_threadsafe(self._close, ConnectionAbortedError("not connected"))

    def _greet(self) -> None:
        """Connected: say so in HTTP/2."""
        if self._closed or self._sock is None:
            return
        h2 = self._h2
        setting = h2.Setting
        configuration = h2.Configuration(max_inbound_header_list_size=_MAX_HEADER_BYTES, max_inbound_header_count=128)
        self._engine = h2.Connection(h2.Role.CLIENT, configuration)
        self._engine.initiate_connection(
            {
                setting.ENABLE_PUSH: 0,
                setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                setting.MAX_FRAME_SIZE: _MAX_FRAME_BYTES,
                setting.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
            }
        )
        self._engine.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self._sock.settimeout(0)
        self._host.loop.add_reader(self._sock, self._readable)
        self._flush()

    def _readable(self) -> None:
        if self._sock is None:
            return
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as exc:
            self._close(exc)
            return
        if not count:
            self._close(ConnectionResetError("the server closed it"))
            return
        self._heard += 1
        try:
            self._engine.receive_data(self._buffer[:count])
            for event in self._engine.events():
                self._take(event)
        except self._h2.NGH2Error as exc:
            self._close(ConnectionAbortedError(f"not HTTP/2: {exc}"))
            return
        except Exception:  # noqa: BLE001 - a bug costs this connection, and no other
            _log.exception("a connection could not be read")
            self._close(ConnectionAbortedError("a bug; the log has the details"))
            return
        self._flush()

    def _take(self, event: Any) -> None:
        h2 = self._h2
        kind = type(event)
        if kind is h2.DataReceived or kind is h2.ResponseReceived or kind is h2.TrailersReceived:
            call = self._calls.get(event.stream_id)
            if call is None:
                return
            if kind is h2.DataReceived:
                self._take_data(call, event.data, ended=event.end_stream)
            else:
                self._take_headers(call, dict(event.headers), ended=kind is h2.TrailersReceived or event.end_stream)
        elif kind is h2.StreamReset or kind is h2.StreamClosed:
            call = self._calls.get(event.stream_id)
            if call is not None:
                refused = event.error_code == h2.ErrorCode.REFUSED_STREAM
                self._finish(call, UnseenError("the server refused the stream") if refused else read_reset(event.error_code))
        elif kind is h2.GoAwayReceived:
            self._retire()
            for call in [call for call in self._calls.values() if call.stream_id > event.last_stream_id]:
                self._finish(call, UnseenError("the server is going away"))
        elif kind is h2.SettingsReceived:
            self.ready = not self.done

    def _take_headers(self, call: LoopCall, fields: dict[bytes, bytes], *, ended: bool) -> None:
        if not ended:
            if not is_grpc(fields):
                self._drop(call, not_grpc(fields))
            elif encoding := answer_encoding(fields):  # nobody asked for that, and grpcio's server can be told to do it all the same
                call.reader = MessageReader(self._limit_bytes, encoding)
            return
        refused = read_end(fields)
        if refused is not None:
            self._finish(call, refused)
        elif call.message is None or not call.reader.complete():
            self._finish(call, RefusedError("INTERNAL", "the call ended well, without an answer"))
        else:
            self._finish(call, call.message)

    def _take_data(self, call: LoopCall, data: bytes, *, ended: bool) -> None:
        try:
            for message in call.reader.feed(data):
                if call.message is not None:
                    raise OverloadedError("answer", "more than one message", "one")
                call.message = message
        except EdgeKitError as exc:
            self._drop(call, exc)
            return
        if ended:
            self._finish(call, RefusedError("INTERNAL", "an answer without a gRPC status"))

    def _expire(self, call: LoopCall) -> None:
        if call.heard == self._heard:  # nothing has come since: the connection may be dead without anybody having said so
            self._retire()
        self._drop(call, TimeoutError())

    def _drop(self, call: LoopCall, outcome: Exception) -> None:
        """End a call here, and at the server."""
        if call.ended is not None and not self._closed:
            with contextlib.suppress(self._h2.NGH2Error):
                self._engine.reset_stream(call.stream_id, self._h2.ErrorCode.CANCEL)
            self._plan_flush()
            self._finish(call, outcome)

    def _finish(self, call: LoopCall, outcome: Message | Exception) -> None:
        ended, call.ended = call.ended, None
        if ended is not None:
            call.timer.cancel()
            self._calls.pop(call.stream_id, None)
            if self.done and not (self._calls or self._closed):
                self._plan_flush()
            ended(outcome)

    def _retire(self) -> None:
        """Take no more calls; close after those under way."""
        self.ready, self.done = False, True
        self._plan_flush()

    def _plan_flush(self) -> None:
        """Send at the end of this turn what all of it has brought."""
        if not self._flush_planned:
            self._flush_planned = True
            self._host.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._sock is None or self._closed:
            return
        try:
            while not self._left:
                data = self._engine.data_to_send(_WRITE_BYTES)
                if not data:
                    break
                self._send(memoryview(data))
                if self._left:
                    self._host.loop.add_writer(self._sock, self._writable)
        except (OSError, self._h2.NGH2Error) as exc:
            self._close(exc if isinstance(exc, OSError) else ConnectionAbortedError(str(exc)))
            return
        if (self.done and not self._calls) or not (self._engine.want_read or self._engine.want_write):
            self._close(ConnectionAbortedError("the server closed it"))

    def _writable(self) -> None:
        try:
            self._send(self._left)
        except OSError as exc:
            self._close(exc)
            return
        if not self._left and self._sock is not None:
            self._host.loop.remove_writer(self._sock)
            self._flush()

    def _send(self, data: memoryview) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        self._left = data[sent:]

    def _close(self, why: OSError) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed, sock = True, self._sock
        self.ready, self.done = False, True
        loop = self._host.loop
        if sock is not None:
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            sock.close()
        self._host.guests.discard(self)
        self._gone(self)
        for call in list(self._calls.values()):
            self._finish(call, why)
