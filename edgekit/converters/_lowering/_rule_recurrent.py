"""RNN, GRU and LSTM step by step: every direction, layout, activation and length of sequence that ONNX defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_MAX_STEPS = 256
"""Longest sequence that is unrolled."""
_DEFAULT_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0, "ScaledTanh": 1.0}
_DEFAULT_BETA = {"HardSigmoid": 0.5, "Affine": 0.0, "ScaledTanh": 1.0}
_ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}

Activation = Callable[[str], str]


@dataclass
class _Direction:
    """One direction: its weights and states."""

    piece: Piece
    number: int
    weights: str  # [input, gates * hidden]
    recurrent: str  # [hidden, gates * hidden]
    bias: list[str]  # of the input and of the recurrence, [gates * hidden] each; empty without bias
    peepholes: list[str]  # input, output, forget
    functions: Sequence[Activation]
    hidden: int
    dtype: str

    def part(self, tensor: str, gate: int, count: int = 1) -> str:
        """Columns of some gates."""
        piece = self.piece
        bounds = piece.ints(gate * self.hidden), piece.ints((gate + count) * self.hidden)
        return piece.op("Slice", tensor, *bounds, piece.ints(-1))


@lowers("RNN", "GRU", "LSTM")
def recurrent(piece: Piece) -> None:
    """Unroll all steps of all directions; outputs are stacked as the layout asks."""
    node = piece.node
    batch_first = bool(node.attrs.get("layout", 0))
    shape = piece.around.shape(node.inputs[0])
    steps, batch = (shape[1], shape[0]) if batch_first else (shape[0], shape[1])
    if steps > _MAX_STEPS:
        raise CannotLowerError(f"{steps} steps; up to {_MAX_STEPS} are unrolled")
    count = 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1
    inputs = [piece.op("Gather", node.inputs[0], np.asarray(step, np.int64), axis=int(batch_first)) for step in range(steps)]
    going = _going(piece, steps)
    series: list[list[str]] = []
    finals: list[list[str]] = []
    for number in range(count):
        direction = _direction(piece, number, count)
        backward = number == 1 or node.attrs.get("direction", "forward") == "reverse"
        order = list(range(steps))[::-1] if backward else list(range(steps))
        states = [_initial(piece, direction, which, batch, batch_first) for which in range(_STATES[node.op])]
        outputs = [""] * steps
        for step in order:
            found = _step(direction, inputs[step], states)
            if going:
                found = [piece.op("Where", going[step], new, old) for new, old in zip(found, states, strict=True)]
                outputs[step] = piece.op("Where", going[step], found[0], np.zeros((), direction.dtype))
            else:
                outputs[step] = found[0]
            states = found
        series.append(outputs)
        finals.append(states)
    _write(piece, series, finals, batch_first)


def _write(piece: Piece, series: list[list[str]], finals: list[list[str]], batch_first: bool) -> None:
    outputs = [*piece.node.outputs, "", "", ""]
    if outputs[0]:
        rows = []
        for step in zip(*series, strict=True):
            joined = piece.op("Concat", *(piece.unsqueeze(each, [0]) for each in step), axis=0)
            rows.append(piece.unsqueeze(joined, [0]))
        whole = piece.op("Concat", *rows, axis=0)  # steps, directions, batch, hidden
        piece.op("Transpose", whole, perm=[2, 0, 1, 3] if batch_first else [0, 1, 2, 3], into=outputs[0])
    for which in range(_STATES[piece.node.op]):
        if outputs[1 + which]:
            axis = 1 if batch_first else 0
            parts = [piece.unsqueeze(states[which], [axis]) for states in finals]
            piece.op("Concat", *parts, axis=axis, into=outputs[1 + which])


def _going(piece: Piece, steps: int) -> list[str]:
    """Per step, which batch items still run; empty when all always do."""
    name = piece.node.input(4)
    if not name:
        return []
    known = piece.around.constant(name)
    if known is not None and (known >= steps).all():
        return []
    lengths = piece.unsqueeze(piece.op("Cast", name, to=7), [1])
    return [piece.op("Less", np.asarray(step, np.int64), lengths) for step in range(steps)]


def _row(piece: Piece, name: str, number: int) -> str:
    """What one direction has of a tensor whose first axis are the directions."""
    return piece.op("Gather", name, np.asarray(number, np.int64), axis=0)


def _direction(piece: Piece, number: int, count: int) -> _Direction:
    node = piece.node
    hidden = piece.around.shape(node.inputs[2])[-1]
    weights, recurrent_ = (piece.op("Transpose", _row(piece, name, number), perm=[1, 0]) for name in node.inputs[1:3])
    bias: list[str] = []
    if node.input(3):
        both = _row(piece, node.input(3), number)
        size = _GATES[node.op] * hidden
        bias = [piece.op("Slice", both, piece.ints(start), piece.ints(start + size), piece.ints(0)) for start in (0, size)]
    peepholes: list[str] = []
    if node.op == "LSTM" and node.input(7):
        row = _row(piece, node.input(7), number)
        peepholes = [piece.op("Slice", row, piece.ints(i * hidden), piece.ints((i + 1) * hidden), piece.ints(0)) for i in range(3)]
    return _Direction(
        piece, number, weights, recurrent_, bias, peepholes, _functions(piece, number, count), hidden, piece.around.dtype(node.inputs[0])
    )


def _functions(piece: Piece, number: int, count: int) -> list[Activation]:
    attrs = piece.node.attrs
    default = _ACTIVATIONS[piece.node.op]
    names = list(attrs.get("activations") or default * count)
    alphas, betas = list(attrs.get("activation_alpha") or []), list(attrs.get("activation_beta") or [])
    made = []
    for name in names:  # in order, functions that have such a parameter take the next one
        alpha = alphas.pop(0) if alphas and name in _DEFAULT_ALPHA else _DEFAULT_ALPHA.get(name, 0.0)
        beta = betas.pop(0) if betas and name in _DEFAULT_BETA else _DEFAULT_BETA.get(name, 0.0)
        made.append(_activation(piece, str(name), float(alpha), float(beta)))
    size = len(default)
    return made[number * size : (number + 1) * size]


def _activation(piece: Piece, name: str, alpha: float, beta: float) -> Activation:
    dtype = piece.around.dtype(piece.node.inputs[0])
    match name:
        case "Relu" | "Tanh" | "Sigmoid" | "Softsign" | "Softplus":
            return lambda tensor: piece.op(name, tensor)
        case "LeakyRelu" | "ThresholdedRelu" | "Elu":
            return lambda tensor: piece.op(name, tensor, alpha=alpha)
        case "HardSigmoid":
            return lambda tensor: piece.op(name, tensor, alpha=alpha, beta=beta)
        case "Affine":
            return lambda tensor: piece.op("Add", piece.op("Mul", tensor, np.asarray(alpha, dtype)), np.asarray(beta, dtype))
        case "ScaledTanh":
            return lambda tensor: piece.op(
                "Mul", piece.op("Tanh", piece.op("Mul", tensor, np.asarray(beta, dtype))), np.asarray(alpha, dtype)
            )
        case _:
            raise CannotLowerError(f"activation {name}")


def _initial(piece: Piece, direction: _Direction, which: int, batch: int, batch_first: bool) -> str:
    name = piece.node.input(5 + which)
    if not name:
        return piece.constant(np.zeros((batch, direction.hidden), direction.dtype), "zero")
    return piece.op("Gather", name, np.asarray(direction.number, np.int64), axis=1 if batch_first else 0)


def _clipped(direction: _Direction, tensor: str) -> str:
    limit = direction.piece.node.attrs.get("clip")
    if not limit:
        return tensor
    top = np.asarray(limit, direction.dtype)
    return direction.piece.op("Max", direction.piece.op("Min", tensor, top), -top)


def _step(direction: _Direction, x: str, states: list[str]) -> list[str]:
    match direction.piece.node.op:
        case "LSTM":
            return _lstm_step(direction, x, *states)
        case "GRU":
            return [_gru_step(direction, x, states[0])]
        case _:
            total = direction.piece.op("Add", _from_input(direction, x), _from_state(direction, states[0]))
            return [direction.functions[0](_clipped(direction, total))]


def _from_input(direction: _Direction, x: str) -> str:
    product = direction.piece.op("MatMul", x, direction.weights)
    return direction.piece.op("Add", product, direction.bias[0]) if direction.bias else product


def _from_state(direction: _Direction, state: str) -> str:
    product = direction.piece.op("MatMul", state, direction.recurrent)
    return direction.piece.op("Add", product, direction.bias[1]) if direction.bias else product


def _lstm_step(direction: _Direction, x: str, hidden: str, cell: str) -> list[str]:
    """Gates in the order input, output, forget, cell (onnx operator LSTM)."""
    piece, (f, g, h) = direction.piece, direction.functions
    total = piece.op("Add", _from_input(direction, x), _from_state(direction, hidden))
    gates = [direction.part(total, number) for number in range(4)]

    def gate(number: int, seen: str) -> str:
        value = gates[number]
        if direction.peepholes:
            value = piece.op("Add", value, piece.op("Mul", direction.peepholes[number], seen))
        return f(_clipped(direction, value))

    entering = gate(0, cell)
    kept = piece.op("Sub", np.asarray(1, direction.dtype), entering) if piece.node.attrs.get("input_forget", 0) else gate(2, cell)
    fresh = piece.op("Mul", entering, g(_clipped(direction, gates[3])))
    new = piece.op("Add", piece.op("Mul", kept, cell), fresh)
    return [piece.op("Mul", gate(1, new), h(new)), new]  # ONNX Runtime clips what the gates sum up, not the cell


def _gru_step(direction: _Direction, x: str, hidden: str) -> str:
    """Gates in the order update, reset, hidden (onnx operator GRU)."""
    piece, (f, g) = direction.piece, direction.functions
    from_input = _from_input(direction, x)
    both = piece.op("Slice", direction.recurrent, piece.ints(0), piece.ints(2 * direction.hidden), piece.ints(-1))
    last = direction.part(direction.recurrent, 2)
    gates = piece.op("Add", direction.part(from_input, 0, 2), piece.op("MatMul", hidden, both))
    if direction.bias:
        gates = piece.op("Add", gates, direction.part(direction.bias[1], 0, 2))
    gates = f(_clipped(direction, gates))
    update, reset = direction.part(gates, 0), direction.part(gates, 1)
    if piece.node.attrs.get("linear_before_reset", 0):
        inner = piece.op("MatMul", hidden, last)
        inner = piece.op("Add", inner, direction.part(direction.bias[1], 2)) if direction.bias else inner
        inner = piece.op("Mul", reset, inner)
    else:
        inner = piece.op("MatMul", piece.op("Mul", reset, hidden), last)
        inner = piece.op("Add", inner, direction.part(direction.bias[1], 2)) if direction.bias else inner
    fresh = g(_clipped(direction, piece.op("Add", direction.part(from_input, 2), inner)))
    stays = piece.op("Mul", update, hidden)
    return piece.op("Add", piece.op("Mul", piece.op("Sub", np.asarray(1, direction.dtype), update), fresh), stays)
