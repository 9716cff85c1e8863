"""What ONNX's Resize reads of each axis: positions, indices and weights by the formulas of its specification, for the front ends of our own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.converters._graph import Graph, Node

__all__ = [
    "COORDINATE_MODES",
    "CROP",
    "ResampledAxis",
    "axis_matrix",
    "coordinate_mode",
    "inside",
    "resampled_axes",
    "source_positions",
    "weights",
]

CROP = "tf_crop_and_resize"
COORDINATE_MODES = (
    "align_corners",
    "half_pixel",
    "asymmetric",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "tf_half_pixel_for_nn",
    CROP,
)


@dataclass(frozen=True)
class ResampledAxis:
    """How one axis is resampled.

    Attributes:
        size: before.
        result: after.
        scale: as given or implied, not necessarily ``result / size``.
        start, end: region of interest as parts of the axis, for ``tf_crop_and_resize``.
    """

    size: int
    result: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def source_positions(mode: str, axis: ResampledAxis) -> np.ndarray:
    """Where each output position lies on the input axis, ``(result,)`` float32, by the formulas of the ONNX specification of Resize.

    float32, because ONNX Runtime rounds positions of nearest in it.
    """
    one, half = np.float32(1), np.float32(0.5)
    size, result, scale = np.float32(axis.size), np.float32(axis.result), np.float32(axis.scale)
    x = np.arange(axis.result, dtype=np.float32)
    match mode:
        case "align_corners":
            return np.asarray(x * (size - one) / (result - one) if axis.result > 1 else x)
        case "asymmetric":
            return x / scale
        case "tf_half_pixel_for_nn":
            return (x + half) / scale
        case "pytorch_half_pixel" if axis.result == 1:
            return x
        case "half_pixel_symmetric":
            offset = size / 2 * (one - result / (scale * size))
            return np.asarray(offset + (x + half) / scale - half)
        case "tf_crop_and_resize":
            start, end = np.float32(axis.start), np.float32(axis.end)
            if axis.result == 1:
                return np.asarray([half * (start + end) * (size - one)])
            return np.asarray(start * (size - one) + x * (end - start) * (size - one) / (result - one))
        case _:
            return (x + half) / scale - half


def _nearest(positions: np.ndarray, mode: str, size: int) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(positions - np.float32(0.5)),
        "round_prefer_ceil": np.floor(positions + np.float32(0.5)),
        "floor": np.floor(positions),
        "ceil": np.ceil(positions),
    }[mode]
    return np.asarray(np.clip(rounded, 0, size - 1), np.int32)


def weights(
    positions: np.ndarray, size: int, cubic: float | None = None, exclude_outside: bool = False, stretch: float = 1.0
) -> np.ndarray:
    """Interpolation matrix ``(size, result)``; taps beyond the edge take the edge's value.

    Args:
        positions: on the input axis.
        size: of the input axis.
        cubic: the coefficient, None for linear.
        exclude_outside: leave taps beyond the edge out.
        stretch: how much wider than one element the filter is; above 1 where shrinking is to average (``antialias``).
    """
    positions = positions.astype(np.float64)
    support = stretch * (1 if cubic is None else 2)
    matrix = np.zeros((size, len(positions)))
    first = np.floor(positions - support).astype(np.int64)
    for tap in range(2 * int(np.ceil(support)) + 2):
        index = first + tap
        distance = np.abs(index - positions) / stretch
        weight = np.maximum(0.0, 1 - distance) if cubic is None else _cubic(distance, cubic)
        if exclude_outside:
            weight = np.where((index < 0) | (index >= size), 0.0, weight)
        np.add.at(matrix, (np.clip(index, 0, size - 1), np.arange(len(positions))), weight)
    return np.asarray(matrix / matrix.sum(axis=0))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    # R. Keys, "Cubic convolution interpolation for digital image processing", 1981
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.asarray(np.where(distance <= 1, near, np.where(distance < 2, far, 0.0)))


def coordinate_mode(node: Node) -> str:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric"))


def resampled_axes(node: Node, graph: Graph) -> dict[int, ResampledAxis]:
    """Every axis that is resampled."""
    before, after = graph.types[node.inputs[0]].shape, graph.types[node.outputs[0]].shape
    named = [axis % len(before) for axis in node.attrs.get("axes") or range(len(before))]
    scales = {axis: result / size for axis, (size, result) in enumerate(zip(before, after, strict=True))}
    given, wanted = (graph.constants.get(node.input(index)) for index in ((2, 3) if node.opset >= 11 else (1, 3)))
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if given is not None and given.size:
        scales |= {axis: float(scale) for axis, scale in zip(named, given, strict=True)}
    elif wanted is not None and policy != "stretch":
        choose = min if policy == "not_larger" else max
        common = choose(float(size) / before[axis] for axis, size in zip(named, wanted, strict=True))
        scales |= dict.fromkeys(named, common)
    regions = dict.fromkeys(scales, (0.0, 1.0))
    region = graph.constants.get(node.input(1)) if node.opset >= 11 and coordinate_mode(node) == CROP else None
    if region is not None and region.size:
        regions |= {axis: (float(region[i]), float(region[i + len(named)])) for i, axis in enumerate(named)}
    axes = {axis: ResampledAxis(before[axis], after[axis], scale, *regions[axis]) for axis, scale in scales.items()}
    return {axis: way for axis, way in axes.items() if way.size != way.result or way.scale != 1 or regions[axis] != (0.0, 1.0)}


def inside(node: Node, axes: dict[int, ResampledAxis], rank: int) -> np.ndarray:
    """Where every coordinate of an output position lies within the image; broadcasts against the output (``tf_crop_and_resize``)."""
    found = np.ones((1,) * rank, bool)
    for axis, way in axes.items():
        positions = source_positions(coordinate_mode(node), way)
        shape = [way.result if each == axis else 1 for each in range(rank)]
        found = found & ((positions >= 0) & (positions <= way.size - 1)).reshape(shape)
    return found


def axis_matrix(node: Node, way: ResampledAxis) -> np.ndarray:
    """Indices ``(result,)`` of nearest, or weights ``(size, result)`` of linear and cubic."""
    positions = source_positions(coordinate_mode(node), way)
    mode = node.attrs.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(positions, node.attrs.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"), way.size)
    cubic = node.attrs.get("cubic_coeff_a", -0.75) if mode == "cubic" else None
    stretch = max(1.0, 1 / way.scale) if node.attrs.get("antialias", 0) else 1.0
    return weights(positions, way.size, cubic, bool(node.attrs.get("exclude_outside", 0)), stretch)
