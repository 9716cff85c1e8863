"""Blocks of pixels to channels and back."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._layout import channels_last, permuted
from edgekit.converters.tflite._rules import operator

__all__ = ["with_ordered_blocks"]

_NATIVE = ("float32", "int32", "int64", "uint8", "int8")  # what the kernels of DEPTH_TO_SPACE and SPACE_TO_DEPTH take


@operator("DepthToSpace", "SpaceToDepth")
def blocks(node: Node, ctx: Context) -> None:
    """Move blocks of pixels to channels or back; channels that lie pixel by pixel need a transpose."""
    tf, size = ctx.tf, node.attrs["blocksize"]
    x = ctx.get(node.inputs[0], channels_last(4))
    after = permuted(ctx.shape(node.outputs[0]), channels_last(4))
    batch, height, width, channels = after
    ordered = node.op == "SpaceToDepth" or node.attrs.get("mode", "DCR") == "DCR"
    if ordered and x.dtype.name in _NATIVE:
        y = (tf.nn.space_to_depth if node.op == "SpaceToDepth" else tf.nn.depth_to_space)(x, size)
    elif node.op == "SpaceToDepth":
        y = tf.transpose(tf.reshape(x, (batch, height, size, width, size, x.shape[3])), (0, 1, 3, 2, 4, 5))
    else:
        parts = (size, size, channels) if ordered else (channels, size, size)
        x = tf.reshape(x, (batch, height // size, width // size, *parts))
        y = tf.transpose(x, (0, 1, 3, 2, 4, 5) if ordered else (0, 1, 4, 2, 5, 3))
    ctx.put(node.outputs[0], tf.reshape(y, after), channels_last(4))


def with_ordered_blocks(graph: Graph) -> Graph:
    """The graph with each ``DepthToSpace`` of mode CRD that follows a convolution, as PyTorch's pixel shuffle does, in mode DCR.

    The convolution's output channels are put into the other order, which costs nothing when the model runs.
    """
    producers = {name: node for node in graph.nodes for name in node.outputs}
    constants, types = dict(graph.constants), dict(graph.types)
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "DepthToSpace" or node.attrs.get("mode", "DCR") != "CRD" or node.inputs[0] not in producers:
            continue
        source = producers[node.inputs[0]]
        if not _is_orderable(source, graph):
            continue
        size = node.attrs["blocksize"]
        channels = graph.types[node.inputs[0]].shape[1]
        places = np.arange(channels).reshape(-1, size, size).transpose(1, 2, 0).reshape(-1)
        inputs = list(source.inputs)
        for index, name in enumerate(source.inputs[1:], 1):
            if name:
                inputs[index] = f"{name}/{node.outputs[0]}"
                constants[inputs[index]], types[inputs[index]] = graph.constants[name][places], graph.types[name]
        changed[source.name] = dataclasses.replace(source, inputs=tuple(inputs))
        changed[node.name] = dataclasses.replace(node, attrs={**node.attrs, "mode": "DCR"})
    nodes = tuple(changed.get(node.name, node) for node in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes, constants=constants, types=types) if changed else graph


def _is_orderable(node: Node, graph: Graph) -> bool:
    """True for a convolution with constant parameters and one reader, whose output channels can come in any order."""
    known = all(name in graph.constants for name in node.inputs[1:] if name)
    alone = len(graph.consumers(node.outputs[0])) == 1 and all(spec.name != node.outputs[0] for spec in graph.outputs)
    return node.op == "Conv" and node.attrs.get("group", 1) == 1 and known and alone
