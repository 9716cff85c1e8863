"""Plain data of single pieces of an ONNX graph: constants, nodes, types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters._graph import Node, TensorType

if TYPE_CHECKING:
    import onnx

__all__ = ["plain_constants", "plain_node", "plain_type"]


def plain_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initializers and ``Constant`` nodes with dense numbers, by name."""
    from onnx import helper, numpy_helper

    found: dict[str, np.ndarray] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant" or not node.attribute:
            continue
        attribute = node.attribute[0]
        value = helper.get_attribute_value(attribute)
        match attribute.name:
            case "value":
                found[node.output[0]] = numpy_helper.to_array(value)
            case "value_float" | "value_floats":
                found[node.output[0]] = np.asarray(value, np.float32)
            case "value_int" | "value_ints":
                found[node.output[0]] = np.asarray(value, np.int64)
    return found


def plain_node(proto: onnx.NodeProto, opset: int) -> Node:
    """A named node; its inner graphs are left out."""
    from onnx import AttributeProto

    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    attrs = {attribute.name: _value(attribute) for attribute in proto.attribute if attribute.type not in graphs}
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attrs, opset, domain)


def plain_type(value: onnx.ValueInfoProto) -> TensorType | None:
    """Dtype and shape of a tensor; None when they are not known or not static."""
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor.shape.dim):
        return None
    name = "string" if tensor.elem_type == TensorProto.STRING else str(helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
    return TensorType(name, tuple(dim.dim_value for dim in tensor.shape.dim))


def _value(attribute: onnx.AttributeProto) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, Sequence):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value
