"""Operators that move data: shapes, slices, joining, repetition."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, mil_dtype, op

__all__: list[str] = []


def _inference(node: Node, graph: Graph) -> str:
    """Dropout is at inference"""
    mode, ratio = graph.constants.get(node.input(2)), graph.constants.get(node.input(1))
    off = mode is None or not mode.any() or (ratio is not None and not ratio.any())
    return "" if off else "training_mode is on"


@op("Identity")
@op("Dropout", parameters=(1, 2), constraints=(_inference,))
def identity(node: Node, ctx: MilContext) -> None:
    """The same values; Dropout does nothing at inference, and its mask is true everywhere."""
    if node.outputs[0]:
        ctx.pass_on(node, ctx.read(node.inputs[0]))
    if any(node.outputs[1:]):
        ctx.pass_on(node, np.ones(ctx.shape(node.outputs[1]), bool), output=1)


@op("Reshape", "Squeeze", "Unsqueeze", parameters=(1,))
@op("Flatten")
def reshape(node: Node, ctx: MilContext) -> None:
    """To the output's shape, which is known; one operator for all, so that neighbours merge."""
    x, shape = ctx.tensor(node.inputs[0]), list(ctx.shape(node.outputs[0]))
    if list(ctx.shape(node.inputs[0])) == shape:
        ctx.pass_on(node, x)
    else:
        ctx.put(node, "reshape", x=x, shape=shape)


@op("Transpose")
def transpose(node: Node, ctx: MilContext) -> None:
    """Axes in another order, reversed by default."""
    perm = list(node.attrs.get("perm") or reversed(range(ctx.rank(node.inputs[0]))))
    ctx.put(node, "transpose", x=ctx.tensor(node.inputs[0]), perm=perm)


@op("Concat")
def concat(node: Node, ctx: MilContext) -> None:
    """Join along one axis."""
    values = [ctx.tensor(name) for name in node.inputs if 0 not in ctx.shape(name)]
    if len(values) == 1:
        ctx.pass_on(node, values[0])
        return
    axis = int(node.attrs["axis"])
    if ctx.dtype(node.inputs[0]) != "bool":
        ctx.put(node, "concat", values=values, axis=axis, interleave=False)
        return
    numbers = [ctx.cast(node, value, "int32") for value in values]
    ctx.put(node, "cast", x=ctx.mid(node, "concat", values=numbers, axis=axis, interleave=False), dtype="bool")


# --- slices --------------------------------------------------------------------------------------------------------------------------------


def _slices(node: Node, graph: Graph) -> list[tuple[int, int, int]]:
    """(first index, number of elements, step) of each axis."""

    def given(index: int, attribute: str) -> list[int] | None:
        name = node.input(index)
        if name:
            return [int(value) for value in graph.constants[name].reshape(-1)]
        return list(node.attrs[attribute]) if attribute in node.attrs else None

    shape = graph.types[node.inputs[0]].shape
    starts, ends = given(1, "starts") or [], given(2, "ends") or []
    axes, steps = given(3, "axes") or list(range(len(starts))), given(4, "steps") or [1] * len(starts)
    found = [(0, size, 1) for size in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        bounds = range(*slice(start, end, step).indices(shape[axis]))
        found[axis % len(shape)] = (bounds.start, len(bounds), step)
    return found


def slice_axes(node: Node, ctx: MilContext, x: Any, plan: list[tuple[int, int, int]], shape: tuple[int, ...]) -> None:
    """Emit one slice as the node's result; a negative step reads the reversed axis forwards."""
    turned = [axis for axis, (_, _, step) in enumerate(plan) if step < 0]
    if turned:
        x = ctx.mid(node, "reverse", x=x, axes=turned)
    begin = [shape[axis] - 1 - first if axis in turned else first for axis, (first, _, _) in enumerate(plan)]
    stride = [abs(step) for _, _, step in plan]
    end = [first + (count - 1) * step + 1 for first, (_, count, _), step in zip(begin, plan, stride, strict=True)]
    ctx.put(node, "slice_by_index", x=x, begin=begin, end=end, stride=stride)


@op("Slice", parameters=(1, 2, 3, 4))
def slice_(node: Node, ctx: MilContext) -> None:
    """Constant starts, ends and steps."""
    slice_axes(node, ctx, ctx.tensor(node.inputs[0]), _slices(node, ctx.graph), ctx.shape(node.inputs[0]))


@op("Split", parameters=(1,))
def split(node: Node, ctx: MilContext) -> None:
    """Parts along one axis, each a slice of its own; an unused part costs nothing."""
    shape = ctx.shape(node.inputs[0])
    axis, first = int(node.attrs.get("axis", 0)) % len(shape), 0
    for index, name in enumerate(node.outputs):
        count = (ctx.integers(node.input(1)) or node.attrs.get("split") or [])[index : index + 1]
        size = count[0] if count else ctx.shape(name)[axis]
        if name and size:
            begin = [first if at == axis else 0 for at in range(len(shape))]
            end = [first + size if at == axis else dim for at, dim in enumerate(shape)]
            ctx.put(node, "slice_by_index", output=index, x=ctx.tensor(node.inputs[0]), begin=begin, end=end)
        first += size


# --- repetition ----------------------------------------------------------------------------------------------------------------------------


@op("Expand", "Tile", parameters=(1,))
def expand(node: Node, ctx: MilContext) -> None:
    """Repeat axes until the output's shape is reached; Expand's are of size 1 before."""
    ctx.pass_on(node, repeated(node, ctx, node.inputs[0], ctx.shape(node.outputs[0])))


def repeated(node: Node, ctx: MilContext, tensor: str, wanted: tuple[int, ...]) -> Any:
    """A tensor with leading axes added and every axis repeated until it has the shape ``wanted``."""
    x, shape = ctx.tensor(tensor), ctx.shape(tensor)
    full = (1,) * (len(wanted) - len(shape)) + shape
    reps = [after // before for before, after in zip(full, wanted, strict=True)]
    if tensor in ctx.graph.constants:
        return np.tile(x.reshape(full), reps)
    if full != shape:
        x = ctx.mid(node, "reshape", x=x, shape=list(full))
    if full == wanted:
        return x
    if mil_dtype(ctx.dtype(tensor)) != "bool":
        return ctx.mid(node, "tile", x=x, reps=reps)
    tiled = ctx.mid(node, "tile", x=ctx.mid(node, "cast", x=x, dtype="int32"), reps=reps)
    return ctx.mid(node, "cast", x=tiled, dtype="bool")
