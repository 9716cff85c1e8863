"""One calibration for every engine: what values each tensor of the float model takes on real samples.

Collected once, on the normalised model through ONNX Runtime, in one pass: smallest and largest value over everything, and a histogram from which the
percentile and entropy ranges are chosen. Weights need none of it: they are known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._ranges import Range, run_tensors
from edgekit.converters.quantization._bias import MeanMaps, mean_inputs, with_mean_inputs
from edgekit.converters.quantization._histogram import GrowingHistogram, entropy_range, error_range, percentile_range
from edgekit.converters.quantization._index import ModelIndex, static_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["METHODS", "Calibration", "TensorRange", "collect"]

METHODS = ("minmax", "percentile", "entropy", "error")
"""How a range is chosen: everything seen; all but one value in ten thousand; the least Kullback-Leibler divergence; the least squared error."""

_BYTES_PER_RUN = 2**27  # of tensors that one run gives out; as many runs as cores, and one more, are in memory
_TENSORS_PER_RUN = 256  # where sizes are not known
_VALUES_PER_TENSOR = 2**20
_VALUES_PER_SAMPLE = 2**14
"""Values of one tensor that enter its histogram, of all samples and of one, spread evenly; smallest and largest are of all values. A percentile of 99.99 % leaves
out a hundred of a million."""


@dataclass(frozen=True)
class TensorRange:
    """Ranges of one tensor, one per method of `METHODS`."""

    minmax: Range
    percentile: Range
    entropy: Range
    error: Range

    def of(self, method: str) -> Range:
        """The range by a method's name."""
        found: Range = getattr(self, method)
        return found


@dataclass(frozen=True)
class Calibration:
    """The shared asset: ranges, never a finished graph.

    Attributes:
        ranges: per float tensor (graph inputs and what nodes compute; no constants). A tensor that held an infinity or only NaN is missing: it cannot be quantised.
        samples: how many were run.
        source: where they came from, for the report.
        means: per node with weights and a bias, the mean of what each weight is multiplied with, see `mean_inputs`.
    """

    ranges: Mapping[str, TensorRange] = field(default_factory=dict)
    samples: int = 0
    source: str = ""
    means: Mapping[str, np.ndarray] = field(default_factory=dict)

    def report(self) -> dict[str, object]:
        """JSON-able: per tensor ``[low, high]`` of every method, six significant digits."""
        return {
            "samples": self.samples,
            "source": self.source,
            "tensors": {
                name: {method: [float(f"{value:.6g}") for value in found.of(method)] for method in METHODS}
                for name, found in sorted(self.ranges.items())
            },
        }


@dataclass
class _Seen:
    low: float = np.inf
    high: float = -np.inf
    usable: bool = True
    histogram: GrowingHistogram = field(default_factory=GrowingHistogram)

    def add(self, array: np.ndarray, values: int) -> None:
        """Count at most so many of an array's values."""
        if not array.size or not self.usable:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.usable = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = array.reshape(-1)
        step = -(-flat.size // values) | 1  # odd: does not fall on the same column of every row
        self.histogram.add(flat[::step].astype(np.float64), max(abs(low), abs(high)))


def collect(
    model: onnx.ModelProto, samples: Sequence[Mapping[str, np.ndarray]], tensors: Sequence[str] | None = None, source: str = ""
) -> Calibration:
    """Run the samples and choose ranges.

    Args:
        model: float32 model; not changed.
        samples: inputs by name; at least one.
        tensors: which to look at; every float tensor by default.
        source: for the report.

    Raises:
        EnvironmentMissingError: onnxruntime is not installed.
    """
    if tensors is None:
        tensors = [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output if name]
    inputs = {value.name for value in model.graph.input}
    seen = {name: _Seen() for name in tensors}
    index = ModelIndex(model)
    averaged = {node.input[0]: MeanMaps() for node in with_mean_inputs(index) if node.input[0] in seen}
    values = min(_VALUES_PER_SAMPLE, _VALUES_PER_TENSOR // max(len(samples), 1))
    for sample in samples:
        for name in inputs & seen.keys() & sample.keys():
            if sample[name].dtype.kind == "f":
                seen[name].add(sample[name], values)
                if name in averaged:
                    averaged[name].add(sample[name])
    for chosen in _portions([name for name in tensors if name not in inputs], static_shapes(model)):
        for outputs in run_tensors(model, chosen, samples):
            for name, array in zip(chosen, outputs, strict=True):
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    seen[name].add(array, values)
                    if name in averaged:
                        averaged[name].add(array)
    ranges = {name: _chosen(entry) for name, entry in seen.items() if entry.usable and entry.low <= entry.high}
    means = {
        node.name: mean_inputs(node, index.constants[node.input[1]], averaged[node.input[0]])
        for node in with_mean_inputs(index)
        if node.input[0] in ranges and averaged[node.input[0]].counts
    }
    return Calibration(ranges, len(samples), source, means)


def _portions(tensors: Sequence[str], sizes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Tensors that one run gives out together: `_BYTES_PER_RUN` of them in float32; one of unknown size counts as its share of `_TENSORS_PER_RUN`."""
    portion: list[str] = []
    used = 0
    for name in tensors:
        size = 4 * math.prod(sizes[name]) if name in sizes else _BYTES_PER_RUN // _TENSORS_PER_RUN
        if portion and used + size > _BYTES_PER_RUN:
            yield portion
            portion, used = [], 0
        portion.append(name)
        used += size
    if portion:
        yield portion


def _chosen(seen: _Seen) -> TensorRange:
    low, high = seen.low, seen.high
    return TensorRange(
        (low, high),
        percentile_range(seen.histogram, low, high),
        entropy_range(seen.histogram, low, high),
        error_range(seen.histogram, low, high),
    )
