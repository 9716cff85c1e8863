"""Pad: zeros or another value, mirrored, repeated and wrapped edges; a negative amount cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._carry import through_int32
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import constant_inputs, operator

__all__: list[str] = []

_PAD_AXES = 5  # most that PAD and MIRROR_PAD take


def _mode(node: Node, graph: Graph) -> str:
    """Mode is constant, reflect, edge or wrap."""
    del graph
    mode = node.attrs.get("mode", "constant")
    return "" if mode in ("constant", "reflect", "edge", "wrap") else f"mode is {mode}"


@operator("Pad", rules=(_mode,))
def pad_attributes(node: Node, ctx: Context) -> None:
    """Pad before opset 11: pads are an attribute."""
    value = ctx.literal(np.asarray(node.attrs.get("value", 0), ctx.dtype(node.inputs[0])))
    _pad(node, ctx, list(node.attrs["pads"]), list(range(ctx.rank(node.inputs[0]))), value)


@operator("Pad", since=11, rules=(_mode, constant_inputs(1, 3)))
def pad_inputs(node: Node, ctx: Context) -> None:
    """Pad with pads, value and axes as inputs; the value may be computed."""
    rank = ctx.rank(node.inputs[0])
    pads, axes = ctx.constant(node.inputs[1]), ctx.constant(node.input(3))
    assert pads is not None  # the rule says so
    chosen = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    value = ctx.literal(np.zeros((), ctx.dtype(node.inputs[0])))
    if node.input(2):
        value = ctx.tf.reshape(ctx.get(node.input(2)), ())
    _pad(node, ctx, [int(amount) for amount in pads], chosen, value)


def _pad(node: Node, ctx: Context, pads: list[int], axes: list[int], value: Any) -> None:
    name, tf = node.inputs[0], ctx.tf
    order, shape = ctx.order(name), ctx.shape(name)
    x = ctx.get(name, order)
    amounts = dict.fromkeys(range(len(shape)), (0, 0)) | {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if any(min(pair) < 0 for pair in amounts.values()):
        begins = [max(0, -amounts[axis][0]) for axis in order]
        x = tf.slice(x, begins, [shape[axis] + min(0, amounts[axis][0]) + min(0, amounts[axis][1]) for axis in order])
    grown = [(max(0, amounts[axis][0]), max(0, amounts[axis][1])) for axis in order]
    if any(max(pair) for pair in grown):
        x = _grown(ctx, x, grown, node.attrs.get("mode", "constant"), value)
    ctx.put(node.outputs[0], x, order)


def _grown(ctx: Context, x: Any, grown: list[tuple[int, int]], mode: str, value: Any) -> Any:
    tf = ctx.tf
    few = len(grown) <= _PAD_AXES
    if mode == "constant":
        if few:
            return through_int32(
                tf, x, ("int8", "uint8"), lambda y: tf.raw_ops.PadV2(input=y, paddings=grown, constant_values=tf.cast(value, y.dtype))
            )
        return _between(ctx, x, grown, value)
    if mode == "reflect" and few and all(max(pair) < size for pair, size in zip(grown, x.shape, strict=True)):
        return through_int32(tf, x, ("bool",), lambda y: tf.pad(y, grown, "REFLECT"))
    for axis, (before, after) in enumerate(grown):
        if before or after:
            x = tf.gather(x, ctx.literal(_sources(mode, x.shape[axis], before, after)), axis=axis)
    return x


def _between(ctx: Context, x: Any, grown: list[tuple[int, int]], value: Any) -> Any:
    """One axis at a time between blocks of the value."""
    tf = ctx.tf
    for axis, pair in enumerate(grown):
        blocks = [tf.fill([amount if each == axis else size for each, size in enumerate(x.shape)], value) for amount in pair]
        x = tf.concat([block for block in (blocks[0], x, blocks[1]) if block.shape[axis]], axis)
    return x


def _sources(mode: str, size: int, before: int, after: int) -> np.ndarray:
    """Which element stands where along one axis."""
    places = np.arange(-before, size + after)
    if mode == "edge":
        places = np.clip(places, 0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:  # there and back again, the ends once
        period = max(1, 2 * (size - 1))
        places = places % period
        places = np.minimum(places, period - places)
    return places.astype(np.int32)
