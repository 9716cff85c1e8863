"""Files with an open batch: right at every batch, and refused where the graph depends on its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters import build
from edgekit.converters._open_sizes import at_sizes, open_symbols
from edgekit.converters._source import load_source
from edgekit.errors import EngineError, UsageError
from edgekit.runtime import load

pytestmark = pytest.mark.slow

_random = np.random.default_rng(77)


def floats(*shape: int) -> np.ndarray:
    return (_random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any], result: str) -> Path:
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
    """Convolution, overlapping transposed convolution, slice, flatten and a product; a token that is repeated for every row."""
    node = helper.make_node
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
        "w": floats(4, 3, 3, 3),
        "t": floats(4, 4, 3, 3),
        "begin": np.asarray([1, 0]),
        "end": np.asarray([9, 7]),
        "axes": np.asarray([2, 3]),
        "m": floats(4 * 8 * 7, 5),
        "zero": np.asarray([0]),
        "six": np.asarray([6]),
        "token": floats(1, 6),
    }
    return saved(path, nodes, constants, ["N", 3, 5, 6], "y")


def attention_net(path: Path) -> Path:
    node = helper.make_node
    nodes = []
    for name in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            node("Reshape", [f"{name}0", "heads"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "joined"], ["y"]),
    ]
    constants = {**{f"w{name}": floats(8, 8) for name in "qkv"}, "heads": np.asarray([0, 6, 2, 4]), "joined": np.asarray([0, 6, 8])}
    return saved(path, nodes, constants, ["N", 6, 8], "y")


def recurrent_net(path: Path) -> Path:
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r"], ["s", "h"], hidden_size=5),
        node("Squeeze", ["h", "axes"], ["y"]),
    ]
    return saved(path, nodes, {"w": floats(1, 20, 3), "r": floats(1, 20, 5), "axes": np.asarray([0])}, ["N", 9, 3], "y")


@pytest.mark.parametrize("make", [image_net, attention_net, recurrent_net])
def test_every_batch_is_right(make: Callable[[Path], Path], tmp_path):
    path = make(tmp_path / "net.onnx")
    reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shape = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    bundle = build(
        path, device="raspberry-pi-5", precision="fp32", shapes={"x": (-1, *shape[1:])}, output=tmp_path / "bundle", isolate=False
    )
    assert isinstance(bundle.manifest.signature.inputs[0].shape[0], str)
    assert any("proven at 1, 2, 5" in note for note in bundle.manifest.verification.notes)
    with load(bundle.path) as session:
        for batch in (1, 2, 5, 3, 1):
            x = _random.standard_normal((batch, *shape[1:])).astype(np.float32)
            (want,) = reference.run(None, {"x": x})
            (got,) = session.run({"x": x}).values()
            assert got.shape == want.shape
            assert np.allclose(got, want, atol=1e-5)


def build_open(path: Path, shape: tuple[int, ...], **more: Any) -> None:
    build(path, device="raspberry-pi-5", shapes={"x": shape}, output=path.parent / "bundle", isolate=False, reproducer=False, **more)


def test_a_mean_over_the_batch_is_refused(tmp_path):
    """Its divisor is the batch."""
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["x", "axes"], ["s"]),
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Cast", ["n"], ["f"], to=1),
        node("Div", ["s", "f"], ["y"]),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"axes": np.asarray([0])}, ["N", 4], "y")
    with pytest.raises(UsageError, match=r"an open batch: .*depends on the batch.* give --shape with a number"):
        build_open(path, (-1, 4), precision="fp32")
    assert not (tmp_path / "bundle").exists()


def test_another_size_is_refused_by_the_engine(tmp_path):
    path = saved(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 4], "y")
    bundle = build(path, device="raspberry-pi-5", precision="fp32", shapes={"x": (-1, 4)}, output=tmp_path / "bundle", isolate=False)
    from edgekit.bundle import Artifact
    from edgekit.runtime.engines import EngineOptions, open_engine

    artifact: Artifact = bundle.manifest.artifact
    engine = open_engine(bundle.directory / artifact.path, artifact, bundle.manifest.signature, EngineOptions())
    try:
        with pytest.raises(EngineError):
            engine.run({"x": np.zeros((2, 5), np.float32)})
        assert engine.run({"x": -np.ones((3, 4), np.float32)})["y"].shape == (3, 4)  # and it still works
    finally:
        engine.close()


def test_what_leaves_the_batch_open(tmp_path):
    signature = load_source(saved(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 4], "y")).signature
    assert open_symbols(signature, {"x": (-1, 4)}) == ("N",)
    assert open_symbols(signature, {"x": ("N", 4)}) == ("N",)
    assert not open_symbols(signature, {})
    assert not open_symbols(signature, {"x": (2, 4)})
    assert at_sizes(signature, {"x": (-1, 4)}, {"N": 7}) == {"x": (7, 4)}
