"""The queue in front of a model's instances: who is taken, who waits, who runs together with whom, and when. Applies the pure rules with a lock and a clock.

The queue has no threads. Whoever offers requests takes what may run (`InstanceQueue.start`), runs it and says so (`InstanceQueue.finish`); what cannot run yet
is taken by whoever finishes next, or by a worker.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from edgekit.errors import DeadlineError, EdgeKitError, OverloadedError
from edgekit.runtime._admission import AGED_EVERY, Decision, Load, Waiting, choose_batch, decide, estimated_wait_s
from edgekit.runtime._concurrency import ConcurrencyLimit
from edgekit.runtime._estimates import TINY_S, BatchTimes
from edgekit.runtime._fairness import Share
from edgekit.runtime._job import Job

__all__ = ["DEFAULT_MAX_BATCH", "DEFAULT_QUEUE", "Batch", "InstanceQueue", "Lease", "QueueClosedError", "Refused"]

T = TypeVar("T")
DEFAULT_MAX_BATCH = 32
"""Rows that may run together when nobody says: the limit within it is learned. At 16 to 32 rows the time for a row of a small dense network stopped to fall
(38.5, 6.3, 4.8 us a row at 1, 16 and 32 on the machine of ``benchmarks/scheduler.py``)."""
DEFAULT_QUEUE = 256
"""Requests that may wait. Deadlines bound the wait and the transports bound the bytes; this bounds what is left."""
Refused = list[tuple[Job, EdgeKitError]]
_ROW_S = 1e-3
"""Requests that do not run together, because they cannot or because it saves nothing, go one after the other, in a row, without coming back for each while that takes so long. The first is answered with the last."""
_LONG_ROW_S = 10e-3
"""The same for a part of a longer queue: what the first waits for the last is little beside what they have waited. A run of 1.5 ms leaves the caches to the model, and a row does
the work around the engine for all at once: 865 requests/s instead of 767 on one core (PP-OCR's angle classifier, 16 connections, `benchmarks/one_core.py`)."""
_SHARED_S = 2e-3
"""A worker's batch that takes so long is shared with instances that are free: handing a part to another thread costs about a quarter of it."""
_ADVICE = "allow more time, or send fewer requests at once"


class QueueClosedError(Exception):
    """The queue takes no more requests: its model was unloaded or replaced."""


class Batch(Generic[T]):
    """Requests that run together on one instance; or, when ``serial``, one after the other in one go."""

    __slots__ = ("instance", "jobs", "probe", "rows", "saturated", "serial", "started_s")

    def __init__(self, instance: T, jobs: list[Job], rows: int, started_s: float) -> None:
        self.instance = instance
        self.jobs = jobs
        self.rows = rows
        self.started_s = started_s
        self.probe = False
        self.saturated = False  # others waited when it began
        self.serial = False

    @property
    def runs(self) -> int:
        """Runs of the engine."""
        return len(self.jobs) if self.serial else 1


class Lease(Generic[T]):
    """An instance that is held apart from all requests."""

    __slots__ = ("instance",)

    def __init__(self, instance: T) -> None:
        self.instance = instance


class InstanceQueue(Generic[T]):
    """Instances of one model behind a bounded queue. Safe from several threads.

    Args:
        name: for error lines.
        instances: what batches run on; the same object may occur more than once when it can run side by side.
        capacity: how many requests may wait, beyond those that can start at once.
        clock: monotonic seconds.
        max_batch: most rows that run together.
        threads: CPU threads of one run, 0 for all there are.
        adaptive: learn how many instances are worth using at once, one for each core; otherwise all are used.

    Attributes:
        threads: as given.
        share: what the model used of the device.
        times: run times by rows.
    """

    def __init__(
        self,
        name: str,
        instances: Sequence[T],
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_batch: int = 1,
        threads: int = 0,
        adaptive: bool = False,
    ) -> None:
        self._name = name
        self._free = list(instances)
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._watchers = 0
        self._pending: list[Job] = []  # in order
        self._in_arrival_order = True
        self._with_deadline = 0
        self._running: list[Batch[T]] = []
        self._leases = 0
        self._since_aged = 0
        self._last_start_s = clock()
        self._probe_next = False
        self._closed = False
        # As many as there are cores for, where that is known.
        begin = len(self._free) // threads if threads else 1
        self._concurrency = ConcurrencyLimit(len(self._free), max(1, begin) if adaptive else len(self._free))
        self.threads = threads
        self.times = BatchTimes(max_batch)
        self.share = Share()
        self.on_ready: Callable[[], None] | None = None
        """Called without a lock when a request can run that nobody is about to take (a lease ended)."""

    # --- what others see ----------------------------------------------------------------------------------------------------------------

    @property
    def instances(self) -> int:
        """How many batches may run at once, at most."""
        return self._concurrency.most

    @property
    def limit(self) -> int:
        """How many batches may run at once now."""
        return self._concurrency.limit

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._pending)

    @property
    def running(self) -> int:
        """How many requests run; a lease counts as one."""
        return sum(len(batch.jobs) for batch in self._running) + self._leases

    @property
    def ready(self) -> bool:
        """Requests wait and one of them may begin."""
        return bool(self._pending) and self._may_start()

    def first_deadline_s(self) -> float:
        """Earliest deadline of those that wait; infinite for none."""
        with self._lock:
            return min((job.deadline_s for job in self._pending), default=math.inf) if self._with_deadline else math.inf

    def estimated_latency_s(self) -> float:
        """What a request that arrives now would take, waiting included; 0 while nothing was measured."""
        with self._lock:
            now_s = self._clock()
            return estimated_wait_s(self._load(now_s), self._pending, self.times.predict, now_s) + self.times.p50_s

    def next_run_s(self) -> float:
        """What the next batch takes, by estimate; 0 while nothing was measured or nothing waits."""
        with self._lock:
            return self._next_run_s() if self._pending else 0.0

    def plan_share(self) -> None:
        """Bring ``share`` up to what waits now."""
        with self._lock:
            if self._pending:
                self.share.deadline_s = self._pending[0].deadline_s
                self.share.run_s = self._next_run_s()

    # --- requests in, batches out -------------------------------------------------------------------------------------------------------

    def start(self, jobs: list[Job], longest_s: float) -> tuple[Batch[T] | None, Refused]:
        """Take requests in and, when one may begin, the next batch out.

        Args:
            jobs: in order of arrival.
            longest_s: a batch that is expected to run longer, or of which nothing is known, stays for somebody else; infinite takes any.

        Returns:
            the batch, which the caller must run and `finish`; and those that are refused, with the reason.

        Raises:
            QueueClosedError: no more requests are taken.
        """
        refused: Refused = []
        with self._lock:
            if self._closed:
                raise QueueClosedError(self._name)
            now_s = self._clock()
            batch = self._start_plainly(jobs, now_s, longest_s)
            if batch is not None:
                return batch, refused
            if not self._enter_plainly(jobs, now_s):
                for job in jobs:
                    job.arrived_s = now_s
                    job.queue = self
                    error = self._refusal(job, now_s)
                    if error is None:
                        self._insert(job)
                    else:
                        refused.append((job, error))
            batch = self._take(now_s, longest_s, refused) if self._pending and self._may_start() else None
        return batch, refused

    def take(self, longest_s: float = math.inf) -> tuple[Batch[T] | None, Refused]:
        """The next batch, if one may begin; see `start`."""
        refused: Refused = []
        with self._lock:
            batch = self._take(self._clock(), longest_s, refused) if self._pending and self._may_start() else None
            self._tell()
        return batch, refused

    def finish(self, batch: Batch[T], *, failed: bool = False) -> float:
        """A batch has run. Its time counts unless it failed.

        Returns:
            its seconds.
        """
        with self._lock:
            now_s = self._clock()
            seconds = now_s - batch.started_s
            self._running.remove(batch)
            self._free.append(batch.instance)
            self.share.used(seconds)
            if not failed:
                self.times.add(batch.rows, seconds / batch.runs, restart=batch.probe, busy=batch.saturated or batch.serial)
                self._concurrency.completed(batch.rows * batch.runs, batch.saturated and bool(self._pending), now_s)
            self._tell()
        return seconds

    def shrink(self, rows: int) -> None:
        """So many rows at once are too many."""
        with self._lock:
            self.times.shrink(rows)

    def withdraw(self, job: Job) -> None:
        """Drop a request that has not begun; does nothing for one that has."""
        with self._lock:
            if job in self._pending:
                self._remove([self._pending.index(job)])
                self._tell()

    def expire(self) -> Refused:
        """Take out those whose deadline has passed."""
        with self._lock:
            now_s = self._clock()
            late = [index for index, job in enumerate(self._pending) if job.deadline_s <= now_s]
            jobs = self._remove(late)
            self._tell()
        return [(job, self._gave_up(job, now_s)) for job in jobs]

    def give_up(self, job: Job) -> DeadlineError | None:
        """Take out a request whose deadline has passed; ``None`` when it has begun or ended by now."""
        with self._lock:
            if job not in self._pending:
                return None
            self._remove([self._pending.index(job)])
            self._tell()
            return self._gave_up(job, self._clock())

    # --- the whole queue ----------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, deadline_s: float | None = None) -> Iterator[Lease[T]]:
        """An instance for the length of the block, ahead of all that wait; its time counts for nothing.

        Raises:
            DeadlineError: none became free by ``deadline_s``.
            QueueClosedError: no more requests are taken.
        """
        with self._lock:
            timeout_s = None if deadline_s is None else min(max(0.0, deadline_s - self._clock()), threading.TIMEOUT_MAX)
            self._watchers += 1
            try:
                free = self._changed.wait_for(lambda: self._closed or self._free, timeout_s)
            finally:
                self._watchers -= 1
            if self._closed:
                raise QueueClosedError(self._name)
            if not free:
                raise DeadlineError(f"model {self._name}", "no instance became free in time", "", _ADVICE)
            lease = Lease(self._free.pop())
            self._leases += 1
        try:
            yield lease
        finally:
            with self._lock:
                self._leases -= 1
                self._free.append(lease.instance)
                self._tell()
            if self.ready and self.on_ready is not None:
                self.on_ready()

    def close(self) -> None:
        """Take no more requests, and return once those under way (waiting ones included) are done."""
        with self._lock:
            self._closed = True
            self._watchers += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running and not self._pending and not self._leases)
            self._watchers -= 1

    # --- with the lock held -------------------------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        return bool(self._free) and len(self._running) < self._concurrency.limit

    def _next_run_s(self) -> float:
        head = self._pending[0]
        waiting = len(self._pending) if head.key is not Waiting.ALONE else 1
        return self.times.predict(max(head.rows, min(waiting, self.times.limit)))

    def _load(self, now_s: float) -> Load:
        predict = self.times.predict
        free_at_s = [batch.started_s + predict(batch.rows) * batch.runs for batch in self._running]
        free = max(0, min(len(self._free), self._concurrency.limit - len(self._running)))
        free_at_s += [now_s] * free
        if not free_at_s:  # all are leased
            free_at_s = [now_s + self.times.p50_s]
        return Load(free_at_s, free, self._capacity, self.times.limit, self._last_start_s, not self._running)

    def _refusal(self, job: Job, now_s: float) -> EdgeKitError | None:
        load = self._load(now_s)
        decision = decide(load, self._pending, job, self.times.predict, now_s)
        if decision is Decision.ACCEPT:
            return None
        if decision is Decision.PROBE:
            self._probe_next = True
            return None
        thing = f"model {self._name}"
        if decision is Decision.REFUSE_FULL:
            return OverloadedError(thing, f"{len(self._pending)} requests wait already", f"at most {self._capacity}", "send it again later")
        remaining_ms = (job.deadline_s - now_s) * 1e3
        if decision is Decision.REFUSE_EXPIRED:
            return DeadlineError(thing, f"the deadline passed {-remaining_ms:.1f} ms before the request could run", "", _ADVICE)
        needed_s = estimated_wait_s(load, self._pending, self.times.predict, now_s) + self.times.predict(job.rows)
        return DeadlineError(
            thing, f"the deadline leaves {remaining_ms:.1f} ms", f"about {needed_s * 1e3:.1f} ms for queue and run", _ADVICE
        )

    def _gave_up(self, job: Job, now_s: float) -> DeadlineError:
        waited_ms = (now_s - job.arrived_s) * 1e3
        return DeadlineError(f"model {self._name}", f"queued for {waited_ms:.1f} ms, which leaves too little time", "", _ADVICE)

    def _start_plainly(self, jobs: list[Job], now_s: float, longest_s: float) -> Batch[T] | None:
        """The most usual case: nothing waits, an instance is free, and all that arrived may run in one call. ``None`` leaves the queue as it was."""
        if self._pending or not jobs or not self._may_start() or self._probe_next:
            return None
        key, rows = jobs[0].key, 0
        for job in jobs:
            if job.deadline_s != math.inf or job.key != key:
                return None
            rows += job.rows
        if len(jobs) > 1 and (key is Waiting.ALONE or rows > self.times.limit):
            return None
        if longest_s != math.inf and not 0 < self.times.predict(rows) <= longest_s:
            return None
        for job in jobs:
            job.arrived_s = now_s
            job.queue = self
        batch = Batch(self._free.pop(), jobs, rows, now_s)
        self._since_aged += 1
        self._running.append(batch)
        self._last_start_s = now_s
        return batch

    def _enter_plainly(self, jobs: list[Job], now_s: float) -> bool:
        """The usual case without a decision for each: equals with no deadline, and there is room. False leaves the queue as it was."""
        pending = self._pending
        if len(pending) + len(jobs) > self._capacity or (pending and (self._with_deadline or not self._in_arrival_order)):
            return False
        level = pending[-1].level if pending else jobs[0].level
        for job in jobs:
            if job.deadline_s != math.inf or job.level != level:
                return False
            job.arrived_s = now_s
            job.queue = self
        self._in_arrival_order = True
        pending += jobs
        return True

    def _insert(self, job: Job) -> None:
        pending = self._pending
        if not pending:
            self._in_arrival_order = True
            pending.append(job)
        elif pending[-1].deadline_s == job.deadline_s and pending[-1].level == job.level:
            pending.append(job)
        else:
            insort(pending, job, key=_order)
            self._in_arrival_order = self._in_arrival_order and pending[-1] is job
        if job.deadline_s != math.inf:
            self._with_deadline += 1

    def _remove(self, indexes: Sequence[int]) -> list[Job]:
        if not indexes:
            return []
        pending = self._pending
        if len(indexes) == len(pending):
            jobs = [pending[index] for index in indexes]
            self._pending = []
        elif indexes[-1] == len(indexes) - 1 and indexes[0] == 0:
            jobs, self._pending = pending[: len(indexes)], pending[len(indexes) :]
        else:
            jobs = [pending[index] for index in indexes]
            gone = set(indexes)
            self._pending = [job for index, job in enumerate(pending) if index not in gone]
        if self._with_deadline:
            self._with_deadline -= sum(1 for job in jobs if job.deadline_s != math.inf)
        return jobs

    def _take(self, now_s: float, longest_s: float, refused: Refused) -> Batch[T] | None:
        """The next batch; something waits and an instance is free."""
        if self._with_deadline and not self._probe_next:
            predict, soonest_s = self.times.predict, now_s + self.times.p50_s
            hopeless = [
                index
                for index, job in enumerate(self._pending)
                if job.deadline_s < soonest_s or (job.rows > 1 and job.deadline_s < now_s + predict(job.rows))
            ]
            refused += [(job, self._gave_up(job, now_s)) for job in self._remove(hopeless)]
            if not self._pending:
                return None
        chosen, aged = self._choose(now_s)
        rows = sum([self._pending[index].rows for index in chosen])
        run_s = self.times.predict(rows)
        if longest_s != math.inf and not 0 < run_s <= longest_s:
            return None
        if run_s and len(self._pending) > 1 and not self._with_deadline and not aged:
            row = self._in_a_row(run_s, longest_s)
            if len(row) > 1:
                chosen = row
            elif longest_s == math.inf and run_s >= _SHARED_S:
                chosen = chosen[: self._share_of(len(chosen))]
                rows = sum([self._pending[index].rows for index in chosen])
        self._since_aged = 0 if aged else self._since_aged + 1
        batch = Batch(self._free.pop(), self._remove(chosen), rows, now_s)
        batch.serial = len(batch.jobs) > 1 and self._apart(batch.jobs[0])
        batch.probe, self._probe_next = self._probe_next, False
        batch.saturated = bool(self._pending)
        self._running.append(batch)
        self._last_start_s = now_s
        return batch

    def _in_a_row(self, run_s: float, longest_s: float) -> list[int]:
        """Those at the front that do not run with others and may go one after the other in one go; fewer than two for "one batch as usual"."""
        pending, rows = self._pending, self._pending[0].rows
        brief = int(min(longest_s, _ROW_S) / run_s)
        part = min(len(pending) // (1 + self._concurrency.limit), int(min(longest_s, _LONG_ROW_S) / run_s))
        count = min(len(pending), max(brief, part))
        stop = next((index for index in range(count) if not self._apart(pending[index]) or pending[index].rows != rows), count)
        return list(range(stop))

    def _apart(self, job: Job) -> bool:
        """Each request is a run of its own."""
        return job.key is Waiting.ALONE or (self.times.limit == 1 and self.times.p50_s >= TINY_S)

    def _share_of(self, count: int) -> int:
        """How many of a batch leave as much for each other instance that is free: a core that stands idle makes nothing cheaper."""
        return math.ceil(count / min(len(self._free), self._concurrency.limit - len(self._running)))

    def _choose(self, now_s: float) -> tuple[list[int], bool]:
        pending, limit = self._pending, self.times.limit
        count = len(pending)
        if count == 1:
            return [0], False
        if not self._with_deadline and self._in_arrival_order:  # the usual case; `choose_batch` would say the same
            key, rows, index = pending[0].key, 0, 0
            if key is Waiting.ALONE:
                return [0], False
            for index, job in enumerate(pending):
                rows += job.rows
                if job.key != key or (rows > limit and index):
                    break
            else:
                return list(range(count)), False
            if rows > limit:
                self.times.held_back()
                return list(range(index)), False
        load = self._load(now_s)
        free_s = sorted(max(now_s, at_s) for at_s in load.free_at_s)
        return choose_batch(pending, free_s, self.times.predict, limit, may_age=self._since_aged >= AGED_EVERY - 1)

    def _tell(self) -> None:
        if self._watchers:
            self._changed.notify_all()


def _order(job: Job) -> tuple[int, float, int]:
    return job.level, job.deadline_s, job.sequence
