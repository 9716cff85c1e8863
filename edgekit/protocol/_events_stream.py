"""Server-sent events: the chunks of one request run one after the other, and each answer goes out as soon as it is there.

The next chunk begins when the answer to the one before it was written and the client reads: who reads slowly is waited for, within the connection's limits. A
client that leaves ends its stream at the chunk that runs. Lives in the event loop's thread, but for `EventStreams.prepare`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import msgspec

from edgekit.errors import EdgeKitError
from edgekit.protocol._byte_budget import ByteBudget, Charge
from edgekit.protocol._deadline import absolute_deadline
from edgekit.protocol._generate import Chunks, chunks_of, end_event, error_event, read_body, result_event
from edgekit.protocol._http_exchange import Call, Exchange, Handler
from edgekit.protocol._http_parse import HttpError
from edgekit.protocol._http_reply import Reply
from edgekit.protocol._http_routes import decompress
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, InferRequest, InferResponse, Parameters

__all__ = ["EventStream", "EventStreams"]

Done = Callable[[InferResponse | Exception], None]
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_HEAD = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"


class EventStreams:
    """Makes streams of requests for events, for one transport.

    Args:
        core: what answers.
        limits: of a message.
        budget: of the transport.
        json_cost: bytes of Python objects for a byte of JSON.
        handler: of the connections.
        ask: gives a request to the core, in the loop's thread; ``done`` is called in any thread.
        in_loop: calls something in the loop's thread.
        reply_to: the answer to an error.
    """

    def __init__(
        self,
        core: InferenceCore,
        limits: Limits,
        budget: ByteBudget,
        json_cost: int,
        handler: Handler,
        ask: Callable[[InferRequest, Done], None],
        in_loop: Callable[..., None],
        reply_to: Callable[[Call, Exception], Reply],
    ) -> None:
        self._core = core
        self._limits = limits
        self._budget = budget
        self._json_cost = json_cost
        self._in_loop = in_loop
        self.handler = handler
        self.ask = ask
        self.reply_to = reply_to

    def prepare(self, exchange: Exchange, body: memoryview) -> None:
        """Decode a request and begin to answer it. May take long: not in the loop's thread."""
        charge = Charge(self._budget)
        found: tuple[Chunks, bool] | Exception
        try:
            found = self._chunks(exchange, body, charge)
        except Exception as exc:  # noqa: BLE001 - `Handler.finish` tells errors of ours from bugs
            found = exc
        self._in_loop(self._begin, exchange, found, charge)

    def tell(self, stream: EventStream, answer: InferResponse | Exception) -> None:
        """The core's answer, in any thread."""
        self._in_loop(stream.answered, answer)

    def _chunks(self, exchange: Exchange, body: memoryview, charge: Charge) -> tuple[Chunks, bool]:
        """What is asked; and whether its model has states. Raises `EdgeKitError`."""
        call, limits = exchange.call, self._limits
        if call.minor == 0:
            raise HttpError(505, "generate_stream", "HTTP/1.0", "HTTP/1.1, whose answers may have chunks")
        metadata = self._core.model_metadata(call.name, call.version)
        if call.header_length is None:
            limits = msgspec.structs.replace(limits, body_bytes=min(limits.body_bytes, limits.json_bytes))
        plain = decompress(body, call.encoding, limits, charge)
        with charge.meanwhile(min(call.json_bytes or len(plain), limits.json_bytes) * self._json_cost):
            request = read_body(plain, call.header_length, metadata, call.version, limits)
        if call.header_length is None:  # else the tensors are the body's own bytes
            charge.take(sum(tensor.data.nbytes for tensor in request.inputs))
        request.deadline_s = absolute_deadline(request.parameters, exchange.accepted_s or time.monotonic(), call.timeout_s)
        return chunks_of(request, metadata), "sequence_batching" in self._core.model_config(call.name, call.version)

    def _begin(self, exchange: Exchange, found: tuple[Chunks, bool] | Exception, charge: Charge) -> None:
        if isinstance(found, Exception) or exchange.connection is None:
            charge.give_back()
            self.handler.finish(exchange, found)
            return
        exchange.reserved += charge.taken
        stream = EventStream(self, exchange, *found)
        exchange.wake = stream.pump
        stream.pump()


class EventStream:
    """One answer of many events; also the exchange's `Ticket`.

    Args:
        streams: what made it.
        exchange: that it answers.
        chunks: what runs.
        stateful: the model has states, so that the chunks are a sequence.
    """

    def __init__(self, streams: EventStreams, exchange: Exchange, chunks: Chunks, stateful: bool) -> None:
        self._streams = streams
        self._exchange = exchange
        self._chunks = chunks
        self._stateful = stateful
        self._requests = chunks.requests()
        self._identity = uuid.uuid4().hex
        self._index = -1  # of the chunk that runs or ran last
        self._running = False
        self._begun = False  # the head of the answer is out
        self._ended = False

    def pump(self) -> None:
        """Begin the next chunk, if it may."""
        connection = self._exchange.connection
        if self._running or self._ended or connection is None or not connection.takes(self._exchange):
            return
        request = next(self._requests)
        self._index += 1
        self._running = True
        request.parameters = self._marked(request.parameters)
        self._exchange.ticket = self
        self._streams.ask(request, lambda answer: self._streams.tell(self, answer))

    def cancel(self) -> None:
        """See `Ticket.cancel`: the client has left. What runs runs to its end, and its sequence ends."""
        if not self._ended:
            self._ended = True
            self._exchange.wake = None
            self._leave()

    def _leave(self) -> None:
        """End the sequence before its last chunk, unless it is the client's own."""
        request = self._chunks.request
        if self._stateful and 0 <= self._index < self._chunks.count - 1 and "sequence_id" not in request.parameters:
            parameters: Parameters = {"sequence_id": self._identity, "sequence_end": True}
            self._streams.ask(InferRequest(request.model_name, [], request.model_version, parameters=parameters), _forget)

    @property
    def _is_last(self) -> bool:
        return self._index == self._chunks.count - 1

    def _marked(self, parameters: Parameters) -> Parameters:
        """A chunk's parameters: its place in the sequence. A client that names a sequence says itself where that begins and ends."""
        if not self._stateful:
            return parameters
        first, last = self._index == 0, self._is_last
        if "sequence_id" in parameters:
            start, end = (bool(parameters.get(name, False)) for name in _SEQUENCE[1:])
            return {**parameters, "sequence_start": start and first, "sequence_end": end and last}
        return {**parameters, "sequence_id": self._identity, "sequence_start": first, "sequence_end": last}

    def answered(self, answer: InferResponse | Exception) -> None:
        """A chunk's answer: write its event and go on."""
        self._running = False
        if self._ended or self._exchange.connection is None:
            return
        if not isinstance(answer, Exception):
            try:
                event = result_event(answer, self._index, self._chunks.request.outputs)
            except EdgeKitError as exc:
                answer = exc
        if isinstance(answer, Exception):
            self._fail(answer)
        elif self._is_last:
            self._end(event + end_event(self._chunks))
        else:
            self._write(event)
            self.pump()

    def _fail(self, error: Exception) -> None:
        """A chunk failed: as an answer of its own when it is the first, else as the last event."""
        if self._begun:
            self._leave()
            self._end(error_event(self._streams.reply_to(self._exchange.call, error).body))
        else:
            self._ended = True
            self._exchange.wake = None
            self._streams.handler.finish(self._exchange, error)

    def _framed(self, event: bytes) -> bytes:
        begin = b""
        if not self._begun:
            self._begun = True
            close = b"" if self._exchange.call.keep_alive else b"Connection: close\r\n"
            begin = b"".join([b"HTTP/1.1 200 OK\r\n", self._streams.handler.date, _HEAD, close, b"\r\n"])
        return b"%s%x\r\n%s\r\n" % (begin, len(event), event)

    def _write(self, event: bytes) -> None:
        assert self._exchange.connection is not None
        self._exchange.connection.send_part(self._framed(event))

    def _end(self, event: bytes) -> None:
        self._ended = True
        self._exchange.wake = None
        self._exchange.settle([self._framed(event) + b"0\r\n\r\n"])


def _forget(answer: InferResponse | Exception) -> None:
    """Nobody waits for the answer."""
    del answer
