"""What is expanded, what is left alone, and how a refusal is told."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._lowering import lower_model, lower_until, lowered_graph
from edgekit.converters._registry import Registry
from edgekit.errors import UnsupportedOperatorsError
from tests.converters.lowering.models import make, operators, refusing, single

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def test_what_is_taken_is_never_touched():
    model = single("Gelu", {"x": X})
    lowered = lower_model(model, refusing("Softmax"), static=True)
    assert lowered.model is model
    assert lowered.expanded == ()


def test_a_function_body_is_the_way_down(same):
    assert "Erf" in operators(same(single("Gelu", {"x": X}), {"x": X}, "Gelu"))


def test_only_refused_nodes_are_expanded():
    nodes = [helper.make_node("HardSwish", ["x"], ["a"], "one"), helper.make_node("HardSwish", ["a"], ["y"], "two")]
    lowered = lower_model(make(nodes, {"x": X}), lambda node, _: "no" if node.name == "two" else "", static=True)
    assert operators(lowered.model).count("HardSwish") == 1
    assert lowered.expanded == ("HardSwish",)


def test_a_body_inside_a_body(same):
    model = single("GroupNormalization", {"x": X}, {"s": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}, opset=21, num_groups=3)
    same(model, {"x": X}, "GroupNormalization", "CastLike")


def test_a_refusal_names_the_node_of_the_source_and_what_it_needs():
    model = make([helper.make_node("Gelu", ["x"], ["y"], "activation")], {"x": X})
    (refused,) = lower_model(model, refusing("Gelu", "Erf"), static=True).refused
    assert refused == ("activation", "Gelu", 20, "it needs Erf: no Erf here")


def test_a_shape_that_depends_on_data_is_a_refusal_for_static_targets_only():
    model = make([helper.make_node("NonZero", ["x"], ["y"], "where")], {"x": X})
    (refused,) = lower_model(model, refusing(), static=True).refused
    assert refused[:2] == ("where", "NonZero")
    assert "shape depends on data" in refused[3]
    assert not lower_model(model, refusing(), static=False).refused


def test_names_of_expanded_values_are_new():
    nodes = [helper.make_node("Gelu", ["x"], ["a"]), helper.make_node("Gelu", ["a"], ["y"])]
    lowered = lower_model(make(nodes, {"x": X}), refusing("Gelu"), static=True)
    produced = [name for node in lowered.model.graph.node for name in node.output]
    assert len(produced) == len(set(produced))


def test_lower_until_asks_with_the_model_itself_first():
    model = single("Relu", {"x": X})
    result, lowered = lower_until(model, lambda made: made)
    assert result is model
    assert lowered.expanded == ()


def test_lower_until_goes_on_while_there_is_something_to_expand():
    seen = []

    def attempt(made):
        seen.append(operators(made))
        refused = [(node.name, node.op_type, 20, "not here") for node in made.graph.node if node.op_type in ("Gelu", "Erf", "HardSwish")]
        if refused:
            raise UnsupportedOperatorsError("tool", refused, "use another tool")
        return len(made.graph.node)

    count, lowered = lower_until(make([helper.make_node("HardSwish", ["x"], ["y"], "h")], {"x": X}), attempt)
    assert count == len(lowered.model.graph.node) > 1
    assert lowered.expanded == ("HardSwish",)
    with pytest.raises(UnsupportedOperatorsError, match=r"tool: .*Gelu at 'g'.*it needs Erf: not here.*use another tool"):
        lower_until(make([helper.make_node("Gelu", ["x"], ["y"], "g")], {"x": X}), attempt)


def test_lowered_graph_gives_a_front_end_what_it_takes():
    registry: Registry[None] = Registry("toy")
    registry.handler("Mul", "Add", "Erf", "Div", "Sqrt", "Identity")(lambda node, _: None)
    model = single("Gelu", {"x": X})
    spec = (TensorSpec("x", "float32", X.shape),)
    normalised = NormalisedModel(model, Signature(spec, (TensorSpec("y", "float32", X.shape),)), 20, {}, (), True)
    graph = lowered_graph(normalised, registry)
    assert {node.op for node in graph.nodes} <= {"Mul", "Add", "Erf", "Div", "Sqrt", "Identity"}
    bare: Registry[None] = Registry("bare")
    with pytest.raises(UnsupportedOperatorsError, match=r"bare: cannot take 1 node.*Gelu at 'Gelu_0'.*it needs"):
        lowered_graph(normalised, bare)


def test_settled_conditions_of_a_body_go(same):
    """AffineGrid's function holds branches for two and three dimensions, with shapes of their own."""
    theta = np.random.default_rng(1).standard_normal((2, 2, 3)).astype(np.float32)
    model = single("AffineGrid", {"theta": theta}, {"size": np.array([2, 3, 5, 6])}, align_corners=0)
    made = same(model, {"theta": theta}, "AffineGrid")
    assert not {"If", "CastLike"} & set(operators(made))


def test_an_initializer_of_an_old_model_keeps_its_type(same):
    """Before IR version 4 shape inference saw initializers only when they were inputs too."""
    model = single("Pad", {"x": X}, {"pads": np.array([0, 0, 1, 0, 0, 2])}, opset=13, mode="edge")
    model.ir_version = 3
    same(model, {"x": X}, "Pad")


def test_float16_stays_float16():
    half = X.astype(np.float16)
    lowered = lower_model(single("Celu", {"x": half}, alpha=0.5), refusing("Celu", "CastLike"), static=True)
    inferred = onnx.shape_inference.infer_shapes(lowered.model, strict_mode=True)
    kinds = {value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert kinds == {TensorProto.FLOAT16}
