"""Geometry that convolutions and pools share. Tensors are (N, C, spatial…) in ONNX and in Core ML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgekit.converters._graph import Graph, Node

__all__ = ["flat", "kernel_sizes", "padding", "pads_positive", "per_axis", "same_padding", "spatial", "window_pads"]


def spatial(node: Node, graph: Graph) -> str:
    """One to three spatial axes"""
    rank = graph.types[node.inputs[0]].rank
    return "" if 3 <= rank <= 5 else f"input of rank {rank}"


def kernel_sizes(node: Node, graph: Graph) -> list[int]:
    if node.op in ("Conv", "ConvTranspose"):
        return list(graph.types[node.inputs[1]].shape[2:])
    return list(node.attrs["kernel_shape"])


def per_axis(node: Node, name: str, count: int) -> list[int]:
    return list(node.attrs.get(name) or [1] * count)


def window_pads(node: Node, graph: Graph) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis, ``auto_pad`` resolved (ONNX operator Conv, attribute auto_pad)."""
    sizes = graph.types[node.inputs[0]].shape[2:]
    count = len(sizes)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * count
    if mode == "NOTSET":
        amounts = list(node.attrs.get("pads") or [0] * 2 * count)
        return [(amounts[axis], amounts[axis + count]) for axis in range(count)]
    pads = []
    strides, dilations = per_axis(node, "strides", count), per_axis(node, "dilations", count)
    for size, kernel, stride, dilation in zip(sizes, kernel_sizes(node, graph), strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return pads


def pads_positive(node: Node, graph: Graph) -> str:
    """Pads are not negative"""
    return "" if all(min(pair) >= 0 for pair in window_pads(node, graph)) else f"negative pads {list(node.attrs['pads'])}"


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [value for pair in pads for value in pair]


def same_padding(node: Node, graph: Graph) -> dict[str, Any]:
    """MIL's own words for padding that depends on the size, where sizes are examples of open ones; empty where pads say it all.

    ``same`` pads as SAME_UPPER does, ``same_lower`` as SAME_LOWER (MIL operator conv, argument pad_type).
    """
    words = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}
    word = words.get(node.attrs.get("auto_pad", "NOTSET"))
    return {"pad_type": word} if graph.sample_of_open and word else {}


def padding(pads: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """MIL's arguments for explicit pads."""
    amounts = flat(pads)
    return {"pad_type": "custom", "pad": amounts} if any(amounts) else {"pad_type": "valid"}
