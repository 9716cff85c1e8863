"""Operators that move or select elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._carry import in_carrier, through_int32
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._flattened import flatten_for_products
from edgekit.converters.tflite._layout import drop_axes, identity, permuted, regrouped, relabel, reshape_order
from edgekit.converters.tflite._rules import constant_inputs, known_inputs, operator

__all__: list[str] = []


# --- shape only ------------------------------------------------------------------------------------------------------------------------------


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze", rules=(known_inputs(1),))
def reshape(node: Node, ctx: Context) -> None:
    """A new shape for the same elements; done on the memory as it lies where that is possible."""
    name, after = node.inputs[0], ctx.shape(node.outputs[0])
    constant = ctx.constant(name)
    if constant is not None:
        ctx.put_constant(node.outputs[0], constant.reshape(after))
        return
    order = ctx.order(name)
    result = reshape_order(ctx.shape(name), after, order)
    if result is None and flatten_for_products(node, ctx):
        return
    if result is None:
        order, result = regrouped(ctx.shape(name), after, order)
    x = ctx.get(name, order)
    ctx.put(node.outputs[0], x if tuple(x.shape) == permuted(after, result) else ctx.tf.reshape(x, permuted(after, result)), result)


@operator("Transpose")
def transpose(node: Node, ctx: Context) -> None:
    """Nothing moves: the result lies in another order, and whoever needs a certain one asks for it."""
    name = node.inputs[0]
    perm = tuple(node.attrs.get("perm") or reversed(range(ctx.rank(name))))
    constant = ctx.constant(name)
    if constant is not None:
        ctx.put_constant(node.outputs[0], constant.transpose(perm))
        return
    order = ctx.order(name)
    ctx.put(node.outputs[0], ctx.get(name, order), relabel(order, perm))


@operator("Shape")
def shape(node: Node, ctx: Context) -> None:
    """Known at build time."""
    found = np.asarray(ctx.shape(node.inputs[0]), np.int64)
    ctx.put_constant(node.outputs[0], found[slice(node.attrs.get("start", 0), node.attrs.get("end"))])


@operator("Size")
def size(node: Node, ctx: Context) -> None:
    """Known at build time."""
    ctx.put_constant(node.outputs[0], np.asarray(np.prod(ctx.shape(node.inputs[0])), np.int64))


@operator("ConstantOfShape", rules=(known_inputs(0),))
def constant_of_shape(node: Node, ctx: Context) -> None:
    """Known at build time."""
    value = in_carrier(np.asarray(node.attrs.get("value", np.zeros(1, np.float32))))
    ctx.put_constant(node.outputs[0], np.full(ctx.shape(node.outputs[0]), value.reshape(()), value.dtype))


@operator("Expand", rules=(known_inputs(1),))
def expand(node: Node, ctx: Context) -> None:
    """Broadcast to a larger shape."""
    name, after = node.inputs[0], ctx.shape(node.outputs[0])
    order = ctx.order(name) if ctx.rank(name) == len(after) else identity(len(after))
    x = ctx.broadcastable(name, order)
    target = permuted(after, order)
    ctx.put(node.outputs[0], x if tuple(x.shape) == target else ctx.tf.broadcast_to(x, target), order)


@operator("Tile", rules=(known_inputs(1),))
def tile(node: Node, ctx: Context) -> None:
    """Repeat along every axis."""
    name, tf = node.inputs[0], ctx.tf
    order, before, after = ctx.order(name), ctx.shape(name), ctx.shape(node.outputs[0])
    repeats = [after[axis] // before[axis] for axis in order]  # nothing is empty: such nodes are not emitted
    ctx.put(node.outputs[0], through_int32(tf, ctx.get(name, order), ("int8",), lambda x: tf.tile(x, repeats)), order)


# --- joining and cutting ---------------------------------------------------------------------------------------------------------------------


@operator("Concat")
def concat(node: Node, ctx: Context) -> None:
    """Join along one axis, in the order that most operands lie in."""
    names = [name for name in node.inputs if 0 not in ctx.shape(name)]
    order = ctx.common_order(names, ctx.rank(node.outputs[0]))
    axis = node.attrs["axis"] % len(order)
    constants = [ctx.constant(name) for name in node.inputs]
    if all(each is not None for each in constants):
        ctx.put_constant(node.outputs[0], np.concatenate([np.asarray(each) for each in constants], axis))
    elif len(names) == 1:
        ctx.put(node.outputs[0], ctx.get(names[0], order), order)
    else:
        ctx.put(node.outputs[0], ctx.tf.concat([ctx.get(name, order) for name in names], order.index(axis)), order)


@operator("Split")
def split(node: Node, ctx: Context) -> None:
    """Cut along one axis; the sizes are those of the outputs."""
    order = ctx.order(node.inputs[0])
    axis = node.attrs.get("axis", 0) % len(order)
    sizes = [ctx.shape(name)[axis] if name else 0 for name in node.outputs]
    x, place = ctx.get(node.inputs[0], order), order.index(axis)
    if not all(node.outputs) or 0 in sizes or x.dtype.name in ("int64", "bool"):  # SPLIT takes neither
        starts = _split_starts(node, ctx, axis)
        parts = [_cut(ctx, x, place, start, size) for start, size in zip(starts, sizes, strict=True)]
    else:
        parts = ctx.tf.split(x, sizes if len(set(sizes)) > 1 else len(sizes), place)
    for name, part, size in zip(node.outputs, parts, sizes, strict=True):
        if size:
            ctx.put(name, part, order)
        elif name:
            ctx.put_constant(name, np.zeros(ctx.shape(name), ctx.dtype(name)))


def _split_starts(node: Node, ctx: Context, axis: int) -> list[int]:
    """Where each output of a Split begins; outputs that nothing reads have no shape, but those before them all do."""
    given = ctx.constant(node.input(1))
    sizes = node.attrs.get("split") if given is None else [int(size) for size in given]
    total, count = ctx.shape(node.inputs[0])[axis], len(node.outputs)
    chunk = -(-total // count)
    sizes = sizes or [min(chunk, max(0, total - chunk * index)) for index in range(count)]
    return [sum(sizes[:index]) for index in range(count)]


def _cut(ctx: Context, x: Any, axis: int, start: int, size_: int) -> Any:
    begins = [start if each == axis else 0 for each in range(len(x.shape))]
    return ctx.tf.slice(x, begins, [size_ if each == axis else length for each, length in enumerate(x.shape)])


def _slice(node: Node, ctx: Context, ranges: dict[int, tuple[int, int, int]]) -> None:
    """Cut ``axis: (start, end, step)`` with Python's meaning of negative and huge numbers."""
    name = node.inputs[0]
    shape_, order, tf = ctx.shape(name), ctx.order(name), ctx.tf
    slices = {axis: range(*slice(*_clamped(bounds, shape_[axis])).indices(shape_[axis])) for axis, bounds in ranges.items()}
    constant = ctx.constant(name)
    if constant is not None:
        for axis, taken in slices.items():
            constant = constant.take(np.asarray(taken, np.int64), axis)
        ctx.put_constant(node.outputs[0], constant)
        return
    x = ctx.get(name, order)
    if flipped := [order.index(axis) for axis, taken in slices.items() if taken.step < 0]:
        x = through_int32(tf, x, ("int8",), lambda y: _reversed(tf, y, flipped))
        slices = {
            axis: range(shape_[axis] - 1 - taken.start, shape_[axis] - 1 - taken.start + len(taken) * -taken.step, -taken.step)
            if taken.step < 0
            else taken
            for axis, taken in slices.items()
        }
    full = {axis: slices.get(axis, range(shape_[axis])) for axis in order}
    if all(taken.step == 1 for taken in full.values()):
        if any(len(full[axis]) != shape_[axis] for axis in order):
            x = tf.slice(x, [full[axis].start for axis in order], [len(full[axis]) for axis in order])
    else:
        begins, steps = [full[axis].start for axis in order], [full[axis].step for axis in order]
        ends = [full[axis].start + (len(full[axis]) - 1) * full[axis].step + 1 for axis in order]
        x = tf.strided_slice(x, begins, ends, steps)
    ctx.put(node.outputs[0], x, order)


def _reversed(tf: Any, x: Any, axes: list[int]) -> Any:
    for axis in axes:  # the kernel takes neighbouring axes only
        x = tf.reverse(x, [axis])
    return x


def _clamped(bounds: tuple[int, int, int], size_: int) -> tuple[int, int | None, int]:
    """Bounds as Python's ``slice`` takes them. Backwards, ONNX begins inside where Python begins nowhere, and "past the first element" is None."""
    start, end, step = bounds
    if step > 0:
        return start, end, step
    start = min(max(start + size_ if start < 0 else start, 0), size_ - 1)
    return start, (None if end < -size_ else end), step


@operator("Slice")
def slice_attributes(node: Node, ctx: Context) -> None:
    """Slice before opset 10: bounds are attributes."""
    starts, ends = node.attrs["starts"], node.attrs["ends"]
    axes = node.attrs.get("axes") or range(len(starts))
    _slice(node, ctx, {axis % ctx.rank(node.inputs[0]): (start, end, 1) for axis, start, end in zip(axes, starts, ends, strict=True)})


@operator("Slice", since=10, rules=(constant_inputs(1, 2, 3, 4),))
def slice_inputs(node: Node, ctx: Context) -> None:
    """Slice with bounds as inputs."""
    starts, ends = (_ints(ctx, node.inputs[index]) for index in (1, 2))
    axes = _ints(ctx, node.input(3)) or list(range(len(starts)))
    steps = _ints(ctx, node.input(4)) or [1] * len(starts)
    rank = ctx.rank(node.inputs[0])
    _slice(node, ctx, {axis % rank: bounds for axis, *bounds in zip(axes, starts, ends, steps, strict=True)})  # type: ignore[misc]


def _ints(ctx: Context, name: str) -> list[int]:
    found = ctx.constant(name)
    return [] if found is None else [int(each) for each in np.asarray(found).reshape(-1)]


@operator("Gather", rules=())
def gather(node: Node, ctx: Context) -> None:
    """Select along one axis; a scalar index removes the axis."""
    name, indices = node.inputs
    order, rank, tf = ctx.order(name), ctx.rank(name), ctx.tf
    axis = node.attrs.get("axis", 0) % rank
    chosen = ctx.constant(indices)
    data = ctx.constant(name)
    if chosen is not None:
        chosen = np.where(chosen < 0, chosen + ctx.shape(name)[axis], chosen).astype(np.int32)
        if data is not None:
            ctx.put_constant(node.outputs[0], data.take(chosen, axis))
            return
        index = ctx.literal(chosen)
    else:
        index = tf.cast(ctx.get(indices), "int32")
        index = tf.where(index < 0, index + ctx.shape(name)[axis], index)
    count = ctx.rank(indices)
    if count == 0:
        ctx.put(node.outputs[0], tf.gather(ctx.get(name, order), index, axis=order.index(axis)), drop_axes(order, [axis]))
    elif count == 1:
        ctx.put(node.outputs[0], tf.gather(ctx.get(name, order), index, axis=order.index(axis)), order)
    else:
        ctx.put(node.outputs[0], tf.gather(ctx.get(name), index, axis=axis))
