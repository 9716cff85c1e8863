"""Placing elements at computed indices, and OneHot. With constant indices a scatter is a gather, which the common lowering makes of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._carry import carrier, convert, narrow, widen
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import REALS, known_inputs, operator

__all__: list[str] = []


def _computed(node: Node, graph: Graph) -> str:
    """The indices are computed."""
    return "its indices are constants: a gather does the same" if node.inputs[1] in graph.constants else ""


def _reduced(node: Node, graph: Graph) -> str:
    """Products, maxima and minima are of float32 or integers up to 32 bits, sums of any number."""
    kind = graph.types[node.inputs[0]].dtype
    reduction = node.attrs.get("reduction", "none")
    wide = ("int64", "bool") if reduction in ("mul", "max", "min") else ("bool",) if reduction == "add" else ()
    return f"reduction {reduction} of {kind}" if carrier(kind) in wide else ""


@operator("ScatterND", rules=(_computed, _reduced))
def scatter_nd(node: Node, ctx: Context) -> None:
    """Slices of the data replaced by updates, or combined with them; of two updates of one place either may win."""
    tf, (data, indices, updates) = ctx.tf, node.inputs[:3]
    depth = ctx.shape(indices)[-1]
    sizes = np.asarray(ctx.shape(data)[:depth], np.int32)
    index = tf.cast(ctx.get(indices), "int32")
    index = tf.where(tf.less(index, 0), index + ctx.literal(sizes), index)
    strides = np.asarray([math.prod(sizes[axis + 1 :]) for axis in range(depth)], np.int32)
    places = tf.reshape(tf.reduce_sum(index * ctx.literal(strides), -1), (-1,))
    rest = math.prod(ctx.shape(data)[depth:])
    _scatter(node, ctx, places, tf.reshape(ctx.get(data), (-1, rest)), tf.reshape(ctx.get(updates), (-1, rest)))


@operator("ScatterElements", "Scatter", rules=(_computed, _reduced))
def scatter_elements(node: Node, ctx: Context) -> None:
    """Elements replaced along one axis, or combined; of two updates of one place either may win."""
    tf, (data, indices, updates) = ctx.tf, node.inputs[:3]
    shape, taken = ctx.shape(data), ctx.shape(indices)
    axis = node.attrs.get("axis", 0) % len(shape)
    strides = [math.prod(shape[each + 1 :]) for each in range(len(shape))]
    base = sum((place * strides[each] for each, place in enumerate(np.indices(taken)) if each != axis), np.zeros(taken, np.int64))
    index = tf.cast(ctx.get(indices), "int32")
    index = tf.where(tf.less(index, 0), index + shape[axis], index)
    places = tf.reshape(index * strides[axis] + ctx.literal(base.astype(np.int32)), (-1,))
    _scatter(node, ctx, places, tf.reshape(ctx.get(data), (-1, 1)), tf.reshape(ctx.get(updates), (-1, 1)))


def _scatter(node: Node, ctx: Context, places: Any, rows: Any, updates: Any) -> None:
    """Put ``updates`` (n, k) into ``rows`` (m, k) at ``places`` (n)."""
    tf, kind = ctx.tf, ctx.logical(node.inputs[0])
    reduction = node.attrs.get("reduction", "none")
    if kind != "bool":
        rows, updates = widen(tf, rows), widen(tf, updates)
    where = tf.expand_dims(places, -1)
    if reduction == "none":
        result = tf.tensor_scatter_nd_update(rows, where, updates)
    elif reduction == "add":
        result = rows + tf.scatter_nd(where, updates, rows.shape)
    else:
        segment, combined = {
            "mul": (tf.math.unsorted_segment_prod, tf.multiply),
            "max": (tf.math.unsorted_segment_max, tf.maximum),
            "min": (tf.math.unsorted_segment_min, tf.minimum),
        }[reduction]
        hit = tf.scatter_nd(where, tf.ones([updates.shape[0], 1], tf.int32), [rows.shape[0], 1])
        result = tf.where(tf.greater(hit, 0), combined(rows, segment(updates, places, rows.shape[0])), rows)
    ctx.put(node.outputs[0], narrow(tf, tf.reshape(result, ctx.shape(node.outputs[0])), kind))


def _number(node: Node, graph: Graph) -> str:
    """Indices are numbers."""
    kind = graph.types[node.inputs[0]].dtype
    return "" if kind in REALS or carrier(kind) in REALS else f"input {node.inputs[0]!r} is {kind}"


@operator("OneHot", rules=(_number, known_inputs(1)))
def one_hot(node: Node, ctx: Context) -> None:
    """The second value where the index is, else the first; an index outside of the depth is nowhere."""
    tf, (indices, _, values) = ctx.tf, node.inputs
    rank = ctx.rank(node.outputs[0])
    axis = node.attrs.get("axis", -1) % rank
    depth = ctx.shape(node.outputs[0])[axis]
    index = convert(tf, ctx.get(indices), ctx.logical(indices), "int32")
    index = tf.expand_dims(tf.where(tf.less(index, 0), index + depth, index), axis)
    places = np.arange(depth, dtype=np.int32).reshape([depth if each == axis else 1 for each in range(rank)])
    pair = widen(tf, ctx.get(values)) if ctx.logical(values) != "bool" else ctx.get(values)
    chosen = tf.where(tf.equal(index, ctx.literal(places)), pair[1], pair[0])
    ctx.put(node.outputs[0], narrow(tf, chosen, ctx.logical(values)))
