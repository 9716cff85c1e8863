"""Whether a request is taken, and which of those that wait run next. Pure: time, queue and estimates are arguments.

Order: by priority level, then earliest deadline first, then arrival. With one instance and requests of one row this is exact: when any order and any partition
into batches answers all in time, so does this one (`first_batch` looks for it by dynamic programming over the ordered queue, where cutting it into
consecutive batches loses nothing because exchanging two requests to bring the earlier deadline forward never makes a batch longer).
With several instances or mixed shapes it is a heuristic.
"""

from __future__ import annotations

import enum
import heapq
import math
from bisect import insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = [
    "AGED_EVERY",
    "DEFAULT_LEVEL",
    "PATIENCE_S",
    "PROBE_AFTER_S",
    "Decision",
    "Load",
    "Waiting",
    "choose_batch",
    "decide",
    "estimated_wait_s",
    "finish_in_order_s",
    "first_batch",
]

PROBE_AFTER_S = 1.0
"""After a second without a run, what was measured may no longer hold (contention has passed, the clock has risen): one request is let through to measure again."""
DEFAULT_LEVEL = 2
"""Priority of requests that name none: 1 goes before them, 3 and more after."""
PATIENCE_S = 1.0
"""A request that waited so long may lead a batch out of its order."""
AGED_EVERY = 4
"""At most every such batch is led by one that waited too long: nothing starves, and three quarters of the batches keep the order."""
_EXACT = 64  # with more that wait, one that comes last is judged by the work ahead of it alone: each microsecond here is one for all
_LOOK_AHEAD = 48  # requests that the exact search looks at: 48 x 32 steps take about half a millisecond, and only when time is short

Predict = Callable[[int], float]


class Waiting:
    """What the rules look at in one request.

    Attributes:
        level: priority, 1 first.
        deadline_s: absolute; infinite for none.
        sequence: order of arrival.
        arrived_s: when it was accepted.
        rows: along the batch axis; 1 where there is none.
        key: requests run together only if their keys are equal; ``ALONE`` never does.
    """

    __slots__ = ("arrived_s", "deadline_s", "key", "level", "rows", "sequence")

    ALONE: tuple[str] = ("alone",)

    def __init__(
        self,
        sequence: int = 0,
        arrived_s: float = 0.0,
        deadline_s: float = math.inf,
        level: int = DEFAULT_LEVEL,
        rows: int = 1,
        key: object = None,
    ) -> None:
        self.sequence = sequence
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.level = level
        self.rows = rows
        self.key = key

    @property
    def order(self) -> tuple[int, float, int]:
        """Sorts requests as they should run."""
        return self.level, self.deadline_s, self.sequence


def _order(waiting: Waiting) -> tuple[int, float, int]:
    return waiting.level, waiting.deadline_s, waiting.sequence


class Decision(enum.Enum):
    """What becomes of a request that arrives."""

    ACCEPT = "accept"
    PROBE = "probe"  # taken, though the estimate says it is hopeless: the estimate is old
    REFUSE_FULL = "full"
    REFUSE_EXPIRED = "expired"
    REFUSE_HOPELESS = "hopeless"


class Load(NamedTuple):
    """What the decision looks at.

    Attributes:
        free_at_s: when each instance can take a batch, by estimate.
        free: how many can now.
        capacity: how many may wait beyond those that can start at once.
        max_rows: rows that run together.
        last_start_s: when a run last began (or the queue was made).
        idle: nothing runs.
    """

    free_at_s: Sequence[float]
    free: int
    capacity: int
    max_rows: int
    last_start_s: float
    idle: bool


def decide(load: Load, pending: Sequence[Waiting], new: Waiting, predict: Predict, now_s: float) -> Decision:
    """Take or refuse ``new``, which arrives while ``pending`` (in order) wait.

    A request that has a deadline is taken when it and all of its level that were taken before can still be answered in time. Lower levels have no say.
    """
    if new.deadline_s != math.inf:
        if new.deadline_s <= now_s:
            return Decision.REFUSE_EXPIRED
        if not _in_time(load, pending, new, predict, now_s):
            old = load.idle and not pending and now_s - load.last_start_s >= PROBE_AFTER_S
            return Decision.PROBE if old else Decision.REFUSE_HOPELESS
    if len(pending) < load.capacity:
        return Decision.ACCEPT
    return Decision.ACCEPT if len(pending) < load.capacity + load.free * load.max_rows else Decision.REFUSE_FULL


def estimated_wait_s(load: Load, pending: Sequence[Waiting], predict: Predict, now_s: float) -> float:
    """How long a request that arrives now and has no deadline waits for an instance: the work ahead of it, spread over the instances."""
    free_s = [max(now_s, at_s) for at_s in load.free_at_s]
    if not pending:
        return min(free_s) - now_s
    rows = sum(waiting.rows for waiting in pending)
    batches, rest = divmod(rows, load.max_rows)
    work_s = batches * predict(load.max_rows) + (predict(rest) if rest else 0.0)
    return sum(at_s - now_s for at_s in free_s) / len(free_s) + work_s / len(free_s)


def _in_time(load: Load, pending: Sequence[Waiting], new: Waiting, predict: Predict, now_s: float) -> bool:
    free_s = sorted(max(now_s, at_s) for at_s in load.free_at_s)
    if not pending:
        return free_s[0] + predict(new.rows) <= new.deadline_s
    if pending[0].level == new.level and new.order > pending[-1].order:
        # The usual case, where it must be cheap: all can be answered before the first deadline.
        end_s = now_s + estimated_wait_s(load, pending, predict, now_s) + predict(new.rows)
        if pending[0].key == new.key == pending[-1].key and end_s <= pending[0].deadline_s:
            return True
        if len(pending) > _EXACT:
            return end_s <= new.deadline_s
    queue = list(pending) if pending[-1].level <= new.level else [waiting for waiting in pending if waiting.level <= new.level]
    insort(queue, new, key=_order)
    if _all_in_time(queue, free_s, predict, load.max_rows):
        return True
    others = [waiting for waiting in queue if waiting is not new]
    if _all_in_time(others, free_s, predict, load.max_rows):
        return False
    # Others are late already, which is not the newcomer's fault: what counts is when its own turn comes.
    return finish_in_order_s(queue[: queue.index(new) + 1], free_s, predict, load.max_rows) <= new.deadline_s


def _all_in_time(queue: Sequence[Waiting], free_s: Sequence[float], predict: Predict, max_rows: int) -> bool:
    if _greedy_in_time(queue, free_s, predict, max_rows):
        return True
    # Where nothing may run together the largest batches are the only ones.
    return len(free_s) == 1 < max_rows and len(queue) <= _LOOK_AHEAD and _cut(queue, free_s[0], predict, max_rows) is not None


def finish_in_order_s(queue: Sequence[Waiting], free_s: Sequence[float], predict: Predict, max_rows: int) -> float:
    """When the last of ``queue`` is answered if batches are as large as they can be."""
    end_s, ends = 0.0, list(free_s)
    for rows, _ in _greedy(queue, max_rows):
        end_s = heapq.heappop(ends) + predict(rows)
        heapq.heappush(ends, end_s)
    return end_s


def _greedy_in_time(queue: Sequence[Waiting], free_s: Sequence[float], predict: Predict, max_rows: int) -> bool:
    ends = list(free_s)
    for rows, tightest_s in _greedy(queue, max_rows):
        end_s = heapq.heappop(ends) + predict(rows)
        if end_s > tightest_s:
            return False
        heapq.heappush(ends, end_s)
    return True


def _greedy(queue: Sequence[Waiting], max_rows: int) -> list[tuple[int, float]]:
    """Rows and tightest deadline of each batch, when consecutive requests go together as far as they may."""
    batches: list[tuple[int, float]] = []
    rows, tightest_s, key = 0, math.inf, Waiting.ALONE  # type: tuple[int, float, object]
    for waiting in queue:
        if rows and (waiting.key != key or key is Waiting.ALONE or rows + waiting.rows > max_rows):
            batches.append((rows, tightest_s))
            rows, tightest_s = 0, math.inf
        rows, key = rows + waiting.rows, waiting.key
        tightest_s = min(tightest_s, waiting.deadline_s)
    if rows:
        batches.append((rows, tightest_s))
    return batches


def _cut(queue: Sequence[Waiting], start_s: float, predict: Predict, max_rows: int) -> int | None:
    """How many of ``queue`` the first batch holds in a partition into consecutive batches that ends earliest with nobody late; ``None`` when there is none."""
    count = len(queue)
    ends, cut = [start_s] + [math.inf] * count, [0] * (count + 1)
    for begin in range(count):
        if ends[begin] == math.inf:
            continue
        rows, tightest_s, key = 0, math.inf, queue[begin].key
        for end in range(begin, count):
            waiting = queue[end]
            rows += waiting.rows
            if end > begin and (rows > max_rows or waiting.key != key or key is Waiting.ALONE):
                break
            tightest_s = min(tightest_s, waiting.deadline_s)
            end_s = ends[begin] + predict(rows)
            if end_s <= tightest_s and end_s < ends[end + 1]:
                ends[end + 1], cut[end + 1] = end_s, begin
    if ends[count] == math.inf:
        return None
    first = count
    while cut[first]:
        first = cut[first]
    return first


def first_batch(queue: Sequence[Waiting], free_s: Sequence[float], predict: Predict, max_rows: int) -> int:
    """How many from the front of ``queue`` (in order) go into the next batch; at least 1.

    Args:
        queue: what waits; those after the first that have another key end the batch.
        free_s: when each instance is free, the first of them now.
        predict: seconds of a run by rows.
        max_rows: rows that may run together.
    """
    largest = _alike(queue, max_rows)
    if largest == 1 or all(waiting.deadline_s == math.inf for waiting in queue):
        return largest
    if _greedy_in_time(queue, sorted(free_s), predict, max_rows):
        return largest
    if len(free_s) == 1:
        cut = _cut(queue[:_LOOK_AHEAD], free_s[0], predict, max_rows)
        if cut is not None:
            return cut
    # Somebody will be late whatever is done: the largest batch that is in time for all that it holds.
    rows, tightest_s, fitting = 0, math.inf, 1
    for index in range(largest):
        rows, tightest_s = rows + queue[index].rows, min(tightest_s, queue[index].deadline_s)
        if free_s[0] + predict(rows) <= tightest_s:
            fitting = index + 1
    return fitting


def _alike(queue: Sequence[Waiting], max_rows: int) -> int:
    """How many from the front may run together."""
    key, rows = queue[0].key, 0
    for index, waiting in enumerate(queue):
        rows += waiting.rows
        if index and (key is Waiting.ALONE or waiting.key != key or rows > max_rows):
            return index
    return len(queue)


def choose_batch(
    queue: Sequence[Waiting], free_s: Sequence[float], predict: Predict, max_rows: int, *, may_age: bool
) -> tuple[list[int], bool]:
    """Indexes into ``queue`` (in order, not empty) of those that run next, and whether one that waited too long leads them.

    Args:
        queue, free_s, predict, max_rows: as for `first_batch`.
        may_age: the last batches were not led by one that waited too long (see `AGED_EVERY`).
    """
    now_s = free_s[0]
    leader, aged = 0, False
    if may_age and len(queue) > 1:
        oldest = min(range(len(queue)), key=lambda index: queue[index].sequence)
        if oldest and now_s - queue[oldest].arrived_s >= PATIENCE_S:
            leader, aged = oldest, True
    if max_rows == 1:
        return [leader], aged
    key = queue[leader].key
    rest = [index for index in range(len(queue)) if index != leader]
    alike = [leader, *(index for index in rest if queue[index].key == key)]
    others = [index for index in rest if queue[index].key != key] if len(alike) < len(queue) else []
    order = [*alike, *others]
    count = first_batch([queue[index] for index in order], free_s, predict, max_rows)
    return order[:count], aged
