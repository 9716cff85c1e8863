"""Any opset: newer ones named as older where that is exact, older ones lifted. The judges are ONNX's own recorded outputs."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._normalise import normalise
from edgekit.converters._source import load_source
from edgekit.converters._version_cap import MAX_OPSET, cap_opset
from edgekit.converters.conformance._cases import Case, in_scope, load_cases, mismatch
from edgekit.converters.sources._runnable import make_runnable, open_session
from edgekit.errors import UnsupportedOperatorsError

FLOAT = TensorProto.FLOAT


def opset_of(model: onnx.ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def is_newer(model: onnx.ModelProto) -> bool:
    """Whether an operator's version itself is newer than the cap, not only the opset."""
    opset = opset_of(model)
    return opset > MAX_OPSET and any(onnx.defs.get_schema(node.op_type, opset).since_version > MAX_OPSET for node in model.graph.node)


@functools.cache
def backend_cases() -> tuple[list[Case], list[Case]]:
    """Backend tests whose operators are newer than the cap, and those older than opset 7."""
    cases = [case for case in load_cases() if in_scope(case)]
    return [case for case in cases if is_newer(case.model)], [case for case in cases if opset_of(case.model) < 7]


def judged(case: Case) -> str:
    """How a case ends after `make_runnable`: what differs, or ""."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)
    make_runnable(Path(case.name), model, opset_of(model))
    onnx.checker.check_model(model, full_check=True)
    assert opset_of(model) <= MAX_OPSET
    outputs = open_session(model).run(list(case.outputs), case.inputs)
    return mismatch(case, dict(zip(case.outputs, outputs, strict=True)))


@pytest.mark.slow
def test_every_backend_test_of_a_newer_operator_version_runs_at_the_cap():
    newer, _ = backend_cases()
    found = {case.name: judged(case) for case in newer}
    assert len(found) >= 140
    assert {name: difference for name, difference in found.items() if difference} == {}
    operators = Counter(case.operator for case in newer)
    assert {"SwiGLU", "LinearAttention", "CausalConvWithState", "BitShift", "Mod", "SpaceToDepth", "Celu"} <= set(operators)


@pytest.mark.slow
def test_every_backend_test_of_an_early_opset_runs():
    _, older = backend_cases()
    found = {case.name: judged(case) for case in older}
    assert len(found) >= 110
    assert {name: difference for name, difference in found.items() if difference} == {}


def save(
    path: Path, nodes, opset: int, inputs=(("x", FLOAT, [2, 3]),), outputs=(("y", FLOAT, [2, 3]),), constants=(), ir_version=13
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version), path)
    return path


def test_a_newer_type_list_alone_keeps_the_operator(tmp_path):
    """Celu took float16 at opset 28; in float32 it is the operator of opset 12."""
    path = save(tmp_path / "m.onnx", [helper.make_node("Celu", ["x"], ["y"], alpha=0.5)], 28, ir_version=14)
    source = load_source(path)
    assert [node.op_type for node in source.model.graph.node] == ["Celu"]
    assert (source.opset, opset_of(source.model), source.model.ir_version) == (28, 26, 13)
    assert source.passes == ("common::cap_versions",)
    assert not source.is_file
    assert normalise(source, {}, static=True).passes[0] == "common::cap_versions"


def test_a_default_of_a_new_attribute_is_dropped_and_another_value_is_expanded(tmp_path):
    shapes = {"inputs": [("x", FLOAT, [1, 2, 4, 4])], "outputs": [("y", FLOAT, [1, 8, 2, 2])]}
    same = load_source(save(tmp_path / "a.onnx", [helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="DCR")], 28, **shapes))
    assert [node.op_type for node in same.model.graph.node] == ["SpaceToDepth"]
    other = load_source(save(tmp_path / "b.onnx", [helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="CRD")], 28, **shapes))
    assert "SpaceToDepth" not in [node.op_type for node in other.model.graph.node]
    data = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    expected = data.reshape(1, 2, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 8, 2, 2)
    assert np.array_equal(open_session(other.model).run(None, {"x": data})[0], expected)


def test_control_flow_bodies_are_capped_too(tmp_path):
    body = helper.make_graph(
        [helper.make_node("SwiGLU", ["x", "x"], ["inner"])], "then", [], [helper.make_tensor_value_info("inner", FLOAT, [2, 3])]
    )
    other = helper.make_graph(
        [helper.make_node("Celu", ["x"], ["kept"])], "else", [], [helper.make_tensor_value_info("kept", FLOAT, [2, 3])]
    )
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)],
        28,
        inputs=[("x", FLOAT, [2, 3]), ("c", TensorProto.BOOL, [])],
    )
    data = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    session = open_session(load_source(path).model)
    (left,) = session.run(None, {"x": data, "c": np.asarray(True)})
    (right,) = session.run(None, {"x": data, "c": np.asarray(False)})
    np.testing.assert_allclose(left, data * data / (1 + np.exp(-data)), rtol=1e-6)
    np.testing.assert_allclose(right, np.where(data > 0, data, np.expm1(data)), rtol=1e-5)


def test_swish_has_no_kernel_and_becomes_its_body_at_its_own_opset(tmp_path):
    source = load_source(save(tmp_path / "m.onnx", [helper.make_node("Swish", ["x"], ["y"])], 24))
    assert opset_of(source.model) == 24
    data = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(open_session(source.model).run(None, {"x": data})[0], data / (1 + np.exp(-data)), rtol=1e-6)


def test_what_has_no_older_equal_is_refused_with_every_node(tmp_path):
    kinds = {"inputs": [("x", TensorProto.BFLOAT16, [2, 3])], "outputs": [("y", TensorProto.BFLOAT16, [2, 3])]}
    nodes = [
        helper.make_node("Einsum", ["x"], ["a"], "first", equation="ij->ij"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Einsum", ["b"], ["y"], "second", equation="ij->ij"),
    ]
    path = save(tmp_path / "m.onnx", nodes, 28, **kinds)
    with pytest.raises(UnsupportedOperatorsError, match="opset 26, the newest that ONNX Runtime runs") as caught:
        load_source(path)
    assert [(name, op, reason) for name, op, _, reason in caught.value.nodes] == [
        ("first", "Einsum", "tensor(bfloat16) is not in version 12"),
        ("second", "Einsum", "tensor(bfloat16) is not in version 12"),
    ]


def test_a_capped_model_is_left_alone():
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", FLOAT, [1])], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    before = model.SerializeToString(deterministic=True)
    assert not cap_opset(model, MAX_OPSET, "m")
    assert model.SerializeToString(deterministic=True) == before


def test_opset_6_prelu_with_a_slope_for_each_channel(tmp_path):
    """Square images: onnx's converter alone would apply the slopes to columns, without an error."""
    slopes = np.asarray([0.1, 0.5, 2.0], np.float32)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("PRelu", ["x", "s"], ["y"])],
        6,
        inputs=[("x", FLOAT, [1, 3, 3, 3])],
        outputs=[("y", FLOAT, [1, 3, 3, 3])],
        constants=[("s", slopes)],
        ir_version=4,
    )
    source = load_source(path)
    assert source.passes == ("common::lift_opset",)
    assert "cannot run the original" in source.notes[0]
    data = np.random.default_rng(0).standard_normal((1, 3, 3, 3)).astype(np.float32)
    expected = np.where(data < 0, data * slopes.reshape(3, 1, 1), data)
    np.testing.assert_allclose(open_session(source.model).run(None, {"x": data})[0], expected, rtol=1e-6)


def test_opset_6_that_runs_stays_the_reference(tmp_path):
    source = load_source(save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 6, ir_version=4))
    assert source.is_file
    assert (source.opset, source.passes) == (6, ())
    done = normalise(source, {}, static=True)
    assert done.opset == 13
    assert "common::upgrade_opset" in done.passes
