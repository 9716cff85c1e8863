"""Resize: TensorFlow Lite's own operator where it samples the same points, else constant indices or weights, which are right for every mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import axis_last, channels_last
from edgekit.converters.tflite._rules import constant_inputs, float_only, operator

__all__ = ["source_positions"]

_MODES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
# coordinate mode -> (align_corners, half_pixel_centers) of TensorFlow's resize operators
_FLAGS = {"align_corners": (True, False), "half_pixel": (False, True), "asymmetric": (False, False)}


def _sampling(node: Node, graph: Graph) -> str:
    """Mode is nearest, linear or cubic at positions that do not depend on a region of interest; no antialias; aspect ratio not kept."""
    del graph
    if (mode := node.attrs.get("mode", "nearest")) not in ("nearest", "linear", "cubic"):
        return f"mode is {mode}"
    if (coordinates := _coordinate_mode(node)) not in _MODES:
        return f"coordinate_transformation_mode is {coordinates}"
    if node.attrs.get("antialias", 0):
        return "antialias is 1"
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    return "" if policy == "stretch" else f"keep_aspect_ratio_policy is {policy}"


def _coordinate_mode(node: Node) -> str:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric"))


def source_positions(mode: str, size: int, result: int, scale: float) -> np.ndarray:
    """Where each output position lies on the input axis, ``(result,)`` float64, by the formulas of the ONNX specification of Resize."""
    x = np.arange(result, dtype=np.float64)
    match mode:
        case "align_corners":
            return x * (size - 1) / (result - 1) if result > 1 else np.zeros(1)
        case "asymmetric":
            return x / scale
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / scale
        case "pytorch_half_pixel" if result == 1:
            return np.zeros(1)
        case "half_pixel_symmetric":
            offset = size / 2 * (1 - result / (scale * size))
            return np.asarray(offset + (x + 0.5) / scale - 0.5)
        case _:
            return (x + 0.5) / scale - 0.5


def _nearest(positions: np.ndarray, mode: str, size: int) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(positions - 0.5),
        "round_prefer_ceil": np.floor(positions + 0.5),
        "floor": np.floor(positions),
        "ceil": np.ceil(positions),
    }[mode]
    return np.asarray(np.clip(rounded, 0, size - 1), np.int32)


def _weights(positions: np.ndarray, size: int, cubic: float | None, exclude_outside: bool) -> np.ndarray:
    """Interpolation matrix ``(size, result)``; taps beyond the edge take the edge's value. ``cubic`` is the coefficient, None for linear."""
    matrix = np.zeros((size, len(positions)))
    base = np.floor(positions)
    for tap in range(2) if cubic is None else range(-1, 3):
        distance = np.abs(positions - (base + tap))
        weight = 1 - distance if cubic is None else _cubic(distance, cubic)
        index = (base + tap).astype(np.int64)
        if exclude_outside:
            weight = np.where((index < 0) | (index >= size), 0.0, weight)
        np.add.at(matrix, (np.clip(index, 0, size - 1), np.arange(len(positions))), weight)
    return np.asarray(matrix / matrix.sum(axis=0)) if exclude_outside else matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    # R. Keys, "Cubic convolution interpolation for digital image processing", 1981
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.asarray(np.where(distance <= 1, near, far))


def _scales(node: Node, ctx: Context) -> dict[int, float]:
    """Scale of every axis that changes its size."""
    before, after = ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0])
    scales = {axis: result / size for axis, (size, result) in enumerate(zip(before, after, strict=True))}
    given = ctx.constant(node.input(2) if node.opset >= 11 else node.input(1))
    if given is not None and given.size:
        axes = [axis % len(before) for axis in node.attrs.get("axes") or range(len(before))]
        scales |= {axis: float(scale) for axis, scale in zip(axes, given, strict=True)}
    return {axis: scale for axis, scale in scales.items() if before[axis] != after[axis] or scale != 1}


@operator("Resize", "Upsample", rules=(float_only, _sampling, constant_inputs(1, 2, 3)))
def resize(node: Node, ctx: Context) -> None:
    """Resample any axes."""
    scales = _scales(node, ctx)
    if ctx.rank(node.inputs[0]) == 4 and set(scales) <= {2, 3} and (flags := _native_flags(node, ctx, scales)):
        order = channels_last(4)
        name = "ResizeNearestNeighbor" if node.attrs.get("mode", "nearest") == "nearest" else "ResizeBilinear"
        function = getattr(ctx.tf.raw_ops, name)
        x = ctx.get(node.inputs[0], order)
        size = [ctx.shape(node.outputs[0])[axis] for axis in (2, 3)]
        ctx.put(node.outputs[0], function(images=x, size=size, align_corners=flags[0], half_pixel_centers=flags[1]), order)
        return
    _resample(node, ctx, scales)


def _native_flags(node: Node, ctx: Context, scales: dict[int, float]) -> tuple[bool, bool] | None:
    """Flags with which TensorFlow's operator reads exactly the wanted points; None when no flags do."""
    mode = node.attrs.get("mode", "nearest")
    for coordinates, flags in _FLAGS.items():
        if mode == "cubic" or (flags[0] and any(ctx.shape(node.outputs[0])[axis] == 1 for axis in (2, 3))):
            continue
        if all(_same_points(node, ctx, axis, scale, coordinates) for axis, scale in scales.items()):
            return flags
    return None


def _same_points(node: Node, ctx: Context, axis: int, scale: float, coordinates: str) -> bool:
    size, result = ctx.shape(node.inputs[0])[axis], ctx.shape(node.outputs[0])[axis]
    wanted = _axis_matrix(node, size, result, scale)
    if node.attrs.get("mode", "nearest") == "nearest":
        # tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h, in its float32
        ratio = np.float32((size - 1) / (result - 1) if coordinates == "align_corners" else size / result)
        shift = np.float32(0.5 if coordinates == "half_pixel" else 0)
        points = (np.arange(result, dtype=np.float32) + shift) * ratio
        index = np.minimum(np.floor(points + 0.5) if coordinates == "align_corners" else np.floor(points), size - 1)
        return bool(np.array_equal(wanted, index))
    ours = _weights(source_positions(coordinates, size, result, result / size), size, None, False)
    return bool(np.allclose(wanted, ours, atol=1e-6))


def _axis_matrix(node: Node, size: int, result: int, scale: float) -> np.ndarray:
    """Indices ``(result,)`` of nearest, or weights ``(size, result)`` of linear and cubic."""
    positions = source_positions(_coordinate_mode(node), size, result, scale)
    mode = node.attrs.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(positions, node.attrs.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"), size)
    cubic = node.attrs.get("cubic_coeff_a", -0.75) if mode == "cubic" else None
    return _weights(positions, size, cubic, bool(node.attrs.get("exclude_outside", 0)))


def _resample(node: Node, ctx: Context, scales: dict[int, float]) -> None:
    """One axis after the other: a gather for nearest, a matrix product for the others."""
    shape = list(ctx.shape(node.inputs[0]))
    order = ctx.order(node.inputs[0])
    x: Any = ctx.get(node.inputs[0], order)
    for axis, scale in scales.items():
        result = ctx.shape(node.outputs[0])[axis]
        matrix = _axis_matrix(node, shape[axis], result, scale)
        if matrix.ndim == 1:
            x = ctx.tf.gather(x, ctx.literal(matrix), axis=order.index(axis))
            shape[axis] = result
            continue
        last = axis_last(order, axis)
        x, order = ctx.reorder(x, shape, order, last), last
        flat = ctx.tf.matmul(ctx.tf.reshape(x, (-1, shape[axis])), ctx.literal(matrix.astype(np.float32)))
        shape[axis] = result
        x = ctx.tf.reshape(flat, [shape[each] for each in order])
    ctx.put(node.outputs[0], x, order)
