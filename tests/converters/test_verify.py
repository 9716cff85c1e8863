from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle import GoldenSample, Signature, TensorSpec
from edgekit.converters._verify import judge
from edgekit.errors import VerificationError

SIGNATURE = Signature((), (TensorSpec("a", "float32", (1, 3)), TensorSpec("b", "float32", (4,))))


def sample(scale: float = 1.0) -> GoldenSample:
    random = np.random.default_rng(0)
    outputs = {"a": random.standard_normal((1, 3)), "b": scale * random.standard_normal(4)}
    return GoldenSample({}, {name: array.astype(np.float32) for name, array in outputs.items()})


def test_equal_outputs_pass_with_their_metrics() -> None:
    metrics = judge("thing", [sample()], [sample().outputs], SIGNATURE, "fp32")
    assert {name: found.max_abs for name, found in metrics.items()} == {"a": 0.0, "b": 0.0}


def test_a_miss_names_the_worst_output_and_its_metrics() -> None:
    wrong = {**sample().outputs, "b": -sample().outputs["b"]}
    with pytest.raises(VerificationError) as caught:
        judge("model.onnx for pi", [sample()], [wrong], SIGNATURE, "fp16")
    assert "model.onnx for pi" in str(caught.value)
    assert "worst output 'b': max_abs" in str(caught.value)
    assert "cosine -1.0" in str(caught.value)
    assert "--precision fp32" in str(caught.value)


def test_int8_that_misses_asks_for_samples() -> None:
    wrong = {**sample().outputs, "b": -sample().outputs["b"]}
    with pytest.raises(VerificationError) as caught:
        judge("model.tflite for pi", [sample()] * 3, [wrong] * 3, SIGNATURE, "int8")
    assert caught.value.next_step == "give more real samples with --calibration (this proof had 3), or build with --precision fp16 or fp32"


def test_a_nan_is_told_as_such() -> None:
    wrong = {**sample().outputs, "a": np.full((1, 3), np.nan, np.float32)}
    with pytest.raises(VerificationError, match="output 'a' of sample 0: 3 of 3 values are NaN"):
        judge("thing", [sample()], [wrong], SIGNATURE, "fp32")
