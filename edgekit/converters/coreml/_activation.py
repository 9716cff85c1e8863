"""Activations that are more than one function of one value."""

from __future__ import annotations

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, floats, op

__all__: list[str] = []

_ALPHA = {"LeakyRelu": ("leaky_relu", 0.01), "Elu": ("elu", 1.0)}


@op(*_ALPHA, constraints=(floats,))
def with_alpha(node: Node, ctx: MilContext) -> None:
    """LeakyRelu and Elu."""
    name, default = _ALPHA[node.op]
    ctx.put(node, name, x=ctx.read(node.inputs[0]), alpha=ctx.scalar(node, node.attrs.get("alpha", default)))


@op("Softplus", constraints=(floats,))
def softplus(node: Node, ctx: MilContext) -> None:
    """log(1 + exp(x))."""
    ctx.put(node, "softplus", x=ctx.read(node.inputs[0]))


@op("HardSigmoid", constraints=(floats,))
def hard_sigmoid(node: Node, ctx: MilContext) -> None:
    """min(max(alpha x + beta, 0), 1)."""
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    ctx.put(node, "sigmoid_hard", x=ctx.read(node.inputs[0]), alpha=ctx.scalar(node, alpha), beta=ctx.scalar(node, beta))


@op("HardSwish", constraints=(floats,))
def hard_swish(node: Node, ctx: MilContext) -> None:
    """Product of x and HardSigmoid(x) with alpha 1/6 and beta 1/2."""
    x = ctx.read(node.inputs[0])
    gate = ctx.mid(node, "sigmoid_hard", x=x, alpha=ctx.scalar(node, 1 / 6), beta=ctx.scalar(node, 0.5))
    ctx.put(node, "mul", x=x, y=gate)


@op("Gelu", since=20, constraints=(floats,))
def gelu(node: Node, ctx: MilContext) -> None:
    """Exact, or by its approximation with tanh."""
    mode = "TANH_APPROXIMATION" if node.attrs.get("approximate", "none") == "tanh" else "EXACT"
    ctx.put(node, "gelu", x=ctx.read(node.inputs[0]), mode=mode)


@op("Swish", since=24, constraints=(floats,))
def swish(node: Node, ctx: MilContext) -> None:
    """Product of x and sigmoid(alpha x)."""
    x, alpha = ctx.read(node.inputs[0]), float(node.attrs.get("alpha", 1.0))
    if alpha == 1.0:
        ctx.put(node, "silu", x=x)
    else:
        ctx.put(node, "mul", x=x, y=ctx.mid(node, "sigmoid", x=ctx.mid(node, "mul", x=x, y=ctx.scalar(node, alpha))))


def _per_channel(node: Node, graph: Graph) -> np.ndarray | None:
    """The slope as one value a channel when it is such a constant; MIL's `prelu` takes different ones for rank 4 only."""
    shape, slope = graph.types[node.inputs[0]].shape, graph.constants.get(node.inputs[1])
    if slope is None or not 3 <= len(shape) <= 5:
        return None
    if slope.size == 1:
        return np.broadcast_to(slope.reshape(-1), (shape[1],))
    wide = (1,) * (len(shape) - slope.ndim) + slope.shape
    return slope.reshape(-1) if len(shape) == 4 and wide == (1, shape[1], *[1] * (len(shape) - 2)) else None


@op("PRelu", constraints=(floats,))
def prelu(node: Node, ctx: MilContext) -> None:
    """Where x is positive x, else slope x."""
    x, slope = ctx.tensor(node.inputs[0]), _per_channel(node, ctx.graph)
    if slope is not None:
        ctx.put(node, "prelu", x=x, alpha=np.ascontiguousarray(slope, ctx.scalar(node, 0).dtype))
        return
    scaled = ctx.mid(node, "mul", x=x, y=ctx.read(node.inputs[1]))
    ctx.put(node, "select", cond=ctx.mid(node, "less", x=x, y=ctx.scalar(node, 0)), a=scaled, b=x)


@op("Asinh", constraints=(floats,))
def asinh(node: Node, ctx: MilContext) -> None:
    """Of magnitudes below 1 by atanh(x / sqrt(x x + 1)), else by log(|x| + sqrt(x x + 1)) with the sign: each where it does not cancel."""
    x = ctx.read(node.inputs[0])
    one, size = ctx.scalar(node, 1), ctx.mid(node, "abs", x=x)
    root = ctx.mid(node, "sqrt", x=ctx.mid(node, "add", x=ctx.mid(node, "mul", x=x, y=x), y=one))
    near = ctx.mid(node, "atanh", x=ctx.mid(node, "real_div", x=x, y=root))
    far = ctx.mid(node, "log", x=ctx.mid(node, "add", x=size, y=root), epsilon=ctx.scalar(node, 0))
    signed = ctx.mid(node, "mul", x=far, y=ctx.mid(node, "sign", x=x))
    ctx.put(node, "select", cond=ctx.mid(node, "less", x=size, y=one), a=near, b=signed)


@op("Acosh", constraints=(floats,))
def acosh(node: Node, ctx: MilContext) -> None:
    """Below 2 by atanh(sqrt((x - 1) (x + 1)) / x), else by log(x + sqrt((x - 1) (x + 1)))."""
    x = ctx.read(node.inputs[0])
    one = ctx.scalar(node, 1)
    below, above = ctx.mid(node, "sub", x=x, y=one), ctx.mid(node, "add", x=x, y=one)
    root = ctx.mid(node, "sqrt", x=ctx.mid(node, "mul", x=below, y=above))
    near = ctx.mid(node, "atanh", x=ctx.mid(node, "real_div", x=root, y=x))
    far = ctx.mid(node, "log", x=ctx.mid(node, "add", x=x, y=root), epsilon=ctx.scalar(node, 0))
    ctx.put(node, "select", cond=ctx.mid(node, "less", x=x, y=ctx.scalar(node, 2)), a=near, b=far)


@op("Selu", constraints=(floats,))
def selu(node: Node, ctx: MilContext) -> None:
    """Elu with alpha, times gamma (ONNX operator Selu: the defaults are its float32 constants)."""
    alpha, gamma = node.attrs.get("alpha", 1.67326319217681884765625), node.attrs.get("gamma", 1.05070102214813232421875)
    bent = ctx.mid(node, "elu", x=ctx.read(node.inputs[0]), alpha=ctx.scalar(node, alpha))
    ctx.put(node, "mul", x=bent, y=ctx.scalar(node, gamma))


@op("Celu", constraints=(floats,))
def celu(node: Node, ctx: MilContext) -> None:
    """Elu of x / alpha, times alpha."""
    alpha = ctx.scalar(node, node.attrs.get("alpha", 1.0))
    bent = ctx.mid(node, "elu", x=ctx.mid(node, "real_div", x=ctx.read(node.inputs[0]), y=alpha), alpha=ctx.scalar(node, 1))
    ctx.put(node, "mul", x=bent, y=alpha)


@op("ThresholdedRelu", constraints=(floats,))
def thresholded_relu(node: Node, ctx: MilContext) -> None:
    """What is above alpha; MIL's operator of that name keeps alpha itself too."""
    x, alpha = ctx.tensor(node.inputs[0]), ctx.scalar(node, node.attrs.get("alpha", 1.0))
    zeros = np.zeros(ctx.shape(node.inputs[0]), np.float32)
    ctx.put(node, "select", cond=ctx.mid(node, "greater", x=x, y=alpha), a=x, b=zeros)


@op("Shrink", constraints=(floats,))
def shrink(node: Node, ctx: MilContext) -> None:
    """Zero between -lambd and lambd, moved towards zero by bias outside."""
    x = ctx.tensor(node.inputs[0])
    limit, bias = (ctx.scalar(node, node.attrs.get(name, default)) for name, default in (("lambd", 0.5), ("bias", 0.0)))
    zeros = np.zeros(ctx.shape(node.inputs[0]), np.float32)
    upper = ctx.mid(node, "select", cond=ctx.mid(node, "greater", x=x, y=limit), a=ctx.mid(node, "sub", x=x, y=bias), b=zeros)
    ctx.put(node, "select", cond=ctx.mid(node, "less", x=x, y=-limit), a=ctx.mid(node, "add", x=x, y=bias), b=upper)
