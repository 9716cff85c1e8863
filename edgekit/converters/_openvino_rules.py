"""What OpenVINO reads and then computes wrongly: nodes that are lowered before it sees them.

Each rule is one case that ONNX's own tests show, with the version that it was seen in (first input live, the rest constants, CPU). A rule
returns what is the matter, "" for any other node; a node that is not named here goes to OpenVINO as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters._lowering import CannotLowerError, Piece, Rule

__all__ = ["OWN_RULES", "known_bad", "may_be_bad"]

_Rule = Callable[[Node, Graph], str]


def known_bad(node: Node, graph: Graph) -> str:
    """Why a node must not reach OpenVINO as it is, "" when it may."""
    return next((reason for rule in _RULES.get(node.op, ()) if (reason := rule(node, graph))), "")


def may_be_bad(operators: Iterable[str]) -> bool:
    """Whether there is a rule about any of these operators."""
    return any(operator in _RULES for operator in operators)


def _dynamic_quantisation(node: Node, graph: Graph) -> str:
    """2026.4.1 rounds to another integer when the scale is computed (``test_dynamicquantizelinear``: off by one)."""
    if node.op == "DynamicQuantizeLinear" or node.input(1) not in graph.constants:
        return "OpenVINO rounds to other integers when the scale is computed"
    return ""


def _peepholes(node: Node, _: Graph) -> str:
    """2026.4.1 ignores the peepholes of an LSTM (``test_lstm_with_peepholes``: off by 0.8 %)."""
    return "OpenVINO gives other numbers with peepholes" if node.input(7) else ""


def _pool_size(node: Node, graph: Graph) -> str:
    """2026.4.1 keeps a last window that starts behind the input with ``ceil_mode`` (``test_maxpool_2d_ceil_output_size_reduce_by_one``)."""
    if not node.attrs.get("ceil_mode") or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return ""
    source = graph.types.get(node.inputs[0])
    if source is None:
        return "the size of its input is not known, and OpenVINO rounds that of its result up where ONNX does not"
    kernel = node.attrs["kernel_shape"]
    rank = len(kernel)
    pads, strides = node.attrs.get("pads", [0] * 2 * rank), node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    for axis in range(rank):
        size = source.shape[2 + axis] + pads[axis]
        last = math.ceil((size + pads[rank + axis] - dilations[axis] * (kernel[axis] - 1) - 1) / strides[axis])
        if last * strides[axis] >= size:
            return "OpenVINO keeps a window that begins behind the input"
    return ""


def _nothing(node: Node, graph: Graph) -> str:
    """2026.4.1 answers the largest finite number, not infinity, for an extreme of no elements (``test_reduce_max_empty_set``)."""
    found = graph.types.get(node.inputs[0])
    return "OpenVINO gives a finite number for a reduction of nothing" if found is not None and 0 in found.shape else ""


def _resize(node: Node, _: Graph) -> str:
    """2026.4.1 ignores ``exclude_outside``, ``antialias`` and ``keep_aspect_ratio_policy`` (``test_resize_downsample_scales_cubic_antialias`` …)."""
    asked = [name for name in ("exclude_outside", "antialias") if node.attrs.get(name)]
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        asked.append("keep_aspect_ratio_policy")
    return f"OpenVINO leaves {' and '.join(asked)} out of account" if asked else ""


_RULES: dict[str, Sequence[_Rule]] = {
    "DynamicQuantizeLinear": (_dynamic_quantisation,),
    "QuantizeLinear": (_dynamic_quantisation,),
    "LSTM": (_peepholes,),
    "MaxPool": (_pool_size,),
    "AveragePool": (_pool_size,),
    "ReduceMax": (_nothing,),
    "ReduceMin": (_nothing,),
    "Resize": (_resize,),
}


def _exact_quantisation(piece: Piece) -> None:
    """``QuantizeLinear`` with a computed scale: the ratio, which OpenVINO takes by the reciprocal, is corrected before it is rounded."""
    from onnx import helper

    tensor, scale, *zero = piece.node.inputs
    if piece.around.dtype(tensor) != "float32" or piece.around.shape(scale):
        raise CannotLowerError("a computed scale that is not one float32 number")
    dtype = np.dtype(piece.around.dtype(zero[0])) if zero and zero[0] else np.dtype(np.uint8)
    rounded = piece.op("Round", _divided(piece, tensor, scale))
    if zero and zero[0]:
        rounded = piece.op("Add", rounded, piece.op("Cast", zero[0], to=1))
    limits = np.iinfo(dtype)
    kept = piece.op("Min", piece.op("Max", rounded, np.float32(limits.min)), np.float32(limits.max))
    piece.op("Cast", kept, to=helper.np_dtype_to_tensor_dtype(dtype), into=piece.node.outputs[0])


def _divided(piece: Piece, tensor: str, scale: str) -> str:
    """The quotient as IEEE 754 rounds it: a first one plus its remainder over the divisor.

    The remainder ``x - q s`` comes out exact because both factors are split into halves of 12 bits, whose products fit float32 (Dekker 1971).
    """
    first = piece.op("Div", tensor, scale)
    rest = tensor
    halves = [_halves(piece, each) for each in (first, scale)]
    for q in halves[0]:
        for s in halves[1]:
            rest = piece.op("Sub", rest, piece.op("Mul", q, s))
    return piece.op("Add", first, piece.op("Div", rest, scale))


def _halves(piece: Piece, tensor: str) -> tuple[str, str]:
    """Two numbers of at most 12 bits that add up to a float32."""
    grown = piece.op("Mul", tensor, np.float32(4097))
    high = piece.op("Sub", grown, piece.op("Sub", grown, tensor))
    return high, piece.op("Sub", tensor, high)


OWN_RULES: Mapping[str, Rule] = {"QuantizeLinear": _exact_quantisation}
"""Rewrites that only OpenVINO needs."""
