"""The device as the router's state machine sees it: a queue in the order of urgency, a few workers, and what is known of its service times. Pure.

Requests that can still meet their deadline go before those that are already late, real time before batch, the nearest deadline first.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health, TierEstimate
from edgekit.router._events import Ask
from edgekit.router._limit import ConcurrencyLimit
from edgekit.router._services import Calibration, ProbePlan, ServiceBook, size_class
from edgekit.router._window import ServiceWindow

__all__ = ["LATE", "Device", "Place", "pause_s"]

LATE = 1 << 20  # added to the priority of a request that cannot meet its deadline
# A wait is believed this much longer before a request joins the queue: what a slowdown costs that is not seen yet. Of 1, 1.12 and 1.2 the simulator's scenarios
# lost the fewest requests with 1.2, and sent the least to the cloud for it with 1.12.
WAIT_DOUBT = 1.12
LEARNED_HEADROOM = 0.5  # a server that runs one request at a time settles at two in flight: the next one is there when it has answered
Place = tuple[int, float, int, float]
"""Of a request that waits: ``(priority, deadline, request, expected service time)``; the queue's order is the tuples' own."""

_ABSENT = TierEstimate(0.0, 0.0, 0.0, False, Health.ABSENT)


class Device:
    """Queue, workers and estimates of the device.

    Args:
        workers: requests that run at the same time; 0 to learn it from how service times grow with it, which suits a server.
        capacity: requests that may wait.
        breaker: of the device.
    """

    def __init__(self, workers: int, capacity: int, breaker: Breaker) -> None:
        self.workers = max(1, workers)
        self._limit = None if workers else ConcurrencyLimit(first=1.0, floor=1.0, headroom=LEARNED_HEADROOM)
        self.breaker = breaker
        self.book = ServiceBook()
        self.probes = ProbePlan()
        self.calibration = Calibration()
        self._capacity = capacity
        self._queue: list[Place] = []
        self._queued_s = 0.0
        self._running: dict[int, tuple[float, ServiceWindow | None, float, Ask]] = {}  # attempt -> started, window, its factor, request

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that run, shadows included."""
        return len(self._running)

    @property
    def free(self) -> bool:
        """A worker has nothing to do."""
        return len(self._running) < self.workers

    @property
    def health(self) -> Health:
        """Whether a request may be queued; what is late anyway keeps nobody out."""
        if len(self._queue) >= self._capacity and self._queue[-1][0] < LATE:
            return Health.FULL
        return Health.OK if self.breaker.closed else Health.FAILING

    def enqueue(self, ask: Ask, now: float, late: bool) -> Place:
        """A request waits for a worker; returns its place."""
        window, factor = self.book.window(ask.model, ask.payload_bytes)
        service_s = window.mean_s(now) * factor if window is not None else 0.0
        place = (ask.priority + LATE if late else ask.priority, ask.deadline_s, ask.request, service_s)
        insort(self._queue, place)
        self._queued_s += service_s
        return place

    def remove(self, place: Place) -> None:
        """A request waits no more."""
        index = bisect_left(self._queue, place)
        del self._queue[index]
        self._queued_s = self._queued_s - place[3] if self._queue else 0.0

    def first(self) -> Place | None:
        """Who is next."""
        return self._queue[0] if self._queue else None

    def surplus(self) -> Place | None:
        """Who has to leave when more wait than may: the last, which is late."""
        return self._queue[-1] if len(self._queue) > self._capacity else None

    def others_in_time(self) -> bool:
        """Someone behind the first can still meet its deadline."""
        return len(self._queue) > 1 and self._queue[1][0] < LATE

    def start(self, attempt: int, ask: Ask, now: float) -> None:
        """A worker begins."""
        window, factor = self.book.window(ask.model, ask.payload_bytes)
        self._running[attempt] = (now, window, factor, ask)

    def drop(self, attempt: int) -> None:
        """A worker ended without a measured service time."""
        self._running.pop(attempt, None)

    def give_up(self, attempt: int, now: float) -> None:
        """A worker ended since its request was over. It would have taken longer, which says something only if it was slow already."""
        started_s, window, factor, _ = self._running[attempt]
        if window is not None and now - started_s > window.quantiles(now)[1] * factor:
            self.finish(attempt, now)
        else:
            self.drop(attempt)

    def finish(self, attempt: int, now: float, until_s: float = -math.inf) -> None:
        """A worker ended; its duration is a sample.

        Args:
            attempt: which.
            now: the time.
            until_s: for one that was given up, or refused as hopeless by an edge server: it would have taken at least until then.
        """
        running = len(self._running)
        entry = self._running.pop(attempt, None)
        if entry is None:
            return
        started_s, _, _, ask = entry
        service_s = max(now, until_s) - started_s
        self.seed(ask.model, ask.payload_bytes, service_s, now)
        if self._limit is not None:
            self._limit.answered((ask.model, size_class(ask.payload_bytes)), service_s, running, now)
            self.workers = int(self._limit.value)

    def seed(self, model: str, payload_bytes: int, service_s: float, now: float) -> None:
        """Count one measured run."""
        self.book.add(model, payload_bytes, service_s, now)
        self.probes.sampled(service_s, now)

    def runs(self, attempt: int) -> bool:
        """A worker has it."""
        return attempt in self._running

    def ask_of(self, attempt: int) -> Ask:
        """Whose it is; of a shadow, whose inputs it has."""
        return self._running[attempt][3]

    def wait(self, priority: int, deadline_s: float, request: int, now: float) -> tuple[float, float]:
        """Until it would be this request's turn: ``(expected seconds, how many runs that is, as far as their spread adds to its own)``."""
        queue = self._queue
        if len(self._running) < self.workers and not queue:
            return 0.0, 0.0
        index = bisect_left(queue, (priority, deadline_s, request, -1.0))
        ahead_s = self._queued_s if index == len(queue) else sum([place[3] for place in queue[:index]])
        if len(self._running) < self.workers:
            return ahead_s / self.workers, index / self.workers**2
        left_s = min([_left(entry, now) for entry in self._running.values()])
        return left_s + ahead_s / self.workers, (index + 1) / self.workers**2

    def estimate(self, ask: Ask, budget_s: float, now: float) -> TierEstimate:
        """What the device can promise within ``budget_s`` from now to a request that is not here yet."""
        if not ask.on_edge or ask.terms.cloud_only:
            return _ABSENT
        window, factor = self.book.window(ask.model, ask.payload_bytes)
        health = self.health
        if window is None:
            return TierEstimate(0.0, 0.0, 0.0, False, health)
        wait_s, runs = self.wait(ask.priority, ask.deadline_s, ask.request, now)
        p50, p95 = window.quantiles(now)
        p50 *= factor
        scale = self.calibration.factor
        p_meet = _probability(window, factor, budget_s - WAIT_DOUBT * wait_s, runs, p50, now)
        slow_s = (wait_s + p50 + (p95 * factor - p50) * math.sqrt(1.0 + runs)) * scale
        return TierEstimate(p_meet, wait_s + p50, slow_s, True, health, 0.0, p50, wait_s)

    def alone(self, ask: Ask, until_s: float, now: float) -> TierEstimate:
        """What it can promise to the first of the queue, when a worker is free."""
        window, factor = self.book.window(ask.model, ask.payload_bytes)
        if window is None:
            return TierEstimate(0.0, 0.0, 0.0, False)
        p50, p95 = window.quantiles(now)
        return TierEstimate(window.probability((until_s - now) / factor, now), p50 * factor, p95 * factor, True, service_s=p50 * factor)

    def still_waiting(self, ask: Ask, place: Place, until_s: float, now: float) -> tuple[float, float]:
        """``(probability that a request that waits ends by until_s, when to ask again)``."""
        window, factor = self.book.window(ask.model, ask.payload_bytes)
        if window is None:
            return 0.0, now
        wait_s, runs = self.wait(place[0], place[1], place[2], now)
        p50 = window.quantiles(now)[0] * factor
        p_meet = _probability(window, factor, until_s - now - wait_s, runs, p50, now)
        return p_meet, now + max(pause_s(p50, until_s - now), 0.5 * wait_s)

    def still_running(self, attempt: int, until_s: float, now: float) -> tuple[float, float]:
        """``(probability that a request that runs ends by until_s, given that it has not yet, when to ask again)``."""
        started_s, window, factor, ask = self._running[attempt]
        if window is None:  # known by now, perhaps
            window, factor = self.book.window(ask.model, ask.payload_bytes)
            if window is None:
                return 0.0, now
        p50, p95 = window.quantiles(now)
        p_meet = window.still((until_s - started_s) / factor, (now - started_s) / factor, now)
        return p_meet, max(started_s + p95 * factor, now + pause_s(p50 * factor, until_s - now))

    def probe_due(self, now: float) -> bool:
        """True when a shadow should run now. Never while requests run or wait: they are samples themselves."""
        if self._running or self._queue:
            return False
        return now >= self.next_probe_s

    @property
    def next_probe_s(self) -> float:
        """Absolute time of the next shadow; infinite for none."""
        return self.probes.next_s if self.breaker.closed else self.breaker.probe_at_s

    def recovered(self, now: float) -> None:
        """The device answered, whoever asked."""
        if not self.breaker.closed:
            self.breaker.start_probe()
            self.breaker.probe_ended(True, now)
        self.breaker.succeeded()


def pause_s(typical_s: float, left_s: float) -> float:
    """How long to wait before something that takes ``typical_s`` and has ``left_s`` left is looked at again: often enough to act, seldom enough to cost nothing."""
    return max(0.25 * typical_s, 0.1 * left_s, 0.001)


def _probability(window: ServiceWindow, factor: float, budget_s: float, runs: float, p50: float, now: float) -> float:
    """Of a run ending within ``budget_s``, when the spread of ``runs`` others before it adds to its own."""
    if runs:
        budget_s = p50 + (budget_s - p50) / math.sqrt(1.0 + runs)
    return window.probability(budget_s / factor, now)


def _left(entry: tuple[float, ServiceWindow | None, float, Ask], now: float) -> float:
    started_s, window, factor, _ = entry
    if window is None:
        return now - started_s
    return window.remaining_s((now - started_s) / factor, now) * factor
