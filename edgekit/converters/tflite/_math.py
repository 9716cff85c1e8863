"""Element-wise operators: they work in whatever order their operands lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.tflite._carry import carrier, convert, from_ordered, narrow, ordered, widen
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import Order
from edgekit.converters.tflite._rules import REALS, dtypes, float_only, operator

__all__ = ["apply", "combine"]

Unary = Callable[[Context, Any, Node], Any]

_UNARY: dict[str, Unary] = {
    "Neg": lambda c, x, _: c.tf.negative(x),
    "Abs": lambda c, x, node: _abs(c, x, c.logical(node.inputs[0])),
    "Sign": lambda c, x, node: _sign(c, x, c.logical(node.inputs[0])),
    "Relu": lambda c, x, _: c.tf.nn.relu(x),
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
    "Round": lambda c, x, _: c.tf.round(x),
    "Sigmoid": lambda c, x, _: c.tf.sigmoid(x),
    "Sin": lambda c, x, _: c.tf.sin(x),
    "Softsign": lambda c, x, _: x / (c.tf.abs(x) + 1.0),
    "Sqrt": lambda c, x, _: c.tf.sqrt(x),
}


def _abs(ctx: Context, x: Any, logical: str) -> Any:
    if logical.startswith("uint"):
        return x
    return ctx.tf.maximum(x, -x) if logical == "int64" else ctx.tf.abs(x)  # ABS has no int64 kernel


def _sign(ctx: Context, x: Any, logical: str) -> Any:
    tf = ctx.tf
    if carrier(logical) != "int64":
        return tf.sign(x)
    zero = tf.zeros((), tf.int64)  # SIGN has no int64 kernel
    if logical == "uint64":
        return tf.cast(tf.not_equal(x, zero), "int64")
    return tf.cast(tf.greater(x, zero), "int64") - tf.cast(tf.less(x, zero), "int64")


def _elu(ctx: Context, x: Any, alpha: float) -> Any:
    if alpha == 1.0:
        return ctx.tf.nn.elu(x)
    return ctx.tf.nn.relu(x) + np.float32(alpha) * (ctx.tf.exp(ctx.tf.minimum(x, 0.0)) - 1.0)


def _hard_sigmoid(ctx: Context, x: Any, alpha: float, beta: float) -> Any:
    """``max(0, min(1, alpha * x + beta))`` as a ReLU6 of six times that, which the kernels fuse into the addition."""
    scaled = x if alpha * 6 == 1 else x * ctx.literal(np.float32(alpha * 6))
    return ctx.tf.nn.relu6(scaled + ctx.literal(np.float32(beta * 6))) * ctx.literal(np.float32(1 / 6))


def apply(node: Node, ctx: Context, function: Unary) -> None:
    """One operand in, one result out, in the same order and carrier."""
    order = ctx.order(node.inputs[0])
    ctx.put(node.outputs[0], function(ctx, ctx.get(node.inputs[0], order), node), order)


def _register_unary(op: str, function: Unary, rule: Any) -> None:
    def handler(node: Node, ctx: Context) -> None:
        def wrapped(ctx: Context, x: Any, node: Node) -> Any:
            return narrow(ctx.tf, function(ctx, widen(ctx.tf, x), node), ctx.logical(node.outputs[0]))

        apply(node, ctx, function if rule is float_only else wrapped)

    handler.__name__ = op
    operator(op, rules=(rule,))(handler)


for _op, _function in _UNARY.items():
    _register_unary(_op, _function, dtypes(*REALS))
for _op, _function in _UNARY_FLOAT.items():
    _register_unary(_op, _function, float_only)


@operator("Not", rules=(dtypes("bool"),))
def logical_not(node: Node, ctx: Context) -> None:
    """The other boolean."""
    apply(node, ctx, lambda c, x, _: c.tf.logical_not(x))


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


@operator("Cast", "CastLike")
def cast(node: Node, ctx: Context) -> None:
    """Convert to the output's dtype: floats are cut towards zero, integers wrap around, to bool is ``!= 0``."""
    source, target = ctx.logical(node.inputs[0]), ctx.logical(node.outputs[0])
    apply(node, ctx, lambda c, x, _: convert(c.tf, x, source, target))


# --- clamps ----------------------------------------------------------------------------------------------------------------------------------


@operator("Clip", rules=(dtypes(*REALS),))
def clip_attributes(node: Node, ctx: Context) -> None:
    """Clip before opset 11: limits are attributes."""
    _clip(node, ctx, node.attrs.get("min"), node.attrs.get("max"))


@operator("Clip", since=11, rules=(dtypes(*REALS),))
def clip(node: Node, ctx: Context) -> None:
    """Clip with limits as optional inputs; they may be computed."""
    limits = [ctx.constant(node.input(index)) for index in (1, 2)]
    if ctx.dtype(node.inputs[0]) == "float32" and all(
        limit is not None or not node.input(index) for index, limit in zip((1, 2), limits, strict=True)
    ):
        _clip(node, ctx, *(None if limit is None else limit.item() for limit in limits))
        return
    tf, logical = ctx.tf, ctx.logical(node.inputs[0])

    def clamp(ctx: Context, x: Any, _: Node) -> Any:
        x = ordered(tf, x, logical)
        x = tf.maximum(x, ordered(tf, ctx.get(node.input(1)), logical)) if node.input(1) else x
        x = tf.minimum(x, ordered(tf, ctx.get(node.input(2)), logical)) if node.input(2) else x
        return from_ordered(tf, x, logical)

    apply(node, ctx, clamp)


def _clip(node: Node, ctx: Context, low: float | None, high: float | None) -> None:
    tf = ctx.tf

    def clamp(ctx: Context, x: Any, _: Node) -> Any:
        if low == 0:
            if high == 6:
                return tf.nn.relu6(x)
            x = tf.nn.relu(x)
        elif low is not None:
            x = tf.maximum(x, ctx.literal(np.asarray(low, np.float32)))
        return x if high is None else tf.minimum(x, ctx.literal(np.asarray(high, np.float32)))

    apply(node, ctx, clamp)


# --- several operands ------------------------------------------------------------------------------------------------------------------------

Convert = Callable[[Any, Any, str], Any]  # (tf, tensor, logical dtype) -> tensor


def _as_it_is(tf: Any, x: Any, logical: str) -> Any:
    del tf, logical
    return x


def _widened(tf: Any, x: Any, logical: str) -> Any:
    del logical
    return widen(tf, x)


def combine(node: Node, ctx: Context, function: Callable[..., Any], before: Convert = _as_it_is, after: Convert = _as_it_is) -> None:
    """Operands broadcast against each other, in the order that moves the fewest elements.

    Args:
        node: all of its inputs are operands.
        ctx: where they are.
        function: of as many tensors as there are inputs.
        before: what brings an operand from its carrier into the form that ``function`` takes.
        after: what brings the result into its carrier.
    """
    rank = ctx.rank(node.outputs[0])
    order = ctx.common_order(node.inputs, rank)
    operands = [before(ctx.tf, _operand(ctx, name, order, node), ctx.logical(name)) for name in node.inputs]
    ctx.put(node.outputs[0], after(ctx.tf, function(*operands), ctx.logical(node.outputs[0])), order)


def _operand(ctx: Context, name: str, order: Order, node: Node) -> Any:
    """An operand in ``order``; a one-element constant becomes a scalar, the form in which fused operators (HARD_SWISH) are recognised."""
    constant = ctx.constant(name)
    if constant is not None and constant.size == 1 and any(ctx.rank(other) == len(order) for other in node.inputs if other != name):
        return ctx.literal(constant.reshape(()))
    return ctx.broadcastable(name, order)


def _register_nary(op: str, make: Callable[[Any], Callable[..., Any]], rule: Any, before: Convert, after: Convert) -> None:
    def handler(node: Node, ctx: Context) -> None:
        function = make(ctx.tf)
        combine(node, ctx, lambda *operands: functools.reduce(function, operands), before, after)

    handler.__name__ = op
    operator(op, rules=(rule,))(handler)


for _op, _make in {
    "Add": lambda tf: tf.add,
    "Sub": lambda tf: tf.subtract,
    "Mul": lambda tf: tf.multiply,
    "Sum": lambda tf: tf.add,
}.items():
    _register_nary(_op, _make, dtypes(*REALS), _widened, narrow)
for _op, _make in {"Max": lambda tf: tf.maximum, "Min": lambda tf: tf.minimum}.items():
    _register_nary(_op, _make, dtypes(*REALS), ordered, from_ordered)
for _op, _make in {
    "Greater": lambda tf: tf.greater,
    "GreaterOrEqual": lambda tf: tf.greater_equal,
    "Less": lambda tf: tf.less,
    "LessOrEqual": lambda tf: tf.less_equal,
}.items():
    _register_nary(_op, _make, dtypes(*REALS), ordered, _as_it_is)
for _op, _make in {"And": lambda tf: tf.logical_and, "Or": lambda tf: tf.logical_or, "Xor": lambda tf: tf.not_equal}.items():
    _register_nary(_op, _make, dtypes("bool"), _as_it_is, _as_it_is)


def _comparable(tf: Any, x: Any, logical: str) -> Any:
    """EQUAL takes bool, but neither int8 nor uint8."""
    return x if logical == "bool" else widen(tf, x)


_register_nary("Equal", lambda tf: tf.equal, dtypes(*REALS, "bool"), _comparable, _as_it_is)


@operator("Mean", rules=(float_only,))
def mean(node: Node, ctx: Context) -> None:
    """Average of the operands, broadcast."""
    scale = np.float32(1 / len(node.inputs))
    combine(node, ctx, lambda *operands: functools.reduce(ctx.tf.add, operands) * ctx.literal(scale))


@operator("PRelu", rules=(float_only,))
def prelu(node: Node, ctx: Context) -> None:
    """``x`` where it is positive, else ``slope * x``; the slope broadcasts from the last axes."""
    combine(node, ctx, lambda x, slope: ctx.tf.nn.relu(x) - slope * ctx.tf.nn.relu(-x))


@operator("Where")
def where(node: Node, ctx: Context) -> None:
    """Choose by a boolean tensor, broadcast."""
    kind = ctx.logical(node.outputs[0])

    def chosen(condition: Any, x: Any, y: Any) -> Any:
        if kind in ("int8", "uint8"):  # SELECT takes neither where it broadcasts
            return narrow(ctx.tf, ctx.tf.where(condition, widen(ctx.tf, x), widen(ctx.tf, y)), kind)
        return ctx.tf.where(condition, x, y)

    combine(node, ctx, chosen)
