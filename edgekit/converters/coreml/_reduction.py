"""Reductions over axes."""

from __future__ import annotations

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, numbers, op

__all__: list[str] = []

_FLOATS = {
    "ReduceMean": "reduce_mean",
    "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceSumSquare": "reduce_sum_square",
}
_NUMBERS = {"ReduceSum": "reduce_sum", "ReduceMax": "reduce_max", "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod"}
_ARGUMENTS = {"ArgMax": "reduce_argmax", "ArgMin": "reduce_argmin"}


def _axes(node: Node, ctx: MilContext) -> list[int]:
    """Axes as non-negative numbers: input 1 (newer opsets), the attribute, or all."""
    rank = ctx.rank(node.inputs[0])
    given = ctx.integers(node.input(1)) or node.attrs.get("axes")
    if not given:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


@op(*_FLOATS, parameters=(1,), constraints=(floats,))
@op(*_NUMBERS, parameters=(1,), constraints=(numbers,))
def reduce(node: Node, ctx: MilContext) -> None:
    """Mean, sum, extremes and norms."""
    axes, x = _axes(node, ctx), ctx.tensor(node.inputs[0])
    name = (_FLOATS | _NUMBERS)[node.op]
    if not axes:
        ctx.pass_on(node, x)
    elif not node.attrs.get("keepdims", 1) and len(axes) == ctx.rank(node.inputs[0]):
        ctx.put(node, "reshape", x=ctx.mid(node, name, x=x, axes=axes, keep_dims=True), shape=[1])
    else:
        ctx.put(node, name, x=x, axes=axes, keep_dims=bool(node.attrs.get("keepdims", 1)))


def _first_wins(node: Node, graph: Graph) -> str:  # noqa: ARG001
    """The first of equal values wins"""
    return "select_last_index" if node.attrs.get("select_last_index", 0) else ""


@op(*_ARGUMENTS, constraints=(numbers, _first_wins))
def argument(node: Node, ctx: MilContext) -> None:
    """Index of the largest or smallest value along one axis."""
    x, axis = ctx.tensor(node.inputs[0]), int(node.attrs.get("axis", 0))
    name = _ARGUMENTS[node.op]
    if not node.attrs.get("keepdims", 1) and ctx.rank(node.inputs[0]) == 1:
        ctx.put(node, "reshape", x=ctx.mid(node, name, x=x, axis=axis, keep_dims=True), shape=[1])
    else:
        ctx.put(node, name, x=x, axis=axis, keep_dims=bool(node.attrs.get("keepdims", 1)))
