"""Shapes from flags, and the promise that normalisation never changes an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters import _normalise
from edgekit.converters._normalise import normalise, resolve_shapes
from edgekit.converters._source import load_source
from edgekit.errors import ModelError, ShapeRequiredError, UnknownNameError, UsageError

IMAGE = Signature((TensorSpec("x", "float32", ("N", 3, "H", "W")),), (TensorSpec("y", "float32", ("N", "K")),))
PAIR = Signature((TensorSpec("ids", "int64", ("B", "L")), TensorSpec("mask", "int64", ("B", "L")), TensorSpec("t", "float32", ())), ())


# --- resolve_shapes ------------------------------------------------------------------------------------------------------------------------


def test_given_shape():
    assert resolve_shapes(IMAGE, {"x": (1, 3, 480, 640)}, static=True) == {"x": (1, 3, 480, 640)}


def test_batch_defaults_to_one_only_when_static():
    signature = Signature((TensorSpec("x", "float32", ("N", 8)),), ())
    assert resolve_shapes(signature, {}, static=True) == {"x": (1, 8)}
    assert resolve_shapes(signature, {}, static=False) == {"x": ("N", 8)}
    assert resolve_shapes(signature, {"x": (4, 8)}, static=True) == {"x": (4, 8)}


def test_a_symbol_has_one_size_everywhere():
    assert resolve_shapes(PAIR, {"ids": (2, 16)}, static=True) == {"ids": (2, 16), "mask": (2, 16), "t": ()}


def test_result_can_be_given_again():
    once = resolve_shapes(IMAGE, {"x": ("N", 3, 32, "W")}, static=False)
    assert once == {"x": ("N", 3, 32, "W")}
    assert resolve_shapes(IMAGE, once, static=False) == once


def test_missing_dims_name_the_flag_to_type():
    with pytest.raises(ShapeRequiredError) as caught:
        resolve_shapes(IMAGE, {}, static=True)
    assert "input 'x' (float32[N,3,H,W]) has dimension(s) 2, 3" in str(caught.value)
    assert "--shape x=1,3,H,W" in str(caught.value)


def test_missing_dims_of_several_inputs_come_together():
    with pytest.raises(ShapeRequiredError, match="--shape ids=1,B --shape mask=1,B"):
        resolve_shapes(PAIR, {}, static=True)


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        ({"image": (1, 3, 4, 4)}, UnknownNameError, "unknown name 'image'; expected one of x"),
        ({"x": (1, 3, 4)}, UsageError, "3 dimensions; expected 4"),
        ({"x": (1, 4, 4, 4)}, UsageError, "dimension 1 is 4; expected 3, which the model fixes"),
        ({"x": (1, 3, 0, 4)}, UsageError, "dimension 2 is 0; expected a whole number of at least 1"),
        ({"x": (1, 3, "wide", 4)}, UsageError, "dimension 2 is wide"),
    ],
)
def test_wrong_flags(shapes, error, words):
    with pytest.raises(error) as caught:
        resolve_shapes(IMAGE, shapes, static=True)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_flags_that_contradict_each_other():
    with pytest.raises(UsageError, match=r"dimension 1 \(L\) is 8; expected 16, as given for input 'ids'"):
        resolve_shapes(PAIR, {"ids": (1, 16), "mask": (1, 8)}, static=True)


# --- normalise -----------------------------------------------------------------------------------------------------------------------------


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes, inputs, outputs, constants=None, opset=17, ir=8, **fields) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **fields), path)
    return path


def answers(model: onnx.ModelProto, inputs):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)


def head(path: Path, **fields) -> Path:
    """Shape arithmetic, a BatchNormalization and an Identity: what simplifiers fold."""
    constants = {
        "kernel": np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32),
        "scale": np.linspace(0.5, 2, 4, dtype=np.float32),
        "offset": np.linspace(-1, 1, 4, dtype=np.float32),
        "mean": np.linspace(-0.2, 0.2, 4, dtype=np.float32),
        "var": np.linspace(0.5, 1.5, 4, dtype=np.float32),
        "zero": np.asarray([0], np.int64),
        "minus": np.asarray([-1], np.int64),
        "first": np.asarray(0, np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "offset", "mean", "var"], ["n"]),
        helper.make_node("Identity", ["n"], ["i"]),
        helper.make_node("Shape", ["i"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"]),
        helper.make_node("Reshape", ["b", "minus"], ["b1"]),
        helper.make_node("Concat", ["b1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["i", "target"], ["y"]),
    ]
    return save(path, nodes, [value("x", ["N", 3, "H", "W"])], [value("y", ["N", "K"])], constants, **fields)


def test_static_model_is_folded_and_answers_the_same(tmp_path):
    source = load_source(head(tmp_path / "m.onnx"))
    done = normalise(source, {"x": (2, 3, 8, 9)}, static=True)
    assert done.static
    assert done.fixed == {"N": 2, "H": 8, "W": 9}
    assert done.passes == ("common::fix_shapes", "common::onnxslim", "common::infer_shapes")
    assert [spec.describe() for spec in (*done.signature.inputs, *done.signature.outputs)] == ["float32[2,3,8,9]", "float32[2,168]"]
    assert {"Identity", "BatchNormalization", "Shape"}.isdisjoint(node.op_type for node in done.model.graph.node)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype(np.float32)
    assert np.allclose(answers(done.model, {"x": x})[0], answers(source.model, {"x": x})[0], atol=1e-5)
    assert done.graph().outputs[0].shape == (2, 168)


def test_dynamic_dims_stay_dynamic(tmp_path):
    source = load_source(head(tmp_path / "m.onnx"))
    done = normalise(source, {}, static=False)
    assert not done.static
    assert done.fixed == {}
    assert done.signature == source.signature
    for shape in ((1, 3, 5, 6), (3, 3, 9, 4)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert np.allclose(answers(done.model, {"x": x})[0], answers(source.model, {"x": x})[0], atol=1e-5)


def test_same_input_same_bytes(tmp_path):
    path = head(tmp_path / "m.onnx")
    first, second = (normalise(load_source(path), {"x": (1, 3, 8, 8)}, static=True).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_old_opset_is_lifted(tmp_path):
    nodes = [helper.make_node("Softmax", ["x"], ["s"], axis=1), helper.make_node("Squeeze", ["s"], ["y"], axes=[0])]
    path = save(tmp_path / "m.onnx", nodes, [value("x", ["N", 2, 3])], [value("y", [2, 3])], opset=11)
    source = load_source(path)
    done = normalise(source, {}, static=True)
    assert (source.opset, done.opset) == (11, 13)
    assert "common::upgrade_opset" in done.passes
    x = np.random.default_rng(0).standard_normal((1, 2, 3)).astype(np.float32)
    assert np.allclose(answers(done.model, {"x": x})[0], answers(source.model, {"x": x})[0], atol=1e-6)


def test_functions_are_inlined(tmp_path):
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "ReluPlus", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph([helper.make_node("ReluPlus", ["x"], ["y"], domain="local")], "g", [value("x", [4])], [value("y", [4])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8), tmp_path / "m.onnx")
    done = normalise(load_source(tmp_path / "m.onnx"), {}, static=True)
    assert done.passes[0] == "common::inline_functions"
    assert sorted(node.op for node in done.graph().nodes) == ["Add", "Relu"]


def test_newer_opset_than_the_runtime_takes_is_relabelled_when_that_is_exact(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    done = normalise(load_source(save(tmp_path / "m.onnx", [node], [value("x", [4])], [value("y", [4])], opset=28, ir=14)), {}, static=True)
    assert (done.opset, done.model.ir_version) == (_normalise.MAX_OPSET, _normalise.MAX_IR_VERSION)
    assert "common::cap_versions" in done.passes


def test_unused_input_stays(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [4]), value("idle", [2])], [value("y", [4])])
    done = normalise(load_source(path), {}, static=True)
    assert [value.name for value in done.model.graph.input] == ["x", "idle"]


def test_integer_inputs_find_a_range_that_the_model_takes(tmp_path):
    """Indices into a table of 5 rows: most of [0, 256) would be out of bounds."""
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    table = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    path = save(tmp_path / "m.onnx", [node], [value("ids", ["N"], TensorProto.INT64)], [value("y", ["N", 3])], {"table": table})
    assert normalise(load_source(path), {}, static=True).static


def test_a_simplifier_that_changes_the_answer_is_left_out(tmp_path, monkeypatch, caplog):
    def break_weights(model: onnx.ModelProto) -> onnx.ModelProto:
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return model

    monkeypatch.setattr(_normalise, "_slim", break_weights)
    source = load_source(head(tmp_path / "m.onnx"))
    done = normalise(source, {"x": (1, 3, 8, 8)}, static=True)
    assert done.passes == ("common::fix_shapes", "common::fold_constants", "common::reject_onnxslim", "common::infer_shapes")
    assert {node.op_type for node in done.model.graph.node} == {"Conv", "BatchNormalization", "Identity", "Reshape"}
    assert "differs by" in caplog.text
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(answers(done.model, {"x": x})[0], answers(source.model, {"x": x})[0])


def test_a_simplifier_that_fails_is_left_out(tmp_path, monkeypatch):
    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError(f"cannot fold {model.graph.name}")

    monkeypatch.setattr(_normalise, "_slim", fail)
    done = normalise(load_source(head(tmp_path / "m.onnx")), {"x": (1, 3, 8, 8)}, static=True)
    assert "common::reject_onnxslim" in done.passes


def test_a_shape_that_the_model_cannot_take(tmp_path):
    with pytest.raises(ModelError) as caught:
        normalise(load_source(head(tmp_path / "m.onnx")), {"x": (1, 3, 2, 2)}, static=True)
    assert "ONNX Runtime cannot run it with float32[1,3,2,2]" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ppocr-det", {"x": (1, 3, 480, 640)}),
        ("ppocr-rec", {"x": (1, 3, 48, 320)}),
        ("ppocr-cls", {"x": (1, 3, 48, 192)}),
        ("magika", {}),
        ("silero-vad", {}),
    ],
)
def test_real_models_are_slimmed_and_static(real_model, name, shapes):
    done = normalise(load_source(real_model(name)), shapes, static=True)
    assert done.static
    assert "common::onnxslim" in done.passes
    assert done.opset >= 13
    assert len(done.graph().nodes) == len(done.model.graph.node)


def test_minus_one_leaves_a_dimension_open() -> None:
    signature = Signature((TensorSpec("x", "float32", ("N", 3, "H")),), ())
    assert resolve_shapes(signature, {"x": (-1, 3, 8)}, False) == {"x": ("N", 3, 8)}
    assert resolve_shapes(signature, {"x": (-1, 3, 8)}, True) == {"x": (1, 3, 8)}
    with pytest.raises(UsageError, match="-1 to leave it open"):
        resolve_shapes(signature, {"x": (0, 3, 8)}, False)
