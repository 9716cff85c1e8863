"""Images that are flattened for a linear layer: the layer's weights are put into the order in which the image lies, and nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context

__all__ = ["flatten_for_products", "left_operand"]


def flatten_for_products(node: Node, ctx: Context) -> bool:
    """Record the output of a reshape to rows as it lies, when nothing but products with constant matrices read it; False when that is not so."""
    name, result = node.inputs[0], node.outputs[0]
    before, after, order = ctx.shape(name), ctx.shape(result), ctx.order(name)
    if len(after) != 2 or before[0] != after[0] or order[0] != 0 or any(spec.name == result for spec in ctx.graph.outputs):
        return False
    if not all(_is_product(consumer, result, ctx) for consumer in ctx.graph.consumers(result)):
        return False
    places = np.arange(after[1]).reshape(before[1:]).transpose([axis - 1 for axis in order[1:]])
    ctx.flattened[result] = (ctx.tf.reshape(ctx.get(name, order), after), places.reshape(-1))
    return True


def _is_product(node: Node, name: str, ctx: Context) -> bool:
    """True for rows times a constant matrix, without a bias that is the same tensor."""
    if node.op not in ("MatMul", "Gemm") or node.inputs[0] != name or name in node.inputs[1:] or node.attrs.get("transA", 0):
        return False
    weights = ctx.constant(node.inputs[1])
    return weights is not None and weights.ndim == 2


def left_operand(ctx: Context, name: str, weights: np.ndarray) -> tuple[Any, np.ndarray]:
    """Rows to multiply and the ``(features, outputs)`` matrix in the order of their elements."""
    if name not in ctx.flattened:
        return ctx.get(name), weights
    rows, places = ctx.flattened[name]
    return rows, weights[places]
