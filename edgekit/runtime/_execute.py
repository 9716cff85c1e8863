"""Running a batch: inputs put together, the engine, outputs taken apart, one answer for each request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from edgekit.errors import EdgeKitError, EngineError
from edgekit.protocol import InferResponse, Tensor
from edgekit.runtime._job import Job
from edgekit.runtime._request_plan import RequestPlan, split, stack

__all__ = ["Executed", "RunsModel", "execute"]

Arrays = Mapping[str, np.ndarray]
Answer = InferResponse | EdgeKitError


class RunsModel(Protocol):
    """What is needed of a model: its names and how its requests are handled."""

    name: str
    version: str
    engine: str
    plan: RequestPlan


class Engine(Protocol):
    """What is needed of an engine."""

    def run(self, inputs: Arrays) -> Arrays:
        """One call."""
        ...


class Executed(NamedTuple):
    """What became of some requests that ran in one call of the engine, or in a row of calls.

    Attributes:
        jobs: in order.
        answers: one for each.
        starts_s: when each began, on `time.monotonic`.
        input_s, infer_s, output_s: where the time went, for all together.
        end_s: when all was done.
        runs: calls of the engine: 1, or one for each request of a row.
    """

    jobs: list[Job]
    answers: list[Answer]
    starts_s: list[float]
    input_s: float
    infer_s: float
    output_s: float
    end_s: float
    runs: int = 1


def execute(model: RunsModel, engine: Engine, jobs: list[Job], *, apart: bool = False) -> tuple[list[Executed], bool]:
    """Run requests, together when there are several and their model takes that; one by one when it does not, when running them together failed, or
    when they are to run ``apart``.

    Returns:
        what became of them; and whether they failed together and each went well alone, so that there were too many.
    """
    if len(jobs) == 1:
        return [_alone(model, engine, jobs[0])], False
    if apart:
        return _in_a_row(model, engine, jobs), False
    proof = model.plan.proof
    if proof is not None and proof.state:
        together = _together(model, engine, jobs)
        if together is not None:
            return [together], False
        results = [_alone(model, engine, job) for job in jobs]
        return results, all(isinstance(result.answers[0], InferResponse) for result in results)
    results = [_alone(model, engine, job) for job in jobs]
    if proof is not None and proof.state is None:
        _prove(model, engine, jobs, results)
    return results, False


def _alone(model: RunsModel, engine: Engine, job: Job) -> Executed:
    start_s = time.monotonic()
    try:
        outputs = _run(model, engine, job.inputs)
    except EdgeKitError as exc:
        end_s = time.monotonic()
        return Executed([job], [exc], [start_s], 0.0, end_s - start_s, 0.0, end_s)
    ran_s = time.monotonic()
    answer = _answer(model, job, outputs)
    end_s = time.monotonic()
    return Executed([job], [answer], [start_s], 0.0, ran_s - start_s, end_s - ran_s, end_s)


def _in_a_row(model: RunsModel, engine: Engine, jobs: list[Job]) -> list[Executed]:
    """Each in a call of its own. The answers are made after the last: a call of a millisecond leaves the caches without our code and data, so that what is done
    between two of them costs several times what it costs for all at once.

    Returns:
        one for all; or, when one fails, one for each.
    """
    times_s = [time.monotonic()]
    found: list[Arrays | EdgeKitError] = []
    failed = False
    for job in jobs:
        try:
            found.append(_run(model, engine, job.inputs))
        except EdgeKitError as exc:
            found.append(exc)
            failed = True
        times_s.append(time.monotonic())
    answers = [result if isinstance(result, EdgeKitError) else _answer(model, job, result) for job, result in zip(jobs, found, strict=True)]
    ran_s, end_s = times_s.pop(), time.monotonic()
    if not failed:
        return [Executed(jobs, answers, times_s, 0.0, ran_s - times_s[0], end_s - ran_s, end_s, len(jobs))]
    ends_s = [*times_s[1:], ran_s]
    return [
        Executed([job], [answer], [start_s], 0.0, ended_s - start_s, 0.0, ended_s)
        for job, answer, start_s, ended_s in zip(jobs, answers, times_s, ends_s, strict=True)
    ]


def _answer(model: RunsModel, job: Job, outputs: Arrays) -> InferResponse:
    names = job.wanted
    tensors = [Tensor(name, outputs[name]) for name in (model.plan.outputs if names is None else names)]
    return InferResponse(model.name, model.version, tensors, id=job.request.id)


def _together(model: RunsModel, engine: Engine, jobs: list[Job]) -> Executed | None:
    """``None`` when the engine fails: one request's values may be at fault, or the size."""
    start_s = time.monotonic()
    rows = sum([job.rows for job in jobs])
    stacked = stack(jobs)
    stacked_s = time.monotonic()
    try:
        outputs = _run(model, engine, stacked)
        ran_s = time.monotonic()
        parts = {name: split(outputs[name], jobs, rows) for name in model.plan.outputs}
    except (EdgeKitError, ValueError):
        return None
    name, version = model.name, model.version
    answers: list[Answer] = []
    if len(parts) == 1:
        ((only, pieces),) = parts.items()
        answers = [
            InferResponse(
                name, version, [Tensor(only, piece)] if job.wanted is None else _picked(job.wanted, parts, index), id=job.request.id
            )
            for index, (job, piece) in enumerate(zip(jobs, pieces, strict=True))
        ]
    else:
        answers = [
            InferResponse(name, version, _picked(job.wanted or model.plan.outputs, parts, index), id=job.request.id)
            for index, job in enumerate(jobs)
        ]
    end_s = time.monotonic()
    return Executed(jobs, answers, [start_s] * len(jobs), stacked_s - start_s, ran_s - stacked_s, end_s - ran_s, end_s)


def _picked(names: list[str], parts: Mapping[str, list[np.ndarray]], index: int) -> list[Tensor]:
    return [Tensor(name, parts[name][index]) for name in names]


def _prove(model: RunsModel, engine: Engine, jobs: list[Job], results: list[Executed]) -> None:
    """Use the requests that went well to find out whether such requests may run together."""
    proof = model.plan.proof
    assert proof is not None
    answered = [
        (job.inputs, {tensor.name: tensor.data for tensor in answer.outputs})
        for job, result in zip(jobs, results, strict=True)
        if job.wanted is None and isinstance(answer := result.answers[0], InferResponse)
    ]
    if answered:
        proof.attempt(lambda inputs: _run(model, engine, inputs), answered)


def _run(model: RunsModel, engine: Engine, inputs: Arrays) -> Arrays:
    try:
        return engine.run(inputs)
    except EdgeKitError:
        raise
    except Exception as exc:  # engines raise types of their own
        raise EngineError(f"model {model.name}", f"{model.engine} failed: {str(exc)[:500]}") from exc
