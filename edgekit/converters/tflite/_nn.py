"""Convolutions, normalisation, matrix products and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import axis_last, channels_last, identity
from edgekit.converters.tflite._rules import constant_inputs, float_only, one_output, operator, rank_between
from edgekit.converters.tflite._window import Window, window_of

__all__: list[str] = []


def _spatial(node: Node, ctx: Context, rank: int) -> Any:
    """The first input channels-last, a one-dimensional one with a spatial axis of size 1 in front."""
    x = ctx.get(node.inputs[0], channels_last(rank))
    if rank == 3:
        batch, length, channels = x.shape
        x = ctx.tf.reshape(x, (batch, 1, length, channels))
    return x


def _put_spatial(node: Node, ctx: Context, y: Any) -> None:
    """Record a channels-last result of `_spatial`'s rank."""
    rank = ctx.rank(node.outputs[0])
    if rank == 3:
        y = ctx.tf.reshape(y, (y.shape[0], y.shape[2], y.shape[3]))
    ctx.put(node.outputs[0], y, channels_last(rank))


def _two_dimensional(window: Window) -> Window:
    return window.with_leading_axis() if len(window.kernel) == 1 else window


def _weights(node: Node, ctx: Context) -> np.ndarray:
    weights = ctx.constant(node.inputs[1])
    assert weights is not None  # the constraint says so
    return weights[:, :, None, :] if weights.ndim == 3 else weights


def _add_bias(node: Node, ctx: Context, y: Any, index: int = 2) -> Any:
    bias = ctx.constant(node.input(index))
    return y if bias is None else ctx.tf.nn.bias_add(y, ctx.literal(bias))


# --- convolution -----------------------------------------------------------------------------------------------------------------------------


@operator("Conv", rules=(float_only, rank_between(3, 4), constant_inputs(1, 2)))
def conv(node: Node, ctx: Context) -> None:
    """Convolution over one or two axes: plain, grouped or depthwise."""
    weights = _weights(node, ctx)
    rank = ctx.rank(node.inputs[0])
    window = _two_dimensional(window_of(node, ctx.graph, ctx.shape(node.inputs[1])[2:]))
    x, padding = _spatial(node, ctx, rank), window.padding
    if padding == "EXPLICIT":
        x, padding = ctx.tf.pad(x, [(0, 0), *window.pads, (0, 0)]), "VALID"
    settings = {"strides": [1, *window.strides, 1], "padding": padding, "dilations": [1, *window.dilations, 1]}
    group, channels = node.attrs.get("group", 1), ctx.shape(node.inputs[0])[1]
    if group == channels and group > 1:
        # (C * M, 1, kh, kw) to (kh, kw, C, M)
        kernel = weights.reshape(channels, -1, *weights.shape[2:]).transpose(2, 3, 0, 1)
        y = ctx.tf.raw_ops.DepthwiseConv2dNative(input=x, filter=ctx.literal(kernel), **settings)
    elif group == 1:
        y = ctx.tf.raw_ops.Conv2D(input=x, filter=ctx.literal(weights.transpose(2, 3, 1, 0)), **settings)
    else:
        y = _grouped(ctx, x, weights, group, settings)
    _put_spatial(node, ctx, _add_bias(node, ctx, y))


def _grouped(ctx: Context, x: Any, weights: np.ndarray, group: int, settings: dict[str, Any]) -> Any:
    parts = ctx.tf.split(x, group, axis=3)
    kernels = np.split(weights.transpose(2, 3, 1, 0), group, axis=3)
    results = [
        ctx.tf.raw_ops.Conv2D(input=part, filter=ctx.literal(kernel), **settings) for part, kernel in zip(parts, kernels, strict=True)
    ]
    return ctx.tf.concat(results, axis=3)


@operator("ConvTranspose", rules=(float_only, rank_between(3, 4), constant_inputs(1, 2)))
def conv_transpose(node: Node, ctx: Context) -> None:
    """Transposed convolution: computed without padding, then cut; a dilated kernel is spread with zeros."""
    tf, rank = ctx.tf, ctx.rank(node.inputs[0])
    sizes, results = ctx.shape(node.inputs[0])[2:], ctx.shape(node.outputs[0])[2:]
    count, group = len(sizes), node.attrs.get("group", 1)
    strides = tuple(node.attrs.get("strides") or (1,) * count)
    weights = _spread(_weights(node, ctx), tuple(node.attrs.get("dilations") or (1,) * count))
    spans = weights.shape[-count:]
    begins = _transpose_begins(node, sizes, results, strides, spans)
    if count == 1:
        sizes, results, strides, begins = (1, *sizes), (1, *results), (1, *strides), (0, *begins)
        spans = (1, *spans)
    # Size that reaches every wanted position; VALID allows up to stride - 1 rows that no tap touches.
    full = [
        max((size - 1) * step + span, begin + result)
        for size, step, span, begin, result in zip(sizes, strides, spans, begins, results, strict=True)
    ]
    x = _spatial(node, ctx, rank)
    outputs = []
    for part, kernel in zip(tf.split(x, group, axis=3) if group > 1 else [x], np.split(weights, group, axis=0), strict=True):
        # (I, O, kh, kw) to (kh, kw, O, I)
        kernel_hwoi = kernel.transpose(2, 3, 1, 0)
        outputs.append(
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[x.shape[0], *full, kernel.shape[1]],
                filter=ctx.literal(kernel_hwoi),
                out_backprop=part,
                strides=[1, *strides, 1],
                padding="VALID",
            )
        )
    y = outputs[0] if group == 1 else tf.concat(outputs, axis=3)
    if list(results) != full:
        y = tf.slice(y, [0, *begins, 0], [y.shape[0], *results, y.shape[3]])
    _put_spatial(node, ctx, _add_bias(node, ctx, y))


def _spread(weights: np.ndarray, dilations: tuple[int, ...]) -> np.ndarray:
    """A kernel with ``dilation - 1`` zeros between its taps."""
    dilations = (1, *dilations) if len(dilations) == 1 else dilations
    if set(dilations) == {1}:
        return weights
    spatial = [(size - 1) * step + 1 for size, step in zip(weights.shape[2:], dilations, strict=True)]
    spread = np.zeros((*weights.shape[:2], *spatial), weights.dtype)
    spread[:, :, :: dilations[0], :: dilations[1]] = weights
    return spread


def _transpose_begins(
    node: Node, sizes: tuple[int, ...], results: tuple[int, ...], strides: tuple[int, ...], spans: tuple[int, ...]
) -> tuple[int, ...]:
    """How many leading positions to cut, as the ONNX specification of ConvTranspose distributes padding."""
    count = len(sizes)
    auto = node.attrs.get("auto_pad", "NOTSET")
    extra = tuple(node.attrs.get("output_padding") or (0,) * count)
    if auto in ("NOTSET", "VALID") and not node.attrs.get("output_shape"):
        return tuple((node.attrs.get("pads") or (0,) * (2 * count))[:count]) if auto == "NOTSET" else (0,) * count
    totals = [
        max(0, step * (size - 1) + more + span - result)
        for size, result, step, span, more in zip(sizes, results, strides, spans, extra, strict=True)
    ]
    # "if auto_pad == SAME_UPPER: pads[start] = total / 2, else pads[end] = total / 2"
    return tuple(total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals)


# --- normalisation ---------------------------------------------------------------------------------------------------------------------------


def _inference_only(node: Node, graph: Graph) -> str:
    """Training mode is off."""
    del graph
    return "training_mode is 1" if node.attrs.get("training_mode", 0) else ""


@operator("BatchNormalization", rules=(float_only, one_output, constant_inputs(1, 2, 3, 4), _inference_only))
def batch_normalization(node: Node, ctx: Context) -> None:
    """One multiplication and one addition per channel, computed in float64 at build time."""
    scale, offset, average, variance = (np.asarray(ctx.constant(node.inputs[index]), np.float64) for index in range(1, 5))
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    _scale_channels(node, ctx, factor.astype(np.float32), (offset - average * factor).astype(np.float32))


def _scale_channels(node: Node, ctx: Context, factor: np.ndarray, offset: np.ndarray) -> None:
    rank = ctx.rank(node.inputs[0])
    order = ctx.order(node.inputs[0])
    shape = tuple(-1 if axis == 1 else 1 for axis in range(rank))
    x = ctx.get(node.inputs[0], order)
    factors, offsets = (ctx.literal(values.reshape(shape).transpose(order)) for values in (factor, offset))
    ctx.put(node.outputs[0], x * factors + offsets, order)


def _standardised(ctx: Context, x: Any, axes: list[int], epsilon: float) -> Any:
    average = ctx.tf.reduce_mean(x, axes, keepdims=True)
    centred = x - average
    variance = ctx.tf.reduce_mean(ctx.tf.square(centred), axes, keepdims=True)
    return centred / ctx.tf.sqrt(variance + np.float32(epsilon))


@operator("InstanceNormalization", rules=(float_only, constant_inputs(1, 2)))
def instance_normalization(node: Node, ctx: Context) -> None:
    """Zero mean and unit variance per sample and channel."""
    rank, order = ctx.rank(node.inputs[0]), ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(2, rank)]
    shape = tuple(-1 if axis == 1 else 1 for axis in range(rank))
    factor, offset = (np.asarray(ctx.constant(node.inputs[index])).reshape(shape).transpose(order) for index in (1, 2))
    y = _standardised(ctx, ctx.get(node.inputs[0], order), axes, node.attrs.get("epsilon", 1e-5))
    ctx.put(node.outputs[0], y * ctx.literal(factor) + ctx.literal(offset), order)


@operator("LayerNormalization", rules=(float_only, one_output))
def layer_normalization(node: Node, ctx: Context) -> None:
    """Zero mean and unit variance over the axes from ``axis`` on."""
    rank, order = ctx.rank(node.inputs[0]), ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(node.attrs.get("axis", -1) % rank, rank)]
    y = _standardised(ctx, ctx.get(node.inputs[0], order), axes, node.attrs.get("epsilon", 1e-5))
    y = y * ctx.broadcastable(node.inputs[1], order)
    if node.input(2):
        y = y + ctx.broadcastable(node.inputs[2], order)
    ctx.put(node.outputs[0], y, order)


# --- matrix products -------------------------------------------------------------------------------------------------------------------------


@operator("MatMul", rules=(float_only,))
def matmul(node: Node, ctx: Context) -> None:
    """Matrix product; a constant right side becomes a fully connected layer."""
    tf = ctx.tf
    left, right = node.inputs
    shape, rank = ctx.shape(left), ctx.rank(left)
    constant = ctx.constant(right)
    if constant is not None and constant.ndim == 2 and rank >= 2:
        flat = tf.reshape(ctx.get(left), (-1, shape[-1])) if rank > 2 else ctx.get(left)
        y = tf.matmul(flat, ctx.literal(constant))
        ctx.put(node.outputs[0], tf.reshape(y, (*shape[:-1], constant.shape[1])) if rank > 2 else y)
        return
    right_rank = ctx.rank(right)
    if 1 in (rank, right_rank):
        # TensorFlow's converter fuses a reshape of a vector into the product and then rejects it, so vectors are multiplied and summed.
        a = ctx.get(left) if right_rank == 1 else tf.reshape(ctx.get(left), (-1, 1))
        ctx.put(node.outputs[0], tf.reduce_sum(a * ctx.get(right), axis=-1 if right_rank == 1 else -2))
        return
    swapped = (*range(right_rank - 2), right_rank - 1, right_rank - 2)
    transposed = constant is None and ctx.order(right) == swapped
    y = tf.matmul(ctx.get(left), ctx.get(right, swapped if transposed else None), transpose_b=transposed)
    ctx.put(node.outputs[0], y)


@operator("Gemm", rules=(float_only,))
def gemm(node: Node, ctx: Context) -> None:
    """``alpha * A' * B' + beta * C``; scales are folded into constants."""
    tf, (left, right) = ctx.tf, node.inputs[:2]
    alpha, beta = np.float32(node.attrs.get("alpha", 1.0)), np.float32(node.attrs.get("beta", 1.0))
    a = ctx.get(left, (1, 0) if node.attrs.get("transA", 0) else (0, 1))
    weights = ctx.constant(right)
    if weights is not None:
        y = tf.matmul(a, ctx.literal((weights.T if node.attrs.get("transB", 0) else weights) * alpha))
    else:
        y = tf.matmul(a, ctx.get(right, (1, 0) if node.attrs.get("transB", 0) else (0, 1)))
        y = y if alpha == 1 else y * ctx.literal(alpha)
    if node.input(2) and beta != 0:
        y = y + _gemm_bias(node, ctx, beta)
    ctx.put(node.outputs[0], y)


def _gemm_bias(node: Node, ctx: Context, beta: np.float32) -> Any:
    bias = ctx.constant(node.inputs[2])
    if bias is not None:
        scaled = bias * beta
        # A vector over the columns fuses into the fully connected layer.
        return ctx.literal(scaled.reshape(-1) if bias.ndim == 2 and bias.shape[0] == 1 else scaled)
    c = ctx.broadcastable(node.inputs[2], identity(2))
    return c if beta == 1 else c * ctx.literal(beta)


# --- softmax ---------------------------------------------------------------------------------------------------------------------------------


def _softmax_function(node: Node, ctx: Context) -> Any:
    return ctx.tf.nn.softmax if node.op == "Softmax" else ctx.tf.nn.log_softmax


@operator("Softmax", "LogSoftmax", rules=(float_only,))
def softmax_flattened(node: Node, ctx: Context) -> None:
    """Softmax before opset 13: over all axes from ``axis`` on, together."""
    shape = ctx.shape(node.inputs[0])
    axis = node.attrs.get("axis", 1) % max(len(shape), 1)
    y = _softmax_function(node, ctx)(ctx.tf.reshape(ctx.get(node.inputs[0]), (int(np.prod(shape[:axis])), -1)))
    ctx.put(node.outputs[0], ctx.tf.reshape(y, shape))


@operator("Softmax", "LogSoftmax", since=13, rules=(float_only,))
def softmax(node: Node, ctx: Context) -> None:
    """Softmax over one axis, which is brought to the end where it is not."""
    order = axis_last(ctx.order(node.inputs[0]), node.attrs.get("axis", -1) % ctx.rank(node.inputs[0]))
    ctx.put(node.outputs[0], _softmax_function(node, ctx)(ctx.get(node.inputs[0], order)), order)
