"""Operators that ONNX itself defines by a function of simpler ones (``onnx.defs``): a node becomes that function's body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.converters._lowering._names import inner_graphs, renamed
from edgekit.converters._lowering._piece import CannotLowerError, Piece

if TYPE_CHECKING:
    import onnx

__all__ = ["expand_function"]


def expand_function(proto: onnx.NodeProto, piece: Piece) -> bool:
    """Write the body of an operator's function into ``piece``.

    Returns:
        whether ONNX defines the operator so, in operators of the model's opset.
    """
    body = _body(proto, piece)
    if body is None:
        return False
    attributes = _attributes(proto, body, piece.around.opset)
    values = dict(zip(body.input, [*proto.input, *[""] * len(body.input)], strict=False))
    values |= {formal: actual for formal, actual in zip(body.output, proto.output, strict=False) if actual}
    prefix = piece.node.name
    for index, node in enumerate(body.node):
        for name in node.output:
            if name:
                values.setdefault(name, f"{prefix}/{name}")
        copy = renamed(node, values, f"{prefix}/{node.op_type}_{index}")
        _bind(copy, attributes)
        piece.add(copy)
    _forward(piece, body, proto, values)
    return True


def _forward(piece: Piece, body: onnx.FunctionProto, proto: onnx.NodeProto, values: dict[str, str]) -> None:
    """An output that is an input of the function needs a node of its own to carry its name."""
    produced = {name for node in piece.nodes for name in node.output}
    for formal, actual in zip(body.output, proto.output, strict=False):
        if actual and actual not in produced:
            given = dict(zip(body.input, proto.input, strict=False)).get(formal, values[formal])
            piece.op("Identity", given, into=actual)


def _body(proto: onnx.NodeProto, piece: Piece) -> onnx.FunctionProto | None:
    import onnx

    opset = piece.around.opset
    if proto.domain not in ("", "ai.onnx") or not onnx.defs.has(proto.op_type, opset, ""):
        return None
    schema = onnx.defs.get_schema(proto.op_type, opset, "")
    encoded: list[bytes] = []
    if schema.has_function:
        encoded += [schema.get_function_with_opset_version(version) for version in _nearest(schema.function_opset_versions, opset)]
    if schema.has_context_dependent_function:
        versions = _nearest(schema.context_dependent_function_opset_versions, opset)
        kinds = [
            piece.around.types[name].SerializeToString() if name else b"" for name in proto.input if name in piece.around.types or not name
        ]
        if len(kinds) == len(proto.input):
            spelled = _with_defaults(proto, schema).SerializeToString()
            encoded += [schema.get_context_dependent_function_with_opset_version(version, spelled, kinds) for version in versions]
    for data in encoded:
        body = onnx.FunctionProto.FromString(data)
        if body.node and all(_fits(node, opset) for node in body.node):
            return body
    return None


def _nearest(versions: list[int], opset: int) -> list[int]:
    """Versions of a body, the one made for ``opset`` first."""
    return sorted((int(each) for each in versions), key=lambda version: (version > opset, abs(version - opset)))


def _with_defaults(proto: onnx.NodeProto, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """The builders of some bodies read attributes without looking up their defaults."""
    import onnx

    spelled = onnx.NodeProto()
    spelled.CopyFrom(proto)
    given = {attribute.name for attribute in proto.attribute}
    spelled.attribute.extend(
        declared.default_value for declared in schema.attributes.values() if declared.name not in given and declared.default_value.name
    )
    return spelled


def _fits(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the operator at ``opset`` still has the form that a body uses."""
    import onnx

    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    known = all(attribute.name in schema.attributes for attribute in node.attribute)
    fitting = known and schema.min_input <= len(node.input) <= schema.max_input
    return fitting and all(_fits(inner, opset) for graph in inner_graphs(node) for inner in graph.node)


def _attributes(proto: onnx.NodeProto, body: onnx.FunctionProto, opset: int) -> dict[str, onnx.AttributeProto]:
    import onnx

    schema = onnx.defs.get_schema(proto.op_type, opset, "")
    found = {name: declared.default_value for name, declared in schema.attributes.items() if declared.default_value.name}
    found |= {attribute.name: attribute for attribute in body.attribute_proto}
    found |= {attribute.name: attribute for attribute in proto.attribute}
    return found


def _bind(node: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto]) -> None:
    """Put values in the place of references to the function's attributes; a reference to one that was not given goes away."""
    for attribute in list(node.attribute):
        if not attribute.ref_attr_name:
            continue
        found = attributes.get(attribute.ref_attr_name)
        if found is None:
            node.attribute.remove(attribute)
            continue
        name = attribute.name
        attribute.CopyFrom(found)
        attribute.name = name
    for graph in inner_graphs(node):
        for inner in graph.node:
            _bind(inner, attributes)
    if node.op_type == "Constant" and not node.attribute:
        raise CannotLowerError("its function needs an attribute that was not given")
