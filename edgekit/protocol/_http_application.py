"""What happens to HTTP requests: inference goes to the core, all of a loop turn together; the rest goes to a few threads.

Lives in the event loop's thread; methods named ``_run_*`` run in the pools. With a core that can `submit`, a request needs no thread: it is decoded, submitted, and
`turn` is called once after all that one turn of the loop brought. Large JSON and compressed bodies are decoded and encoded in the pool, so that the loop goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import msgspec

from edgekit.errors import EdgeKitError, OverloadedError
from edgekit.protocol._access import Access
from edgekit.protocol._byte_budget import ByteBudget, Charge
from edgekit.protocol._classification import LabelsOf
from edgekit.protocol._compression import LEAST_BYTES, QUICK_BYTES, WINDOW_BITS, accepted_coding, compress
from edgekit.protocol._deadline import DEADLINE_HEADER, absolute_deadline, timeout_from_header
from edgekit.protocol._events_stream import EventStreams
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._http_body import BufferPool
from edgekit.protocol._http_codec import HEADER_LENGTH, HttpMessage, decode_request, encode_response
from edgekit.protocol._http_connection import Connection
from edgekit.protocol._http_exchange import Body, Call, ConnectionLimits, Exchange
from edgekit.protocol._http_parse import HttpError, RequestHead, parse_head
from edgekit.protocol._http_plans import Plan, SightedCache, fixed_part, plan_of, raw_parts, response_key
from edgekit.protocol._http_reply import Reply, date_line, error_reply, internal_error, render
from edgekit.protocol._http_routes import ControlRequest, Controls, decompress, route_of
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, InferRequest, InferResponse, SteppingCore, SubmittingCore

__all__ = ["Application"]

_log = logging.getLogger(__name__)
_CONTROL_THREADS = 4
_DECODE_THREADS = 2  # for a core that can submit: more would only take turns
_CACHED_HEADS = 512
_CACHED_HEAD_BYTES = 2048
_CACHED_PLANS = 512
_CACHED_ANSWERS = 512
_QUICK_BYTES = 64 << 10  # JSON and compressed bodies up to here are decoded in the loop: about a millisecond
_QUICK_COPY_BYTES = 4 << 20  # raw bytes up to here
_JSON_COST = 16  # bytes of Python objects for a byte of JSON, at most: "1," becomes a number of 32 bytes and its place in a list
_READ_BYTES = 16 << 10  # of one read, but for the rest of a body, which is read where it stays
_DECISION = "edgekit_decision"
_DECISION_HEADER = "x-edgekit-decision"


class Application:
    """A `Handler`: see there and the module.

    Args:
        core: what answers.
        limits: of one message.
        connections: of connections.
        max_in_flight: most requests that wait for the pool's threads or are in them; as many threads for a core that cannot submit.
        access: the token is checked here, TLS is the listener's.
        extensions: of the server.
    """

    def __init__(
        self, core: InferenceCore, limits: Limits, connections: ConnectionLimits, max_in_flight: int, access: Access, extensions: Extensions
    ) -> None:
        self.limits = connections
        self.body_bytes = limits.body_bytes
        self.now_s = time.monotonic()
        self.date = date_line(time.time())
        self.draining = False
        self.thread = 0
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self.pool = BufferPool()
        self.connections: set[Connection] = set()
        self.empty = asyncio.Event()  # no connection is open
        self.empty.set()
        self._core = core
        self._submit = cast("SubmittingCore", core).submit if hasattr(core, "submit") else None
        self._step = cast("SteppingCore", core).step if hasattr(core, "step") else None
        self._message_limits = limits
        self._json_limits = msgspec.structs.replace(
            limits, body_bytes=min(limits.body_bytes, limits.json_bytes)
        )  # of bodies that are JSON alone
        self._access = access
        self._regions = extensions.regions
        self._traces = extensions.traces
        self._labels_of: LabelsOf = lambda name, version: core.class_labels(name, version)  # noqa: PLW0108 - looked up when it is needed
        self._controls = Controls(core, limits, extensions, lambda: self.draining)
        threads = max_in_flight if self._submit is None else _DECODE_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="edgekit-http")
        self._control = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="edgekit-http-control")
        self._max_in_flight = max_in_flight
        self._in_pool = 0
        self.budget = ByteBudget(connections.buffered_bytes)
        self._events = EventStreams(core, limits, self.budget, _JSON_COST, self, self._ask, self._call_in_loop, self._reply_to)
        self._heads: SightedCache[bytes, Call] = SightedCache(_CACHED_HEADS)
        self._plans: SightedCache[bytes, Plan] = SightedCache(_CACHED_PLANS)
        self._answers: SightedCache[tuple[Hashable, ...], bytes] = SightedCache(_CACHED_ANSWERS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turning = False
        self._several = False  # requests were submitted since the last turn
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the loop's thread, before the first connection."""
        self._loop = loop
        self.thread = threading.get_ident()

    def tick(self) -> None:
        """Look at clocks and timeouts; called every second or more often."""
        self.now_s = time.monotonic()
        self.date = date_line(time.time())
        for connection in list(self.connections):
            connection.check_time(self.now_s)

    def shut_down(self) -> None:
        """Hand over what was left for the next step, and end the pools. In another thread than the loop's, after it."""
        if self._step is not None:
            cast("SteppingCore", self._core).turn()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._control.shutdown(wait=True, cancel_futures=True)

    # What connections need: `Handler`.

    def opened(self, connection: Connection) -> bool:
        self.connections.add(connection)
        self.empty.clear()
        return len(self.connections) <= self.limits.connections and not self.draining

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def reserve(self, count: int) -> bool:
        return self.budget.take(count)

    def release(self, count: int) -> None:
        self.budget.give(count)

    def call(self, raw: bytes) -> Call:
        known = self._heads.entries.get(raw)
        if known is not None:
            return known
        call = self._call(parse_head(raw, self.limits.head))
        if len(raw) <= _CACHED_HEAD_BYTES:
            self._heads.offer(raw, call)
        return call

    def begin(self, exchange: Exchange, data: Body, start: int, stop: int) -> None:
        try:
            call = exchange.call
            if call.fatal is not None:
                raise call.fatal
            if call.error is not None:
                raise call.error
            if self._traces.on and call.infers:
                now_s = time.monotonic()
                exchange.trace = self._traces.begin(call.name, "HTTP", (exchange.accepted_s or now_s, now_s))
            if call.streams:
                self._control.submit(self._events.prepare, exchange, memoryview(data)[start:stop])
            elif not call.infers:
                self._begin_control(exchange, bytes(data[start:stop]))
            elif self._submit is None:
                self._begin_blocking(exchange, memoryview(data)[start:stop])
            elif call.json_bytes:
                self._begin_binary(exchange, data, start, stop)
            else:
                self._begin_decoding(exchange, memoryview(data)[start:stop], stop - start)
        except Exception as exc:  # noqa: BLE001 - the request's boundary: `finish` tells errors of ours from bugs
            self.finish(exchange, exc)

    def post(self, exchange: Exchange, answer: Any) -> None:
        self._call_in_loop(self.finish, exchange, answer)

    def finish(self, exchange: Exchange, answer: Any) -> None:
        """Make bytes of a core's answer or an error. In the loop's thread."""
        if exchange.connection is None or exchange.payload is not None:
            exchange.settle([])
            return
        payload: list[bytes | memoryview]
        if exchange.trace is not None:
            exchange.trace.answered(answer)
        try:
            if isinstance(answer, Exception):
                payload = [self._refusal(exchange.call, answer)]
            elif isinstance(answer, Reply):
                payload = [self._render(exchange.call, answer)]
            else:
                quick = self._encode(exchange, answer)
                if quick is None:
                    return  # the pool does it
                payload = quick
        except Exception as exc:  # noqa: BLE001 - the request's boundary
            payload = [self._refusal(exchange.call, exc)]
        exchange.settle(payload)

    # Inference.

    def _begin_binary(self, exchange: Exchange, data: Body, start: int, stop: int) -> None:
        """A request with binary tensors: by a plan, if there is one for its JSON."""
        call = exchange.call
        key = bytes(data[start : start + call.json_bytes])
        plan = self._plans.entries.get(key)
        if plan is not None and plan.total == stop - start:
            request = plan.request(data, start, call.name, call.version)
            if plan.timed or call.timeout_s is not None:
                request.deadline_s = absolute_deadline(request.parameters, exchange.accepted_s or time.monotonic(), call.timeout_s)
            self._submit_now(exchange, request, plan)
            return
        self._begin_decoding(exchange, memoryview(data)[start:stop], len(key))
        found = plan_of(key, stop - start - len(key), self._message_limits)
        if found is not None:
            self._plans.offer(key, found)

    def _begin_decoding(self, exchange: Exchange, body: memoryview, json_bytes: int) -> None:
        """A request on the full path: in the pool when that takes long, as it may for a small body that is compressed."""
        if exchange.call.packed or json_bytes > _QUICK_BYTES or len(body) > _QUICK_COPY_BYTES:
            self._enter_pool()
            self._pool.submit(self._run_decode, exchange, body)
        else:
            self._submit_now(exchange, self._decode(exchange, body), None)

    def _submit_now(self, exchange: Exchange, request: InferRequest, plan: Plan | None) -> None:
        if exchange.connection is None:
            exchange.settle([])
            return
        exchange.extra = (request, plan)
        if exchange.trace is not None:
            exchange.trace.attach(request)
        self._plan_turn()
        assert self._submit is not None
        ticket = self._submit(request, exchange.done)
        if exchange.extra is not None:  # not answered already
            exchange.ticket = ticket

    def _plan_turn(self) -> None:
        if self._turning:
            self._several = True
            return
        self._turning = True
        assert self._loop is not None
        self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """Reading several requests takes a while: what has come in meanwhile runs with them. One alone runs at once."""
        if self._several:
            assert self._loop is not None
            self._loop.call_soon(self._turn)
        else:
            self._turn()

    def _turn(self) -> None:
        self._turning = self._several = False
        try:
            if self._step is None:
                cast("SubmittingCore", self._core).turn()
            elif self._step():
                self._plan_turn()
        except Exception:  # noqa: BLE001 - a bug of the core must not end the loop's turn
            _log.exception("the core failed in turn()")

    def _run_decode(self, exchange: Exchange, body: memoryview) -> None:
        charge = Charge(self.budget)
        try:  # an error is handed on where it is caught: kept in a variable, it and all that it saw would wait for the collector
            if exchange.connection is None:
                raise OverloadedError("request", "the client has left")
            request = self._decode(exchange, body, charge)
        except Exception as exc:  # noqa: BLE001 - `finish` tells errors of ours from bugs
            self._call_in_loop(self._decoded, exchange, exc, charge)
        else:
            self._call_in_loop(self._decoded, exchange, request, charge)

    def _decoded(self, exchange: Exchange, found: InferRequest | Exception, charge: Charge) -> None:
        self._in_pool -= 1
        if isinstance(found, Exception) or exchange.connection is None:
            charge.give_back()
        else:
            exchange.reserved += charge.taken
        if isinstance(found, Exception):
            self.finish(exchange, found)
        else:
            self._submit_now(exchange, found, None)

    def _decode(self, exchange: Exchange, body: memoryview, charge: Charge | None = None) -> InferRequest:
        """The request in a body; ``charge`` holds what it takes beside the body, and may be left out for a small one."""
        call = exchange.call
        limits = self._message_limits if call.json_bytes or call.header_length else self._json_limits
        plain = decompress(body, call.encoding, limits, charge)
        json_bytes = min(len(plain), _number(call.header_length) or len(plain))
        if charge is None or json_bytes > self._message_limits.json_bytes:
            return self._read(exchange, plain)
        with charge.meanwhile(min(json_bytes * _JSON_COST, self.budget.most // 2)):  # on a small machine one at a time
            return self._read(exchange, plain)

    def _read(self, exchange: Exchange, plain: bytes | bytearray | memoryview) -> InferRequest:
        call = exchange.call
        connection = exchange.connection
        regions = self._regions if connection is not None and connection.local else None
        request = decode_request(plain, call.header_length, call.name, call.version, self._message_limits, regions)
        request.deadline_s = absolute_deadline(request.parameters, exchange.accepted_s or time.monotonic(), call.timeout_s)
        return request

    def _encode(self, exchange: Exchange, response: InferResponse) -> list[bytes | memoryview] | None:
        """The answer's bytes; ``None`` when the pool makes them."""
        request, plan = exchange.extra
        call = exchange.call
        packs = bool(call.answer_coding) and _size(response) >= LEAST_BYTES
        key = response_key(plan, response) if plan is not None and call.plain and not self.draining and not packs else None
        if key is not None:
            fixed = self._answers.entries.get(key)
            if fixed is not None:
                return [b"HTTP/1.1 200 OK\r\n", self.date, fixed, *raw_parts(response)]
        if _size(response) > (_QUICK_COPY_BYTES if key is not None else QUICK_BYTES if packs else _QUICK_BYTES):
            self._pool.submit(self._run_encode, exchange, request, response)
            return None
        message = encode_response(response, request, self._regions, self._labels_of)
        if key is not None and (part := fixed_part(message, response)) is not None:
            self._answers.offer(key, part)
        return [self._render(call, _reply(message, response, call.answer_coding))]

    def _run_encode(self, exchange: Exchange, request: InferRequest, response: InferResponse) -> None:
        try:
            answer = self._reply(exchange.call, request, response)
        except Exception as exc:  # noqa: BLE001 - `finish` tells errors of ours from bugs
            self.post(exchange, exc)
        else:
            self.post(exchange, answer)

    def _reply(self, call: Call, request: InferRequest, response: InferResponse) -> Reply:
        """The answer on the full path, any thread."""
        return _reply(encode_response(response, request, self._regions, self._labels_of), response, call.answer_coding)

    def _begin_blocking(self, exchange: Exchange, body: memoryview) -> None:
        self._enter_pool()
        exchange.accepted_s = exchange.accepted_s or time.monotonic()
        self._pool.submit(self._run_blocking, exchange, body)

    def _enter_pool(self) -> None:
        """One more request for the pool; raises `OverloadedError` when it has enough."""
        if self._in_pool >= self._max_in_flight:
            raise OverloadedError("server", f"{self._in_pool} requests are under way", f"at most {self._max_in_flight}", "try again later")
        self._in_pool += 1

    def _run_blocking(self, exchange: Exchange, body: memoryview) -> None:
        charge = Charge(self.budget)
        try:
            request = self._decode(exchange, body, charge)
            trace = exchange.trace
            if trace is not None:
                trace.attach(request)
            response = self._core.infer(request)
            if trace is not None:
                trace.answered(response)
            answer = self._reply(exchange.call, request, response)
        except Exception as exc:  # noqa: BLE001 - `finish` tells errors of ours from bugs
            self._call_in_loop(self._leave_pool, exchange, exc, charge)
        else:
            self._call_in_loop(self._leave_pool, exchange, answer, charge)

    def _leave_pool(self, exchange: Exchange, answer: Reply | Exception, charge: Charge) -> None:
        charge.give_back()
        self._in_pool -= 1
        self.finish(exchange, answer)

    # Events.

    def _ask(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> None:
        """Give a request to the core; the answer may come in any thread."""
        if self._submit is None:
            self._pool.submit(self._run_ask, request, done)
        else:
            self._plan_turn()
            self._submit(request, done)

    def _run_ask(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> None:
        try:
            answer: InferResponse | Exception = self._core.infer(request)
        except Exception as exc:  # noqa: BLE001 - the stream tells errors of ours from bugs
            answer = exc
        done(answer)

    # All the rest.

    def _call(self, head: RequestHead) -> Call:
        call = Call(head.method, head.minor, head.length, keep_alive=head.keep_alive, expects_continue=head.expects_continue)
        call.plain = call.plain and head.method != "HEAD"
        try:
            if (head.length or 0) > self.body_bytes:
                call.fatal = HttpError(413, "request body", f"{head.length} bytes", f"at most {self.body_bytes}")
            call.encoding = head.fields.get("content-encoding")
            call.packed = (call.encoding or "identity").strip().lower() != "identity"
            call.answer_coding = accepted_coding(head.fields.get("accept-encoding"))
            call.header_length = head.fields.get(HEADER_LENGTH.lower())
            call.route = route = route_of(head.path)
            if not route.is_health and not self._access.allows(head.fields.get("authorization")):
                call.fatal = HttpError(
                    401, "field authorization", "no token, or a wrong one", "Authorization: Bearer and the server's token"
                )
            call.timeout_s = timeout_from_header(head.fields.get(DEADLINE_HEADER))
            call.infers, call.streams = route.infers, route.streams
            call.name, call.version = route.model or "", route.version
            call.json_bytes = _json_bytes(head)
            if (route.infers or route.streams) and head.method != "POST":
                raise HttpError(405, route.text(), f"method {head.method[:40]}", "POST")
        except EdgeKitError as exc:
            call.error = exc
        return call

    def _begin_control(self, exchange: Exchange, body: bytes) -> None:
        call, connection = exchange.call, exchange.connection
        assert call.route is not None
        assert connection is not None
        request = ControlRequest(call.method, call.route, body, call.encoding, connection.local)
        self._control.submit(self._run_control, exchange, request)

    def _run_control(self, exchange: Exchange, request: ControlRequest) -> None:
        try:
            answer = self._controls.answer(request)
        except Exception as exc:  # noqa: BLE001 - `finish` tells errors of ours from bugs
            self.post(exchange, exc)
        else:
            self.post(exchange, answer)

    def _refusal(self, call: Call, error: Exception) -> bytes:
        return self._render(call, self._reply_to(call, error))

    def _reply_to(self, call: Call, error: Exception) -> Reply:
        if isinstance(error, EdgeKitError):
            return error_reply(error)
        error_id = uuid.uuid4().hex[:12]
        where = call.route.text() if call.route is not None else "a request"
        _log.error("unexpected error %s while answering %s %s", error_id, call.method, where, exc_info=error)
        return internal_error(error_id)

    def _render(self, call: Call, reply: Reply) -> bytes:
        keep_alive = call.keep_alive and not self.draining
        return render(reply, self.date, keep_alive=keep_alive, minor=call.minor, bodiless=call.method == "HEAD")

    def _call_in_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work`` in the loop's thread; one wake-up for all that was posted before it comes round."""
        self._posted.append((work, arguments))
        if not self._waking:
            self._waking = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:  # the loop has ended: nobody waits for the answer
                self._posted.clear()

    def _run_posted(self) -> None:
        self._waking = False
        while self._posted:
            work, arguments = self._posted.popleft()
            try:
                work(*arguments)
            except Exception:  # noqa: BLE001 - the next ones must be answered
                _log.exception("an answer could not be sent")
        if self._step is not None:
            self._plan_turn()


def _json_bytes(head: RequestHead) -> int:
    """Length of the JSON part where it is sound and the body needs no unpacking, else 0: the full path says what is wrong."""
    return _number(head.fields.get(HEADER_LENGTH.lower())) if "content-encoding" not in head.fields else 0


def _number(text: str | None) -> int:
    """A length as a field has it; 0 for what is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _size(response: InferResponse) -> int:
    """About how many bytes the outputs hold."""
    return sum(tensor.data.nbytes if tensor.data.dtype != object else 64 * tensor.data.size for tensor in response.outputs)


def _reply(message: HttpMessage, response: InferResponse, coding: str = "") -> Reply:
    """The answer, compressed as ``coding`` says where that makes it smaller."""
    headers = message.headers()
    body = message.body
    if coding and len(body) >= LEAST_BYTES:
        packed = compress([body], WINDOW_BITS[coding])
        if len(packed) < len(body):
            body = packed
            headers["Content-Encoding"] = coding
    if decision := response.parameters.get(_DECISION):
        headers[_DECISION_HEADER] = str(decision)
    return Reply(body, headers)
