"""Pools. MIL's take no dilations, give no indices and count padding in one way only; the rest is written out window tap by window tap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, mil_dtype, not_boolean, op
from edgekit.converters.coreml._window import flat, kernel_sizes, padding, pads_positive, per_axis, spatial, window_pads

__all__: list[str] = []

_MOST_TAPS = 256
"""Elements of a window that is written out; each costs a slice and a comparison."""


@dataclass(frozen=True)
class _Plan:
    """Geometry of a pool.

    Attributes:
        kernel, strides, dilations: of each spatial axis.
        given: the node's own pads.
        pads: those that give the node's output size: ``ceil_mode`` may reach further.
        sizes, wanted: input and output lengths.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    given: list[tuple[int, int]]
    pads: list[tuple[int, int]]
    sizes: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def dilated(self) -> bool:
        return any(step != 1 for step in self.dilations)


def _plan(node: Node, graph: Graph) -> _Plan:
    sizes = graph.types[node.inputs[0]].shape[2:]
    wanted = next(graph.types[name].shape[2:] for name in node.outputs if name)
    kernel, count = kernel_sizes(node, graph), len(sizes)
    strides, dilations = per_axis(node, "strides", count), per_axis(node, "dilations", count)
    given = window_pads(node, graph)
    pads = []
    for axis, (before, after) in enumerate(given):
        reach = (wanted[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        pads.append((before, max(after, reach - sizes[axis] - before)))
    return _Plan(kernel, strides, dilations, given, pads, sizes, wanted)


# --- maximum -------------------------------------------------------------------------------------------------------------------------------


def _few_taps(node: Node, graph: Graph) -> str:
    """A MaxPool with an Indices output has at most 256 elements in its window, one with dilations at most 256 along its axes together"""
    plan = _plan(node, graph)
    if any(node.outputs[1:]):
        taps = math.prod(plan.kernel)
        return f"{taps} elements in a window with Indices" if taps > _MOST_TAPS else ""
    taps = sum(plan.kernel)
    return f"{taps} elements along the axes of a dilated window" if plan.dilated and taps > _MOST_TAPS else ""


@op("MaxPool", constraints=(not_boolean, spatial, pads_positive, _few_taps))
def max_pool(node: Node, ctx: MilContext) -> None:
    """Maximum over a window; padding never wins. Integers of 8 bits go through floats, which hold them exactly."""
    x, plan = ctx.read(node.inputs[0]), _plan(node, ctx.graph)
    whole = mil_dtype(ctx.dtype(node.inputs[0])) == "int32"
    x = ctx.cast(node, x, "fp32") if whole else x
    if any(node.outputs[1:]):
        best, places = _by_taps(node, ctx, x, plan)
        ctx.pass_on(node, places, output=1)
    elif plan.dilated:
        best = _by_axes(node, ctx, x, plan)
    else:
        arguments: dict[str, Any] = {"x": x, "kernel_sizes": plan.kernel, "strides": plan.strides, **padding(plan.pads)}
        if not whole:
            ctx.put(node, "max_pool", **arguments)
            return
        best = ctx.mid(node, "max_pool", **arguments)
    if node.outputs[0]:
        ctx.pass_on(node, ctx.cast(node, best, "int32") if whole else best)


def _padded(node: Node, ctx: MilContext, x: Any, plan: _Plan) -> Any:
    """The input with minus infinity around it, which no maximum takes."""
    amounts = flat(plan.pads)
    return ctx.mid(node, "pad", x=x, pad=amounts, mode="constant", constant_val=np.float32(-np.inf)) if any(amounts) else x


def _by_axes(node: Node, ctx: MilContext, x: Any, plan: _Plan) -> Any:
    """The maximum over one axis after the other, of strided slices."""
    x = _padded(node, ctx, x, plan)
    shape = [*ctx.shape(node.inputs[0])[:2], *(size + sum(pair) for size, pair in zip(plan.sizes, plan.pads, strict=True))]
    for axis, (count, stride) in enumerate(zip(plan.wanted, plan.strides, strict=True), start=2):
        reach = (count - 1) * stride + 1
        strides = [stride if place == axis else 1 for place in range(len(shape))]
        best: Any = None
        for tap in range(plan.kernel[axis - 2]):
            first = tap * plan.dilations[axis - 2]
            begin = [first if place == axis else 0 for place in range(len(shape))]
            end = [first + reach if place == axis else size for place, size in enumerate(shape)]
            part = ctx.mid(node, "slice_by_index", x=x, begin=begin, end=end, stride=strides)
            best = part if best is None else ctx.mid(node, "maximum", x=best, y=part)
        x, shape[axis] = best, count
    return x


def _by_taps(node: Node, ctx: MilContext, x: Any, plan: _Plan) -> tuple[Any, Any]:
    """The largest of the window's elements, each a strided slice, and its place among all elements of the input."""
    lead = list(ctx.shape(node.inputs[0])[:2])
    padded = _padded(node, ctx, x, plan)
    steps = _element_steps(plan.sizes, node.attrs.get("storage_order", 0))
    best: Any = None
    places: Any = None
    for tap in itertools.product(*map(range, plan.kernel)):
        begin = [place * step for place, step in zip(tap, plan.dilations, strict=True)]
        end = [first + (count - 1) * step + 1 for first, count, step in zip(begin, plan.wanted, plan.strides, strict=True)]
        part = ctx.mid(node, "slice_by_index", x=padded, begin=[0, 0, *begin], end=[*lead, *end], stride=[1, 1, *plan.strides])
        place = np.full((*lead, *plan.wanted), sum(first * step for first, step in zip(begin, steps, strict=True)), np.int32)
        if best is None:
            best, places = part, place
            continue
        better = ctx.mid(node, "greater", x=part, y=best)
        places = ctx.mid(node, "select", cond=better, a=place, b=places)
        best = ctx.mid(node, "maximum", x=best, y=part)
    return best, ctx.mid(node, "add", x=places, y=_window_starts(lead, plan, steps))


def _element_steps(sizes: Sequence[int], column_major: int) -> list[int]:
    """How far one step along each spatial axis goes in a plane's list of elements (ONNX operator MaxPool, attribute storage_order)."""
    if column_major:
        return [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _window_starts(lead: Sequence[int], plan: _Plan, steps: Sequence[int]) -> np.ndarray:
    """Place of the first element of each window (N, C, spatial…); beyond the edge where padding is first."""
    plane = math.prod(plan.sizes)
    starts = (np.arange(math.prod(lead)) * plane).reshape(*lead, *[1] * len(plan.sizes))
    for axis, (count, step) in enumerate(zip(plan.wanted, steps, strict=True)):
        along = (np.arange(count) * plan.strides[axis] - plan.pads[axis][0]) * step
        starts = starts + along.reshape([-1 if place == axis + 2 else 1 for place in range(len(plan.sizes) + 2)])
    return np.ascontiguousarray(starts, np.int32)


# --- average -------------------------------------------------------------------------------------------------------------------------------


@op("AveragePool", constraints=(floats, spatial, pads_positive))
def average_pool(node: Node, ctx: MilContext) -> None:
    """Mean over a window."""
    x, plan, included = ctx.read(node.inputs[0]), _plan(node, ctx.graph), bool(node.attrs.get("count_include_pad", 0))
    if not plan.dilated and not (included and plan.pads != plan.given):
        arguments: dict[str, Any] = {"x": x, "kernel_sizes": plan.kernel, "strides": plan.strides, **padding(plan.pads)}
        ctx.put(node, "avg_pool", **arguments, exclude_padding_from_average=not included)
        return
    channels = ctx.shape(node.inputs[0])[1]
    kind = ctx.scalar(node, 1).dtype
    geometry = {"strides": plan.strides, "dilations": plan.dilations, **padding(plan.pads)}
    total = ctx.mid(node, "conv", x=x, weight=np.ones((channels, 1, *plan.kernel), kind), groups=channels, **geometry)
    ctx.put(node, "real_div", x=total, y=_counts(plan, included).astype(kind))


def _counts(plan: _Plan, included: bool) -> np.ndarray:
    """Elements of each window (1, 1, spatial…) that the mean counts; what only ``ceil_mode`` reaches never does."""
    counts = np.ones((1, 1, *[1] * len(plan.sizes)))
    for axis, (before, after) in enumerate(plan.given):
        places = np.arange(plan.wanted[axis])[:, None] * plan.strides[axis] - before
        places = places + np.arange(plan.kernel[axis])[None] * plan.dilations[axis]
        low, high = (-before, plan.sizes[axis] + after) if included else (0, plan.sizes[axis])
        along = ((places >= low) & (places < high)).sum(axis=1)
        counts = counts * along.reshape([-1 if place == axis + 2 else 1 for place in range(len(plan.sizes) + 2)])
    return np.maximum(counts, 1)


@op("GlobalAveragePool", "GlobalMaxPool", constraints=(floats, spatial))
def global_pool(node: Node, ctx: MilContext) -> None:
    """Reduction of all spatial axes."""
    axes = list(range(2, ctx.rank(node.inputs[0])))
    name = "reduce_mean" if node.op == "GlobalAveragePool" else "reduce_max"
    ctx.put(node, name, x=ctx.read(node.inputs[0]), axes=axes, keep_dims=True)
