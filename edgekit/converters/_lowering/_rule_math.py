"""Element-wise and small linear algebra: each an identity of arithmetic."""

from __future__ import annotations

import itertools
import math

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_MAX_STEPS = 256
"""Longest axis that a running product goes along."""
_MAX_DETERMINANT = 4
"""Largest matrix whose determinant is written out: 24 products."""


def _scalar(piece: Piece, value: float, tensor: str = "") -> np.ndarray:
    return np.asarray(value, piece.around.dtype(tensor or piece.node.inputs[0]))


def _out(piece: Piece) -> str:
    return piece.node.outputs[0]


# --- elementary functions -----------------------------------------------------------------------------------------------------------------


@lowers("IsNaN")
def is_nan(piece: Piece) -> None:
    """NaN alone differs from itself."""
    tensor = piece.node.inputs[0]
    piece.op("Not", piece.op("Equal", tensor, tensor), into=_out(piece))


@lowers("IsInf")
def is_inf(piece: Piece) -> None:
    """Equal to one of the infinities that are asked for."""
    tensor = piece.node.inputs[0]
    attrs = piece.node.attrs
    signs = [sign for sign, name in ((1.0, "detect_positive"), (-1.0, "detect_negative")) if attrs.get(name, 1)]
    if not signs:
        raise CannotLowerError("it detects nothing")
    if len(signs) == 2:
        piece.op("Equal", piece.op("Abs", tensor), _scalar(piece, math.inf), into=_out(piece))
    else:
        piece.op("Equal", tensor, _scalar(piece, signs[0] * math.inf), into=_out(piece))


@lowers("Tan")
def tan(piece: Piece) -> None:
    """Sine over cosine."""
    tensor = piece.node.inputs[0]
    piece.op("Div", piece.op("Sin", tensor), piece.op("Cos", tensor), into=_out(piece))


@lowers("Sinh")
def sinh(piece: Piece) -> None:
    """``(e - 1/e) / 2`` with e = exp(x); near zero, where that cancels, x + x^3/6 + x^5/120."""
    tensor = piece.node.inputs[0]
    grown, shrunk = piece.op("Exp", tensor), piece.op("Exp", piece.op("Neg", tensor))
    far = piece.op("Mul", piece.op("Sub", grown, shrunk), _scalar(piece, 0.5))
    square = piece.op("Mul", tensor, tensor)
    inner = piece.op("Add", piece.op("Mul", square, _scalar(piece, 1 / 120)), _scalar(piece, 1 / 6))
    near = piece.op("Mul", tensor, piece.op("Add", piece.op("Mul", square, inner), _scalar(piece, 1.0)))
    piece.op("Where", piece.op("Less", square, _scalar(piece, 0.1)), near, far, into=_out(piece))


@lowers("Cosh")
def cosh(piece: Piece) -> None:
    """``(exp(x) + exp(-x)) / 2``."""
    tensor = piece.node.inputs[0]
    grown, shrunk = piece.op("Exp", tensor), piece.op("Exp", piece.op("Neg", tensor))
    piece.op("Mul", piece.op("Add", grown, shrunk), _scalar(piece, 0.5), into=_out(piece))


@lowers("Asinh")
def asinh(piece: Piece) -> None:
    """``sign(x) log(|x| + sqrt(x^2 + 1))``; near zero, where that cancels, x - x^3/6 + 3 x^5/40."""
    tensor = piece.node.inputs[0]
    size = piece.op("Abs", tensor)
    square = piece.op("Mul", tensor, tensor)
    root = piece.op("Sqrt", piece.op("Add", square, _scalar(piece, 1.0)))
    far = piece.op("Mul", piece.op("Sign", tensor), piece.op("Log", piece.op("Add", size, root)))
    inner = piece.op("Sub", piece.op("Mul", square, _scalar(piece, 3 / 40)), _scalar(piece, 1 / 6))
    near = piece.op("Mul", tensor, piece.op("Add", piece.op("Mul", square, inner), _scalar(piece, 1.0)))
    piece.op("Where", piece.op("Less", square, _scalar(piece, 0.01)), near, far, into=_out(piece))


@lowers("Acosh")
def acosh(piece: Piece) -> None:
    """``log(x + sqrt(x - 1) sqrt(x + 1))``."""
    tensor = piece.node.inputs[0]
    roots = [piece.op("Sqrt", piece.op(op, tensor, _scalar(piece, 1.0))) for op in ("Sub", "Add")]
    piece.op("Log", piece.op("Add", tensor, piece.op("Mul", *roots)), into=_out(piece))


@lowers("Atanh")
def atanh(piece: Piece) -> None:
    """``log((1 + x) / (1 - x)) / 2``; near zero, where that cancels, x + x^3/3 + x^5/5."""
    tensor = piece.node.inputs[0]
    one = _scalar(piece, 1.0)
    ratio = piece.op("Div", piece.op("Add", one, tensor), piece.op("Sub", one, tensor))
    far = piece.op("Mul", piece.op("Log", ratio), _scalar(piece, 0.5))
    square = piece.op("Mul", tensor, tensor)
    inner = piece.op("Add", piece.op("Mul", square, _scalar(piece, 1 / 5)), _scalar(piece, 1 / 3))
    near = piece.op("Mul", tensor, piece.op("Add", piece.op("Mul", square, inner), one))
    piece.op("Where", piece.op("Less", square, _scalar(piece, 0.01)), near, far, into=_out(piece))


@lowers("Celu")
def celu(piece: Piece) -> None:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``; ONNX's own function is written for float32 only."""
    tensor = piece.node.inputs[0]
    alpha, zero = _scalar(piece, float(piece.node.attrs.get("alpha", 1.0))), _scalar(piece, 0.0)
    grown = piece.op("Sub", piece.op("Exp", piece.op("Div", tensor, alpha)), _scalar(piece, 1.0))
    below = piece.op("Min", piece.op("Mul", grown, alpha), zero)
    piece.op("Add", piece.op("Max", tensor, zero), below, into=_out(piece))


# --- along an axis ------------------------------------------------------------------------------------------------------------------------


@lowers("CumProd", "CumSum")
def cumulative(piece: Piece) -> None:
    """Doubling steps: after step k every place holds the product (sum) of the last 2^k elements."""
    tensor, axis_name = piece.node.inputs
    shape = piece.around.shape(tensor)
    found = piece.around.constant(axis_name)
    if found is None:
        raise CannotLowerError("its axis is computed")
    axis = int(found.reshape(-1)[0]) % len(shape)
    size = shape[axis]
    op, neutral = ("Mul", 1) if piece.node.op == "CumProd" else ("Add", 0)
    reverse = bool(piece.node.attrs.get("reverse", 0))
    result = tensor
    if piece.node.attrs.get("exclusive", 0):
        result = _shifted(piece, result, shape, axis, 1, neutral, reverse)
    step = 1
    while step < size:
        result = piece.op(op, result, _shifted(piece, result, shape, axis, step, neutral, reverse))
        step *= 2
    piece.op("Identity", result, into=_out(piece))


def _shifted(piece: Piece, tensor: str, shape: tuple[int, ...], axis: int, step: int, neutral: int, reverse: bool) -> str:
    """The tensor moved by ``step`` along an axis, neutral elements where it came from."""
    filler = np.full(
        [min(step, size) if each == axis else size for each, size in enumerate(shape)], neutral, piece.around.dtype(piece.node.inputs[0])
    )
    if step >= shape[axis]:
        return piece.constant(filler)
    first, last = (step, shape[axis]) if reverse else (0, shape[axis] - step)
    kept = piece.op("Slice", tensor, piece.ints(first), piece.ints(last), piece.ints(axis))
    parts: list[str | np.ndarray] = [kept, filler] if reverse else [filler, kept]
    return piece.op("Concat", *parts, axis=axis)


@lowers("Det")
def determinant(piece: Piece) -> None:
    """The sum over all permutations (Leibniz), for matrices up to 4 by 4."""
    tensor = piece.node.inputs[0]
    shape = piece.around.shape(tensor)
    size = shape[-1]
    if size > _MAX_DETERMINANT:
        raise CannotLowerError(f"matrices of {size} rows; up to {_MAX_DETERMINANT} are written out")
    rows = [piece.op("Gather", tensor, np.asarray(row, np.int64), axis=-2) for row in range(size)]
    entries = [[piece.op("Gather", row, np.asarray(column, np.int64), axis=-1) for column in range(size)] for row in rows]
    result = ""
    for order in itertools.permutations(range(size)):
        odd = sum(a > b for a, b in itertools.combinations(order, 2)) % 2
        product = entries[0][order[0]]
        for row in range(1, size):
            product = piece.op("Mul", product, entries[row][order[row]])
        result = piece.op("Sub" if odd else "Add", result, product) if result else product
    piece.op("Identity", result, into=_out(piece))


@lowers("MatMul")
def matmul(piece: Piece) -> None:
    """A vector becomes a matrix of one row or column, and the result loses that axis again."""
    left, right = piece.node.inputs
    ranks = [len(piece.around.shape(name)) for name in (left, right)]
    if min(ranks) > 1:
        raise CannotLowerError("it is a product of matrices")
    row = piece.unsqueeze(left, [0]) if ranks[0] == 1 else left
    column = piece.unsqueeze(right, [1]) if ranks[1] == 1 else right
    product = piece.op("MatMul", row, column)
    piece.squeeze(product, [axis for axis, rank in ((-2, ranks[0]), (-1, ranks[1])) if rank == 1], into=_out(piece))


@lowers("ReduceMax", "ReduceMin")
def reduce_truth(piece: Piece) -> None:
    """Truth values as the integers 0 and 1."""
    tensor = piece.node.inputs[0]
    if piece.around.dtype(tensor) != "bool":
        raise CannotLowerError("it reduces numbers")
    wide = piece.op("Cast", tensor, to=6)
    result = piece.op(piece.node.op, wide, *piece.node.inputs[1:], **piece.node.attrs)
    piece.op("Cast", result, to=9, into=_out(piece))


# --- bits ---------------------------------------------------------------------------------------------------------------------------------


@lowers("BitwiseNot")
def bitwise_not(piece: Piece) -> None:
    """``-1 - x`` for signed numbers, the largest minus x for unsigned ones."""
    tensor = piece.node.inputs[0]
    kind = np.iinfo(piece.around.dtype(tensor))
    top = kind.max if kind.min == 0 else -1
    piece.op("Sub", np.asarray(top, kind.dtype), tensor, into=_out(piece))


@lowers("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(piece: Piece) -> None:
    """Bit by bit in int64, along an axis of its own; the sign is the weight of the highest bit (two's complement)."""
    from onnx import helper

    left, right = piece.node.inputs
    kind = np.iinfo(piece.around.dtype(left))
    if kind.dtype == np.uint64:
        raise CannotLowerError("uint64 has no wider type to be taken apart in")
    kind_number = helper.np_dtype_to_tensor_dtype(kind.dtype)
    if kind.bits < 64:
        wide = [piece.op("Cast", name, to=7) for name in (left, right)]
        total = _combined(piece, wide[0], wide[1], kind.bits, kind.min < 0)
        piece.op("Cast", total, to=kind_number, into=_out(piece))
        return
    # In halves: sums of bits beyond 2^53 would not be exact everywhere.
    size = np.asarray(1 << 32, np.int64)
    lows = [piece.op("Mod", name, size) for name in (left, right)]
    highs = [piece.op("Div", piece.op("Sub", name, low), size) for name, low in zip((left, right), lows, strict=True)]
    top = piece.op("Mul", _combined(piece, highs[0], highs[1], 32, True), size)
    piece.op("Add", top, _combined(piece, lows[0], lows[1], 32, False), into=_out(piece))


def _combined(piece: Piece, left: str, right: str, count: int, signed: bool) -> str:
    """The operator on the lowest bits of two int64 tensors."""
    ranks = [len(piece.around.shape(name)) for name in piece.node.inputs]
    a, b = (_bits(piece, name, ranks[index], count) for index, name in enumerate((left, right)))
    match piece.node.op:
        case "BitwiseAnd":
            bits = piece.op("Mul", a, b)
        case "BitwiseXor":
            bits = piece.op("Abs", piece.op("Sub", a, b))
        case _:
            bits = piece.op("Sub", piece.op("Add", a, b), piece.op("Mul", a, b))
    weights = [1 << bit for bit in range(count)]
    if signed:
        weights[-1] = -weights[-1]
    return piece.reduce("ReduceSum", piece.op("Mul", bits, np.array(weights, np.int64)), [-1])


def _bits(piece: Piece, wide: str, rank: int, count: int) -> str:
    """0 or 1 for every bit, on a new last axis, lowest first."""
    unsigned = piece.op("Mod", wide, np.asarray(1 << count, np.int64))  # Mod follows the divisor's sign
    apart = piece.unsqueeze(unsigned, [rank])
    shifted = piece.op("Div", apart, np.array([1 << bit for bit in range(count)], np.int64))
    return piece.op("Mod", shifted, np.asarray(2, np.int64))


@lowers("BitCast")
def bit_cast(piece: Piece) -> None:
    """Between the signed and unsigned integers of one width: what is above the largest signed number becomes negative, and back."""
    from onnx import helper

    tensor = piece.node.inputs[0]
    source = np.dtype(piece.around.dtype(tensor))
    wanted = helper.tensor_dtype_to_np_dtype(int(piece.node.attrs["to"]))
    if source == wanted:
        piece.op("Identity", tensor, into=_out(piece))
        return
    if source.kind not in "iu" or wanted.kind not in "iu" or source.itemsize != wanted.itemsize or source.itemsize == 8:
        raise CannotLowerError(f"the bits of {source} as {wanted}")
    wide = piece.op("Cast", tensor, to=7)
    size = np.asarray(1 << 8 * source.itemsize, np.int64)
    if wanted.kind == "u":
        moved = piece.op("Where", piece.op("Less", wide, np.asarray(0, np.int64)), piece.op("Add", wide, size), wide)
    else:
        top = np.asarray(np.iinfo(wanted).max, np.int64)
        moved = piece.op("Where", piece.op("Greater", wide, top), piece.op("Sub", wide, size), wide)
    piece.op("Cast", moved, to=helper.np_dtype_to_tensor_dtype(wanted), into=_out(piece))


@lowers("Dropout")
def dropout(piece: Piece) -> None:
    """Nothing is dropped in inference, or at ratio zero; the mask is then all true."""
    tensor = piece.node.inputs[0]
    ratio = piece.around.constant(piece.node.input(1)) if piece.node.input(1) else None
    training = piece.around.constant(piece.node.input(2)) if piece.node.input(2) else np.asarray(False)
    if training is None or (training.any() and (ratio is None or ratio.any())):
        raise CannotLowerError("it drops at random: training mode")
    if _out(piece):
        piece.op("Identity", tensor, into=_out(piece))
    if len(piece.node.outputs) > 1 and piece.node.outputs[1]:
        piece.op("Identity", np.ones(piece.around.shape(tensor), bool), into=piece.node.outputs[1])


@lowers("Mean", "Sum", "Max", "Min")
def variadic(piece: Piece) -> None:
    """One input after the other."""
    op = {"Mean": "Add", "Sum": "Add", "Max": "Max", "Min": "Min"}[piece.node.op]
    names = piece.node.inputs
    if op == piece.node.op and len(names) == 2:
        _extreme(piece)
        return
    result = names[0]
    for name in names[1:]:
        result = piece.op(op, result, name)
    if piece.node.op == "Mean":
        result = piece.op("Div", result, _scalar(piece, float(len(names))))
    piece.op("Identity", result, into=_out(piece))


def _extreme(piece: Piece) -> None:
    """Of two integers the larger or smaller one, by comparison; a float's NaN would be lost."""
    left, right = piece.node.inputs
    if np.dtype(piece.around.dtype(left)).kind not in "iu":
        raise CannotLowerError("NaN would be lost")
    piece.op("Where", piece.op("Greater" if piece.node.op == "Max" else "Less", left, right), left, right, into=_out(piece))
