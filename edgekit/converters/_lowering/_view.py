"""A model as the plain graph, as far as it is known yet: tensors without a static shape are simply not among the types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgekit.bundle import TensorSpec
from edgekit.converters._graph import Graph, Node, TensorType
from edgekit.converters._lowering._piece import Surroundings
from edgekit.converters._plain import plain_constants, plain_node, plain_type

if TYPE_CHECKING:
    import onnx

__all__ = ["name_nodes", "opset_of", "view"]


def opset_of(model: onnx.ModelProto) -> int:
    """The ai.onnx opset that a model imports."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of the main graph a name that no other has."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name, count = node.name or f"{node.op_type}_{index}", 1
        node.name = name
        while node.name in taken:
            count += 1
            node.name = f"{name}_{count}"
        taken.add(node.name)


def view(model: onnx.ModelProto) -> Surroundings:
    """The main graph of a model whose nodes are named; inner graphs are not attributes of the plain nodes."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    constants = plain_constants(inferred)
    known: dict[str, TensorType] = {value.name: kind for value in values if (kind := plain_type(value)) is not None}
    known.update({name: TensorType(array.dtype.name, array.shape) for name, array in constants.items()})
    types = {value.name: value.type for value in values}
    for name, array in constants.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        types[name] = onnx.helper.make_tensor_type_proto(kind, array.shape)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes: list[Node] = [plain_node(proto, opsets.get(proto.domain, 0)) for proto in inferred.node if proto.op_type != "Constant"]
    graph = Graph(_specs(inferred.input, known), _specs(inferred.output, known), tuple(nodes), constants, known)
    return Surroundings(graph, types, opset_of(model))


def _specs(values: Iterable[onnx.ValueInfoProto], known: dict[str, TensorType]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(value.name, known[value.name].dtype, known[value.name].shape) for value in values if value.name in known)
