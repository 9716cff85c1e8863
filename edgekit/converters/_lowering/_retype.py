"""A model in which some dtypes are carried by others: for engines that have no 16-bit integers, no unsigned ones or no float64.

Integers keep their meaning: whatever could leave the range of the old dtype is wrapped round as arithmetic in that dtype would have been::

    z = Add(x, y)      as uint8           z' = Add(x, y)      as int32,   z = Mod(z', 256)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._lowering._driver import lower_model
from edgekit.converters._lowering._names import inner_graphs
from edgekit.converters._lowering._view import name_nodes, opset_of, view
from edgekit.errors import UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._lowering._piece import Surroundings

__all__ = ["dtypes_of", "retyped"]

# Results that can leave the operands' range.
_WRAPPING = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Neg",
        "Abs",
        "Pow",
        "Sum",
        "Mean",
        "BitShift",
        "ReduceSum",
        "ReduceProd",
        "ReduceSumSquare",
        "ReduceL1",
        "CumSum",
        "CumProd",
        "MatMul",
        "Gemm",
        "Cast",
        "CastLike",
    ]
)
# Results that are among the operands, are smaller, or are of another kind.
_SAFE = frozenset(
    [
        "Identity",
        "Reshape",
        "Transpose",
        "Concat",
        "Slice",
        "Gather",
        "GatherElements",
        "GatherND",
        "ScatterElements",
        "ScatterND",
        "Scatter",
        "TensorScatter",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Tile",
        "Pad",
        "Where",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Div",
        "Mod",
        "Clip",
        "Sign",
        "And",
        "Or",
        "Not",
        "Shape",
        "Size",
        "ConstantOfShape",
        "Constant",
        "Range",
        "OneHot",
        "TopK",
        "ArgMax",
        "ArgMin",
        "Trilu",
        "EyeLike",
        "NonZero",
        "Unique",
        "ReduceMax",
        "ReduceMin",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Compress",
        "Resize",
        "DepthToSpace",
        "SpaceToDepth",
        "ReverseSequence",
        "Flatten",
        "CenterCropPad",
        "Dropout",
        "Relu",
        "Optional",
        "If",
        "Loop",
        "Scan",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "SequenceErase",
        "SequenceLength",
        "ConcatFromSequence",
        "SplitToSequence",
        "SequenceEmpty",
    ]
)
# What has a meaning of its own for integers, and is plain arithmetic once lowered.
_COMPOSITE = frozenset(
    [
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "DynamicQuantizeLinear",
        "QuantizeLinear",
        "DequantizeLinear",
        "BitCast",
        "BitwiseNot",
        "MaxPool",
    ]
)
_ORDERED = frozenset(
    [
        "Div",
        "Mod",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Clip",
        "Sign",
        "TopK",
        "ArgMax",
        "ArgMin",
        "ReduceMax",
        "ReduceMin",
        "Cast",
        "Mean",
    ]
)
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype", "SequenceEmpty": "dtype"}


def dtypes_of(model: onnx.ModelProto) -> set[str]:
    """NumPy names of all dtypes in a model whose shapes are inferred."""
    from onnx import helper

    found = {tensor.data_type for tensor in model.graph.initializer}
    for graph in _graphs(model.graph):
        found |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
        found |= {tensor.data_type for tensor in _tensors(graph)}
    return {str(helper.tensor_dtype_to_np_dtype(kind).name) for kind in found if kind}


def retyped(model: onnx.ModelProto, carriers: Mapping[str, str], target: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy in which every tensor of a dtype in ``carriers`` has the dtype that it is mapped to, inputs and outputs included.

    Args:
        model: normalised.
        carriers: NumPy names; integers to wider or equally wide integers, floats to floats.
        target: for the message.

    Returns:
        the copy, and the operators of the source that were lowered for it.

    Raises:
        UnsupportedOperatorsError: operators that could tell an integer dtype from its carrier.
    """
    import onnx

    lowered = lower_model(model, lambda node, graph: _is_composite(node, graph, carriers), static=False)
    if lowered.refused:
        raise UnsupportedOperatorsError(target, lowered.refused)
    copy = onnx.ModelProto()
    copy.CopyFrom(lowered.model)
    copy.ir_version = max(copy.ir_version, 4)
    name_nodes(copy)
    del copy.graph.value_info[:]
    around = view(copy)
    _check(copy, around, carriers, target)
    _wrap(copy, around, carriers)
    for graph in _graphs(copy.graph):
        _convert(graph, carriers)
    return copy, lowered.expanded


def _is_composite(node: Node, graph: Graph, carriers: Mapping[str, str]) -> str:
    names = [name for name in (*node.inputs, *node.outputs) if name in graph.types]
    kinds = sorted({graph.types[name].dtype for name in names} & set(carriers))
    if node.op != "BitCast":
        kinds = [kind for kind in kinds if not kind.startswith("float")]
    return f"it takes {kinds[0]}" if node.op in _COMPOSITE and kinds else ""


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _dtype(around: Surroundings, name: str) -> str:
    from onnx import helper

    kind = around.types.get(name)
    number = kind.tensor_type.elem_type if kind is not None else 0
    return str(helper.tensor_dtype_to_np_dtype(number).name) if number else ""


def _check(model: onnx.ModelProto, around: Surroundings, carriers: Mapping[str, str], target: str) -> None:
    """Refuse what carrying integers would change."""
    refused = []
    opset = opset_of(model)
    nodes = [(node, {_dtype(around, name) for name in (*node.input, *node.output) if name}) for node in model.graph.node]
    wraps64 = any("uint64" in kinds and node.op_type in _WRAPPING for node, kinds in nodes)
    for node, kinds in nodes:
        integers = sorted(kind for kind in kinds & set(carriers) if not kind.startswith("float"))
        if not integers:
            continue
        if node.op_type not in _WRAPPING | _SAFE:
            refused.append((node.name, node.op_type, opset, f"it takes {integers[0]}, which {target} has not"))
        elif "uint64" in integers and wraps64 and node.op_type in _ORDERED:
            reason = f"it compares uint64, which {target} has not, after arithmetic that may pass 2^63"
            refused.append((node.name, node.op_type, opset, reason))
        elif any(True for _ in inner_graphs(node)):
            refused.append((node.name, node.op_type, opset, f"{integers[0]}, which {target} has not, in control flow"))
    if refused:
        raise UnsupportedOperatorsError(target, refused)


def _wrap(model: onnx.ModelProto, around: Surroundings, carriers: Mapping[str, str]) -> None:
    """Bring results of `_WRAPPING` operators back into the range of their old dtype."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type not in _WRAPPING:
            continue
        output = node.output[0]
        dtype = _dtype(around, output)
        if dtype in carriers and not dtype.startswith("float"):
            if dtype != "uint64":
                _add_wrap(model, nodes, node, output, dtype, carriers[dtype])
        elif node.op_type in ("Cast", "CastLike") and _dtype(around, node.input[0]) in carriers and dtype.startswith(("int", "uint")):
            # A wider carrier may hold what the wanted dtype cannot: wrap before it is narrowed.
            source = _dtype(around, node.input[0])
            if np.dtype(dtype).itemsize < np.dtype(carriers[source]).itemsize:
                last = nodes.pop()
                moved = f"{node.name}/wrapped"
                nodes.extend(_wrapping(model, node.input[0], moved, dtype, carriers[source]))
                last.input[0] = moved
                nodes.append(last)
    copies = [_copied(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _add_wrap(model: onnx.ModelProto, nodes: list[onnx.NodeProto], node: onnx.NodeProto, output: str, dtype: str, carrier: str) -> None:
    """Let the node write to another name, and wrap that into the old one."""
    raw = f"{node.name}/raw"
    node.output[0] = raw
    nodes.extend(_wrapping(model, raw, output, dtype, carrier))


def _wrapping(model: onnx.ModelProto, source: str, output: str, dtype: str, carrier: str) -> list[onnx.NodeProto]:
    """``Mod`` by the number of values, for signed dtypes moved by half of it."""
    from onnx import helper, numpy_helper

    limits = np.iinfo(dtype)
    size, low = int(limits.max) - int(limits.min) + 1, int(limits.min)

    def constant(name: str, value: int) -> str:
        name = f"{output}/{name}"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, carrier), name))
        return name

    modulus = constant("size", size)
    if low == 0:
        return [helper.make_node("Mod", [source, modulus], [output], name=f"{output}/Mod")]
    lowest = constant("low", low)
    return [
        helper.make_node("Sub", [source, lowest], [f"{output}/up"], name=f"{output}/Sub"),
        helper.make_node("Mod", [f"{output}/up", modulus], [f"{output}/mod"], name=f"{output}/Mod"),
        helper.make_node("Add", [f"{output}/mod", lowest], [output], name=f"{output}/Add"),
    ]


def _convert(graph: onnx.GraphProto, carriers: Mapping[str, str]) -> None:
    """Types of values, constants and attributes of one graph."""
    from onnx import helper, numpy_helper

    def number(dtype: str) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    kinds = {number(old): number(new) for old, new in carriers.items()}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        tensor.elem_type = kinds.get(tensor.elem_type, tensor.elem_type)
    for constant in _tensors(graph):
        if constant.data_type in kinds:
            array = numpy_helper.to_array(constant)
            with np.errstate(over="ignore"):
                constant.CopyFrom(numpy_helper.from_array(array.astype(carriers[array.dtype.name]), constant.name))
    for node in graph.node:
        wanted = _TYPE_ATTRIBUTES.get(node.op_type)
        for attribute in node.attribute:
            if (attribute.name == wanted and attribute.i in kinds) or (
                attribute.name in ("output_dtype", "softmax_precision", "stash_type") and attribute.i in kinds
            ):
                attribute.i = kinds[attribute.i]
