"""One cloud endpoint as the router's state machine sees it: estimates, breaker, a limit on what is in flight, and when to ask for its health. Pure.

No request ever waits on an endpoint whose breaker is open: a check finds out when it is back. An endpoint without traffic is asked every few seconds, so that
a dead cloud is usually known before a request needs it.
"""

from __future__ import annotations

import math
from typing import Any

from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health, TierEstimate
from edgekit.router._estimators import CloudEstimator
from edgekit.router._events import Ask
from edgekit.router._limit import ConcurrencyLimit

__all__ = ["CHECK_EVERY_S", "Endpoint"]

CHECK_EVERY_S = 5.0
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
        return estimator.estimate(ask.model, ask.payload_bytes, budget_s, now, Health.OK, device_service_s)

    def usable(self, now: float) -> bool:
        """A request may be sent."""
        return self.breaker.closed and self.estimator.may_send(now) and self.limit.allows(self.estimator.in_flight)

    def sent(self) -> None:
        """An attempt left."""
        self.estimator.start()

    def answered(self, ask: Ask, latency_s: float, now: float) -> None:
        """An answer in time."""
        self.limit.answered(latency_s, self.estimator.in_flight, now)
        self.estimator.succeeded(ask.model, ask.payload_bytes, latency_s, now)
        self.breaker.succeeded()
        self._heard_s = now

    def answered_late(self, ask: Ask, latency_s: float, now: float) -> None:
        """An answer to an attempt that was counted as failed at its deadline."""
        self.estimator.late(ask.model, ask.payload_bytes, latency_s, now)

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """An attempt failed, or missed its deadline."""
        self.estimator.failed(now, retry_after_s)
        self.breaker.failed(now)
        self.limit.dropped()

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
