"""A device, its uplink and a cloud tier in virtual time, which do what a `Steering` asks for.

A heap of events is the clock; nothing waits. The same trace gives every policy the same requests, service times and network states: only the queues differ.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence

from edgekit.router._decide import Tier
from edgekit.router._events import Action, Ask, Cancel, Deliver, Failure, FailureKind, Refuse, RunEdge, SendCloud, Steering
from edgekit.router.simulation._outcome import Outcome
from edgekit.router.simulation._trace import State, Trace

__all__ = ["MODEL", "World"]

MODEL = "model"
# Requests are numbered from 1 for who steers (0 is "none" there), and from 0 in the trace.
# A health check is answered after a round trip, or given up (`edgekit.router._cloud`).
CHECK_LIMIT_S = 1.0
CHECK_BYTES = 500

_EDGE_ENDS, _REACHES_SERVER, _SERVER_ENDS, _GIVEN_UP, _BREAKS, _CHECKED = range(6)
_Event = tuple[float, int, int, int, int, int]  # when, order, kind, attempt, request, endpoint (or what a health check said)
_GIVEN_UP_FAILURE, _BROKEN_FAILURE = Failure(FailureKind.DEADLINE), Failure(FailureKind.BROKEN)
_NOBODY = -1  # a run that measures the device, for no request


class World:
    """One run of one policy over one trace.

    Args:
        trace: what happens.
        steering: who decides; new, since it learns.
        timed: measure the processor time that each decision takes.
    """

    def __init__(self, trace: Trace, steering: Steering, *, timed: bool = True) -> None:
        self._trace = trace
        self._steering = steering
        self._timed = timed
        self._events: list[_Event] = []
        self._order = 0
        self._busy = 0  # workers of the device
        self._uplink_free_s = 0.0
        self._servers = [[0.0] * endpoint.servers for endpoint in trace.endpoints]
        self._sent: dict[int, tuple[int, float]] = {}  # cloud attempts that were not reported yet: endpoint, limit
        self._just_answered = (_NOBODY, _NOBODY)  # attempt and request
        self._asked_s: dict[int, float] = {}  # endpoints whose health was asked for
        self._open = 0
        self.outcome = Outcome(len(trace))

    def run(self) -> Outcome:
        """Until every request is over."""
        trace, steering, events = self._trace, self._steering, self._events
        arrive, count, next_request = trace.arrive_s, len(trace), 0
        while next_request < count or self._open:
            arrival = arrive[next_request] if next_request < count else math.inf
            event = events[0][0] if events else math.inf
            tick = steering.next_at()
            if tick <= arrival and tick <= event:
                if tick == math.inf:
                    raise RuntimeError(f"{self._open} requests are open and nothing is left that could end them")
                now = max(tick, self.outcome.end_s)
                self._perform(steering.tick(now), now)
            elif arrival <= event:
                now = arrival
                self._accept(next_request, now)
                next_request += 1
            else:
                happening = heapq.heappop(events)
                now = happening[0]
                self._happen(happening)
            self.outcome.end_s = now
        return self.outcome

    def _accept(self, request: int, now: float) -> None:
        trace, outcome = self._trace, self.outcome
        deadline = now + trace.sla_s[request]
        ask = Ask(request + 1, MODEL, trace.payload_bytes[request], now, deadline, deadline + trace.grace_s, trace.sla_s[request])
        self._open += 1
        if self._timed:
            started = time.thread_time_ns()  # what others do on the machine meanwhile is not the decision's price
            actions = self._steering.accept(ask, now)
            outcome.decision_ns.append(time.thread_time_ns() - started)
        else:
            actions = self._steering.accept(ask, now)
        explanation = self._steering.decision(request + 1)
        if explanation is not None and explanation.tiers:
            first = explanation.tiers[0]
            estimate = explanation.edge if first is Tier.EDGE else explanation.cloud
            if estimate is not None and estimate.known:
                outcome.predict(request, first, now + estimate.slow_s)
        self._perform(actions, now)

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Deliver):
                self._deliver(action, now)
            elif isinstance(action, RunEdge):
                self._run_edge(action, now)
            elif isinstance(action, SendCloud):
                self._send(action, now)
            elif isinstance(action, Cancel):
                self._sent.pop(action.attempt, None)
            elif isinstance(action, Refuse):
                self._close(action.request - 1, now)
                self.outcome.refused[action.request - 1] = True
            else:
                self._check(action.endpoint, now)

    def _happen(self, event: _Event) -> None:
        now, _, kind, attempt, request, endpoint = event
        steering = self._steering
        if kind == _EDGE_ENDS:
            self._busy -= 1
            self._answered(attempt, request, Tier.EDGE, now)
        elif kind == _REACHES_SERVER:
            self._reach(attempt, request, endpoint, now)
        elif kind == _SERVER_ENDS:
            if self._sent.pop(attempt, None) is not None:
                self._answered(attempt, request, Tier.CLOUD, now)
            else:
                self.outcome.ended(request, Tier.CLOUD, now)
        elif kind == _CHECKED:
            self._perform(steering.checked(attempt, bool(endpoint), now - self._asked_s.pop(attempt), now), now)
        elif self._sent.pop(attempt, None) is not None:
            self.outcome.failed_attempts[request] += 1
            self._perform(steering.failed(attempt, _GIVEN_UP_FAILURE if kind == _GIVEN_UP else _BROKEN_FAILURE, now), now)

    def _answered(self, attempt: int, request: int, tier: Tier, now: float) -> None:
        self._just_answered = (attempt, request)
        if request != _NOBODY:
            self.outcome.ended(request, tier, now)
        self._perform(self._steering.answered(attempt, now), now)

    def _push(self, when: float, kind: int, attempt: int, request: int, endpoint: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, kind, attempt, request, endpoint))

    def _run_edge(self, action: RunEdge, now: float) -> None:
        trace, request = self._trace, action.request - 1
        if self._busy >= trace.workers:
            raise RuntimeError(f"attempt {action.attempt}: all {trace.workers} workers of the device are busy")
        self._busy += 1
        self._push(
            trace.device.when(now, trace.work_s[request]),
            _EDGE_ENDS,
            action.attempt,
            _NOBODY if action.shadow else request,
            0,
        )
        if action.shadow:
            self.outcome.probes += 1
        else:
            self.outcome.edge_runs[request] += 1

    def _send(self, action: SendCloud, now: float) -> None:
        """Over the uplink, which sends one request after the other, and the network, whose round trip is charged on the way there."""
        trace, request, endpoint = self._trace, action.request - 1, action.endpoint
        self.outcome.cloud_sends[request] += 1
        self._sent[action.attempt] = (endpoint, action.limit_s)
        if trace.cloud_an_hour is not None:
            self.outcome.sent_s.append(now)
        sent = self._uplink_free_s = trace.uplink.when(max(now, self._uplink_free_s), trace.payload_bytes[request])
        there = sent + trace.stall_s(request, sent) + trace.endpoints[endpoint].round_trip_s.at(sent) * trace.jitter[request]
        if there > action.limit_s:
            self._push(max(now, action.limit_s), _GIVEN_UP, action.attempt, request, endpoint)
        if there < math.inf:
            self._push(there, _REACHES_SERVER, action.attempt, request, endpoint)

    def _reach(self, attempt: int, request: int, endpoint: int, now: float) -> None:
        """The endpoint does with it what its state says; a request that was given up meanwhile is work all the same."""
        server = self._trace.endpoints[endpoint]
        limit = self._sent[attempt][1] if attempt in self._sent else math.inf
        if server.state.at(now) != State.WELL:
            self._lose(attempt, request, endpoint, now, limit)
            return
        free = self._servers[endpoint]
        end = server.speed.when(max(now, free[0]), server.work_s[request])
        heapq.heapreplace(free, end)
        changes = server.state.changes(now, end)
        if changes:  # from well to not well: what runs on it is lost
            self._lose(attempt, request, endpoint, changes[0], limit)
            return
        if end > limit:
            self._push(limit, _GIVEN_UP, attempt, request, endpoint)
        if end < math.inf:
            self._push(end, _SERVER_ENDS, attempt, request, endpoint)

    def _lose(self, attempt: int, request: int, endpoint: int, when: float, limit: float) -> None:
        """At ``when`` the endpoint refuses the request, or falls silent on it."""
        if self._trace.endpoints[endpoint].state.at(when) == State.REFUSES and when <= limit:
            self._push(when, _BREAKS, attempt, request, endpoint)
        elif limit < math.inf:
            self._push(limit, _GIVEN_UP, attempt, request, endpoint)

    def _check(self, endpoint: int, now: float) -> None:
        server = self._trace.endpoints[endpoint]
        state = server.state.at(now)
        back = self._trace.uplink.when(now, CHECK_BYTES) + server.round_trip_s.at(now)
        answered = state != State.HANGS and back - now <= CHECK_LIMIT_S
        self._asked_s[endpoint] = now
        self._push(back if answered else now + CHECK_LIMIT_S, _CHECKED, endpoint, _NOBODY, int(answered and state == State.WELL))

    def _deliver(self, action: Deliver, now: float) -> None:
        request = action.request - 1
        if self._just_answered != (action.attempt, request):
            raise RuntimeError(f"request {request}: delivered the answer of attempt {action.attempt}, which was not there")
        self._close(request, now)
        self.outcome.answered_s[request] = now
        self.outcome.by_cloud[request] = action.tier is Tier.CLOUD

    def _close(self, request: int, now: float) -> None:
        if self.outcome.over_s[request] < math.inf:
            raise RuntimeError(f"request {request} was ended twice")
        self.outcome.over_s[request] = now
        self._open -= 1
