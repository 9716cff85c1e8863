"""Integer arithmetic with scales and zero points, in floats that hold every value exactly."""

from __future__ import annotations

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_EXACT = 256
"""Products of two 8-bit numbers less their zero points are below 2^16 in size; float32 adds up 2^8 of them exactly (24 bits of mantissa)."""
_FLOAT, _INT32 = 1, 6


def _centred(piece: Piece, tensor: str, zero: str, axis: int | None = None) -> str:
    """The integers less their zero point, as float32; a vector of zero points lies along ``axis``."""
    wide = piece.op("Cast", tensor, to=_FLOAT)
    if not zero:
        return wide
    return piece.op("Sub", wide, _along(piece, piece.op("Cast", zero, to=_FLOAT), zero, tensor, axis))


def _along(piece: Piece, values: str, like: str, tensor: str, axis: int | None) -> str:
    """A scalar as it is, a vector along ``axis`` of a tensor."""
    size = piece.around.shape(like)
    if axis is None or len(size) != 1 or size[0] == 1:
        return values
    rank = len(piece.around.shape(tensor))
    return piece.op("Reshape", values, np.array([-1 if each == axis % rank else 1 for each in range(rank)], np.int64))


def _requantised(piece: Piece, real: str, scale: str, zero: str) -> None:
    """``saturate(round_half_to_even(real / scale) + zero)``."""
    from onnx import helper

    if len(piece.around.shape(scale)) > 1 or (piece.around.shape(scale) and piece.around.shape(scale)[0] > 1):
        raise CannotLowerError("an output scale for each channel")
    kind = np.iinfo(piece.around.dtype(zero))
    rounded = piece.op("Round", piece.op("Div", real, piece.op("Reshape", piece.op("Cast", scale, to=_FLOAT), np.empty(0, np.int64))))
    moved = piece.op("Add", rounded, piece.op("Reshape", piece.op("Cast", zero, to=_FLOAT), np.empty(0, np.int64)))
    kept = piece.op("Min", piece.op("Max", moved, np.float32(kind.min)), np.float32(kind.max))
    piece.op("Cast", kept, to=helper.np_dtype_to_tensor_dtype(kind.dtype), into=piece.node.outputs[0])


def _products(piece: Piece, left: str, right: str, depth: int) -> list[str]:
    """Matrix products of at most `_EXACT` terms that add up to the whole, each exact in float32."""
    if depth <= _EXACT:
        return [piece.op("MatMul", left, right)]
    found = []
    for start in range(0, depth, _EXACT):
        bounds = piece.ints(start), piece.ints(min(start + _EXACT, depth))
        parts = [piece.op("Slice", name, *bounds, piece.ints(axis)) for name, axis in ((left, -1), (right, -2))]
        found.append(piece.op("MatMul", *parts))
    return found


@lowers("MatMulInteger")
def matmul_integer(piece: Piece) -> None:
    """Exact float32 products of 256 terms, added up in int32."""
    left, right = piece.node.inputs[:2]
    ranks = [len(piece.around.shape(name)) for name in (left, right)]
    if min(ranks) < 2:
        raise CannotLowerError("a vector among its inputs")
    rows, columns = _centred(piece, left, piece.node.input(2), -2), _centred(piece, right, piece.node.input(3), -1)
    parts = [piece.op("Cast", part, to=_INT32) for part in _products(piece, rows, columns, piece.around.shape(left)[-1])]
    result = parts[0]
    for part in parts[1:]:
        result = piece.op("Add", result, part)
    piece.op("Identity", result, into=piece.node.outputs[0])


@lowers("QLinearMatMul")
def qlinear_matmul(piece: Piece) -> None:
    """The real numbers that the integers stand for are multiplied, and written as integers again."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = piece.node.inputs
    if min(len(piece.around.shape(name)) for name in (a, b)) < 2:
        raise CannotLowerError("a vector among its inputs")
    left, right = _centred(piece, a, a_zero, -2), _centred(piece, b, b_zero, -1)
    parts = _products(piece, left, right, piece.around.shape(a)[-1])
    total = parts[0]
    for part in parts[1:]:
        total = piece.op("Add", total, part)
    scales = [
        _along(piece, piece.op("Cast", name, to=_FLOAT), name, like, axis) for name, like, axis in ((a_scale, a, -2), (b_scale, b, -1))
    ]
    scale = piece.op("Mul", *scales)
    _requantised(piece, piece.op("Mul", total, scale), y_scale, y_zero)


@lowers("ConvInteger")
def conv_integer(piece: Piece) -> None:
    """A float32 convolution of at most 256 terms is exact."""
    x, w = piece.node.inputs[:2]
    terms = int(np.prod(piece.around.shape(w)[1:]))
    if terms > _EXACT:
        raise CannotLowerError(f"{terms} products for each result; float32 is exact up to {_EXACT}")
    left, right = _centred(piece, x, piece.node.input(2)), _centred(piece, w, piece.node.input(3), 0)
    piece.op("Cast", piece.op("Conv", left, right, **piece.node.attrs), to=_INT32, into=piece.node.outputs[0])


@lowers("QLinearConv")
def qlinear_conv(piece: Piece) -> None:
    """The real numbers that the integers stand for are convolved, and written as integers again."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = piece.node.inputs
    left, right = _centred(piece, x, x_zero), _centred(piece, w, w_zero, 0)
    inputs = [left, right, *(piece.op("Cast", name, to=_FLOAT) for name in bias if name)]
    total = piece.op("Conv", *inputs, **piece.node.attrs)
    scale = piece.op("Mul", x_scale, _along(piece, w_scale, w_scale, x, 1))
    _requantised(piece, piece.op("Mul", total, scale), y_scale, y_zero)
