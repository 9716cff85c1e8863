"""One HTTP/2 connection of the gRPC server: frames by ngh2 (nghttp2's engine), bytes by asyncio, calls by the dispatcher.

The engine holds the peer to RFC 9113 and to the limits given here: rapid resets (CVE-2023-44487), CONTINUATION floods (CVE-2024-27316), floods of PING and SETTINGS,
header lists, concurrent streams. What is left to this module are time, memory, and the calls themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeadlineError, EdgeKitError, OverloadedError, UnavailableError
from edgekit.protocol._access import is_local
from edgekit.protocol._compression import WINDOW_BITS
from edgekit.protocol._grpc_call import CONTROL, INFER, REFLECT, STREAM, WATCH, Call
from edgekit.protocol._grpc_dispatch import status_of
from edgekit.protocol._grpc_messages import SERVICE
from edgekit.protocol._grpc_owner import ConnectionOwner
from edgekit.protocol._grpc_reflection import REFLECTION_METHODS
from edgekit.protocol._grpc_service import HEALTH_WATCH, OPEN_METHODS
from edgekit.protocol._grpc_wire import (
    ACCEPTED_ENCODINGS,
    PREFIX_BYTES,
    CallHead,
    Message,
    StatusError,
    read_head,
    status_number,
    status_text,
)
from edgekit.protocol._tensors import shorten

if TYPE_CHECKING:
    import ngh2

__all__ = ["GrpcConnection"]

_log = logging.getLogger(__name__)

_INFER_PATH = f"/{SERVICE}/ModelInfer"
_STREAM_PATH = f"/{SERVICE}/ModelStreamInfer"

_CONNECTION_WINDOW_BYTES = 16 << 20
_GOAWAY = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x01"  # PROTOCOL_ERROR, for an engine that cannot say so any more

_WRITE_BYTES = 1 << 20  # given to the transport at once
_CLOGGED_BYTES = 64 << 20  # of answers that the client does not read: no more requests are taken
_STALL_S = 30.0  # without a byte taken by a client that has answers waiting
_SETTLE_S = 10.0  # for the connection preface
_REQUEST_S = 30.0  # for the whole request of a unary call, so that slow senders do not hold memory
_MAX_CALLS = 16384  # open at once, all connections together
_MAX_PINGS = 200  # PING and SETTINGS of one connection between two sweeps; grpc's clients send a handful
# WINDOW_UPDATE and small pieces of messages: so many at once and each sweep, and for each message that is sent and each KiB of it.
_CREDIT = 1000
_MOST_CREDIT = 1_000_000
_CREDIT_OF_MESSAGE = 8
_BYTES_OF_CREDIT = 1024
_SMALL_FRAME_BYTES = 256
_GRACE_S = 1.0  # after a call's deadline: the client's own cancellation comes first

_HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ACCEPTED_ENCODINGS)]
_HEADERS_OF = {0: _HEADERS, **{bits: [*_HEADERS, (b"grpc-encoding", name.encode())] for name, bits in WINDOW_BITS.items()}}
_OK_TRAILERS = [(b"grpc-status", b"0")]


class GrpcConnection(asyncio.BufferedProtocol):
    """See the module. Belongs to the loop's thread."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._dispatcher = owner.dispatcher
        self._h2 = owner.h2
        self._engine: ngh2.Connection = owner.h2.Connection(owner.h2.Role.SERVER, owner.configuration)
        self._transport: Any = None
        self._calls: dict[int, Call] = {}
        self._resets: list[int] = []
        self._paused = False
        self._over = False
        self._settled = False
        self._refusing = False
        self._begun_s = self._progress_s = time.monotonic()
        self._buffered_bytes = 0
        self._pings = 0
        self._credit = _CREDIT
        self.local = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._refused():
            self._over = True
            self._transport.abort()
            return
        self._owner.connections.add(self)
        self.local = is_local(transport)
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family in {socket.AF_INET, socket.AF_INET6}:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer that is gone is noticed
        self._transport.set_write_buffer_limits(high=_WRITE_BYTES)
        self._engine.initiate_connection(self._owner.settings)
        self._engine.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._over = True
        self._owner.connections.discard(self)
        for call in list(self._calls.values()):
            self._forget(call)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: one place for all connections, since they are read at once and the engine copies what it keeps."""
        del sizehint
        return self._owner.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._owner.buffer[:nbytes])

    def data_received(self, data: memoryview | bytes) -> None:
        """Bytes of the client have come."""
        if self._over:
            return
        try:
            self._engine.receive_data(data)
            self._handle_events()
        except self._h2.NGH2Error:
            self._break_off()
            return
        except Exception:  # noqa: BLE001 - a bug costs this connection, and no other
            _log.exception("a connection could not be read")
            self.abort()
            return
        self._dispatcher.touched(self)

    def eof_received(self) -> bool:
        """A client that sends nothing more takes nothing more either: gRPC has no half-closed connections."""
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.flush()

    # For the dispatcher.

    def send(self, call: Call, parts: Sequence[bytes | memoryview]) -> None:
        """Queue one message of an answer, its prefix included."""
        if call.closed or self._over:
            return
        size = sum(map(len, parts))
        self._credit += _CREDIT_OF_MESSAGE + size // _BYTES_OF_CREDIT
        try:
            if not call.answered:
                self._answer_headers(call)
            if size <= _WRITE_BYTES:
                self._engine.send_data(call.stream_id, b"".join(parts))
            else:
                for part in parts:
                    if len(part):
                        self._engine.send_data(call.stream_id, part)
        except self._h2.NGH2Error:
            self._forget(call)

    def finish(self, call: Call, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """End a call well."""
        self._end(call, [*_OK_TRAILERS, *trailers] if trailers else _OK_TRAILERS)

    def fail(self, call: Call, exc: Exception) -> None:
        """End a call with the status of what went wrong."""
        if call.closed or self._over:
            self._forget(call)
            return
        status, line = status_of(exc)
        trailers = [(b"grpc-status", b"%d" % status_number(status)), (b"grpc-message", status_text(line))]
        if call.answered:
            self._end(call, trailers)
            return
        self._refuse(call.stream_id, [*_HEADERS, *trailers], ended=call.ended)
        self._forget(call)

    def acknowledge_held(self, call: Call) -> None:
        """Let the client of a stream send more, now that all it sent has begun."""
        if call.unacknowledged_bytes:
            size, call.unacknowledged_bytes = call.unacknowledged_bytes, 0
            self._owner.held_bytes -= size
            if not self._over:
                self._engine.acknowledge_received_data(size, call.stream_id)
                self._dispatcher.touched(self)

    def is_clogged(self) -> bool:
        """The client does not read its answers."""
        return self._paused and self._engine.queued_body_size() > _CLOGGED_BYTES

    def flush(self) -> None:
        """Send what the engine has, as far as the client takes it."""
        if self._over:
            return
        try:
            self._write()
            if self._resets:
                resets, self._resets = self._resets, []
                for stream_id in resets:
                    self._engine.reset_stream(stream_id, self._h2.ErrorCode.NO_ERROR)
                self._write()
            if self._refusing:
                self._handle_events()
                if not self._calls and not self._paused and not self._engine.queued_body_size():
                    self._transport.write(self._engine.data_to_send())
                    self._close()
            elif not self._engine.want_read and not self._engine.want_write:
                self._close()
        except self._h2.NGH2Error:
            self._break_off()
        except Exception:  # noqa: BLE001 - a bug costs this connection, and no other
            _log.exception("a connection could not be written")
            self.abort()

    # For the transport.

    def begin_drain(self) -> None:
        """Tell the client to go elsewhere. What it has sent before it knows is still taken: until it has answered a ping (RFC 9113, 6.8)."""
        if self._over:
            return
        try:
            self._engine.send_shutdown_notice()
            self._engine.ping()
        except self._h2.NGH2Error:  # the engine has ended the connection already
            self._break_off()
        self.flush()

    def end_drain(self) -> None:
        """Calls under way finish, idle streams end, nothing new is taken. May be called again."""
        if self._over or self._refusing:
            return
        self._refusing = True
        for call in list(self._calls.values()):
            if call.is_idle:
                self.fail(call, UnavailableError("server", "stopping", "", "connect again"))
        with contextlib.suppress(self._h2.NGH2Error):
            self._engine.send_goaway(self._h2.ErrorCode.NO_ERROR)
        self._dispatcher.touched(self)

    def abort(self) -> None:
        """Close at once."""
        self._over = True
        self._transport.abort()

    def sweep(self, now_s: float) -> None:
        """Give up on clients that take their time; called about once a second."""
        if self._over:
            return
        self._pings = 0
        self._credit = min(max(self._credit, _CREDIT), _MOST_CREDIT)
        buffered = self._transport.get_write_buffer_size()
        if buffered != self._buffered_bytes or not (buffered or self._engine.queued_body_size()):
            self._progress_s, self._buffered_bytes = now_s, buffered
        if now_s - self._progress_s > _STALL_S or (not self._settled and now_s - self._begun_s > _SETTLE_S):
            self.abort()
            return
        for call in list(self._calls.values()):
            if call.closed:
                continue
            if call.deadline_s is not None and now_s > call.deadline_s + _GRACE_S:
                self.fail(call, DeadlineError("call", "the client's time is over"))
            elif not call.ended and (not call.sends_many or call.held_bytes()) and now_s - call.since_s > _REQUEST_S:
                self.fail(call, DeadlineError("request", f"not complete after {_REQUEST_S:g} s", "", "send it faster"))
            else:
                continue
            self._dispatcher.touched(self)

    def _handle_events(self) -> None:
        h2 = self._h2
        events: Sequence[Any] = self._engine.events()
        pieces: list[bytes] = []  # of one message, which its client has cut into frames of 16 KiB
        for at, event in enumerate(events):
            kind = type(event)
            if kind is h2.DataReceived:
                if len(event.data) < _SMALL_FRAME_BYTES and not event.end_stream:
                    self._spend()
                if not event.end_stream and self._goes_on(events, at):
                    pieces.append(event.data)
                    continue
                data = b"".join((*pieces, event.data)) if pieces else event.data
                pieces.clear()
                self._take_data(event.stream_id, data, ended=event.end_stream)
            elif kind is h2.WindowUpdated:
                self._spend()
            elif kind is h2.RequestReceived:
                self._open(event.stream_id, event.headers, ended=event.end_stream)
            elif kind is h2.TrailersReceived:
                self._take_data(event.stream_id, b"", ended=True)
            elif kind is h2.StreamReset or kind is h2.StreamClosed:
                call = self._calls.pop(event.stream_id, None)
                if call is not None and not call.closed:
                    self._forget(call)
            elif kind is h2.PingAcknowledged and self._owner.draining:
                self.end_drain()
            elif kind is h2.SettingsReceived or kind is h2.PingReceived:
                self._settled = True
                self._pings += 1
                if self._pings > _MAX_PINGS:
                    self._engine.terminate_connection(h2.ErrorCode.ENHANCE_YOUR_CALM)

    def _goes_on(self, events: Sequence[Any], at: int) -> bool:
        """The event after the one at ``at`` has more data of the same call, which sends one message."""
        call = self._calls.get(events[at].stream_id)
        following: Any = events[at + 1] if at + 1 < len(events) else None
        return (
            call is not None and not call.sends_many and type(following) is self._h2.DataReceived and following.stream_id == call.stream_id
        )

    def _spend(self) -> None:
        """A frame that costs its sender next to nothing has come; those that go with answers are no flood."""
        self._credit -= 1
        if self._credit < 0:
            self._engine.terminate_connection(self._h2.ErrorCode.ENHANCE_YOUR_CALM)

    def _open(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], *, ended: bool) -> None:
        try:
            head = read_head(headers)
            if head.http_status != 200:
                self._refuse(stream_id, [(b":status", b"%d" % head.http_status)], ended=ended)
                return
            kind = self._admit(head)
        except EdgeKitError as exc:
            status, line = status_of(exc)
            answer = [*_HEADERS, (b"grpc-status", b"%d" % status_number(status)), (b"grpc-message", status_text(line))]
            self._refuse(stream_id, answer, ended=ended)
            return
        call = Call(self, stream_id, kind, head, self._dispatcher.message_limit_bytes, time.monotonic())
        self._calls[stream_id] = call
        self._owner.open_calls += 1
        if ended:
            self._take_end(call)

    def _admit(self, head: CallHead) -> str:
        """The kind of a call; raises the error that refuses it."""
        path = head.path
        if self._owner.open_calls >= _MAX_CALLS:
            raise OverloadedError("server", f"{_MAX_CALLS} calls are open", "", "try again later")
        if path not in OPEN_METHODS and not self._owner.access.allows(head.authorization):
            raise StatusError("UNAUTHENTICATED", "header authorization", "not the token of this server", "Bearer TOKEN")
        if path == _INFER_PATH:
            return INFER
        if path == _STREAM_PATH:
            return STREAM
        if path == HEALTH_WATCH:
            return WATCH
        if path in REFLECTION_METHODS:
            return REFLECT
        if not self._dispatcher.control.knows(path):
            raise StatusError("UNIMPLEMENTED", f"method {shorten(path)}", "no such method", f"one of {SERVICE}")
        return CONTROL

    def _take_data(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        call = self._calls.get(stream_id)
        if call is None or call.closed:
            if data:
                self._engine.acknowledge_received_data(len(data), stream_id)
            return
        if ended and call.kind == INFER and call.is_whole(data):  # nearly all calls
            self._engine.acknowledge_received_data(len(data), stream_id)
            call.ended = True
            self._dispatcher.start(call, Message(memoryview(data)[PREFIX_BYTES:]))
            return
        if call.sends_many:
            call.unacknowledged_bytes += len(data)
            self._owner.held_bytes += len(data)
            call.since_s = time.monotonic()
        elif data:
            self._engine.acknowledge_received_data(len(data), stream_id)
        try:
            self._take_messages(call, data)
        except EdgeKitError as exc:
            self.fail(call, exc)
            return
        if ended:
            self._take_end(call)
        elif call.sends_many:
            self._dispatcher.pump(call)

    def _take_messages(self, call: Call, data: bytes) -> None:
        """The messages that ``data`` completes; raises the error that ends the call."""
        reader, owner = call.reader(), self._owner
        before = reader.held
        try:
            messages = reader.feed(data)
        finally:
            owner.held_bytes += reader.held - before
        if owner.held_bytes > owner.max_held_bytes:
            raise OverloadedError("server", "too much is being sent to it at once", "", "try again later")
        if call.sends_many:
            call.waiting.extend(messages)
        elif messages:
            if len(messages) > 1 or call.message is not None:
                raise StatusError("UNIMPLEMENTED", "call", "more than one message", "one: the method does not stream")
            call.message = messages[0]

    def _take_end(self, call: Call) -> None:
        """The client has sent all."""
        call.ended = True
        if call.held_bytes():
            self.fail(call, StatusError("INVALID_ARGUMENT", "message", "cut off", "as many bytes as its prefix says"))
        elif call.sends_many:
            self._dispatcher.pump(call)
        elif call.message is None:
            self.fail(call, StatusError("UNIMPLEMENTED", "call", "no message", "one"))
        else:
            message, call.message = call.message, None
            self._dispatcher.start(call, message)

    def _answer_headers(self, call: Call) -> None:
        call.answered = True
        self._engine.send_response(call.stream_id, _HEADERS_OF[call.head.answer_encoding])

    def _end(self, call: Call, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        if not call.closed and not self._over:
            try:
                if not call.answered:
                    self._answer_headers(call)
                self._engine.send_trailers(call.stream_id, trailers)
                if not call.ended:
                    self._resets.append(call.stream_id)
            except self._h2.NGH2Error:
                pass  # as in `_refuse`
        self._forget(call)

    def _refuse(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], *, ended: bool) -> None:
        """An answer of headers alone; the client is told to stop sending."""
        with contextlib.suppress(self._h2.NGH2Error):  # the client has reset the stream in this very turn
            self._engine.send_response(stream_id, headers, end_stream=True)
            if not ended:
                self._resets.append(stream_id)
        self._dispatcher.touched(self)

    def _forget(self, call: Call) -> None:
        """Nothing more is sent for a call; its stream is the engine's alone. May be called again."""
        if call.closed:
            return
        self._owner.open_calls -= 1
        self._owner.held_bytes -= call.held_bytes()
        self.acknowledge_held(call)
        call.close()

    def _write(self) -> None:
        while not self._paused:
            data = self._engine.data_to_send(_WRITE_BYTES)
            if not data:
                break
            self._transport.write(data)

    def _break_off(self) -> None:
        """The peer broke the protocol, or a limit: say so if it can be said, and close."""
        if not self._over:
            try:
                last = self._engine.data_to_send()
            except self._h2.NGH2Error:
                last = _GOAWAY
            self._transport.write(last)
            self._close()

    def _close(self) -> None:
        """Close when what was written has been sent."""
        self._over = True
        self._transport.close()

    def _refused(self) -> bool:
        owner = self._owner
        if owner.draining or len(owner.connections) >= owner.max_connections:
            return True
        tls = self._transport.get_extra_info("ssl_object")
        return tls is not None and tls.selected_alpn_protocol() != "h2"
