"""Tensors of more axes than Core ML has, carried as one axis with the elements in the same order.

Element-wise operators and reshapes do not care; operators on one axis see ``(before, axis, after)``; a transposition is a sequence of swaps of
neighbouring blocks, each of which is a transposition of four axes.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edgekit.bundle import TensorSpec
from edgekit.converters._graph import Graph, Node, TensorType

__all__ = ["MAX_RANK", "flattened", "unflattened_reason"]

MAX_RANK = 5
"""Core ML's limit for tensors (coremltools, MIL operator definitions and its pass ``expand_high_rank_reshape_and_transpose``)."""

_RESHAPES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
_UNARY_NAMES = """Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Log Neg Not Reciprocal Relu Round Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh Clip Dropout"""
_UNARY = frozenset(_UNARY_NAMES.split())
_BROADCAST_NAMES = "Add Sub Mul Div Mod Pow Max Min Sum And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where PRelu"
_BROADCAST = frozenset(_BROADCAST_NAMES.split())
_ONE_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Gather": 0, "GatherElements": 0, "ArgMax": 0, "ArgMin": 0, "Concat": None}
_REDUCTION_NAMES = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"
_REDUCTIONS = frozenset(_REDUCTION_NAMES.split())
_NEW_SOFTMAX = 13  # before, Softmax is over all axes from one on


def _is_high(graph: Graph, name: str) -> bool:
    return bool(name) and graph.types[name].rank > MAX_RANK


def _touches(node: Node, graph: Graph) -> bool:
    return any(_is_high(graph, name) for name in (*node.inputs, *node.outputs))


def unflattened_reason(node: Node, graph: Graph) -> str:
    """Why a node with tensors of high rank cannot be carried so; "" when it can, or has none."""
    if not _touches(node, graph):
        return ""
    name = next(name for name in (*node.inputs, *node.outputs) if _is_high(graph, name))
    reason = f"tensor {name!r} has rank {graph.types[name].rank}; Core ML takes {MAX_RANK} or less"
    return "" if _carried(node, graph) else reason


def _carried(node: Node, graph: Graph) -> bool:
    shape = graph.types[node.inputs[0]].shape
    if node.op in _RESHAPES or node.op in _UNARY or node.op == "Transpose":
        return True
    if node.op in _BROADCAST:
        out = graph.types[node.outputs[0]].shape
        return all(graph.types[name].shape == out or math.prod(graph.types[name].shape) == 1 for name in node.inputs if name)
    if node.op in _REDUCTIONS:
        axes = _reduced(node, graph)
        return bool(axes) and axes == list(range(axes[0], axes[-1] + 1))
    if node.op == "Slice":
        return _cut(node, graph) is not None
    if node.op in ("Softmax", "LogSoftmax"):
        return node.opset >= _NEW_SOFTMAX
    if node.op == "GatherElements":
        axis, index = _axis(node, graph), graph.types[node.inputs[1]].shape
        return shape[:axis] + shape[axis + 1 :] == index[:axis] + index[axis + 1 :]
    return node.op in _ONE_AXIS and all(_axis(node, graph) < graph.types[name].rank for name in node.inputs[:1])


def _axis(node: Node, graph: Graph) -> int:
    default = _ONE_AXIS.get(node.op)
    return int(node.attrs.get("axis", default if default is not None else 0)) % graph.types[node.inputs[0]].rank


def _reduced(node: Node, graph: Graph) -> list[int]:
    rank = graph.types[node.inputs[0]].rank
    given = graph.constants[node.input(1)].reshape(-1).tolist() if node.input(1) in graph.constants else node.attrs.get("axes")
    if not given:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


def _cut(node: Node, graph: Graph) -> tuple[int, dict[str, object]] | None:
    """The one axis that a Slice with constant bounds cuts, and how; None when it is not one."""
    values = []
    for index, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        given = graph.constants[node.input(index)].reshape(-1).tolist() if node.input(index) in graph.constants else node.attrs.get(name)
        values.append(given)
    starts, ends, axes, steps = values
    before, after = graph.types[node.inputs[0]].shape, graph.types[node.outputs[0]].shape
    axes = [axis % len(before) for axis in axes or range(len(starts or []))]
    cut = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    if not starts or not ends or len(cut) > 1 or any(step < 0 for step in steps or []):
        return None
    axis = cut[0] if cut else 0
    place = axes.index(axis) if axis in axes else -1
    one = (
        {"starts": [0], "ends": [before[axis]], "steps": [1]}
        if place < 0
        else {"starts": [starts[place]], "ends": [ends[place]], "steps": [(steps or [1] * len(starts))[place]]}
    )
    return axis, {**one, "axes": [1]}


# --- the rewrite ---------------------------------------------------------------------------------------------------------------------------


def flattened(graph: Graph) -> Graph:
    """The graph with every tensor of high rank as one axis; itself when there is none. `unflattened_reason` must be "" for all nodes."""
    if not any(kind.rank > MAX_RANK for kind in graph.types.values()):
        return graph
    types = dict(graph.types)
    nodes = [new for node in graph.nodes for new in (_rewritten(node, graph, types) if _touches(node, graph) else (node,))]
    return replace(
        graph,
        inputs=tuple(map(_flat_spec, graph.inputs)),
        outputs=tuple(map(_flat_spec, graph.outputs)),
        nodes=tuple(nodes),
        constants={name: value.reshape(-1) if value.ndim > MAX_RANK else value for name, value in graph.constants.items()},
        types={name: TensorType(kind.dtype, (math.prod(kind.shape),)) if kind.rank > MAX_RANK else kind for name, kind in types.items()},
    )


def _flat_spec(spec: TensorSpec) -> TensorSpec:
    if len(spec.shape) <= MAX_RANK:
        return spec
    return TensorSpec(spec.name, spec.dtype, (math.prod(int(dim) for dim in spec.shape),))


def _rewritten(node: Node, graph: Graph, types: dict[str, TensorType]) -> list[Node]:
    """What stands for a node with tensors of high rank; ``types`` grows by what lies between."""
    if node.op == "Transpose":
        return _swaps(node, graph, types)
    if node.op in _REDUCTIONS:
        axes = _reduced(node, graph)
        plain = replace(node, inputs=node.inputs[:1], attrs={"axes": [1], "keepdims": 1})
        return _on_three_axes(plain, graph, types, (axes[0], axes[-1] + 1))
    if node.op == "Slice" and (found := _cut(node, graph)) is not None:
        axis, attrs = found
        return _on_three_axes(replace(node, inputs=node.inputs[:1], attrs=attrs), graph, types, (axis, axis + 1))
    if node.op in _ONE_AXIS:
        axis = _axis(node, graph)
        attrs = {**node.attrs, "axis": 1, **({"keepdims": 1} if node.op in ("ArgMax", "ArgMin") else {})}
        return _on_three_axes(replace(node, attrs=attrs), graph, types, (axis, axis + 1))
    return [node]


def _on_three_axes(node: Node, graph: Graph, types: dict[str, TensorType], axes: tuple[int, int]) -> list[Node]:
    """A node that works on axes ``[first, last)`` as one axis between all before and all after it."""
    first, last = axes
    shape = graph.types[node.inputs[0]].shape
    before, after = math.prod(shape[:first]), math.prod(shape[last:])
    nodes, inputs = [], list(node.inputs)
    for index, name in enumerate(node.inputs):
        if name and not (node.op == "Gather" and index == 1):
            kind = graph.types[name]
            size = math.prod(kind.shape) // (before * after)
            inputs[index] = _made(types, f"{node.name}/in{index}", kind.dtype, (before, size, after))
            nodes.append(Node("Reshape", inputs[index], (name,), (inputs[index],), {}, node.opset))
    out = graph.types[node.outputs[0]]
    if node.op == "Gather":
        wide: tuple[int, ...] = (before, *graph.types[node.inputs[1]].shape, after)
    else:
        wide = (before, math.prod(out.shape) // (before * after), after)
    result = _made(types, f"{node.name}/out", out.dtype, wide)
    nodes.append(replace(node, inputs=tuple(inputs), outputs=(result, *node.outputs[1:])))
    nodes.append(Node("Reshape", f"{node.name}/back", (result,), (node.outputs[0],), {}, node.opset))
    return nodes


def _made(types: dict[str, TensorType], name: str, dtype: str, shape: tuple[int, ...]) -> str:
    types[name] = TensorType(dtype, shape)
    return name


def _swaps(node: Node, graph: Graph, types: dict[str, TensorType]) -> list[Node]:
    """A transposition as swaps of neighbouring blocks, from the left: ``(done, skipped, wanted, rest)`` becomes ``(done, wanted, skipped, rest)``."""
    kind = graph.types[node.inputs[0]]
    sizes, order = kind.shape, list(range(kind.rank))
    wanted = list(node.attrs.get("perm") or reversed(order))
    nodes: list[Node] = []
    name = node.inputs[0]
    for place in range(len(order)):
        at = order.index(wanted[place])
        if at == place:
            continue
        run = next((n for n in range(1, len(order) - at) if order[at + n] != wanted[place + n]), len(order) - at)
        blocks = (order[:place], order[place:at], order[at : at + run], order[at + run :])
        shape = tuple(math.prod(sizes[axis] for axis in block) for block in blocks)
        stem = f"{node.name}/swap{place}"
        apart = _made(types, f"{stem}_from", kind.dtype, shape)
        turned = _made(types, f"{stem}_to", kind.dtype, (shape[0], shape[2], shape[1], shape[3]))
        nodes.append(Node("Reshape", apart, (name,), (apart,), {}, node.opset))
        nodes.append(Node("Transpose", turned, (apart,), (turned,), {"perm": [0, 2, 1, 3]}, node.opset))
        name, order = turned, [*blocks[0], *blocks[2], *blocks[1], *blocks[3]]
    return [*nodes, Node("Reshape", f"{node.name}/back", (name,), node.outputs, {}, node.opset)]
