"""From calls to the core and back: everything of one turn of the event loop is submitted before the core is told to run, and answers of other threads come through
one wake-up for many.

A `SubmittingCore` is called in the loop's thread. Any other core gets a bounded pool of threads, as do the calls that are not inference. Messages that are large or
compressed are decoded in a thread too, so that the loop always answers health.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from edgekit.errors import EdgeKitError, OverloadedError
from edgekit.protocol._byte_budget import ByteBudget, Charge
from edgekit.protocol._classification import LabelsOf
from edgekit.protocol._compression import LEAST_BYTES, QUICK_BYTES
from edgekit.protocol._deadline import absolute_deadline
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._grpc_call import CONTROL, REFLECT, STREAM, WATCH, Call, Inference
from edgekit.protocol._grpc_codec import decode_request
from edgekit.protocol._grpc_fast import Part, RequestScanner, ResponseWriter, stream_parts
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._grpc_service import ControlService, parse_message
from edgekit.protocol._grpc_standard import HealthWatch, ReflectionStreams
from edgekit.protocol._grpc_wire import Message, inflate, message_limit_bytes, packed, prefixed
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, InferResponse, Parameters, SubmittingCore

__all__ = ["Dispatcher", "status_of"]

_log = logging.getLogger(__name__)
_CONTROL_THREADS = 4  # health and repository calls that still get through while inference takes all its threads
_MAX_CONTROL_WAITING = 256
_CONTROL_BYTES = 4 << 20  # of their requests, once decompressed
_DECODE_THREADS = 2
_UNDER_WAY_BYTES = 1 << 30  # of requests that are not answered, as far as they are large or were compressed
_INLINE_BYTES = 4 << 20  # of plain tensors, which are copied at most
_INLINE_FULL_BYTES = 64 << 10  # of what takes longer to decode (typed contents, BYTES)
_STREAM_RUNNING = 64  # inferences of one stream at once, answers that wait for earlier ones included; flow control holds back the rest
_FINAL_ASKED = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"
_DECISION = "edgekit_decision"
_DECISION_TRAILER = b"x-edgekit-decision"
_DECISION_CHARACTERS = 1000  # clients bound headers at 8 KiB


class Dispatcher:
    """Runs the calls of one transport. All methods but `_deliver` belong to the loop's thread.

    Args:
        loop: the event loop.
        core: what answers.
        limits: what one message may hold.
        max_in_flight: most inferences at once for a core without ``submit``.
        extensions: the server's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, core: InferenceCore, limits: Limits, max_in_flight: int, extensions: Extensions
    ) -> None:
        self._loop = loop
        self._core = core
        self._submitting: SubmittingCore | None = core if hasattr(core, "submit") and hasattr(core, "turn") else None  # type: ignore[assignment]
        self._step = core.step if self._submitting is not None and hasattr(core, "step") else None
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._regions = extensions.regions
        self._traces = extensions.traces
        self._labels_of: LabelsOf = lambda name, version: core.class_labels(name, version)  # noqa: PLW0108 - looked up when it is needed
        self.budget = ByteBudget(max(_UNDER_WAY_BYTES, 2 * limits.body_bytes))
        self.control = ControlService(core, extensions)
        self.message_limit_bytes = message_limit_bytes(limits)
        self._local = threading.local()
        self._writer = ResponseWriter()
        self._request_class = message_classes()["ModelInferRequest"]
        self._control_pool = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="edgekit-grpc-control")
        self.health = HealthWatch(loop, self.control, self._control_pool, self.touched)
        self._reflection = ReflectionStreams(loop, self.touched)
        threads = _DECODE_THREADS if self._submitting is not None else max_in_flight
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="edgekit-grpc")
        self._control_waiting = 0
        self._in_flight = 0  # in threads of ours
        self._thread_id = threading.get_ident()
        self._answers: deque[tuple[Inference | Call, Any]] = deque()
        self._turn_planned = False
        self._submitted = False
        self._several = False  # of them were submitted since the last turn
        self._woken = False
        self._dirty: set[Any] = set()
        self.stream_running = _STREAM_RUNNING if self._submitting is not None else 1  # one: its answers come in order

    def run_in(self, thread_id: int) -> None:
        """The thread that runs the loop."""
        self._thread_id = thread_id

    def close(self) -> None:
        """Hand over what was left for the next step, and let the threads end; waits for what runs in them."""
        if self._step is not None and self._submitting is not None:
            self._submitting.turn()
        self._control_pool.shutdown(wait=True)
        self._pool.shutdown(wait=True)

    def touched(self, connection: Any) -> None:
        """A connection may have bytes to send at the end of this turn."""
        self._dirty.add(connection)
        if not self._turn_planned:
            self._turn_planned = True
            self._loop.call_soon(self._turn)

    def start(self, call: Call, message: Message) -> None:
        """Run a unary call whose request is complete."""
        if call.kind == CONTROL:
            if self._control_waiting >= _MAX_CONTROL_WAITING:
                call.connection.fail(call, OverloadedError("server", f"{self._control_waiting} calls wait already", "", "try again later"))
                return
            self._control_waiting += 1
            self._control_pool.submit(self._run_control, call, message)
        elif call.kind == WATCH:
            try:
                self.health.begin(call, message)
            except EdgeKitError as exc:
                call.connection.fail(call, exc)
        else:
            self._infer(Inference(call, message, self._deliver))

    def pump(self, call: Call) -> None:
        """Begin what a stream has brought, as far as it may."""
        if call.kind == REFLECT:
            self._reflection.pump(call)
            return
        while call.waiting and not (call.closed or call.decoding) and len(call.running) < self.stream_running:
            self._infer(Inference(call, call.waiting.popleft(), self._deliver))
        if not call.waiting:
            call.connection.acknowledge_held(call)
            if call.ended and not call.running and not call.closed:
                call.connection.finish(call)

    def _infer(self, inference: Inference) -> None:
        call, message = inference.call, inference.message
        assert message is not None
        call.running[inference] = None
        if call.connection.is_clogged():
            inference.readable = True
            self._deliver(inference, OverloadedError("connection", "too many answers wait to be read", "", "read them first"))
        elif not inference.hold(self.budget):
            inference.readable = True
            self._deliver(inference, OverloadedError("server", "too many bytes of requests are under way", "", "try again later"))
        elif self._submitting is None:
            if self._in_flight >= self._max_in_flight:
                inference.readable = True
                found = f"{self._in_flight} requests are being worked on"
                self._deliver(inference, OverloadedError("server", found, f"at most {self._max_in_flight}", "try again later"))
                return
            self._in_flight += 1
            self._pool.submit(self._run_blocking, inference)
        else:
            try:
                here = not message.encoding and len(message.data) <= _INLINE_BYTES and self._decode(inference, _INLINE_FULL_BYTES)
            except Exception as exc:  # noqa: BLE001 - becomes the call's status
                self._deliver(inference, exc)
                return
            if here:
                self._submit(inference)
            else:
                self._in_flight += 1
                call.decoding = True
                self._pool.submit(self._run_decode, inference)

    def _decode(self, inference: Inference, full_limit_bytes: int | None = None, charge: Charge | None = None) -> bool:
        """Set the inference's request from its message; any thread. False when that takes the full path, and more bytes than the limit.

        ``charge`` holds what it takes beside the message.
        """
        message = inference.message
        assert message is not None
        read_s = time.monotonic() if self._traces.on else 0.0
        raw = memoryview(inflate(message, self.message_limit_bytes, charge) if message.encoding else message.data)
        request = self._scanner().scan(raw)
        if request is None:
            if full_limit_bytes is not None and len(raw) > full_limit_bytes:
                return False
            parsed = parse_message("ModelInfer", self._request_class, raw)
            inference.identity, inference.readable = parsed.id, True
            request = decode_request(parsed, self._limits, self._regions)
        inference.identity, inference.readable = request.id, True
        deadline_s = inference.call.deadline_s
        if request.parameters or deadline_s is not None:
            inference.final = bool(request.parameters.get(_FINAL_ASKED, False))
            now_s = time.monotonic()
            remaining_s = None if deadline_s is None else max(0.0, deadline_s - now_s)
            request.deadline_s = absolute_deadline(request.parameters, now_s, remaining_s)
        if read_s:
            inference.trace = trace = self._traces.begin(request.model_name, "GRPC", (inference.call.since_s, read_s))
            if trace is not None:
                trace.attach(request)
        inference.request = request
        inference.message = None
        return True

    def _scanner(self) -> RequestScanner:
        """The scanner of this thread."""
        try:
            scanner: RequestScanner = self._local.scanner
        except AttributeError:
            scanner = self._local.scanner = RequestScanner(self._limits)
        return scanner

    def _submit(self, inference: Inference) -> None:
        assert self._submitting is not None
        assert inference.request is not None
        self._several = self._several or self._submitted
        self._submitted = True
        inference.ticket = self._submitting.submit(inference.request, inference.done)
        self.touched(inference.call.connection)

    def _run_decode(self, inference: Inference) -> None:
        """In a thread: decode, then hand the request back to the loop."""
        charge = Charge(self.budget)
        try:
            self._decode(inference, charge=charge)
        except Exception as exc:  # noqa: BLE001 - becomes the call's status
            self._deliver(inference, _Threaded(exc, charge))
        else:
            self._deliver(inference, _Threaded(None, charge))

    def _run_blocking(self, inference: Inference) -> None:
        """In a thread: decode and infer."""
        charge = Charge(self.budget)
        try:
            if inference.cancelled:
                raise OverloadedError("request", "cancelled")
            self._decode(inference, charge=charge)
            assert inference.request is not None
            answer = self._core.infer(inference.request)
            if inference.trace is not None:
                inference.trace.answered(answer)
        except Exception as exc:  # noqa: BLE001 - becomes the call's status
            self._deliver(inference, _Threaded(exc, charge))
        else:
            self._deliver(inference, _Threaded(answer, charge))

    def _run_control(self, call: Call, message: Message) -> None:
        try:
            raw = inflate(message, min(_CONTROL_BYTES, self.message_limit_bytes))
            answer = self.control.answer(call.head.path, raw, local=call.connection.local)
        except Exception as exc:  # noqa: BLE001 - becomes the call's status
            self._deliver(call, exc)
        else:
            self._deliver(call, answer)

    def _deliver(self, what: Inference | Call, answer: Any) -> None:
        """Any thread: an answer for the loop to write."""
        self._answers.append((what, answer))
        if threading.get_ident() == self._thread_id:
            self.touched(what.call.connection if isinstance(what, Inference) else what.connection)
        elif not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: nobody waits
                self._answers.clear()

    def _wake(self) -> None:
        self._woken = False
        self._drain()
        if self._step is not None:
            self._plan_step()

    def _turn(self) -> None:
        if self._several:  # reading them took a while: what has come in meanwhile runs with them
            self._several = False
            self._loop.call_soon(self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        """Run what was submitted, write what was answered, and send all of it."""
        self._turn_planned = True  # what touches a connection from here on needs no other turn
        self._several = more = False
        while self._submitted or self._answers:
            if self._submitted:
                self._submitted = False
                assert self._submitting is not None
                try:
                    if self._step is None:
                        self._submitting.turn()
                    else:
                        more = self._step()
                except Exception:  # noqa: BLE001 - its tickets are its own; the loop goes on
                    _log.exception("the core failed in its turn")
            while self._answers:
                what, answer = self._answers.popleft()
                try:
                    self._answer(what, answer)
                except Exception:  # noqa: BLE001 - one connection's answer must not cost the others theirs
                    _log.exception("an answer could not be written")
                    (what if isinstance(what, Call) else what.call).connection.abort()
        self._turn_planned = False
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            connection.flush()
        if more:
            self._plan_step()

    def _plan_step(self) -> None:
        """Call the core again once the loop has looked at what has come in."""
        self._submitted = True
        if not self._turn_planned:
            self._turn_planned = True
            self._loop.call_soon(self._turn)

    def _answer(self, what: Inference | Call, answer: Any) -> None:
        if isinstance(what, Call):
            self._answer_control(what, answer)
        else:
            self._answer_inference(what, answer)

    def _answer_control(self, call: Call, answer: bytes | Exception) -> None:
        self._control_waiting -= 1
        if call.closed:
            return
        self._dirty.add(call.connection)
        if isinstance(answer, Exception):
            call.connection.fail(call, answer)
        else:
            call.connection.send(call, prefixed([answer]))
            call.connection.finish(call)

    def _answer_inference(self, inference: Inference, answer: Any) -> None:
        if isinstance(answer, _Threaded):
            self._in_flight -= 1
            inference.call.decoding = False
            inference.held.append(answer.charge)
            answer = answer.answer
        elif isinstance(answer, _Packed):
            self._in_flight -= 1
        call = inference.call
        if answer is not None or inference.cancelled:
            inference.release()
        if inference.cancelled or call.closed:
            return
        self._dirty.add(call.connection)
        if answer is None:  # decoded in a thread
            self._submit(inference)
            if call.kind == STREAM:
                self.pump(call)
            return
        trace = inference.trace
        if trace is not None:
            trace.answered(answer)
        if isinstance(answer, Exception):
            self._refuse(inference, answer)
            return
        try:
            message = answer.message if isinstance(answer, _Packed) else self._message(inference, answer)
        except Exception as exc:  # noqa: BLE001 - becomes the call's status, or the stream's answer
            self._refuse(inference, exc)
            return
        if message is None:
            return  # a thread compresses it
        if call.kind != STREAM:
            del call.running[inference]
            if trace is not None:
                trace.sending()
            call.connection.send(call, message)
            call.connection.finish(call, _decision(answer.parameters))
            if trace is not None:
                trace.sent()
            return
        self._answer_in_order(inference, message)

    def _refuse(self, inference: Inference, error: Exception) -> None:
        """Answer with an error. Never raised again: with a frame of ours in its traceback, it and all that it saw would wait for the collector."""
        call = inference.call
        if call.kind == STREAM and inference.readable:
            self._answer_in_order(inference, prefixed(self._stream_error(inference, error)))
        else:  # in a stream, no message that could be answered
            call.running.pop(inference, None)
            if inference.trace is not None:
                inference.trace.sending()
            call.connection.fail(call, error)
            if inference.trace is not None:
                inference.trace.sent()

    def _answer_in_order(self, inference: Inference, message: Sequence[Part]) -> None:
        call = inference.call
        call.running[inference] = message
        self._send_in_order(call)
        self.pump(call)

    def _message(self, inference: Inference, response: InferResponse) -> Sequence[Part] | None:
        """The answer's bytes with their prefix; ``None`` when a thread makes them."""
        call = inference.call
        parts = self._writer.parts(self._marked(inference, response), inference.request, self._regions, self._labels_of)
        if call.kind == STREAM:
            parts = stream_parts(parts)
        encoding = call.head.answer_encoding
        if not encoding or (size := sum(map(len, parts))) < LEAST_BYTES:
            return prefixed(parts)
        if size <= QUICK_BYTES:
            return packed(parts, encoding)
        self._in_flight += 1
        self._pool.submit(self._run_pack, inference, parts, response.parameters)
        return None

    def _run_pack(self, inference: Inference, parts: Sequence[Part], parameters: Parameters) -> None:
        """In a thread: compress an answer."""
        message = [] if inference.cancelled else packed(parts, inference.call.head.answer_encoding)
        self._deliver(inference, _Packed(message, parameters))

    def _send_in_order(self, call: Call) -> None:
        """What a stream asked first is answered first, as Triton does: a client could not tell otherwise which request an error is about."""
        while call.running:
            first, parts = next(iter(call.running.items()))
            if parts is None:
                return
            del call.running[first]
            if first.trace is not None:
                first.trace.sending()
            call.connection.send(call, parts)
            if first.trace is not None:
                first.trace.sent()

    def _marked(self, inference: Inference, response: InferResponse) -> InferResponse:
        if inference.final and inference.call.kind == STREAM:
            response.parameters = {**response.parameters, _FINAL: True}
        return response

    def _stream_error(self, inference: Inference, exc: Exception) -> list[Any]:
        """One element of a stream that says what went wrong with one request; the stream stays open."""
        _, line = status_of(exc)
        reply = message_classes()["ModelStreamInferResponse"](error_message=line)
        reply.infer_response.id = inference.identity
        if inference.final:
            reply.infer_response.parameters[_FINAL].bool_param = True
        return [reply.SerializeToString()]


class _Threaded:
    """An answer that held one of our threads; ``None`` for "decoded". And what it holds of the budget."""

    __slots__ = ("answer", "charge")

    def __init__(self, answer: InferResponse | Exception | None, charge: Charge) -> None:
        self.answer = answer
        self.charge = charge


class _Packed(NamedTuple):
    """An answer that was compressed in one of our threads."""

    message: Sequence[Part]
    parameters: Parameters


def status_of(exc: Exception) -> tuple[str, str]:
    """Name of the status and the line for what went wrong; a bug of ours is logged under an id, and only the id is told."""
    if isinstance(exc, EdgeKitError):
        return exc.grpc_status, str(exc)
    error_id = uuid.uuid4().hex[:12]
    _log.error("unexpected error %s while answering gRPC", error_id, exc_info=exc)
    return "INTERNAL", f"internal error {error_id}; the server's log has the details"


def _decision(parameters: Parameters) -> list[tuple[bytes, bytes]]:
    """The trailer that tells where a request ran."""
    decision = parameters.get(_DECISION) if parameters else None
    if not decision:
        return []
    text = "".join(char if " " <= char <= "~" else " " for char in str(decision)[:_DECISION_CHARACTERS])
    return [(_DECISION_TRAILER, text.strip().encode())]
