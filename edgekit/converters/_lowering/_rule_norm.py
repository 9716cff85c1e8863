"""Normalisations, and the step between real numbers and integers."""

from __future__ import annotations

import math

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []


def _vector(piece: Piece, name: str, rank: int, axis: int = 1) -> str:
    """A vector along one axis of a tensor."""
    return piece.op("Reshape", name, np.array([-1 if each == axis else 1 for each in range(rank)], np.int64))


def _normalised(piece: Piece, tensor: str, mean: str, variance: str, epsilon: float) -> str:
    """``(tensor - mean) / sqrt(variance + epsilon)``."""
    dtype = piece.around.dtype(piece.node.inputs[0])
    deviation = piece.op("Sqrt", piece.op("Add", variance, np.asarray(epsilon, dtype)))
    return piece.op("Div", piece.op("Sub", tensor, mean), deviation)


@lowers("BatchNormalization")
def batch_normalization(piece: Piece) -> None:
    """With the statistics that were learnt or, in training, with those of the batch, which then flow into running ones."""
    node = piece.node
    tensor, scale, bias, mean, variance = node.inputs
    rank = len(piece.around.shape(tensor))
    training = bool(node.attrs.get("training_mode", 0))
    if not training and any(node.outputs[1:]):
        raise CannotLowerError("statistics as outputs although it does not train")
    given = mean, variance
    if training:
        axes = [axis for axis in range(rank) if axis != 1]
        mean = piece.reduce("ReduceMean", tensor, axes)
        apart = piece.op("Sub", tensor, _vector(piece, mean, rank))
        variance = piece.reduce("ReduceMean", piece.op("Mul", apart, apart), axes)
    whole = _normalised(piece, tensor, _vector(piece, mean, rank), _vector(piece, variance, rank), float(node.attrs.get("epsilon", 1e-5)))
    scaled = piece.op("Mul", whole, _vector(piece, scale, rank))
    piece.op("Add", scaled, _vector(piece, bias, rank), into=node.outputs[0])
    momentum = float(node.attrs.get("momentum", 0.9))
    for old, new, output in zip(given, (mean, variance), node.outputs[1:], strict=False):
        if output:
            dtype = piece.around.dtype(old)
            parts = [piece.op("Mul", each, np.asarray(part, dtype)) for each, part in ((old, momentum), (new, 1 - momentum))]
            piece.op("Add", *parts, into=output)


@lowers("InstanceNormalization")
def instance_normalization(piece: Piece) -> None:
    """Each channel of each sample by its own statistics."""
    tensor, scale, bias = piece.node.inputs
    rank = len(piece.around.shape(tensor))
    axes = list(range(2, rank))
    mean = piece.reduce("ReduceMean", tensor, axes, keepdims=True)
    apart = piece.op("Sub", tensor, mean)
    variance = piece.reduce("ReduceMean", piece.op("Mul", apart, apart), axes, keepdims=True)
    whole = _normalised(piece, tensor, mean, variance, float(piece.node.attrs.get("epsilon", 1e-5)))
    piece.op("Add", piece.op("Mul", whole, _vector(piece, scale, rank)), _vector(piece, bias, rank), into=piece.node.outputs[0])


@lowers("LRN")
def local_response(piece: Piece) -> None:
    """Divide by a power of the squares of neighbouring channels, which slices add up."""
    node, attrs = piece.node, piece.node.attrs
    tensor = node.inputs[0]
    shape, dtype = piece.around.shape(tensor), piece.around.dtype(tensor)
    size = int(attrs["size"])
    before, after = (size - 1) // 2, size // 2
    square = piece.op("Mul", tensor, tensor)
    blocks = [np.zeros([count if axis == 1 else each for axis, each in enumerate(shape)], dtype) for count in (before, after)]
    padded = piece.op("Concat", *([blocks[0]] if before else []), square, *([blocks[1]] if after else []), axis=1)
    total = ""
    for start in range(size):
        part = piece.op("Slice", padded, piece.ints(start), piece.ints(start + shape[1]), piece.ints(1))
        total = piece.op("Add", total, part) if total else part
    share = np.asarray(float(attrs.get("alpha", 1e-4)) / size, dtype)
    base = piece.op("Add", piece.op("Mul", total, share), np.asarray(float(attrs.get("bias", 1.0)), dtype))
    piece.op("Div", tensor, piece.op("Pow", base, np.asarray(float(attrs.get("beta", 0.75)), dtype)), into=node.outputs[0])


@lowers("LpNormalization")
def lp_normalization(piece: Piece) -> None:
    """Divide by the norm along an axis; where that is zero, ONNX Runtime gives zero."""
    tensor = piece.node.inputs[0]
    dtype = piece.around.dtype(tensor)
    axis, power = int(piece.node.attrs.get("axis", -1)), int(piece.node.attrs.get("p", 2))
    if power == 1:
        norm = piece.reduce("ReduceSum", piece.op("Abs", tensor), [axis], keepdims=True)
    else:
        norm = piece.op("Sqrt", piece.reduce("ReduceSum", piece.op("Mul", tensor, tensor), [axis], keepdims=True))
    safe = piece.op("Where", piece.op("Equal", norm, np.zeros((), dtype)), np.ones((), dtype), norm)
    piece.op("Div", tensor, safe, into=piece.node.outputs[0])


@lowers("QuantizeLinear")
def quantize(piece: Piece) -> None:
    """``saturate(round_half_to_even(x / scale) + zero)`` for integers of 8 and 16 bits."""
    from onnx import helper

    node = piece.node
    tensor, scale = node.inputs[:2]
    output = piece.around.types[node.outputs[0]].tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(output)
    if dtype.kind not in "iu" or dtype.itemsize > 2 or dtype.name in ("int4", "uint4", "int2", "uint2"):
        raise CannotLowerError(f"to {dtype}")
    limits = np.iinfo(dtype)
    ratio = piece.op("Div", tensor, _spread(piece, scale, tensor))
    if piece.around.dtype(tensor) != "float32":
        ratio = piece.op("Cast", ratio, to=1)
    moved = piece.op("Round", ratio)
    if node.input(2):
        moved = piece.op("Add", moved, piece.op("Cast", _spread(piece, node.input(2), tensor), to=1))
    kept = piece.op("Min", piece.op("Max", moved, np.float32(limits.min)), np.float32(limits.max))
    piece.op("Cast", kept, to=output, into=node.outputs[0])


@lowers("DequantizeLinear")
def dequantize(piece: Piece) -> None:
    """``(x - zero) * scale``."""
    node = piece.node
    tensor, scale = node.inputs[:2]
    output = piece.around.types[node.outputs[0]].tensor_type.elem_type
    wide = piece.op("Cast", tensor, to=1)
    if node.input(2):
        wide = piece.op("Sub", wide, piece.op("Cast", _spread(piece, node.input(2), tensor), to=1))
    real = piece.op("Mul", wide, piece.op("Cast", _spread(piece, scale, tensor), to=1))
    piece.op("Cast", real, to=output, into=node.outputs[0])


def _spread(piece: Piece, name: str, tensor: str) -> str:
    """A scale or zero point in a form that broadcasts over the tensor: one value, a vector along an axis, or blocks."""
    shape, size = piece.around.shape(tensor), piece.around.shape(name)
    axis = int(piece.node.attrs.get("axis", 1))
    block = int(piece.node.attrs.get("block_size", 0))
    if math.prod(size) == 1:
        return piece.op("Reshape", name, np.empty(0, np.int64))
    if not block:
        return _vector(piece, name, len(shape), axis % len(shape))
    axis %= len(shape)
    places = np.arange(shape[axis]) // block
    return piece.op("Gather", name, places.astype(np.int64), axis=axis)
