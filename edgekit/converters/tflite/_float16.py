"""float16 in TensorFlow Lite is storage: weights are halved in the file and widened at load. What does not fit is found here.

The converter halves every weight or none, and cuts what lies beyond 65504 to it without a word (TensorFlow 2.21); so a file with such a weight stays in float32.
A GPU delegate computes in float16 as well, where tensors beyond 65504 become infinite: that is said, because only the device can choose to run on the CPU instead.
"""

from __future__ import annotations

import numpy as np

from edgekit.converters._emitter import EmitJob
from edgekit.converters._graph import Graph
from edgekit.converters._ranges import FLOAT16_MAX, activation_ranges, largest_magnitude

__all__ = ["overflow_notes", "too_large"]

_PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization", "Mul", "Add", "Sub", "Div", "PRelu"}
)
_LISTED = 5


def too_large(graph: Graph) -> str:
    """Why a graph's weights stay in float32, "" when all fit float16. Constants of other operators (bounds, masks) may be cut: they mean "very large"."""
    for node in graph.nodes:
        for name in node.inputs if node.op in _PRODUCTS else ():
            value = graph.constants.get(name)
            if value is None or value.dtype != np.float32:
                continue
            largest = float(np.max(np.abs(value), where=np.isfinite(value), initial=0.0))
            if largest > FLOAT16_MAX:
                return f"weights stay in float32: {name!r} of {node.op} at {node.name!r} reaches {largest:.4g}, above {FLOAT16_MAX:g}"
    return ""


def overflow_notes(job: EmitJob) -> tuple[str, ...]:
    """What a GPU delegate's float16 arithmetic would overflow on the samples."""
    if "gpu" not in job.claim.accelerators or job.precision == "int8":
        return ()
    ranges = activation_ranges(job.source.model, job.samples)
    wide = sorted(
        (name for name, limits in ranges.items() if largest_magnitude(limits) > FLOAT16_MAX),
        key=lambda name: -largest_magnitude(ranges[name]),
    )
    if not wide:
        return ()
    listed = ", ".join(f"{name} ({largest_magnitude(ranges[name]):.3g})" for name in wide[:_LISTED])
    return (f"{len(wide)} tensor(s) exceed float16, in which a GPU delegate computes: {listed}; run it on the CPU",)
