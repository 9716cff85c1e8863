"""Convolutions and transposed convolutions. Tensors are (N, C, spatial…) in ONNX and in Core ML."""

from __future__ import annotations

from typing import Any

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, constant_at, floats, op
from edgekit.converters.coreml._window import flat, kernel_sizes, padding, pads_positive, per_axis, same_padding, spatial, window_pads

__all__: list[str] = []


@op("Conv", constraints=(floats, spatial, constant_at(1, 2), pads_positive))
def conv(node: Node, ctx: MilContext) -> None:
    """Grouped, strided, dilated convolution over one to three axes."""
    count = ctx.rank(node.inputs[0]) - 2
    bias = {"bias": ctx.read(node.inputs[2])} if node.input(2) else {}
    ctx.put(
        node,
        "conv",
        x=ctx.read(node.inputs[0]),
        weight=ctx.read(node.inputs[1]),
        strides=per_axis(node, "strides", count),
        dilations=per_axis(node, "dilations", count),
        groups=int(node.attrs.get("group", 1)),
        **(same_padding(node, ctx.graph) or padding(window_pads(node, ctx.graph))),
        **bias,
    )


def _transpose_pads(node: Node, graph: Graph) -> list[tuple[int, int]]:
    """(before, after) to cut from each axis of the full transposed convolution; negative where ``output_padding`` goes beyond it.

    The output's shape is known, so ``output_shape``, ``auto_pad`` and ``output_padding`` all come down to this (ONNX operator ConvTranspose).
    """
    sizes, wanted = graph.types[node.inputs[0]].shape[2:], graph.types[node.outputs[0]].shape[2:]
    count = len(sizes)
    strides, dilations = per_axis(node, "strides", count), per_axis(node, "dilations", count)
    mode = node.attrs.get("auto_pad", "NOTSET")
    explicit = list(node.attrs.get("pads") or [0] * 2 * count)
    extra = list(node.attrs.get("output_padding") or [0] * count)
    pads = []
    for axis, kernel in enumerate(kernel_sizes(node, graph)):
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


@op("ConvTranspose", constraints=(floats, spatial, constant_at(1, 2), _transpose_cuts))
def conv_transpose(node: Node, ctx: MilContext) -> None:
    """Transposed convolution; what ``output_padding`` adds beyond the full result is zeros plus bias."""
    count = ctx.rank(node.inputs[0]) - 2
    pads = _transpose_pads(node, ctx.graph)
    beyond = [(0, max(-after, 0)) for _, after in pads]
    bias = ctx.read(node.inputs[2]) if node.input(2) else None
    arguments: dict[str, Any] = {
        "x": ctx.read(node.inputs[0]),
        "weight": ctx.read(node.inputs[1]),
        "strides": per_axis(node, "strides", count),
        "dilations": per_axis(node, "dilations", count),
        "groups": int(node.attrs.get("group", 1)),
        **padding([(before, max(after, 0)) for before, after in pads]),
    }
    if not any(flat(beyond)):
        ctx.put(node, "conv_transpose", **arguments, **({} if bias is None else {"bias": bias}))
        return
    full = ctx.mid(node, "conv_transpose", **arguments)
    if bias is None:
        ctx.put(node, "pad", x=full, pad=flat(beyond), mode="constant")
        return
    padded = ctx.mid(node, "pad", x=full, pad=flat(beyond), mode="constant")
    ctx.put(node, "add", x=padded, y=bias.reshape(-1, *[1] * count))
