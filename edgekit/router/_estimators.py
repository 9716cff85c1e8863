"""What is known about a cloud endpoint, as the probability of meeting a deadline.

Pure bookkeeping: time is an argument, nothing waits, nothing is sent. Not safe from several threads; the owner of an estimator locks.
"""

from __future__ import annotations

import math

from edgekit.router._decide import Health, TierEstimate
from edgekit.router._services import Calibration
from edgekit.router._window import ServiceWindow

__all__ = ["CloudEstimator"]

# Finagle's and Linkerd's Peak-EWMA: decay, first guess, and what a failure is worth.
EWMA_DECAY_S = 10.0
FIRST_RTT_S = 0.030
FAILURE_S = 5.0
FAILURE_GAIN = 0.2
OVERDUE = 2.0
# Before a cloud endpoint was measured: log-normal around the first guess, p95 at five times the median; worth two samples.
PRIOR_SIGMA = 1.0
PRIOR_WEIGHT = 2.0
Z95 = 1.645
SHORT = 9  # samples of a network that tell a drift: on a lossy link two of three answers may come late by chance
# How much farther than to the 99th percentile it is from the median to what is counted on at the last moment. 1.33 is the 99.9th percentile of a normal
# distribution; networks have longer tails. 1.8 lost the fewest requests of 1.33, 1.6 and 1.8 in the simulator's scenarios, at the same cloud share.
BEYOND_P99 = 1.8
# Forgetting of the payload regression (about the last fifty requests), and what it takes to trust its slope.
REGRESSION_DECAY = 0.98
REGRESSION_SAMPLES = 8.0
REGRESSION_SPREAD = 0.2


class _Payload:
    """Seconds a byte takes, by regression of latency on payload with forgetting. Zero until sizes differ enough to tell."""

    __slots__ = ("_n", "_x", "_xx", "_xy", "_y", "s_per_byte")

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.s_per_byte = 0.0

    def add(self, payload_bytes: int, latency_s: float) -> None:
        keep = REGRESSION_DECAY
        self._n = self._n * keep + 1.0
        self._x = self._x * keep + payload_bytes
        self._y = self._y * keep + latency_s
        self._xx = self._xx * keep + payload_bytes * payload_bytes
        self._xy = self._xy * keep + payload_bytes * latency_s
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        if self._n < REGRESSION_SAMPLES or variance <= (REGRESSION_SPREAD * mean_x) ** 2:
            return
        self.s_per_byte = max(0.0, (self._xy / self._n - mean_x * mean_y) / variance)


class CloudEstimator:
    """One cloud endpoint: latency window per model less the payload's transfer, goodput, Peak-EWMA, failures, Retry-After."""

    def __init__(self) -> None:
        self._windows: dict[str, ServiceWindow] = {}
        self._payloads: dict[str, _Payload] = {}
        self._peak_s = FIRST_RTT_S
        self._peak_at_s = -math.inf
        self._prior_s = FIRST_RTT_S
        self._failure = 0.0
        self._failure_at_s = 0.0
        self._retry_at_s = -math.inf
        self.calibration = Calibration()
        self.in_flight = 0

    def seed(self, round_trip_s: float) -> None:
        """First guess: a measured round trip without work; `estimate` adds the device's own service time (a cloud tier is not expected to be slower)."""
        self._prior_s = max(1e-4, round_trip_s)

    def start(self) -> None:
        """An attempt was sent."""
        self.in_flight += 1

    def succeeded(self, model: str, payload_bytes: int, latency_s: float, now: float) -> None:
        """An attempt was answered after ``latency_s``."""
        self.in_flight -= 1
        payload = self._payloads.get(model)
        if payload is None:
            payload = self._payloads[model] = _Payload()
        payload.add(payload_bytes, latency_s)
        self._sample(model, latency_s - payload_bytes * payload.s_per_byte, now)
        self._observe(latency_s, now)
        self._failure = self.failure_share(now) * (1.0 - FAILURE_GAIN)
        self._failure_at_s = now

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """An attempt failed or missed its deadline. It counts as 5 s, so a server that refuses fast does not look fast."""
        self.in_flight -= 1
        self._observe(FAILURE_S, now)
        self._failure = self.failure_share(now) * (1.0 - FAILURE_GAIN) + FAILURE_GAIN
        self._failure_at_s = now
        if retry_after_s is not None:
            self._retry_at_s = max(self._retry_at_s, now + retry_after_s)

    def late(self, model: str, payload_bytes: int, latency_s: float, now: float) -> None:
        """An answer came after its deadline, at which it was counted as failed; how long it took is known all the same."""
        payload = self._payloads.get(model)
        transfer_s = payload_bytes * payload.s_per_byte if payload is not None else 0.0
        self._sample(model, latency_s - transfer_s, now)

    def cancelled(self, elapsed_s: float, slow_s: float, now: float) -> bool:
        """An attempt was given up because the other tier answered first.

        It says nothing about this one, unless it had more than twice its 95th percentile: that is not bad luck but a server that hangs, and it
        counts as failed. Returns whether it does.
        """
        if elapsed_s > OVERDUE * slow_s:
            self.failed(now)
            return True
        self.in_flight -= 1
        return False

    def refused(self) -> None:
        """The endpoint answered that the request itself is wrong."""
        self.in_flight -= 1

    def may_send(self, now: float) -> bool:
        """False while the endpoint asked to be left alone (Retry-After)."""
        return now >= self._retry_at_s

    def failure_share(self, now: float) -> float:
        """Share of attempts that fail lately; forgotten within seconds, or an endpoint that is never asked would never be asked again."""
        return self._failure and self._failure * math.exp(-max(0.0, now - self._failure_at_s) / EWMA_DECAY_S)

    def estimate(self, model: str, payload_bytes: int, budget_s: float, now: float, device_service_s: float = 0.0) -> TierEstimate:
        """Probability of an answer within ``budget_s`` from now; ``device_service_s`` is the first guess of the time that the model itself takes."""
        payload = self._payloads.get(model)
        transfer = payload_bytes * payload.s_per_byte if payload is not None else 0.0
        budget_s -= transfer
        window = self._windows.get(model)
        if window is None:
            p50 = self._prior_s + device_service_s
            p_meet, p95, known = _prior(budget_s, p50), p50 * math.exp(Z95 * PRIOR_SIGMA), False
            p99 = p95
        else:
            p_meet, p50, p95, p99 = window.promise(budget_s, now)
            known = True
            if window.samples < 100:
                share = PRIOR_WEIGHT / (window.samples + PRIOR_WEIGHT)
                p_meet += share * (_prior(budget_s, self._prior_s + device_service_s) - p_meet)
        p_meet *= 1.0 - self.failure_share(now)
        slow_s = (transfer + p95) * self.calibration.factor
        return TierEstimate(
            p_meet,
            transfer + p50,
            slow_s,
            known,
            Health.OK,
            self.cost_s(now),
            sure_s=max(slow_s, transfer + p50 + (p99 - p50) * BEYOND_P99),
        )

    def still(self, model: str, payload_bytes: int, elapsed_s: float, until_s: float, now: float) -> float:
        """Probability that an attempt that has taken ``elapsed_s`` without an answer takes no more than ``until_s`` in all."""
        payload = self._payloads.get(model)
        transfer_s = payload_bytes * payload.s_per_byte if payload is not None else 0.0
        window = self._windows.get(model)
        if window is None:
            ended = _prior(elapsed_s, self._prior_s)
            p_meet = (_prior(until_s, self._prior_s) - ended) / (1.0 - ended) if ended < 1.0 else 0.0
        else:
            p_meet = window.still(until_s - transfer_s, elapsed_s - transfer_s, now)
        return p_meet * (1.0 - self.failure_share(now))

    def cost_s(self, now: float) -> float:
        """Peak-EWMA latency times load: compares endpoints of equal probability."""
        return self._peak_s * math.exp(-max(0.0, now - self._peak_at_s) / EWMA_DECAY_S) * (self.in_flight + 1)

    def _sample(self, model: str, base_s: float, now: float) -> None:
        window = self._windows.get(model)
        if window is None:
            window = self._windows[model] = ServiceWindow(SHORT)
        window.add(max(base_s, 1e-6), now)

    def _observe(self, latency_s: float, now: float) -> None:
        """Up at once, down slowly."""
        if latency_s >= self._peak_s:
            self._peak_s = latency_s
        else:
            old = math.exp(-max(0.0, now - self._peak_at_s) / EWMA_DECAY_S)
            self._peak_s = self._peak_s * old + latency_s * (1.0 - old)
        self._peak_at_s = now


def _prior(budget_s: float, median_s: float) -> float:
    """Log-normal probability of ``budget_s`` around a first guess."""
    if budget_s <= 0.0:
        return 0.0
    return 0.5 * math.erfc(-math.log(budget_s / median_s) / (PRIOR_SIGMA * math.sqrt(2.0)))
