"""Bias correction: rounding weights moves the mean of what a layer writes; the bias takes that back, at no cost when the model runs.

By linearity the mean shift is the layer applied to its mean input, with the rounding errors in place of the weights (M. Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019, section 4.2; here with measured means). It matters most for depthwise convolutions, whose few weights do
not average out, and where a picture is padded with constants. Borders and strides are accounted for. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from edgekit.converters.quantization._index import ModelIndex

__all__ = ["CorrectedBias", "MeanMaps", "corrected_bias", "mean_inputs", "with_mean_inputs"]

_SHAPES = 2  # of one tensor whose means are kept; samples of further shapes take no part


@dataclass(frozen=True)
class CorrectedBias:
    """A bias that stays in float, or is quantised with the product of both scales, after its correction."""

    values: np.ndarray

    def apply(self, _: np.ndarray) -> np.ndarray:
        """The corrected values."""
        return self.values

    def restore(self, levels: np.ndarray) -> np.ndarray:
        """What stored values stand for: themselves."""
        return levels


@dataclass
class MeanMaps:
    """Sums of a tensor over samples, by shape."""

    sums: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)
    counts: dict[tuple[int, ...], int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> None:
        """Count one sample's values."""
        if array.shape in self.sums:
            self.sums[array.shape] += array
        elif len(self.sums) < _SHAPES:
            self.sums[array.shape] = array.astype(np.float32)
        else:
            return
        self.counts[array.shape] = self.counts.get(array.shape, 0) + 1

    def means(self) -> list[tuple[np.ndarray, int]]:
        """Mean per shape, and of how many samples."""
        return [(self.sums[shape] / count, count) for shape, count in self.counts.items()]


def with_mean_inputs(index: ModelIndex) -> list[onnx.NodeProto]:
    """Nodes whose mean input is wanted: products with constant weights and a constant bias, without automatic padding."""
    return [
        node
        for node in index.model.graph.node
        if node.op_type in ("Conv", "Gemm")
        and len(node.input) > 2
        and node.input[1] in index.constants
        and node.input[2] in index.constants
        and not any(
            each.s not in (b"", b"NOTSET") if each.name == "auto_pad" else each.name == "transA" and each.i for each in node.attribute
        )
    ]


def mean_inputs(node: onnx.NodeProto, weights: np.ndarray, maps: MeanMaps) -> np.ndarray:
    """The mean of what each weight is multiplied with.

    Args:
        node: a Conv, or a Gemm with untransposed data.
        weights: its constant, [M, C / group, k…] of a Conv.
        maps: sums of its first input.

    Returns:
        float64 [C, k…] of a Conv, all groups' channels; [K] of a Gemm.
    """
    found, total = np.zeros(()), 0
    for mean, count in maps.means():
        wide = mean.astype(np.float64)
        found = found + count * (wide.reshape(-1, wide.shape[-1]).mean(axis=0) if node.op_type == "Gemm" else _taps(node, weights, wide))
        total += count
    return np.asarray(found / max(total, 1))


def _taps(node: onnx.NodeProto, weights: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Mean over the output's positions of what each tap of a kernel sees; data [N, C, d…]."""
    kernel = weights.shape[2:]
    rank = len(kernel)
    given = {each.name: list(each.ints) for each in node.attribute if each.ints}
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    pads = given.get("pads", [0] * 2 * rank)
    padded = np.pad(data.mean(axis=0), [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    counts = [
        (padded.shape[axis + 1] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1 for axis in range(rank)
    ]  # positions of the output along each axis
    means = []
    for tap in product(*map(range, kernel)):
        begins = [place * step for place, step in zip(tap, dilations, strict=True)]
        window = [slice(begin, begin + (n - 1) * stride + 1, stride) for begin, n, stride in zip(begins, counts, strides, strict=True)]
        means.append(padded[(slice(None), *window)].reshape(padded.shape[0], -1).mean(axis=1))
    return np.stack(means, axis=1).reshape(padded.shape[0], *kernel)


def corrected_bias(node: onnx.NodeProto, error: np.ndarray, bias: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The bias that takes back the mean shift.

    Args:
        node: a Conv or a Gemm.
        error: quantised less float weights, float64, shaped like the weights.
        bias: of the float model.
        means: from `mean_inputs`.
    """
    if node.op_type == "Gemm":
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        shift = (error if transposed else error.T) @ means
    else:
        group = next((each.i for each in node.attribute if each.name == "group"), 1)
        rows = error.reshape(group, error.shape[0] // group, -1)
        shift = np.einsum("gmk,gk->gm", rows, means.reshape(group, -1)).reshape(-1)
    return np.asarray(bias.astype(np.float64) - shift.reshape(bias.shape) if bias.size == shift.size else bias, np.float32)
