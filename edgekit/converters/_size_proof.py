"""The proof of an artifact with open sizes, whose target made it from fixed ones, at sizes that no sample has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekit.bundle import GoldenSample
from edgekit.converters._emitter import EmitJob, Emitted
from edgekit.converters._open_sizes import batch_symbols
from edgekit.converters._verify import judge
from edgekit.errors import VerificationError

__all__ = ["PROVEN_BATCH", "prove_other_sizes"]

PROVEN_BATCH = 5


Run = Callable[[GoldenSample], tuple[Sequence[dict[str, np.ndarray]], str]]


def prove_other_sizes(job: EmitJob, emitted: Emitted, run: Run) -> str:
    """Run the first sample's rows, shifted and repeated to `PROVEN_BATCH` and the last of `Settings.proofs`, through the artifact and ONNX Runtime.

    Args:
        job: with open sizes.
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
    shapes = ", ".join(str(list(array.shape)) for array in inputs.values())
    only_batch = not job.source.settings.proofs
    where = f"at batch {PROVEN_BATCH}" if only_batch else f"at {shapes}"
    try:
        judge(f"{emitted.artifact.path} {where} ({engine})", [sample], outputs, job.source.signature, emitted.artifact.precision)
    except VerificationError as exc:
        raise VerificationError(
            exc.thing, exc.found, exc.expected, f"give --shape with {'a fixed batch' if only_batch else 'fixed sizes'}"
        ) from exc
    proven = [*job.samples, sample]
    if only_batch:
        return f"the batch is open; proven at {', '.join(str(size) for size in sorted({_batch_of(job, each.inputs) for each in proven}))}"
    seen = dict.fromkeys(" and ".join(f"{name} {list(array.shape)}" for name, array in each.inputs.items()) for each in proven)
    return f"sizes are open; proven at {', '.join(seen)}"


def _batch_axis(job: EmitJob, name: str) -> int | None:
    """Where an input has the batch."""
    shape = next(spec.shape for spec in job.source.signature.inputs if spec.name == name)
    return next((axis for axis, size in enumerate(shape) if isinstance(size, str)), None)


def _batch_of(job: EmitJob, inputs: dict[str, np.ndarray]) -> int:
    places = ((array, _batch_axis(job, name)) for name, array in inputs.items())
    return next(int(array.shape[axis]) for array, axis in places if axis is not None)


def _widened(job: EmitJob) -> dict[str, np.ndarray]:
    """The first sample brought to other sizes: rows moved along by one element each, so that no two are the same, other axes cut or repeated."""
    signature, settings = job.source.signature, job.source.settings
    sizes = {**dict.fromkeys(batch_symbols(signature), PROVEN_BATCH), **(settings.proofs[-1] if settings.proofs else {})}
    widened = {}
    for spec in signature.inputs:
        array = job.samples[0].inputs[spec.name]
        for axis, dim in enumerate(spec.shape):
            if axis and dim in sizes:
                array = array.take(np.arange(sizes[str(dim)]), axis, mode="wrap")
        if spec.shape and spec.shape[0] in sizes:
            first = array.take([0], 0)
            array = np.concatenate([np.roll(first.reshape(-1), index).reshape(first.shape) for index in range(PROVEN_BATCH)])
        widened[spec.name] = np.ascontiguousarray(array) if array.ndim else array
    return widened


def _reference(job: EmitJob, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the normalised model, whose sizes are open too, answers through ONNX Runtime."""
    from edgekit.converters.sources._runnable import open_session

    session: Any = open_session(job.source.model, job.source.weights, threads=1)
    names = [spec.name for spec in job.source.signature.outputs]
    return dict(zip(names, session.run(names, inputs), strict=True))
