"""Element-wise operators: they work in whatever order their operands lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import Order
from edgekit.converters.tflite._rules import NUMBERS, constant_inputs, dtypes, float_only, operator

__all__: list[str] = []

Unary = Callable[[Context, Any, Node], Any]

_UNARY: dict[str, Unary] = {
    "Neg": lambda c, x, _: c.tf.negative(x),
    "Abs": lambda c, x, _: c.tf.abs(x),
}
_UNARY_FLOAT: dict[str, Unary] = {
    "Ceil": lambda c, x, _: c.tf.math.ceil(x),
    "Cos": lambda c, x, _: c.tf.cos(x),
    "Elu": lambda c, x, node: _elu(c, x, node.attrs.get("alpha", 1.0)),
    "Exp": lambda c, x, _: c.tf.exp(x),
    "Floor": lambda c, x, _: c.tf.floor(x),
    "HardSigmoid": lambda c, x, node: _hard_sigmoid(c, x, node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)),
    "HardSwish": lambda c, x, _: x * (c.tf.nn.relu6(x + 3.0) * c.literal(np.float32(1 / 6))),
    "LeakyRelu": lambda c, x, node: c.tf.nn.leaky_relu(x, node.attrs.get("alpha", 0.01)),
    "Log": lambda c, x, _: c.tf.math.log(x),
    "Reciprocal": lambda c, x, _: c.literal(np.float32(1)) / x,
    "Relu": lambda c, x, _: c.tf.nn.relu(x),
    "Round": lambda c, x, _: c.tf.round(x),
    "Sigmoid": lambda c, x, _: c.tf.sigmoid(x),
    "Sign": lambda c, x, _: c.tf.sign(x),
    "Sin": lambda c, x, _: c.tf.sin(x),
    "Softplus": lambda c, x, _: c.tf.nn.relu(x) + c.tf.math.log(c.tf.exp(-c.tf.abs(x)) + 1.0),
    "Softsign": lambda c, x, _: x / (c.tf.abs(x) + 1.0),
    "Sqrt": lambda c, x, _: c.tf.sqrt(x),
    "Tanh": lambda c, x, _: c.tf.tanh(x),
}


def _elu(ctx: Context, x: Any, alpha: float) -> Any:
    if alpha == 1.0:
        return ctx.tf.nn.elu(x)
    return ctx.tf.nn.relu(x) + np.float32(alpha) * (ctx.tf.exp(ctx.tf.minimum(x, 0.0)) - 1.0)


def _hard_sigmoid(ctx: Context, x: Any, alpha: float, beta: float) -> Any:
    """``max(0, min(1, alpha * x + beta))`` as a ReLU6 of six times that, which the kernels fuse into the addition."""
    scaled = x if alpha * 6 == 1 else x * ctx.literal(np.float32(alpha * 6))
    return ctx.tf.nn.relu6(scaled + ctx.literal(np.float32(beta * 6))) * ctx.literal(np.float32(1 / 6))


def _apply(node: Node, ctx: Context, function: Unary) -> None:
    order = ctx.order(node.inputs[0])
    ctx.put(node.outputs[0], function(ctx, ctx.get(node.inputs[0], order), node), order)


def _register_unary(op: str, function: Unary, rule: Any) -> None:
    def handler(node: Node, ctx: Context) -> None:
        _apply(node, ctx, function)

    handler.__name__ = op
    operator(op, rules=(rule,))(handler)


for _op, _function in _UNARY.items():
    _register_unary(_op, _function, dtypes(*NUMBERS))
for _op, _function in _UNARY_FLOAT.items():
    _register_unary(_op, _function, float_only)
_register_unary("Not", lambda c, x, _: c.tf.logical_not(x), dtypes("bool"))


@operator("Identity", "Dropout")
def identity(node: Node, ctx: Context) -> None:
    """Pass the tensor on; at inference Dropout does the same."""
    constant = ctx.constant(node.inputs[0])
    if constant is not None:
        ctx.put_constant(node.outputs[0], constant)
    else:
        ctx.put(node.outputs[0], ctx.get(node.inputs[0], ctx.order(node.inputs[0])), ctx.order(node.inputs[0]))
    if len(node.outputs) > 1 and node.outputs[1]:
        ctx.put_constant(node.outputs[1], np.ones(ctx.shape(node.outputs[1]), ctx.dtype(node.outputs[1])))


@operator("Cast")
def cast(node: Node, ctx: Context) -> None:
    """Convert to the output's dtype; float to bool is ``!= 0``."""
    target = ctx.dtype(node.outputs[0])
    _apply(node, ctx, lambda c, x, _: c.tf.cast(x, target))


# --- clamps ----------------------------------------------------------------------------------------------------------------------------------


@operator("Clip", rules=(dtypes(*NUMBERS),))
def clip_attributes(node: Node, ctx: Context) -> None:
    """Clip before opset 11: limits are attributes."""
    _clip(node, ctx, node.attrs.get("min"), node.attrs.get("max"))


@operator("Clip", since=11, rules=(dtypes(*NUMBERS),))
def clip(node: Node, ctx: Context) -> None:
    """Clip with limits as optional inputs; they may be computed."""
    limits = [ctx.constant(node.input(index)) for index in (1, 2)]
    if any(node.input(index) and limit is None for index, limit in zip((1, 2), limits, strict=True)):
        order = ctx.order(node.inputs[0])
        x = ctx.get(node.inputs[0], order)
        x = ctx.tf.maximum(x, ctx.get(node.input(1))) if node.input(1) else x
        x = ctx.tf.minimum(x, ctx.get(node.input(2))) if node.input(2) else x
        ctx.put(node.outputs[0], x, order)
        return
    _clip(node, ctx, *(None if limit is None else limit.item() for limit in limits))


def _clip(node: Node, ctx: Context, low: float | None, high: float | None) -> None:
    tf, kind = ctx.tf, np.dtype(ctx.dtype(node.inputs[0]))

    def clamp(ctx: Context, x: Any, _: Node) -> Any:
        if kind == np.float32 and low == 0:
            if high == 6:
                return tf.nn.relu6(x)
            x = tf.nn.relu(x)
        elif low is not None:
            x = tf.maximum(x, ctx.literal(np.asarray(low, kind)))
        return x if high is None else tf.minimum(x, ctx.literal(np.asarray(high, kind)))

    _apply(node, ctx, clamp)


# --- several operands ------------------------------------------------------------------------------------------------------------------------


def _combine(node: Node, ctx: Context, function: Callable[..., Any]) -> None:
    rank = ctx.rank(node.outputs[0])
    order = ctx.common_order(node.inputs, rank)
    ctx.put(node.outputs[0], function(*(_operand(ctx, name, order, node) for name in node.inputs)), order)


def _operand(ctx: Context, name: str, order: Order, node: Node) -> Any:
    """An operand in ``order``; a one-element constant becomes a scalar, the form in which fused operators (HARD_SWISH) are recognised."""
    constant = ctx.constant(name)
    if constant is not None and constant.size == 1 and any(ctx.rank(other) == len(order) for other in node.inputs if other != name):
        return ctx.literal(constant.reshape(()))
    return ctx.broadcastable(name, order)


def _register_nary(op: str, make: Callable[[Any], Callable[..., Any]], *allowed: str) -> None:
    def handler(node: Node, ctx: Context) -> None:
        function = make(ctx.tf)
        _combine(node, ctx, lambda *operands: functools.reduce(function, operands))

    handler.__name__ = op
    operator(op, rules=(dtypes(*allowed),))(handler)


for _op, _make in {
    "Add": lambda tf: tf.add,
    "Sub": lambda tf: tf.subtract,
    "Mul": lambda tf: tf.multiply,
    "Max": lambda tf: tf.maximum,
    "Min": lambda tf: tf.minimum,
    "Sum": lambda tf: tf.add,
}.items():
    _register_nary(_op, _make, *NUMBERS)
for _op, _make in {
    "Greater": lambda tf: tf.greater,
    "GreaterOrEqual": lambda tf: tf.greater_equal,
    "Less": lambda tf: tf.less,
    "LessOrEqual": lambda tf: tf.less_equal,
}.items():
    _register_nary(_op, _make, *NUMBERS)
for _op, _make in {"And": lambda tf: tf.logical_and, "Or": lambda tf: tf.logical_or, "Xor": lambda tf: tf.not_equal}.items():
    _register_nary(_op, _make, "bool")
_register_nary("Equal", lambda tf: tf.equal, *NUMBERS, "bool", "uint8", "int8")
_register_nary("Div", lambda tf: lambda a, b: tf.raw_ops.Div(x=a, y=b), "float32", "int32")


@operator("Mean", rules=(float_only,))
def mean(node: Node, ctx: Context) -> None:
    """Average of the operands, broadcast."""
    scale = np.float32(1 / len(node.inputs))
    _combine(node, ctx, lambda *operands: functools.reduce(ctx.tf.add, operands) * ctx.literal(scale))


@operator("Pow", rules=(float_only, dtypes("float32")))
def power(node: Node, ctx: Context) -> None:
    """Power; constant exponents 2 and 0.5 become a square and a root, which are exact and cheap."""
    exponent = ctx.constant(node.inputs[1])
    if exponent is not None and exponent.size == 1 and ctx.rank(node.outputs[0]) == ctx.rank(node.inputs[0]):
        simple = {2.0: ctx.tf.square, 0.5: ctx.tf.sqrt, 1.0: ctx.tf.identity}.get(float(exponent.item()))
        if simple is not None:
            _apply(node, ctx, lambda _, x, __: simple(x))
            return
    _combine(node, ctx, lambda a, b: ctx.tf.pow(a, ctx.tf.cast(b, a.dtype)))


@operator("PRelu", rules=(float_only,))
def prelu(node: Node, ctx: Context) -> None:
    """``x`` where it is positive, else ``slope * x``; the slope broadcasts from the last axes."""
    _combine(node, ctx, lambda x, slope: ctx.tf.nn.relu(x) - slope * ctx.tf.nn.relu(-x))


@operator("Where")
def where(node: Node, ctx: Context) -> None:
    """Choose by a boolean tensor, broadcast."""
    _combine(node, ctx, ctx.tf.where)


def _integer_scale(node: Node, graph: Graph) -> str:
    """Dtype of both operands is the same."""
    kinds = {graph.types[name].dtype for name in node.inputs}
    return "" if len(kinds) == 1 else f"operands are {' and '.join(sorted(kinds))}"


@operator("Mod", rules=(dtypes("float32", "int32", "int64"), _integer_scale, constant_inputs()))
def modulo(node: Node, ctx: Context) -> None:
    """Remainder with the divisor's sign (``fmod=0``) or the dividend's (``fmod=1``)."""
    tf = ctx.tf
    if node.attrs.get("fmod", 0):
        _combine(node, ctx, lambda a, b: a - b * _truncated(tf, a, b))
    else:
        _combine(node, ctx, tf.math.floormod)


def _truncated(tf: Any, a: Any, b: Any) -> Any:
    ratio = tf.abs(a) // tf.abs(b) if a.dtype.is_integer else tf.floor(tf.abs(a) / tf.abs(b))
    return ratio * tf.sign(a) * tf.sign(b)
