"""One gRPC call on the server: what has arrived, what runs for it, and whether anybody still waits. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import OverloadedError
from edgekit.protocol._byte_budget import ByteBudget, Charge
from edgekit.protocol._grpc_wire import PREFIX_BYTES, CallHead, Message, MessageReader, framed
from edgekit.protocol._types import InferRequest, InferResponse, Ticket

if TYPE_CHECKING:
    from edgekit.protocol._grpc_connection import GrpcConnection
    from edgekit.protocol._trace import Trace

__all__ = ["CONTROL", "INFER", "REFLECT", "STREAM", "WATCH", "Call", "Inference"]

_COUNTED_BYTES = 64 << 10
CONTROL, INFER, REFLECT, STREAM, WATCH = "control", "infer", "reflect", "stream", "watch"


class Call:
    """An open call.

    Attributes:
        connection, stream_id: where it came from.
        kind: `CONTROL`, `INFER`, `STREAM`, or of the standard services `REFLECT` and `WATCH`.
        head: what its headers said.
        deadline_s: when its client stops waiting (`time.monotonic`), ``None`` for never.
        since_s: when it began, or the stream last brought a message.
        message: of a unary call.
        waiting: messages of a stream that have not begun.
        unacknowledged_bytes: of them, for flow control: the client may send no more until they have.
        running: inferences under way, in the order of their requests; of a stream also those whose answer waits for an earlier one, with that answer.
        decoding: one of them is read in a thread; those after it wait, so that a stream's requests reach the core in order.
        ended: the client sends nothing more.
        answered: headers have been sent.
        closed: nothing more is sent.
    """

    __slots__ = (
        "_limit_bytes",
        "_reader",
        "answered",
        "closed",
        "connection",
        "deadline_s",
        "decoding",
        "ended",
        "head",
        "kind",
        "message",
        "running",
        "since_s",
        "stream_id",
        "unacknowledged_bytes",
        "waiting",
    )

    def __init__(self, connection: GrpcConnection, stream_id: int, kind: str, head: CallHead, limit_bytes: int, now_s: float) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.kind = kind
        self.head = head
        self.deadline_s = None if head.timeout_s is None else now_s + head.timeout_s
        self.since_s = now_s
        self._limit_bytes = limit_bytes
        self._reader: MessageReader | None = None
        self.message: Message | None = None
        self.waiting: deque[Message] = deque()
        self.unacknowledged_bytes = 0
        self.running: dict[Inference, Sequence[Any] | None] = {}
        self.decoding = False
        self.ended = False
        self.answered = False
        self.closed = False

    @property
    def sends_many(self) -> bool:
        """The client may send messages as long as it likes."""
        return self.kind in {STREAM, REFLECT}

    @property
    def is_idle(self) -> bool:
        """It would go on for ever, and nothing is under way in it."""
        return self.kind in {STREAM, REFLECT, WATCH} and not self.running and not self.waiting

    def is_whole(self, data: bytes) -> bool:
        """Nothing has come before ``data``, which is exactly one message, not compressed."""
        length = len(data) - PREFIX_BYTES
        return self._reader is None and 0 < length <= self._limit_bytes and data[:PREFIX_BYTES] == framed(length)

    def reader(self) -> MessageReader:
        """What cuts the call's bytes into messages."""
        if self._reader is None:
            self._reader = MessageReader(self._limit_bytes, self.head.encoding)
        return self._reader

    def held_bytes(self) -> int:
        """Bytes of a message that is not complete."""
        return self._reader.held if self._reader is not None else 0

    def close(self) -> None:
        """Nobody waits any more: drop what has not run."""
        self.closed = True
        self.message = self._reader = None
        self.waiting.clear()
        for inference in self.running:
            inference.cancel()
        self.running.clear()


class Inference:
    """One inference of a call: a unary call has one, a stream one for each message.

    Attributes:
        call: it belongs to.
        message: as it arrived.
        request: decoded; ``None`` before that.
        readable: the message is one that can be answered, at least with an error.
        identity: the request's id, for answers of a stream.
        final: the stream's client wants the answer marked as the last one for its request.
        held: what it holds of the budget for memory.
    """

    __slots__ = ("_deliver", "call", "cancelled", "final", "held", "identity", "message", "readable", "request", "ticket", "trace")

    def __init__(self, call: Call, message: Message, deliver: Callable[[Inference, Any], None]) -> None:
        self.call = call
        self.message: Message | None = message
        self.request: InferRequest | None = None
        self.readable = False
        self.identity = ""
        self.final = False
        self.ticket: Ticket | None = None
        self.cancelled = False
        self.held: list[Charge] = []
        self.trace: Trace | None = None
        self._deliver = deliver

    def hold(self, budget: ByteBudget) -> bool:
        """Count a large message until it is answered; false when there is too much under way. Small ones are bounded by the number of calls."""
        assert self.message is not None
        size = len(self.message.data)
        if size < _COUNTED_BYTES:
            return True
        charge = Charge(budget)
        try:
            charge.take(size)
        except OverloadedError:
            return False
        self.held.append(charge)
        return True

    def release(self) -> None:
        """It holds nothing any more; may be called again."""
        while self.held:
            self.held.pop().give_back()

    def done(self, answer: InferResponse | Exception) -> None:
        """Given to `SubmittingCore.submit`; any thread."""
        self._deliver(self, answer)

    def cancel(self) -> None:
        """Nobody waits for the answer."""
        self.cancelled = True
        if self.trace is not None:
            self.trace.end()
        self.release()
        if self.ticket is not None:
            self.ticket.cancel()
