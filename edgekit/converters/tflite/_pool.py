"""Pools over one to three axes, and over everything.

A maximum, a mean or a sum over a box is that over one axis after the other, so three axes are pooled as two and then one, and dilated
windows as shifted slices along each axis.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import dtypes, float_only, operator, rank_between
from edgekit.converters.tflite._spatial import at_least_two, put_spatial, spatial
from edgekit.converters.tflite._window import Window, window_of

__all__: list[str] = []

_SMALL = ("uint8", "int8")
"""Integers that float32 holds exactly; the kernels take them as floats."""


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", rules=(float_only,))
def global_pool(node: Node, ctx: Context) -> None:
    """Mean, maximum or norm over all spatial axes, kept with size 1."""
    tf, order = ctx.tf, ctx.order(node.inputs[0])
    axes = sorted(order.index(axis) for axis in range(2, len(order)))
    x = ctx.get(node.inputs[0], order)
    if node.op == "GlobalLpPool":
        power = float(node.attrs.get("p", 2))
        y = _root(ctx, tf.reduce_sum(_powered(ctx, x, power), axes, keepdims=True), power)
    else:
        y = (tf.reduce_mean if node.op == "GlobalAveragePool" else tf.reduce_max)(x, axes, keepdims=True)
    ctx.put(node.outputs[0], y, order)


# --- over a window ---------------------------------------------------------------------------------------------------------------------------


def _pooled(ctx: Context, x: Any, window: Window, padding: str, pool: Callable[..., Any], combine: Callable[[list[Any]], Any]) -> Any:
    """Pool ``x`` ``(batch, *sizes, channels)``.

    Args:
        ctx: the model under construction.
        x: padded already where ``padding`` is VALID.
        window: of the pool.
        padding: VALID, or SAME where the window has two axes and no dilation.
        pool: TensorFlow's two-dimensional pool.
        combine: what a pool does with the equally shaped tensors that hold one tap each.
    """
    if set(window.dilations) != {1}:
        for axis in range(len(window.kernel)):
            x = combine(_taps(x, window, axis))
        return x
    if len(window.kernel) == 2:
        return pool(x, window.kernel, window.strides, padding)
    batch, depth, height, width, channels = x.shape
    inner = pool(ctx.tf.reshape(x, (batch * depth, height, width, channels)), window.kernel[1:], window.strides[1:], "VALID")
    across = ctx.tf.reshape(inner, (batch, depth, -1, channels))
    outer = pool(across, (window.kernel[0], 1), (window.strides[0], 1), "VALID")
    return ctx.tf.reshape(outer, (batch, *window.results, channels))


def _taps(x: Any, window: Window, axis: int) -> list[Any]:
    """The elements that each tap of the window meets along one spatial axis."""
    size, step, dilation = window.results[axis], window.strides[axis], window.dilations[axis]
    before: tuple[slice, ...] = (slice(None),) * (axis + 1)
    taps = []
    for tap in range(window.kernel[axis]):
        begin = tap * dilation
        taps.append(x[(*before, slice(begin, begin + (size - 1) * step + 1, step))])
    return taps


def _begins_inside(node: Node, graph: Graph) -> str:
    """The last window begins in the image or in the padding before it; ONNX Runtime leaves out others, which ``ceil_mode`` can ask for."""
    window = window_of(node, graph, node.attrs["kernel_shape"])
    for result, step, size, begin in zip(window.results, window.strides, window.sizes, window.begins, strict=True):
        if (result - 1) * step >= size + begin:
            return f"window {result} of {size} elements begins at {(result - 1) * step - begin}"
    return ""


def _window(node: Node, ctx: Context) -> Window:
    return at_least_two(window_of(node, ctx.graph, node.attrs["kernel_shape"]))


def _padded(ctx: Context, x: Any, window: Window, value: float = 0.0) -> Any:
    if not any(max(pair) for pair in window.pads):
        return x
    return ctx.tf.pad(x, [(0, 0), *window.pads, (0, 0)], constant_values=value)


def _native(window: Window) -> bool:
    """True where TensorFlow's own pool reads the very windows with VALID or SAME."""
    return len(window.kernel) == 2 and set(window.dilations) == {1} and window.padding != "EXPLICIT"


@operator("MaxPool", rules=(dtypes("float32", *_SMALL), rank_between(3, 5), _begins_inside))
def max_pool(node: Node, ctx: Context) -> None:
    """Maximum over a window, and where it was found; padding never wins."""
    tf, window = ctx.tf, _window(node, ctx)
    kind = ctx.dtype(node.inputs[0])
    x = tf.cast(spatial(node, ctx), tf.float32)
    if len(node.outputs) > 1 and node.outputs[1]:
        y = _with_indices(node, ctx, x, window)
    elif _native(window):
        y = tf.nn.max_pool2d(x, window.kernel, window.strides, window.padding)
    else:
        padded = _padded(ctx, x, window, float(np.finfo(np.float32).min))
        y = _pooled(ctx, padded, window, "VALID", tf.nn.max_pool2d, lambda taps: functools.reduce(tf.maximum, taps))
    if node.outputs[0]:
        put_spatial(node, ctx, tf.cast(y, kind))


def _with_indices(node: Node, ctx: Context, x: Any, window: Window) -> Any:
    """The maxima; puts their flat positions in the logical tensor, the first of equal ones, as the second output."""
    tf = ctx.tf
    padded = _padded(ctx, x, window, float(np.finfo(np.float32).min))
    positions = _padded_positions(window, bool(node.attrs.get("storage_order", 0)))
    best: Any = None
    index: Any = None
    for tap in itertools.product(*(range(size) for size in window.kernel)):
        cut = tuple(
            slice(at * dilation, at * dilation + (size - 1) * step + 1, step)
            for at, dilation, size, step in zip(tap, window.dilations, window.results, window.strides, strict=True)
        )
        value = padded[(slice(None), *cut)]
        place = ctx.literal(np.ascontiguousarray(positions[cut])[None, ..., None])
        if best is None:
            best, index = value, tf.broadcast_to(place, value.shape)
        else:
            # A position inside beats padding also where the image holds the lowest number.
            better = tf.logical_or(value > best, tf.logical_and(index < 0, place >= 0))
            best, index = tf.where(better, value, best), tf.where(better, tf.broadcast_to(place, value.shape), index)
    batch, channels = x.shape[0], x.shape[-1]
    area = int(np.prod(window.sizes))
    planes = (np.arange(batch)[:, None] * channels + np.arange(channels)) * area
    shape = (batch, *(1,) * len(window.kernel), channels)
    put_spatial(node, ctx, tf.cast(index + ctx.literal(planes.reshape(shape).astype(np.int32)), tf.int64), 1)
    return best


def _padded_positions(window: Window, column_major: bool) -> np.ndarray:
    """Flat position of every element of one padded plane, int32; -1 for padding."""
    plane = np.arange(int(np.prod(window.sizes)), dtype=np.int32).reshape(window.sizes, order="F" if column_major else "C")
    return np.pad(plane, window.pads, constant_values=-1)


@operator("AveragePool", rules=(float_only, rank_between(3, 5), _begins_inside))
def average_pool(node: Node, ctx: Context) -> None:
    """Mean over a window, with or without the padding in the count."""
    tf, window = ctx.tf, _window(node, ctx)
    include = bool(node.attrs.get("count_include_pad", 0))
    x = spatial(node, ctx)
    if _native(window) and (window.padding == "VALID" or not include):
        y = tf.nn.avg_pool2d(x, window.kernel, window.strides, window.padding)
    else:
        y = _window_mean(ctx, x, window)
        ratio = np.prod(window.kernel) / _counts(window, include)
        if not np.all(ratio == 1):
            y = y * ctx.literal(ratio.astype(np.float32)[None, ..., None])
    put_spatial(node, ctx, y)


def _window_mean(ctx: Context, x: Any, window: Window) -> Any:
    """Mean over windows in which padding counts as zeros."""

    def mean(taps: list[Any]) -> Any:
        return functools.reduce(ctx.tf.add, taps) * ctx.literal(np.float32(1 / len(taps)))

    return _pooled(ctx, _padded(ctx, x, window), window, "VALID", ctx.tf.nn.avg_pool2d, mean)


def _counts(window: Window, include_padding: bool) -> np.ndarray:
    """How many elements the mean of each output position counts, ``(*results)``."""
    counts = []
    for axis, size in enumerate(window.sizes):
        low = -window.begins[axis] if include_padding else 0
        high = size + (window.declared_ends[axis] if include_padding else 0)
        starts = np.arange(window.results[axis]) * window.strides[axis] - window.begins[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        counts.append(((taps >= low) & (taps < high)).sum(axis=1))
    return np.asarray(functools.reduce(np.multiply.outer, counts), np.float64)


# --- norms -----------------------------------------------------------------------------------------------------------------------------------


@operator("LpPool", rules=(float_only, rank_between(3, 5), _begins_inside))
def lp_pool(node: Node, ctx: Context) -> None:
    """``(sum |x|^p)^(1/p)`` over a window."""
    window, power = _window(node, ctx), float(node.attrs.get("p", 2))
    mean = _window_mean(ctx, _powered(ctx, spatial(node, ctx), power), window)
    put_spatial(node, ctx, _root(ctx, mean * ctx.literal(np.float32(np.prod(window.kernel))), power))


def _powered(ctx: Context, x: Any, power: float) -> Any:
    if power == 1:
        return ctx.tf.abs(x)
    return ctx.tf.square(x) if power == 2 else ctx.tf.pow(ctx.tf.abs(x), ctx.literal(np.float32(power)))


def _root(ctx: Context, x: Any, power: float) -> Any:
    if power == 1:
        return x
    return ctx.tf.sqrt(x) if power == 2 else ctx.tf.pow(x, ctx.literal(np.float32(1 / power)))


# --- back ------------------------------------------------------------------------------------------------------------------------------------


def _distinct(node: Node, graph: Graph) -> str:
    """Indices are constants, or the windows do not overlap, so that no position is written twice."""
    kernel = node.attrs["kernel_shape"]
    strides = node.attrs.get("strides") or [1] * len(kernel)
    if node.inputs[1] in graph.constants or all(step >= size for step, size in zip(strides, kernel, strict=True)):
        return ""
    return f"windows of {kernel} overlap at strides {strides}"


@operator("MaxUnpool", rules=(float_only, _distinct))
def max_unpool(node: Node, ctx: Context) -> None:
    """Every value goes to the position that its index names; the others are zero."""
    tf, after = ctx.tf, ctx.shape(node.outputs[0])
    count, before = int(np.prod(after)), int(np.prod(ctx.shape(node.inputs[0])))
    values = tf.reshape(ctx.get(node.inputs[0]), (before,))
    indices = ctx.constant(node.inputs[1])
    if indices is None:
        places = tf.reshape(tf.cast(ctx.get(node.inputs[1]), tf.int32), (before, 1))
        y = tf.scatter_nd(places, values, (count,))
    else:
        # Which value lands at each position, the last one where several do; one past the end is a zero.
        source = np.full(count, before, np.int32)
        source[indices.reshape(-1)] = np.arange(before, dtype=np.int32)
        y = tf.gather(tf.pad(values, [(0, 1)]), ctx.literal(source))
    ctx.put(node.outputs[0], tf.reshape(y, after))
