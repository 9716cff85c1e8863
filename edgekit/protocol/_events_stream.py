"""Server-sent events: the chunks of one request run one after the other, and each answer goes out as soon as it is there.

The next chunk begins when the answer to the one before it was written and the client reads: who reads slowly is waited for, within the connection's limits. A
client that leaves ends its stream at the chunk that runs. Lives in the event loop's thread, but for `prepare`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from edgekit.errors import EdgeKitError
from edgekit.protocol._deadline import absolute_deadline
from edgekit.protocol._generate import Chunks, chunks_of, end_event, error_event, read_body, result_event
from edgekit.protocol._http_exchange import Call, Exchange
from edgekit.protocol._http_parse import HttpError
from edgekit.protocol._http_reply import Reply
from edgekit.protocol._http_routes import decompress
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, InferRequest, InferResponse, Parameters, Ticket

__all__ = ["EventStream", "prepare"]

Done = Callable[[InferResponse | Exception], None]
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_HEAD = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"


def prepare(core: InferenceCore, exchange: Exchange, body: Any, limits: Limits) -> tuple[Chunks, bool]:
    """Decode a request for events and cut it; and whether its model has states. May take long: not in the loop's thread.

    Raises:
        EdgeKitError: why it cannot run; nothing was sent then.
    """
    call = exchange.call
    if call.minor == 0:
        raise HttpError(505, "generate_stream", "HTTP/1.0", "HTTP/1.1, whose answers may have chunks")
    metadata = core.model_metadata(call.name, call.version)
    request = read_body(decompress(body, call.encoding, limits), call.header_length, metadata, call.version, limits)
    request.deadline_s = absolute_deadline(request.parameters, exchange.accepted_s or time.monotonic(), call.timeout_s)
    return chunks_of(request, metadata), "sequence_batching" in core.model_config(call.name, call.version)


class EventStream:
    """One answer of many events; also the exchange's `Ticket`.

    Args:
        exchange: that it answers.
        chunks: what runs.
        stateful: the model has states, so that the chunks are a sequence.
        ask: gives a request to the core; ``done`` is called in any thread.
        in_loop: calls something in the loop's thread.
        finish: ends the exchange with an answer that is no stream, an error.
        date: the date line.
        reply_to: the answer to an error.
    """

    def __init__(
        self,
        exchange: Exchange,
        chunks: Chunks,
        stateful: bool,
        ask: Callable[[InferRequest, Done], Ticket | None],
        in_loop: Callable[..., None],
        finish: Callable[[Exchange, Any], None],
        date: bytes,
        reply_to: Callable[[Call, Exception], Reply],
    ) -> None:
        self._exchange = exchange
        self._chunks = chunks
        self._stateful = stateful
        self._ask = ask
        self._in_loop = in_loop
        self._finish = finish
        self._date = date
        self._reply_to = reply_to
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
        self._ask(request, lambda answer: self._in_loop(self._answered, answer))

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
            self._ask(InferRequest(request.model_name, [], request.model_version, parameters=parameters), _forget)

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

    def _answered(self, answer: InferResponse | Exception) -> None:
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
            self._end(error_event(self._reply_to(self._exchange.call, error).body))
        else:
            self._ended = True
            self._exchange.wake = None
            self._finish(self._exchange, error)

    def _framed(self, event: bytes) -> bytes:
        begin = b""
        if not self._begun:
            self._begun = True
            close = b"" if self._exchange.call.keep_alive else b"Connection: close\r\n"
            begin = b"".join([b"HTTP/1.1 200 OK\r\n", self._date, _HEAD, close, b"\r\n"])
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
