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
TOLERANCE = 2.0  # latencies up to twice the least are noise, not a queue (Gradient2's tolerance is 1.5; networks are noisier)
WINDOW = 16  # samples a step
FORGET_S = 60.0  # the least latency is of this long (Envoy recalculates its minRTT every 60 s)


class ConcurrencyLimit:
    """Limit on the attempts in flight at one endpoint."""

    __slots__ = ("_least_s", "_next_least_s", "_samples", "_since_s", "_sum_s", "value")

    def __init__(self) -> None:
        self.value = FIRST
        self._least_s = self._next_least_s = math.inf
        self._since_s = -math.inf
        self._samples = 0
        self._sum_s = 0.0

    def allows(self, in_flight: int) -> bool:
        """One more may be sent."""
        return in_flight < self.value

    def answered(self, latency_s: float, in_flight: int, now: float) -> None:
        """An attempt took ``latency_s`` while ``in_flight`` were under way."""
        if now - self._since_s > FORGET_S:
            self._least_s, self._next_least_s, self._since_s = self._next_least_s, math.inf, now
        self._next_least_s = min(self._next_least_s, latency_s)
        self._least_s = min(self._least_s, self._next_least_s)
        self._samples += 1
        self._sum_s += latency_s
        if self._samples < WINDOW:
            return
        gradient = max(0.5, min(1.0, TOLERANCE * self._least_s * self._samples / max(self._sum_s, 1e-9)))
        self._samples, self._sum_s = 0, 0.0
        if gradient == 1.0 and in_flight < self.value / 2:
            return  # not used, so nothing is known about a higher one
        wanted = self.value * gradient + math.sqrt(self.value)
        self.value = min(MOST, max(FLOOR, self.value + SMOOTHING * (wanted - self.value)))

    def dropped(self) -> None:
        """An attempt was refused for overload, or timed out."""
        self.value = max(FLOOR, self.value * 0.9)
