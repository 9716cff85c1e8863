"""Packages with open height, width or length: the same numbers at every size, and a refusal where more than shapes depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgekit.bundle import Bundle
from edgekit.converters import build
from edgekit.converters.coreml_reference import Interpreter
from edgekit.errors import RequestError, UsageError
from edgekit.runtime.engines._coreml import logical_outputs, native_inputs
from tests.converters.open_size_models import attention, built, halves, network_of_four, positions, pyramid, same_padding, sequence

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(79)


DEVICE = "iphone-15"


def run_package(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    artifact = bundle.manifest.artifact
    native = Interpreter(bundle.directory / artifact.path).run(native_inputs(artifact, {"x": x}))
    return logical_outputs(artifact, bundle.manifest.signature, native)["y"]


SIZES = ((33, 33), (64, 40), (101, 77), (47, 130))
CASES = {
    "attention": (attention, (1, 3, -1, -1), "fp32", SIZES),
    "attention of a batch": (attention, (-1, 3, -1, -1), "fp32", SIZES),
    "pyramid": (pyramid, (-1, 3, -1, -1), "fp32", SIZES),
    "pyramid fp16": (pyramid, (1, 3, -1, -1), "fp16", SIZES),
    "one side": (pyramid, (1, 3, 48, -1), "fp32", tuple((48, width) for _, width in SIZES)),
    "multiples of 4": (network_of_four, (1, 3, -1, -1), "fp32", ((32, 64), (100, 36))),
    "same padding": (same_padding, (1, 3, -1, -1), "fp32", SIZES),
    "sequence": (sequence, (-1, -1, 6), "fp32", ((33,), (999,))),
}


@pytest.mark.parametrize("case", CASES)
def test_right_at_every_size(case: str, tmp_path: Path):
    make, shape, precision, sizes = CASES[case]
    path = make(tmp_path / "net.onnx")
    bundle = built(DEVICE, path, shape, precision)
    spec = bundle.manifest.signature.inputs[0]
    assert [isinstance(dim, str) for dim in spec.shape] == [size == -1 for size in shape]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for size in sizes:
        for batch in (1, 3) if shape[0] == -1 else (1,):
            x = RANDOM.standard_normal((batch, 3, *size) if len(shape) == 4 else (batch, *size, 6)).astype(np.float32)
            want, got = session.run(None, {"x": x})[0], run_package(bundle, x)
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(np.abs(want).max()))
    shapes = {sample.inputs["x"].shape for sample in bundle.golden()}
    assert len(shapes) >= 3, "golden samples have several sizes"
    assert any(note.startswith("sizes are open; proven at x [") for note in bundle.manifest.verification.notes)


def test_sizes_beyond_the_bounds_are_refused_by_the_package(tmp_path: Path):
    bundle = built(DEVICE, pyramid(tmp_path / "net.onnx"), (1, 3, -1, -1))
    with pytest.raises(RequestError):
        run_package(bundle, np.zeros((1, 3, 64, 1025), np.float32))


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[int, ...], str]] = {
    "rows of a resize": (halves, (1, 3, -1, -1), r"the values of a constant of gather '\w+' \(for Resize '\w+'\) depend on open sizes"),
    "values": (positions, (1, 3, 8, -1), r"the values of a constant of add 'y' \(for Add 'Add_\d'\) depend on open sizes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_open_names_the_node(case: str, tmp_path: Path):
    make, shape, message = REFUSED[case]
    with pytest.raises(UsageError, match=rf"open sizes: this model cannot have them in Core ML: {message}.*give --shape with numbers"):
        built(DEVICE, make(tmp_path / "net.onnx"), shape)
    assert not (tmp_path / "bundle").exists()


def test_a_real_detector_takes_every_multiple_of_32(real_model: Callable[[str], Path], tmp_path: Path):
    path = real_model("ppocr-det")
    bundle = build(path, device="iphone-15", shapes={"x": (1, 3, -1, -1)}, precision="fp32", output=tmp_path / "bundle", cache=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    artifact, (output,) = bundle.manifest.artifact, bundle.manifest.signature.outputs
    x = RANDOM.standard_normal((1, 3, 96, 224)).astype(np.float32)
    native = Interpreter(bundle.directory / artifact.path).run(native_inputs(artifact, {"x": x}))
    got = logical_outputs(artifact, bundle.manifest.signature, native)[output.name]
    np.testing.assert_allclose(got, session.run(None, {"x": x})[0], atol=1e-5)
