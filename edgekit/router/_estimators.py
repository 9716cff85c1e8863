"""What is known about the device and about each cloud endpoint, as the probability of meeting a deadline.

Pure bookkeeping: time is an argument, nothing waits, nothing is sent. Not safe from several threads; the owner of an estimator locks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgekit.router._decide import Health, TierEstimate
from edgekit.router._services import Calibration
from edgekit.router._window import ServiceWindow

__all__ = ["CloudEstimator", "LocalEstimator", "size_class"]

PROBE_EVERY_S = 1.0
PROBE_DUTY = 0.1  # largest share of the device's time that probes may take
PROBE_AT_LEAST_EVERY_S = 30.0  # all the same: a device that hung must be found again
PROBE_CHAIN = 6  # probes back to back once one was fast enough after one that was not; enough to restart the window

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
# Forgetting of the payload regression (about the last fifty requests), and what it takes to trust its slope.
REGRESSION_DECAY = 0.98
REGRESSION_SAMPLES = 8.0
REGRESSION_SPREAD = 0.2


def size_class(payload_bytes: int) -> int:
    """Input sizes within a factor of two are one class."""
    return payload_bytes.bit_length()


class LocalEstimator:
    """The device: a queue, workers, and a service-time window per model and input size class.

    Args:
        workers: requests that run at the same time.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._windows: dict[str, dict[int, ServiceWindow]] = {}
        self._queued: dict[int, float] = {}  # ticket -> expected service time
        self._running: dict[int, tuple[float, float, float]] = {}  # ticket -> started, typical and slow service time
        self._ticket = 0
        self._last_sample_s = -math.inf
        self._last_service_s = 0.0
        self._last_offload_s = -math.inf
        self._budget_s = math.inf  # of the last offloaded request
        self._chain = 0  # samples in a row within that budget

    def seed(self, model: str, payload_bytes: int, service_s: Iterable[float], now: float) -> None:
        """Start from measured warm-up runs, so that the first request meets an estimate."""
        for value in service_s:
            self._add(model, payload_bytes, value, now)

    def enqueue(self, model: str, payload_bytes: int, now: float) -> int:
        """A request joins the queue; returns its ticket."""
        self._ticket += 1
        self._queued[self._ticket] = self.service(model, payload_bytes, now)[0]
        return self._ticket

    def drop(self, ticket: int) -> None:
        """A request leaves the queue, or its worker, without a measured service time."""
        self._queued.pop(ticket, None)
        self._running.pop(ticket, None)

    def start(self, ticket: int, model: str, payload_bytes: int, now: float) -> None:
        """A queued request starts to run."""
        self._queued.pop(ticket, None)
        self._running[ticket] = (now, *self.service(model, payload_bytes, now))

    def finish(self, ticket: int, model: str, payload_bytes: int, now: float, until_s: float = -math.inf) -> None:
        """A running request ended; its duration is a sample.

        Args:
            ticket, model, payload_bytes: which.
            now: the time.
            until_s: for one that was given up, or refused as hopeless by an edge server: it would have taken at least until then.
        """
        entry = self._running.pop(ticket, None)
        if entry is not None:
            self._add(model, payload_bytes, max(now, until_s) - entry[0], now)

    def service(self, model: str, payload_bytes: int, now: float) -> tuple[float, float]:
        """``(median, 95th percentile)`` of the service time alone, at the present drift; zeros when nothing is known."""
        window, factor = self._window(model, payload_bytes)
        if window is None:
            return 0.0, 0.0
        p50, p95 = window.quantiles(now)
        return p50 * factor, p95 * factor

    def wait_s(self, now: float) -> float:
        """Expected time until a worker is free for one more request."""
        if len(self._running) < self._workers and not self._queued:
            return 0.0
        return self._left(now) + sum(self._queued.values()) / self._workers

    def _left(self, now: float) -> float:
        """Until the first of busy workers is free."""
        if len(self._running) < self._workers:
            return 0.0
        return min(_remaining(now - started, typical, slow) for started, typical, slow in self._running.values())

    def _wait_before(self, ticket: int, now: float) -> float:
        """As `wait_s`, for a queued request: tickets are in the order of arrival."""
        before = sum(service for other, service in self._queued.items() if other < ticket)
        return self._left(now) + before / self._workers

    def estimate(self, model: str, payload_bytes: int, budget_s: float, now: float, health: Health = Health.OK) -> TierEstimate:
        """Probability of an answer within ``budget_s`` from now, wait included."""
        window, factor = self._window(model, payload_bytes)
        if window is None:
            return TierEstimate(0.0, 0.0, 0.0, False, health)
        wait = self.wait_s(now)
        p50, p95 = window.quantiles(now)
        p_meet = window.probability((budget_s - wait) / factor, now)
        return TierEstimate(p_meet, wait + p50 * factor, wait + p95 * factor, True, health, service_s=p50 * factor)

    def outlook(self, ticket: int, model: str, payload_bytes: int, until_s: float, now: float) -> tuple[float, float]:
        """How a request that waits or runs here is doing.

        Returns:
            the probability that it ends by ``until_s`` given that it has not yet, and the absolute time at which that should be asked again: when it
            should have ended (95th percentile), or when a worker should be free for one that waits. ``(0, now)`` for a request that is not here.
        """
        window, factor = self._window(model, payload_bytes)
        running = self._running.get(ticket)
        if window is None or (running is None and ticket not in self._queued):
            return 0.0, now
        typical, slow = (value * factor for value in window.quantiles(now))
        if running is None:
            wait = self._wait_before(ticket, now)
            return window.probability((until_s - now - wait) / factor, now), now + max(self._left(now), 0.25 * typical)
        started = running[0]
        ended = window.probability((now - started) / factor, now)
        if ended >= 1.0:
            return 0.0, now  # slower than anything in the window
        return (window.probability((until_s - started) / factor, now) - ended) / (1.0 - ended), max(started + slow, now + 0.1 * typical)

    def offloaded(self, budget_s: float, now: float) -> None:
        """A request that might have run here within ``budget_s`` went to the cloud."""
        self._last_offload_s = now
        self._budget_s = budget_s
        if self._last_service_s > budget_s:
            self._chain = 0

    def probe_due(self, now: float) -> bool:
        """True when the device should run a shadow of an offloaded request now, so that a recovery is seen.

        Never while requests run or wait: they are samples themselves.
        """
        return not self._running and not self._queued and now >= self.next_probe_s

    @property
    def next_probe_s(self) -> float:
        """Earliest time of the next shadow probe; infinite while the traffic itself brings samples.

        Probes take 10 % of the device's time (but come every 30 s at least), and come once a second at most while they are too slow. The first that is fast enough is followed
        at once by a few more: a recovery is then known within one probe interval.
        """
        if 0 < self._chain < PROBE_CHAIN and self._last_offload_s > self._last_sample_s - PROBE_EVERY_S:
            return self._last_sample_s
        if self._last_offload_s <= self._last_sample_s:
            return math.inf
        rest_s = min(self._last_service_s / PROBE_DUTY, PROBE_AT_LEAST_EVERY_S)
        return self._last_sample_s + max(0.0 if self._chain else PROBE_EVERY_S, rest_s)

    def drift(self, model: str, payload_bytes: int) -> float:
        """Present drift factor; 1 when nothing is known."""
        window, _ = self._window(model, payload_bytes)
        return 1.0 if window is None else window.drift

    def _add(self, model: str, payload_bytes: int, service_s: float, now: float) -> None:
        classes = self._windows.setdefault(model, {})
        window = classes.setdefault(size_class(payload_bytes), ServiceWindow())
        self._chain = self._chain + 1 if service_s <= self._budget_s else 0
        window.add(service_s, now)
        self._last_sample_s = now
        self._last_service_s = service_s

    def _window(self, model: str, payload_bytes: int) -> tuple[ServiceWindow | None, float]:
        """The window of this size, or of the nearest known one with a factor: twice the time for twice the size, never less for a smaller one."""
        classes = self._windows.get(model)
        if not classes:
            return None, 1.0
        wanted = size_class(payload_bytes)
        found = classes.get(wanted)
        if found is not None:
            return found, 1.0
        nearest = min(classes, key=lambda known: (abs(known - wanted), known < wanted))
        return classes[nearest], 2.0 ** max(0, wanted - nearest)


def _remaining(elapsed_s: float, typical_s: float, slow_s: float) -> float:
    """What is left of a running request. One slower than its 95th percentile is expected to take as long again (a hung one never ends)."""
    if elapsed_s < typical_s:
        return typical_s - elapsed_s
    return slow_s - elapsed_s if elapsed_s < slow_s else elapsed_s


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
        payload = self._payloads.setdefault(model, _Payload())
        payload.add(payload_bytes, latency_s)
        base = max(latency_s - payload_bytes * payload.s_per_byte, 1e-6)
        self._windows.setdefault(model, ServiceWindow()).add(base, now)
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
        self._windows.setdefault(model, ServiceWindow()).add(max(latency_s - transfer_s, 1e-6), now)

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
        return self._failure * math.exp(-max(0.0, now - self._failure_at_s) / EWMA_DECAY_S)

    def estimate(
        self,
        model: str,
        payload_bytes: int,
        budget_s: float,
        now: float,
        health: Health = Health.OK,
        device_service_s: float = 0.0,
    ) -> TierEstimate:
        """Probability of an answer within ``budget_s`` from now; ``device_service_s`` is the first guess of the time that the model itself takes."""
        payload = self._payloads.get(model)
        transfer = payload_bytes * payload.s_per_byte if payload is not None else 0.0
        budget_s -= transfer
        window = self._windows.get(model)
        if window is None or window.empty:
            p50 = self._prior_s + device_service_s
            p_meet, p95, known = _prior(budget_s, p50), p50 * math.exp(Z95 * PRIOR_SIGMA), False
            p99 = p95
        else:
            p50, p95 = window.quantiles(now)
            p99 = window.sure_s(now)
            p_meet, known = window.probability(budget_s, now), True
            if window.samples < 100:
                share = PRIOR_WEIGHT / (window.samples + PRIOR_WEIGHT)
                p_meet += share * (_prior(budget_s, self._prior_s + device_service_s) - p_meet)
        p_meet *= 1.0 - self.failure_share(now)
        slow_s = (transfer + p95) * self.calibration.factor
        return TierEstimate(p_meet, transfer + p50, slow_s, known, health, self.cost_s(now), sure_s=max(slow_s, transfer + p99))

    def still(self, model: str, payload_bytes: int, elapsed_s: float, until_s: float, now: float) -> float:
        """Probability that an attempt that has taken ``elapsed_s`` without an answer takes no more than ``until_s`` in all."""
        payload = self._payloads.get(model)
        transfer_s = payload_bytes * payload.s_per_byte if payload is not None else 0.0
        window = self._windows.get(model)
        if window is None or window.empty:
            ended = _prior(elapsed_s, self._prior_s)
            p_meet = (_prior(until_s, self._prior_s) - ended) / (1.0 - ended) if ended < 1.0 else 0.0
        else:
            p_meet = window.still(until_s - transfer_s, elapsed_s - transfer_s, now)
        return p_meet * (1.0 - self.failure_share(now))

    def cost_s(self, now: float) -> float:
        """Peak-EWMA latency times load: compares endpoints of equal probability."""
        return self._peak_s * math.exp(-max(0.0, now - self._peak_at_s) / EWMA_DECAY_S) * (self.in_flight + 1)

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
