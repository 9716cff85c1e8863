"""What is learned from runs: how long one takes by its number of rows, and how many rows are worth running together. No clock, no I/O."""

from __future__ import annotations

import bisect
from collections import deque

__all__ = ["GAIN", "BatchTimes", "ServiceTimes"]

_WINDOW = 63  # service times remembered; odd, so that the median is one of them
_ENOUGH = 5  # runs of a size before its median is believed
GAIN = 0.05
"""A larger batch must cost this much less for each row: without a gain it only lets its first rows wait for its last."""
_RETRY_AFTER = 256  # batches held to the limit before the size beyond is measured again: clocks and neighbours change


class ServiceTimes:
    """Median of the newest run times."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float, *, restart: bool = False) -> None:
        """Remember a run; ``restart`` forgets all before it."""
        if restart:
            self._newest.clear()
            self._sorted.clear()
        elif len(self._newest) == _WINDOW:
            self._sorted.pop(bisect.bisect_left(self._sorted, self._newest.popleft()))
        self._newest.append(seconds)
        bisect.insort(self._sorted, seconds)

    def __len__(self) -> int:
        """How many runs are remembered."""
        return len(self._sorted)

    @property
    def p50_s(self) -> float:
        """The median; 0 before the first run."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0


class BatchTimes:
    """Run times by rows, in rungs of powers of two (1, 2, 3-4, 5-8, …), and the number of rows to run together.

    The limit climbs one rung at a time: a rung is tried once the one below is known, and kept while it saves `GAIN` of the time of each row.

    Args:
        max_rows: never run more together.
    """

    def __init__(self, max_rows: int = 1) -> None:
        self._max_rows = max_rows
        self._top = _rung(max_rows)
        self._seconds: list[ServiceTimes] = []
        self._per_row: list[ServiceTimes] = []
        self._table: list[float] = []
        self._held = 0
        self.limit = 1
        self._forget()

    def add(self, rows: int, seconds: float, *, restart: bool = False) -> None:
        """Remember a run of ``rows``; ``restart`` forgets all before it."""
        if restart:
            self._forget()
        rung = min(_rung(rows), self._top)
        self._seconds[rung].add(seconds)
        self._per_row[rung].add(seconds / max(1, rows))
        self._fill_table()
        self.limit = self._learned_limit()

    def predict(self, rows: int) -> float:
        """Seconds that a run of ``rows`` takes; 0 while nothing was measured. Sizes that were not seen are taken to cost as much a row as the next smaller."""
        rung = _rung(rows)
        if rung <= self._top:
            return self._table[rung]
        return self._table[self._top] * rows / (1 << self._top)

    def held_back(self) -> None:
        """A batch could have been larger than the limit."""
        self._held += 1
        if self._held >= _RETRY_AFTER and self.limit < self._max_rows:
            self._held = 0
            beyond = _rung(self.limit) + 1
            self._seconds[beyond] = ServiceTimes()
            self._per_row[beyond] = ServiceTimes()
            self.limit = self._learned_limit()

    def shrink(self, rows: int) -> None:
        """A run of ``rows`` failed where its rows one by one did not: never run so many again."""
        self._max_rows = min(self._max_rows, max(1, rows // 2))
        self._top = _rung(self._max_rows)
        self.limit = min(self._learned_limit(), self._max_rows)

    @property
    def p50_s(self) -> float:
        """Seconds of a run of one row; 0 while nothing was measured."""
        return self._table[0]

    def _forget(self) -> None:
        self._seconds = [ServiceTimes() for _ in range(self._top + 1)]
        self._per_row = [ServiceTimes() for _ in range(self._top + 1)]
        self._table = [0.0] * (self._top + 1)
        self.limit = 1

    def _fill_table(self) -> None:
        known = [(rung, times.p50_s) for rung, times in enumerate(self._seconds[: self._top + 1]) if len(times)]
        if not known:
            return
        below, seconds = known[0][0], known[0][1]  # sizes smaller than any that was seen cost at most as much
        at = dict(known)
        for rung in range(self._top + 1):
            if rung in at:
                below, seconds = rung, at[rung]
            self._table[rung] = seconds * (1 << max(0, rung - below))

    def _learned_limit(self) -> int:
        limit = 1
        for rung in range(self._top + 1):
            size = min(1 << rung, self._max_rows)
            if len(self._per_row[rung]) < _ENOUGH:
                return size
            if rung and self._per_row[rung].p50_s > (1 - GAIN) * self._per_row[rung - 1].p50_s:
                return limit
            limit = size
        return limit


def _rung(rows: int) -> int:
    return max(0, rows - 1).bit_length()
