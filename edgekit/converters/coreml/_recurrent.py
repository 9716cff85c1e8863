"""Recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, constant_at, floats, op

__all__: list[str] = []

# ONNX stacks the gates i, o, f, c; MIL i, f, o, c (ONNX operator LSTM; MIL operator lstm).
_GATES = (0, 2, 1, 3)


def _plain(node: Node, graph: Graph) -> str:
    """Recurrent layers have the default activations, no clip, layout 0, and sequences of full length (others are written out step by step)"""
    sequence, lengths = graph.types[node.inputs[0]].shape[0], node.input(4)
    if node.attrs.get("layout", 0):
        return "layout 1"
    if node.attrs.get("clip", 0.0):
        return "clip"
    names = [name.lower() for name in node.attrs.get("activations") or []]
    if names not in ([], *(list(_ACTIVATIONS[node.op]) * count for count in (1, 2))):
        return f"activations {list(node.attrs['activations'])}"
    if lengths and not (lengths in graph.constants and (graph.constants[lengths] == sequence).all()):
        return "sequence_lens that are shorter than the input or not constant"
    return ""


_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


def _plain_gates(node: Node, graph: Graph) -> str:  # noqa: ARG001
    """LSTM has no peepholes and no coupled gates, GRU its reset gate before the recurrent product"""
    if node.op == "LSTM" and node.input(7):
        return "peephole weights"
    if node.attrs.get("input_forget", 0):
        return "input_forget"
    # What MIL's `gru` does with reset_after is not known: coremltools' own test of it on macOS is marked as failing.
    return "linear_before_reset" if node.attrs.get("linear_before_reset", 0) else ""


def _gates(weights: np.ndarray) -> np.ndarray:
    """Rows of the four gates in MIL's order."""
    blocks = np.split(weights, 4)
    return np.concatenate([blocks[gate] for gate in _GATES])


def _weights(node: Node, ctx: MilContext) -> dict[str, Any]:
    w, r = (ctx.read(name) for name in node.inputs[1:3])
    hidden = r.shape[2]
    b = ctx.read(node.inputs[3]) if node.input(3) else np.zeros((w.shape[0], 8 * hidden), w.dtype)
    arguments = {}
    for direction, suffix in zip(range(w.shape[0]), ("", "_back"), strict=False):
        arguments[f"weight_ih{suffix}"] = _gates(w[direction])
        arguments[f"weight_hh{suffix}"] = _gates(r[direction])
        arguments[f"bias{suffix}"] = _gates(b[direction][: 4 * hidden] + b[direction][4 * hidden :])
    return arguments


def _state(node: Node, ctx: MilContext, index: int, shape: tuple[int, int, int]) -> Any:
    """Initial state (directions, batch, hidden) as MIL wants it: (batch, directions * hidden)."""
    directions, batch, hidden = shape
    if not node.input(index):
        return np.zeros((batch, directions * hidden), np.float32)
    state = ctx.read(node.inputs[index])
    if isinstance(state, np.ndarray):
        return np.ascontiguousarray(state.transpose(1, 0, 2).reshape(batch, directions * hidden))
    if directions > 1:
        state = ctx.mid(node, "transpose", x=state, perm=[1, 0, 2])
    return ctx.mid(node, "reshape", x=state, shape=[batch, directions * hidden])


@op("LSTM", since=7, parameters=(4,), constraints=(floats, constant_at(1, 2, 3), _plain, _plain_gates))
def lstm(node: Node, ctx: MilContext) -> None:
    """One MIL `lstm` for forward and bidirectional layers; a reverse layer is a forward one on the reversed sequence."""
    sequence, batch = ctx.shape(node.inputs[0])[:2]
    directions, hidden = ctx.shape(node.inputs[2])[0], ctx.shape(node.inputs[2])[2]
    direction = node.attrs.get("direction", "forward")
    x = ctx.tensor(node.inputs[0])
    if direction == "reverse":
        x = ctx.mid(node, "reverse", x=x, axes=[0])
    every, last, cell = ctx.mid(
        node,
        "lstm",
        x=x,
        initial_h=_state(node, ctx, 5, (directions, batch, hidden)),
        initial_c=_state(node, ctx, 6, (directions, batch, hidden)),
        direction="bidirectional" if direction == "bidirectional" else "forward",
        output_sequence=True,
        **_weights(node, ctx),
    )
    if direction == "reverse" and node.outputs[0]:
        every = ctx.mid(node, "reverse", x=every, axes=[0])
    _outputs(node, ctx, (every, last, cell), (sequence, batch, directions, hidden))


@op("GRU", "RNN", since=7, parameters=(4,), constraints=(floats, constant_at(1, 2, 3), _plain, _plain_gates))
def gru(node: Node, ctx: MilContext) -> None:
    """One MIL `gru` or `rnn` a direction, always forward: a reverse one is on the reversed sequence."""
    sequence, batch = ctx.shape(node.inputs[0])[:2]
    directions, hidden = ctx.shape(node.inputs[2])[0], ctx.shape(node.inputs[2])[2]
    x, states = ctx.tensor(node.inputs[0]), _state(node, ctx, 5, (directions, batch, hidden))
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[node.attrs.get("direction", "forward")]
    turned = ctx.mid(node, "reverse", x=x, axes=[0]) if any(backwards) else x
    found = []
    for direction, backward in enumerate(backwards):
        state = _part(node, ctx, states, direction, (batch, directions, hidden))
        arguments = _direction_weights(node, ctx, direction)
        every, last = ctx.mid(node, node.op.lower(), x=turned if backward else x, initial_h=state, output_sequence=True, **arguments)
        found.append((ctx.mid(node, "reverse", x=every, axes=[0]) if backward else every, last))
    every, last = (
        parts[0] if directions == 1 else ctx.mid(node, "concat", values=list(parts), axis=-1, interleave=False)
        for parts in zip(*found, strict=True)
    )
    _outputs(node, ctx, (every, last), (sequence, batch, directions, hidden))


def _part(node: Node, ctx: MilContext, states: Any, direction: int, sizes: tuple[int, int, int]) -> Any:
    """The initial state of one direction."""
    batch, directions, hidden = sizes
    first, last = direction * hidden, (direction + 1) * hidden
    if isinstance(states, np.ndarray):
        return np.ascontiguousarray(states[:, first:last])
    return states if directions == 1 else ctx.mid(node, "slice_by_index", x=states, begin=[0, first], end=[batch, last])


def _direction_weights(node: Node, ctx: MilContext, direction: int) -> dict[str, Any]:
    """ONNX stacks a GRU's gates update, reset, hidden; MIL reset, hidden, update (coremltools, recurrent operators)."""
    w, r = (ctx.read(name)[direction] for name in node.inputs[1:3])
    bias = ctx.read(node.inputs[3])[direction] if node.input(3) else np.zeros(2 * len(w), w.dtype)
    bias = bias[: len(w)] + bias[len(w) :]
    if node.op == "GRU":
        w, r, bias = (np.concatenate([np.split(value, 3)[gate] for gate in (1, 2, 0)]) for value in (w, r, bias))
    return {"weight_ih": w, "weight_hh": r, "bias": bias}


def _outputs(node: Node, ctx: MilContext, values: tuple[Any, ...], sizes: tuple[int, int, int, int]) -> None:
    """Y (sequence, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden) from MIL's (…, batch, directions * hidden)."""
    _, batch, directions, hidden = sizes
    for index, (name, value) in enumerate(zip(node.outputs, values, strict=False)):
        if not name:
            continue
        lead = [sizes[0]] if index == 0 else []
        if directions == 1:
            ctx.put(node, "reshape", output=index, x=value, shape=[*lead, 1, batch, hidden])
            continue
        apart = ctx.mid(node, "reshape", x=value, shape=[*lead, batch, directions, hidden])
        ctx.put(node, "transpose", output=index, x=apart, perm=[0, 2, 1, 3] if index == 0 else [1, 0, 2])
