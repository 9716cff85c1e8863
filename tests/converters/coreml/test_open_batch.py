"""Packages with an open batch: the same numbers at every size, and a refusal where the graph depends on its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from edgekit.converters import build
from edgekit.converters.coreml_reference import Interpreter
from edgekit.errors import RequestError, UsageError
from edgekit.runtime.engines._coreml import logical_outputs, native_inputs
from tests.converters.open_batch_models import CASES, image_net
from tests.converters.open_size_models import node, saved

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(78)


def run_package(bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    artifact = bundle.manifest.artifact
    native = Interpreter(bundle.directory / artifact.path).run(native_inputs(artifact, inputs))
    return logical_outputs(artifact, bundle.manifest.signature, native)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("make", "tail"), CASES.values(), ids=CASES)
def test_right_at_every_batch(make: Callable[[Path], Path], tail: tuple[int, ...], precision: str, tmp_path: Path):
    model = make(tmp_path / "net.onnx")
    shape = {"x": (-1, *tail)}
    bundle = build(model, device="iphone-15", shapes=shape, precision=precision, output=tmp_path / "net.edgekit")
    assert bundle.manifest.signature.inputs[0].shape == ("N", *tail)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5, 11):
        x = RANDOM.standard_normal((batch, *tail)).astype(np.float32)
        want, got = session.run(None, {"x": x})[0], run_package(bundle, {"x": x})["y"]
        tolerance = 1e-5 if precision == "fp32" else 1e-2
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(want).max())))
    assert any("the batch is open; proven at" in note for note in bundle.manifest.verification.notes)


def test_more_rows_than_the_package_admits(tmp_path: Path):
    bundle = build(image_net(tmp_path / "net.onnx"), device="iphone-15", shapes={"x": (-1, 3, 8, 8)}, output=tmp_path / "net.edgekit")
    with pytest.raises(RequestError):
        run_package(bundle, {"x": np.zeros((65, 3, 8, 8), np.float32)})


def test_values_that_depend_on_the_batch_are_refused(tmp_path: Path):
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Cast", ["batch"], ["rows"], to=TensorProto.FLOAT),
        node("Div", ["x", "rows"], ["y"]),
    ]
    model = saved(tmp_path / "net.onnx", nodes, {"zero": np.int64([0])}, ["N", 4])
    with pytest.raises(UsageError, match=r"cannot have one in Core ML: y of real_div 'y' \(for Div 'Div_0'\) depends on the batch"):
        build(model, device="iphone-15", shapes={"x": (-1, 4)}, precision="fp32", output=tmp_path / "net.edgekit")


def test_a_batch_that_nobody_opens_is_one(tmp_path: Path):
    bundle = build(image_net(tmp_path / "net.onnx"), device="iphone-15", output=tmp_path / "net.edgekit")
    assert bundle.manifest.signature.inputs[0].shape == (1, 3, 8, 8)
