"""Name an older ai.onnx opset without changing what a model computes.

A newer version of an operator often only takes more types or has a new attribute. Where a node uses none of that, the older version is the same
operator. Where it does, the operator's own function body from the ONNX standard takes its place, or one of the few bodies here. All else is
refused, node by node: `onnx.version_converter` would convert some of it silently wrong (onnx#4781, #5810).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._lowering._functions import expand_function
from edgekit.converters._lowering._names import inner_graphs
from edgekit.converters._lowering._piece import Piece, Surroundings
from edgekit.converters.sources._judge import graphs, unique
from edgekit.errors import UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "cap_opset"]

MAX_OPSET = 26
"""Newest ai.onnx opset that ONNX Runtime 1.31 loads (measured)."""
MAX_IR_VERSION = 13
"""Newest ONNX IR version that ONNX Runtime 1.31 loads (measured)."""

# ONNX Runtime 1.31 has no kernel for these at any opset and does not use their function bodies (measured; onnx's backend tests).
_NO_KERNEL = frozenset({"Swish"})

# Operators of opsets 27 and 28 whose change against the version before was read (onnx 1.23.2, `onnx.defs`): more types, or an attribute whose
# default is the old behaviour. One that a later onnx changes is not in the list, and is refused until someone has read it.
_GREW = frozenset(
    {
        *("Cast", "Celu", "Compress", "DepthToSpace", "DequantizeLinear", "Einsum", "OneHot", "Optional", "OptionalGetElement"),
        *("OptionalHasElement", "QuantizeLinear", "Range", "ReduceLogSum", "ReduceLogSumExp", "ReverseSequence", "SpaceToDepth", "Unique"),
    }
)
_SHIFTED = frozenset({"tensor(uint8)", "tensor(uint32)", "tensor(uint64)"})  # ONNX Runtime has BitShift kernels for these
_ROUNDS = 8  # a function body may hold operators with function bodies
_MAIN = ("", "ai.onnx")


def cap_opset(model: onnx.ModelProto, ceiling: int, thing: str) -> bool:
    """Rewrite a model in place to the opset ``ceiling``, and operators without a kernel in ONNX Runtime by their bodies at any opset.

    Args:
        model: with types that ONNX can infer; model-local functions were inlined.
        ceiling: ai.onnx opset.
        thing: the model, for the error.

    Returns:
        whether anything was changed.

    Raises:
        UnsupportedOperatorsError: every node that has no equal at ``ceiling``.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in _MAIN), default=0)
    if opset <= ceiling and not any(node.op_type in _NO_KERNEL for graph in graphs(model.graph) for node in graph.node):
        return False
    settled: set[str] = set()
    for _ in range(_ROUNDS):
        cap = _Cap(model, opset, ceiling, settled)
        cap.rewrite(model.graph)
        if not cap.expanded:
            break
    if cap.refused or cap.expanded:
        step = f"export the model with opset {ceiling} or older"
        raise UnsupportedOperatorsError(f"{thing}, at opset {ceiling}, the newest that ONNX Runtime runs,", cap.refused, step)
    for entry in model.opset_import:
        if entry.domain in _MAIN:
            entry.version = min(entry.version, ceiling)
    return True


class _Cap:
    """One walk over all graphs of a model.

    Attributes:
        expanded: nodes whose body took their place; it may hold new operators again.
        refused: nodes without an equal, as `UnsupportedOperatorsError` takes them.
        settled: values of nodes that a body of our own made: they mean the same at the ceiling.
    """

    def __init__(self, model: onnx.ModelProto, opset: int, ceiling: int, settled: set[str]) -> None:
        import onnx

        self.opset, self.ceiling, self.settled = opset, ceiling, settled
        self.expanded = 0
        self.refused: list[tuple[str, str, int, str]] = []
        self.kinds: dict[str, onnx.TypeProto] = {}
        self.taken: set[str] = set()
        self.constants: dict[str, onnx.TensorProto] = {}
        for graph in graphs(onnx.shape_inference.infer_shapes(model).graph):
            self.kinds |= {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
            self.kinds |= {tensor.name: onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer}
            self.taken |= {node.name for node in graph.node}
            self.constants |= {tensor.name: tensor for tensor in graph.initializer}

    def rewrite(self, graph: onnx.GraphProto) -> None:
        """Replace every node of a graph, and of the graphs inside it, that is not at the ceiling as it stands."""
        import onnx

        nodes: list[onnx.NodeProto] = []
        for index, node in enumerate(graph.node):
            for inner in inner_graphs(node):
                self.rewrite(inner)
            piece = self._replacement(node, node.name or f"{node.op_type}_{index}")
            nodes += piece.nodes if piece else [node]
            graph.initializer.extend(piece.initializers if piece else ())
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)

    def _replacement(self, node: onnx.NodeProto, name: str) -> Piece | None:
        """What takes a node's place; None when it stays, as equal or as refused."""
        import onnx

        if node.domain not in _MAIN or node.output[0] in self.settled:
            return None
        new = onnx.defs.get_schema(node.op_type, self.opset)
        reason = "ONNX Runtime has no kernel for it" if node.op_type in _NO_KERNEL else ""
        if not reason and (new.since_version <= self.ceiling or not (reason := self._difference(node, new))):
            return None
        around = Surroundings(Graph((), (), (), {}, {}), self.kinds, self.opset)
        piece = Piece(Node(node.op_type, unique(name, self.taken), tuple(node.input), tuple(node.output)), around)
        own = _OWN.get(node.op_type)
        if own(node, piece, self._kind(node.input[0])) if own else expand_function(node, piece):
            self.expanded += 1
            self.settled.update(made.output[0] for made in piece.nodes if own)
            return piece
        self.refused.append((name, node.op_type, self.opset, reason))
        return None

    def _kind(self, value: str) -> str:
        return _type_name(self.kinds[value]) if value in self.kinds else ""

    def _difference(self, node: onnx.NodeProto, new: Any) -> str:
        """Why the version at the ceiling is not the same for this node; "" when it is. Drops attributes that say their default."""
        import onnx

        if not onnx.defs.has(node.op_type, self.ceiling, ""):
            return f"there is none at opset {self.ceiling}"
        old = onnx.defs.get_schema(node.op_type, self.ceiling)
        if node.op_type in _OWN:
            return (
                ""
                if _is_old(node, self._kind(node.input[0]), self.constants.get(node.input[1]))
                else f"its meaning is not that of version {old.since_version}"
            )
        if node.op_type not in _GREW:
            return "its meaning changed"
        added = [attribute for attribute in node.attribute if attribute.name not in old.attributes]
        for attribute in added:
            if not _is_default(attribute, new):
                return f"attribute {attribute.name} is not in version {old.since_version}"
        for values, formals in ((node.input, old.inputs), (node.output, old.outputs)):
            for index, value in enumerate(values):
                if value and self._kind(value) not in formals[min(index, len(formals) - 1)].types:
                    return f"{self._kind(value) or 'an unknown type'} is not in version {old.since_version}"
        for attribute in added:
            node.attribute.remove(attribute)
        return ""


def _is_default(attribute: onnx.AttributeProto, schema: Any) -> bool:
    from onnx import helper

    default = schema.attributes[attribute.name].default_value
    return bool(default.type) and helper.get_attribute_value(attribute) == helper.get_attribute_value(default)


def _type_name(kind: onnx.TypeProto) -> str:
    """As operator schemas spell it: ``tensor(float)``, ``optional(seq(tensor(int64)))``."""
    import onnx

    match kind.WhichOneof("value"):
        case "tensor_type":
            return f"tensor({onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()})"
        case "sequence_type":
            return f"seq({_type_name(kind.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({_type_name(kind.optional_type.elem_type)})"
        case _:
            return ""


# --- bodies of our own -----------------------------------------------------------------------------------------------------------------------


def _is_old(node: onnx.NodeProto, kind: str, right: onnx.TensorProto | None) -> bool:
    """Whether a Mod or BitShift means what its older version did: a remainder of integers, or with ``fmod``; an unsigned shift by constant amounts
    within the width, for others are defined only now.
    """
    from onnx import TensorProto, numpy_helper

    if node.op_type == "BitShift" and kind in _SHIFTED and right is not None and right.data_location != TensorProto.EXTERNAL:
        amounts = numpy_helper.to_array(right)
        return bool((amounts < amounts.dtype.itemsize * 8).all())
    return node.op_type == "Mod" and ("int" in kind or any(attribute.name == "fmod" and attribute.i for attribute in node.attribute))


def _floor_mod(node: onnx.NodeProto, piece: Piece, kind: str) -> bool:
    """``fmod`` corrected to the divisor's sign, as Python's ``%``: exact where a - floor(a / b) * b would round."""
    if kind not in ("tensor(float)", "tensor(double)", "tensor(float16)"):
        return False
    left, right = node.input
    zero = piece.op("CastLike", np.zeros((), np.float32), left)
    rest = piece.op("Mod", left, right, fmod=1)
    signs = piece.op("Xor", piece.op("Less", rest, zero), piece.op("Less", right, zero))
    wrong = piece.op("And", signs, piece.op("Not", piece.op("Equal", rest, zero)))
    piece.op("Where", wrong, piece.op("Add", rest, right), rest, into=node.output[0])
    return True


def _shift(node: onnx.NodeProto, piece: Piece, kind: str) -> bool:
    """Any integer shift on uint64: arithmetic to the right, and all bits gone beyond the width."""
    from onnx import TensorProto

    name = kind.removeprefix("tensor(").removesuffix(")")
    if not name.startswith(("int", "uint")):
        return False
    direction = "RIGHT" if any(attribute.s == b"RIGHT" for attribute in node.attribute) else "LEFT"
    zero, width = piece.constant(np.int64(0)), piece.constant(np.int64(np.iinfo(name).bits))
    value, amount = piece.op("Cast", node.input[0], to=TensorProto.INT64), piece.op("Cast", node.input[1], to=TensorProto.INT64)
    # Amounts from 2^63 on are negative here: out of range either way.
    inside = piece.op("And", piece.op("Not", piece.op("Less", amount, zero)), piece.op("Less", amount, width))
    steps = piece.op("Cast", piece.op("Where", inside, amount, zero), to=TensorProto.UINT64)
    arithmetic = direction == "RIGHT" and name.startswith("int")
    negative = piece.op("Less", value, zero) if arithmetic else ""
    if arithmetic:  # ~(~x >> n) copies the sign bit
        value = piece.op("Where", negative, piece.op("BitwiseNot", value), value)
    shifted = piece.op("BitShift", piece.op("Cast", value, to=TensorProto.UINT64), steps, direction=direction)
    result = piece.op("Where", inside, piece.op("Cast", shifted, to=TensorProto.INT64), zero)
    if arithmetic:
        result = piece.op("Where", negative, piece.op("BitwiseNot", result), result)
    piece.op("Cast", result, to=TensorProto.DataType.Value(name.upper()), into=node.output[0])
    return True


_OWN: dict[str, Callable[[Any, Piece, str], bool]] = {"Mod": _floor_mod, "BitShift": _shift}
