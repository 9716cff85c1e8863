"""One HTTP connection: bytes in, requests to the application, answers out in the order of the requests.

Lives in the event loop's thread. A connection stops reading when its client does not read (the write buffer is above its mark) or has as many
requests under way as it may.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from edgekit.errors import EdgeKitError
from edgekit.protocol._access import is_local
from edgekit.protocol._http_body import Incoming
from edgekit.protocol._http_exchange import Call, Exchange, Handler
from edgekit.protocol._http_parse import END_OF_HEAD, HttpError, check_partial_head
from edgekit.protocol._http_reply import CONTINUE, error_reply, render

__all__ = ["Connection"]


class Connection(asyncio.BufferedProtocol):
    """See the module."""

    __slots__ = (
        "_closing",
        "_direct",
        "_ended_s",
        "_handler",
        "_head_s",
        "_held",
        "_incoming",
        "_lingers",
        "_reading",
        "_since_s",
        "_tail",
        "_transport",
        "_unread",
        "_write_held_s",
        "exchanges",
        "local",
    )

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._transport: Any = None
        self.exchanges: deque[Exchange] = deque()
        self._incoming: Incoming | None = None
        self._tail = b""  # the beginning of a head, or what is not read yet
        self._direct = False  # the next bytes go right into a body
        self._reading = False
        self._held = False  # reading is paused
        self._closing = False  # nothing more is read; the answers under way are sent, then it closes
        self._unread = False  # the client may still be sending what is not read any more
        self._lingers = False  # the last answer is out, input is thrown away
        self._ended_s = 0.0  # when the transport was closed; it still sends what is in its buffer
        self._head_s = 0.0  # when the first byte of the head in ``_tail`` came; 0 without one
        self._write_held_s = 0.0  # when the client stopped reading; 0 while it reads
        self._since_s = handler.now_s
        self.local = False  # the client is on this machine

    @property
    def busy(self) -> bool:
        """Something is under way: a request, an answer or a part of one."""
        return bool(self.exchanges or self._incoming or self._tail or self._write_held_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport
        self.local = is_local(transport)
        self._transport.set_write_buffer_limits(high=self._handler.limits.write_buffer_bytes)
        handler = self._handler
        if not handler.opened(self):
            refusal = HttpError(503, "server", "too many connections", f"at most {handler.limits.connections}", "try again later")
            if handler.draining:
                refusal = HttpError(503, "server", "it is stopping", "", "ask another one, or later")
            self._transport.write(render(error_reply(refusal), handler.date, keep_alive=False))
            self._closing = True
            self._end()  # at once: those who are too many must not take up descriptors by lingering

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        del exc
        self._closing = True
        self._handler.closed(self)
        if self._incoming is not None:
            self._handler.release(self._incoming.reserved)
            self._incoming = None
        for exchange in self.exchanges:
            exchange.abandon()
        self.exchanges.clear()

    def eof_received(self) -> bool:
        """The client has left, or has only sent all, which looks the same: it gets what is there in a moment, and the rest is cancelled."""
        if not self.exchanges or self._lingers or self._transport.get_extra_info("sslcontext") is not None:
            return False
        self._closing = True
        asyncio.get_running_loop().call_later(self._handler.limits.left_s, self._give_up)
        return True

    def _give_up(self) -> None:
        for exchange in list(self.exchanges):
            exchange.give_up()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._write_held_s = self._handler.now_s

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._write_held_s = 0.0
        self._since_s = self._handler.now_s
        self._wake_first()
        self._resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`: bodies are read where they stay, everything else into a buffer that all connections share."""
        del sizehint
        if self._incoming is not None and (room := self._incoming.room()) is not None:
            self._direct = True
            return room
        self._direct = False
        return self._handler.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if not self._direct:
            self.data_received(bytes(self._handler.buffer[:nbytes]))
        elif self._incoming is not None and self._reserved(nbytes) and self._incoming.wrote(nbytes):
            self._complete()

    def data_received(self, data: bytes) -> None:
        """Bytes that are not the rest of a body of known length."""
        if self._closing:
            return
        if self._incoming is not None:
            rest = self._feed(data)
            if not rest:
                return
            data = rest
        elif self._tail:
            data = self._tail + data
            self._tail = b""
        self._read(data)

    def send_answers(self) -> None:
        """Send what is ready, in the order of the requests."""
        exchanges = self.exchanges
        transport = self._transport
        while exchanges and (payload := exchanges[0].payload) is not None:
            exchange = exchanges.popleft()
            exchange.connection = None
            trace = exchange.trace
            if trace is not None:
                trace.sending()
            transport.write(payload[0] if len(payload) == 1 else b"".join(payload))
            if trace is not None:
                trace.sent()
            if not exchange.call.keep_alive:
                self._closing = True
        if exchanges:
            self._wake_first()
            return
        self._since_s = self._handler.now_s
        if self._closing or (self._handler.draining and self._incoming is None):
            self._close()
        elif self._held:
            self._resume()

    def takes(self, exchange: Exchange) -> bool:
        """The next bytes to send are this request's, and the client reads."""
        return bool(self.exchanges) and self.exchanges[0] is exchange and not self._write_held_s

    def send_part(self, data: bytes) -> None:
        """Send some of the first request's answer; the rest comes with `Exchange.settle`."""
        self._transport.write(data)

    def _wake_first(self) -> None:
        """Tell an answer that comes in parts that more of it may come."""
        if self.exchanges and (wake := self.exchanges[0].wake) is not None:
            wake()

    def refuse(self, error: EdgeKitError, call: Call | None = None) -> None:
        """Answer with an error and end the connection: after this, nobody knows where the next request begins."""
        if self._incoming is not None:
            self._handler.release(self._incoming.reserved)
            self._incoming = None
        self._tail = b""
        self._closing = self._unread = True
        exchange = Exchange(self._handler, self, call or _BROKEN)
        self.exchanges.append(exchange)
        bodiless = call is not None and call.method == "HEAD"
        exchange.settle([render(error_reply(error), self._handler.date, keep_alive=False, bodiless=bodiless)])

    def check_time(self, now_s: float) -> None:
        """End what takes too long. Called now and then."""
        limits = self._handler.limits
        if self._ended_s or self._write_held_s:
            if now_s - (self._ended_s or self._write_held_s) > limits.write_s:
                self._transport.abort()
        elif self._lingers:
            if now_s - self._since_s > limits.linger_s:
                self._end()
        elif self._incoming is not None:
            if now_s - self._incoming.accepted_s > limits.body_s:
                size = self._incoming.size
                self.refuse(HttpError(408, "request body", f"{size} bytes after {limits.body_s:g} s", "the whole body"))
        elif self._head_s:
            if now_s - self._head_s > limits.head_s:
                self.refuse(HttpError(408, "head", f"{len(self._tail)} bytes after {limits.head_s:g} s", "the whole head"))
        elif not self.exchanges and now_s - self._since_s > limits.idle_s:
            self._close()

    def drain(self) -> None:
        """The server stops: close now, or after what is under way. The beginning of a head is nothing yet."""
        if not self.exchanges and self._incoming is None:
            self._close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def _read(self, data: bytes) -> None:
        """Requests from ``data``, which begins at a head."""
        self._reading = True
        try:
            rest = self._requests(data)
        except HttpError as exc:
            self.refuse(exc)
        else:
            self._tail = rest
        finally:
            self._reading = False

    def _requests(self, data: bytes) -> bytes:
        """Begin the requests in ``data``; returns what is left of it."""
        handler = self._handler
        at, size = 0, len(data)
        while at < size:
            if self._closing:
                return b""
            if len(self.exchanges) >= handler.limits.pipeline or self._write_held_s:
                self._hold()
                return data[at:]
            if data.startswith(b"\r\n", at):  # RFC 9112, 2.2: an empty line before a request is read over
                at += 2
                continue
            end = data.find(END_OF_HEAD, at)
            if end < 0:
                return self._partial(data[at:])
            end += 4
            self._head_s = 0.0
            call = handler.call(data[at:end] if at or end < size else data)
            length = call.length
            if call.fatal is not None and (length is None or end + length > size):
                self.refuse(call.fatal, call=call)
                return b""
            if length is not None and end + length <= size:
                exchange = Exchange(handler, self, call)
                self.exchanges.append(exchange)
                at = end + length
                handler.begin(exchange, data, end, at)
                if not call.keep_alive:
                    self._closing = True
                continue
            rest = self._body(call, data[end:])
            if rest is None:
                return b""
            data, at, size = rest, 0, len(rest)
        return b""

    def _partial(self, head: bytes) -> bytes:
        if head != b"\r":
            check_partial_head(head, self._handler.limits.head)
        if not self._head_s:
            self._head_s = self._handler.now_s
        return head

    def _body(self, call: Call, data: bytes) -> bytes | None:
        """Begin to read a body that is not all there; as `_feed`."""
        if call.expects_continue and not data and not self.exchanges:
            self._transport.write(CONTINUE)
        self._incoming = Incoming(call, self._handler.body_bytes, self._handler.pool)
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes | None:
        """More of the body. Returns what follows it once it is complete (its request has begun then), ``None`` before."""
        incoming = self._incoming
        assert incoming is not None
        if not self._reserved(len(data)):
            return None
        try:
            rest = incoming.feed(data)
        except HttpError as exc:
            self.refuse(exc)
            return None
        if rest is not None:
            self._complete()
        return rest

    def _reserved(self, count: int) -> bool:
        """Take bytes of the budget for bodies; false when there are none left, and the request is refused."""
        assert self._incoming is not None
        if not self._handler.reserve(count):
            self.refuse(HttpError(503, "server", "too many bytes of bodies are waiting", "", "try again later"))
            return False
        self._incoming.reserved += count
        return True

    def _complete(self) -> None:
        """The body is all there: its request begins."""
        incoming, handler = self._incoming, self._handler
        assert incoming is not None
        self._incoming = None
        exchange = Exchange(handler, self, incoming.call, incoming.accepted_s, incoming.reserved)
        self.exchanges.append(exchange)
        body, exchange.buffer = incoming.body()
        handler.begin(exchange, body, 0, len(body))
        if not incoming.call.keep_alive:
            self._closing = True

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Read on, if nothing stands in the way any more."""
        if self._reading or self._closing or not self._held or self._write_held_s:
            return
        if len(self.exchanges) >= self._handler.limits.pipeline:
            return
        self._held = False
        data, self._tail = self._tail, b""
        self._read(data)
        if not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _close(self) -> None:
        """After the last answer: close, but read over what the client may still send, so that a reset does not take the answer from it."""
        self._closing = True
        if not self._unread:
            self._end()
            return
        self._lingers = True
        self._since_s = self._handler.now_s
        if self._held:
            self._held = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _end(self) -> None:
        self._ended_s = self._handler.now_s
        self._transport.close()


_BROKEN = Call("", 1, 0, keep_alive=False, expects_continue=False)
