"""Convolutions, pools, normalisations, Softmax and Resize. Tensors are (N, C, spatial…) in ONNX and in Core ML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, constant_at, floats, op

__all__: list[str] = []

# --- windows -------------------------------------------------------------------------------------------------------------------------------


def _spatial(node: Node, graph: Graph) -> str:
    """One to three spatial axes"""
    rank = graph.types[node.inputs[0]].rank
    return "" if 3 <= rank <= 5 else f"input of rank {rank}"


def _kernel(node: Node, graph: Graph) -> list[int]:
    if node.op in ("Conv", "ConvTranspose"):
        return list(graph.types[node.inputs[1]].shape[2:])
    return list(node.attrs["kernel_shape"])


def _per_axis(node: Node, name: str, count: int) -> list[int]:
    return list(node.attrs.get(name) or [1] * count)


def _window_pads(node: Node, graph: Graph) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis, ``auto_pad`` resolved (ONNX operator Conv, attribute auto_pad)."""
    sizes = graph.types[node.inputs[0]].shape[2:]
    count = len(sizes)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * count
    if mode == "NOTSET":
        flat = list(node.attrs.get("pads") or [0] * 2 * count)
        return [(flat[axis], flat[axis + count]) for axis in range(count)]
    pads = []
    strides, dilations = _per_axis(node, "strides", count), _per_axis(node, "dilations", count)
    for size, kernel, stride, dilation in zip(sizes, _kernel(node, graph), strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return pads


def _pads_positive(node: Node, graph: Graph) -> str:
    """Pads are not negative"""
    return "" if all(min(pair) >= 0 for pair in _window_pads(node, graph)) else f"negative pads {list(node.attrs['pads'])}"


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [value for pair in pads for value in pair]


def _padding(pads: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """MIL's arguments for explicit pads."""
    flat = _flat(pads)
    return {"pad_type": "custom", "pad": flat} if any(flat) else {"pad_type": "valid"}


# --- convolutions --------------------------------------------------------------------------------------------------------------------------


@op("Conv", constraints=(floats, _spatial, constant_at(1, 2), _pads_positive))
def conv(node: Node, ctx: MilContext) -> None:
    """Grouped, strided, dilated convolution over one to three axes."""
    count = ctx.rank(node.inputs[0]) - 2
    bias = {"bias": ctx.read(node.inputs[2])} if node.input(2) else {}
    ctx.put(
        node,
        "conv",
        x=ctx.read(node.inputs[0]),
        weight=ctx.read(node.inputs[1]),
        strides=_per_axis(node, "strides", count),
        dilations=_per_axis(node, "dilations", count),
        groups=int(node.attrs.get("group", 1)),
        **_padding(_window_pads(node, ctx.graph)),
        **bias,
    )


def _transpose_pads(node: Node, graph: Graph) -> list[tuple[int, int]]:
    """(before, after) to cut from each axis of the full transposed convolution; negative where ``output_padding`` goes beyond it.

    The output's shape is known, so ``output_shape``, ``auto_pad`` and ``output_padding`` all come down to this (ONNX operator ConvTranspose).
    """
    sizes, wanted = graph.types[node.inputs[0]].shape[2:], graph.types[node.outputs[0]].shape[2:]
    count = len(sizes)
    strides, dilations = _per_axis(node, "strides", count), _per_axis(node, "dilations", count)
    mode = node.attrs.get("auto_pad", "NOTSET")
    explicit = list(node.attrs.get("pads") or [0] * 2 * count)
    extra = list(node.attrs.get("output_padding") or [0] * count)
    pads = []
    for axis, kernel in enumerate(_kernel(node, graph)):
        full = strides[axis] * (sizes[axis] - 1) + (kernel - 1) * dilations[axis] + 1
        cut = full - wanted[axis]
        if mode in ("NOTSET", "VALID") and not node.attrs.get("output_shape"):
            before = explicit[axis] if mode == "NOTSET" else 0
        else:
            total = cut + extra[axis]
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        pads.append((before, cut - before))
    return pads


def _transpose_cuts(node: Node, graph: Graph) -> str:
    """Pads before an axis are not negative"""
    return "" if all(before >= 0 for before, _ in _transpose_pads(node, graph)) else "padding before the first element"


@op("ConvTranspose", constraints=(floats, _spatial, constant_at(1, 2), _transpose_cuts))
def conv_transpose(node: Node, ctx: MilContext) -> None:
    """Transposed convolution; what ``output_padding`` adds beyond the full result is zeros plus bias."""
    count = ctx.rank(node.inputs[0]) - 2
    pads = _transpose_pads(node, ctx.graph)
    beyond = [(0, max(-after, 0)) for _, after in pads]
    bias = ctx.read(node.inputs[2]) if node.input(2) else None
    arguments: dict[str, Any] = {
        "x": ctx.read(node.inputs[0]),
        "weight": ctx.read(node.inputs[1]),
        "strides": _per_axis(node, "strides", count),
        "dilations": _per_axis(node, "dilations", count),
        "groups": int(node.attrs.get("group", 1)),
        **_padding([(before, max(after, 0)) for before, after in pads]),
    }
    if not any(_flat(beyond)):
        ctx.put(node, "conv_transpose", **arguments, **({} if bias is None else {"bias": bias}))
        return
    full = ctx.mid(node, "conv_transpose", **arguments)
    if bias is None:
        ctx.put(node, "pad", x=full, pad=_flat(beyond), mode="constant")
        return
    padded = ctx.mid(node, "pad", x=full, pad=_flat(beyond), mode="constant")
    ctx.put(node, "add", x=padded, y=bias.reshape(-1, *[1] * count))


# --- pools ---------------------------------------------------------------------------------------------------------------------------------


def _pool_plan(node: Node, graph: Graph) -> tuple[list[tuple[int, int]], bool]:
    """Pads that give the node's output size, and whether ``ceil_mode`` made them reach further than the node's own."""
    count = graph.types[node.inputs[0]].rank - 2
    sizes, wanted = graph.types[node.inputs[0]].shape[2:], graph.types[node.outputs[0]].shape[2:]
    strides, pads, reaches = _per_axis(node, "strides", count), _window_pads(node, graph), False
    for axis, kernel in enumerate(_kernel(node, graph)):
        before, after = pads[axis]
        missing = (wanted[axis] - 1) * strides[axis] + kernel - sizes[axis] - before - after
        if missing > 0:
            pads[axis], reaches = (before, after + missing), True
    return pads, reaches


def _pool_rules(node: Node, graph: Graph) -> str:
    """Pools have no dilations and no Indices output; average pools that round their size up do not count padding"""
    if any(value != 1 for value in node.attrs.get("dilations") or []):
        return f"dilations {list(node.attrs['dilations'])}"
    if any(node.outputs[1:]):
        return "the Indices output is used"
    if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0) and _pool_plan(node, graph)[1]:
        return "ceil_mode with count_include_pad"
    return ""


@op("MaxPool", "AveragePool", constraints=(floats, _spatial, _pool_rules, _pads_positive))
def pool(node: Node, ctx: MilContext) -> None:
    """Maximum (padding never wins) or average over a window."""
    kernel = _kernel(node, ctx.graph)
    arguments: dict[str, Any] = {
        "x": ctx.read(node.inputs[0]),
        "kernel_sizes": kernel,
        "strides": _per_axis(node, "strides", len(kernel)),
        **_padding(_pool_plan(node, ctx.graph)[0]),
    }
    if node.op == "MaxPool":
        ctx.put(node, "max_pool", **arguments)
    else:
        ctx.put(node, "avg_pool", **arguments, exclude_padding_from_average=not node.attrs.get("count_include_pad", 0))


@op("GlobalAveragePool", "GlobalMaxPool", constraints=(floats, _spatial))
def global_pool(node: Node, ctx: MilContext) -> None:
    """Reduction of all spatial axes."""
    axes = list(range(2, ctx.rank(node.inputs[0])))
    name = "reduce_mean" if node.op == "GlobalAveragePool" else "reduce_max"
    ctx.put(node, name, x=ctx.read(node.inputs[0]), axes=axes, keep_dims=True)


# --- normalisation -------------------------------------------------------------------------------------------------------------------------


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


@op("InstanceNormalization", constraints=(floats, _spatial, constant_at(1, 2)))
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
