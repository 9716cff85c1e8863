"""Resize: TensorFlow Lite's own operator where it samples the same points, else constant indices or weights, which are right for every mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import Order, axis_last, channels_last
from edgekit.converters.tflite._rules import constant_inputs, operator

__all__ = ["source_positions"]

# coordinate mode -> (align_corners, half_pixel_centers) of TensorFlow's resize operators
_FLAGS = {"align_corners": (True, False), "half_pixel": (False, True), "asymmetric": (False, False)}
_CROP = "tf_crop_and_resize"
_MODES = (*_FLAGS, "pytorch_half_pixel", "half_pixel_symmetric", "tf_half_pixel_for_nn", _CROP)


def _sampling(node: Node, graph: Graph) -> str:
    """Mode is nearest, linear or cubic (nearest for integers), in a coordinate mode of the specification."""
    if (mode := node.attrs.get("mode", "nearest")) not in ("nearest", "linear", "cubic"):
        return f"mode is {mode}"
    if (coordinates := _coordinate_mode(node)) not in _MODES:
        return f"coordinate_transformation_mode is {coordinates}"
    kind = graph.types[node.inputs[0]].dtype
    return "" if kind == "float32" or (mode == "nearest" and coordinates != _CROP) else f"mode is {mode} and the image is {kind}"


def _coordinate_mode(node: Node) -> str:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric"))


@dataclass(frozen=True)
class _Axis:
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


def source_positions(mode: str, axis: _Axis) -> np.ndarray:
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


def _weights(
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


def _axes(node: Node, ctx: Context) -> dict[int, _Axis]:
    """Every axis that is resampled."""
    before, after = ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0])
    named = [axis % len(before) for axis in node.attrs.get("axes") or range(len(before))]
    scales = {axis: result / size for axis, (size, result) in enumerate(zip(before, after, strict=True))}
    given, wanted = (ctx.constant(node.input(index)) for index in ((2, 3) if node.opset >= 11 else (1, 3)))
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if given is not None and given.size:
        scales |= {axis: float(scale) for axis, scale in zip(named, given, strict=True)}
    elif wanted is not None and policy != "stretch":
        choose = min if policy == "not_larger" else max
        common = choose(float(size) / before[axis] for axis, size in zip(named, wanted, strict=True))
        scales |= dict.fromkeys(named, common)
    regions = dict.fromkeys(scales, (0.0, 1.0))
    region = ctx.constant(node.input(1)) if node.opset >= 11 and _coordinate_mode(node) == _CROP else None
    if region is not None and region.size:
        regions |= {axis: (float(region[i]), float(region[i + len(named)])) for i, axis in enumerate(named)}
    axes = {axis: _Axis(before[axis], after[axis], scale, *regions[axis]) for axis, scale in scales.items()}
    return {axis: way for axis, way in axes.items() if way.size != way.result or way.scale != 1 or regions[axis] != (0.0, 1.0)}


@operator("Resize", "Upsample", rules=(_sampling, constant_inputs(1, 2, 3)))
def resize(node: Node, ctx: Context) -> None:
    """Resample any axes."""
    axes = _axes(node, ctx)
    if ctx.rank(node.inputs[0]) == 4 and set(axes) <= {2, 3} and (flags := _native_flags(node, ctx, axes)):
        order = channels_last(4)
        name = "ResizeNearestNeighbor" if node.attrs.get("mode", "nearest") == "nearest" else "ResizeBilinear"
        function = getattr(ctx.tf.raw_ops, name)
        x = ctx.get(node.inputs[0], order)
        size = [ctx.shape(node.outputs[0])[axis] for axis in (2, 3)]
        ctx.put(node.outputs[0], function(images=x, size=size, align_corners=flags[0], half_pixel_centers=flags[1]), order)
        return
    _resample(node, ctx, axes)


def _native_flags(node: Node, ctx: Context, axes: dict[int, _Axis]) -> tuple[bool, bool] | None:
    """Flags with which TensorFlow's operator reads exactly the wanted points; None when no flags do."""
    if node.attrs.get("mode", "nearest") == "cubic" or ctx.dtype(node.inputs[0]) != "float32" or _coordinate_mode(node) == _CROP:
        return None
    for coordinates, flags in _FLAGS.items():
        if flags[0] and any(ctx.shape(node.outputs[0])[axis] == 1 for axis in (2, 3)):
            continue
        if all(_same_points(node, way, coordinates) for way in axes.values()):
            return flags
    return None


def _same_points(node: Node, way: _Axis, coordinates: str) -> bool:
    wanted, size, result = _axis_matrix(node, way), way.size, way.result
    if node.attrs.get("mode", "nearest") == "nearest":
        # tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h, in its float32
        ratio = np.float32((size - 1) / (result - 1) if coordinates == "align_corners" else size / result)
        shift = np.float32(0.5 if coordinates == "half_pixel" else 0)
        points = (np.arange(result, dtype=np.float32) + shift) * ratio
        index = np.minimum(np.floor(points + 0.5) if coordinates == "align_corners" else np.floor(points), size - 1)
        return bool(np.array_equal(wanted, index))
    ours = _weights(source_positions(coordinates, _Axis(size, result, result / size)), size)
    return bool(np.allclose(wanted, ours, atol=1e-6))


def _axis_matrix(node: Node, way: _Axis) -> np.ndarray:
    """Indices ``(result,)`` of nearest, or weights ``(size, result)`` of linear and cubic."""
    positions = source_positions(_coordinate_mode(node), way)
    mode = node.attrs.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(positions, node.attrs.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"), way.size)
    cubic = node.attrs.get("cubic_coeff_a", -0.75) if mode == "cubic" else None
    stretch = max(1.0, 1 / way.scale) if node.attrs.get("antialias", 0) else 1.0
    return _weights(positions, way.size, cubic, bool(node.attrs.get("exclude_outside", 0)), stretch)


def _resample(node: Node, ctx: Context, axes: dict[int, _Axis]) -> None:
    """One axis after the other: a gather for nearest, a matrix product for the others."""
    shape = list(ctx.shape(node.inputs[0]))
    order = ctx.order(node.inputs[0])
    x: Any = ctx.get(node.inputs[0], order)
    for axis, way in axes.items():
        matrix = _axis_matrix(node, way)
        if matrix.ndim == 1:
            x = ctx.tf.gather(x, ctx.literal(matrix), axis=order.index(axis))
            shape[axis] = way.result
            continue
        last = axis_last(order, axis)
        x, order = ctx.reorder(x, shape, order, last), last
        flat = ctx.tf.matmul(ctx.tf.reshape(x, (-1, shape[axis])), ctx.literal(matrix.astype(np.float32)))
        shape[axis] = way.result
        x = ctx.tf.reshape(flat, [shape[each] for each in order])
    if _coordinate_mode(node) == _CROP:
        x = _extrapolated(node, ctx, x, order, axes)
    ctx.put(node.outputs[0], x, order)


def _extrapolated(node: Node, ctx: Context, x: Any, order: Order, axes: dict[int, _Axis]) -> Any:
    """``extrapolation_value`` where a point lies outside of the image on any axis."""
    inside = np.ones((1,) * len(order), bool)
    for axis, way in axes.items():
        positions = source_positions(_CROP, way)
        shape = [way.result if each == axis else 1 for each in range(len(order))]
        inside = inside & ((positions >= 0) & (positions <= way.size - 1)).reshape(shape)
    if inside.all():
        return x
    outside = np.float32(node.attrs.get("extrapolation_value", 0.0))
    return ctx.tf.where(ctx.literal(inside.transpose(order)), x, ctx.literal(outside))
