"""Element-wise functions, bounds, comparisons, logic, choice and casts."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import NARROW, MilContext, floats, mil_dtype, numbers, op
from edgekit.converters.coreml._tensor import repeated

__all__: list[str] = []

_COMPARE = {"Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal"}
_LOGICAL = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}
_FLOAT_UNARY = {
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Erf": "erf",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Atanh": "atanh",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",  # half to even (MIL operator round: "0.5 is rounded to 0")
    "Softsign": "softsign",
}


@op("Reciprocal", constraints=(floats,))
def reciprocal(node: Node, ctx: MilContext) -> None:
    """1/x by division: MIL's `inverse` adds an epsilon."""
    x = ctx.read(node.inputs[0])
    ctx.put(node, "real_div", x=ctx.scalar(node, 1.0), y=x)


@op(*_FLOAT_UNARY, constraints=(floats,))
def float_unary(node: Node, ctx: MilContext) -> None:
    """Float functions that MIL has under the same meaning."""
    ctx.put(node, _FLOAT_UNARY[node.op], x=ctx.read(node.inputs[0]))


@op("Log", constraints=(floats,))
def log(node: Node, ctx: MilContext) -> None:
    """Natural logarithm; MIL adds an epsilon to x, the smallest there is."""
    ctx.put(node, "log", x=ctx.read(node.inputs[0]), epsilon=ctx.scalar(node, 0.0))


@op("Relu", constraints=(numbers,))
def relu(node: Node, ctx: MilContext) -> None:
    """max(x, 0)."""
    x = ctx.read(node.inputs[0])
    if floats(node, ctx.graph):
        ctx.put(node, "maximum", x=x, y=np.int32(0))
    else:
        ctx.put(node, "relu", x=x)


@op("Abs", constraints=(numbers,))
def absolute(node: Node, ctx: MilContext) -> None:
    """|x|; the lowest narrow integer wraps around to itself."""
    ctx.put_wrapped(node, "abs", x=ctx.read(node.inputs[0]))


@op("Sign", constraints=(numbers,))
def sign(node: Node, ctx: MilContext) -> None:
    """-1, 0 or 1."""
    ctx.put(node, "sign", x=ctx.read(node.inputs[0]))


@op("Neg", constraints=(numbers,))
def negate(node: Node, ctx: MilContext) -> None:
    """-x."""
    ctx.put_wrapped(node, "mul", x=ctx.read(node.inputs[0]), y=ctx.scalar(node, -1))


def _one_value_bounds(node: Node, graph: Graph) -> str:
    """Min and max of Clip have one element"""
    sizes = [graph.constants[name].size for name in node.inputs[1:3] if name in graph.constants]
    return "" if all(size == 1 for size in sizes) else f"bounds with {max(sizes)} elements"


def _bound(node: Node, ctx: MilContext, index: int, attribute: str) -> float | int | None:
    if node.input(index):
        return np.asarray(ctx.graph.constants[node.input(index)]).reshape(-1)[0].item()  # type: ignore[no-any-return]
    return node.attrs.get(attribute)


@op("Clip", parameters=(1, 2), constraints=(numbers, _one_value_bounds))
def clip(node: Node, ctx: MilContext) -> None:
    """min(max(x, low), high); bounds that no float32 passes are left out, because float16 turns them into infinities."""
    x = ctx.read(node.inputs[0])
    low, high = _bound(node, ctx, 1, "min"), _bound(node, ctx, 2, "max")
    limit = float(np.finfo(np.float32).max) if not floats(node, ctx.graph) else float(np.iinfo(np.int32).max)
    low = None if low is not None and low <= -limit else low
    high = None if high is not None and high >= limit else high
    if low is None and high is None:
        ctx.pass_on(node, x)
    elif high is None and low == 0 and not floats(node, ctx.graph):
        ctx.put(node, "relu", x=x)
    elif low is not None and high is not None and low < high and not floats(node, ctx.graph):
        ctx.put(node, "clip", x=x, alpha=ctx.scalar(node, low), beta=ctx.scalar(node, high))
    elif high is None:
        ctx.put(node, "maximum", x=x, y=ctx.scalar(node, low))
    else:
        above = x if low is None else ctx.mid(node, "maximum", x=x, y=ctx.scalar(node, low))
        ctx.put(node, "minimum", x=above, y=ctx.scalar(node, high))


@op("Max", "Min", "Sum", constraints=(numbers,))
def variadic(node: Node, ctx: MilContext) -> None:
    """Any number of inputs, broadcast against each other."""
    name = {"Max": "maximum", "Min": "minimum", "Sum": "add"}[node.op]
    total = ctx.read(node.inputs[0])
    if len(node.inputs) == 1:
        ctx.pass_on(node, total)
        return
    for other in node.inputs[1:-1]:
        total = ctx.mid(node, name, x=total, y=ctx.read(other))
    ctx.put_wrapped(node, name, x=total, y=ctx.read(node.inputs[-1]))


@op(*_COMPARE, constraints=(numbers,))
def compare(node: Node, ctx: MilContext) -> None:
    """Ordering of numbers."""
    ctx.put(node, _COMPARE[node.op], x=ctx.read(node.inputs[0]), y=ctx.read(node.inputs[1]))


@op("Equal")
def equal(node: Node, ctx: MilContext) -> None:
    """Equality; booleans are compared as integers."""
    x, y = (ctx.read(name) for name in node.inputs)
    if ctx.dtype(node.inputs[0]) == "bool":
        x, y = (_as_int(node, ctx, name) for name in node.inputs)
    ctx.put(node, "equal", x=x, y=y)


@op(*_LOGICAL)
def logical(node: Node, ctx: MilContext) -> None:
    """And, Or, Xor of booleans."""
    ctx.put(node, _LOGICAL[node.op], x=ctx.read(node.inputs[0]), y=ctx.read(node.inputs[1]))


@op("Not")
def logical_not(node: Node, ctx: MilContext) -> None:
    """Negation of booleans."""
    ctx.put(node, "logical_not", x=ctx.read(node.inputs[0]))


@op("Where")
def where(node: Node, ctx: MilContext) -> None:
    """Choice between two tensors, with broadcasting; MIL infers the result from the two alone, so they must span it."""
    condition, a, b = (ctx.read(name) for name in node.inputs)
    wanted = ctx.shape(node.outputs[0])
    if np.broadcast_shapes(*(ctx.shape(name) for name in node.inputs[1:])) != wanted:
        spanning = node.inputs[2] if node.inputs[2] in ctx.graph.constants else node.inputs[1]
        full = repeated(node, ctx, spanning, wanted)
        a, b = (full, b) if spanning == node.inputs[1] else (a, full)
    ctx.put(node, "select", cond=condition, a=a, b=b)


def _cast_keeps_values(node: Node, graph: Graph) -> str:
    """A cast to uint32 or uint64 comes from unsigned integers or bool, or its result is an output only"""
    source, target = graph.types[node.inputs[0]].dtype, graph.types[node.outputs[0]].dtype
    if target not in ("uint32", "uint64") or source == "bool" or source.startswith("uint") or not graph.consumers(node.outputs[0]):
        return ""
    return f"cast from {source} to {target} inside the graph: Core ML carries {target} as int32, which has negative values"


@op("Cast", constraints=(_cast_keeps_values,))
def cast(node: Node, ctx: MilContext) -> None:
    """Change of type; towards zero from float to integer, ``x != 0`` to bool, narrow integers wrap around."""
    source, target = (ctx.dtype(name) for name in (node.inputs[0], node.outputs[0]))
    x = ctx.read(node.inputs[0])
    if mil_dtype(target) == "bool" and source != "bool":
        ctx.put(node, "not_equal", x=x, y=ctx.scalar(node, 0))
    elif mil_dtype(source) != mil_dtype(target):
        if target in NARROW and source != "bool":
            ctx.pass_on(node, ctx.wrapped(node, ctx.mid(node, "cast", x=x, dtype="int32"), target))
        else:
            ctx.put(node, "cast", x=x, dtype=mil_dtype(target))
    else:
        fits = target not in NARROW or source == "bool" or np.can_cast(source, target)
        ctx.pass_on(node, x if fits else ctx.wrapped(node, x, target))


def _as_int(node: Node, ctx: MilContext, tensor: str) -> Any:
    value = ctx.read(tensor)
    return value.astype(np.int32) if tensor in ctx.graph.constants else ctx.mid(node, "cast", x=value, dtype="int32")


@op("IsNaN", constraints=(floats,))
def is_nan(node: Node, ctx: MilContext) -> None:
    """The only value that differs from itself, as coremltools' own front ends put it."""
    x = ctx.read(node.inputs[0])
    ctx.put(node, "not_equal", x=x, y=x)


@op("IsInf", constraints=(floats,))
def is_inf(node: Node, ctx: MilContext) -> None:
    """Equality with the infinities that the attributes name."""
    x = ctx.read(node.inputs[0])
    positive, negative = node.attrs.get("detect_positive", 1), node.attrs.get("detect_negative", 1)
    if positive and negative:
        ctx.put(node, "equal", x=ctx.mid(node, "abs", x=x), y=ctx.scalar(node, np.inf))
    elif positive or negative:
        ctx.put(node, "equal", x=x, y=ctx.scalar(node, np.inf if positive else -np.inf))
    else:
        ctx.put(node, "logical_and", x=ctx.mid(node, "equal", x=x, y=x), y=np.False_)
