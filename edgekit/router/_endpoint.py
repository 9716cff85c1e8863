"""One cloud endpoint as the router's state machine sees it: estimates, breaker, a limit on what is in flight, and when to ask for its health. Pure.

No request ever waits on an endpoint whose breaker is open: a check finds out when it is back. An endpoint without traffic is asked every few seconds, so that
a dead cloud is usually known before a request needs it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health, TierEstimate
from edgekit.router._estimators import CloudEstimator
from edgekit.router._events import Ask
from edgekit.router._limit import ConcurrencyLimit
from edgekit.router._services import size_class

__all__ = ["CHECK_EVERY_S", "Endpoint"]

CHECK_EVERY_S = 5.0
# What an attempt that is past the 99.9th percentile leaves of the trust in an endpoint: it hangs, or that was one in a thousand.
DOUBT = 0.3
KEEP_OVERLOADED, KEEP_MISSED = 0.9, 0.97  # of the limit on what is in flight
TRY_EVERY_S = 0.15  # how often a request that the device would most likely miss tries an endpoint that is not expected to make it either
TRY_CHAIN = 6  # tries in quick succession once one was in time; enough to restart the window
_FAILING = TierEstimate(0.0, 0.0, 0.0, False, Health.FAILING)
_FULL = TierEstimate(0.0, 0.0, 0.0, False, Health.FULL)


class Endpoint:
    """State of one endpoint.

    Args:
        breaker: of this endpoint.
    """

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.estimator = CloudEstimator()
        self.limit = ConcurrencyLimit()
        self._round_trip_s: float | None = None
        self._heard_s = -math.inf
        self._asked = False  # a check is under way
        # Attempts in flight, in the order in which they left: when that was, and when they should have been answered.
        self._due: dict[int, tuple[float, float]] = {}
        self._alive_s = -math.inf  # when the newest attempt that was answered had left
        self._sent_s = -math.inf
        self._in_time = 0  # answers in time in a row

    @property
    def check_at_s(self) -> float:
        """Absolute time of the next health check; infinite while one is under way."""
        if self._asked:
            return math.inf
        return self._heard_s + CHECK_EVERY_S if self.breaker.closed else self.breaker.probe_at_s

    def start_check(self, now: float) -> bool:
        """Begin a check if one is due."""
        if now < self.check_at_s:
            return False
        if not self.breaker.closed:
            self.breaker.start_probe()
        self._asked = True
        return True

    def checked(self, healthy: bool, round_trip_s: float, now: float) -> None:
        """A check ended."""
        self._asked = False
        self._heard_s = now
        if not self.breaker.closed:
            self.breaker.start_probe()  # it may have opened while the check was under way
            self.breaker.probe_ended(healthy, now)
        elif healthy:
            self.breaker.healthy(now)
        else:
            self.breaker.trip(now)
        if healthy:
            # The first check also pays for connecting, so the least one seen is the round trip.
            self._round_trip_s = min(round_trip_s, self._round_trip_s or round_trip_s)
            self.estimator.seed(self._round_trip_s)

    def estimate(self, ask: Ask, budget_s: float, now: float, device_service_s: float) -> TierEstimate:
        """What it can promise within ``budget_s`` from now; the device's service time is the first guess of the cloud's."""
        estimator = self.estimator
        if not self.breaker.closed or not estimator.may_send(now):
            return _FAILING
        if not self.limit.allows(estimator.in_flight):
            return _FULL
        return self.promise(ask, budget_s, now, device_service_s)

    def promise(self, ask: Ask, budget_s: float, now: float, device_service_s: float) -> TierEstimate:
        """As `estimate`, of an endpoint that is `usable`."""
        estimate = self.estimator.estimate(ask.model, ask.payload_bytes, budget_s, now, device_service_s)
        overdue = self._overdue(now)
        return msgspec.structs.replace(estimate, p_meet=estimate.p_meet * DOUBT**overdue) if overdue else estimate

    def _overdue(self, now: float) -> int:
        """Attempts in flight that should have been answered, while none that left after them was; three are as good as all."""
        count = 0
        for sent_s, due_s in self._due.values():
            if due_s > now or count == 3:
                break
            count += sent_s > self._alive_s
        return count

    def try_due(self, now: float) -> bool:
        """Nothing recent is known of how fast it is: a request that has nothing to lose may find out."""
        if self.estimator.in_flight or not self.usable(now):
            return False
        return 0 < self._in_time < TRY_CHAIN or now - self._sent_s >= TRY_EVERY_S

    def usable(self, now: float) -> bool:
        """A request may be sent."""
        return self.breaker.closed and self.estimator.may_send(now) and self.limit.allows(self.estimator.in_flight)

    def sent(self, attempt: int, now: float, due_s: float) -> None:
        """An attempt left that should be answered by ``due_s``."""
        self.estimator.start()
        self._due[attempt] = (now, due_s)
        self._sent_s = now

    def ended(self, attempt: int) -> None:
        """An attempt ended, however it did."""
        self._due.pop(attempt, None)

    def answered(self, ask: Ask, latency_s: float, now: float) -> None:
        """An answer in time."""
        self._in_time += 1
        self._alive_s = max(self._alive_s, now - latency_s)
        self._count(ask, latency_s, now)
        self.estimator.succeeded(ask.model, ask.payload_bytes, latency_s, now)
        self.breaker.succeeded()
        self._heard_s = now

    def answered_late(self, ask: Ask, latency_s: float, now: float) -> None:
        """An answer to an attempt that was counted as failed at its deadline."""
        self._alive_s = max(self._alive_s, now - latency_s)
        self._count(ask, latency_s, now)
        self.estimator.late(ask.model, ask.payload_bytes, latency_s, now)

    def _count(self, ask: Ask, latency_s: float, now: float) -> None:
        self.limit.answered((ask.model, size_class(ask.payload_bytes)), latency_s, self.estimator.in_flight, now)

    def failed(self, now: float, retry_after_s: float | None = None, overloaded: bool = False) -> None:
        """An attempt failed, or missed its deadline; ``overloaded``: it was refused for that (a packet that is lost and sent again is no queue)."""
        self._in_time = 0
        self.estimator.failed(now, retry_after_s)
        self.breaker.failed(now)
        self.limit.dropped(KEEP_OVERLOADED if overloaded else KEEP_MISSED)

    def refused(self, now: float) -> None:
        """It answered that the request itself is wrong: it works."""
        self.estimator.refused()
        self.breaker.succeeded()
        self._heard_s = now

    def cancelled(self, elapsed_s: float, slow_s: float, now: float) -> None:
        """The other tier answered first."""
        if self.estimator.cancelled(elapsed_s, slow_s, now):
            self.breaker.failed(now)

    def snapshot(self, now: float) -> dict[str, Any]:
        """The present state, JSON-able."""
        return {
            "breaker": self.breaker.state.value,
            "in_flight": self.estimator.in_flight,
            "limit": round(self.limit.value, 1),
            "failure_share": round(self.estimator.failure_share(now), 4),
            "p95_factor": round(self.estimator.calibration.factor, 3),
        }
