"""Resize: TensorFlow Lite's own operator where it samples the same points, else constant indices or weights, which are right for every mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._resampling import (
    COORDINATE_MODES,
    CROP,
    ResampledAxis,
    axis_matrix,
    coordinate_mode,
    inside,
    resampled_axes,
    source_positions,
    weights,
)
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import Order, axis_last, channels_last
from edgekit.converters.tflite._rules import constant_inputs, operator

__all__: list[str] = []

# coordinate mode -> (align_corners, half_pixel_centers) of TensorFlow's resize operators
_FLAGS = {"asymmetric": (False, False), "half_pixel": (False, True), "align_corners": (True, False)}


def _sampling(node: Node, graph: Graph) -> str:
    """Mode is nearest, linear or cubic (nearest for integers), in a coordinate mode of the specification."""
    if (mode := node.attrs.get("mode", "nearest")) not in ("nearest", "linear", "cubic"):
        return f"mode is {mode}"
    if (coordinates := coordinate_mode(node)) not in COORDINATE_MODES:
        return f"coordinate_transformation_mode is {coordinates}"
    kind = graph.types[node.inputs[0]].dtype
    return "" if kind == "float32" or (mode == "nearest" and coordinates != CROP) else f"mode is {mode} and the image is {kind}"


@operator("Resize", "Upsample", rules=(_sampling, constant_inputs(1, 2, 3)))
def resize(node: Node, ctx: Context) -> None:
    """Resample any axes."""
    axes = resampled_axes(node, ctx.graph)
    if ctx.rank(node.inputs[0]) == 4 and set(axes) <= {2, 3} and (flags := _native_flags(node, ctx, axes)):
        order = channels_last(4)
        name = "ResizeNearestNeighbor" if node.attrs.get("mode", "nearest") == "nearest" else "ResizeBilinear"
        function = getattr(ctx.tf.raw_ops, name)
        x = ctx.get(node.inputs[0], order)
        size = [ctx.shape(node.outputs[0])[axis] for axis in (2, 3)]
        ctx.put(node.outputs[0], function(images=x, size=size, align_corners=flags[0], half_pixel_centers=flags[1]), order)
        return
    _resample(node, ctx, axes)


def _native_flags(node: Node, ctx: Context, axes: dict[int, ResampledAxis]) -> tuple[bool, bool] | None:
    """Flags with which TensorFlow's operator reads exactly the wanted points; None when no flags do."""
    if node.attrs.get("mode", "nearest") == "cubic" or ctx.dtype(node.inputs[0]) != "float32" or coordinate_mode(node) == CROP:
        return None
    for coordinates, flags in _FLAGS.items():
        if flags[0] and any(ctx.shape(node.outputs[0])[axis] == 1 for axis in (2, 3)):
            continue
        if all(_same_points(node, way, coordinates) for way in axes.values()):
            return flags
    return None


def _same_points(node: Node, way: ResampledAxis, coordinates: str) -> bool:
    wanted, size, result = axis_matrix(node, way), way.size, way.result
    if node.attrs.get("mode", "nearest") == "nearest":
        # tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h, in its float32
        ratio = np.float32((size - 1) / (result - 1) if coordinates == "align_corners" else size / result)
        shift = np.float32(0.5 if coordinates == "half_pixel" else 0)
        points = (np.arange(result, dtype=np.float32) + shift) * ratio
        index = np.minimum(np.floor(points + 0.5) if coordinates == "align_corners" else np.floor(points), size - 1)
        return bool(np.array_equal(wanted, index))
    ours = weights(source_positions(coordinates, ResampledAxis(size, result, result / size)), size)
    return bool(np.allclose(wanted, ours, atol=1e-6))


def _resample(node: Node, ctx: Context, axes: dict[int, ResampledAxis]) -> None:
    """One axis after the other: a gather for nearest, a matrix product for the others."""
    shape = list(ctx.shape(node.inputs[0]))
    order = ctx.order(node.inputs[0])
    x: Any = ctx.get(node.inputs[0], order)
    for axis, way in axes.items():
        matrix = axis_matrix(node, way)
        if matrix.ndim == 1:
            x = ctx.tf.gather(x, ctx.literal(matrix), axis=order.index(axis))
            shape[axis] = way.result
            continue
        last = axis_last(order, axis)
        x, order = ctx.reorder(x, shape, order, last), last
        flat = ctx.tf.matmul(ctx.tf.reshape(x, (-1, shape[axis])), ctx.literal(matrix.astype(np.float32)))
        shape[axis] = way.result
        x = ctx.tf.reshape(flat, [shape[each] for each in order])
    if coordinate_mode(node) == CROP:
        x = _extrapolated(node, ctx, x, order, axes)
    ctx.put(node.outputs[0], x, order)


def _extrapolated(node: Node, ctx: Context, x: Any, order: Order, axes: dict[int, ResampledAxis]) -> Any:
    """``extrapolation_value`` where a point lies outside of the image on any axis."""
    kept = inside(node, axes, len(order))
    if kept.all():
        return x
    outside = np.float32(node.attrs.get("extrapolation_value", 0.0))
    return ctx.tf.where(ctx.literal(kept.transpose(order)), x, ctx.literal(outside))
