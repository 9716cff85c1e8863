"""What changes with time in a trace, as steps: a device's speed, a link's rate, a round trip, an endpoint's state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["Steps"]


class Steps:
    """A function of time that is constant between breakpoints; the first value holds before the first breakpoint, the last one for ever.

    Read as a rate (work a second, bytes a second), it also says when an amount of work that starts at some time is done. Who starts later is never done
    earlier, which is what the oracle's bound rests on.

    Args:
        points: ``(time, value)``, times ascending, the first at 0; values at least 0. Those that change nothing are left out.
    """

    __slots__ = ("_done", "times", "values")

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        listed = list(points)
        ascending = all(first[0] < second[0] for first, second in pairwise(listed))
        if not listed or listed[0][0] != 0.0 or not ascending or min(value for _, value in listed) < 0.0:
            raise ValueError("steps: expected times that ascend from 0 and values that are not negative")
        real = listed[:1] + [second for first, second in pairwise(listed) if second[1] != first[1]]
        self.times = [time_s for time_s, _ in real]
        self.values = [value for _, value in real]
        self._done = [0.0]  # the integral up to each breakpoint
        for index in range(1, len(self.times)):
            self._done.append(self._done[-1] + self.values[index - 1] * (self.times[index] - self.times[index - 1]))

    @classmethod
    def constant(cls, value: float) -> Steps:
        """The same at all times."""
        return cls([(0.0, value)])

    def at(self, time_s: float) -> float:
        """The value at a time."""
        values = self.values
        return values[0] if len(values) == 1 else values[max(0, bisect_right(self.times, time_s) - 1)]

    def integral(self, time_s: float) -> float:
        """What is done by ``time_s`` by one that has worked from 0 on."""
        index = max(0, bisect_right(self.times, time_s) - 1)
        return self._done[index] + self.values[index] * (time_s - self.times[index])

    def when(self, start_s: float, amount: float) -> float:
        """The time at which ``amount`` is done by one that starts at ``start_s``; infinite for never."""
        values = self.values
        if amount <= 0.0:
            return start_s
        if len(values) == 1:
            return start_s + amount / values[0] if values[0] else math.inf
        times = self.times
        index = max(0, bisect_right(times, start_s) - 1)
        while index + 1 < len(values):
            room = values[index] * (times[index + 1] - start_s)
            if amount <= room:
                return start_s + amount / values[index]
            amount -= room
            index += 1
            start_s = times[index]
        return start_s + amount / values[index] if values[index] else math.inf

    def changes(self, after_s: float, until_s: float) -> Sequence[float]:
        """The breakpoints in ``(after_s, until_s)``."""
        times = self.times
        if len(times) == 1 or times[-1] <= after_s:
            return ()
        low = bisect_right(times, after_s)
        high = bisect_right(times, until_s)
        return times[low:high]
