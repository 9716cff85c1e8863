"""Functions that TensorFlow Lite has no kernel for, from those that it has; errors are a few units in the last place of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._math import apply
from edgekit.converters.tflite._rules import float_only, operator

__all__ = ["log1p"]

_LARGEST = np.finfo(np.float32).max

# Rational approximation of erf on [-4, 4], where it is 1 to float32: coefficients of x^13, x^11, … and of x^8, x^6, … as in XLA's ErfImpl32
# (xla/client/lib/math.cc) and Eigen's generic_fast_erf_float.
_ERF_OVER = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_UNDER = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02)

# Taylor series of sinh(x) / x in x^2: 1/9!, 1/7!, … ; at |x| = 1 the first term left out is 1/11! = 2.5e-8.
_SINH = (1 / 362880, 1 / 5040, 1 / 120, 1 / 6, 1.0)

# 2 atanh(r) / r in r^2 for r up to 1/3: least squares at 400 Chebyshev nodes; the largest relative error is 1.7e-7, about float32's rounding.
_ATANH = (0.342224538, 0.395900596, 0.66675978, 1.99999967)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's scheme, highest power first."""
    result = x * np.float32(coefficients[0]) + np.float32(coefficients[1])
    for coefficient in coefficients[2:]:
        result = result * x + np.float32(coefficient)
    return result


def log1p(ctx: Context, x: Any) -> Any:
    """``log(1 + x)`` for ``x`` from 0 on, also right where it is small: the kernel's error is absolute, 1e-7."""
    tf = ctx.tf
    return tf.where(tf.less(x, np.float32(1)), _small_log1p(ctx, tf.minimum(x, np.float32(1))), tf.math.log(x + np.float32(1)))


def _small_log1p(ctx: Context, x: Any) -> Any:
    """``log(1 + x) = 2 atanh(x / (x + 2))`` for ``x`` from 0 to 1."""
    ratio = x / (x + np.float32(2))
    return ratio * _polynomial(ctx.tf.square(ratio), _ATANH)


def _erf(ctx: Context, x: Any) -> Any:
    x = ctx.tf.maximum(ctx.tf.minimum(x, np.float32(4)), np.float32(-4))
    square = ctx.tf.square(x)
    return x * (_polynomial(square, _ERF_OVER) / _polynomial(square, _ERF_UNDER))


def _sinh(ctx: Context, x: Any) -> Any:
    tf = ctx.tf
    small = x * _polynomial(tf.square(tf.maximum(tf.minimum(x, np.float32(1)), np.float32(-1))), _SINH)
    # exp(x / 2) twice, so that it overflows no earlier than the result
    up, down = tf.exp(x * np.float32(0.5)), tf.exp(x * np.float32(-0.5))
    return tf.where(tf.less(tf.abs(x), np.float32(1)), small, up * (up * np.float32(0.5)) - down * (down * np.float32(0.5)))


def _cosh(ctx: Context, x: Any) -> Any:
    up, down = ctx.tf.exp(x * np.float32(0.5)), ctx.tf.exp(x * np.float32(-0.5))
    return up * (up * np.float32(0.5)) + down * (down * np.float32(0.5))


def _acosh(ctx: Context, x: Any) -> Any:
    above = x - np.float32(1)  # exact near 1, where the result is its root
    return log1p(ctx, above + ctx.tf.sqrt(above * (x + np.float32(1))))


def _asinh(ctx: Context, x: Any) -> Any:
    tf = ctx.tf
    size = tf.abs(x)
    square = tf.square(size)
    return tf.sign(x) * log1p(ctx, size + square / (np.float32(1) + tf.sqrt(square + np.float32(1))))


def _atanh(ctx: Context, x: Any) -> Any:
    size = ctx.tf.abs(x)
    return ctx.tf.sign(x) * (np.float32(0.5) * log1p(ctx, size * np.float32(2) / (np.float32(1) - size)))


def _cofactor(ctx: Context, x: Any) -> Any:
    """``sqrt(1 - x^2)`` without cancellation near 1."""
    return ctx.tf.sqrt((np.float32(1) - x) * (np.float32(1) + x))


def _softplus(ctx: Context, x: Any) -> Any:
    """``log(1 + exp(x))``; the exponential is of the negative size, so that it cannot overflow."""
    return ctx.tf.nn.relu(x) + _small_log1p(ctx, ctx.tf.exp(-ctx.tf.abs(x)))


def _mish(ctx: Context, x: Any) -> Any:
    return x * _tanh_of_softplus(ctx, x)


def _tanh_of_softplus(ctx: Context, x: Any) -> Any:
    """``tanh(log(1 + e))`` with ``e = exp(x)``, which is ``n / (n + 2)`` with ``n = e (e + 2)``; from 20 on that is 1."""
    e = ctx.tf.exp(ctx.tf.minimum(x, np.float32(20)))
    n = e * (e + np.float32(2))
    return n / (n + np.float32(2))


_FUNCTIONS: dict[str, Callable[[Context, Any], Any]] = {
    "Acos": lambda c, x: c.tf.atan2(_cofactor(c, x), x),
    "Acosh": _acosh,
    "Asin": lambda c, x: c.tf.atan2(x, _cofactor(c, x)),
    "Asinh": _asinh,
    "Atan": lambda c, x: c.tf.atan2(x, c.tf.ones_like(x)),
    "Atanh": _atanh,
    "Cosh": _cosh,
    "Erf": _erf,
    "Mish": _mish,
    "Sinh": _sinh,
    "Softplus": _softplus,
    "Tan": lambda c, x: c.tf.sin(x) / c.tf.cos(x),
}


def _register(op: str, function: Callable[[Context, Any], Any]) -> None:
    def handler(node: Node, ctx: Context) -> None:
        apply(node, ctx, lambda ctx, x, _: function(ctx, x))

    handler.__name__ = op
    operator(op, rules=(float_only,))(handler)


for _op, _function in _FUNCTIONS.items():
    _register(_op, _function)


def _celu(ctx: Context, x: Any, alpha: float) -> Any:
    tf = ctx.tf
    return tf.nn.relu(x) + np.float32(alpha) * (tf.exp(tf.minimum(x, np.float32(0)) * np.float32(1 / alpha)) - np.float32(1))


def _selu(ctx: Context, x: Any, alpha: float, gamma: float) -> Any:
    tf = ctx.tf
    return np.float32(gamma) * tf.nn.relu(x) + np.float32(gamma * alpha) * (tf.exp(tf.minimum(x, np.float32(0))) - np.float32(1))


def _shrink(ctx: Context, x: Any, limit: float, bias: float) -> Any:
    tf, zero = ctx.tf, np.float32(0)
    inner = tf.where(tf.greater(x, np.float32(limit)), x - np.float32(bias), zero)
    return tf.where(tf.less(x, np.float32(-limit)), x + np.float32(bias), inner)


# Defaults of the attributes are the specification's; operators older than their ONNX functions have nothing to be lowered to.
_WITH_ATTRIBUTES: dict[str, Callable[[Context, Any, dict[str, Any]], Any]] = {
    "Celu": lambda c, x, given: _celu(c, x, given.get("alpha", 1.0)),
    "Selu": lambda c, x, given: _selu(c, x, given.get("alpha", 1.67326319217681884765625), given.get("gamma", 1.05070102214813232421875)),
    "Shrink": lambda c, x, given: _shrink(c, x, given.get("lambd", 0.5), given.get("bias", 0.0)),
    "ThresholdedRelu": lambda c, x, given: c.tf.where(c.tf.greater(x, np.float32(given.get("alpha", 1.0))), x, np.float32(0)),
}


def _register_with_attributes(op: str, function: Callable[[Context, Any, dict[str, Any]], Any]) -> None:
    def handler(node: Node, ctx: Context) -> None:
        apply(node, ctx, lambda ctx, x, node: function(ctx, x, node.attrs))

    handler.__name__ = op
    operator(op, rules=(float_only,))(handler)


for _name, _given in _WITH_ATTRIBUTES.items():
    _register_with_attributes(_name, _given)


@operator("Tanh", rules=(float_only,))
def tanh(node: Node, ctx: Context) -> None:
    """The hyperbolic tangent; that of a Softplus (how Mish was exported before it was an operator) in fewer steps."""
    softplus = next((other for other in ctx.graph.nodes if other.op == "Softplus" and other.outputs[0] == node.inputs[0]), None)
    if softplus is None:
        apply(node, ctx, lambda c, x, _: c.tf.tanh(x))
        return
    order = ctx.order(softplus.inputs[0])
    ctx.put(node.outputs[0], _tanh_of_softplus(ctx, ctx.get(softplus.inputs[0], order)), order)


@operator("Gelu", rules=(float_only,))
def gelu(node: Node, ctx: Context) -> None:
    """The fused operator."""
    apply(node, ctx, lambda c, x, _: c.tf.nn.gelu(x, approximate=node.attrs.get("approximate", "none") == "tanh"))


@operator("IsNaN", rules=(float_only,))
def is_nan(node: Node, ctx: Context) -> None:
    """What does not equal itself."""
    apply(node, ctx, lambda c, x, _: c.tf.not_equal(x, x))


@operator("IsInf", rules=(float_only,))
def is_infinite(node: Node, ctx: Context) -> None:
    """What is beyond the largest finite number."""

    def beyond(ctx: Context, x: Any, _: Node) -> Any:
        if node.attrs.get("detect_negative", 1) and node.attrs.get("detect_positive", 1):
            return ctx.tf.greater(ctx.tf.abs(x), _LARGEST)
        if node.attrs.get("detect_positive", 1):
            return ctx.tf.greater(x, _LARGEST)
        if node.attrs.get("detect_negative", 1):
            return ctx.tf.less(x, -_LARGEST)
        return ctx.tf.zeros_like(x, "bool")

    apply(node, ctx, beyond)
