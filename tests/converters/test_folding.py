"""Our own constant folding: numbers stay, shape arithmetic goes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters._folding import fold_constants


def model(nodes, inputs, outputs, **constants) -> onnx.ModelProto:
    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value(*each) for each in inputs], [value(*each) for each in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(made: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})[0]


def reshape_to_itself(source: str, target: str) -> list[onnx.NodeProto]:
    """Reshape by a shape that is computed from the tensor: its rows, then everything else."""
    return [
        helper.make_node("Shape", [source], [f"{source}_shape"]),
        helper.make_node("Gather", [f"{source}_shape", "first"], [f"{source}_rows"]),
        helper.make_node("Concat", [f"{source}_rows", "rest"], [f"{source}_target"], axis=0),
        helper.make_node("Reshape", [source, f"{source}_target"], [target]),
    ]


def test_shape_arithmetic_behind_shape_arithmetic():
    """The second Shape is static only once the first Reshape's target is a constant."""
    nodes = [*reshape_to_itself("x", "a"), helper.make_node("Relu", ["a"], ["b"]), *reshape_to_itself("b", "y")]
    made = model(nodes, [("x", (2, 3, 4))], [("y", (2, 12))], first=np.asarray([0]), rest=np.asarray([-1]))
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    before = run(made, x)
    folded = fold_constants(made)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["Reshape", "Relu", "Reshape"]
    assert np.array_equal(run(folded, x), before)


def test_what_depends_on_data_or_chance_stays():
    nodes = [
        helper.make_node("RandomNormal", [], ["noise"], shape=[2]),
        helper.make_node("Add", ["c", "c"], ["double"]),
        helper.make_node("Add", ["x", "noise"], ["s"]),
        helper.make_node("Mul", ["s", "double"], ["y"]),
    ]
    folded = fold_constants(model(nodes, [("x", (2,))], [("y", (2,))], c=np.ones(2, np.float32)))
    assert [node.op_type for node in folded.graph.node] == ["RandomNormal", "Add", "Mul"]


def test_an_output_is_never_folded_away():
    folded = fold_constants(model([helper.make_node("Add", ["c", "c"], ["y"])], [("x", (2,))], [("y", (2,))], c=np.ones(2, np.float32)))
    assert [node.op_type for node in folded.graph.node] == ["Add"]


def test_a_value_too_large_to_store_stays_computed():
    nodes = [helper.make_node("ConstantOfShape", ["large"], ["zeros"]), helper.make_node("Add", ["x", "zeros"], ["y"])]
    folded = fold_constants(model(nodes, [("x", (1,))], [("y", (1 << 21,))], large=np.asarray([1 << 21])))
    assert [node.op_type for node in folded.graph.node] == ["ConstantOfShape", "Add"]
