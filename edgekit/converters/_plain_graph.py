"""The plain graph of a normalised model: what the front ends of our own read instead of protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.converters.sources._judge import ONNX_DOMAINS, dtype_name, first_line, refuse_foreign, unique
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
    constants = {tensor.name: _array(onnx, tensor) for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = []
    taken: set[str] = set()
    for index, proto in enumerate(graph.node):
        if proto.op_type == "Constant":
            constants[proto.output[0]] = _constant_value(onnx, proto)
            continue
        nodes.append(_node(onnx, proto, unique(proto.name or f"{proto.op_type}_{index}", taken), opsets.get(proto.domain, 0)))
    types = {value.name: kind for value in (*graph.input, *graph.value_info, *graph.output) if (kind := _static_type(value))}
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


def _array(onnx: Any, tensor: onnx.TensorProto) -> np.ndarray:
    return cast("np.ndarray", onnx.numpy_helper.to_array(tensor))


def _constant_value(onnx: Any, node: onnx.NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            return _array(onnx, value)
        case "value_float" | "value_floats":
            return np.asarray(value, np.float32)
        case "value_int" | "value_ints":
            return np.asarray(value, np.int64)
        case _:
            raise ModelError(f"node {node.name!r}", f"a Constant with {attribute.name}", "a dense numeric constant", "export it again")


def _attribute(onnx: Any, attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _array(onnx, value)
    if isinstance(value, Sequence):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value


def _node(onnx: Any, proto: onnx.NodeProto, name: str, opset: int) -> Node:
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)  # control flow: no front end of ours reads it
    attrs = {attribute.name: _attribute(onnx, attribute) for attribute in proto.attribute if attribute.type not in graphs}
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attrs, opset, domain)


def _static_type(value: onnx.ValueInfoProto) -> TensorType | None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor.shape.dim):
        return None
    return TensorType(dtype_name(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim))


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
