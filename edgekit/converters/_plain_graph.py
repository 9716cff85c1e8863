"""The plain graph of a normalised model: what the front ends of our own read instead of protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.converters._plain import plain_constants, plain_node, plain_type
from edgekit.converters.sources._judge import ONNX_DOMAINS, first_line, refuse_foreign, unique
from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["graph_from_onnx"]


def graph_from_onnx(model: onnx.ModelProto, signature: Signature) -> Graph:
    """The plain graph of a normalised model.

    ``Constant`` nodes become constants, attributes Python values, nodes without a name get one; every tensor has its type from ONNX shape
    inference in strict mode.

    Raises:
        ModelError: a tensor whose dtype or static shape cannot be inferred, or that nothing produces.
        UnsupportedOperatorsError: operators of a domain other than ai.onnx.
    """
    import onnx

    refuse_foreign(model, ONNX_DOMAINS, "this front end")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as exc:
        raise ModelError("model", f"shape inference failed: {first_line(exc)}", "", "check the model and the shapes given") from exc
    graph = inferred.graph
    constants = plain_constants(graph)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = []
    taken: set[str] = set()
    for index, proto in enumerate(graph.node):
        if proto.op_type == "Constant":
            _check_constant(proto, constants)
            continue
        node = plain_node(proto, opsets.get(proto.domain, 0))
        nodes.append(replace(node, name=unique(node.name or f"{proto.op_type}_{index}", taken)))
    types = {value.name: kind for value in (*graph.input, *graph.value_info, *graph.output) if (kind := plain_type(value))}
    types.update({name: TensorType(array.dtype.name, array.shape) for name, array in constants.items()})
    _check_types(nodes, types, [spec.name for spec in signature.outputs])
    used = {name for node in nodes for name in node.inputs} | {spec.name for spec in signature.outputs}
    return Graph(
        tuple(TensorSpec(spec.name, types[spec.name].dtype, types[spec.name].shape) for spec in signature.inputs),
        tuple(TensorSpec(spec.name, types[spec.name].dtype, types[spec.name].shape) for spec in signature.outputs),
        tuple(nodes),
        {name: array for name, array in constants.items() if name in used},
        types,
    )


def _check_constant(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    if node.output[0] not in constants:
        given = node.attribute[0].name if node.attribute else "no value"
        raise ModelError(f"node {node.name!r}", f"a Constant with {given}", "a dense numeric constant", "export it again")


def _check_types(nodes: Sequence[Node], types: dict[str, TensorType], outputs: Sequence[str]) -> None:
    for node in nodes:
        for name in node.outputs:
            if name and name not in types:
                raise ModelError(
                    f"tensor {name!r} ({node.op} at {node.name!r})",
                    "its shape depends on data or on a dimension that is not fixed",
                    "a static shape",
                    "fix the input shapes with --shape, or build for an engine that takes dynamic shapes (onnxruntime, openvino)",
                )
    for name in outputs:
        if name not in types:
            raise ModelError(f"output {name!r}", "nothing produces it with a static shape", "", "export the model again")
