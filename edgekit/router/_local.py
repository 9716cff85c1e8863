"""The device as a tier: a bounded queue, a few workers, and what is learned from every run.

Requests that can still meet their deadline go before those that are already late. One that has become hopeless while it waited is given back when the
cloud can still be asked, and joins the late ones when it cannot. While all traffic goes to the cloud, an idle worker runs a shadow of the last
offloaded request now and then, off every request's path, so that a recovered device is noticed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import structs

from edgekit.errors import DeadlineError, EdgeKitError, EngineError, OverloadedError, RequestError
from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health, Tier, TierEstimate
from edgekit.router._estimators import LocalEstimator
from edgekit.router._work import Answer, OnDone, Work

__all__ = ["LocalJob", "LocalRunner", "LocalTier"]

Clock = Callable[[], float]
PROBE_LIMIT_S = 10.0


class LocalRunner(Protocol):
    """What runs a request on the device: an in-process session, or a client of an edge server."""

    def serves(self, model: str, version: str) -> bool:
        """The device has this model."""
        ...

    def run(self, work: Work) -> Answer:
        """Answer, or raise `EdgeKitError`; called from several workers at once."""
        ...

    def close(self) -> None:
        """Release what the runner opened."""
        ...


class LocalJob:
    """One request in the device's queue.

    Attributes:
        late: it cannot meet its deadline and runs when nothing else waits.
        returnable: the cloud can still be asked, so do not run it in vain.
        given_back: it ended without having run, for that reason.
    """

    __slots__ = ("given_back", "late", "on_done", "returnable", "ticket", "work")

    def __init__(self, work: Work, on_done: OnDone, late: bool, returnable: bool) -> None:
        self.work = work
        self.on_done = on_done
        self.late = late
        self.returnable = returnable
        self.ticket = -1
        self.given_back = False


class LocalTier:
    """Queue, workers and estimator of the device. Safe from several threads.

    Args:
        runner: runs one request.
        workers: requests that run at the same time.
        capacity: requests that may wait.
        clock: monotonic seconds.
    """

    def __init__(self, runner: LocalRunner, workers: int, capacity: int, clock: Clock = time.monotonic) -> None:
        self._runner = runner
        self._capacity = capacity
        self._clock = clock
        self._estimator = LocalEstimator(workers)
        self._breaker = Breaker()
        self._in_time: deque[LocalJob] = deque()
        self._late: deque[LocalJob] = deque()
        self._shadow: Work | None = None
        self._closed = False
        self._wake = threading.Condition(threading.Lock())
        self._threads = [threading.Thread(target=self._loop, name=f"edgekit-router-edge-{index}", daemon=True) for index in range(workers)]
        for thread in self._threads:
            thread.start()

    def seed(self, model: str, payload_bytes: int, service_s: Iterable[float]) -> None:
        """Give the estimator measured warm-up runs."""
        with self._wake:
            self._estimator.seed(model, payload_bytes, service_s, self._clock())

    def estimate(self, work: Work, budget_s: float, now: float) -> TierEstimate:
        """What the device can promise for ``work`` within ``budget_s`` from now."""
        if not self._runner.serves(work.model, work.version):
            return TierEstimate(0.0, 0.0, 0.0, False, Health.ABSENT)
        with self._wake:
            return self._estimator.estimate(work.model, work.payload_bytes, budget_s, now, self._health())

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._in_time) + len(self._late)

    def submit(self, job: LocalJob) -> None:
        """Queue a job; its ``on_done`` hears the end, also when the queue is full."""
        with self._wake:
            refusal = self._refusal()
            if refusal is None:
                job.ticket = self._estimator.enqueue(job.work.model, job.work.payload_bytes, self._clock())
                (self._late if job.late else self._in_time).append(job)
                self._wake.notify()
        if refusal is not None:
            job.on_done(Tier.EDGE, refusal)

    def cancel(self, job: LocalJob) -> None:
        """Drop a job that still waits; one that runs ends by itself, unheard."""
        with self._wake:
            for queue in (self._in_time, self._late):
                if job in queue:
                    queue.remove(job)
                    self._estimator.drop(job.ticket)
                    return

    def offloaded(self, work: Work, budget_s: float, now: float) -> None:
        """A request went to the cloud that might have run here within ``budget_s``; kept as the next shadow probe."""
        with self._wake:
            unplanned = self._shadow is None or self._estimator.next_probe_s == math.inf
            self._estimator.offloaded(budget_s, now)
            if unplanned:  # an idle worker sleeps until the next probe that it knows of
                self._wake.notify()
            self._shadow = work

    def outlook(self, job: LocalJob, until_s: float, now: float) -> tuple[float, float]:
        """Probability that a submitted job ends by ``until_s``, and when to ask again; see `LocalEstimator.outlook`."""
        with self._wake:
            return self._estimator.outlook(job.ticket, job.work.model, job.work.payload_bytes, until_s, now)

    def close(self, timeout_s: float = 5.0) -> None:
        """Refuse what waits, let what runs end, join the workers."""
        with self._wake:
            self._closed = True
            waiting = [*self._in_time, *self._late]
            self._in_time.clear()
            self._late.clear()
            self._wake.notify_all()
        for job in waiting:
            job.on_done(Tier.EDGE, _closed_error())
        for thread in self._threads:
            thread.join(timeout_s)
        self._runner.close()

    def _health(self) -> Health:
        if self.waiting >= self._capacity:
            return Health.FULL
        return Health.OK if self._breaker.closed else Health.FAILING

    def _refusal(self) -> EdgeKitError | None:
        if self._closed:
            return _closed_error()
        if self.waiting >= self._capacity:
            return OverloadedError("edge", f"{self._capacity} requests wait already", "", "send fewer requests, or add a cloud tier")
        return None

    def _loop(self) -> None:
        while True:
            with self._wake:
                job = self._next()
            if job is None:
                return
            self._run(job)

    def _next(self) -> LocalJob | None:
        """Wait for something to run; the lock is held. ``None`` when closed."""
        while not self._closed:
            now = self._clock()
            job = self._pop(now)
            if job is not None:
                self._estimator.start(job.ticket, job.work.model, job.work.payload_bytes, now)
                return job
            if self._shadow is not None and self._probe_due(now):
                return self._start_probe(self._shadow, now)
            self._wake.wait(self._idle_s(now))
        return None

    def _pop(self, now: float) -> LocalJob | None:
        while self._in_time:
            job = self._in_time.popleft()
            typical, _ = self._estimator.service(job.work.model, job.work.payload_bytes, now)
            if now + typical <= job.work.deadline_s:
                return job
            if job.returnable:
                self._estimator.drop(job.ticket)
                job.given_back = True
                job.on_done(Tier.EDGE, DeadlineError("edge", "cannot answer in time any more"))
            else:
                self._late.append(job)
        while self._late:
            job = self._late.popleft()
            if now < job.work.limit_s:
                return job
            self._estimator.drop(job.ticket)
            job.on_done(Tier.EDGE, DeadlineError("edge", "the request waited until its time had run out", "", "add capacity"))
        return None

    def _probe_due(self, now: float) -> bool:
        return self._estimator.probe_due(now) if self._breaker.closed else self._breaker.probe_due(now)

    def _start_probe(self, work: Work, now: float) -> LocalJob:
        if not self._breaker.closed:
            self._breaker.start_probe()
        # Its own time, and nothing that would make an edge server take it for the client's request (a sequence, say).
        work = structs.replace(work, deadline_s=now + PROBE_LIMIT_S, limit_s=now + PROBE_LIMIT_S, id="", parameters={})
        job = LocalJob(work, _unheard, late=True, returnable=False)
        job.ticket = self._estimator.enqueue(work.model, work.payload_bytes, now)
        self._estimator.start(job.ticket, work.model, work.payload_bytes, now)
        return job

    def _idle_s(self, now: float) -> float | None:
        """How long a worker may sleep: until the next shadow probe, or for good."""
        if self._shadow is None:
            return None
        at = self._estimator.next_probe_s if self._breaker.closed else self._breaker.probe_at_s
        return max(0.001, min(at - now, 60.0))

    def _run(self, job: LocalJob) -> None:
        result: Answer | BaseException
        try:
            result = self._runner.run(job.work)
        except EdgeKitError as exc:
            result = exc
        except Exception as exc:  # noqa: BLE001 - a worker must outlive whatever an engine raises
            result = EngineError("edge", f"failed with {type(exc).__name__}: {exc}")
            result.__cause__ = exc
        with self._wake:
            self._learn(job, result, self._clock())
        job.on_done(Tier.EDGE, result)

    def _learn(self, job: LocalJob, result: Answer | BaseException, now: float) -> None:
        work = job.work
        if isinstance(result, RequestError):
            self._estimator.drop(job.ticket)
            self._recover(now)  # a refusal of the request is an answer
        elif isinstance(result, Answer):
            self._estimator.finish(job.ticket, work.model, work.payload_bytes, now)
            self._recover(now)
        elif isinstance(result, DeadlineError):  # slow is not broken: it is a sample, and all that is known is its least value
            self._estimator.finish(job.ticket, work.model, work.payload_bytes, now, work.deadline_s)
            self._breaker.probe_ended(False, now)
        else:
            self._estimator.drop(job.ticket)
            self._breaker.failed(now)
            self._breaker.probe_ended(False, now)
            self._shadow = work
            self._wake.notify()

    def _recover(self, now: float) -> None:
        """The device answered, whoever asked."""
        if not self._breaker.closed:
            self._breaker.start_probe()
            self._breaker.probe_ended(True, now)
        self._breaker.succeeded()
        if not self._estimator.probe_due(now):
            self._shadow = None


def _unheard(tier: Tier, result: Answer | BaseException) -> None:
    """Nobody waits for a shadow probe."""


def _closed_error() -> EdgeKitError:
    return OverloadedError("router", "is closed", "", "make a new one")
