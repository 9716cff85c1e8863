"""Reading and judging ONNX files: every kind of bad input gets one line that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._source import graph_from_onnx, load_source
from edgekit.errors import ModelError, UnsupportedOperatorsError

FLOAT = TensorProto.FLOAT


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes, inputs, outputs, constants=(), opset=17, domains=(), **fields) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in constants])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **fields), path)
    return path


def relu(path: Path, shape: Sequence[int | str | None] = (1, 3), **fields) -> Path:
    return save(path, [helper.make_node("Relu", ["x"], ["y"], "r")], [value("x", shape)], [value("y", shape)], **fields)


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_source(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_signature_keeps_the_files_own_names_order_and_dims(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["b", "a:0"], ["sum/out"]), helper.make_node("Relu", ["c"], ["r"])],
        [value("b", ["N", 3]), value("a:0", ["N", 3]), value("c", [2], TensorProto.FLOAT16)],
        [value("r", [2], TensorProto.FLOAT16), value("sum/out", ["N", 3])],
    )
    source = load_source(path)
    assert [spec.name for spec in source.signature.inputs] == ["b", "a:0", "c"]
    assert [spec.describe() for spec in source.signature.inputs] == ["float32[N,3]", "float32[N,3]", "float16[2]"]
    assert [(spec.name, spec.describe()) for spec in source.signature.outputs] == [("r", "float16[2]"), ("sum/out", "float32[N,3]")]
    assert (source.format, source.opset) == ("onnx", 17)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unnamed_dims_get_names_of_their_own(tmp_path):
    source = load_source(relu(tmp_path / "m.onnx", ["?", None, -1, "?", "x_dim0", 4]))
    (spec,) = source.signature.inputs
    assert spec.shape[-2:] == ("x_dim0", 4)
    symbols = [dim for each in (*source.signature.inputs, *source.signature.outputs) for dim in each.shape[:4]]
    assert all(isinstance(dim, str) and dim not in ("", "?", "-1") for dim in symbols)
    assert len(set(symbols)) == len(symbols)
    assert "x_dim0" not in symbols


def test_output_without_shape_is_inferred(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", 3])], [value("y", None)])
    assert load_source(path).signature.outputs[0].describe() == "float32[N,3]"


def test_initializers_are_no_inputs(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [2]), value("w", [2])],
        [value("y", [2])],
        [("w", np.ones(2, np.float32))],
    )
    assert [spec.name for spec in load_source(path).signature.inputs] == ["x"]


def test_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.onnx")


def test_directory(tmp_path):
    assert "is a directory" in refused(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "m.onnx").touch()
    assert "the file is empty" in refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x1c\x00\x00\x00TFL3", b"<html>404</html>"])
def test_other_formats(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    assert "ONNX" in refused(tmp_path / "m.onnx")


def test_truncation_at_every_length_is_refused(tmp_path):
    """No prefix of a model passes for the model."""
    whole = relu(tmp_path / "m.onnx").read_bytes()
    for length in range(1, len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        assert "cut.onnx" in refused(tmp_path / "cut.onnx")


def test_no_outputs(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [])
    assert "has no outputs" in refused(path)


def test_output_that_nothing_produces(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["z"])], [value("x", [1])], [value("y", [1])])
    assert "nothing produces output 'y'" in refused(path)


def test_dangling_node_input(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["ghost"], ["y"])], [value("x", [1])], [value("y", [1])])
    assert "ghost" in refused(path)


def test_sequence_input(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, [None])
    path = save(tmp_path / "m.onnx", [helper.make_node("SequenceLength", ["s"], ["y"])], [sequence], [value("y", [], TensorProto.INT64)])
    assert "input 's' is of type sequence" in refused(path)


def test_optional_input(tmp_path):
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("OptionalHasElement", ["o"], ["y"])],
        [helper.make_value_info("o", kind)],
        [value("y", [], TensorProto.BOOL)],
    )
    assert "input 'o' is of type optional" in refused(path)


def test_input_without_shape(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", None)], [value("y", [1])])
    assert "input 'x' has no shape" in refused(path)


def test_all_unknown_operators_are_listed_with_node_names(tmp_path):
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Special", ["b"], ["y"], "second", domain="acme"),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", [1])], [value("y", [1])], domains=["acme"])
    with pytest.raises(UnsupportedOperatorsError) as caught:
        load_source(path)
    assert [(name, op) for name, op, _, _ in caught.value.nodes] == [("first", "Frobnicate"), ("second", "acme.Special")]


# --- external data -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path) -> Path:
    path = tmp_path / "m.onnx"
    weights = np.arange(4096, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", [4096])],
        [value("y", [4096])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_loaded_and_digested(external):
    source = load_source(external)
    assert np.array_equal(numpy_helper.to_array(source.model.graph.initializer[0]), np.arange(4096, dtype=np.float32))
    data = bytearray((external.parent / "weights.bin").read_bytes())
    data[0] ^= 1
    (external.parent / "weights.bin").write_bytes(data)
    assert load_source(external).sha256 != source.sha256


def test_missing_external_data_is_named(external):
    (external.parent / "weights.bin").unlink()
    assert "external data file 'weights.bin' is missing" in refused(external)


def test_short_external_data(external):
    file = external.parent / "weights.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert "'weights.bin' has 16383 bytes; expected at least 16384" in refused(external)


def test_external_data_outside_the_folder(external):
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    external.write_bytes(model.SerializeToString())
    assert "a file beside the model" in refused(external)


# --- the plain graph -----------------------------------------------------------------------------------------------------------------------


def test_graph_folds_constants_names_nodes_and_knows_every_type(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.asarray([2.0], np.float32))),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "axes"], ["u"], "same"),
        helper.make_node("Clip", ["u", "", "k0"], ["y"], "same"),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", [3])], [value("y", [1, 3])], [("k0", np.float32(1)), ("unused", np.ones(3))])
    source = load_source(path)
    graph = graph_from_onnx(source.model, source.signature)
    assert [(node.op, node.name) for node in graph.nodes] == [("Mul", "Mul_2"), ("Unsqueeze", "same"), ("Clip", "same_2")]
    assert sorted(graph.constants) == ["axes", "k", "k0"]
    assert graph.constants["axes"].dtype == np.int64
    assert graph.types["m"].shape == (3,)
    assert graph.types["u"].shape == (1, 3)
    assert graph.types["k0"].shape == ()
    assert graph.nodes[2].inputs == ("u", "", "k0")
    assert {node.opset for node in graph.nodes} == {17}


def test_graph_attributes_are_python_values(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 1], group=1)
    path = save(
        tmp_path / "m.onnx", [node], [value("x", [1, 1, 4, 4])], [value("y", [1, 1, 2, 4])], [("w", np.ones((1, 1, 3, 3), np.float32))]
    )
    source = load_source(path)
    assert graph_from_onnx(source.model, source.signature).nodes[0].attrs == {"auto_pad": "SAME_UPPER", "strides": [2, 1], "group": 1}


def test_graph_refuses_what_has_no_static_shape(tmp_path):
    node = helper.make_node("NonZero", ["x"], ["y"], "finder")
    source = load_source(save(tmp_path / "m.onnx", [node], [value("x", [4])], [value("y", [1, "K"], TensorProto.INT64)]))
    with pytest.raises(ModelError, match="NonZero at 'finder'"):
        graph_from_onnx(source.model, source.signature)
