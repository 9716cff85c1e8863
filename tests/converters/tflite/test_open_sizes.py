"""Files with open height, width or length: right at every size, and refused where more than shapes depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgekit.errors import UsageError
from edgekit.runtime import load
from tests.converters.open_size_models import attention, built, halves, network_of_four, positions, pyramid, same_padding, sequence

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(80)


DEVICE = "raspberry-pi-5"


SIZES = ((33, 33), (64, 40), (101, 77), (46, 130))
CASES = {
    "attention of a batch": (attention, (-1, 3, -1, -1), "fp32", SIZES),
    "halves": (halves, (1, 3, -1, -1), "fp32", SIZES),
    "halves of a batch, fp16": (halves, (-1, 3, -1, -1), "fp16", SIZES),
    "one side": (halves, (1, 3, 48, -1), "fp32", tuple((48, width) for _, width in SIZES)),
    "same padding": (same_padding, (1, 3, -1, -1), "fp32", SIZES),
    "multiples of 4": (network_of_four, (1, 3, -1, -1), "fp32", ((32, 64), (100, 36))),
    "sequence": (sequence, (-1, -1, 6), "fp32", ((33,), (999,))),
}


@pytest.mark.parametrize("case", CASES)
def test_right_at_every_size(case: str, tmp_path: Path):
    make, shape, precision, sizes = CASES[case]
    path = make(tmp_path / "net.onnx")
    bundle = built(DEVICE, path, shape, precision)
    spec = bundle.manifest.signature.inputs[0]
    assert [isinstance(dim, str) for dim in spec.shape] == [size == -1 for size in shape]
    reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    with load(bundle.path) as session:
        for size in sizes:
            for batch in (1, 3) if shape[0] == -1 else (1,):
                x = RANDOM.standard_normal((batch, 3, *size) if len(shape) == 4 else (batch, *size, 6)).astype(np.float32)
                want, got = reference.run(None, {"x": x})[0], session.run({"x": x})["y"]
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(np.abs(want).max()))
    assert any(note.startswith("sizes are open; proven at x [") for note in bundle.manifest.verification.notes)


def test_padding_stays_an_operator_that_delegates_take(tmp_path: Path):
    from edgekit.converters.tflite import operator_counts

    bundle = built(DEVICE, halves(tmp_path / "net.onnx"), (1, 3, -1, -1))
    counts = operator_counts((bundle.directory / bundle.manifest.artifact.path).read_bytes())
    assert counts["PAD"] == 1
    assert "PADV2" not in counts
    assert "TRANSPOSE" not in counts


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[int, ...], str]] = {
    "divisors of a padded mean": (pyramid, (1, 3, -1, -1), r"constant .* of MUL .* has values of its own for each size"),
    "values": (positions, (1, 3, 8, -1), r"constant .* of ADD .* has values of its own for each size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_open_names_the_operator(case: str, tmp_path: Path):
    make, shape, message = REFUSED[case]
    with pytest.raises(
        UsageError, match=rf"open sizes: this model cannot have them in TensorFlow Lite: {message}.*give --shape with numbers"
    ):
        built(DEVICE, make(tmp_path / "net.onnx"), shape)
    assert not (tmp_path / "bundle").exists()
