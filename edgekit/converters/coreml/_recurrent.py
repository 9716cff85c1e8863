"""Recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, constant_at, floats, op

__all__: list[str] = []

# ONNX stacks the gates i, o, f, c; MIL i, f, o, c (ONNX operator LSTM; MIL operator lstm).
_GATES = (0, 2, 1, 3)


def _plain_lstm(node: Node, graph: Graph) -> str:
    """LSTM has the default activations, no peepholes, no clip, layout 0, and sequences of full length"""
    sequence, batch = graph.types[node.inputs[0]].shape[:2]
    lengths = node.input(4)
    if node.attrs.get("layout", 0):
        return "layout 1"
    if node.input(7):
        return "peephole weights"
    if node.attrs.get("clip", 0.0):
        return "clip"
    if node.attrs.get("input_forget", 0):
        return "input_forget"
    if [name.lower() for name in node.attrs.get("activations") or []] not in (
        [],
        *(["sigmoid", "tanh", "tanh"] * count for count in (1, 2)),
    ):
        return f"activations {list(node.attrs['activations'])}"
    if lengths and not (lengths in graph.constants and (graph.constants[lengths] == sequence).all() and batch):
        return "sequence_lens that are shorter than the input or not constant"
    return ""


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


@op("LSTM", since=7, parameters=(4,), constraints=(floats, constant_at(1, 2, 3), _plain_lstm))
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


def _outputs(node: Node, ctx: MilContext, values: tuple[Any, Any, Any], sizes: tuple[int, int, int, int]) -> None:
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
