"""Normalisations: by constants that become one multiplication and one addition, or by what the tensor itself holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import Order, axis_last
from edgekit.converters.tflite._rules import float_only, operator, rank_between

__all__: list[str] = []


# --- batch -----------------------------------------------------------------------------------------------------------------------------------


def _per_channel(node: Node, graph: Graph) -> str:
    """Statistics are per channel (``spatial`` is 1)."""
    del graph
    return "" if node.opset >= 9 or node.attrs.get("spatial", 1) else "spatial is 0"


def _statistics(node: Node, graph: Graph) -> str:
    """The running statistics are outputs in training mode only, and the saved ones are not used."""
    used = {name for other in graph.nodes for name in other.inputs} | {spec.name for spec in graph.outputs}
    first = 3 if node.attrs.get("training_mode", 0) else 1
    extra = [name for name in node.outputs[first:] if name and name in used]
    return f"output {extra[0]!r} is used" if extra else ""


@operator("BatchNormalization", rules=(float_only, _per_channel, _statistics))
def batch_normalization(node: Node, ctx: Context) -> None:
    """One multiplication and one addition per channel, computed in float64 at build time where the parameters are constants."""
    parameters = [ctx.constant(node.inputs[index]) for index in range(1, 5)]
    epsilon = node.attrs.get("epsilon", 1e-5)
    if node.attrs.get("training_mode", 0):
        _train(node, ctx, epsilon)
    elif any(each is None for each in parameters):
        _normalise_by(node, ctx, ctx.get(node.inputs[3]), ctx.get(node.inputs[4]), epsilon)
    else:
        scale, offset, average, variance = (np.asarray(each, np.float64) for each in parameters)
        factor = scale / np.sqrt(variance + epsilon)
        _scale_channels(node, ctx, ctx.literal(factor.astype(np.float32)), ctx.literal((offset - average * factor).astype(np.float32)))


def _scale_channels(node: Node, ctx: Context, factor: Any, offset: Any) -> None:
    """``x * factor + offset`` with one of each per channel."""
    order = ctx.order(node.inputs[0])
    x = ctx.get(node.inputs[0], order)
    shape = _channel_shape(ctx.rank(node.inputs[0]), order, int(factor.shape[0]))
    ctx.put(node.outputs[0], x * ctx.tf.reshape(factor, shape) + ctx.tf.reshape(offset, shape), order)


def _channel_shape(rank: int, order: Order, channels: int) -> tuple[int, ...]:
    """Physical shape of a vector over axis 1."""
    return tuple(channels if axis == min(1, rank - 1) else 1 for axis in order)


def _normalise_by(node: Node, ctx: Context, average: Any, variance: Any, epsilon: float) -> None:
    factor = ctx.get(node.inputs[1]) / ctx.tf.sqrt(variance + np.float32(epsilon))
    _scale_channels(node, ctx, factor, ctx.get(node.inputs[2]) - average * factor)


def _train(node: Node, ctx: Context, epsilon: float) -> None:
    """By the batch's own statistics; the running ones move by ``1 - momentum``."""
    tf, order = ctx.tf, ctx.order(node.inputs[0])
    x = ctx.get(node.inputs[0], order)
    axes = sorted(order.index(axis) for axis in range(len(order)) if axis != 1)
    average = tf.reduce_mean(x, axes)
    centred = x - tf.reshape(average, _channel_shape(len(order), order, int(average.shape[0])))
    variance = tf.reduce_mean(tf.square(centred), axes)
    _normalise_by(node, ctx, average, variance, epsilon)
    momentum = np.float32(node.attrs.get("momentum", 0.9))
    for name, running, found in zip(node.outputs[1:3], node.inputs[3:5], (average, variance), strict=False):
        ctx.put(name, ctx.get(running) * momentum + found * (np.float32(1) - momentum))


# --- by what the tensor holds ----------------------------------------------------------------------------------------------------------------


def _standardised(ctx: Context, x: Any, axes: list[int], epsilon: float) -> tuple[Any, Any, Any]:
    """``x`` with zero mean and unit variance over ``axes``, the mean, and the standard deviation."""
    average = ctx.tf.reduce_mean(x, axes, keepdims=True)
    centred = x - average
    deviation = ctx.tf.sqrt(ctx.tf.reduce_mean(ctx.tf.square(centred), axes, keepdims=True) + np.float32(epsilon))
    return centred / deviation, average, deviation


@operator("InstanceNormalization", rules=(float_only,))
def instance_normalization(node: Node, ctx: Context) -> None:
    """Zero mean and unit variance per sample and channel."""
    rank, order = ctx.rank(node.inputs[0]), ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(2, rank)]
    shape = _channel_shape(rank, order, ctx.shape(node.inputs[0])[1])
    y, _, _ = _standardised(ctx, ctx.get(node.inputs[0], order), axes, node.attrs.get("epsilon", 1e-5))
    factor, offset = (ctx.tf.reshape(ctx.get(node.inputs[index]), shape) for index in (1, 2))
    ctx.put(node.outputs[0], y * factor + offset, order)


@operator("LayerNormalization", rules=(float_only,))
def layer_normalization(node: Node, ctx: Context) -> None:
    """Zero mean and unit variance over the axes from ``axis`` on; the mean and the inverse deviation too where they are wanted."""
    rank, order = ctx.rank(node.inputs[0]), ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(node.attrs.get("axis", -1) % rank, rank)]
    y, average, deviation = _standardised(ctx, ctx.get(node.inputs[0], order), axes, node.attrs.get("epsilon", 1e-5))
    y = y * ctx.broadcastable(node.inputs[1], order)
    if node.input(2):
        y = y + ctx.broadcastable(node.inputs[2], order)
    ctx.put(node.outputs[0], y, order)
    extra = (*node.outputs[1:], "", "")
    if extra[0]:
        ctx.put(extra[0], average, order)
    if extra[1]:
        ctx.put(extra[1], np.float32(1) / deviation, order)


@operator("RMSNormalization", rules=(float_only,))
def rms_normalization(node: Node, ctx: Context) -> None:
    """Unit mean square over the axes from ``axis`` on."""
    tf, rank, order = ctx.tf, ctx.rank(node.inputs[0]), ctx.order(node.inputs[0])
    axes = [order.index(axis) for axis in range(node.attrs.get("axis", -1) % rank, rank)]
    x = ctx.get(node.inputs[0], order)
    power = tf.reduce_mean(tf.square(x), axes, keepdims=True) + np.float32(node.attrs.get("epsilon", 1e-5))
    ctx.put(node.outputs[0], x / tf.sqrt(power) * ctx.broadcastable(node.inputs[1], order), order)


def _norm_power(node: Node, graph: Graph) -> str:
    """The norm is that of p = 1 or 2."""
    del graph
    return "" if node.attrs.get("p", 2) in (1, 2) else f"p is {node.attrs['p']}"


@operator("LpNormalization", rules=(float_only, _norm_power))
def lp_normalization(node: Node, ctx: Context) -> None:
    """Divide by the norm along one axis; where that is zero the result is zero."""
    tf, order = ctx.tf, ctx.order(node.inputs[0])
    axis = order.index(node.attrs.get("axis", -1) % len(order))
    x = ctx.get(node.inputs[0], order)
    if node.attrs.get("p", 2) == 1:
        norm = tf.reduce_sum(tf.abs(x), axis, keepdims=True)
    else:
        norm = tf.sqrt(tf.reduce_sum(tf.square(x), axis, keepdims=True))
    ctx.put(node.outputs[0], x / tf.where(tf.equal(norm, 0.0), tf.ones_like(norm), norm), order)


def _odd_size(node: Node, graph: Graph) -> str:
    """Size is odd, so that as many channels before count as after."""
    del graph
    return "" if node.attrs["size"] % 2 else f"size is {node.attrs['size']}"


@operator("LRN", rules=(float_only, rank_between(4, 4), _odd_size))
def local_response_normalization(node: Node, ctx: Context) -> None:
    """``x / (bias + alpha / size * sum x^2)^beta`` over neighbouring channels."""
    size = node.attrs["size"]
    alpha, beta, bias = (node.attrs.get(key, default) for key, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    order = axis_last(ctx.order(node.inputs[0]), 1)
    x = ctx.get(node.inputs[0], order)
    ctx.put(node.outputs[0], ctx.tf.nn.local_response_normalization(x, (size - 1) // 2, bias, alpha / size, beta), order)
