"""Reductions: axes are mapped to where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._carry import from_ordered, in_carrier, narrow, ordered, widen
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import drop_axes
from edgekit.converters.tflite._ranking import mirrored
from edgekit.converters.tflite._rules import REALS, dtypes, float_only, known_inputs, operator

__all__: list[str] = []

_Reduce = Callable[..., Any]  # (tensor, axes, keepdims=) -> tensor
_LOWEST = np.finfo(np.float32).min


def _log_sum_exp(tf: Any) -> _Reduce:
    def reduce(x: Any, axes: list[int], keepdims: bool) -> Any:
        # Shifted by the maximum, so that exp cannot overflow; by a finite one, since infinity less itself is no number.
        top = tf.minimum(tf.maximum(tf.reduce_max(x, axes, keepdims=True), _LOWEST), -_LOWEST)
        total = tf.math.log(tf.reduce_sum(tf.exp(x - top), axes, keepdims=keepdims))
        return total + (top if keepdims else tf.reshape(top, total.shape))

    return reduce


def _reduce_over(node: Node, ctx: Context, function: _Reduce, empty: float) -> None:
    name = node.inputs[0]
    order, rank = ctx.order(name), ctx.rank(name)
    keep = bool(node.attrs.get("keepdims", 1))
    if 0 in ctx.shape(name):
        ctx.put_constant(node.outputs[0], _of_nothing(ctx.logical(name), empty, ctx.shape(node.outputs[0])))
        return
    given = ctx.constant(node.input(1))
    axes = node.attrs.get("axes") if given is None else [int(axis) for axis in given]
    whole = not axes and not node.attrs.get("noop_with_empty_axes", 0)
    reduced = list(range(rank)) if whole else [axis % rank for axis in axes or []]
    y = function(ctx.get(name, order), sorted(order.index(axis) for axis in reduced), keepdims=keep)
    ctx.put(node.outputs[0], y, order if keep else drop_axes(order, reduced))


def _of_nothing(logical: str, value: float, shape: tuple[int, ...]) -> np.ndarray:
    """The result over an empty set; an infinite one is the end of an integer's range."""
    kind = np.dtype(logical if logical != "bfloat16" else "float32")
    if kind.kind in "iu" and not np.isfinite(value):
        limits = np.iinfo(kind)
        return in_carrier(np.full(shape, limits.min if value < 0 else limits.max, kind))
    return in_carrier(np.full(shape, value > 0 if kind.kind == "b" else value, kind))


def _register(op: str, make: Callable[[Any], _Reduce], rule: Any, empty: float, extreme: bool = False) -> None:
    def handler(node: Node, ctx: Context) -> None:
        tf, kind = ctx.tf, ctx.logical(node.inputs[0])
        before, after = (ordered, from_ordered) if extreme else (lambda tf, x, _: widen(tf, x), narrow)

        def reduce(x: Any, axes: list[int], keepdims: bool) -> Any:
            if kind == "bool":
                return (tf.reduce_any if op == "ReduceMax" else tf.reduce_all)(x, axes, keepdims=keepdims)
            return after(tf, make(tf)(before(tf, x, kind), axes, keepdims=keepdims), kind)

        _reduce_over(node, ctx, reduce, empty)

    handler.__name__ = op
    operator(op, rules=(rule, known_inputs(1)))(handler)


def _of_floats(function: Callable[..., Any]) -> Callable[[Any], _Reduce]:
    """A reduction whose result of integers is cut towards zero."""

    def make(tf: Any) -> _Reduce:
        def reduce(x: Any, axes: list[int], keepdims: bool) -> Any:
            return tf.cast(function(tf, tf.cast(x, "float32"), axes, keepdims), x.dtype)

        return reduce

    return make


def _absolute(tf: Any, x: Any) -> Any:
    return tf.maximum(x, -x) if x.dtype.name == "int64" else tf.abs(x)  # ABS has no int64 kernel


_SUMS: dict[str, tuple[Callable[[Any], _Reduce], float]] = {
    "ReduceSum": (lambda tf: tf.reduce_sum, 0),
    "ReduceProd": (lambda tf: tf.reduce_prod, 1),
    "ReduceL1": (lambda tf: lambda x, axes, keepdims: tf.reduce_sum(_absolute(tf, x), axes, keepdims=keepdims), 0),
    "ReduceSumSquare": (lambda tf: lambda x, axes, keepdims: tf.reduce_sum(tf.square(x), axes, keepdims=keepdims), 0),
    "ReduceL2": (_of_floats(lambda tf, x, axes, keepdims: tf.sqrt(tf.reduce_sum(tf.square(x), axes, keepdims=keepdims))), 0),
    "ReduceMean": (_of_floats(lambda tf, x, axes, keepdims: tf.reduce_mean(x, axes, keepdims=keepdims)), np.nan),
    "ReduceLogSum": (_of_floats(lambda tf, x, axes, keepdims: tf.math.log(tf.reduce_sum(x, axes, keepdims=keepdims))), -np.inf),
}
for _op, (_make, _empty) in _SUMS.items():
    _register(_op, _make, dtypes(*REALS), _empty)
_register("ReduceMax", lambda tf: tf.reduce_max, dtypes(*REALS, "bool"), -np.inf, extreme=True)
_register("ReduceMin", lambda tf: tf.reduce_min, dtypes(*REALS, "bool"), np.inf, extreme=True)
_register("ReduceLogSumExp", _log_sum_exp, float_only, -np.inf)


@operator("ArgMax", "ArgMin", rules=(dtypes(*REALS),))
def arg_extreme(node: Node, ctx: Context) -> None:
    """Index of the largest or smallest value along one axis, int64; of equal values the first or the last."""
    tf, name, kind = ctx.tf, node.inputs[0], ctx.logical(node.inputs[0])
    order = ctx.order(name)
    axis = node.attrs.get("axis", 0) % ctx.rank(name)
    place, size = order.index(axis), ctx.shape(name)[axis]
    last = bool(node.attrs.get("select_last_index", 0))
    x = ordered(tf, ctx.get(name, order), kind)
    x = tf.reverse(x, [place]) if last else x
    if x.dtype.name == "int64":  # ARG_MAX has no int64 kernel
        y = _first_of_largest(tf, x if node.op == "ArgMax" else mirrored(tf, x), place, size)
    else:
        y = (tf.argmax if node.op == "ArgMax" else tf.argmin)(x, axis=place, output_type=tf.int64)
    y = tf.constant(size - 1, tf.int64) - y if last else y
    if node.attrs.get("keepdims", 1):
        ctx.put(node.outputs[0], tf.expand_dims(y, place), order)
    else:
        ctx.put(node.outputs[0], y, drop_axes(order, [axis]))


def _first_of_largest(tf: Any, x: Any, axis: int, size: int) -> Any:
    places = np.arange(size, dtype=np.int32).reshape([size if each == axis else 1 for each in range(len(x.shape))])
    found = tf.where(tf.equal(x, tf.reduce_max(x, axis, keepdims=True)), tf.constant(places), tf.constant(size, tf.int32))
    return tf.cast(tf.reduce_min(found, axis), "int64")


def _constant_axis(node: Node, graph: Graph) -> str:
    """The axis is a constant."""
    return "" if node.inputs[1] in graph.constants else f"the axis ({node.inputs[1]!r}) is computed"


@operator("CumSum", rules=(dtypes(*REALS), _constant_axis))
def cumulative_sum(node: Node, ctx: Context) -> None:
    """Running sum along one axis."""
    order, tf = ctx.order(node.inputs[0]), ctx.tf
    axis = int(np.asarray(ctx.constant(node.inputs[1])).item()) % len(order)
    y = tf.cumsum(
        widen(tf, ctx.get(node.inputs[0], order)),
        axis=order.index(axis),
        exclusive=bool(node.attrs.get("exclusive", 0)),
        reverse=bool(node.attrs.get("reverse", 0)),
    )
    ctx.put(node.outputs[0], narrow(tf, y, ctx.logical(node.outputs[0])), order)
