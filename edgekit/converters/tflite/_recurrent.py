"""LSTM and GRU, one step after the other as plain matrix products: builtin kernels only, state in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import constant_inputs, float_only, operator

__all__ = ["MAX_STEPS"]

MAX_STEPS = 512
"""Longest sequence that is unrolled; each step adds some fifteen nodes to the file."""

_Step = Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]


def _short(node: Node, graph: Graph) -> str:
    """The sequence has at most 512 steps (they are unrolled)."""
    steps = graph.types[node.inputs[0]].shape[1 if node.attrs.get("layout", 0) else 0]
    return f"{steps} steps" if steps > MAX_STEPS else ""


def _full_length(node: Node, graph: Graph) -> str:
    """sequence_lens is left out or equal to the sequence's length."""
    name = node.input(4)
    if not name:
        return ""
    steps = graph.types[node.inputs[0]].shape[1 if node.attrs.get("layout", 0) else 0]
    lengths = graph.constants.get(name)
    return "" if lengths is not None and bool(np.all(lengths == steps)) else "sequences of different length"


def _default_activations(node: Node, graph: Graph) -> str:
    """Activations are the default ones, without clip or coupled gates."""
    del graph
    default = ["Sigmoid", "Tanh", "Tanh"] if node.op == "LSTM" else ["Sigmoid", "Tanh"]
    found = node.attrs.get("activations") or default * _directions(node)
    if [name.lower() for name in found] != [name.lower() for name in default * _directions(node)]:
        return f"activations are {', '.join(found)}"
    if "clip" in node.attrs:
        return f"clip is {node.attrs['clip']}"
    return "input_forget is 1" if node.attrs.get("input_forget", 0) else ""


def _directions(node: Node) -> int:
    return 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1


_RULES = (float_only, _short, _full_length, _default_activations, constant_inputs(1, 2, 3))


def _run(node: Node, ctx: Context, states: list[list[Any]], prepare: Callable[[int], tuple[Any, _Step]]) -> None:
    """Unroll every direction and record all outputs.

    Args:
        node: the recurrent node.
        ctx: the model under construction.
        states: per direction the initial states, each ``(batch, hidden)``.
        prepare: direction to (inputs projected for all steps ``(steps, batch, gates * hidden)``, one step's function).
    """
    tf, first = ctx.tf, bool(node.attrs.get("layout", 0))
    steps = ctx.shape(node.inputs[0])[1 if first else 0]
    finals, series = [], []
    for direction, state in enumerate(states):
        projected, step = prepare(direction)
        inputs = tf.unstack(projected, axis=0)
        backwards = node.attrs.get("direction", "forward") == "reverse" or direction == 1
        outputs = [None] * steps
        current = tuple(state)
        for index in reversed(range(steps)) if backwards else range(steps):
            current = step(inputs[index], current)
            outputs[index] = current[0]
        finals.append(current)
        series.append(outputs)
    if node.outputs[0]:
        y = tf.stack([tf.stack(list(per_step), axis=0) for per_step in zip(*series, strict=True)], axis=0)
        # Lies (steps, directions, batch, hidden); with layout 1 the logical order is (batch, steps, directions, hidden).
        ctx.put(node.outputs[0], y, (1, 2, 0, 3) if first else None)
    for index, name in enumerate(node.outputs[1:]):
        if name:
            last = tf.stack([final[index] for final in finals], axis=0)
            ctx.put(name, last, (1, 0, 2) if first else None)


def _sequence(node: Node, ctx: Context) -> Any:
    """Input as (steps, batch, features)."""
    return ctx.get(node.inputs[0], (1, 0, 2) if node.attrs.get("layout", 0) else (0, 1, 2))


def _initial(node: Node, ctx: Context, index: int, hidden: int) -> list[Any]:
    """Initial state per direction, each (batch, hidden)."""
    name = node.input(index)
    first = bool(node.attrs.get("layout", 0))
    if not name:
        batch = ctx.shape(node.inputs[0])[0 if first else 1]
        return [ctx.literal(np.zeros((batch, hidden), np.float32))] * _directions(node)
    state = ctx.get(name, (1, 0, 2) if first else (0, 1, 2))
    return list(ctx.tf.unstack(state, axis=0))


def _project(ctx: Context, x: Any, weights: np.ndarray, bias: np.ndarray) -> Any:
    """``x W' + b`` for all steps at once."""
    steps, batch, features = x.shape
    flat = ctx.tf.nn.bias_add(ctx.tf.matmul(ctx.tf.reshape(x, (steps * batch, features)), ctx.literal(weights.T)), ctx.literal(bias))
    return ctx.tf.reshape(flat, (steps, batch, weights.shape[0]))


@operator("LSTM", rules=_RULES)
def lstm(node: Node, ctx: Context) -> None:
    """LSTM with the equations of the ONNX specification; gates in the order i, o, f, c."""
    tf = ctx.tf
    weights, recurrent = (np.asarray(ctx.constant(node.inputs[index])) for index in (1, 2))
    hidden = recurrent.shape[2]
    bias, peephole = ctx.constant(node.input(3)), ctx.constant(node.input(7))
    x = _sequence(node, ctx)

    def prepare(direction: int) -> tuple[Any, _Step]:
        both = np.zeros(8 * hidden, np.float32) if bias is None else bias[direction]
        kernel = ctx.literal(recurrent[direction].T)
        p_i, p_o, p_f = (None,) * 3 if peephole is None else (ctx.literal(part) for part in np.split(peephole[direction], 3))

        def step(inputs: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
            h, c = state
            i, o, f, g = tf.split(inputs + tf.matmul(h, kernel), 4, axis=1)
            if p_i is not None:
                i, f = i + p_i * c, f + p_f * c
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o if p_o is None else o + p_o * c) * tf.tanh(c)
            return h, c

        return _project(ctx, x, weights[direction], both[: 4 * hidden] + both[4 * hidden :]), step

    states = [list(pair) for pair in zip(_initial(node, ctx, 5, hidden), _initial(node, ctx, 6, hidden), strict=True)]
    _run(node, ctx, states, prepare)


@operator("GRU", rules=_RULES)
def gru(node: Node, ctx: Context) -> None:
    """GRU with the equations of the ONNX specification; gates in the order z, r, h."""
    tf = ctx.tf
    weights, recurrent = (np.asarray(ctx.constant(node.inputs[index])) for index in (1, 2))
    hidden = recurrent.shape[2]
    bias = ctx.constant(node.input(3))
    reset_after = bool(node.attrs.get("linear_before_reset", 0))
    x = _sequence(node, ctx)

    def prepare(direction: int) -> tuple[Any, _Step]:
        both = np.zeros(6 * hidden, np.float32) if bias is None else bias[direction]
        b_inputs, b_recurrent = both[: 3 * hidden].copy(), both[3 * hidden :]
        b_inputs[: 2 * hidden] += b_recurrent[: 2 * hidden]
        if not reset_after:
            b_inputs[2 * hidden :] += b_recurrent[2 * hidden :]
        gates = ctx.literal(recurrent[direction][: 2 * hidden].T)
        candidate, b_candidate = ctx.literal(recurrent[direction][2 * hidden :].T), ctx.literal(b_recurrent[2 * hidden :])

        def step(inputs: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
            (h,) = state
            x_z, x_r, x_h = tf.split(inputs, 3, axis=1)
            h_z, h_r = tf.split(tf.matmul(h, gates), 2, axis=1)
            z, r = tf.sigmoid(x_z + h_z), tf.sigmoid(x_r + h_r)
            recalled = r * (tf.matmul(h, candidate) + b_candidate) if reset_after else tf.matmul(r * h, candidate)
            return ((1.0 - z) * tf.tanh(x_h + recalled) + z * h,)

        return _project(ctx, x, weights[direction], b_inputs), step

    _run(node, ctx, [[h] for h in _initial(node, ctx, 5, hidden)], prepare)
