"""Small models, run by ONNX Runtime as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgekit.converters._graph import Graph, Node

Arrays = Mapping[str, np.ndarray]


def make(
    nodes: Sequence[onnx.NodeProto], live: Arrays, constants: Arrays | None = None, outputs: Sequence[str] = ("y",), opset: int = 20
) -> onnx.ModelProto:
    """A model whose ``live`` arrays are inputs and whose ``constants`` are initializers; shapes are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in live.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def single(
    op: str, live: Arrays, constants: Arrays | None = None, outputs: Sequence[str] = ("y",), opset: int = 20, **attrs
) -> onnx.ModelProto:
    """A model of one node; its inputs are the live arrays, then the constants, ``_`` for one that is left out."""
    names = [*live, *(constants or {})]
    inputs = ["" if name.startswith("_") else name for name in names]
    given = {name: array for name, array in (constants or {}).items() if not name.startswith("_")}
    return make([helper.make_node(op, inputs, list(outputs), **attrs)], live, given, [name for name in outputs if name], opset)


def run(model: onnx.ModelProto, live: Arrays) -> list[np.ndarray]:
    """Outputs of a model, in order."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(live))


def refusing(*operators: str) -> Callable[[Node, Graph], str]:
    """A target that takes everything but these."""
    return lambda node, _: f"no {node.op} here" if node.op in operators else ""


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator types of the main graph, in order."""
    return [node.op_type for node in model.graph.node]
