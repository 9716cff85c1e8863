"""TopK: the largest or smallest values along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import axis_last
from edgekit.converters.tflite._rules import constant_inputs, dtypes, operator

__all__: list[str] = []


@operator("TopK", rules=(dtypes("float32", "int32", "int64", "int8", "uint8"), constant_inputs(1)))
def top_k(node: Node, ctx: Context) -> None:
    """Values and their indices, int64; of equal values the lower index first. The kernel works on the last axis and finds the largest."""
    tf, name = ctx.tf, node.inputs[0]
    axis = int(node.attrs.get("axis", -1)) % ctx.rank(name)
    order = ctx.order(name)
    order = order if order[-1] == axis else axis_last(order, axis)
    count = ctx.shape(node.outputs[0] or node.outputs[1])[axis]
    x = ctx.get(name, order)
    smallest = not node.attrs.get("largest", 1)
    values, places = tf.math.top_k(_mirrored(tf, x) if smallest else x, count)
    ctx.put(node.outputs[0], _mirrored(tf, values) if smallest else values, order)
    if len(node.outputs) > 1:
        ctx.put(node.outputs[1], tf.cast(places, "int64"), order)


def _mirrored(tf: Any, x: Any) -> Any:
    """Values in the opposite order; for integers ``-1 - x``, or ``255 - x``, which no value overflows."""
    if x.dtype.is_floating:
        return tf.negative(x)
    limits = np.iinfo(x.dtype.as_numpy_dtype)
    return tf.subtract(tf.constant(limits.max + limits.min, x.dtype), x)
