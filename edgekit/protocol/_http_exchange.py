"""What the HTTP server's parts agree on: limits of connections, what a head says, and one request on its way to its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edgekit.errors import EdgeKitError, UnavailableError
from edgekit.protocol._http_parse import HeadLimits
from edgekit.protocol._http_routes import Route
from edgekit.protocol._types import InferResponse, Ticket

if TYPE_CHECKING:
    from edgekit.protocol._http_body import BufferPool
    from edgekit.protocol._http_connection import Connection
    from edgekit.protocol._trace import Trace

__all__ = ["Body", "Call", "ConnectionLimits", "Exchange", "Handler"]

Body = bytes | memoryview


class ConnectionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients may take up.

    Attributes:
        head: of each request.
        connections: open at once; more are told 503 and closed.
        pipeline: requests of one connection under way at once; the next ones are not read before.
        buffered_bytes: bodies of all connections together, as far as they came in pieces; who would need more is told 503.
        write_buffer_bytes: answers that wait for one client to read them, before it is read no more.
        head_s: from the first byte of a request to the end of its head.
        body_s: for the whole body.
        idle_s: without a request.
        write_s: for a client to take what waits for it.
        left_s: for answers to a client that sends no more; then it has left, and what waits for it is cancelled.
        linger_s: after an answer that ends the connection while the client still sends, so that it can read that answer.
    """

    head: HeadLimits = HeadLimits()
    connections: int = 4096
    pipeline: int = 16
    buffered_bytes: int = 1 << 30
    write_buffer_bytes: int = 1 << 20
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    write_s: float = 30.0
    left_s: float = 1.0
    linger_s: float = 2.0


class Call:
    """What the head of a request says; the same for equal heads, and not changed.

    Attributes:
        route: where to; ``None`` when ``error`` says why there is none.
        infers: an inference request that may run.
        streams: the same, answered with events.
        name, version: of its model.
        json_bytes: of its JSON, when tensors in binary form follow it and nothing has to be unpacked before; 0 otherwise.
        method, minor: of the request line.
        length: of the body, ``None`` for chunks.
        keep_alive, expects_continue: see `RequestHead`.
        header_length, encoding, timeout_s: what the fields say about the body and the deadline.
        packed: the body is compressed.
        answer_coding: how the answer may be compressed; empty for not at all.
        error: refuses the request, once its body was read.
        fatal: refuses it before that (no token).
    """

    __slots__ = (
        "answer_coding",
        "encoding",
        "error",
        "expects_continue",
        "fatal",
        "header_length",
        "infers",
        "json_bytes",
        "keep_alive",
        "length",
        "method",
        "minor",
        "name",
        "packed",
        "plain",
        "route",
        "streams",
        "timeout_s",
        "version",
    )

    def __init__(self, method: str, minor: int, length: int | None, *, keep_alive: bool, expects_continue: bool) -> None:
        self.method = method
        self.minor = minor
        self.length = length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.route: Route | None = None
        self.infers = False
        self.streams = False
        self.name = self.version = ""
        self.json_bytes = 0
        self.header_length: str | None = None
        self.encoding: str | None = None
        self.answer_coding = ""
        self.packed = False
        self.timeout_s: float | None = None
        self.error: EdgeKitError | None = None
        self.fatal: EdgeKitError | None = None
        self.plain = keep_alive and minor == 1  # the answer needs no word about the connection


class Handler(Protocol):
    """What connections need of the application."""

    limits: ConnectionLimits
    body_bytes: int
    now_s: float
    date: bytes
    draining: bool
    thread: int
    buffer: memoryview
    pool: BufferPool

    def opened(self, connection: Connection) -> bool:
        """Count a new connection; false when there are too many."""
        ...

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        ...

    def call(self, raw: bytes) -> Call:
        """Parse a head; raises `HttpError`."""
        ...

    def reserve(self, count: int) -> bool:
        """Take so many bytes of the budget for bodies; false when they are not there."""
        ...

    def release(self, count: int) -> None:
        """Give bytes back."""
        ...

    def begin(self, exchange: Exchange, data: Body, start: int, stop: int) -> None:
        """Work on a request whose body is ``data[start:stop]``."""
        ...

    def finish(self, exchange: Exchange, answer: Any) -> None:
        """Make bytes of the answer and hand them to `Exchange.settle`."""
        ...

    def post(self, exchange: Exchange, answer: Any) -> None:
        """`finish`, in the loop's thread."""
        ...


class Exchange:
    """One request under way and its answer."""

    __slots__ = ("_handler", "accepted_s", "buffer", "call", "connection", "extra", "payload", "reserved", "ticket", "trace", "wake")

    def __init__(self, handler: Handler, connection: Connection, call: Call, accepted_s: float = 0.0, reserved: int = 0) -> None:
        self._handler = handler
        self.connection: Connection | None = connection
        self.call = call
        self.accepted_s = accepted_s  # 0: now
        self.reserved = reserved
        self.buffer: bytearray | None = None  # holds the body
        self.ticket: Ticket | None = None
        self.payload: list[bytes | memoryview] | None = None
        self.extra: Any = None  # of the application: the request, or request and plan
        self.wake: Callable[[], None] | None = None  # of a stream of answers: the connection may take more
        self.trace: Trace | None = None

    def done(self, answer: InferResponse | Exception) -> None:
        """The core's answer, in any thread."""
        if threading.get_ident() == self._handler.thread:
            self._handler.finish(self, answer)
        else:
            self._handler.post(self, answer)

    def settle(self, payload: list[bytes | memoryview]) -> None:
        """The answer's bytes. Only the first answer counts."""
        if self.reserved:
            self._handler.release(self.reserved)
            self.reserved = 0
        self.extra = self.ticket = None  # the ticket holds `done`, and so this: no circle must wait for the collector
        if self.buffer is not None:
            self._handler.pool.give(self.buffer)
            self.buffer = None
        connection = self.connection
        if connection is None or self.payload is not None:
            return
        self.payload = payload
        if connection.exchanges[0] is self:
            connection.send_answers()

    def give_up(self) -> None:
        """The client has most likely left: what the core has not begun is dropped."""
        ticket = self.ticket
        if ticket is not None:
            ticket.cancel()
            self._handler.finish(
                self, UnavailableError("request", "its client has ended the connection", "", "keep it open for the answer")
            )

    def abandon(self) -> None:
        """The client has gone: nobody waits any more."""
        self.connection = self.wake = None
        if self.trace is not None:
            self.trace.end()
        if self.reserved:
            self._handler.release(self.reserved)
            self.reserved = 0
        if self.ticket is not None:
            self.ticket.cancel()
