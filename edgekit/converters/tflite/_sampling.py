"""Read an image at positions that lie between its elements: gathers of neighbours, weighted and summed.

Positions that are known when the model is built become constant indices and weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import channels_last
from edgekit.converters.tflite._rules import constant_inputs, float_only, operator, rank_between
from edgekit.converters.tflite._window import window_of

__all__ = ["Taps", "sample", "taps_at"]


@dataclass(frozen=True)
class Taps:
    """The elements that positions on one axis read; all tensors have the positions' shape.

    Attributes:
        indices: per tap, int32 inside the axis.
        weights: per tap, float32; zero where nothing is read.
    """

    indices: tuple[Any, ...]
    weights: tuple[Any, ...]


def taps_at(tf: Any, x: Any, size: int, mode: str, padding: str, align: bool) -> Taps:
    """Taps of positions on one axis by the rules of the ONNX specification of GridSample.

    Args:
        tf: the module.
        x: positions, float32; 0 is the middle of the first element.
        size: of the axis.
        mode: ``nearest``, ``linear`` or ``cubic``.
        padding: ``zeros``, ``border`` or ``reflection``.
        align: reflect at the middle of the outermost elements, not at their edge.
    """
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    if mode == "nearest":
        x = tf.round(x)
    if mode != "cubic" and padding != "zeros":
        x = _clipped(tf, x, size) if padding == "border" else _reflected(tf, x, low, high)
    base = x if mode == "nearest" else tf.floor(x)
    indices, weights = [], []
    for tap, weight in _tap_weights(tf, x - base, mode):
        place = base + tap
        if padding == "reflection":
            place = _reflected(tf, place, low, high)
        indices.append(tf.cast(_clipped(tf, place, size), tf.int32))
        inside = tf.logical_and(place >= 0.0, place <= size - 1.0)
        weights.append(tf.where(inside, weight, tf.zeros_like(weight)) if padding == "zeros" else weight)
    return Taps(tuple(indices), tuple(weights))


def _tap_weights(tf: Any, part: Any, mode: str) -> list[tuple[float, Any]]:
    """Distance of every tap from the element below, and its weight; ``part`` is how far the position lies beyond that."""
    if mode == "nearest":
        return [(0.0, tf.ones_like(part))]
    if mode == "linear":
        return [(0.0, 1.0 - part), (1.0, part)]
    a = -0.75  # "cubic_coeff_a" of PyTorch's grid_sample, which ONNX Runtime uses too

    def far(d: Any) -> Any:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1.0

    return [(-1.0, far(part + 1.0)), (0.0, near(part)), (1.0, near(1.0 - part)), (2.0, far(2.0 - part))]


def _clipped(tf: Any, x: Any, size: int) -> Any:
    return tf.minimum(tf.maximum(x, 0.0), size - 1.0)


def _reflected(tf: Any, x: Any, low: float, high: float) -> Any:
    """Fold positions back between two mirrors."""
    if high <= low:
        return tf.zeros_like(x) + low
    span = high - low
    turned = tf.math.floormod(x - low, 2 * span)
    return low + tf.minimum(turned, 2 * span - turned)


def sample(ctx: Context, x: Any, axes: Sequence[Taps]) -> list[tuple[Any, Any]]:
    """The elements that every combination of taps reads, ``(batch, positions, channels)``, each with its weight ``(batch, positions, 1)``.

    Args:
        ctx: the model under construction.
        x: ``(batch, *sizes, channels)``.
        axes: one for each spatial axis, with tensors ``(batch, positions)``.
    """
    tf, sizes = ctx.tf, x.shape[1:-1]
    flat = tf.reshape(x, (x.shape[0], -1, x.shape[-1]))
    read = []
    for taps in itertools.product(*(range(len(axis.indices)) for axis in axes)):
        index: Any = None
        weight: Any = None
        for tap, axis, size in zip(taps, axes, sizes, strict=True):
            index = axis.indices[tap] if index is None else index * size + axis.indices[tap]
            weight = axis.weights[tap] if weight is None else weight * axis.weights[tap]
        read.append((_gathered(ctx, flat, index), tf.expand_dims(weight, -1)))
    return read


def _gathered(ctx: Context, flat: Any, index: Any) -> Any:
    """Rows of ``(batch, elements, channels)``."""
    tf, (batch, _, channels) = ctx.tf, flat.shape
    if batch == 1:
        return tf.reshape(tf.gather(flat[0], tf.reshape(index, (-1,))), (1, -1, channels))
    return tf.gather(flat, index, axis=1, batch_dims=1)


def _weighted_sum(tf: Any, read: list[tuple[Any, Any]]) -> Any:
    return functools.reduce(tf.add, [value * weight for value, weight in read])


def _known(ctx: Context, name: str) -> Any:
    """A tensor in logical order for computing positions; one that TensorFlow evaluates at once where it is a constant."""
    constant = ctx.constant(name)
    return ctx.get(name) if constant is None else ctx.tf.constant(constant)


# --- grids -----------------------------------------------------------------------------------------------------------------------------------

_MODES = {"bilinear": "linear", "bicubic": "cubic"}  # names before opset 20


def _grid_mode(node: Node, graph: Graph) -> str:
    """Mode is nearest, linear or cubic; padding is zeros, border or reflection."""
    del graph
    mode = node.attrs.get("mode", "linear")
    if _MODES.get(mode, mode) not in ("nearest", "linear", "cubic"):
        return f"mode is {mode}"
    padding = node.attrs.get("padding_mode", "zeros")
    return "" if padding in ("zeros", "border", "reflection") else f"padding_mode is {padding}"


@operator("GridSample", rules=(float_only, rank_between(3, 5), _grid_mode))
def grid_sample(node: Node, ctx: Context) -> None:
    """Read the image where a grid points to, ``-1`` to ``1`` being its width."""
    rank, align = ctx.rank(node.inputs[0]), bool(node.attrs.get("align_corners", 0))
    mode, padding = node.attrs.get("mode", "linear"), node.attrs.get("padding_mode", "zeros")
    x = ctx.get(node.inputs[0], channels_last(rank))
    with _eager(ctx, node.inputs[1]):
        grid = _known(ctx, node.inputs[1])
        axes = []
        for axis in range(rank - 2):
            size = x.shape[1 + axis]
            place = ctx.tf.reshape(grid[..., rank - 3 - axis], (x.shape[0], -1))  # the last coordinate is that of the first axis
            place = (place + 1.0) * ((size - 1) / 2) if align else ((place + 1.0) * size - 1.0) / 2
            axes.append(taps_at(ctx.tf, place, size, _MODES.get(mode, mode), padding, align))
    y = _weighted_sum(ctx.tf, sample(ctx, x, axes))
    after = ctx.shape(node.outputs[0])
    ctx.put(node.outputs[0], ctx.tf.reshape(y, (after[0], *after[2:], after[1])), channels_last(rank))


def _eager(ctx: Context, name: str) -> Any:
    """Evaluate at once what depends on constants only."""
    return ctx.tf.init_scope() if ctx.constant(name) is not None else ctx.tf.name_scope("positions")


# --- deformable convolution ------------------------------------------------------------------------------------------------------------------


@operator("DeformConv", rules=(float_only, rank_between(4, 4), constant_inputs(1)))
def deform_conv(node: Node, ctx: Context) -> None:
    """Convolution whose taps are moved: they are gathered side by side, then a convolution of the taps is taken."""
    tf, weights = ctx.tf, np.asarray(ctx.constant(node.inputs[1]))
    window = window_of(node, ctx.graph, weights.shape[2:])
    x = ctx.get(node.inputs[0], channels_last(4))
    batch, channels = x.shape[0], x.shape[-1]
    taps, area = int(np.prod(window.kernel)), int(np.prod(window.results))
    groups = node.attrs.get("offset_group", 1)
    offsets = tf.reshape(ctx.get(node.inputs[2]), (batch, groups, taps, 2, area))
    mask = tf.reshape(ctx.get(node.inputs[4]), (batch, groups, taps * area, 1)) if node.input(4) else None
    parts = []
    for group, part in enumerate(tf.split(x, groups, axis=3)):
        axes = []
        for axis, size in enumerate(window.sizes):
            grid = ctx.literal(_regular(window.results, window.kernel, window.strides, window.dilations, window.begins, axis))
            place = tf.reshape(offsets[:, group, :, axis] + grid, (batch, taps * area))
            axes.append(taps_at(tf, place, size, "linear", "zeros", align=True))
        y = _weighted_sum(tf, sample(ctx, part, axes))
        parts.append(y if mask is None else y * mask[:, group])
    gathered = tf.reshape(tf.concat(parts, 2), (batch, taps, area, channels))
    # (O, I, kh, kw) to (taps, 1, I, O); groups are those of a convolution
    kernel = weights.reshape(*weights.shape[:2], taps, 1).transpose(2, 3, 1, 0)
    y = tf.raw_ops.Conv2D(input=gathered, filter=ctx.literal(kernel), strides=[1, 1, 1, 1], padding="VALID")
    y = tf.nn.bias_add(y, ctx.get(node.inputs[3])) if node.input(3) else y
    ctx.put(node.outputs[0], tf.reshape(y, (batch, *window.results, weights.shape[0])), channels_last(4))


def _regular(
    results: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], begins: Sequence[int], axis: int
) -> np.ndarray:
    """Where every tap lies on one axis before it is moved, ``(taps, area)`` float32."""
    tap = np.indices(kernel)[axis].reshape(-1, 1) * dilations[axis]
    place = np.indices(results)[axis].reshape(1, -1) * strides[axis] - begins[axis]
    return np.asarray(tap + place, np.float32)


# --- regions ---------------------------------------------------------------------------------------------------------------------------------


def _known_samples(node: Node, graph: Graph) -> str:
    """``sampling_ratio`` is given, or regions are constants and averaged."""
    if node.attrs.get("sampling_ratio", 0) > 0:
        return ""
    if node.attrs.get("mode", "avg") != "avg":
        return "sampling_ratio is 0 and mode is max"
    return "" if node.inputs[1] in graph.constants else f"sampling_ratio is 0 and input 1 ({node.inputs[1]!r}) is computed"


@operator("RoiAlign", rules=(float_only, _known_samples))
def roi_align(node: Node, ctx: Context) -> None:
    """Average or maximum of samples in every cell of a region."""
    tf = ctx.tf
    x = tf.gather(ctx.get(node.inputs[0], channels_last(4)), tf.cast(ctx.get(node.inputs[2]), tf.int32))
    regions = ctx.constant(node.inputs[1])
    if regions is not None and node.attrs.get("mode", "avg") == "avg":
        y = _averaged_regions(node, ctx, x, regions)
    else:
        y = _sampled_regions(node, ctx, x)
    ctx.put(node.outputs[0], y, channels_last(4))


def _cells(node: Node) -> tuple[int, int]:
    return int(node.attrs.get("output_height", 1)), int(node.attrs.get("output_width", 1))


def _shifted(node: Node) -> bool:
    """Positions are those of elements' middles; the attribute came with opset 16."""
    return bool(node.attrs.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "output_half_pixel") == "half_pixel")


def _averaged_regions(node: Node, ctx: Context, x: Any, regions: np.ndarray) -> Any:
    """Two products with constant matrices: a mean over a grid of bilinear samples is one along each axis."""
    tf, scale = ctx.tf, float(node.attrs.get("spatial_scale", 1.0))
    count, height, width, channels = x.shape
    corners = regions.astype(np.float64) * scale - (0.5 if _shifted(node) else 0.0)
    rows, columns = (
        np.stack([_region_matrix(node, corner[first], corner[first + 2], size, cells) for corner in corners])
        for first, size, cells in zip((1, 0), (height, width), _cells(node), strict=True)
    )
    y = tf.reshape(tf.matmul(ctx.literal(rows), tf.reshape(x, (count, height, width * channels))), (count, -1, width, channels))
    return tf.matmul(tf.broadcast_to(ctx.literal(columns[:, None]), (count, y.shape[1], *columns.shape[1:])), y)


def _region_matrix(node: Node, start: float, end: float, size: int, cells: int) -> np.ndarray:
    """Weights ``(cells, size)`` float32 of one region along one axis."""
    extent = end - start if _shifted(node) else max(end - start, 1.0)
    cell = extent / cells
    count = node.attrs.get("sampling_ratio", 0) or int(np.ceil(cell))
    matrix = np.zeros((cells, size))
    for index, place in itertools.product(range(cells), range(count)):
        position = start + index * cell + (place + 0.5) * cell / count
        if not -1.0 <= position <= size:
            continue
        position = min(max(position, 0.0), size - 1.0)
        low = int(position)
        high = min(low + 1, size - 1)
        matrix[index, low] += (1 - (position - low)) / count
        matrix[index, high] += (position - low) / count
    return matrix.astype(np.float32)


def _sampled_regions(node: Node, ctx: Context, x: Any) -> Any:
    tf, (count, _, _, channels) = ctx.tf, x.shape
    samples, cells = int(node.attrs["sampling_ratio"]), _cells(node)
    scale, shift = np.float32(node.attrs.get("spatial_scale", 1.0)), np.float32(0.5 if _shifted(node) else 0.0)
    with _eager(ctx, node.inputs[1]):
        corners = _known(ctx, node.inputs[1]) * scale - shift
        axes = []
        for axis, first in enumerate((1, 0)):
            start, extent = corners[:, first], corners[:, first + 2] - corners[:, first]
            extent = extent if _shifted(node) else tf.maximum(extent, 1.0)
            part = (np.arange(cells[axis] * samples, dtype=np.float32) + np.float32(0.5)) / np.float32(cells[axis] * samples)
            line = start[:, None] + extent[:, None] * part
            # (cells of rows, cells of columns, samples of rows, samples of columns)
            line = tf.reshape(line, (count, *((cells[0], 1, samples, 1) if axis == 0 else (1, cells[1], 1, samples))))
            place = tf.reshape(tf.broadcast_to(line, (count, *cells, samples, samples)), (count, -1))
            axes.append(_region_taps(tf, place, x.shape[1 + axis]))
    read = sample(ctx, x, axes)
    shape = (count, *cells, samples * samples, channels)
    if node.attrs.get("mode", "avg") == "avg":
        return tf.reduce_mean(tf.reshape(_weighted_sum(tf, read), shape), 3)
    # ONNX Runtime and the reference implementation take the maximum of the weighted neighbours, not of their sums.
    largest = functools.reduce(tf.maximum, [value * weight for value, weight in read])
    return tf.reduce_max(tf.reshape(largest, shape), 3)


def _region_taps(tf: Any, place: Any, size: int) -> Taps:
    """Linear taps; a sample more than one element outside reads nothing."""
    inside = tf.cast(tf.logical_and(place >= -1.0, place <= float(size)), tf.float32)
    taps = taps_at(tf, place, size, "linear", "border", align=True)
    return Taps(taps.indices, tuple(weight * inside for weight in taps.weights))
