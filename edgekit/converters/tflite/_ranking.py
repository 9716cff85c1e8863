"""TopK: the largest or smallest values along an axis."""

from __future__ import annotations

from typing import Any

from edgekit.converters._graph import Node
from edgekit.converters.tflite._carry import from_ordered, ordered
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import axis_last
from edgekit.converters.tflite._rules import REALS, dtypes, known_inputs, operator

__all__ = ["mirrored"]


@operator("TopK", rules=(dtypes(*REALS), known_inputs(1)))
def top_k(node: Node, ctx: Context) -> None:
    """Values and their indices, int64; of equal values the lower index first. The kernel works on the last axis and finds the largest."""
    tf, name = ctx.tf, node.inputs[0]
    axis = int(node.attrs.get("axis", -1)) % ctx.rank(name)
    order = ctx.order(name)
    order = order if order[-1] == axis else axis_last(order, axis)
    count = ctx.shape(node.outputs[0] or node.outputs[1])[axis]
    kind = ctx.logical(name)
    x = ordered(tf, ctx.get(name, order), kind)
    smallest = not node.attrs.get("largest", 1)
    values, places = tf.math.top_k(mirrored(tf, x) if smallest else x, count)
    ctx.put(node.outputs[0], from_ordered(tf, mirrored(tf, values) if smallest else values, kind), order)
    if len(node.outputs) > 1:
        ctx.put(node.outputs[1], tf.cast(places, "int64"), order)


def mirrored(tf: Any, x: Any) -> Any:
    """Values in the opposite order; for integers ``-1 - x``, which no value overflows."""
    return tf.negative(x) if x.dtype.is_floating else tf.subtract(tf.constant(-1, x.dtype), x)
