"""Pad: constants around a tensor, or its own elements again."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, mil_dtype, op

__all__: list[str] = []

_FUSED = {"reflect": "reflect", "edge": "replicate"}
_NUMPY_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}

Pads = list[tuple[int, int]]


def _pads(node: Node, graph: Graph) -> Pads:
    """(before, after) of every axis, negative for a cut; ``axes`` came with opset 18."""
    rank = graph.types[node.inputs[0]].rank
    flat = graph.constants[node.input(1)].reshape(-1).tolist() if node.input(1) else node.attrs.get("pads") or node.attrs["paddings"]
    axes = graph.constants[node.input(3)].reshape(-1).tolist() if node.input(3) else list(range(rank))
    pads = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        pads[axis % rank] = (int(flat[place]), int(flat[place + len(axes)]))
    return pads


def _pad_rules(node: Node, graph: Graph) -> str:  # noqa: ARG001
    """Pad is constant, reflect, edge or wrap"""
    mode = node.attrs.get("mode", "constant")
    return "" if mode == "constant" or mode in _NUMPY_MODES else f"mode {mode}"


@op("Pad", parameters=(1, 2, 3), constraints=(_pad_rules,))
def pad(node: Node, ctx: MilContext) -> None:
    """One operator where MIL has it; cuts are slices, and what MIL cannot repeat is gathered axis by axis."""
    pads, shape, mode = _pads(node, ctx.graph), ctx.shape(node.inputs[0]), node.attrs.get("mode", "constant")
    pads = pads or [(0, 0)]
    x = ctx.tensor(node.inputs[0])
    if not any(any(pair) for pair in pads):
        ctx.pass_on(node, x)
    elif mode == "constant":
        _constant(node, ctx, x, pads)
    elif _fused(node, ctx, pads):
        ctx.put(node, "pad", x=x, pad=_flat(pads), mode=_FUSED[mode])
    else:
        for axis, pair in enumerate(pads):
            if any(pair):
                x = _gathered(node, ctx, x, axis, _sources(shape[axis], pair, mode))
        ctx.pass_on(node, ctx.cast(node, x, "bool") if ctx.dtype(node.inputs[0]) == "bool" else x)


def _flat(pads: Pads) -> list[int]:
    """MIL's list: from the first axis that changes on."""
    used = [axis for axis, pair in enumerate(pads) if any(pair)]
    return [size for pair in pads[used[0] :] for size in pair]


def _fused(node: Node, ctx: MilContext, pads: Pads) -> bool:
    """Whether MIL's `pad` repeats so: floats, the last two axes, reflection by less than their size, the edge by no more than it."""
    mode, shape = node.attrs["mode"], ctx.shape(node.inputs[0])
    if mode not in _FUSED or mil_dtype(ctx.dtype(node.inputs[0])) != "fp32" or any(any(pair) for pair in pads[:-2]):
        return False
    room = 1 if mode == "reflect" else 0
    return all(min(pair) >= 0 and max(pair) <= size - room for pair, size in zip(pads, shape, strict=True) if any(pair))


def _sources(size: int, pair: tuple[int, int], mode: str) -> np.ndarray:
    """Which element of an axis each padded one repeats."""
    grown = (max(pair[0], 0), max(pair[1], 0))
    places = np.pad(np.arange(size, dtype=np.int32), grown, mode=_NUMPY_MODES[mode])  # type: ignore[call-overload]
    first, last = max(-pair[0], 0), max(-pair[1], 0)
    return np.ascontiguousarray(places[first : len(places) - last])


def _gathered(node: Node, ctx: MilContext, x: Any, axis: int, places: np.ndarray) -> Any:
    if ctx.dtype(node.inputs[0]) == "bool":
        x = ctx.cast(node, x, "int32")
    return ctx.mid(node, "gather", x=x, indices=places, axis=axis)


def _constant(node: Node, ctx: MilContext, x: Any, pads: Pads) -> None:
    """Cuts first, then the constant around; MIL pads floats only, so others are joined to blocks of the constant."""
    shape = list(ctx.shape(node.inputs[0]))
    cuts = [(max(-before, 0), max(-after, 0)) for before, after in pads]
    if any(any(cut) for cut in cuts):
        begin, end = [cut[0] for cut in cuts], [size - cut[1] for size, cut in zip(shape, cuts, strict=True)]
        x = ctx.mid(node, "slice_by_index", x=x, begin=begin, end=end)
        shape = [after - before for before, after in zip(begin, end, strict=True)]
    grown = [(max(before, 0), max(after, 0)) for before, after in pads]
    kind = mil_dtype(ctx.dtype(node.inputs[0]))
    value = np.asarray(ctx.read(node.input(2)) if node.input(2) else node.attrs.get("value", 0.0)).reshape(-1)[0]
    if not any(any(pair) for pair in grown):
        ctx.pass_on(node, x)
    elif kind == "fp32":
        ctx.put(node, "pad", x=x, pad=_flat(grown), mode="constant", constant_val=ctx.scalar(node, value))
    else:
        _joined(node, ctx, ctx.cast(node, x, "int32") if kind == "bool" else x, grown, shape, int(value))


def _joined(node: Node, ctx: MilContext, x: Any, pads: Pads, shape: list[int], value: int) -> None:
    for axis, pair in enumerate(pads):
        blocks = [np.full([size if at == axis else dim for at, dim in enumerate(shape)], value, np.int32) for size in pair]
        if any(pair):
            values = [part for part, size in ((blocks[0], pair[0]), (x, 1), (blocks[1], pair[1])) if size]
            x = ctx.mid(node, "concat", values=values, axis=axis, interleave=False)
            shape[axis] += sum(pair)
    ctx.pass_on(node, ctx.cast(node, x, "bool") if ctx.dtype(node.inputs[0]) == "bool" else x)
