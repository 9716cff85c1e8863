"""The proof of an artifact with an open batch, whose target made it from fixed sizes, at a size that no sample has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekit.bundle import GoldenSample
from edgekit.converters._emitter import EmitJob, Emitted
from edgekit.converters._verify import judge
from edgekit.errors import VerificationError

__all__ = ["PROVEN_BATCH", "prove_larger_batch"]

PROVEN_BATCH = 5


Run = Callable[[GoldenSample], tuple[Sequence[dict[str, np.ndarray]], str]]


def prove_larger_batch(job: EmitJob, emitted: Emitted, run: Run) -> str:
    """Run the first sample's rows, shifted and repeated to `PROVEN_BATCH`, through the artifact and through ONNX Runtime.

    Args:
        job: with an open batch.
        emitted: what was made.
        run: outputs of the artifact for a sample, in a list, and what ran it.

    Returns:
        the note that says so.

    Raises:
        VerificationError: the numbers differ.
    """
    inputs = _widened(job)
    outputs, engine = run(GoldenSample(inputs, {}))
    sample = GoldenSample(inputs, _reference(job, inputs))
    try:
        judge(
            f"{emitted.artifact.path} at batch {PROVEN_BATCH} ({engine})",
            [sample],
            outputs,
            job.source.signature,
            emitted.artifact.precision,
        )
    except VerificationError as exc:
        raise VerificationError(exc.thing, exc.found, exc.expected, "give --shape with a fixed batch") from exc
    sizes = sorted({_batch_of(job, sample.inputs) for sample in job.samples} | {PROVEN_BATCH})
    return f"the batch is open; proven at {', '.join(map(str, sizes))}"


def _batch_axis(job: EmitJob, name: str) -> int | None:
    """Where an input has the batch."""
    shape = next(spec.shape for spec in job.source.signature.inputs if spec.name == name)
    return next((axis for axis, size in enumerate(shape) if isinstance(size, str)), None)


def _batch_of(job: EmitJob, inputs: dict[str, np.ndarray]) -> int:
    places = ((array, _batch_axis(job, name)) for name, array in inputs.items())
    return next(int(array.shape[axis]) for array, axis in places if axis is not None)


def _widened(job: EmitJob) -> dict[str, np.ndarray]:
    """The first sample with as many rows as wanted, each moved along by one element, so that no two are the same."""
    widened = {}
    for name, array in job.samples[0].inputs.items():
        axis = _batch_axis(job, name)
        if axis is None:
            widened[name] = array
            continue
        first = array.take([0], axis)
        rows = [np.roll(first.reshape(-1), index).reshape(first.shape) for index in range(PROVEN_BATCH)]
        widened[name] = np.concatenate(rows, axis)
    return widened


def _reference(job: EmitJob, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the normalised model, whose batch is open too, answers through ONNX Runtime."""
    from edgekit.converters.sources._runnable import open_session

    session: Any = open_session(job.source.model, job.source.weights, threads=1)
    names = [spec.name for spec in job.source.signature.outputs]
    return dict(zip(names, session.run(names, inputs), strict=True))
