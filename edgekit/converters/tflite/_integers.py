"""Whole-number arithmetic: division, powers and bits, where the kernels know int32 and little more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._carry import carrier, convert, narrow, ordered, widen
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._math import apply, combine
from edgekit.converters.tflite._rules import INTEGERS, REALS, dtypes, operator

__all__: list[str] = []


def _same_dtype(node: Node, graph: Graph) -> str:
    """Dtype of both operands is the same."""
    kinds = {graph.types[name].dtype for name in node.inputs}
    return "" if len(kinds) == 1 else f"operands are {' and '.join(sorted(kinds))}"


# --- division --------------------------------------------------------------------------------------------------------------------------------


@operator("Div", rules=(dtypes(*REALS),))
def divide(node: Node, ctx: Context) -> None:
    """Quotient; that of integers is cut towards zero."""
    tf, kind = ctx.tf, ctx.logical(node.outputs[0])

    def quotient(a: Any, b: Any) -> Any:
        if carrier(kind) != "int64":
            return tf.raw_ops.Div(x=widen(tf, a), y=widen(tf, b))
        return _divide_wide(tf, a, b, kind)

    combine(node, ctx, quotient, after=narrow)


def _divide_wide(tf: Any, a: Any, b: Any, logical: str) -> Any:
    """Quotient of int64 carriers, for which there is a remainder and no division."""
    if logical == "uint64":
        return _divide_unsigned(tf, a, b)
    return _exact(tf, a - _remainder(tf, a, b, truncated=logical == "int64"), b)


def _remainder(tf: Any, a: Any, b: Any, *, truncated: bool) -> Any:
    """Remainder with the divisor's sign, or with the dividend's when the quotient is cut towards zero."""
    rest = tf.math.floormod(a, b)
    if not truncated:
        return rest
    zero = tf.zeros((), rest.dtype)
    crossed = tf.logical_and(tf.not_equal(rest, zero), tf.not_equal(tf.less(a, zero), tf.less(b, zero)))
    return tf.where(crossed, rest - b, rest)


def _exact(tf: Any, a: Any, b: Any) -> Any:
    """``a / b`` of int64 where it leaves no rest. A float32 quotient has 22 right bits; each round finds that many of what is left."""
    wide = tf.cast(b, "float32")
    quotient = tf.cast(tf.round(tf.cast(a, "float32") / wide), "int64")
    for _ in range(3):
        quotient += tf.cast(tf.round(tf.cast(a - quotient * b, "float32") / wide), "int64")
    return quotient


def _divide_unsigned(tf: Any, a: Any, b: Any) -> Any:
    """Quotient of uint64 in int64: by long division with the dividend's half, which has no top bit."""
    zero, one, two = (tf.constant(value, tf.int64) for value in (0, 1, 2))
    flipped = tf.where(tf.less(a, zero), ordered(tf, a, "uint64"), a)
    half = _exact(tf, flipped - tf.math.floormod(flipped, two), two) + tf.where(tf.less(a, zero), tf.constant(2**62, tf.int64), zero)
    small = tf.where(tf.less(b, zero), one, b)  # a divisor with the top bit goes in once or not at all
    double = two * _exact(tf, half - tf.math.floormod(half, small), small)
    double = tf.where(tf.less(b, zero), tf.zeros_like(double), double)
    rest = ordered(tf, a - double * b, "uint64")
    return double + tf.where(tf.greater_equal(rest, ordered(tf, b, "uint64")), one, zero)


@operator("Mod", rules=(dtypes(*REALS), _same_dtype))
def modulo(node: Node, ctx: Context) -> None:
    """Remainder with the divisor's sign (``fmod=0``) or the dividend's (``fmod=1``)."""
    tf, kind = ctx.tf, ctx.logical(node.outputs[0])
    truncated = bool(node.attrs.get("fmod", 0))

    def remainder(a: Any, b: Any) -> Any:
        if kind == "uint64":
            return a - b * _divide_unsigned(tf, a, b)
        a, b = widen(tf, a), widen(tf, b)
        if a.dtype.name == "float32" and truncated:
            return tf.sign(a) * tf.math.floormod(tf.abs(a), tf.abs(b))
        return _remainder(tf, a, b, truncated=truncated)

    combine(node, ctx, remainder, after=narrow)


# --- powers ----------------------------------------------------------------------------------------------------------------------------------


def _whole_exponent(node: Node, graph: Graph) -> str:
    """The power of an integer has a constant exponent of whole numbers from 0 on."""
    if carrier(graph.types[node.inputs[0]].dtype) == "float32":
        return ""
    exponent = graph.constants.get(node.inputs[1])
    if exponent is None:
        return f"the base is {graph.types[node.inputs[0]].dtype} and the exponent is computed"
    return (
        "" if np.all(exponent >= 0) and np.all(exponent == np.floor(exponent)) else "the exponent of an integer is negative or a fraction"
    )


@operator("Pow", rules=(dtypes(*REALS), _whole_exponent))
def power(node: Node, ctx: Context) -> None:
    """Power; common constant exponents become products and roots, which are exact and cheap."""
    tf, kind = ctx.tf, ctx.logical(node.inputs[0])
    exponent = ctx.constant(node.inputs[1])
    if carrier(kind) != "float32":
        assert exponent is not None  # the rule says so
        _power_of_integer(node, ctx, exponent)
        return
    if exponent is not None and exponent.size == 1 and ctx.rank(node.outputs[0]) == ctx.rank(node.inputs[0]):
        simple = {
            2.0: tf.square,
            0.5: tf.sqrt,
            1.0: tf.identity,
            3.0: lambda x: x * tf.square(x),
            -0.5: tf.math.rsqrt,
            -1.0: lambda x: ctx.literal(np.float32(1)) / x,
        }.get(float(exponent.item()))
        if simple is not None:
            apply(node, ctx, lambda _, x, __: simple(x))
            return
    combine(node, ctx, lambda a, b: tf.pow(a, convert(tf, b, ctx.logical(node.inputs[1]), "float32")))


def _power_of_integer(node: Node, ctx: Context, exponent: np.ndarray) -> None:
    """Square and multiply, so that overflow wraps around as everywhere else."""
    tf, count = ctx.tf, ctx.rank(node.outputs[0])
    base = widen(tf, ctx.broadcastable(node.inputs[0], tuple(range(count))))
    whole = exponent.astype(np.int64).reshape((1,) * (count - exponent.ndim) + exponent.shape)
    result = tf.broadcast_to(tf.ones((), base.dtype), ctx.shape(node.outputs[0]))
    for bit in range(int(whole.max(initial=0)).bit_length()):
        factor = tf.where(ctx.literal((whole >> bit) & 1 == 1), base, tf.ones((), base.dtype))
        result = result * factor
        base = base * base
    ctx.put(node.outputs[0], narrow(tf, result, ctx.logical(node.outputs[0])))


# --- bits ------------------------------------------------------------------------------------------------------------------------------------


def _bits(tf: Any, x: Any, logical: str) -> Any:
    """Bits of an integer as int32; a 64-bit one has a last axis of its two halves."""
    if logical in ("int64", "uint64"):
        return tf.bitcast(x, "int32")
    return tf.cast(x, "int32")


def _from_bits(tf: Any, x: Any, logical: str) -> Any:
    if logical in ("int64", "uint64"):
        return tf.bitcast(x, "int64")
    return narrow(tf, tf.cast(x, "int64") if carrier(logical) == "int64" else x, logical)


def _and(tf: Any, a: Any, b: Any) -> Any:
    """``a & b`` of int32: ``x + y = (x ^ y) + 2 (x & y)`` on the upper 31 bits, where the sum cannot overflow, and the product of the last."""
    one = tf.ones((), tf.int32)
    high_a, high_b = tf.bitwise.right_shift(a, one), tf.bitwise.right_shift(b, one)
    low = (a - high_a - high_a) * (b - high_b - high_b)
    return high_a + high_b - tf.bitwise.bitwise_xor(high_a, high_b) + low


_BITWISE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "BitwiseAnd": _and,
    "BitwiseOr": lambda tf, a, b: a + b - _and(tf, a, b),
    "BitwiseXor": lambda tf, a, b: tf.bitwise.bitwise_xor(a, b),
}


@operator("BitwiseAnd", "BitwiseOr", "BitwiseXor", rules=(dtypes(*INTEGERS),))
def bitwise(node: Node, ctx: Context) -> None:
    """Bit by bit, on int32 (BITWISE_XOR and RIGHT_SHIFT are the only bit operators)."""
    combine(node, ctx, lambda a, b: _BITWISE[node.op](ctx.tf, a, b), _bits, _from_bits)


@operator("BitwiseNot", rules=(dtypes(*INTEGERS),))
def bitwise_not(node: Node, ctx: Context) -> None:
    """``-1 - x``, wrapped around."""
    kind = ctx.logical(node.outputs[0])
    apply(node, ctx, lambda c, x, _: narrow(c.tf, -1 - widen(c.tf, x), kind))


@operator("BitShift", rules=(dtypes("uint8", "int32", "int64"),))
def bit_shift(node: Node, ctx: Context) -> None:
    """Shift of unsigned integers up to 32 bits; by the width or more gives 0."""
    tf, kind = ctx.tf, ctx.logical(node.outputs[0])
    width = np.iinfo(kind).bits
    powers = ctx.literal(np.append(2 ** np.arange(width, dtype=np.int64), 0).astype("int64" if width == 32 else "int32"))

    def shifted(x: Any, by: Any) -> Any:
        by = tf.minimum(tf.cast(by, "int32"), width)
        if node.attrs["direction"] == "LEFT":
            return x * tf.gather(powers, by)
        moved = tf.bitwise.right_shift(tf.cast(x, "uint32"), tf.cast(tf.minimum(by, width - 1), "uint32"))
        return tf.where(by < width, tf.cast(moved, x.dtype), tf.zeros((), x.dtype))

    combine(node, ctx, shifted, lambda tf, x, _: widen(tf, x), narrow)


def _bits_in_memory(node: Node, graph: Graph) -> str:
    """No tensor is float16, bfloat16 or float64, whose bits are not what is carried."""
    found = [graph.types[name].dtype for name in (node.inputs[0], node.outputs[0])]
    return next((f"it reads the bits of {kind}" for kind in found if kind.startswith(("float", "bfloat")) and kind != "float32"), "")


@operator("BitCast", rules=(_bits_in_memory,))
def bit_cast(node: Node, ctx: Context) -> None:
    """The same bits read as another dtype of the same width."""
    source, target = ctx.logical(node.inputs[0]), ctx.logical(node.outputs[0])

    def read(ctx: Context, x: Any, _: Node) -> Any:
        tf = ctx.tf
        if source == "float32" and target != "float32":
            return convert(tf, tf.bitcast(x, "int32"), "int32", target)
        if target == "float32" and source != "float32":
            return tf.bitcast(convert(tf, x, source, "int32"), "float32")
        return convert(tf, x, source, target)

    apply(node, ctx, read)
