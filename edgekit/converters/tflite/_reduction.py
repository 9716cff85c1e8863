"""Reductions: axes are mapped to where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import drop_axes
from edgekit.converters.tflite._rules import NUMBERS, constant_inputs, dtypes, float_only, operator

__all__: list[str] = []

_Reduce = Callable[..., Any]  # (tensor, axes, keepdims=) -> tensor


def _log_sum_exp(tf: Any) -> _Reduce:
    def reduce(x: Any, axes: list[int], keepdims: bool) -> Any:
        # Shifted by the maximum, so that exp cannot overflow.
        top = tf.reduce_max(x, axes, keepdims=True)
        total = tf.math.log(tf.reduce_sum(tf.exp(x - top), axes, keepdims=keepdims))
        return total + (top if keepdims else tf.reshape(top, total.shape))

    return reduce


def _reduce_over(node: Node, ctx: Context, function: _Reduce) -> None:
    name = node.inputs[0]
    order, rank = ctx.order(name), ctx.rank(name)
    given = ctx.constant(node.input(1))
    axes = node.attrs.get("axes") if given is None else [int(axis) for axis in given]
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        ctx.put(node.outputs[0], ctx.tf.identity(ctx.get(name, order)), order)
        return
    reduced = [axis % rank for axis in axes] if axes else list(range(rank))
    keep = bool(node.attrs.get("keepdims", 1))
    y = function(ctx.get(name, order), sorted(order.index(axis) for axis in reduced), keepdims=keep)
    ctx.put(node.outputs[0], y, order if keep else drop_axes(order, reduced))


def _register(op: str, make: Callable[[Any], _Reduce], rule: Any) -> None:
    def handler(node: Node, ctx: Context) -> None:
        _reduce_over(node, ctx, make(ctx.tf))

    handler.__name__ = op
    operator(op, rules=(rule, constant_inputs(1)))(handler)


for _op, _make in {
    "ReduceSum": lambda tf: tf.reduce_sum,
    "ReduceMax": lambda tf: tf.reduce_max,
    "ReduceMin": lambda tf: tf.reduce_min,
    "ReduceProd": lambda tf: tf.reduce_prod,
}.items():
    _register(_op, _make, dtypes(*NUMBERS))
for _op, _make in {
    "ReduceMean": lambda tf: tf.reduce_mean,
    "ReduceL1": lambda tf: lambda x, axes, keepdims: tf.reduce_sum(tf.abs(x), axes, keepdims=keepdims),
    "ReduceL2": lambda tf: lambda x, axes, keepdims: tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=keepdims)),
    "ReduceSumSquare": lambda tf: lambda x, axes, keepdims: tf.reduce_sum(tf.square(x), axes, keepdims=keepdims),
    "ReduceLogSum": lambda tf: lambda x, axes, keepdims: tf.math.log(tf.reduce_sum(x, axes, keepdims=keepdims)),
    "ReduceLogSumExp": _log_sum_exp,
}.items():
    _register(_op, _make, float_only)


def _first_index(node: Node, graph: Graph) -> str:
    """The first of equal values wins."""
    del graph
    return "select_last_index is 1" if node.attrs.get("select_last_index", 0) else ""


@operator("ArgMax", "ArgMin", rules=(dtypes("float32", "int32"), _first_index))
def arg_extreme(node: Node, ctx: Context) -> None:
    """Index of the largest or smallest value along one axis, int64."""
    tf, name = ctx.tf, node.inputs[0]
    order = ctx.order(name)
    axis = node.attrs.get("axis", 0) % ctx.rank(name)
    function = tf.argmax if node.op == "ArgMax" else tf.argmin
    y = function(ctx.get(name, order), axis=order.index(axis), output_type=tf.int64)
    if node.attrs.get("keepdims", 1):
        ctx.put(node.outputs[0], tf.expand_dims(y, order.index(axis)), order)
    else:
        ctx.put(node.outputs[0], y, drop_axes(order, [axis]))


@operator("CumSum", rules=(float_only, constant_inputs(1)))
def cumulative_sum(node: Node, ctx: Context) -> None:
    """Running sum along one axis."""
    order = ctx.order(node.inputs[0])
    axis = int(np.asarray(ctx.constant(node.inputs[1])).item()) % len(order)
    y = ctx.tf.cumsum(
        ctx.get(node.inputs[0], order),
        axis=order.index(axis),
        exclusive=bool(node.attrs.get("exclusive", 0)),
        reverse=bool(node.attrs.get("reverse", 0)),
    )
    ctx.put(node.outputs[0], y, order)
