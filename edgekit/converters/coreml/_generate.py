"""Operators that order, count, mask or mark: TopK, CumSum, Trilu, OneHot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MAX_RANK, MilContext, mil_dtype, numbers, op

__all__: list[str] = []

# --- order ---------------------------------------------------------------------------------------------------------------------------------

_EXACT_TIES = 1 << 20
"""Comparisons that may be spent on the order of equal values, about a millisecond on a phone; above it Core ML's own order stands."""


@op("TopK", parameters=(1,), constraints=(numbers,))
def top_k(node: Node, ctx: MilContext) -> None:
    """The k largest or smallest along an axis, sorted.

    ONNX gives equal values in the order of their indices; MIL's `topk` does not say. So indices are found again from the values: of equal ones
    the first output takes the first place, the second output the second.
    """
    shape, wanted = ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0] or node.outputs[1])
    axis = int(node.attrs.get("axis", -1)) % len(shape)
    size, count = shape[axis], wanted[axis]
    rows = math.prod(shape) // size
    x = ctx.tensor(node.inputs[0])
    arguments: dict[str, Any] = {"x": x, "k": count, "axis": axis, "ascending": not node.attrs.get("largest", 1), "sort": True}
    values, indices = ctx.mid(node, "topk", **arguments)
    if node.outputs[0]:
        ctx.pass_on(node, values)
    if len(node.outputs) < 2 or not node.outputs[1]:
        return
    if rows * count * size > _EXACT_TIES:
        ctx.pass_on(node, indices, output=1)
        return
    last = [*(place for place in range(len(shape)) if place != axis), axis]
    flat, best = (_rows(node, ctx, value, last, (rows, length)) for value, length in ((x, size), (values, count)))
    places = _places(node, ctx, flat, best, (rows, count, size))
    apart = ctx.mid(node, "reshape", x=places, shape=[wanted[place] for place in last])
    back = [int(place) for place in np.argsort(last)]
    ctx.pass_on(node, apart if back == sorted(back) else ctx.mid(node, "transpose", x=apart, perm=back), output=1)


def _rows(node: Node, ctx: MilContext, value: Any, last: list[int], shape: tuple[int, int]) -> Any:
    """The axis in question last, all others as one."""
    value = value if last == sorted(last) else ctx.mid(node, "transpose", x=value, perm=last)
    return ctx.mid(node, "reshape", x=value, shape=list(shape))


def _places(node: Node, ctx: MilContext, flat: Any, best: Any, sizes: tuple[int, int, int]) -> Any:
    """Index (rows, k) of each of the best values among the row's values: the n-th of equal ones is at the n-th place that has it."""
    _, count, size = sizes
    wide = ctx.mid(node, "expand_dims", x=best, axes=[2])
    same = ctx.mid(node, "cast", x=ctx.mid(node, "equal", x=wide, y=ctx.mid(node, "expand_dims", x=flat, axes=[1])), dtype="int32")
    seen = ctx.mid(node, "cumsum", x=same, axis=2, exclusive=False, reverse=False)
    twins = ctx.mid(node, "cast", x=ctx.mid(node, "equal", x=wide, y=ctx.mid(node, "expand_dims", x=best, axes=[1])), dtype="int32")
    earlier = ctx.mid(node, "mul", x=twins, y=np.tril(np.ones((count, count), np.int32)))
    nth = ctx.mid(node, "reduce_sum", x=earlier, axes=[2], keep_dims=True)
    hit = ctx.mid(node, "mul", x=same, y=ctx.mid(node, "cast", x=ctx.mid(node, "equal", x=seen, y=nth), dtype="int32"))
    return ctx.mid(node, "reduce_sum", x=ctx.mid(node, "mul", x=hit, y=np.arange(size, dtype=np.int32)), axes=[2], keep_dims=False)


# --- running sums --------------------------------------------------------------------------------------------------------------------------


def _axis_of(node: Node, ctx: MilContext) -> int:
    found = ctx.integers(node.inputs[1])
    return (found[0] if found else 0) % ctx.rank(node.inputs[0])


@op("CumSum", since=11, parameters=(1,), constraints=(numbers,))
def cum_sum(node: Node, ctx: MilContext) -> None:
    """Running sum along one axis."""
    flags = {name: bool(node.attrs.get(name, 0)) for name in ("exclusive", "reverse")}
    ctx.put_wrapped(node, "cumsum", x=ctx.tensor(node.inputs[0]), axis=_axis_of(node, ctx), **flags)


# --- masks ---------------------------------------------------------------------------------------------------------------------------------


@op("Trilu", since=14, parameters=(1,))
def trilu(node: Node, ctx: MilContext) -> None:
    """The upper or lower triangle of the last two axes; a band where MIL can say it, else a mask."""
    x, shape = ctx.tensor(node.inputs[0]), ctx.shape(node.inputs[0])
    shift = (ctx.integers(node.input(1)) or [0])[0] if node.input(1) else 0
    upper = bool(node.attrs.get("upper", 1))
    if upper and shift <= 0:
        ctx.put(node, "band_part", x=x, lower=min(-shift, shape[-2]), upper=-1)
    elif not upper and shift >= 0:
        ctx.put(node, "band_part", x=x, lower=-1, upper=min(shift, shape[-1]))
    else:
        keep = np.ones(shape[-2:], bool)
        keep = np.triu(keep, shift) if upper else np.tril(keep, shift)
        kind = {"bool": np.bool_, "int32": np.int32, "fp32": np.float32}[mil_dtype(ctx.dtype(node.inputs[0]))]
        ctx.put(node, "select", cond=np.broadcast_to(keep, shape), a=x, b=np.zeros(shape, kind))


def _one_hot_rank(node: Node, graph: Graph) -> str:
    """OneHot's indices are numbers of rank 4 or less"""
    kind = graph.types[node.inputs[0]]
    return "" if kind.dtype != "bool" and kind.rank < MAX_RANK else f"{kind.dtype} indices of rank {kind.rank}"


@op("OneHot", since=9, parameters=(1,), constraints=(_one_hot_rank,))
def one_hot(node: Node, ctx: MilContext) -> None:
    """Comparison with 0, 1, …: an index outside the range marks nothing, as ONNX has it; MIL's `one_hot` leaves that open."""
    out = ctx.shape(node.outputs[0])
    axis = int(node.attrs.get("axis", -1)) % len(out)
    depth = out[axis]
    index, values = ctx.tensor(node.inputs[0]), node.inputs[2]
    below = ctx.mid(node, "less", x=index, y=ctx.scalar(node, 0))
    index = ctx.mid(node, "select", cond=below, a=ctx.mid(node, "add", x=index, y=ctx.scalar(node, depth)), b=index)
    if ctx.graph.types[node.inputs[0]].rank:
        index = ctx.mid(node, "expand_dims", x=index, axes=[axis])
    steps = np.arange(depth).astype(ctx.scalar(node, 0).dtype).reshape([-1 if place == axis else 1 for place in range(len(out))])
    marked = ctx.mid(node, "equal", x=index, y=steps)
    off, on = (_full(node, ctx, values, place, out) for place in (0, 1))
    ctx.put(node, "select", cond=marked, a=on, b=off)


def _full(node: Node, ctx: MilContext, values: str, place: int, shape: tuple[int, ...]) -> Any:
    """One of the two values of a OneHot, everywhere."""
    value = ctx.read(values)
    if isinstance(value, np.ndarray):
        return np.full(shape, value.reshape(-1)[place])
    one = ctx.mid(node, "slice_by_index", x=value, begin=[place], end=[place + 1])
    apart = ctx.mid(node, "reshape", x=one, shape=[1] * len(shape))
    return ctx.mid(node, "tile", x=apart, reps=list(shape))
