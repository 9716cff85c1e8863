"""The whole router as one state machine: its inputs, and what it tells. Pure: time and chance are arguments, actions are what it returns.

The router drives it with threads, the simulator in virtual time; there is no other copy of its rules. What a request goes through is in `Course`, and what it is looked at for again in `SecondLooks`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Any

from edgekit.router._bearings import PilotOptions
from edgekit.router._decide import Tier
from edgekit.router._events import Action, Ask, Check, Explanation, Failure
from edgekit.router._retry import RetryLimits
from edgekit.router._second_opinion import SecondOpinions

__all__ = ["Pilot", "PilotOptions"]


class Pilot(SecondOpinions):
    """See the module. Not safe from several threads; its owner locks.

    Args:
        options: settings.
        endpoints: how many cloud endpoints there are.
        random_source: seeded by who wants the same actions again.
        budgets: the operator's cloud budgets; ``None`` for no bounds.
    """

    # Inputs

    def accept(self, ask: Ask, now: float) -> list[Action]:
        """A request came."""
        out: list[Action] = []
        self._hedges.requested()
        self._rescues.requested()
        self._retries.requested(now)
        if ask.digest and self._share(ask):
            return out
        self._begin(ask, now, out)
        return out

    def answered(self, attempt: int, now: float, confidence: float | None = None, *, stopping: bool = False) -> list[Action]:
        """An attempt was answered; ``stopping``: by a server that is about to stop, so its breaker opens before anything fails."""
        out: list[Action] = []
        open_ = self._attempts.pop(attempt, None)
        if self._device.runs(attempt):
            ask = self._device.ask_of(attempt)
            self._device.finish(attempt, now)
            self._given_up.discard(attempt)
            self._device_recovered(now)
            if stopping:
                self._device.breaker.trip(now)
                self._probe_ask = ask
            if open_ is not None:
                open_.run = 0
                self._edge_answered(open_, attempt, confidence, now, out)
            self._feed(now, out)
        elif open_ is not None and open_.sent is not None:
            self._cloud_answered(open_.ask, open_.sent, now)
            if stopping:
                self._cloud.endpoints[open_.sent.endpoint].breaker.trip(now)
                self._plan_check(open_.sent.endpoint)
            open_.sent = None
            self._deliver(open_, attempt, Tier.CLOUD, now, out)
        else:
            self._audit_ended(attempt, None, now)
        return out

    def failed(self, attempt: int, failure: Failure, now: float) -> list[Action]:
        """An attempt ended without an answer."""
        out: list[Action] = []
        open_ = self._attempts.pop(attempt, None)
        if self._device.runs(attempt):
            self._device_failed(attempt, failure, open_, now)
            if open_ is not None:
                open_.run = 0
                open_.edge_failure = (attempt, failure)
                self._after_failure(open_, attempt, failure, now, out)
            self._feed(now, out)
        elif open_ is not None and open_.sent is not None:
            self._cloud_failed(open_.ask, open_.sent, failure, now)
            open_.sent = None
            open_.cloud_failure = (attempt, failure)
            self._after_failure(open_, attempt, failure, now, out)
        else:
            self._audit_ended(attempt, failure, now)
        return out

    def left(self, request: int, now: float) -> list[Action]:
        """The client has gone. Of a request whose answer others share, the end is told all the same."""
        out: list[Action] = []
        leader = self._follows.pop(request, None)
        if leader is not None:
            leader.followers = [ask for ask in leader.followers if ask.request != request]
        open_ = leader if leader is not None else self._open.get(request)
        if open_ is None:
            return out
        open_.gone = open_.gone or leader is None
        if open_.gone and not open_.followers:
            self._close(open_, None, now, out)
            self._turn_of_next(open_.ask, now, out)
            self._feed(now, out)
        return out

    def checked(self, endpoint: int, healthy: bool, round_trip_s: float, now: float) -> list[Action]:
        """A health check ended."""
        self._cloud.endpoints[endpoint].checked(healthy, round_trip_s, now)
        self._plan_check(endpoint)
        return []

    def tick(self, now: float) -> list[Action]:
        """It is `next_at`, or later."""
        out: list[Action] = []
        timers = self._timers
        while timers and timers[0][0] <= now:
            when, what = heapq.heappop(timers)
            if what > 0:
                open_ = self._open.get(what)
                if open_ is not None and open_.due_s == when:
                    open_.due_s = math.inf
                    self._wake(open_, now, out)
            elif what == 0:
                if when == self._probe_at:
                    self._probe(now, out)
            elif when == self._check_at[-1 - what]:
                if self._cloud.endpoints[-1 - what].start_check(now):
                    out.append(Check(-1 - what))
                self._plan_check(-1 - what)
        return out

    def next_at(self) -> float:
        """Absolute time at which `tick` is wanted; infinite for never."""
        timers = self._timers
        while timers:
            when, what = timers[0]
            if what > 0:
                open_ = self._open.get(what)
                if open_ is not None and open_.due_s == when:
                    return when
            elif when == (self._probe_at if what == 0 else self._check_at[-1 - what]):
                return when
            heapq.heappop(timers)
        return math.inf

    def seed_edge(self, model: str, payload_bytes: int, service_s: Iterable[float], now: float) -> None:
        """Start from measured runs of the bundle's own sample, so that the first request meets an estimate."""
        for value in service_s:
            self._device.seed(model, payload_bytes, value, now)

    def set_retries(self, limits: RetryLimits) -> None:
        """Other limits from now on."""
        self._retries.set_limits(limits)

    def set_hedge_share(self, share: float) -> None:
        """Another share of the requests that may be hedged from now on."""
        self._hedges.share = share

    # What it tells

    def decision(self, request: int) -> Explanation | None:
        """The first decision of a request that is not over, or that was the last to be accepted."""
        open_ = self._open.get(request) or self._follows.get(request)
        if open_ is None and self._last is not None and self._last.ask.request == request:
            open_ = self._last
        if open_ is None:
            return None
        decision = open_.decision
        endpoint = open_.endpoints[decision.endpoint] if decision.endpoint >= 0 else -1
        return Explanation(decision.tiers, decision.reason, endpoint, decision.late, open_.edge, open_.cloud)

    @property
    def probe_request(self) -> int:
        """The request whose inputs the next shadow probe runs with, which the driver keeps; 0 for none."""
        return self._probe_ask.request if self._probe_ask is not None else 0

    @property
    def cloud_open(self) -> bool:
        """At least one endpoint may be asked, as far as its breaker goes."""
        return self._cloud.open

    def holds(self, request: int) -> bool:
        """The request is not over, or others still share its answer."""
        return request in self._open or request in self._follows

    def on_device(self, request: int) -> bool:
        """The request runs on the device."""
        open_ = self._open.get(request) or self._follows.get(request)
        return open_ is not None and open_.run != 0

    def endpoint_open(self, endpoint: int) -> bool:
        """The endpoint's breaker lets requests through."""
        return self._cloud.endpoints[endpoint].breaker.closed

    def snapshot(self, now: float) -> dict[str, Any]:
        """The present state, JSON-able: device, endpoints, hedging and retries."""
        device = self._device
        return {
            "open": len(self._open) + len(self._follows),
            "edge": {
                "waiting": device.waiting,
                "running": device.running,
                "workers": device.workers,
                "breaker": device.breaker.state.value,
                "drift": device.book.drifts(),
                "p95_factor": round(device.calibration.factor, 3),
            },
            "cloud": [endpoint.snapshot(now) for endpoint in self._cloud.endpoints],
            "hedges_left": round(self._hedges.left, 2),
            "hedge_tokens": round(self._throttle.tokens, 1),
            "retries_left": round(self._retries.left, 1),
        }
