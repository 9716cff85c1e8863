"""Elementwise arithmetic, comparison, logic and ``cast`` (coremltools ``iOS15/elementwise_unary.py`` and ``elementwise_binary.py``)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgekit.converters.coreml_reference._registry import dtype_of, op
from edgekit.converters.coreml_reference._values import Array

__all__ = ["erf"]


def erf(x: Array) -> Array:
    """Gauss error function from the C library, in float64, rounded once."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x)).astype(x.dtype)


def _unary(name: str, function: Callable[[Array], Array]) -> None:
    @op(name)
    def kernel(x: Array) -> Array:
        return function(x)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.asarray,
    "logical_not": np.logical_not,
    "round": np.rint,  # "0.5 is rounded to 0"
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
for _name, _function in _UNARY.items():
    _unary(_name, _function)


def _binary(name: str, function: Callable[[Array, Array], Array]) -> None:
    @op(name, agree=("x", "y"))
    def kernel(x: Array, y: Array) -> Array:
        return function(x, y)


def _comparison(name: str, function: Callable[[Array, Array], Array]) -> None:
    @op(name, agree=("x", "y"), result="own")
    def kernel(x: Array, y: Array) -> Array:
        return function(x, y)


def _is_integer(*arrays: Array) -> bool:
    return all(np.issubdtype(array.dtype, np.integer) for array in arrays)


def _real_div(x: Array, y: Array) -> Array:
    if not _is_integer(x, y):
        return np.asarray(np.true_divide(x, y))
    quotient = _floor_div(x, y)
    if np.any(quotient * y != x):
        raise ValueError("integer division with a remainder; how it is rounded is not documented")
    return quotient


def _floor_div(x: Array, y: Array) -> Array:
    if _is_integer(x, y):
        if np.any(y == 0):
            raise ValueError("integer division by zero")
        return np.asarray(np.floor_divide(x, y))
    return np.asarray(np.floor(np.true_divide(x, y)))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": _real_div,
    "floor_div": _floor_div,
    "mod": np.mod,  # the divisor's sign, as Python's %
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
for _name, _operator in _BINARY.items():
    _binary(_name, _operator)

for _name, _operator in {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}.items():
    _comparison(_name, _operator)


@op("inverse")
def _inverse(x: Array, epsilon: Array | float = 1e-4) -> Array:
    return np.asarray(1 / (x + np.asarray(epsilon, x.dtype)))


@op("log")
def _log(x: Array, epsilon: Array | float = 1e-45) -> Array:
    return np.asarray(np.log(x + np.asarray(epsilon, x.dtype)))


@op("rsqrt")
def _rsqrt(x: Array, epsilon: Array | float = 1e-12) -> Array:
    return np.asarray(1 / np.sqrt(x + np.asarray(epsilon, x.dtype)))


@op("clip")
def _clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(np.maximum(x, alpha), beta)


@op("threshold")
def _threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


@op("select", primary="a", agree=("a", "b"), widen=False)
def _select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond != 0, a, b)


@op("cast", result="own", widen=False)
def _cast(x: Array, dtype: str) -> Array:
    return x.astype(dtype_of(dtype))
