"""Who runs when: a bounded first-come queue in front of N instances of a model, and deadlines that queueing spends from.

`decide` is the rule and pure; `InstanceQueue` applies it with locks and clocks. Requests run in the thread that brings them: an instance is a permit, not a thread, so
an idle model adds no hand-over. A batcher (a later change) sits in front of `InstanceQueue.lease`: whoever gets an instance takes others along.
"""

from __future__ import annotations

import bisect
import contextlib
import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from edgekit.errors import DeadlineError, OverloadedError

__all__ = ["Decision", "InstanceQueue", "Lease", "Load", "QueueClosedError", "ServiceTimes", "decide", "estimated_wait_s"]

# After a second without a run, what was measured may no longer hold (contention has passed, the clock has risen): one request is let through to measure again.
PROBE_AFTER_S = 1.0
_WINDOW = 63  # service times remembered; odd, so that the median is one of them

T = TypeVar("T")


class Decision(enum.Enum):
    """What becomes of a request that arrives."""

    RUN = "run"
    PROBE = "probe"  # run, though the estimate says it is hopeless: the estimate is old
    WAIT = "wait"
    REFUSE_FULL = "full"
    REFUSE_EXPIRED = "expired"
    REFUSE_HOPELESS = "hopeless"


class Load(NamedTuple):
    """What the decision looks at.

    Attributes:
        instances: how many requests may run at once.
        capacity: how many more may wait.
        running_since_s: when each running request began.
        queued: how many wait.
        service_p50_s: median time of a run; 0 while unknown.
        last_start_s: when a run last began (or the queue was made).
    """

    instances: int
    capacity: int
    running_since_s: tuple[float, ...]
    queued: int
    service_p50_s: float
    last_start_s: float


def estimated_wait_s(load: Load, now_s: float) -> float:
    """How long a request that arrives now waits for an instance: work ahead of it, spread over the instances. 0 when one is free."""
    if len(load.running_since_s) < load.instances:
        return 0.0
    residual_s = sum(max(0.0, load.service_p50_s - (now_s - since)) for since in load.running_since_s)
    return (residual_s + load.queued * load.service_p50_s) / load.instances


def decide(load: Load, deadline_s: float | None, now_s: float) -> Decision:
    """Run, wait or refuse a request that arrives at ``now_s`` and must be answered by ``deadline_s``."""
    idle = not load.running_since_s
    free = len(load.running_since_s) < load.instances
    if deadline_s is not None:
        remaining_s = deadline_s - now_s
        if remaining_s <= 0:
            return Decision.REFUSE_EXPIRED
        if estimated_wait_s(load, now_s) + load.service_p50_s > remaining_s:
            return Decision.PROBE if idle and now_s - load.last_start_s >= PROBE_AFTER_S else Decision.REFUSE_HOPELESS
    if free:
        return Decision.RUN
    return Decision.WAIT if load.queued < load.capacity else Decision.REFUSE_FULL


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

    @property
    def p50_s(self) -> float:
        """The median; 0 before the first run."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0


class QueueClosedError(Exception):
    """The queue takes no more requests: its model was unloaded or replaced."""


class Lease(Generic[T]):
    """The right to use one instance."""

    __slots__ = ("failed", "instance", "probe", "queue_s", "started_s")

    def __init__(self, instance: T, started_s: float, queue_s: float, *, probe: bool) -> None:
        self.instance = instance
        self.started_s = started_s
        self.queue_s = queue_s
        self.probe = probe
        self.failed = False  # set by whoever runs: the time of a failed run says nothing about good ones


class _Waiter(Generic[T]):
    """One request in the queue. ``wake`` is released once ``lease`` or ``refused`` is set."""

    __slots__ = ("arrived_s", "deadline_s", "lease", "refused", "wake")

    def __init__(self, arrived_s: float, deadline_s: float | None) -> None:
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.lease: Lease[T] | None = None
        self.refused = False
        self.wake = threading.Lock()  # a lock held from the start is the cheapest one-shot event there is
        self.wake.acquire()


class InstanceQueue(Generic[T]):
    """N instances of one model behind a bounded queue. Safe from several threads.

    Args:
        name: for error lines.
        instances: what is handed out; the same object may occur more than once when it can run side by side.
        capacity: how many requests may wait.
        clock: monotonic seconds.
    """

    def __init__(self, name: str, instances: Sequence[T], capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._free = list(instances)
        self._count = len(self._free)
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._waiting: deque[_Waiter[T]] = deque()
        self._running: list[Lease[T]] = []
        self._times = ServiceTimes()
        self._last_start_s = clock()
        self._closed = False

    @contextlib.contextmanager
    def lease(self, deadline_s: float | None) -> Iterator[Lease[T]]:
        """An instance for the length of the block.

        Raises:
            DeadlineError: the deadline has passed, or cannot be met.
            OverloadedError: the queue is full.
            QueueClosedError: no more requests are taken.
        """
        lease = self._acquire(deadline_s)
        try:
            yield lease
        except BaseException:
            lease.failed = True
            raise
        finally:
            self._release(lease)

    @property
    def instances(self) -> int:
        """How many requests may run at once."""
        return self._count

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._running)

    def estimated_latency_s(self) -> float:
        """What a request that arrives now would take, waiting included; 0 while nothing was measured."""
        with self._lock:
            return estimated_wait_s(self._load(), self._clock()) + self._times.p50_s

    def close(self) -> None:
        """Take no more requests, and return once those under way (waiting ones included) are done."""
        with self._lock:
            self._closed = True
            self._drained.wait_for(lambda: not self._running and not self._waiting)

    def _load(self) -> Load:
        running = tuple(lease.started_s for lease in self._running)
        return Load(self._count, self._capacity, running, len(self._waiting), self._times.p50_s, self._last_start_s)

    def _acquire(self, deadline_s: float | None) -> Lease[T]:
        with self._lock:
            if self._closed:
                raise QueueClosedError(self._name)
            now_s = self._clock()
            load = self._load()
            decision = decide(load, deadline_s, now_s)
            if decision in {Decision.RUN, Decision.PROBE}:
                return self._grant(now_s, now_s, probe=decision is Decision.PROBE)
            if decision is not Decision.WAIT:
                raise self._refusal(decision, load, deadline_s, now_s)
            waiter: _Waiter[T] = _Waiter(now_s, deadline_s)
            self._waiting.append(waiter)
        return self._wait(waiter)

    def _wait(self, waiter: _Waiter[T]) -> Lease[T]:
        deadline_s = waiter.deadline_s
        waiter.wake.acquire(timeout=-1 if deadline_s is None else min(max(0.0, deadline_s - self._clock()), threading.TIMEOUT_MAX))
        with self._lock:
            if waiter.lease is not None:
                return waiter.lease
            if not waiter.refused:
                self._waiting.remove(waiter)
                self._tell_if_drained()
        waited_ms = (self._clock() - waiter.arrived_s) * 1e3
        raise DeadlineError(f"model {self._name}", f"queued for {waited_ms:.1f} ms, which leaves too little time", "", _ADVICE)

    def _grant(self, arrived_s: float, now_s: float, *, probe: bool = False) -> Lease[T]:
        lease = Lease(self._free.pop(), now_s, now_s - arrived_s, probe=probe)
        self._running.append(lease)
        self._last_start_s = now_s
        return lease

    def _release(self, lease: Lease[T]) -> None:
        with self._lock:
            now_s = self._clock()
            self._running.remove(lease)
            self._free.append(lease.instance)
            if not lease.failed:
                self._times.add(now_s - lease.started_s, restart=lease.probe)
            while self._waiting and self._free:
                waiter = self._waiting.popleft()
                if waiter.deadline_s is not None and waiter.deadline_s - now_s < self._times.p50_s:
                    waiter.refused = True
                else:
                    waiter.lease = self._grant(waiter.arrived_s, now_s)
                waiter.wake.release()
            self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self._closed and not self._running and not self._waiting:
            self._drained.notify_all()

    def _refusal(self, decision: Decision, load: Load, deadline_s: float | None, now_s: float) -> DeadlineError | OverloadedError:
        thing = f"model {self._name}"
        if decision is Decision.REFUSE_FULL:
            return OverloadedError(thing, f"{load.queued} requests wait already", f"at most {self._capacity}", "send it again later")
        remaining_ms = ((deadline_s or now_s) - now_s) * 1e3
        if decision is Decision.REFUSE_EXPIRED:
            return DeadlineError(thing, f"the deadline passed {-remaining_ms:.1f} ms before the request could run", "", _ADVICE)
        needed_ms = (estimated_wait_s(load, now_s) + load.service_p50_s) * 1e3
        return DeadlineError(thing, f"the deadline leaves {remaining_ms:.1f} ms", f"about {needed_ms:.1f} ms for queue and run", _ADVICE)


_ADVICE = "allow more time, or send fewer requests at once"
