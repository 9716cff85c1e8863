"""Gather and scatter. Indices are brought to 0 and above first: what Core ML does with negative ones depends on its version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MAX_RANK, MilContext, op

__all__: list[str] = []


def _from_start(node: Node, ctx: MilContext, tensor: str, size: int | np.ndarray) -> Any:
    """Indices with the negative ones counted from the end; ``size`` broadcasts against them."""
    constant = ctx.constant(tensor)
    if constant is not None:
        return np.where(constant < 0, constant + size, constant).astype(np.int32).reshape(ctx.shape(tensor))
    index = ctx.read(tensor)
    below = ctx.mid(node, "less", x=index, y=np.int32(0))
    shifted = ctx.mid(node, "add", x=index, y=np.asarray(size, np.int32)[()])
    return ctx.mid(node, "select", cond=below, a=shifted, b=index)


def _table(node: Node, ctx: MilContext) -> Any:
    """The first input; booleans as int32, because MIL gathers and scatters numbers only."""
    x = ctx.tensor(node.inputs[0])
    return ctx.cast(node, x, "int32") if ctx.dtype(node.inputs[0]) == "bool" else x


def _put_element(node: Node, ctx: MilContext, op_type: str, **inputs: Any) -> None:
    """The node's result, as booleans again where the table was of booleans."""
    if ctx.dtype(node.inputs[0]) == "bool":
        ctx.put(node, "cast", x=ctx.mid(node, op_type, **inputs), dtype="bool")
    else:
        ctx.put_wrapped(node, op_type, **inputs)


# --- gather --------------------------------------------------------------------------------------------------------------------------------


@op("Gather")
def gather(node: Node, ctx: MilContext) -> None:
    """Constant scalar index: a slice. Else gather."""
    shape = ctx.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    constant = ctx.constant(node.inputs[1])
    out = list(ctx.shape(node.outputs[0]))
    if constant is not None and constant.size == 1:
        at = int(constant.reshape(-1)[0]) % shape[axis]
        begin = [at if place == axis else 0 for place in range(len(shape))]
        end = [at + 1 if place == axis else dim for place, dim in enumerate(shape)]
        part = ctx.mid(node, "slice_by_index", x=ctx.tensor(node.inputs[0]), begin=begin, end=end)
        ctx.put(node, "reshape", x=part, shape=out)
        return
    index = _from_start(node, ctx, node.inputs[1], shape[axis])
    if ctx.graph.types[node.inputs[1]].rank:
        _put_element(node, ctx, "gather", x=_table(node, ctx), indices=index, axis=axis)
    else:
        _put_element(node, ctx, "reshape", x=ctx.mid(node, "gather", x=_table(node, ctx), indices=index, axis=axis), shape=out)


@op("GatherElements", since=11)
def gather_elements(node: Node, ctx: MilContext) -> None:
    """MIL wants the table's other axes as long as the indices' are; ONNX reads their beginning."""
    x, shape, wanted = _table(node, ctx), ctx.shape(node.inputs[0]), ctx.shape(node.inputs[1])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    index = _from_start(node, ctx, node.inputs[1], shape[axis])
    end = [shape[axis] if place == axis else dim for place, dim in enumerate(wanted)]
    if tuple(end) != shape:
        x = ctx.mid(node, "slice_by_index", x=x, begin=[0] * len(end), end=end)
    _put_element(node, ctx, "gather_along_axis", x=x, indices=index, axis=axis)


def _sizes(ctx: MilContext, node: Node, first: int) -> np.ndarray:
    """Lengths of the axes that the index vectors of a GatherND or ScatterND name."""
    depth = ctx.shape(node.inputs[1])[-1]
    return np.asarray(ctx.shape(node.inputs[0])[first : first + depth], np.int32)


@op("GatherND", since=11)
def gather_nd(node: Node, ctx: MilContext) -> None:
    """Elements or slices by index vectors."""
    batch = int(node.attrs.get("batch_dims", 0))
    index = _from_start(node, ctx, node.inputs[1], _sizes(ctx, node, batch))
    found = {"x": _table(node, ctx), "indices": index, "batch_dims": batch}
    if ctx.graph.types[node.outputs[0]].rank:
        _put_element(node, ctx, "gather_nd", **found)
    else:
        _put_element(node, ctx, "reshape", x=ctx.mid(node, "gather_nd", **found), shape=[1])


# --- scatter -------------------------------------------------------------------------------------------------------------------------------

_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _arithmetic_on_numbers(node: Node, graph: Graph) -> str:
    """A reduction is on numbers"""
    reduction = node.attrs.get("reduction", "none")
    if reduction not in _REDUCTIONS:
        return f"reduction {reduction}"
    return f"reduction {reduction} of booleans" if reduction != "none" and graph.types[node.inputs[0]].dtype == "bool" else ""


def _room_for_coordinates(node: Node, graph: Graph) -> str:
    """ScatterElements that updates part of the other axes has rank 4 or less"""
    kinds = [graph.types[name] for name in node.inputs[:2]]
    axis = int(node.attrs.get("axis", 0)) % max(kinds[0].rank, 1)
    same = all(a == b for place, (a, b) in enumerate(zip(kinds[0].shape, kinds[1].shape, strict=True)) if place != axis)
    return "" if same or kinds[0].rank < MAX_RANK else f"rank {kinds[0].rank}"


def _updates(node: Node, ctx: MilContext) -> Any:
    updates = ctx.tensor(node.inputs[2])
    return ctx.cast(node, updates, "int32") if ctx.dtype(node.inputs[2]) == "bool" else updates


@op("ScatterElements", since=11, constraints=(_arithmetic_on_numbers, _room_for_coordinates))
@op("Scatter", since=9, constraints=(_room_for_coordinates,))
def scatter_elements(node: Node, ctx: MilContext) -> None:
    """Along one axis where the other axes are whole, else by the full coordinates of every update."""
    shape, wanted = ctx.shape(node.inputs[0]), ctx.shape(node.inputs[1])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    index = _from_start(node, ctx, node.inputs[1], shape[axis])
    common = {"data": _table(node, ctx), "updates": _updates(node, ctx), "mode": _REDUCTIONS[node.attrs.get("reduction", "none")]}
    if all(a == b for place, (a, b) in enumerate(zip(shape, wanted, strict=True)) if place != axis):
        _put_element(node, ctx, "scatter_along_axis", indices=index, axis=axis, **common)
        return
    _put_element(node, ctx, "scatter_nd", indices=_coordinates(node, ctx, index, wanted, axis), **common)


def _coordinates(node: Node, ctx: MilContext, index: Any, shape: Sequence[int], axis: int) -> Any:
    """Index vectors (*shape, rank) whose entry ``axis`` is the index, the others each element's own place."""
    grids: list[Any] = [np.ascontiguousarray(grid[..., None], np.int32) for grid in np.indices(tuple(shape))]
    if isinstance(index, np.ndarray):
        grids[axis] = index[..., None]
        return np.concatenate(grids, axis=-1)
    grids[axis] = ctx.mid(node, "expand_dims", x=index, axes=[-1])
    return ctx.mid(node, "concat", values=grids, axis=-1, interleave=False)


@op("ScatterND", since=11, constraints=(_arithmetic_on_numbers,))
def scatter_nd(node: Node, ctx: MilContext) -> None:
    """Elements or slices by index vectors."""
    index = _from_start(node, ctx, node.inputs[1], _sizes(ctx, node, 0))
    mode = _REDUCTIONS[node.attrs.get("reduction", "none")]
    _put_element(node, ctx, "scatter_nd", data=_table(node, ctx), indices=index, updates=_updates(node, ctx), mode=mode)
