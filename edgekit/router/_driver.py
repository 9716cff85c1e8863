"""Drives a `Pilot` in real time: one lock around it, its actions performed after the lock is released, one thread for its timers.

Attempts end in other threads (a device worker, a client's callback), which tell the pilot and perform what it answers. So an action may be performed a moment
after another thread has performed a later one; the only order that matters, a cancel before its attempt has begun, is kept track of.
"""

from __future__ import annotations

import functools
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from edgekit.errors import DeadlineError, EdgeKitError, NotFoundError, OverloadedError, RequestError, UnavailableError
from edgekit.protocol import InferenceClient, InFlight
from edgekit.router._carrier import Carrier, StateLostError, Took, is_sequence
from edgekit.router._decide import Reason, Tier
from edgekit.router._edge import ClientRunner, SessionRunner, absent, take_state
from edgekit.router._events import Action, Ask, Cancel, Deliver, Explanation, Failure, FailureKind, Refuse, RunEdge, SendCloud
from edgekit.router._opinions import Opinions
from edgekit.router._pilot import Pilot
from edgekit.router._policy import NO_POLICY, Policy
from edgekit.router._twins import Twins
from edgekit.router._work import Answer, Work, answer_of, request_from_work
from edgekit.runtime._sequence_table import SEQUENCE_ID, SEQUENCE_START

__all__ = ["Call", "Driver", "Finish"]

CHECK_TIMEOUT_S = 1.0
PROBE_LIMIT_S = 10.0
CLOSE_WAIT_S = 5.0


class Finish(msgspec.Struct, frozen=True):
    """How a request was answered: by whom, when, why there, and whether two tiers worked on it."""

    answer: Answer
    tier: Tier
    reason: Reason
    at_s: float
    hedged: bool
    late: bool


class Call:
    """One request between its client and the pilot.

    Args:
        work: what the tiers need of it.
        done: hears the end once, in the thread that brings it; must not block or raise.
        policy: that held when it came.

    Attributes:
        digest: of what is in flight only once; empty when its answer must not be shared.
        explanation: of its first decision, once it was begun.
    """

    __slots__ = ("attempts", "digest", "done", "explanation", "policy", "request", "results", "work")

    def __init__(self, work: Work, done: Callable[[Finish | EdgeKitError], None], policy: Policy = NO_POLICY) -> None:
        self.work = work
        self.done = done
        self.policy = policy
        self.digest = b""
        self.request = 0
        self.explanation: Explanation | None = None
        self.attempts: list[int] = []
        self.results: dict[int, Answer | BaseException] = {}

    def finish(self, end: Finish | EdgeKitError) -> None:
        """Tell the end, and forget whom it was told: ``done`` knows the call, and a circle would keep its arrays until the next collection."""
        done, self.done = self.done, _nobody
        done(end)


_T = TypeVar("_T")
_Bound = tuple[Action, Call | None, Work | None, "Answer | BaseException | None"]


class Driver:
    """Runs requests as the pilot says. Safe from several threads.

    Args:
        pilot: decides; nobody else calls it.
        runner: the device; closed with the driver.
        clients: of the cloud endpoints, in the pilot's order.
        on_breaker: told ``(endpoint, open)`` whenever a breaker changes, and at first.
        opinions: told of the answers of both tiers to one request.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pilot: Pilot,
        runner: SessionRunner | ClientRunner,
        clients: Sequence[InferenceClient],
        on_breaker: Callable[[int, bool], None],
        opinions: Opinions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pilot = pilot
        self._opinions = opinions
        self._twins = Twins()
        self._carrier = Carrier(self._take_state)
        self._runner = runner
        self._clients = clients
        self._on_breaker = on_breaker
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # the timer's, and whoever waits for the last call
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._of: dict[int, Call] = {}  # attempt -> whose it is
        self._handles: dict[int, InFlight | None] = {}  # attempts that can be cancelled; None while they begin
        self._dead: set[int] = set()  # cancelled while they began
        self._probe: tuple[int, Work] | None = None
        self._told_open: list[bool | None] = [None] * len(clients)
        self._sleeps_until_s = -math.inf
        self._closed = False
        self._checks: list[queue.SimpleQueue[bool]] = [queue.SimpleQueue() for _ in clients]
        self._threads = [threading.Thread(target=self._timer, name="edgekit-router-timer", daemon=True)]
        for index in range(len(clients)):
            self._threads.append(threading.Thread(target=self._watch, args=(index,), name=f"edgekit-router-watch-{index}", daemon=True))

    def start(self) -> None:
        """Begin to keep time and to ask for the endpoints' health."""
        for thread in self._threads:
            thread.start()

    def begin(self, call: Call, ask_of: Callable[[int, bytes], Ask], *, shares: bool = False) -> None:
        """Take a request.

        Args:
            call: the request.
            ask_of: makes its `Ask` from its number and digest.
            shares: it may have the answer of an identical one in flight.
        """
        call.request = next(self._numbers)
        work = call.work
        with self._lock:
            if not self._closed:
                if shares:
                    call.digest = self._twins.enter(work.model, f"{work.version}\0{work.edge_version}\0{work.cloud_version}", work.inputs)
                self._calls[call.request] = call
                actions = self._pilot.accept(ask_of(call.request, call.digest), self._clock())
                call.explanation = self._pilot.decision(call.request)
                bound = self._bind(actions)
        if call.explanation is None:
            call.finish(_closed_error())
        else:
            self._perform(bound)

    def leave(self, call: Call) -> None:
        """The client waits no more; ``done`` is not called, unless it is being called."""
        call.done = _nobody
        with self._lock:
            bound = self._bind(self._pilot.left(call.request, self._clock())) if call.request in self._calls else []
            if not self._pilot.holds(call.request):  # others may share its answer
                self._forget(call)
        self._perform(bound)

    def read(self, look: Callable[[Pilot, float], _T]) -> _T:
        """Look at the pilot, locked."""
        with self._lock:
            return look(self._pilot, self._clock())

    def close(self) -> None:
        """Refuse what waits, let what runs on the device end (for five seconds at most), stop the threads, close the runner."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting = [call for call in self._calls.values() if not self._pilot.on_device(call.request)]
            bound = self._bind([action for call in waiting for action in self._pilot.left(call.request, self._clock())])
            for call in waiting:
                self._forget(call)
            self._changed.notify_all()
        self._perform(bound)
        for call in waiting:
            call.finish(_closed_error())
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, CLOSE_WAIT_S)
            rest = list(self._calls.values())
            for call in rest:
                self._forget(call)
        for call in rest:
            call.finish(_closed_error())
        for checks in self._checks:
            checks.put(False)
        self._runner.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * CHECK_TIMEOUT_S)

    # Telling the pilot

    def _step(self, tell: Callable[[float], list[Action]]) -> None:
        with self._lock:
            bound = self._bind(tell(self._clock()))
        self._perform(bound)

    def _edge_ended(self, attempt: int, result: Answer | BaseException) -> None:
        """An attempt on the device ended."""
        call = self._of.get(attempt)
        rule = call.policy.confidence_rule(call.work.model) if call is not None else None
        if call is None or rule is None or not isinstance(result, Answer):
            self._ended(attempt, result)
        else:
            self._ended(attempt, result, self._opinions.confidence(call.work.model, result.outputs, rule))

    def _ended(self, attempt: int, result: Answer | BaseException, confidence: float | None = None, *, unsent: bool = False) -> None:
        """An attempt of either tier ended; ``unsent`` when it had not begun."""
        self._opinions.audited(attempt, result.outputs if isinstance(result, Answer) else None)
        self._carrier.ended(attempt, result)  # first: the next request of its sequence may begin by what the pilot says now
        with self._lock:
            self._handles.pop(attempt, None)
            self._dead.discard(attempt)  # it ended before it could be cancelled
            call = self._of.get(attempt)
            if call is not None:
                call.results[attempt] = result
            now = self._clock()
            if isinstance(result, Answer):
                actions = self._pilot.answered(attempt, now, confidence, stopping=result.stopping)
            else:
                actions = self._pilot.failed(attempt, _failure(result, unsent), now)
            bound = self._bind(actions)
        self._perform(bound)

    def _bind(self, actions: list[Action]) -> list[_Bound]:
        """The lock is held: add to each action what it is performed with, and keep what the next ones need."""
        bound: list[_Bound] = []
        over: list[Call] = []
        for action in actions:
            kind = type(action)
            call, work, result = None, None, None
            if kind is RunEdge or kind is SendCloud:
                call, work = self._work_of(action)  # type: ignore[arg-type]
                if call is not None:
                    call.attempts.append(action.attempt)  # type: ignore[union-attr]
                    self._of[action.attempt] = call  # type: ignore[union-attr]
                self._handles[action.attempt] = None  # type: ignore[union-attr]
            elif kind is Deliver or kind is Refuse:
                call = self._calls.get(action.request)  # type: ignore[union-attr]
                owner = self._of.get(action.attempt)  # type: ignore[union-attr]
                result = owner.results.get(action.attempt) if owner is not None else None  # type: ignore[union-attr]
                if call is not None:
                    over.append(call)
                    if isinstance(action, Deliver) and action.reason is Reason.LOCAL_UNSURE:
                        self._escalated(call, action)
            bound.append((action, call, work, result))
        self._keep_probe()
        for call in over:
            self._forget(call)
        if self._pilot.next_at() < self._sleeps_until_s or (over and self._closed):
            self._changed.notify_all()
        return bound

    def _work_of(self, action: RunEdge | SendCloud) -> tuple[Call | None, Work | None]:
        if isinstance(action, RunEdge) and action.shadow:
            if self._probe is None or self._probe[0] != action.request:
                return None, None
            until_s = self._clock() + PROBE_LIMIT_S
            # Its own time, and nothing that would make an edge server take it for the client's request (a sequence, say).
            return None, msgspec.structs.replace(self._probe[1], deadline_s=until_s, limit_s=until_s, id="", parameters={})
        call = self._calls.get(action.request)
        if call is None:
            return None, None
        if isinstance(action, SendCloud) and action.shadow:
            return None, self._audit(action, call)
        return call, call.work.at(Tier.EDGE if isinstance(action, RunEdge) else Tier.CLOUD)

    def _audit(self, action: SendCloud, call: Call) -> Work:
        """What the cloud is sent to compare its answer with the device's, which the client has by now."""
        work, shadow = call.work, call.policy.shadow(call.work.model)
        device = next((result for result in call.results.values() if isinstance(result, Answer)), None)
        if device is not None:
            self._opinions.audit(action.attempt, work.model, "audit" if shadow is None else "shadow", device.outputs)
        version = (shadow.version if shadow is not None else None) or work.cloud_version or work.version
        # Its own time, and nothing that would make a server take it for the client's request.
        return msgspec.structs.replace(work, version=version, deadline_s=action.limit_s, limit_s=action.limit_s, id="", parameters={})

    def _escalated(self, call: Call, action: Deliver) -> None:
        """A second opinion was asked for; both answers are in ``call`` if the cloud's came in time."""
        cloud = call.results.get(action.attempt) if action.tier is Tier.CLOUD else None
        answers = [result for attempt, result in call.results.items() if attempt != action.attempt or cloud is None]
        device = next((result for result in answers if isinstance(result, Answer)), None)
        if device is not None:
            self._opinions.escalated(call.work.model, device.outputs, cloud.outputs if isinstance(cloud, Answer) else None)

    def _keep_probe(self) -> None:
        """Keep the inputs that the pilot's next shadow probe wants, beyond the end of their request."""
        wanted = self._pilot.probe_request
        if not wanted:
            self._probe = None
        elif self._probe is None or self._probe[0] != wanted:
            call = self._calls.get(wanted)
            self._probe = (wanted, call.work) if call is not None else None

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.request, None)
        for attempt in call.attempts:
            self._of.pop(attempt, None)
        if call.digest:
            self._twins.leave(call.digest)
            call.digest = b""

    # Performing

    def _perform(self, bound: list[_Bound]) -> None:
        for action, call, work, result in bound:
            if isinstance(action, RunEdge):
                self._run(action.attempt, work)
            elif isinstance(action, Deliver):
                if call is not None and isinstance(result, Answer):
                    call.finish(Finish(result, action.tier, action.reason, self._clock(), action.hedged, action.late))
            elif isinstance(action, SendCloud):
                self._send(action, work)
            elif isinstance(action, Cancel):
                self._cancel(action.attempt)
            elif isinstance(action, Refuse):
                if call is not None:
                    call.finish(_refusal(action, call.work, result, self._runner.model))
            else:
                self._checks[action.endpoint].put(True)
        for endpoint, told in enumerate(self._told_open):
            is_open = not self._pilot.endpoint_open(endpoint)
            if is_open != told:
                self._told_open[endpoint] = is_open
                self._on_breaker(endpoint, is_open)

    def _run(self, attempt: int, work: Work | None) -> None:
        if work is None:  # a probe whose inputs are gone: the worker is free again
            self._ended(attempt, DeadlineError("edge", "nothing to run"))
            return

        def go(work: Work) -> None:
            self._began(attempt, self._runner.start(work, functools.partial(self._edge_ended, attempt)))

        if is_sequence(work):
            self._carrier.begin(attempt, -1, work, go, functools.partial(self._ended, attempt))
        else:
            go(work)

    def _send(self, action: SendCloud, work: Work | None) -> None:
        attempt = action.attempt
        if work is None:
            self._ended(attempt, DeadlineError("cloud", "nothing to send"), unsent=True)
            return
        try:
            if self._runner.serves(work.model, work.version):
                self._runner.check(work)  # a bad request does not travel
        except EdgeKitError as exc:
            self._ended(attempt, exc, unsent=True)
            return

        def go(work: Work) -> None:
            handle = self._clients[action.endpoint].start(request_from_work(work), max(0.001, action.limit_s - self._clock()))
            self._began(attempt, handle)
            handle.add_done_callback(lambda ended: self._ended(attempt, answer_of(ended)))

        if is_sequence(work):
            self._carrier.begin(attempt, action.endpoint, work, go, functools.partial(self._ended, attempt, unsent=True))
        else:
            go(work)

    def _take_state(self, place: int, work: Work, took: Took) -> None:
        """Ask a tier for the state of a sequence."""
        if place >= 0:
            take_state(self._clients[place], work, took)
        else:
            self._runner.take_state(work, took)

    def _began(self, attempt: int, handle: InFlight | None) -> None:
        """Make an attempt cancellable, or cancel it if that was asked for meanwhile."""
        with self._lock:
            dead = attempt in self._dead
            self._dead.discard(attempt)
            if not dead and attempt in self._handles:
                if handle is None:
                    del self._handles[attempt]
                else:
                    self._handles[attempt] = handle
        if dead and handle is not None:
            handle.cancel()

    def _cancel(self, attempt: int) -> None:
        with self._lock:
            begun = attempt in self._handles
            handle = self._handles.pop(attempt, None)
            if begun and handle is None:
                self._dead.add(attempt)
        if handle is not None:
            handle.cancel()

    # Threads

    def _timer(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now, at = self._clock(), self._pilot.next_at()
                if at > now:
                    self._sleeps_until_s = at
                    self._changed.wait(None if at == math.inf else at - now)
                    self._sleeps_until_s = -math.inf
                    continue
            self._step(self._pilot.tick)

    def _watch(self, endpoint: int) -> None:
        """Asks for one endpoint's health when told to."""
        while self._checks[endpoint].get():
            asked = self._clock()
            try:
                healthy = self._clients[endpoint].ready(CHECK_TIMEOUT_S)
            except EdgeKitError:
                healthy = False
            took_s = self._clock() - asked
            self._step(functools.partial(self._pilot.checked, endpoint, healthy, took_s))


def _nobody(_end: Finish | EdgeKitError) -> None:
    """The client has gone."""


def _failure(error: BaseException, unsent: bool) -> Failure:
    retry_after_s = getattr(error, "retry_after_s", None)
    if isinstance(error, StateLostError):
        return Failure(FailureKind.STATE_LOST, unsent=True)
    if isinstance(error, NotFoundError):
        return Failure(FailureKind.NOT_FOUND)
    if isinstance(error, RequestError):
        return Failure(FailureKind.REQUEST, unsent=unsent)
    if isinstance(error, OverloadedError):
        return Failure(FailureKind.OVERLOADED, retry_after_s)
    kind = FailureKind.DEADLINE if isinstance(error, DeadlineError) else FailureKind.BROKEN
    return Failure(kind, retry_after_s, unsent or getattr(error, "unsent", False))


def _refusal(action: Refuse, work: Work, result: Answer | BaseException | None, has: str) -> EdgeKitError:
    if is_sequence(work) and not work.parameters.get(SEQUENCE_START):
        told = _sequence_refusal(action, work, result)
        if told is not None:
            return told
    if isinstance(result, EdgeKitError):
        return result
    if action.reason is Reason.DEADLINE_PASSED:
        return DeadlineError("request", "its deadline has passed before any work was done", "", "allow more time")
    kind = action.failure.kind
    if kind is FailureKind.OVERLOADED:
        return OverloadedError(
            "edge", "its queue is full, and no cloud endpoint can be asked", "", "send fewer requests, or add a cloud tier"
        )
    if kind is FailureKind.NOT_FOUND:
        return absent(work.model, work.version, has)
    if action.reason is Reason.HOPELESS:
        return DeadlineError("request", "no tier could answer it in time", "", "allow more time, or add capacity")
    return DeadlineError("request", "no answer from any tier in time", "", "allow more time, or add capacity")


def _sequence_refusal(action: Refuse, work: Work, result: Answer | BaseException | None) -> EdgeKitError | None:
    """What a client must know of its sequence, beside why this request was not answered; ``None`` when that says it all."""
    thing, kind = f"sequence {str(work.parameters[SEQUENCE_ID])!r} of model {work.model!r}", action.failure.kind
    if kind is FailureKind.BROKEN and result is None:
        return UnavailableError(thing, "its tier has gone, and no other may be asked", "", "begin it again, with sequence_start")
    if kind is FailureKind.BROKEN:
        again = "send the request again; if the state is gone by then, begin with sequence_start"
        return UnavailableError(thing, f"the tier that has its state failed: {result}", "", again)
    if kind is FailureKind.OVERLOADED and result is None:
        return OverloadedError(
            thing, "its tier takes no more now, or too many of its requests wait", "", "wait for answers, and send it again"
        )
    return None


def _closed_error() -> EdgeKitError:
    return OverloadedError("router", "is closed", "", "make a new one")
