"""Copies of nodes under other names: what expanding a function, unrolling a loop and inlining a branch have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["defined_in", "inner_graphs", "outer_reads", "renamed"]


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node carries as attributes (branches, bodies)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def defined_in(graph: onnx.GraphProto) -> set[str]:
    """Names of the values that a graph itself defines."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return names | {name for node in graph.node for name in node.output if name}


def outer_reads(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes read, those that their inner graphs take from around them included."""
    found: set[str] = set()
    for node in nodes:
        found.update(name for name in node.input if name)
        for graph in inner_graphs(node):
            inside = outer_reads(graph.node) | {value.name for value in graph.output}
            found |= inside - defined_in(graph)
    return found


def renamed(node: onnx.NodeProto, values: Mapping[str, str], name: str) -> onnx.NodeProto:
    """A copy of a node called ``name`` whose values are called after ``values``; names that are not in there stay.

    Inner graphs follow, except for what they define themselves under the same name.
    """
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = name
    _rename(copy, values)
    return copy


def _rename(node: onnx.NodeProto, values: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            names[index] = values.get(name, name)
    for graph in inner_graphs(node):
        own = defined_in(graph)
        visible = {name: other for name, other in values.items() if name not in own}
        for inner in graph.node:
            _rename(inner, visible)
        for value in graph.output:
            value.name = visible.get(value.name, value.name)
