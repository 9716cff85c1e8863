"""ORT format files read back into ONNX: the same answers as ONNX Runtime gives for the file itself."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters import build
from edgekit.converters._source import load_source
from edgekit.converters.sources._ort_file import _ordered
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import ModelError, UnsupportedOperatorsError

FLOAT = TensorProto.FLOAT


def write_ort(model: onnx.ModelProto | Path, path: Path, level: str = "ORT_ENABLE_BASIC") -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return path


def network(seed: int = 0) -> onnx.ModelProto:
    """A convolution with attributes of every kind, an If with bodies that read from outside, and a small tail."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "low": np.asarray(-0.5, np.float32),
    }
    branch = [
        helper.make_graph([helper.make_node(op, ["c"], [op])], op, [], [helper.make_tensor_value_info(op, FLOAT, None)])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", auto_pad="SAME_UPPER", strides=[2, 1], group=1),
        helper.make_node("If", ["flag"], ["i"], "choice", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Clip", ["i", "low", ""], ["k"], "clip"),
        helper.make_node("LeakyRelu", ["k"], ["y"], "leaky", alpha=0.25),
        helper.make_node("Shape", ["y"], ["s"], "shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 6]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 4, 4, 6]), helper.make_tensor_value_info("s", TensorProto.INT64, [4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: onnx.ModelProto | Path, flag: bool) -> list[np.ndarray]:
    data = np.random.default_rng(1).standard_normal((2, 3, 8, 6)).astype(np.float32)
    return open_session(model if isinstance(model, onnx.ModelProto) else str(model)).run(None, {"x": data, "flag": np.asarray(flag)})


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"])
@pytest.mark.parametrize("flag", [True, False])
def test_same_answers_and_signature_as_the_file(tmp_path, level, flag):
    path = write_ort(network(), tmp_path / "m.ort", level)
    source = load_source(path)
    assert (source.format, source.opset, source.passes) == ("ort", 17, ("source::ort_format",))
    assert source.is_file
    assert [(spec.name, spec.describe()) for spec in source.signature.inputs] == [("x", "float32[N,3,8,6]"), ("flag", "bool[]")]
    assert [(spec.name, spec.describe()) for spec in source.signature.outputs] == [("y", "float32[N,4,4,6]"), ("s", "int64[4]")]
    for mine, original in zip(answers(source.model, flag), answers(path, flag), strict=True):
        # Not bit by bit: ONNX Runtime optimises the one it reads as ONNX once more.
        np.testing.assert_allclose(mine, original, rtol=1e-5, atol=1e-5)


def test_attributes_and_node_names_survive(tmp_path):
    model = load_source(write_ort(network(), tmp_path / "m.ort", "ORT_DISABLE_ALL")).model
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    assert conv.name == "conv"
    assert (found["auto_pad"], found["strides"], found["group"]) == (b"SAME_UPPER", [2, 1], 1)
    leaky = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
    assert helper.get_attribute_value(leaky.attribute[0]) == pytest.approx(0.25)


def test_it_builds_like_its_onnx(tmp_path):
    model = network()
    del model.graph.node[4], model.graph.output[1]
    path = write_ort(model, tmp_path / "m.ort")
    bundle = build(path, device="generic-x86", output=tmp_path / "b.edgekit", cache=False, isolate=False)
    assert bundle.manifest.source.format == "ort"
    assert bundle.manifest.verification.verified == "host"


def test_nodes_made_for_one_processor_are_all_named(tmp_path):
    path = write_ort(network(), tmp_path / "m.ort", "ORT_ENABLE_ALL")
    with pytest.raises(UnsupportedOperatorsError, match="optimization_level basic") as caught:
        load_source(path)
    assert {reason for *_, reason in caught.value.nodes} == {"made for one processor"}
    assert any(op == "com.microsoft.nchwc.Conv" for _, op, _, _ in caught.value.nodes)


def test_fused_nodes_are_counted_in_a_note(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 1, 2, 2])],
        [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = load_source(write_ort(model, tmp_path / "m.ort", "ORT_ENABLE_EXTENDED"))
    assert [node.op_type for node in source.model.graph.node] == ["FusedConv"]
    assert "1 node(s) were fused" in source.notes[0]


def test_content_decides_not_the_suffix(tmp_path):
    path = write_ort(network(), tmp_path / "m.ort")
    renamed = path.rename(tmp_path / "m.onnx")
    assert load_source(renamed).format == "ort"


def test_damage_is_a_model_error(tmp_path):
    """Every 53rd byte wrong, and every 211th length: nothing but a `ModelError`, and never an endless loop."""
    whole = write_ort(network(), tmp_path / "m.ort").read_bytes()
    rng = np.random.default_rng(0)
    spoiled = [bytes([*whole[:place], whole[place] ^ int(rng.integers(1, 256)), *whole[place + 1 :]]) for place in range(8, len(whole), 53)]
    for data in [*spoiled, *(whole[:length] for length in range(9, len(whole), 211))]:
        (tmp_path / "bad.ort").write_bytes(data)
        with contextlib.suppress(ModelError):  # a changed weight is no damage that shows
            load_source(tmp_path / "bad.ort")


def test_nodes_are_put_in_the_order_of_their_values():
    nodes = [helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["b"])]
    assert [node.op_type for node in _ordered(nodes)] == ["Neg", "Abs", "Relu"]
    with pytest.raises(ValueError, match="cycle"):
        _ordered([helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])])
