"""How many requests a cloud endpoint takes at once: as many as it answers without making them wait. Pure.

Envoy's adaptive concurrency and Netflix's gradient limiter: the limit follows the ratio of the least latency seen to the latest ones, plus headroom that lets
it grow while nothing waits. A floor keeps a slow network from looking like a full server.
"""

from __future__ import annotations

import math

__all__ = ["ConcurrencyLimit"]

FLOOR = 3.0
FIRST = 20.0  # Netflix's initial limit
MOST = 1000.0
SMOOTHING = 0.2  # Netflix's: how far one window of samples moves the limit
TOLERANCE = 1.5  # Gradient2's: medians up to this many times the least are noise, not a queue
WINDOW = 16  # samples a step
FORGET_S = 60.0  # the least latency is of this long (Envoy recalculates its minRTT every 60 s)


class ConcurrencyLimit:
    """Limit on the attempts in flight at one endpoint."""

    __slots__ = ("_least_s", "_next_least_s", "_samples", "_since_s", "value")

    def __init__(self) -> None:
        self.value = FIRST
        self._least_s = self._next_least_s = math.inf
        self._since_s = -math.inf
        self._samples: list[float] = []

    def allows(self, in_flight: int) -> bool:
        """One more may be sent."""
        return in_flight < self.value

    def answered(self, latency_s: float, in_flight: int, now: float) -> None:
        """An attempt took ``latency_s`` while ``in_flight`` were under way."""
        if now - self._since_s > FORGET_S:
            self._least_s, self._next_least_s, self._since_s = self._next_least_s, math.inf, now
        self._next_least_s = min(self._next_least_s, latency_s)
        self._least_s = min(self._least_s, self._next_least_s)
        self._samples.append(latency_s)
        if len(self._samples) < WINDOW:
            return
        middle_s = sorted(self._samples)[WINDOW // 2]  # a few packets that were lost and sent again are no queue
        gradient = max(0.5, min(1.0, TOLERANCE * self._least_s / max(middle_s, 1e-9)))
        self._samples.clear()
        if gradient == 1.0 and in_flight < self.value / 2:
            return  # not used, so nothing is known about a higher one
        wanted = self.value * gradient + math.sqrt(self.value)
        self.value = min(MOST, max(FLOOR, self.value + SMOOTHING * (wanted - self.value)))

    def dropped(self, keep: float) -> None:
        """An attempt was refused for overload, or had no answer in time: keep that share of the limit."""
        self.value = max(FLOOR, self.value * keep)
