"""How many batches of a model run side by side, learned from what it brings. Pure: the caller gives the time."""

from __future__ import annotations

import statistics
from collections import deque

__all__ = ["GAIN", "RETRY_S", "WINDOW_S", "ConcurrencyLimit"]

WINDOW_S = 0.25
"""Length of a trial: hundreds of runs of a small model, a handful of a large one."""
RETRY_S = 10.0
"""Pause between trials: at most one window in forty runs at a worse limit."""
GAIN = 0.05
"""Another limit must bring this much more to be kept: more at once costs memory and each run its latency."""
_LEAST_RUNS = 8  # in a window, before its rate means anything
_WINDOWS = (
    5  # a trial is measured against the median of so many windows: on a device that others use too, one window was a third below the next
)
_LEAST_WINDOWS = 3  # before a trial
_CLEARLY_LESS = 4 * GAIN  # a step down that costs so much ends before its window: what waits meanwhile would be late


class ConcurrencyLimit:
    """Hill climbing on the rate of answered rows while work waits: one step up or down for a window, kept when that was better than the windows before and the one after.

    Only time in which requests waited counts; without a queue the limit does not matter.

    Args:
        most: never more.
        start: where to begin.
    """

    def __init__(self, most: int, start: int = 1) -> None:
        self.most = most
        self.limit = self._start = min(start, most)
        self._settled = self.limit
        self._settled_rates: deque[float] = deque(maxlen=_WINDOWS)
        self._settled_rate = 0.0
        self._tried: tuple[int, float] | None = None  # a limit that was better than the windows before it, and its rate
        self._step = 1
        self._next_trial_s = 0.0
        self._rows = self._runs = 0
        self._since_s: float | None = None

    def completed(self, rows: int, saturated: bool, now_s: float) -> None:
        """A batch of ``rows`` ended; ``saturated`` when requests waited all the while."""
        if self.most == 1:
            return
        if not saturated:
            self._since_s = None
            return
        if self._since_s is None:
            self._begin(now_s)
            return
        self._rows += rows
        self._runs += 1
        lasted_s = now_s - self._since_s
        if self._runs < _LEAST_RUNS or lasted_s <= 0:
            return
        rate = self._rows / lasted_s
        if lasted_s >= WINDOW_S or (self.limit < self._settled and rate < self._settled_rate * (1 - _CLEARLY_LESS)):
            self._judge(rate, now_s)
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._since_s, self._rows, self._runs = now_s, 0, 0

    def _judge(self, rate: float, now_s: float) -> None:
        if self.limit != self._settled:
            self._tried = (self.limit, rate) if self._better(self.limit, rate, self._settled_rate) else None
            self.limit = self._settled
            if self._tried is None:
                self._turn_round(now_s)
            return
        self._settled_rates.append(rate)
        self._settled_rate = statistics.median(self._settled_rates)
        if self._tried is not None:
            # What others do with the device changes by more than a step brings: the window after the trial must say the same as those before.
            (tried, its_rate), self._tried = self._tried, None
            if self._better(tried, its_rate, rate):
                self.limit = self._settled = tried
                self._settled_rates.clear()
            else:
                self._turn_round(now_s)
        elif now_s >= self._next_trial_s and len(self._settled_rates) >= _LEAST_WINDOWS:
            self._try(now_s)

    def _better(self, limit: int, rate: float, settled_rate: float) -> bool:
        """Whether ``limit`` with its rate is to be kept instead of the settled one with its own."""
        # A step down is kept already when it costs nothing; below where it began, as many as there are cores for, it must bring something too.
        free = self._start <= limit < self._settled and rate >= settled_rate * (1 - GAIN / 2)
        return free or rate > settled_rate * (1 + GAIN)

    def _turn_round(self, now_s: float) -> None:
        self._step = -self._step
        self._next_trial_s = now_s + RETRY_S / 2

    def _try(self, now_s: float) -> None:
        """Take one step from where it settled, in the direction that is open."""
        wanted = self._settled + self._step
        if not 1 <= wanted <= self.most:
            self._turn_round(now_s)
            return
        self.limit = wanted
