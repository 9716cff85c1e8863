"""Element-wise operators, casts, comparisons and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, mil_dtype, numbers, op
from edgekit.converters.coreml._tensor import repeated

__all__: list[str] = []

_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul"}
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
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",  # half to even (MIL operator round: "0.5 is rounded to 0")
    "Softsign": "softsign",
}
_ALPHA = {"LeakyRelu": ("leaky_relu", 0.01), "Elu": ("elu", 1.0)}


@op(*_BINARY, constraints=(numbers,))
def binary(node: Node, ctx: MilContext) -> None:
    """Add, Sub, Mul with broadcasting."""
    ctx.put(node, _BINARY[node.op], x=ctx.read(node.inputs[0]), y=ctx.read(node.inputs[1]))


@op("Div", constraints=(floats,))
def divide(node: Node, ctx: MilContext) -> None:
    """Float division; integers are refused, because MIL's integer division rounds down and ONNX's towards zero."""
    ctx.put(node, "real_div", x=ctx.read(node.inputs[0]), y=ctx.read(node.inputs[1]))


@op("Pow", constraints=(floats,))
def power(node: Node, ctx: MilContext) -> None:
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
        y = ctx.read(node.inputs[1])
        if mil_dtype(ctx.dtype(node.inputs[1])) == "int32":
            y = y.astype(np.float32) if exponent is not None else ctx.mid(node, "cast", x=y, dtype="fp32")
        ctx.put(node, "pow", x=x, y=y)


@op("Reciprocal", constraints=(floats,))
def reciprocal(node: Node, ctx: MilContext) -> None:
    """1/x by division: MIL's `inverse` adds an epsilon."""
    x = ctx.read(node.inputs[0])
    ctx.put(node, "real_div", x=_scalar(ctx, node, 1.0), y=x)


@op(*_FLOAT_UNARY, constraints=(floats,))
def float_unary(node: Node, ctx: MilContext) -> None:
    """Float functions that MIL has under the same meaning."""
    ctx.put(node, _FLOAT_UNARY[node.op], x=ctx.read(node.inputs[0]))


@op("Log", constraints=(floats,))
def log(node: Node, ctx: MilContext) -> None:
    """Natural logarithm; MIL adds an epsilon to x, the smallest there is."""
    ctx.put(node, "log", x=ctx.read(node.inputs[0]), epsilon=_scalar(ctx, node, 0.0))


@op("Relu", constraints=(floats,))
def relu(node: Node, ctx: MilContext) -> None:
    """max(x, 0)."""
    ctx.put(node, "relu", x=ctx.read(node.inputs[0]))


@op("Abs", constraints=(numbers,))
def absolute(node: Node, ctx: MilContext) -> None:
    """|x|."""
    ctx.put(node, "abs", x=ctx.read(node.inputs[0]))


@op("Sign", constraints=(numbers,))
def sign(node: Node, ctx: MilContext) -> None:
    """-1, 0 or 1."""
    ctx.put(node, "sign", x=ctx.read(node.inputs[0]))


@op("Neg", constraints=(numbers,))
def negate(node: Node, ctx: MilContext) -> None:
    """-x."""
    ctx.put(node, "mul", x=ctx.read(node.inputs[0]), y=_scalar(ctx, node, -1))


@op(*_ALPHA, constraints=(floats,))
def with_alpha(node: Node, ctx: MilContext) -> None:
    """LeakyRelu and Elu."""
    name, default = _ALPHA[node.op]
    ctx.put(node, name, x=ctx.read(node.inputs[0]), alpha=_scalar(ctx, node, node.attrs.get("alpha", default)))


@op("Softplus", constraints=(floats,))
def softplus(node: Node, ctx: MilContext) -> None:
    """log(1 + exp(x))."""
    ctx.put(node, "softplus", x=ctx.read(node.inputs[0]))


@op("HardSigmoid", constraints=(floats,))
def hard_sigmoid(node: Node, ctx: MilContext) -> None:
    """min(max(alpha x + beta, 0), 1)."""
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    ctx.put(node, "sigmoid_hard", x=ctx.read(node.inputs[0]), alpha=_scalar(ctx, node, alpha), beta=_scalar(ctx, node, beta))


@op("HardSwish", constraints=(floats,))
def hard_swish(node: Node, ctx: MilContext) -> None:
    """Product of x and HardSigmoid(x) with alpha 1/6 and beta 1/2."""
    x = ctx.read(node.inputs[0])
    gate = ctx.mid(node, "sigmoid_hard", x=x, alpha=_scalar(ctx, node, 1 / 6), beta=_scalar(ctx, node, 0.5))
    ctx.put(node, "mul", x=x, y=gate)


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
    limit = float(np.finfo(np.float32).max) if "float" in ctx.dtype(node.inputs[0]) else float(np.iinfo(np.int32).max)
    low = None if low is not None and low <= -limit else low
    high = None if high is not None and high >= limit else high
    if low is None and high is None:
        ctx.pass_on(node, x)
    elif high is None and low == 0 and not floats(node, ctx.graph):
        ctx.put(node, "relu", x=x)
    elif low is not None and high is not None and low < high and not floats(node, ctx.graph):
        ctx.put(node, "clip", x=x, alpha=_scalar(ctx, node, low), beta=_scalar(ctx, node, high))
    elif high is None:
        ctx.put(node, "maximum", x=x, y=_scalar(ctx, node, low))
    else:
        above = x if low is None else ctx.mid(node, "maximum", x=x, y=_scalar(ctx, node, low))
        ctx.put(node, "minimum", x=above, y=_scalar(ctx, node, high))


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
    ctx.put(node, name, x=total, y=ctx.read(node.inputs[-1]))


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
    """Casts go to float32, float16, int32, int64 or bool; booleans also to smaller integers"""
    source, target = graph.types[node.inputs[0]].dtype, graph.types[node.outputs[0]].dtype
    if target in ("float32", "float16", "int32", "int64", "bool") or source in ("bool", target):
        return ""
    return f"cast from {source} to {target}: Core ML carries {target} as int32 and would not wrap"


@op("Cast", constraints=(_cast_keeps_values,))
def cast(node: Node, ctx: MilContext) -> None:
    """Change of type; towards zero from float to integer, ``x != 0`` to bool."""
    source, target = (mil_dtype(ctx.dtype(name)) for name in (node.inputs[0], node.outputs[0]))
    x = ctx.read(node.inputs[0])
    if source == target:
        ctx.pass_on(node, x)
    elif target == "bool":
        ctx.put(node, "not_equal", x=x, y=_scalar(ctx, node, 0))
    else:
        ctx.put(node, "cast", x=x, dtype=target)


@op("MatMul", constraints=(floats,))
def matmul(node: Node, ctx: MilContext) -> None:
    """NumPy's matmul; a vector gets an axis that is dropped afterwards."""
    left, right = (ctx.tensor(name) for name in node.inputs)
    left_rank, right_rank = (ctx.rank(name) for name in node.inputs)
    if left_rank > 1 and right_rank > 1:
        ctx.put(node, "matmul", x=left, y=right)
        return
    left = ctx.mid(node, "expand_dims", x=left, axes=[0]) if left_rank == 1 else left
    right = ctx.mid(node, "expand_dims", x=right, axes=[1]) if right_rank == 1 else right
    product = ctx.mid(node, "matmul", x=left, y=right)
    ctx.put(node, "reshape", x=product, shape=list(ctx.shape(node.outputs[0])))


@op("Gemm", constraints=(floats,))
def gemm(node: Node, ctx: MilContext) -> None:
    """Product alpha A' B' + beta C; one `linear` when B is a constant and C, if any, a constant vector."""
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    a = ctx.read(node.inputs[0])
    if node.attrs.get("transA", 0):
        a = ctx.mid(node, "transpose", x=a, perm=[1, 0])
    b = ctx.constant(node.inputs[1])
    bias = _gemm_bias(node, ctx)
    if b is not None and node.inputs[0] not in ctx.graph.constants:
        weight = b if node.attrs.get("transB", 0) else b.T
        weight = np.ascontiguousarray(weight * b.dtype.type(alpha))
        folded = {"bias": (bias * bias.dtype.type(beta))} if bias is not None else {}
        if bias is not None or not node.input(2):
            ctx.put(node, "linear", x=a, weight=weight, **folded)
            return
        product = ctx.mid(node, "linear", x=a, weight=weight)
    else:
        product = ctx.mid(node, "matmul", x=a, y=ctx.read(node.inputs[1]), transpose_y=bool(node.attrs.get("transB", 0)))
        product = product if alpha == 1.0 else ctx.mid(node, "mul", x=product, y=_scalar(ctx, node, alpha))
    if not node.input(2):
        ctx.pass_on(node, product)
        return
    c = ctx.read(node.inputs[2])
    c = c if beta == 1.0 else ctx.mid(node, "mul", x=c, y=_scalar(ctx, node, beta))
    ctx.put(node, "add", x=product, y=c)


def _gemm_bias(node: Node, ctx: MilContext) -> np.ndarray | None:
    """C as one value per output column, when it is a constant of such a shape."""
    c = ctx.constant(node.input(2)) if node.input(2) else None
    if c is None or (c.ndim == 2 and c.shape[0] != 1):
        return None
    return np.ascontiguousarray(np.broadcast_to(c.reshape(-1), (ctx.shape(node.outputs[0])[1],)))


def _scalar(ctx: MilContext, node: Node, value: Any) -> Any:
    """A number in the dtype of the node's first input."""
    return {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "bool": np.int32}[mil_dtype(ctx.dtype(node.inputs[0]))](value)


def _as_int(node: Node, ctx: MilContext, tensor: str) -> Any:
    value = ctx.read(tensor)
    return value.astype(np.int32) if tensor in ctx.graph.constants else ctx.mid(node, "cast", x=value, dtype="int32")
