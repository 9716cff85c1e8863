"""Where an artifact left the source model: the first operator whose result is wrong, found by comparing inner tensors in the order of execution."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import Artifact
from edgekit.converters._divergence_taps import reference_values, tap
from edgekit.converters._emitter import EmitJob
from edgekit.converters._isolation import Tell
from edgekit.runtime._compare import thresholds_for

if TYPE_CHECKING:
    import onnx

__all__ = ["Place", "locate", "matches"]

_MAX_PERMUTED_RANK = 5


@dataclass(frozen=True)
class Place:
    """What comparing inner tensors found.

    Attributes:
        tensor: name of the first one that is wrong, "" when none is.
        operator: of the node that makes it.
        node: name of that node, its output's where it has none.
        index: of that node in the normalised graph, -1 when no tensor is wrong.
        compared: tensors that the artifact kept and that were looked at.
        inner: tensors that the normalised model computes.
        how: what ran, where that is not the engine as it runs on the device.
    """

    tensor: str = ""
    operator: str = ""
    node: str = ""
    index: int = -1
    compared: int = 0
    inner: int = 0
    how: str = ""

    def __str__(self) -> str:
        """``it diverged first at tensor 'x' (Conv at 'conv1'; 34 of 60 inner tensors were compared)``"""
        how = f" in {self.how}" if self.how else ""
        if self.tensor:
            seen = f"; {self.compared} of {self.inner} inner tensors could be compared" if self.compared < self.inner else ""
            return f"it diverged first at tensor {self.tensor!r} ({self.operator} at {self.node!r}{seen}{how})"
        if not self.compared:
            return f"where it diverged first cannot be told: the artifact keeps none of the {self.inner} inner tensors{how}"
        return f"none of the {self.compared} inner tensors that could be compared (of {self.inner}) diverges before it{how}"


def locate(tell: Tell, job: EmitJob, artifact: Artifact) -> Place:
    """Compare the inner tensors of an artifact with the source model's, sample by sample, until one differs.

    Args:
        tell: progress.
        job: whose directory holds the artifact.
        artifact: what was judged wrong.

    Raises:
        whatever the engine raises; the caller has a better error to report than that.
    """
    tell("looking for the first operator that diverges")
    place = Place()
    for sample in job.samples:
        place = _compare(job, artifact, sample.inputs)
        if place.tensor:
            return place
    return place


def _compare(job: EmitJob, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> Place:
    """One sample."""
    nodes = job.source.model.graph.node
    produced = [(name, index) for index, node in enumerate(nodes) for name in node.output if name]
    tapped = tap(job, artifact, [name for name, _ in produced], inputs)
    expected = reference_values(job.source.model, [name for name, _ in produced if tapped.values.get(name)], inputs)
    right = {}
    for name, want in expected.items():
        candidates = [array for array in tapped.values[name] if array.size == want.size]
        if candidates:  # else it was fused into another operator, and what carries its name is something else
            right[name] = any(matches(want, array, artifact.precision) for array in candidates)
    seen = (len(right), len(produced), tapped.how)
    for name, index in produced:
        if right.get(name, True) or _vindicated(name, nodes, right):
            continue
        node = nodes[index]
        return Place(name, node.op_type, node.name or node.output[0], index, *seen)
    return Place("", "", "", -1, *seen)


def _vindicated(name: str, nodes: Sequence[onnx.NodeProto], right: Mapping[str, bool]) -> bool:
    """All that reads a tensor is right: then it was itself, and what carries its name is a step on the way to it."""
    readers = [right[made] for node in nodes if name in node.input for made in node.output if made in right]
    return bool(readers) and all(readers)


def matches(want: np.ndarray, got: np.ndarray, precision: str) -> bool:
    """Whether two tensors hold the same values within the limits of a precision, whatever the order of axes that the artifact chose. Pure."""
    if want.dtype.kind not in "fiub" or not want.size:
        return True
    return any(_near(want, form, precision) for form in _forms(got, want.shape))


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    """The array in ``shape``: as it is, reshaped, or with its axes in another order."""
    if array.size != int(np.prod(shape)):
        return
    yield array.reshape(shape)
    if array.ndim == len(shape) <= _MAX_PERMUTED_RANK:
        for order in itertools.permutations(range(array.ndim)):
            if tuple(array.shape[axis] for axis in order) == shape:
                yield array.transpose(order)


def _near(want: np.ndarray, got: np.ndarray, precision: str) -> bool:
    wide_want, wide_got = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide_want)
    if not np.array_equal(finite, np.isfinite(wide_got)):
        return False
    error = np.max(np.abs(wide_want[finite] - wide_got[finite]), initial=0.0)
    scale = np.max(np.abs(wide_want[finite]), initial=0.0)
    return bool(error <= thresholds_for(precision)["max_rel"] * (scale or 1.0))
