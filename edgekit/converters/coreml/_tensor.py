"""Operators that move data: shapes, slices, gathers, padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, mil_dtype, op

__all__: list[str] = []


def _inference(node: Node, graph: Graph) -> str:
    """Dropout is at inference, without its mask output"""
    if any(node.outputs[1:]):
        return "the mask output is used"
    mode = graph.constants.get(node.input(2))
    return "training_mode is on" if mode is not None and mode.any() else ""


@op("Identity")
@op("Dropout", parameters=(1, 2), constraints=(_inference,))
def identity(node: Node, ctx: MilContext) -> None:
    """The same values; Dropout does nothing at inference."""
    ctx.pass_on(node, ctx.read(node.inputs[0]))


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
    values = [ctx.tensor(name) for name in node.inputs]
    if len(values) == 1:
        ctx.pass_on(node, values[0])
        return
    bools = ctx.dtype(node.inputs[0]) == "bool"
    axis = int(node.attrs["axis"])
    if not bools:
        ctx.put(node, "concat", values=values, axis=axis, interleave=False)
        return
    numbers = [
        value.astype(np.int32) if isinstance(value, np.ndarray) else ctx.mid(node, "cast", x=value, dtype="int32") for value in values
    ]
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
        if name:
            begin = [first if at == axis else 0 for at in range(len(shape))]
            end = [first + size if at == axis else dim for at, dim in enumerate(shape)]
            ctx.put(node, "slice_by_index", output=index, x=ctx.tensor(node.inputs[0]), begin=begin, end=end)
        first += size


def _gatherable(node: Node, graph: Graph) -> str:
    """The gathered table is not boolean"""
    return "bool table" if graph.types[node.inputs[0]].dtype == "bool" else ""


@op("Gather", constraints=(_gatherable,))
def gather(node: Node, ctx: MilContext) -> None:
    """Constant scalar index: a slice. Else gather; negative run-time indices count from the end."""
    x, shape = ctx.tensor(node.inputs[0]), ctx.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    constant = ctx.constant(node.inputs[1])
    out = list(ctx.shape(node.outputs[0]))
    if constant is not None and constant.size == 1:
        at = int(constant.reshape(-1)[0]) % shape[axis]
        begin = [at if place == axis else 0 for place in range(len(shape))]
        end = [at + 1 if place == axis else dim for place, dim in enumerate(shape)]
        part = ctx.mid(node, "slice_by_index", x=x, begin=begin, end=end)
        ctx.put(node, "reshape", x=part, shape=out)
        return
    if constant is not None:
        indices = np.where(constant < 0, constant + shape[axis], constant).astype(np.int32)
        ctx.put(node, "gather", x=x, indices=indices, axis=axis)
        return
    index = ctx.read(node.inputs[1])
    below = ctx.mid(node, "less", x=index, y=np.int32(0))
    index = ctx.mid(node, "select", cond=below, a=ctx.mid(node, "add", x=index, y=np.int32(shape[axis])), b=index)
    if ctx.graph.types[node.inputs[1]].rank:
        ctx.put(node, "gather", x=x, indices=index, axis=axis)
    else:
        ctx.put(node, "reshape", x=ctx.mid(node, "gather", x=x, indices=index, axis=axis), shape=out)


# --- padding and repetition ----------------------------------------------------------------------------------------------------------------

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _pads(node: Node, graph: Graph) -> list[tuple[int, int]]:
    """(before, after) of every axis; ``axes`` came with opset 18."""
    rank = graph.types[node.inputs[0]].rank
    flat = graph.constants[node.input(1)].reshape(-1).tolist() if node.input(1) else node.attrs["pads"]
    axes = graph.constants[node.input(3)].reshape(-1).tolist() if node.input(3) else list(range(rank))
    pads = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        pads[axis % rank] = (int(flat[place]), int(flat[place + len(axes)]))
    return pads


def _pad_rules(node: Node, graph: Graph) -> str:
    """Pad is constant, reflect or edge, not negative; reflect and edge on the last two axes only, reflect by less than their size"""
    mode = node.attrs.get("mode", "constant")
    if mode not in _PAD_MODES:
        return f"mode {mode}"
    if node.input(1) and node.input(1) not in graph.constants:
        return ""  # another rule says it
    pads, shape = _pads(node, graph), graph.types[node.inputs[0]].shape
    if any(min(pair) < 0 for pair in pads):
        return f"negative pads {pads}"
    if mode != "constant" and any(any(pair) for pair in pads[:-2]):
        return f"{mode} on an axis before the last two"
    if mode == "reflect" and any(max(pair) >= size for pair, size in zip(pads, shape, strict=True) if any(pair)):
        return f"reflect by {pads} on shape {list(shape)}"
    return ""


@op("Pad", parameters=(1, 2, 3), constraints=(floats, _pad_rules))
def pad(node: Node, ctx: MilContext) -> None:
    """Grow axes by a constant, by reflection or by the edge's value."""
    pads = _pads(node, ctx.graph)
    used = [axis for axis, pair in enumerate(pads) if any(pair)]
    x = ctx.tensor(node.inputs[0])
    if not used:
        ctx.pass_on(node, x)
        return
    mode = node.attrs.get("mode", "constant")
    value = ctx.graph.constants[node.input(2)].reshape(-1)[0] if node.input(2) else np.float32(node.attrs.get("value", 0.0))
    arguments: dict[str, Any] = {"constant_val": value} if mode == "constant" else {}
    flat = [size for pair in pads[used[0] :] for size in pair]
    ctx.put(node, "pad", x=x, pad=flat, mode=_PAD_MODES[mode], **arguments)


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
