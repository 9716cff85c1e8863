"""Arithmetic of two operands, of floats and of integers as ONNX defines it.

Integers are carried as int32. Those of 8 and 16 bits wrap around at their own limits; of wider ones the values that fit int32 are right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MAX_RANK, MilContext, mil_dtype, numbers, op

__all__: list[str] = []

_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul"}
_HALF = 1 << 8  # of a 16-bit factor: products of 16 by 8 bits fit int32


@op(*_BINARY, constraints=(numbers,))
def binary(node: Node, ctx: MilContext) -> None:
    """Add, Sub, Mul with broadcasting; narrow integers wrap around."""
    x, y = (ctx.read(name) for name in node.inputs)
    if node.op == "Mul" and ctx.dtype(node.outputs[0]) == "uint16":
        ctx.pass_on(node, _product_of_16_bits(node, ctx, x, y))
    else:
        ctx.put_wrapped(node, _BINARY[node.op], x=x, y=y)


def _product_of_16_bits(node: Node, ctx: MilContext, x: Any, y: Any) -> Any:
    """The product modulo 2^16, y taken as 256 high + low, so that nothing passes int32."""
    high = ctx.mid(node, "floor_div", x=y, y=np.int32(_HALF))
    low = ctx.mid(node, "mod", x=y, y=np.int32(_HALF))
    upper = ctx.mid(node, "mod", x=ctx.mid(node, "mul", x=x, y=high), y=np.int32(_HALF))
    total = ctx.mid(node, "add", x=ctx.mid(node, "mul", x=upper, y=np.int32(_HALF)), y=ctx.mid(node, "mul", x=x, y=low))
    return ctx.wrapped(node, total, "uint16")


@op("Div", constraints=(numbers,))
def divide(node: Node, ctx: MilContext) -> None:
    """Division; integers towards zero, through magnitudes, for which rounding down is the same (MIL operator floor_div)."""
    x, y = (ctx.read(name) for name in node.inputs)
    if mil_dtype(ctx.dtype(node.inputs[0])) != "int32":
        ctx.put(node, "real_div", x=x, y=y)
    elif ctx.dtype(node.inputs[0]).startswith("uint"):
        ctx.put(node, "floor_div", x=x, y=y)
    else:
        ctx.put_wrapped(node, "mul", **_quotient(node, ctx, x, y))


def _quotient(node: Node, ctx: MilContext, x: Any, y: Any) -> dict[str, Any]:
    """Factors of x / y rounded towards zero: the magnitudes' quotient and the sign."""
    size = ctx.mid(node, "floor_div", x=_magnitude(node, ctx, x), y=_magnitude(node, ctx, y))
    return {"x": size, "y": ctx.mid(node, "mul", x=_sign(node, ctx, x), y=_sign(node, ctx, y))}


def _magnitude(node: Node, ctx: MilContext, value: Any) -> Any:
    return np.abs(value) if isinstance(value, np.ndarray | np.generic) else ctx.mid(node, "abs", x=value)


def _sign(node: Node, ctx: MilContext, value: Any) -> Any:
    return np.sign(value) if isinstance(value, np.ndarray | np.generic) else ctx.mid(node, "sign", x=value)


@op("Mod", constraints=(numbers,))
def modulo(node: Node, ctx: MilContext) -> None:
    """The remainder with the divisor's sign as MIL's `mod` has it, or, with ``fmod``, with the dividend's sign."""
    x, y = (ctx.read(name) for name in node.inputs)
    if not node.attrs.get("fmod", 0) or ctx.dtype(node.inputs[0]).startswith("uint"):
        ctx.put(node, "mod", x=x, y=y)
        return
    size = ctx.mid(node, "mod", x=_magnitude(node, ctx, x), y=_magnitude(node, ctx, y))
    ctx.put(node, "mul", x=size, y=_sign(node, ctx, x))


_LARGEST_EXPONENT = 64  # of an integer; beyond it every base but 0, 1 and -1 has wrapped around


def _known_power(node: Node, graph: Graph) -> str:
    """An integer base has a constant, whole exponent of 0 to 64"""
    if mil_dtype(graph.types[node.inputs[0]].dtype) != "int32":
        return ""
    exponent = graph.constants.get(node.inputs[1])
    if exponent is None:
        return f"exponent {node.inputs[1]!r} of an integer base is computed at run time"
    fits = np.all(exponent == np.floor(exponent)) and np.all(exponent >= 0) and np.all(exponent <= _LARGEST_EXPONENT)
    return "" if fits else f"exponents {float(exponent.min()):g} to {float(exponent.max()):g} of an integer base"


def _integer_power(node: Node, ctx: MilContext) -> None:
    """Products of squares, chosen by the bits of the exponents: exact, where MIL's `pow` may round."""
    dtype = ctx.dtype(node.outputs[0])
    exponent = np.asarray(ctx.constant(node.inputs[1])).astype(np.int64)
    square = ctx.read(node.inputs[0])
    ones = np.ones(np.broadcast_shapes(ctx.shape(node.inputs[0]), exponent.shape), np.int32)
    total: Any = ones
    for bit in range(max(int(exponent.max()).bit_length(), 1)):
        if bit:
            square = ctx.wrapped(node, ctx.mid(node, "mul", x=square, y=square), dtype)
        chosen = (exponent >> bit) & 1
        if chosen.any():
            factor = (
                square
                if chosen.all()
                else ctx.mid(
                    node, "select", cond=np.broadcast_to(chosen != 0, ones.shape), a=ctx.mid(node, "mul", x=square, y=ones), b=ones
                )
            )
            total = ctx.wrapped(node, ctx.mid(node, "mul", x=total, y=factor), dtype)
    ctx.pass_on(node, total)


@op("Pow", constraints=(numbers, _known_power))
def power(node: Node, ctx: MilContext) -> None:
    """See `_float_power` and `_integer_power`."""
    if mil_dtype(ctx.dtype(node.inputs[0])) == "int32":
        _integer_power(node, ctx)
    else:
        _float_power(node, ctx)


def _float_power(node: Node, ctx: MilContext) -> None:
    """Common constant exponents become products, which are exact for negative bases on every compute unit."""
    x = ctx.read(node.inputs[0])
    exponent = ctx.constant(node.inputs[1])
    value = (
        float(exponent.reshape(-1)[0])
        if exponent is not None and exponent.size == 1 and ctx.rank(node.inputs[0]) >= exponent.ndim
        else None
    )
    if value == 1.0:
        ctx.pass_on(node, x)
    elif value == 2.0:
        ctx.put(node, "mul", x=x, y=x)
    elif value == 3.0:
        ctx.put(node, "mul", x=ctx.mid(node, "mul", x=x, y=x), y=x)
    elif value == 0.5:
        ctx.put(node, "sqrt", x=x)
    else:
        kind = mil_dtype(ctx.dtype(node.inputs[0]))
        y = ctx.read(node.inputs[1])
        ctx.put(node, "pow", x=x, y=y if mil_dtype(ctx.dtype(node.inputs[1])) == kind else ctx.cast(node, y, kind))


# --- bits ----------------------------------------------------------------------------------------------------------------------------------

_BITS = 31  # of an int32 beside its sign


def _signed(node: Node, graph: Graph) -> str:
    """Bitwise operators here are on int32 and int64 of rank 4 or less"""
    kind = graph.types[node.outputs[0]]
    return "" if kind.dtype in ("int32", "int64") and kind.rank < MAX_RANK else f"{kind.dtype} of rank {kind.rank}"


@op("BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18, constraints=(_signed,))
def bitwise(node: Node, ctx: MilContext) -> None:
    """Each of the 31 bits and the sign by itself: MIL has no bitwise operators."""
    powers = (1 << np.arange(_BITS)).astype(np.int32)
    low, high = [], []
    for name in node.inputs:
        x = ctx.tensor(name)
        wide = ctx.mid(node, "expand_dims", x=x, axes=[-1])
        low.append(ctx.mid(node, "mod", x=ctx.mid(node, "floor_div", x=wide, y=powers), y=np.int32(2)))
        high.append(ctx.mid(node, "cast", x=ctx.mid(node, "less", x=x, y=np.int32(0)), dtype="int32"))
    bits = ctx.mid(node, "mul", x=_combined(node, ctx, *low), y=powers)
    size = ctx.mid(node, "reduce_sum", x=bits, axes=[-1], keep_dims=False)
    sign = ctx.mid(node, "mul", x=_combined(node, ctx, *high), y=np.int32(-(1 << _BITS)))
    ctx.put(node, "add", x=size, y=sign)


def _combined(node: Node, ctx: MilContext, x: Any, y: Any) -> Any:
    """And, or, exclusive or of bits as arithmetic of 0 and 1."""
    both = ctx.mid(node, "mul", x=x, y=y)
    if node.op == "BitwiseAnd":
        return both
    taken = both if node.op == "BitwiseOr" else ctx.mid(node, "mul", x=both, y=np.int32(2))
    return ctx.mid(node, "sub", x=ctx.mid(node, "add", x=x, y=y), y=taken)
