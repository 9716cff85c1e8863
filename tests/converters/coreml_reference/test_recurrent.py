from __future__ import annotations

import numpy as np
import pytest

from edgekit.converters.coreml_reference import _program  # noqa: F401 - registers the kernels
from edgekit.converters.coreml_reference._registry import find_op

S, B, W, H = 5, 2, 3, 4


def draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def blocks(array, order):
    """Gate blocks of the first dimension in another order."""
    parts = np.split(array, len(order))
    return np.concatenate([parts[index] for index in order])


# ONNX has input, output, forget, cell; MIL has input, forget, output, cell.
TO_MIL_LSTM = (0, 2, 1, 3)
# ONNX has update, reset, hidden; MIL has reset, hidden, update.
TO_MIL_GRU = (1, 2, 0)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("output_sequence", [False, True])
def test_lstm_equals_onnx_runtime(onnx_op, rng, direction, peephole, output_sequence):
    count = 2 if direction == "bidirectional" else 1
    x, weight, recurrent, bias = draw(rng, S, B, W), draw(rng, count, 4 * H, W), draw(rng, count, 4 * H, H), draw(rng, count, 8 * H)
    hidden, cell = draw(rng, count, B, H), draw(rng, count, B, H)
    peep = draw(rng, count, 3 * H) if peephole else None  # ONNX: input, output, forget
    sequence, last_hidden, last_cell = onnx_op(
        "LSTM",
        {"x": x, "w": weight, "r": recurrent, "b": bias, "lens": None, "h": hidden, "c": cell, "p": peep},
        outputs=3,
        hidden_size=H,
        direction=direction,
    )

    def parameters(index, suffix):
        halves = np.split(bias[index], 2)
        return {
            f"weight_ih{suffix}": blocks(weight[index], TO_MIL_LSTM),
            f"weight_hh{suffix}": blocks(recurrent[index], TO_MIL_LSTM),
            f"bias{suffix}": blocks(halves[0] + halves[1], TO_MIL_LSTM),
            **({f"peephole{suffix}": blocks(peep[index], (0, 2, 1))} if peephole else {}),
        }

    arguments = parameters(0, "") | (parameters(1, "_back") if count == 2 else {})
    values = find_op("lstm").kernel(
        x, np.concatenate(hidden, -1), np.concatenate(cell, -1), **arguments, direction=direction, output_sequence=output_sequence
    )
    np.testing.assert_allclose(values[1], np.concatenate(last_hidden, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[2], np.concatenate(last_cell, -1), rtol=1e-4, atol=1e-5)
    if not output_sequence:
        np.testing.assert_array_equal(values[0][0], values[1])
        return
    aligned = np.concatenate(sequence.transpose(1, 0, 2, 3), -1)  # (S, B, directions * H), aligned with the input
    # Core ML gives a reversed sequence in the order of computation (coremltools' tests), ONNX aligned with the input.
    np.testing.assert_allclose(values[0], aligned[::-1] if direction == "reverse" else aligned, rtol=1e-4, atol=1e-5)


def test_lstm_clips_the_cell_and_takes_other_activations(rng):
    x, weight, recurrent = draw(rng, 1, B, W), draw(rng, 4 * H, W), draw(rng, 4 * H, H)
    hidden, cell = draw(rng, B, H), draw(rng, B, H)
    options = {"recurrent_activation": "hard_sigmoid", "cell_activation": "relu", "activation": "linear", "clip": np.float32(0.2)}
    _, out, memory = find_op("lstm").kernel(x, hidden, cell, weight, recurrent, **options)
    gates = x[0] @ weight.T + hidden @ recurrent.T
    into, forget, outward, inner = np.split(gates, 4, axis=1)

    def hard(value):
        return np.clip(0.2 * value + 0.5, 0, 1)

    expected = np.clip(hard(forget) * cell + hard(into) * np.maximum(inner, 0), -0.2, 0.2)
    np.testing.assert_allclose(memory, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, hard(outward) * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_equals_onnx_runtime(onnx_op, rng, direction):
    x, weight, recurrent, bias = draw(rng, S, B, W), draw(rng, 1, 3 * H, W), draw(rng, 1, 3 * H, H), draw(rng, 1, 6 * H)
    hidden = draw(rng, 1, B, H)
    sequence, last = onnx_op(
        "GRU",
        {"x": x, "w": weight, "r": recurrent, "b": bias, "lens": None, "h": hidden},
        outputs=2,
        hidden_size=H,
        direction=direction,
        linear_before_reset=0,
    )
    halves = np.split(bias[0], 2)
    values = find_op("gru").kernel(
        x,
        hidden[0],
        blocks(weight[0], TO_MIL_GRU),
        blocks(recurrent[0], TO_MIL_GRU),
        blocks(halves[0] + halves[1], TO_MIL_GRU),
        direction,
        output_sequence=True,
    )
    np.testing.assert_allclose(values[1], last[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[0], sequence[:, 0][:: -1 if direction == "reverse" else 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="reset_after"):
        find_op("gru").kernel(x, hidden[0], weight[0], recurrent[0], reset_after=True)


@pytest.mark.parametrize(("activation", "onnx_name"), [("tanh", "Tanh"), ("relu", "Relu"), ("sigmoid", "Sigmoid")])
def test_rnn_equals_onnx_runtime(onnx_op, rng, activation, onnx_name):
    x, weight, recurrent, bias = draw(rng, S, B, W), draw(rng, 1, H, W), draw(rng, 1, H, H) * 0.5, draw(rng, 1, 2 * H)
    hidden = draw(rng, 1, B, H)
    sequence, last = onnx_op(
        "RNN",
        {"x": x, "w": weight, "r": recurrent, "b": bias, "lens": None, "h": hidden},
        outputs=2,
        hidden_size=H,
        activations=[onnx_name],
    )
    halves = np.split(bias[0], 2)
    values = find_op("rnn").kernel(
        x, hidden[0], weight[0], recurrent[0], halves[0] + halves[1], output_sequence=True, activation=activation
    )
    np.testing.assert_allclose(values[0], sequence[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[1], last[0], rtol=1e-4, atol=1e-5)


def test_unknown_activations_and_directions_are_refused(rng):
    arguments = (draw(rng, S, B, W), draw(rng, B, H), draw(rng, H, W), draw(rng, H, H))
    with pytest.raises(ValueError, match="activation 'swish'"):
        find_op("rnn").kernel(*arguments, activation="swish")
    with pytest.raises(ValueError, match="direction 'bidirectional'"):
        find_op("rnn").kernel(*arguments, direction="bidirectional")
