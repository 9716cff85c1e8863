"""Operators on more axes than TensorFlow Lite's kernels take: the same on merged axes, between two reshapes.

Element-wise operators do not care where one axis ends; those that work along one axis, or reduce some, care for these only. So neighbouring axes
that an operator treats alike become one::

    Softmax over axis 5 of [2, 3, 2, 3, 2, 4, 2]   =   reshape to [72, 4, 2], Softmax over axis 1, reshape back
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.converters._graph import Graph, Node, TensorType

__all__ = ["MOST_AXES", "can_merge", "with_fewer_axes"]

MOST_AXES = 6
"""What XNNPACK and most kernels take (XNN_MAX_TENSOR_DIMS in xnnpack.h)."""

_ELEMENTWISE = frozenset(
    {
        *(
            "Abs",
            "Add",
            "And",
            "Cast",
            "Ceil",
            "Clip",
            "Cos",
            "Div",
            "Elu",
            "Equal",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "Greater",
            "GreaterOrEqual",
        ),
        *(
            "HardSigmoid",
            "HardSwish",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "Max",
            "Mean",
            "Min",
            "Mish",
            "Mod",
            "Mul",
        ),
        *(
            "Neg",
            "Not",
            "Or",
            "Pow",
            "PRelu",
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Sqrt",
        ),
        *("Sub", "Sum", "Tanh", "Where", "Xor"),
    }
)
_REDUCTIONS = frozenset(f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"))
_SHAPE_ONLY = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class _Merged:
    """A node on fewer axes: shapes of the inputs that it still reads and of its outputs, in order, and its attributes."""

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    attrs: dict[str, object]
    opset: int = 0  # of the form with these attributes, where it is not the node's


def can_merge(node: Node, graph: Graph) -> bool:
    """Whether a node with too many axes has a form with few enough."""
    found = _merge(node, graph)
    return found is not None and all(len(shape) <= MOST_AXES for shape in (*found.inputs, *found.outputs))


def with_fewer_axes(graph: Graph) -> Graph:
    """``graph`` with every node that has too many axes between reshapes; without such a node it comes back as it is."""
    if all(kind.rank <= MOST_AXES for kind in graph.types.values()):
        return graph
    rewriting = _Rewriting(graph)
    nodes = tuple(new for node in graph.nodes for new in rewriting.rewritten(node))
    return replace(graph, nodes=nodes, constants=rewriting.constants, types=rewriting.types)


class _Rewriting:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.constants = dict(graph.constants)
        self.types = dict(graph.types)

    def rewritten(self, node: Node) -> list[Node]:
        """The node itself, or reshapes with its smaller form between them."""
        names = [name for name in (*node.inputs, *node.outputs) if name]
        large = any(self._graph.types[name].rank > MOST_AXES for name in names)
        found = _merge(node, self._graph) if large and node.op not in _SHAPE_ONLY else None
        if found is None:
            return [node]
        before: list[Node] = []
        after, inputs, outputs = [], [], []
        for index, (name, shape) in enumerate(zip(node.inputs, found.inputs, strict=False)):
            inputs.append(self._shaped(name, shape, f"{node.name}/input_{index}", node, before) if name else "")
        for index, (name, shape) in enumerate(zip(node.outputs, found.outputs, strict=True)):
            small = f"{node.name}/output_{index}"
            self.types[small] = TensorType(self.types[name].dtype, shape)
            after.append(self._reshape(small, name, f"{small}/reshape", node))
            outputs.append(small)
        return [
            *before,
            replace(node, inputs=tuple(inputs), outputs=tuple(outputs), attrs=dict(found.attrs), opset=found.opset or node.opset),
            *after,
        ]

    def _shaped(self, name: str, shape: tuple[int, ...], into: str, node: Node, before: list[Node]) -> str:
        kind = self._graph.types[name]
        if kind.shape == shape:
            return name
        self.types[into] = TensorType(kind.dtype, shape)
        if name in self.constants:
            self.constants[into] = self.constants[name].reshape(shape)
        else:
            before.append(self._reshape(name, into, f"{into}/reshape", node))
        return into

    def _reshape(self, source: str, target: str, name: str, node: Node) -> Node:
        shape = np.asarray(self.types[target].shape, np.int64)
        self.constants[f"{name}/shape"] = shape
        self.types[f"{name}/shape"] = TensorType("int64", shape.shape)
        return Node("Reshape", name, (source, f"{name}/shape"), (target,), {}, node.opset)


# --- plans -----------------------------------------------------------------------------------------------------------------------------------


def _merge(node: Node, graph: Graph) -> _Merged | None:
    shapes = [graph.types[name].shape if name else () for name in node.inputs]
    results = [graph.types[name].shape for name in node.outputs if name]
    if len(results) != 1:
        return None
    if node.op in _ELEMENTWISE:
        return _elementwise(node, shapes, results[0])
    if node.op in _REDUCTIONS:
        return _reduction(node, graph, shapes[0], results[0])
    if node.op in ("ArgMax", "ArgMin"):
        axis = int(node.attrs.get("axis", 0)) % len(shapes[0])
        small = _around(shapes[0], axis)
        return _Merged((small,), ((small[0], small[2]),), {**node.attrs, "axis": 1, "keepdims": 0})
    if node.op in ("Softmax", "LogSoftmax") and node.opset >= 13:
        small = _around(shapes[0], int(node.attrs.get("axis", -1)) % len(shapes[0]))
        return _Merged((small,), (small,), {**node.attrs, "axis": 1})
    if node.op == "Concat":
        axis = int(node.attrs["axis"]) % len(results[0])
        pieces = tuple(_around(shape, axis) for shape in shapes)
        return _Merged(pieces, (_around(results[0], axis),), {**node.attrs, "axis": 1})
    if node.op == "Slice":
        return _slice(node, graph, shapes[0], results[0])
    if node.op == "Gather":
        small = _around(shapes[0], int(node.attrs.get("axis", 0)) % len(shapes[0]))
        count = math.prod(shapes[1])
        return _Merged((small, (count,)), ((small[0], count, small[2]),), {**node.attrs, "axis": 1})
    return None


def _around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Shape with all that lies before an axis merged, and all behind it."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _elementwise(node: Node, shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> _Merged:
    """Axes that the same operands broadcast along become one."""
    rank = len(result)
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    runs = _runs([tuple(shape[axis] == 1 for shape in (*aligned, result)) for axis in range(rank)])

    def merged(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.prod(shape[axis] for axis in run) for run in runs)

    small = tuple(merged(wide) if shape else () for shape, wide in zip(shapes, aligned, strict=True))
    return _Merged(small, (merged(result),), dict(node.attrs))


def _slice(node: Node, graph: Graph, shape: tuple[int, ...], result: tuple[int, ...]) -> _Merged | None:
    """Axes that are cut stay alone. The small form has attributes, as before opset 10, so it takes no steps."""
    given = [graph.constants.get(name) if name else None for name in (*node.inputs[1:], "", "", "", "")[:4]]
    starts, ends, axes, steps = given
    if starts is None or ends is None or (node.input(3) and axes is None) or (node.input(4) and (steps is None or np.any(steps != 1))):
        return None
    cut = [int(axis) % len(shape) for axis in (range(len(starts)) if axes is None else axes)]
    runs = _runs([(axis in cut, bool(axis % 2) and axis in cut) for axis in range(len(shape))])
    merged, small = (tuple(math.prod(sizes[axis] for axis in run) for run in runs) for sizes in (shape, result))
    places = [next(index for index, run in enumerate(runs) if axis in run) for axis in cut]
    attrs: dict[str, object] = {"starts": [int(each) for each in starts], "ends": [int(each) for each in ends], "axes": places}
    return _Merged((merged,), (small,), attrs, opset=9)


def _reduction(node: Node, graph: Graph, shape: tuple[int, ...], result: tuple[int, ...]) -> _Merged | None:
    """Neighbours that are reduced become one, and those that stay."""
    given = node.attrs.get("axes")
    if node.input(1):
        if node.input(1) not in graph.constants:
            return None
        given = [int(axis) for axis in graph.constants[node.input(1)]]
    if not given and node.attrs.get("noop_with_empty_axes", 0):
        return None
    axes = {axis % len(shape) for axis in given or range(len(shape))}
    runs = _runs([(axis in axes,) for axis in range(len(shape))])
    small = tuple(math.prod(shape[axis] for axis in run) for run in runs)
    reduced = [index for index, run in enumerate(runs) if run[0] in axes]
    kept = tuple(size for index, size in enumerate(small) if index not in reduced)
    return _Merged((small,), (kept,), {**node.attrs, "axes": reduced, "keepdims": 0}) if math.prod(result) == math.prod(kept) else None


def _runs(keys: Sequence[tuple[bool, ...]]) -> list[list[int]]:
    """Neighbouring axes with equal keys."""
    runs: list[list[int]] = []
    for axis, key in enumerate(keys):
        if runs and keys[runs[-1][-1]] == key:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs
