"""Value ranges of every float tensor of a model, measured on samples through ONNX Runtime.

Emitters that lower to float16 use them to find what would overflow: float16's largest finite value is 65504 (IEEE 754-2008, binary16).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import GoldenSample
from edgekit.converters._side_by_side import in_order
from edgekit.errors import EnvironmentMissingError

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT16_FLAG", "FLOAT16_MAX", "Range", "activation_ranges", "largest_magnitude", "run_tensors"]

FLOAT16_MAX = 65504.0
FLOAT16_FLAG = 512.0
"""Above this magnitude float16's spacing is 0.5 or more; NVIDIA's AutoCast flags tensors at the same limit."""

Range = tuple[float, float]
_TENSORS_PER_RUN = 64  # bounds the memory: all requested tensors of one run are alive at the same time


def largest_magnitude(limits: Range) -> float:
    """Largest absolute value within ``(min, max)``."""
    return max(abs(limits[0]), abs(limits[1]))


def activation_ranges(model: onnx.ModelProto, samples: Sequence[GoldenSample]) -> dict[str, Range]:
    """Smallest and largest value of each float tensor: graph inputs, outputs and everything between; initializers are not included.

    ONNX Runtime runs the graph as it stands (its own rewrites are off), so every name of the model is found. NaN is ignored; a
    tensor that holds nothing else gets ``(-inf, inf)``. Tensors inside subgraphs (If, Loop) are not seen.

    Args:
        model: float32 model; not changed.
        samples: inputs to run; an empty sequence gives an empty result.

    Raises:
        EnvironmentMissingError: onnxruntime is not installed.
    """
    ranges: dict[str, Range] = {}
    if not samples:
        return ranges
    _merge(ranges, (item for sample in samples for item in sample.inputs.items()))
    produced = [name for node in model.graph.node for name in node.output if name]
    for start in range(0, len(produced), _TENSORS_PER_RUN):
        chosen = produced[start : start + _TENSORS_PER_RUN]
        for outputs in run_tensors(model, chosen, [sample.inputs for sample in samples]):
            _merge(ranges, zip(chosen, outputs, strict=True))
    return ranges


def run_tensors(model: onnx.ModelProto, names: Sequence[str], inputs: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Values of the tensors ``names`` for each sample, in order, with ONNX Runtime's own rewrites off.

    Raises:
        EnvironmentMissingError: onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("the range scan", exc.name or "onnxruntime", "convert") from exc
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    yield from in_order(lambda sample: session.run(list(names), dict(sample)), inputs)


def _merge(ranges: dict[str, Range], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    for name, array in tensors:
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size == 0:
            continue
        values = array[~np.isnan(array)]
        low, high = (float(values.min()), float(values.max())) if values.size else (-np.inf, np.inf)
        before = ranges.get(name, (low, high))
        ranges[name] = (min(before[0], low), max(before[1], high))
