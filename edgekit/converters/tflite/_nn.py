"""Matrix products and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._flattened import left_operand
from edgekit.converters.tflite._layout import axis_last, identity
from edgekit.converters.tflite._rules import float_only, operator

__all__: list[str] = []


# --- matrix products -------------------------------------------------------------------------------------------------------------------------


@operator("MatMul", rules=(float_only,))
def matmul(node: Node, ctx: Context) -> None:
    """Matrix product; a constant right side becomes a fully connected layer."""
    tf = ctx.tf
    left, right = node.inputs
    shape, rank = ctx.shape(left), ctx.rank(left)
    constant = ctx.constant(right)
    if constant is not None and constant.ndim == 2 and rank >= 2:
        rows, weights = left_operand(ctx, left, constant)
        y = tf.matmul(tf.reshape(rows, (-1, shape[-1])) if rank > 2 else rows, ctx.literal(weights))
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
    weights = ctx.constant(right)
    if weights is not None and not node.attrs.get("transA", 0):
        rows, weights = left_operand(ctx, left, weights.T if node.attrs.get("transB", 0) else weights)
        y = tf.matmul(rows, ctx.literal(weights * alpha))
    else:
        a = ctx.get(left, (1, 0) if node.attrs.get("transA", 0) else (0, 1))
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
    if shape and all(size == 1 for size in shape[axis + 1 :]):  # over one axis, as from opset 13 on
        _softmax_over(node, ctx, axis)
        return
    y = _softmax_function(node, ctx)(ctx.tf.reshape(ctx.get(node.inputs[0]), (int(np.prod(shape[:axis])), -1)))
    ctx.put(node.outputs[0], ctx.tf.reshape(y, shape))


@operator("Softmax", "LogSoftmax", since=13, rules=(float_only,))
def softmax(node: Node, ctx: Context) -> None:
    """Softmax over one axis, which is brought to the end where it is not."""
    _softmax_over(node, ctx, node.attrs.get("axis", -1) % ctx.rank(node.inputs[0]))


def _softmax_over(node: Node, ctx: Context, axis: int) -> None:
    order = axis_last(ctx.order(node.inputs[0]), axis)
    ctx.put(node.outputs[0], _softmax_function(node, ctx)(ctx.get(node.inputs[0], order)), order)
