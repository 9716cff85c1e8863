"""Pools over one or two axes, and over everything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._nn import _put_spatial, _spatial, _two_dimensional
from edgekit.converters.tflite._rules import float_only, one_output, operator, rank_between
from edgekit.converters.tflite._window import Window, window_of

__all__: list[str] = []


@operator("GlobalAveragePool", "GlobalMaxPool", rules=(float_only,))
def global_pool(node: Node, ctx: Context) -> None:
    """Mean or maximum over all spatial axes, kept with size 1."""
    order = ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(2, len(order))]
    reduce = ctx.tf.reduce_mean if node.op == "GlobalAveragePool" else ctx.tf.reduce_max
    ctx.put(node.outputs[0], reduce(ctx.get(node.inputs[0], order), sorted(axes), keepdims=True), order)


@operator("MaxPool", rules=(float_only, rank_between(3, 4), one_output))
def max_pool(node: Node, ctx: Context) -> None:
    """Maximum over a window; padding never wins. A dilated window is the maximum of its shifted slices."""
    tf = ctx.tf
    window = _two_dimensional(window_of(node, ctx.graph, node.attrs["kernel_shape"]))
    x, padding = _spatial(node, ctx, ctx.rank(node.inputs[0])), window.padding
    dilated = set(window.dilations) != {1}
    if padding == "EXPLICIT" or (dilated and padding == "SAME"):
        lowest = float(np.finfo(np.float32).min)
        x, padding = tf.pad(x, [(0, 0), *window.pads, (0, 0)], constant_values=lowest), "VALID"
    y = _dilated_max(ctx, x, window) if dilated else tf.nn.max_pool2d(x, window.kernel, window.strides, padding)
    _put_spatial(node, ctx, y)


def _dilated_max(ctx: Context, x: Any, window: Window) -> Any:
    spans = [(result - 1) * step + 1 for result, step in zip(window.results, window.strides, strict=True)]
    taps = []
    for tap in itertools.product(*(range(size) for size in window.kernel)):
        begin = [index * dilation for index, dilation in zip(tap, window.dilations, strict=True)]
        end = [start + span for start, span in zip(begin, spans, strict=True)]
        taps.append(ctx.tf.strided_slice(x, [0, *begin, 0], [x.shape[0], *end, x.shape[3]], [1, *window.strides, 1]))
    y = taps[0]
    for tap_values in taps[1:]:
        y = ctx.tf.maximum(y, tap_values)
    return y


@operator("AveragePool", rules=(float_only, rank_between(3, 4)))
def average_pool(node: Node, ctx: Context) -> None:
    """Mean over a window, with or without the padding in the count."""
    tf = ctx.tf
    window = _two_dimensional(window_of(node, ctx.graph, node.attrs["kernel_shape"]))
    include = bool(node.attrs.get("count_include_pad", 0))
    x, padding = _spatial(node, ctx, ctx.rank(node.inputs[0])), window.padding
    if set(window.dilations) != {1}:
        padding = "EXPLICIT"
    if padding == "VALID" or (padding == "SAME" and not include):
        y = tf.nn.avg_pool2d(x, window.kernel, window.strides, padding)
    else:
        x = tf.pad(x, [(0, 0), *window.pads, (0, 0)])
        dilated = set(window.dilations) != {1}
        y = _dilated_mean(ctx, x, window) if dilated else tf.nn.avg_pool2d(x, window.kernel, window.strides, "VALID")
        ratio = np.prod(window.kernel) / _counts(window, include)
        if not np.all(ratio == 1):
            y = y * ctx.literal(ratio.astype(np.float32)[None, :, :, None])
    _put_spatial(node, ctx, y)


def _dilated_mean(ctx: Context, x: Any, window: Window) -> Any:
    channels = x.shape[3]
    kernel = np.full((*window.kernel, channels, 1), 1 / np.prod(window.kernel), np.float32)
    return ctx.tf.raw_ops.DepthwiseConv2dNative(
        input=x,
        filter=ctx.literal(kernel),
        strides=[1, *window.strides, 1],
        padding="VALID",
        dilations=[1, *window.dilations, 1],
    )


def _counts(window: Window, include_padding: bool) -> np.ndarray:
    """How many elements the mean of each output position counts, per pair of positions."""
    counts = []
    for axis, size in enumerate(window.sizes):
        low = -window.begins[axis] if include_padding else 0
        high = size + (window.declared_ends[axis] if include_padding else 0)
        starts = np.arange(window.results[axis]) * window.strides[axis] - window.begins[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        counts.append(((taps >= low) & (taps < high)).sum(axis=1))
    return np.outer(counts[0], counts[1]).astype(np.float64)
