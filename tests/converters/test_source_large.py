"""Models beyond protobuf's 2 GB, with that limit brought down: weights stay on disk from the source to the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle
from edgekit.converters import build
from edgekit.converters._source import load_source
from edgekit.converters.sources import _onnx_file
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import UsageError
from edgekit.runtime import verify_bundle

FLOAT = TensorProto.FLOAT


def large_model(folder: Path, width: int = 96, layers: int = 4, opset: int = 17) -> Path:
    """A chain of matrix products with a reshape; weights in two files, one in a sub-folder, not in the order of their use."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for index in range(layers):
        weights.append(numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32) / width**0.5, f"w{index}"))
        nodes += [helper.make_node("MatMul", [name, f"w{index}"], [f"m{index}"]), helper.make_node("Relu", [f"m{index}"], [f"r{index}"])]
        name = f"r{index}"
    weights.append(numpy_helper.from_array(np.asarray([-1, width // 2, 2], np.int64), "shape"))
    nodes.append(helper.make_node("Reshape", [name, "shape"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", width // 2, 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (folder / "more").mkdir(parents=True, exist_ok=True)
    for tensor in reversed(list(model.graph.initializer)):
        place = "more/b.bin" if tensor.name in ("w0", "shape") else "a.bin"
        with open(folder / place, "ab") as file:
            file.write(b"\0" * 3)  # an odd offset
            entries = {"location": place, "offset": file.tell(), "length": len(tensor.raw_data)}
            file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(_onnx_file, "LARGE_BYTES", 50_000)
    monkeypatch.setattr(_onnx_file, "SMALL_TENSOR_BYTES", 1_000)
    return large_model(tmp_path / "source")


def test_large_weights_stay_outside_and_small_ones_come_in(large):
    source = load_source(large)
    assert source.weights == large.parent
    outside = {tensor.name for tensor in source.model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
    assert outside == {"w0", "w1", "w2", "w3"}
    data = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    (got,) = open_session(source.model, source.weights).run(None, {"x": data})
    want, rng = data, np.random.default_rng(0)
    for _ in range(4):
        want = np.maximum(want @ (rng.standard_normal((96, 96)).astype(np.float32) / 96**0.5), 0)
    np.testing.assert_allclose(got, want.reshape(-1, 48, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("device", "precision"), [("generic-x86", "fp32"), ("intel-nuc", "fp32"), ("intel-nuc", "fp16")])
def test_bundle_is_proven_and_complete_without_the_source(large, tmp_path, device, precision):
    bundle = build(large, device=device, precision=precision, output=tmp_path / "b.edgekit", cache=False, isolate=False)
    assert "common::keep_large" in bundle.report()["passes"]
    assert bundle.manifest.verification.verified == "host"
    for file in large.parent.rglob("*.*"):
        file.unlink()
    assert verify_bundle(tmp_path / "b.edgekit").ok


def test_weights_lie_once_in_the_bundle_and_equal_builds_are_equal(large, tmp_path):
    digests = set()
    for turn in range(2):
        bundle = build(large, device="generic-x86", output=tmp_path / f"{turn}", cache=False, isolate=False)
        digests.add(bundle.digest)
        files = bundle.manifest.files
        assert 4 * 96 * 96 * 4 <= files["model.onnx.data"].bytes < 4 * 96 * 96 * 4 + 4 * 4096
        assert files["model.onnx"].bytes < 5_000
    assert len(digests) == 1
    assert isinstance(bundle, Bundle)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("generic-arm64", "fp32", "target tflite: the model has 0.0 GiB of weights; expected less than 2 GiB"),
        ("iphone-15", "fp16", "build for onnxruntime or openvino"),
        ("jetson-orin-nano", "fp16", "target tensorrt"),
    ],
)
def test_other_targets_refuse_in_one_line(large, tmp_path, device, precision, expected):
    with pytest.raises(UsageError) as caught:
        build(large, device=device, precision=precision, output=tmp_path / "b.edgekit", cache=False, isolate=False)
    assert expected in str(caught.value)
    assert not (tmp_path / "b.edgekit").exists()


def test_newer_opset_is_capped_without_touching_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(_onnx_file, "LARGE_BYTES", 50_000)
    source = load_source(large_model(tmp_path, opset=28))
    assert source.weights == tmp_path
    assert source.passes == ("source::external_data", "common::cap_versions")
    data = np.ones((1, 96), np.float32)
    assert open_session(source.model, source.weights).run(None, {"x": data})[0].shape == (1, 48, 2)
