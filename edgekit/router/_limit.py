"""How many requests a server takes at once: as many as it answers without making them wait. Pure.

Envoy's adaptive concurrency and Netflix's gradient limiter: the limit follows the ratio of the least latency seen to the latest ones, plus headroom that lets
it grow while nothing waits. Latencies are compared within a model and input size, and by the median of a window: a minimum of single answers is luck, and a
few packets that were lost and sent again are no queue.

A server that was never seen without a queue, since it bears less than the first limit, is not told from a slow one; its requests are then kept in bounds by the
probability of meeting their deadlines.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

__all__ = ["ConcurrencyLimit"]

FLOOR = 3.0  # of a cloud endpoint: a slow network must not look like a full server
FIRST = 20.0  # Netflix's initial limit
MOST = 1000.0
SMOOTHING = 0.2  # Netflix's: how far one window of samples moves the limit
TOLERANCE = 1.5  # Gradient2's: medians up to this many times the least are noise, not a queue
WINDOW = 16  # samples a step
FORGET_S = 60.0  # the least latency is of this long (Envoy recalculates its minRTT every 60 s)
MOST_KINDS = 256  # of models and sizes; names come from outside


class ConcurrencyLimit:
    """Limit on what is in flight at one server.

    Args:
        first: to begin with.
        floor: never below.
        headroom: how much the limit may grow in a step while nothing waits; ``None`` for the square root of the limit.
    """

    __slots__ = ("_floor", "_headroom", "_kinds", "value")

    def __init__(self, first: float = FIRST, floor: float = FLOOR, headroom: float | None = None) -> None:
        self.value = first
        self._floor = floor
        self._headroom = headroom
        self._kinds: dict[Hashable, _Baseline] = {}

    def allows(self, in_flight: int) -> bool:
        """One more may be sent."""
        return in_flight < self.value

    def answered(self, kind: Hashable, latency_s: float, in_flight: int, now: float) -> None:
        """An attempt took ``latency_s`` while ``in_flight`` were under way; ``kind`` is what latencies are alike of."""
        baseline = self._kinds.get(kind)
        if baseline is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            baseline = self._kinds[kind] = _Baseline()
        middle_s = baseline.add(latency_s, now)
        if middle_s is None:
            return
        gradient = max(0.5, min(1.0, TOLERANCE * baseline.least_s / max(middle_s, 1e-9)))
        if gradient == 1.0 and in_flight < self.value / 2:
            return  # not used, so nothing is known about a higher one
        wanted = self.value * gradient + (math.sqrt(self.value) if self._headroom is None else self._headroom)
        self.value = min(MOST, max(self._floor, self.value + SMOOTHING * (wanted - self.value)))

    def dropped(self, keep: float) -> None:
        """An attempt was refused for overload, or had no answer in time: keep that share of the limit."""
        self.value = max(self._floor, self.value * keep)


class _Baseline:
    """Medians of windows of one kind's latencies, and the least of them lately."""

    __slots__ = ("_next_s", "_samples", "_since_s", "least_s")

    def __init__(self) -> None:
        self.least_s = self._next_s = math.inf
        self._since_s = -math.inf
        self._samples: list[float] = []

    def add(self, latency_s: float, now: float) -> float | None:
        """Count one; the median when a window is full."""
        self._samples.append(latency_s)
        if len(self._samples) < WINDOW:
            return None
        middle_s = sorted(self._samples)[WINDOW // 2]
        self._samples.clear()
        if now - self._since_s > FORGET_S:
            self.least_s, self._next_s, self._since_s = self._next_s, math.inf, now
        self._next_s = min(self._next_s, middle_s)
        self.least_s = min(self.least_s, self._next_s)
        return middle_s
