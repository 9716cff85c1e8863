"""Keep TensorFlow's converter from quantising what an int8 build keeps in float.

The converter decides tensor by tensor: an operator whose inputs and result have ranges becomes int8, whether or not that was wanted; operators that move values
(concatenation, maximum) hand a range from one operand to all others, which would clip them. Between a float layer and a quantised tensor stands therefore
``(-x) * -1``: exact, cheap, and no range passes through it, because the converter has no int8 negation (TensorFlow 2.21, `tfl.neg`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization import ModelIndex

if TYPE_CHECKING:
    import onnx

__all__ = ["with_barriers"]

# Kept in float, they would be quantised as soon as one input is: their operands share a scale, or their result has one by definition.
_CATCHING = frozenset({"Concat", "Max", "Min", "Where", "Sigmoid", "Tanh", "Softmax", "LogSoftmax"})


def with_barriers(model: onnx.ModelProto, integer: Collection[str]) -> onnx.ModelProto:
    """A copy with a barrier wherever float meets int8.

    Args:
        model: int8 form, see `edgekit.converters.quantization`.
        integer: names of the nodes that are to be int8.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = ModelIndex(copy)
    minus = index.add_constant("barrier_minus_one", np.asarray(-1, np.float32))
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}

    def barrier(tensor: str) -> str:
        if tensor not in made:
            made[tensor] = f"{tensor}_kept"
            nodes.append(onnx.helper.make_node("Neg", [tensor], [f"{tensor}_negated"], f"{tensor}/barrier_neg"))
            nodes.append(onnx.helper.make_node("Mul", [f"{tensor}_negated", minus], [made[tensor]], f"{tensor}/barrier_mul"))
        return made[tensor]

    for node in [onnx.NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node]:
        if node.op_type == "QuantizeLinear":
            source = index.producer(node.input[0])
            if source is not None and source.name not in integer:
                node.input[0] = barrier(node.input[0])
        elif node.op_type in _CATCHING and node.name not in integer:
            for position, name in enumerate(node.input):
                source = index.producer(name)
                if source is not None and source.op_type == "DequantizeLinear":
                    node.input[position] = barrier(name)
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)
