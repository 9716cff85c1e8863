"""Packages with an open batch: the same numbers at every size, and a refusal where the graph depends on its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters import build
from edgekit.converters.coreml_reference import Interpreter
from edgekit.errors import RequestError, UsageError
from edgekit.runtime.engines._coreml import logical_outputs, native_inputs

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(78)
node = helper.make_node


def floats(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, object], shape: list[object], result: str) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString())
    return path


def image_net(path: Path) -> Path:
    """Convolutions, a slice, a flatten, and a token that is repeated for every row."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["a", "t"], ["b"], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("Slice", ["b", "begin", "end", "axes"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("MatMul", ["e", "m"], ["f"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "six"], ["wanted"], axis=0),
        node("Expand", ["token", "wanted"], ["tokens"]),
        node("Concat", ["tokens", "f"], ["y"], axis=1),
    ]
    constants = {
        "w": floats(4, 3, 3, 3), "t": floats(4, 2, 3, 3), "m": floats(2 * 5 * 15, 8), "token": floats(1, 6),
        "begin": np.int64([2, 0]), "end": np.int64([7, 15]), "axes": np.int64([2, 3]), "zero": np.int64([0]), "six": np.int64([6]),
    }  # fmt: skip
    return saved(path, nodes, constants, ["N", 3, 8, 8], "y")


def attention(path: Path) -> Path:
    """Heads apart and together again: the batch and the length are in shapes that are computed from the input."""
    nodes = [node("MatMul", ["x", name], [f"{name}_flat"]) for name in ("q", "k", "v")]
    for name in ("q", "k", "v"):
        nodes += [
            node("Reshape", [f"{name}_flat", "heads"], [f"{name}_apart"]),
            node("Transpose", [f"{name}_apart"], [f"{name}_heads"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Transpose", ["k_heads"], ["k_turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q_heads", "k_turned"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v_heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Shape", ["x"], ["shape"]),
        node("Reshape", ["back", "shape"], ["y"]),
    ]
    constants = {"q": floats(12, 12), "k": floats(12, 12), "v": floats(12, 12), "heads": np.int64([0, 0, 3, 4])}
    return saved(path, nodes, constants, ["N", 5, 12], "y")


def recurrent(path: Path) -> Path:
    """The initial state has the batch in its shape, and the classes are masked by a comparison."""
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("LSTM", ["steps", "w", "r"], ["", "h"], hidden_size=3),
        node("Squeeze", ["h", "first"], ["last"]),
        node("Softmax", ["last"], ["p"], axis=-1),
        node("Greater", ["p", "half"], ["sure"]),
        node("Where", ["sure", "p", "zero"], ["y"]),
    ]
    constants = {"w": floats(1, 12, 4), "r": floats(1, 12, 3), "first": np.int64([0]), "half": np.float32(0.3), "zero": np.float32(0)}
    return saved(path, nodes, constants, ["N", 5, 4], "y")


def run_package(bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    artifact = bundle.manifest.artifact
    native = Interpreter(bundle.directory / artifact.path).run(native_inputs(artifact, inputs))
    return logical_outputs(artifact, bundle.manifest.signature, native)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("make", "tail"), [(image_net, (3, 8, 8)), (attention, (5, 12)), (recurrent, (5, 4))], ids=["image", "attention", "recurrent"]
)
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
    model = saved(tmp_path / "net.onnx", nodes, {"zero": np.int64([0])}, ["N", 4], "y")
    with pytest.raises(UsageError, match=r"cannot have one in Core ML: y of real_div 'y' \(for Div 'Div_0'\) depends on the batch"):
        build(model, device="iphone-15", shapes={"x": (-1, 4)}, precision="fp32", output=tmp_path / "net.edgekit")


def test_a_batch_that_nobody_opens_is_one(tmp_path: Path):
    bundle = build(image_net(tmp_path / "net.onnx"), device="iphone-15", output=tmp_path / "net.edgekit")
    assert bundle.manifest.signature.inputs[0].shape == (1, 3, 8, 8)
