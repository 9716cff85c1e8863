"""Normalisations and Softmax. Tensors are (N, C, spatial…) in ONNX and in Core ML."""

from __future__ import annotations

import math

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, constant_at, floats, op
from edgekit.converters.coreml._window import spatial

__all__: list[str] = []


def _inference_only(node: Node, graph: Graph) -> str:  # noqa: ARG001
    """Training mode is off"""
    return "training_mode is on" if node.attrs.get("training_mode", 0) or any(node.outputs[1:]) else ""


@op("BatchNormalization", constraints=(floats, constant_at(1, 2, 3, 4), _inference_only))
def batch_normalization(node: Node, ctx: MilContext) -> None:
    """Scale and shift per channel with fixed statistics."""
    gamma, beta, mean, variance = (ctx.read(name) for name in node.inputs[1:5])
    epsilon = node.attrs.get("epsilon", 1e-5)
    if ctx.rank(node.inputs[0]) >= 3:
        stats = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance, "epsilon": gamma.dtype.type(epsilon)}
        ctx.put(node, "batch_norm", x=ctx.read(node.inputs[0]), **stats)
        return
    scale = gamma / np.sqrt(variance + gamma.dtype.type(epsilon))
    scaled = ctx.mid(node, "mul", x=ctx.read(node.inputs[0]), y=scale)
    ctx.put(node, "add", x=scaled, y=beta - mean * scale)


@op("InstanceNormalization", constraints=(floats, spatial, constant_at(1, 2)))
def instance_normalization(node: Node, ctx: MilContext) -> None:
    """Normalise each channel of each sample by its own statistics; written out, because MIL's operator takes rank 3 and 4 only."""
    x, rank = ctx.read(node.inputs[0]), ctx.rank(node.inputs[0])
    axes = list(range(2, rank))
    gamma, beta = (ctx.read(name).reshape(-1, *[1] * len(axes)) for name in node.inputs[1:3])
    centred = ctx.mid(node, "sub", x=x, y=ctx.mid(node, "reduce_mean", x=x, axes=axes, keep_dims=True))
    square = ctx.mid(node, "mul", x=centred, y=centred)
    variance = ctx.mid(node, "reduce_mean", x=square, axes=axes, keep_dims=True)
    spread = ctx.mid(node, "sqrt", x=ctx.mid(node, "add", x=variance, y=gamma.dtype.type(node.attrs.get("epsilon", 1e-5))))
    scaled = ctx.mid(node, "mul", x=ctx.mid(node, "real_div", x=centred, y=spread), y=gamma)
    ctx.put(node, "add", x=scaled, y=beta)


def _plain_layer_norm(node: Node, graph: Graph) -> str:
    """LayerNormalization has one output, constant scale and bias over the normalised axes, and computes in float32"""
    if any(node.outputs[1:]):
        return "the Mean or InvStdDev output is used"
    rank = graph.types[node.inputs[0]].rank
    axis = node.attrs.get("axis", -1) % rank
    wanted = graph.types[node.inputs[0]].shape[axis:]
    shapes = [graph.types[name].shape for name in node.inputs[1:3] if name]
    return "" if all(shape == wanted for shape in shapes) else f"scale or bias of shape {shapes}, not {wanted}"


@op("LayerNormalization", since=17, constraints=(floats, constant_at(1, 2), _plain_layer_norm))
def layer_normalization(node: Node, ctx: MilContext) -> None:
    """Normalise over the last axes, from ``axis`` on."""
    rank = ctx.rank(node.inputs[0])
    axes = list(range(node.attrs.get("axis", -1) % rank, rank))
    gamma = ctx.read(node.inputs[1])
    beta = {"beta": ctx.read(node.inputs[2])} if node.input(2) else {}
    epsilon = gamma.dtype.type(node.attrs.get("epsilon", 1e-5))
    ctx.put(node, "layer_norm", x=ctx.read(node.inputs[0]), axes=axes, gamma=gamma, epsilon=epsilon, **beta)


@op("Softmax", since=13, constraints=(floats,))
def softmax(node: Node, ctx: MilContext) -> None:
    """Softmax over one axis."""
    ctx.put(node, "softmax", x=ctx.tensor(node.inputs[0]), axis=int(node.attrs.get("axis", -1)))


@op("Softmax", since=1, constraints=(floats,))
def flattened_softmax(node: Node, ctx: MilContext) -> None:
    """Before opset 13: over all axes from ``axis`` on together."""
    shape = ctx.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 1)) % len(shape)
    if axis == len(shape) - 1:
        ctx.put(node, "softmax", x=ctx.tensor(node.inputs[0]), axis=axis)
        return
    flat = ctx.mid(node, "reshape", x=ctx.tensor(node.inputs[0]), shape=[math.prod(shape[:axis]), math.prod(shape[axis:])])
    ctx.put(node, "reshape", x=ctx.mid(node, "softmax", x=flat, axis=1), shape=list(shape))


@op("LogSoftmax", since=13, constraints=(floats,))
def log_softmax(node: Node, ctx: MilContext) -> None:
    """Logarithm of the softmax: the largest value is taken off first, so that nothing overflows and large values lose nothing."""
    x, axis = ctx.tensor(node.inputs[0]), int(node.attrs.get("axis", -1)) % ctx.rank(node.inputs[0])
    below = ctx.mid(node, "sub", x=x, y=ctx.mid(node, "reduce_max", x=x, axes=[axis], keep_dims=True))
    ctx.put(node, "sub", x=below, y=ctx.mid(node, "reduce_log_sum_exp", x=below, axes=[axis], keep_dims=True))


def _odd_size(node: Node, graph: Graph) -> str:  # noqa: ARG001
    """LRN's size is odd; on which side MIL takes the odd channel of an even one is not documented"""
    return "" if int(node.attrs["size"]) % 2 else f"size {node.attrs['size']}"


@op("LRN", constraints=(floats, spatial, _odd_size))
def local_response_normalization(node: Node, ctx: MilContext) -> None:
    """Normalisation across channels."""
    values = {name: ctx.scalar(node, node.attrs.get(given, default)) for name, given, default in _LRN}
    ctx.put(node, "local_response_norm", x=ctx.read(node.inputs[0]), size=int(node.attrs["size"]), **values)


_LRN = (("alpha", "alpha", 1e-4), ("beta", "beta", 0.75), ("k", "bias", 1.0))
