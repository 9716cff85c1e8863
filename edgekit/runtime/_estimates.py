"""What is learned from runs: how long one takes by its number of rows, and how many rows are worth running together. No clock, no I/O."""

from __future__ import annotations

import bisect
from collections import deque

__all__ = ["GAIN", "TINY_S", "BatchTimes", "ServiceTimes"]

_WINDOW = 63  # service times remembered; odd, so that the median is one of them
_ENOUGH = 9  # runs of a size before its median is believed
GAIN = 0.05
"""A larger batch must cost this much less for each row: without a gain it only lets its first rows wait for its last, and leaves less to other cores."""
_SETTLED = 2 * _WINDOW  # runs of a size after which brief ones are only sampled, one in…
_SAMPLED = 8
_BRIEF_S = 5e-3
TINY_S = 2.5e-4
"""A run of one row so short is mostly what every run costs, which batches save: such models are not run in a row to compare, and leave the caches as they are."""
_RETRY_AFTER = 256  # batches held to the limit before a size beside it is measured again: clocks and neighbours change


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


class _Rung:
    """Runs of about the same number of rows: all of them, and by the row those that may be compared with other sizes."""

    __slots__ = ("per_row", "runs", "times")

    def __init__(self) -> None:
        self.times = ServiceTimes()
        self.per_row = ServiceTimes()
        self.runs = 0


class BatchTimes:
    """Run times by rows, in rungs of powers of two (1, 2, 3-4, 5-8, …), and the number of rows to run together.

    The limit climbs one rung at a time: a rung is tried once the one below is known, and kept while it saves `GAIN` of the time of each row. Now and then the rung above the limit or the one
    below is measured anew. A run that found the device idle is no measure for one row: it found the caches cold, and took up to half as long again as one of several in a row.

    Args:
        max_rows: never run more together.
    """

    def __init__(self, max_rows: int = 1) -> None:
        self._max_rows = max_rows
        self._top = _rung(max_rows)
        self._rungs: list[_Rung] = []
        self._table: list[float] = []
        self._held = 0
        self._downwards = False
        self.limit = 1
        self._forget()

    def add(self, rows: int, seconds: float, *, restart: bool = False, busy: bool = True) -> None:
        """Remember a run of ``rows``; ``restart`` forgets all before it. One of more rows than run together counts by its share: `predict` takes it back.

        ``busy``: others waited or ran in a row with it.
        """
        if restart:
            self._forget()
        most = 1 << self._top
        if rows > most:
            rows, seconds = most, seconds * most / rows
        rung = self._rungs[(rows - 1).bit_length()]
        rung.runs += 1
        if rung.runs > _SETTLED and seconds < _BRIEF_S and rung.runs % _SAMPLED and len(rung.per_row) >= _ENOUGH:
            return  # thousands of these in a few seconds: some tell as much as all
        rung.times.add(seconds)
        if busy or rows > 1 or seconds < TINY_S:
            rung.per_row.add(seconds / max(1, rows))
        self._fill_table()
        self.limit = self._learned_limit()

    def predict(self, rows: int) -> float:
        """Seconds that a run of ``rows`` takes; 0 while nothing was measured. Sizes that were not seen are taken to cost as much a row as the next smaller."""
        rung = (rows - 1).bit_length()
        if rung <= self._top:
            return self._table[rung]
        return self._table[self._top] * rows / (1 << self._top)

    def held_back(self) -> None:
        """A batch could have been larger than the limit."""
        self._held += 1
        if self._held < _RETRY_AFTER:
            return
        self._held, self._downwards = 0, not self._downwards
        at = _rung(self.limit)
        again = at - 1 if self._downwards and at else at + 1
        if again <= self._top:
            self._rungs[again].per_row = ServiceTimes()
            self.limit = self._learned_limit()

    def shrink(self, rows: int) -> None:
        """A run of ``rows`` failed where its rows one by one did not: never run so many again."""
        self._max_rows = min(self._max_rows, max(1, rows // 2))
        self._top = _rung(self._max_rows)
        self._fill_table()
        self.limit = self._learned_limit()

    @property
    def p50_s(self) -> float:
        """Seconds of a run of one row; 0 while nothing was measured."""
        return self._table[0]

    def _forget(self) -> None:
        self._rungs = [_Rung() for _ in range(self._top + 1)]
        self._table = [0.0] * (self._top + 1)
        self.limit = 1

    def _fill_table(self) -> None:
        known = [(index, rung.times.p50_s) for index, rung in enumerate(self._rungs[: self._top + 1]) if rung.runs]
        if not known:
            self._table = [0.0] * (self._top + 1)
            return
        below, seconds = known[0]  # sizes smaller than any that was seen cost at most as much
        at = dict(known)
        for index in range(self._top + 1):
            if index in at:
                below, seconds = index, at[index]
            self._table[index] = seconds * (1 << (index - below)) if index > below else seconds

    def _learned_limit(self) -> int:
        limit, below_s = 1, 0.0
        for index in range(self._top + 1):
            rung = self._rungs[index]
            size = min(1 << index, self._max_rows)
            if len(rung.per_row) < _ENOUGH:
                return size
            per_row_s = rung.per_row.p50_s
            if index and per_row_s > (1 - GAIN) * below_s:
                return limit
            limit, below_s = size, per_row_s
        return limit


def _rung(rows: int) -> int:
    return max(0, rows - 1).bit_length()
