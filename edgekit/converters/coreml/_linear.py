"""Matrix products."""

from __future__ import annotations

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters.coreml._context import MilContext, floats, numbers, op

__all__: list[str] = []


@op("MatMul", constraints=(numbers,))
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
        product = product if alpha == 1.0 else ctx.mid(node, "mul", x=product, y=ctx.scalar(node, alpha))
    if not node.input(2):
        ctx.pass_on(node, product)
        return
    c = ctx.read(node.inputs[2])
    c = c if beta == 1.0 else ctx.mid(node, "mul", x=c, y=ctx.scalar(node, beta))
    ctx.put(node, "add", x=product, y=c)


def _gemm_bias(node: Node, ctx: MilContext) -> np.ndarray | None:
    """C as one value per output column, when it is a constant of such a shape."""
    c = ctx.constant(node.input(2)) if node.input(2) else None
    if c is None or (c.ndim == 2 and c.shape[0] != 1):
        return None
    return np.ascontiguousarray(np.broadcast_to(c.reshape(-1), (ctx.shape(node.outputs[0])[1],)))
