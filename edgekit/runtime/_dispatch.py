"""From submitted requests to answers: brings requests to their model's queue, runs what can run, tells everyone."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from edgekit.errors import DeadlineError, EdgeKitError, EngineError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.runtime._execute import Executed, execute
from edgekit.runtime._job import Done, Job
from edgekit.runtime._kept_models import KeptModels
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._scheduler import Batch, InstanceQueue, QueueClosedError, Refused
from edgekit.runtime._session import Session
from edgekit.runtime._workers import Workers
from edgekit.runtime.engines._base import usable_cpus

__all__ = ["INLINE_S", "Dispatcher", "ResultObserver"]

_log = logging.getLogger(__name__)
Queue = InstanceQueue[Session]

INLINE_S = 1e-3
"""A turn ends once it has run batches in the transport's own thread for so long, and leaves what takes longer to the workers.

Handing a request to a worker and its answer back added 230 to 310 us to one of 44 to 60 us (``benchmarks/scheduler.py``, two busy cores: two wake-ups and the
interpreter lock), so below a millisecond it would cost a quarter and more; and nobody notices a health check that waits a millisecond.
"""
_INLINE_CORES_S = 2.5e-4
"""The same where other cores could run the batch meanwhile. What the hand-over costs, the other core gives back from there on."""
_ONE_CORE_S = 10e-3
"""On one core, the longest batch that runs in the thread of a transport that comes back for the rest (`Dispatcher.step`): a worker would take the core from it
anyway, at the price of the hand-over and of a switch for each piece of a request that arrives meanwhile (ADR 0027 has figures). Health may wait so long."""
_BESIDE_S = 5e-3
"""On several cores, the longest batch that such a thread runs beside the workers: answers of theirs, and health, wait so long."""
_ONE_BATCH = math.ulp(0.0)
"""A budget that the first batch uses up: a caller that waits for its own answer does not go on to serve others."""


class ResultObserver(Protocol):
    """Called once for every request whose model was found; must be quick and safe from several threads.

    ``outcome`` is ``ok``; ``late`` (ran, and ended after its deadline); ``rejected`` (refused before it ran); or ``error`` (the engine failed).
    Nothing is told about one that was cancelled before it ran. An observer that has a method ``together(model, version, engine, queue_s, compute_s)``
    is told with that about requests that ran together and went well: ``queue_s`` is a list with one entry each.
    """

    def __call__(self, model: str, version: str, engine: str, queue_s: float, compute_s: float, outcome: str) -> None: ...


class Dispatcher:
    """See `SteppingCore`. Safe from several threads.

    Args:
        resolve: the model that a request goes to; raises `EdgeKitError`.
        observer: told about every request.
        cores: for the workers; 0 for the CPUs that this process may use.
    """

    def __init__(self, resolve: Callable[[InferRequest], LoadedModel], observer: ResultObserver | None, cores: int = 0) -> None:
        self._resolve = resolve
        self._observer = observer
        self._together = getattr(observer, "together", None)
        self._inbox: deque[Job] = deque()
        self._cores = cores or usable_cpus()
        self._inline_s = INLINE_S if self._cores == 1 else _INLINE_CORES_S
        self._kept = KeptModels()
        self._workers = Workers(self._cores, self._cost, self._run, self._refuse, self._lend)

    def submit(self, request: InferRequest, done: Done) -> Job:
        """Take a request for the next `turn`."""
        job = Job(request, done)
        self._inbox.append(job)
        return job

    def turn(self) -> None:
        """Bring what was submitted to its queues; run here what is short, and leave the rest to the workers, with what `step` left."""
        left_s = self._inline_s
        for model, jobs in self._grouped(self._received()):
            left_s -= self._offer(model, jobs, left_s, left_s, self._to_workers)
        if self._kept:
            self._hand_over()

    def step(self) -> bool:
        """See `SteppingCore.step`."""
        if self._cores > 1:
            return self._step_beside_workers()
        kept, left_s = self._kept, INLINE_S
        for model, jobs in self._grouped(self._received()):
            for job in jobs:
                job.stepped = True
            # Where others wait for their turn, these do too.
            left_s -= self._offer(model, jobs, _ONE_CORE_S, 0.0 if kept else left_s, kept.add)
        while left_s > 0 and (next_model := kept.next(time.monotonic())) is not None:
            spent_s = self._offer(next_model, [], _ONE_CORE_S, left_s, kept.add)
            if not spent_s:  # too long, or somebody else runs it
                kept.drop(next_model)
                self._to_workers(next_model)
            left_s -= spent_s
        return bool(kept)

    def _step_beside_workers(self) -> bool:
        """`step` on several cores: this thread runs what the workers on the other cores cannot begin. One more worker would only take its core from it, piece by piece."""
        left_s = self._inline_s
        for model, jobs in self._grouped(self._received()):
            left_s -= self._offer(model, jobs, left_s, left_s, self._to_all)
        kept, left_s, blocked = self._kept, INLINE_S, []
        while left_s > 0 and (next_model := kept.next(time.monotonic())) is not None:
            queue = next_model.queue
            if queue.queued <= self._workers.spare() or self._cost(queue) > 1 or not 0 < queue.next_run_s() <= _BESIDE_S:
                continue  # the workers have it
            self._workers.lend_core(_BESIDE_S)
            spent_s = self._offer(next_model, [], _BESIDE_S, left_s, self._to_all)
            left_s -= spent_s
            if not spent_s:
                kept.drop(next_model)
                blocked.append(next_model)
        more = bool(kept)
        for model in blocked:  # all of its instances run: the answers of the first that ends bring this thread back
            kept.add(model)
        return more

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer in the calling thread, or wait for whoever does.

        Raises:
            EdgeKitError: see `RuntimeCore.infer`.
        """
        answer = _Answer()
        job = Job(request, answer)
        for model, jobs in self._grouped([job]):
            self._offer(model, jobs, math.inf, _ONE_BATCH, self._to_workers)
        until_s = job.deadline_s
        while not answer.wait(until_s):
            error = job.queue.give_up(job)
            if error is not None:
                self._refuse([(job, error)])
            until_s = math.inf  # answered just now, or it runs and its end is near
        if isinstance(answer.result, Exception):
            raise answer.result
        assert answer.result is not None
        return answer.result

    def close(self) -> None:
        """End the workers. The queues are closed by then."""
        self._workers.close()

    # --- in -----------------------------------------------------------------------------------------------------------------------------

    def _received(self) -> list[Job]:
        jobs: list[Job] = []
        inbox = self._inbox
        try:
            while inbox:
                jobs.append(inbox.popleft())
        except IndexError:  # another thread's turn took it
            pass
        return jobs

    def _grouped(self, jobs: list[Job]) -> list[tuple[LoadedModel, list[Job]]]:
        """Requests that can be answered by their models, the model first that used the least; the others are answered here."""
        groups: dict[LoadedModel, list[Job]] = {}
        for job in jobs:
            if job.cancelled:
                continue
            try:
                model = self._resolve(job.request)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this request's answer
                _answer(job, exc)
                continue
            job.model = model
            try:
                model.plan.prepare(job)
            except Exception as exc:  # noqa: BLE001 - this request's, whatever it is; the others of the turn go on
                job.arrived_s = time.monotonic()
                self._refuse([(job, exc if isinstance(exc, EdgeKitError) else _unexpected(model, exc))])
                continue
            group = groups.get(model)
            if group is None:
                groups[model] = [job]
            else:
                group.append(job)
        if len(groups) < 2:
            return list(groups.items())
        return sorted(groups.items(), key=lambda group: group[0].queue.share.virtual_s)

    def _offer(self, model: LoadedModel, jobs: list[Job], longest_s: float, budget_s: float, leave: Callable[[LoadedModel], None]) -> float:
        """Queue jobs with their model, and run batches of it here that take ``longest_s`` at most, until that took ``budget_s``; ``leave`` the rest.

        Returns:
            the seconds it took.
        """
        queue = model.queue
        if queue.on_ready is None:
            queue.on_ready = lambda: self._workers.wake(queue)
        if budget_s <= 0:
            longest_s = 0.0
        try:
            batch, refused = queue.start(jobs, longest_s) if jobs else queue.take(longest_s)
        except QueueClosedError:  # replaced or unloaded since it was resolved; look again
            return sum(self._offer(other, again, longest_s, budget_s, leave) for other, again in self._grouped(jobs))
        spent_s = 0.0
        while batch is not None:
            if refused:
                self._refuse(refused)
            spent_s += self._run(queue, batch)
            if spent_s >= budget_s or not queue.ready:
                break
            batch, refused = queue.take(longest_s)
        else:
            if refused:
                self._refuse(refused)
        if queue.queued:
            leave(model)
        return spent_s

    def _hand_over(self) -> None:
        while (model := self._kept.next(time.monotonic())) is not None:
            self._to_workers(model)

    def _to_workers(self, model: LoadedModel) -> None:
        self._workers.wake(model.queue)

    def _to_all(self, model: LoadedModel) -> None:
        """The workers take it, and so does the thread that comes back."""
        self._workers.wake(model.queue)
        self._kept.add(model)

    def _lend(self, queue: Queue, batch: Batch[Session]) -> bool:
        """After a worker's batch: whether the transport's thread goes on with the queue. Its answers wake that thread, and then it calls `step`."""
        jobs = batch.jobs
        if self._cores > 1 or not queue.ready or not any(job.stepped for job in jobs) or not 0 < queue.next_run_s() <= _ONE_CORE_S:
            return False
        self._kept.add(jobs[0].model)
        return True

    # --- out ----------------------------------------------------------------------------------------------------------------------------

    def _run(self, queue: Queue, batch: Batch[Session]) -> float:
        """Run a batch and answer its requests; returns its seconds."""
        jobs = batch.jobs
        model: LoadedModel = jobs[0].model
        try:
            results, too_many = execute(model, batch.instance.engine, jobs, apart=batch.serial)
            if too_many:
                _log.warning("model %s: %d rows at once fail, one by one they do not; batches stay smaller", model.name, batch.rows)
                queue.shrink(batch.rows)
        except Exception as exc:  # noqa: BLE001 - the run's boundary
            # The requests get an error, the instance goes back, and what waits goes on.
            error = _unexpected(model, exc)
            now_s = time.monotonic()
            results = [Executed([job], [error], [batch.started_s], 0.0, 0.0, 0.0, now_s) for job in jobs]
        failed = len(results) > 1 and not batch.serial
        for result in results:
            if result.answers[0].__class__ is not InferResponse:
                failed = True
        seconds = queue.finish(batch, failed=failed)
        for executed in results:
            self._tell(model, executed)
        return seconds

    def _tell(self, model: LoadedModel, executed: Executed) -> None:
        """Count and answer what ran in one call, or in a row."""
        jobs, answers, starts_s, input_s, infer_s, output_s, end_s, runs = executed
        queue_s = []
        plain, traced = True, False
        for job, answer, started_s in zip(jobs, answers, starts_s, strict=True):
            queue_s.append(started_s - job.arrived_s)
            if job.request.trace is not None:
                traced = True
            if job.deadline_s < end_s or answer.__class__ is not InferResponse:
                plain = False
        if traced:
            _trace(executed)
        if plain:
            model.statistics.ran(len(jobs) // runs, len(jobs), sum(queue_s), (input_s, infer_s, output_s), runs)
            for job, answer in zip(jobs, answers, strict=True):
                _answer(job, answer)
            if self._observer is not None:
                self._observe_together(model, queue_s, (input_s + infer_s + output_s) / runs)
        else:
            self._tell_each(model, executed, queue_s)

    def _tell_each(self, model: LoadedModel, executed: Executed, queue_s: list[float]) -> None:
        jobs, answers, _, input_s, infer_s, output_s, end_s, runs = executed
        compute_s = (input_s + infer_s + output_s) / runs
        in_time_s = []
        for job, answer, waited_s in zip(jobs, answers, queue_s, strict=True):
            told: InferResponse | EdgeKitError = answer
            outcome = "error"
            if isinstance(answer, InferResponse):
                outcome = "ok"
                if job.deadline_s < end_s:
                    late_ms = (end_s - job.deadline_s) * 1e3
                    told = DeadlineError(
                        f"model {model.name}", f"the answer came {late_ms:.1f} ms after the deadline", "", "allow more time"
                    )
                    outcome = "late"
            if outcome == "ok":
                in_time_s.append(waited_s)
            else:
                model.statistics.failed(end_s - job.arrived_s)
            _answer(job, told)
            self._observe(model, waited_s, compute_s, outcome)
        if any(isinstance(answer, InferResponse) for answer in answers):
            model.statistics.ran(len(jobs) // runs, len(in_time_s), sum(in_time_s), (input_s, infer_s, output_s), runs)

    def _refuse(self, refused: Refused) -> None:
        """Answer requests that do not run, with the reason."""
        now_s = time.monotonic()
        for job, error in refused:
            waited_s = now_s - job.arrived_s
            job.model.statistics.failed(waited_s)
            _answer(job, error)
            self._observe(job.model, waited_s, 0.0, "rejected")

    def _observe_together(self, model: LoadedModel, queue_s: list[float], compute_s: float) -> None:
        if self._together is None:
            for waited_s in queue_s:
                self._observe(model, waited_s, compute_s, "ok")
            return
        try:
            self._together(model.name, model.version, model.engine, queue_s, compute_s)
        except Exception:  # noqa: BLE001 - telemetry must not cost an answer
            _log.exception("the result observer failed")

    def _observe(self, model: LoadedModel, queue_s: float, compute_s: float, outcome: str) -> None:
        if self._observer is None:
            return
        try:
            self._observer(model.name, model.version, model.engine, queue_s, compute_s, outcome)
        except Exception:  # noqa: BLE001 - telemetry must not cost an answer
            _log.exception("the result observer failed")

    def _cost(self, queue: InstanceQueue[Any]) -> int:
        """Cores that one batch of this queue uses."""
        return max(1, min(queue.threads or self._cores, self._cores // queue.limit))


def _unexpected(model: LoadedModel, exc: Exception) -> EngineError:
    """For what is ours to find, not the sender's."""
    _log.error("model %s: a request ended in an unexpected error", model.name, exc_info=exc)
    return EngineError(f"model {model.name}", f"ended in an unexpected {type(exc).__name__}; the log has the details")


def _trace(executed: Executed) -> None:
    """Tell the traces of requests when these ran."""
    jobs, _, starts_s, _, infer_s, output_s, end_s, runs = executed
    for index, job in enumerate(jobs):
        trace, start_s = job.request.trace, starts_s[index]
        if trace is None:
            continue
        if runs == 1:
            trace.ran(job.arrived_s, start_s, infer_s, output_s, end_s)
        else:  # the answers of a row are made after its last run
            ran_s = starts_s[index + 1] if index + 1 < runs else end_s - output_s
            trace.ran(job.arrived_s, start_s, ran_s - start_s, 0.0, ran_s)


def _answer(job: Job, answer: InferResponse | Exception) -> None:
    try:
        job.done(answer)
    except Exception:  # noqa: BLE001 - one caller's bug must not cost the others of a batch their answers
        _log.exception("a request's callback failed")


class _Answer:
    """What a blocking caller waits for; called as `Job.done`."""

    __slots__ = ("_lock", "result")

    def __init__(self) -> None:
        self.result: InferResponse | Exception | None = None
        self._lock = threading.Lock()  # held from the start: the cheapest one-shot event there is
        self._lock.acquire()

    def __call__(self, result: InferResponse | Exception) -> None:
        self.result = result
        self._lock.release()

    def wait(self, deadline_s: float) -> bool:
        """False when ``deadline_s`` passes first."""
        if self.result is not None:
            return True
        timeout_s = min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX)
        return self._lock.acquire(timeout=timeout_s)
