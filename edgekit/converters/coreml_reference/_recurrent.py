"""LSTM, GRU and plain RNN (coremltools ``iOS15/recurrent.py``). Sequences are ``(S, B, I)``, states ``(B, H)``, or ``(B, 2 H)`` when bidirectional.

What the docstrings leave open follows coremltools' own tests of these ops on macOS: with ``direction="reverse"`` the output sequence is in the order of
computation (its first entry belongs to the last input), while the backward half of a bidirectional LSTM is aligned with the input; ``clip`` bounds the cell
state; ``hard_sigmoid`` is ``0.2 x + 0.5``; ``scaled_tanh`` has both factors 1; a GRU applies its reset gate before the recurrent product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.converters.coreml_reference._activation import sigmoid
from edgekit.converters.coreml_reference._registry import flag, op
from edgekit.converters.coreml_reference._values import Array

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": np.asarray,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def _activation(name: str) -> Callable[[Array], Array]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _ordered(x: Array, direction: str) -> Array:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r}")
    return x if direction == "forward" else x[::-1]


@op("lstm")
def _lstm(
    x: Array,
    initial_h: Array,
    initial_c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    weight_ih_back: Array | None = None,
    weight_hh_back: Array | None = None,
    bias_back: Array | None = None,
    peephole_back: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Array | None = None,
) -> tuple[Array, Array, Array]:
    functions = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        sequence, hidden, cell = _lstm_pass(
            _ordered(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole, functions, clip
        )
        return (sequence if flag(output_sequence) else hidden[None]), hidden, cell
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("bidirectional without weight_ih_back and weight_hh_back")
    size = weight_hh.shape[1]
    ahead = _lstm_pass(x, initial_h[:, :size], initial_c[:, :size], weight_ih, weight_hh, bias, peephole, functions, clip)
    back = _lstm_pass(
        x[::-1], initial_h[:, size:], initial_c[:, size:], weight_ih_back, weight_hh_back, bias_back, peephole_back, functions, clip
    )
    hidden, cell = (np.concatenate([ahead[index], back[index]], axis=-1) for index in (1, 2))
    sequence = np.concatenate([ahead[0], back[0][::-1]], axis=-1) if flag(output_sequence) else hidden[None]
    return sequence, hidden, cell


def _lstm_pass(
    x: Array,
    hidden: Array,
    cell: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None,
    peephole: Array | None,
    functions: tuple[Callable[[Array], Array], Callable[[Array], Array], Callable[[Array], Array]],
    clip: Array | None,
) -> tuple[Array, Array, Array]:
    """One direction: ``(sequence (S, B, H), last hidden, last cell)``; gates lie in the order input, forget, output, cell."""
    gate, inner, outer = functions
    size = weight_hh.shape[1]
    if weight_ih.shape[0] != 4 * size or weight_hh.shape[0] != 4 * size:
        raise ValueError(f"weights of shape {weight_ih.shape} and {weight_hh.shape}")
    peep = np.zeros(3 * size, np.float32) if peephole is None else peephole
    peep_in, peep_forget, peep_out = peep[:size], peep[size : 2 * size], peep[2 * size :]
    inputs = np.matmul(x, weight_ih.T)
    if bias is not None:
        inputs = inputs + bias
    sequence = np.empty((*x.shape[:2], size), np.float32)
    for step in range(x.shape[0]):
        total = inputs[step] + np.matmul(hidden, weight_hh.T)
        in_gate = gate(total[:, :size] + peep_in * cell)
        forget = gate(total[:, size : 2 * size] + peep_forget * cell)
        cell = forget * cell + in_gate * inner(total[:, 3 * size :])
        if clip is not None:
            cell = np.clip(cell, -clip, clip)
        hidden = gate(total[:, 2 * size : 3 * size] + peep_out * cell) * outer(cell)
        sequence[step] = hidden
    return sequence, hidden, cell


@op("gru")
def _gru(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Array | bool = False,
    input_bias: Array | None = None,
) -> tuple[Array, Array]:
    if flag(reset_after):
        raise ValueError("reset_after: coremltools' own test of it on macOS is marked as failing, so its result is not known")
    gate, inner = _activation(recurrent_activation), _activation(activation)
    size = weight_hh.shape[1]
    inputs = np.matmul(_ordered(x, direction), weight_ih.T)
    for offset in (bias, input_bias):
        if offset is not None:
            inputs = inputs + offset
    hidden = initial_h
    sequence = np.empty((*x.shape[:2], size), np.float32)
    for step in range(x.shape[0]):  # gates lie in the order reset, output, update
        reset = gate(inputs[step, :, :size] + np.matmul(hidden, weight_hh[:size].T))
        update = gate(inputs[step, :, 2 * size :] + np.matmul(hidden, weight_hh[2 * size :].T))
        candidate = inner(inputs[step, :, size : 2 * size] + np.matmul(reset * hidden, weight_hh[size : 2 * size].T))
        hidden = (1 - update) * candidate + update * hidden
        sequence[step] = hidden
    return (sequence if flag(output_sequence) else hidden[None]), hidden


@op("rnn")
def _rnn(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    activation: str = "tanh",
) -> tuple[Array, Array]:
    function = _activation(activation)
    inputs = np.matmul(_ordered(x, direction), weight_ih.T)
    if bias is not None:
        inputs = inputs + bias
    hidden = initial_h
    sequence = np.empty((*x.shape[:2], weight_hh.shape[1]), np.float32)
    for step in range(x.shape[0]):
        hidden = function(inputs[step] + np.matmul(hidden, weight_hh.T))
        sequence[step] = hidden
    return (sequence if flag(output_sequence) else hidden[None]), hidden
