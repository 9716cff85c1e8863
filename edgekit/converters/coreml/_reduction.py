"""Reductions over axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, numbers, op

__all__: list[str] = []

_FLOATS = {
    "ReduceMean": "reduce_mean",
    "ReduceL2": "reduce_l2_norm",
    "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
}
_NUMBERS = {
    "ReduceSum": "reduce_sum",
    "ReduceProd": "reduce_prod",
    "ReduceL1": "reduce_l1_norm",
    "ReduceSumSquare": "reduce_sum_square",
}
_EXTREMES = {"ReduceMax": "reduce_max", "ReduceMin": "reduce_min"}
_PLAIN = ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin")
_ARGUMENTS = {"ArgMax": "reduce_argmax", "ArgMin": "reduce_argmin"}


def _axes(node: Node, ctx: MilContext) -> list[int]:
    """Axes as non-negative numbers: input 1 (newer opsets), the attribute, or all."""
    rank = ctx.rank(node.inputs[0])
    given = ctx.integers(node.input(1)) or node.attrs.get("axes")
    if not given:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


def _reduces(node: Node, graph: Graph) -> str:
    """A norm or logarithm reduces at least one axis (without axes, ``noop_with_empty_axes`` leaves part of its arithmetic)"""
    given = graph.constants[node.input(1)].size if node.input(1) in graph.constants else len(node.attrs.get("axes") or [])
    return "noop_with_empty_axes" if node.attrs.get("noop_with_empty_axes", 0) and not given and node.op not in _PLAIN else ""


@op(*_FLOATS, parameters=(1,), constraints=(floats, _reduces))
@op(*_NUMBERS, parameters=(1,), constraints=(numbers, _reduces))
@op(*_EXTREMES, parameters=(1,))
def reduce(node: Node, ctx: MilContext) -> None:
    """Mean, sum, extremes and norms; the extremes of booleans are those of 0 and 1."""
    axes, x = _axes(node, ctx), ctx.tensor(node.inputs[0])
    name = (_FLOATS | _NUMBERS | _EXTREMES)[node.op]
    booleans = ctx.dtype(node.inputs[0]) == "bool"
    if not axes:
        ctx.pass_on(node, x)
        return
    x = ctx.cast(node, x, "int32") if booleans else x
    whole = not node.attrs.get("keepdims", 1) and len(axes) == ctx.rank(node.inputs[0])
    result = ctx.mid(node, name, x=x, axes=axes, keep_dims=whole or bool(node.attrs.get("keepdims", 1)))
    result = ctx.mid(node, "reshape", x=result, shape=[1]) if whole else result
    result = ctx.wrapped(node, result, ctx.dtype(node.outputs[0]))
    ctx.pass_on(node, ctx.cast(node, result, "bool") if booleans else result)


@op(*_ARGUMENTS, constraints=(numbers,))
def argument(node: Node, ctx: MilContext) -> None:
    """Index of the largest or smallest value along one axis; of equal ones the first, or the last where the node asks for it."""
    x, axis = ctx.tensor(node.inputs[0]), int(node.attrs.get("axis", 0)) % ctx.rank(node.inputs[0])
    keep = bool(node.attrs.get("keepdims", 1))
    whole = not keep and ctx.rank(node.inputs[0]) == 1
    if node.attrs.get("select_last_index", 0):
        found = _last(node, ctx, x, axis)
        index = found if keep else ctx.mid(node, "reshape", x=found, shape=list(ctx.shape(node.outputs[0])))
    else:
        index = ctx.mid(node, _ARGUMENTS[node.op], x=x, axis=axis, keep_dims=keep or whole)
        index = ctx.mid(node, "reshape", x=index, shape=[1]) if whole else index
    ctx.pass_on(node, index)


def _last(node: Node, ctx: MilContext, x: Any, axis: int) -> Any:
    """The largest index whose value is the extreme."""
    extreme = ctx.mid(node, "reduce_max" if node.op == "ArgMax" else "reduce_min", x=x, axes=[axis], keep_dims=True)
    hit = ctx.mid(node, "cast", x=ctx.mid(node, "equal", x=x, y=extreme), dtype="int32")
    shape = ctx.shape(node.inputs[0])
    steps = np.arange(shape[axis], dtype=np.int32).reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return ctx.mid(node, "reduce_max", x=ctx.mid(node, "mul", x=hit, y=steps), axes=[axis], keep_dims=True)
