"""What lies in a file for dtypes that its kernels do not know, and what callers see: the source's dtypes and values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import TensorSpec
from edgekit.converters import build
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.converters.tflite import tflite_from_graph
from edgekit.converters.tflite._carry import carried, in_carrier
from edgekit.runtime import load

pytestmark = pytest.mark.slow


def chain(*nodes: tuple[str, tuple[str, ...], str], shape=(2, 7), constants=None, dtype=TensorProto.FLOAT) -> onnx.ModelProto:
    """Operators one after the other from ``x``; the last output is ``y``."""
    made = [helper.make_node(op, list(inputs), [output], f"n{index}") for index, (op, inputs, output) in enumerate(nodes)]
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


TWO = {"two": np.float32(2)}
SWAPPED = {
    "difference": [("Transpose", ("x",), "t"), ("Sub", ("two", "t"), "y")],
    "quotient": [("Transpose", ("x",), "t"), ("Div", ("two", "t"), "y")],
    "reciprocal": [("Transpose", ("x",), "t"), ("Relu", ("t",), "r"), ("Add", ("r", "two"), "a"), ("Reciprocal", ("a",), "y")],
    "negative": [("Transpose", ("x",), "t"), ("Neg", ("t",), "n"), ("Add", ("two", "n"), "y")],
    "long way": [("Transpose", ("x",), "t"), ("Mul", ("t", "two"), "m"), ("Exp", ("m",), "e"), ("Sub", ("two", "e"), "y")],
    "no transpose": [("Sub", ("two", "x"), "y")],
}


@pytest.mark.parametrize("nodes", SWAPPED.values(), ids=SWAPPED)
def test_operands_keep_their_places_behind_a_transpose(nodes, graph_of, run_tflite, run_onnx):
    """TensorFlow's converter swaps them where the first is a constant."""
    model = chain(*nodes, constants=TWO)
    x = np.random.default_rng(1).standard_normal((2, 7)).astype(np.float32)
    outputs, counts = run_tflite(graph_of(model), {"x": x})
    (want,) = run_onnx(model, {"x": x})
    assert np.allclose(outputs["y"], want, rtol=1e-5, atol=1e-6)
    if nodes is SWAPPED["no transpose"]:
        assert counts == {"SUB": 1}  # and nothing is added where it does not


def test_mish_of_old_exports(graph_of, run_tflite, run_onnx):
    """Softplus, Tanh and Mul: right where the softplus is tiny, and without its logarithm."""
    model = chain(("Softplus", ("x",), "s"), ("Tanh", ("s",), "t"), ("Mul", ("x", "t"), "y"), shape=(81,))
    x = np.linspace(-20, 20, 81, dtype=np.float32)
    outputs, counts = run_tflite(graph_of(model), {"x": x})
    wide = x.astype(np.float64)
    assert np.allclose(outputs["y"], wide * np.tanh(np.log1p(np.exp(wide))), rtol=1e-5, atol=1e-12)
    assert "LOG" not in counts
    assert "ABS" not in counts
    assert np.allclose(outputs["y"], run_onnx(model, {"x": x})[0], atol=1e-5)


def test_infinite_constants_stay_infinite(graph_of, run_tflite):
    model = chain(
        ("Less", ("x", "zero"), "c"), ("Where", ("c", "low", "x"), "y"), constants={"zero": np.float32(0), "low": np.float32(-np.inf)}
    )
    outputs, _ = run_tflite(graph_of(model), {"x": np.asarray([[-1, 2, 3, -4, 5, 6, 7]] * 2, np.float32)})
    assert np.array_equal(outputs["y"], [[-np.inf, 2, 3, -np.inf, 5, 6, 7]] * 2)


@pytest.mark.parametrize(
    ("dtype", "native"),
    [("float64", "float32"), ("float16", "float32"), ("int16", "int32"), ("uint32", "int64"), ("uint64", "int64"), ("uint8", "uint8")],
)
def test_signature_has_the_sources_dtype(dtype, native, graph_of, run_tflite):
    model = chain(("Add", ("x", "x"), "y"), shape=(3,), dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    graph = graph_of(model)
    _, inputs, outputs = tflite_from_graph(graph)
    assert [binding.native_dtype for binding in (*inputs, *outputs)] == [native, native]
    x = np.asarray([1, 2, 3], dtype)
    found, _ = run_tflite(graph, {"x": x})
    assert found["y"].dtype == np.dtype(dtype)
    assert np.array_equal(found["y"], x + x)


def test_a_graph_without_other_dtypes_is_not_copied():
    kind = TensorType("float32", (2,))
    spec = TensorSpec("x", "float32", (2,))
    graph = Graph((spec,), (spec,), (Node("Relu", "n", ("x",), ("y",)),), {}, {"x": kind, "y": kind})
    assert carried(graph) is graph


def test_constants_in_their_carriers():
    assert in_carrier(np.asarray([2**64 - 1, 3], np.uint64)).tolist() == [-1, 3]
    assert in_carrier(np.asarray([1e300, 1.5])).tolist() == [np.inf, 1.5]
    assert in_carrier(np.asarray([65535], np.uint16)).dtype == np.int32


def test_no_elements(graph_of, run_tflite):
    """LiteRT refuses to set or read such a tensor, so the engine does neither."""
    model = chain(("Relu", ("x",), "y"), shape=(0, 3))
    outputs, _ = run_tflite(graph_of(model), {"x": np.zeros((0, 3), np.float32)})
    assert outputs["y"].shape == (0, 3)
    assert outputs["y"].dtype == np.float32


def test_build_says_that_float64_loses_precision(tmp_path):
    path = tmp_path / "double.onnx"
    onnx.save(chain(("Exp", ("x",), "y"), shape=(2, 3), dtype=TensorProto.DOUBLE), path)
    bundle = build(path, device="raspberry-pi-5", precision="fp32", output=tmp_path / "double.edgekit")
    assert any(note.startswith("float64 is computed in float32") for note in bundle.manifest.verification.notes)
    with load(bundle.path) as session:
        x = np.linspace(-1, 1, 6).reshape(2, 3)
        y = session.run({"x": x})["y"]
    assert y.dtype == np.float64
    assert np.allclose(y, np.exp(x), rtol=1e-6)
