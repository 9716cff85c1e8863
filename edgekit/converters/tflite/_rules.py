"""Constraints that several operators share; each docstring is the rule."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.converters._graph import Graph, Node
from edgekit.converters._registry import Constraint
from edgekit.converters.tflite._carry import carrier
from edgekit.converters.tflite._context import Context, ops
from edgekit.converters.tflite._fewer_axes import MOST_AXES, can_merge

__all__ = [
    "INTEGERS",
    "NUMBERS",
    "REALS",
    "constant_inputs",
    "dtypes",
    "few_axes",
    "float_only",
    "known_inputs",
    "operator",
    "rank_between",
    "supported_dtypes",
]

_SUPPORTED = ("float32", "int32", "int64", "bool", "int8", "uint8")
NUMBERS = ("float32", "int32", "int64")
"""What most arithmetic kernels take."""
INTEGERS = ("int8", "uint8", "int32", "int64", "uint64")
REALS = ("float32", *INTEGERS)
"""Every number, for handlers that widen small integers and order 64-bit unsigned ones themselves."""


_SHAPE_ONLY = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def supported_dtypes(node: Node, graph: Graph) -> str:
    """Tensors are numbers of 8 to 64 bits (float16 and float64 are computed in float32) or bool."""
    for name in (*node.inputs, *node.outputs):
        if name and name in graph.types and carrier(graph.types[name].dtype) not in _SUPPORTED:
            return f"tensor {name!r} is {graph.types[name].dtype}"
    return ""


def few_axes(node: Node, graph: Graph) -> str:
    """Tensors have at most 6 axes, or neighbours that can be treated as one; where the shape alone changes, 7."""
    limit = 7 if node.op in _SHAPE_ONLY else MOST_AXES
    for name in (*node.inputs, *node.outputs):
        if name and name in graph.types and graph.types[name].rank > limit:
            return "" if can_merge(node, graph) else f"tensor {name!r} has {graph.types[name].rank} axes"
    return ""


def dtypes(*allowed: str) -> Constraint:
    """A rule on the first input's dtype, by what carries it; uint64 in int64 compares wrongly, so it must be named itself."""

    def rule(node: Node, graph: Graph) -> str:
        found = graph.types[node.inputs[0]].dtype
        fits = found in allowed or (found != "uint64" and carrier(found) in allowed)
        return "" if fits else f"input {node.inputs[0]!r} is {found}"

    rule.__doc__ = f"The first input is {' or '.join(allowed)}, or carried as that."
    return rule


float_only = dtypes("float32")


def constant_inputs(*indices: int) -> Constraint:
    """A rule that inputs, where given, are constants."""

    def rule(node: Node, graph: Graph) -> str:
        for index in indices:
            name = node.input(index)
            if name and name not in graph.constants:
                return f"input {index} ({name!r}) is computed"
        return ""

    rule.__doc__ = f"Input(s) {', '.join(map(str, indices))} are constants or left out."
    return rule


def known_inputs(*indices: int) -> Constraint:
    """A rule that inputs, where given, do not depend on the model's inputs: what decides a shape."""

    def rule(node: Node, graph: Graph) -> str:
        for index in indices:
            name = node.input(index)
            if name and not _is_known(name, graph):
                return f"input {index} ({name!r}) depends on data, and with it the shape of the output"
        return ""

    rule.__doc__ = f"Input(s) {', '.join(map(str, indices))} follow from constants and shapes."
    return rule


def _is_known(name: str, graph: Graph) -> bool:
    """Whether a tensor is the same for all inputs of the model's fixed shapes."""
    producers = {output: node for node in graph.nodes for output in node.outputs}
    waiting, seen = [name], set()
    while waiting:
        tensor = waiting.pop()
        if not tensor or tensor in seen or tensor in graph.constants:
            continue
        seen.add(tensor)
        if tensor not in producers:
            return False
        node = producers[tensor]
        if node.op not in ("Shape", "Size"):
            waiting += node.inputs
    return True


def rank_between(low: int, high: int) -> Constraint:
    """A rule on the first input's rank."""

    def rule(node: Node, graph: Graph) -> str:
        rank = graph.types[node.inputs[0]].rank
        return "" if low <= rank <= high else f"rank {rank}"

    rule.__doc__ = f"The first input has rank {low}." if low == high else f"The first input has rank {low} to {high}."
    return rule


def operator(
    *names: str, since: int = 1, rules: tuple[Constraint, ...] = ()
) -> Callable[[Callable[[Node, Context], None]], Callable[[Node, Context], None]]:
    """Register a handler whose tensors must have dtypes and as many axes as TensorFlow Lite's kernels take, and that has rules of its own."""
    return ops.handler(*names, since=since, constraints=(supported_dtypes, few_axes, *rules))
