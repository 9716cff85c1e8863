"""Control flow without control flow: ``If`` becomes one branch or a choice between both, ``Loop`` and ``Scan`` their iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._lowering._names import inner_graphs, renamed
from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._values import Values

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_BRANCH_NODES", "MAX_ITERATIONS", "MAX_NODES", "expand_control"]

MAX_ITERATIONS = 256
"""Most iterations that are unrolled."""
MAX_NODES = 20_000
"""Most nodes that one loop may become."""
MAX_BRANCH_NODES = 200
"""Most nodes of an `If` whose branches are both computed."""

# A branch that was not taken must not be able to stop the run: integer division by zero and computed indices can.
_CAN_STOP = frozenset({"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter", "OneHot", "TensorScatter"})


def expand_control(proto: onnx.NodeProto, piece: Piece) -> bool:
    """Write what an ``If``, ``Loop`` or ``Scan`` stands for into ``piece``.

    Returns:
        whether it is one of them.

    Raises:
        CannotLowerError: the condition or the trip count is computed, or there is too much to unroll.
    """
    match proto.op_type:
        case "If":
            _expand_if(proto, piece)
        case "Loop":
            _expand_loop(proto, piece)
        case "Scan":
            _expand_scan(proto, piece)
        case _:
            return False
    return True


def _graph(proto: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(attribute.g for attribute in proto.attribute if attribute.name == name)


def _inline(graph: onnx.GraphProto, piece: Piece, prefix: str, given: dict[str, str]) -> list[str]:
    """Append a copy of a graph whose inputs are ``given``; returns the names of its outputs."""
    values = dict(given)
    for tensor in graph.initializer:
        if tensor.name in given:
            continue
        values[tensor.name] = shared = f"{piece.node.name}/{tensor.name}"
        if all(each.name != shared for each in piece.initializers):  # one copy for all iterations
            piece.initializers.append(_called(tensor, shared))
    for index, node in enumerate(graph.node):
        values |= {name: f"{prefix}/{name}" for name in node.output if name}
        piece.add(renamed(node, values, f"{prefix}/{node.name or node.op_type}_{index}"))
    return [values.get(value.name, value.name) for value in graph.output]


def _called(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    import onnx

    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


# --- If --------------------------------------------------------------------------------------------------------------------------------


def _expand_if(proto: onnx.NodeProto, piece: Piece) -> None:
    condition = Values(piece).constant(proto.input[0])
    if condition is not None:
        branch = _graph(proto, "then_branch" if condition.reshape(-1)[0] else "else_branch")
        for name, output in zip(_inline(branch, piece, piece.node.name, {}), proto.output, strict=False):
            piece.op("Identity", name, into=output)
        return
    branches = [_graph(proto, name) for name in ("then_branch", "else_branch")]
    _check_both(branches)
    scalar = proto.input[0]
    if piece.around.shape(scalar):  # one element of any rank; Where wants it to broadcast
        scalar = piece.op("Reshape", scalar, np.empty(0, np.int64))
    results = [_inline(graph, piece, f"{piece.node.name}/{side}", {}) for graph, side in zip(branches, ("then", "else"), strict=True)]
    for then, otherwise, output in zip(*results, proto.output, strict=False):
        piece.op("Where", scalar, then, otherwise, into=output)


def _check_both(branches: Sequence[onnx.GraphProto]) -> None:
    """Whether both branches may run although only one is wanted."""
    then, otherwise = branches
    if sum(len(graph.node) for graph in branches) > MAX_BRANCH_NODES:
        raise CannotLowerError(f"its condition is computed, and both branches together have more than {MAX_BRANCH_NODES} nodes")
    for one, other in zip(then.output, otherwise.output, strict=True):
        kinds = [value.type.tensor_type for value in (one, other)]
        shapes = [[dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim] for kind in kinds]
        whole = all(kind.HasField("shape") and -1 not in shape for kind, shape in zip(kinds, shapes, strict=True))
        if not whole or shapes[0] != shapes[1]:
            raise CannotLowerError("its condition is computed, and its branches give tensors of different or unknown shapes")
    for graph in branches:
        for node in graph.node:
            if node.op_type in _CAN_STOP or node.op_type in ("Div", "Mod") or any(True for _ in inner_graphs(node)):
                raise CannotLowerError(f"its condition is computed, and a branch holds {node.op_type}, which may only run when it is taken")


# --- Loop ------------------------------------------------------------------------------------------------------------------------------


def _expand_loop(proto: onnx.NodeProto, piece: Piece) -> None:
    body = _graph(proto, "body")
    values = Values(piece)
    names = [*proto.input, "", ""]
    trips = values.constant(names[0]) if names[0] else None
    if names[0] and trips is None:
        raise CannotLowerError("its trip count is computed")
    state = list(proto.input[2:])
    wanted = MAX_ITERATIONS + 1 if trips is None else int(trips.reshape(-1)[0])
    going = _truth(values, names[1])
    scanned: list[list[str]] = [[] for _ in body.output[1 + len(state) :]]
    count = 0
    while going and count < wanted:
        if count == MAX_ITERATIONS or len(piece.nodes) > MAX_NODES:
            raise CannotLowerError(f"it has more than {MAX_ITERATIONS} iterations or {MAX_NODES} nodes when unrolled")
        prefix = f"{piece.node.name}/{count}"
        step = piece.constant(np.asarray(count, np.int64), "step")
        condition = piece.constant(np.asarray(True), "going")
        given = dict(zip([value.name for value in body.input], [step, condition, *state], strict=True))
        results = _inline(body, piece, prefix, given)
        state = results[1 : 1 + len(state)]
        for series, name in zip(scanned, results[1 + len(state) :], strict=True):
            series.append(name)
        going = _truth(values, results[0])
        count += 1
    for name, output in zip(state, proto.output, strict=False):
        if output:
            piece.op("Identity", name, into=output)
    for series, value, output in zip(scanned, body.output[1 + len(state) :], proto.output[len(state) :], strict=False):
        if output:
            _stack(piece, series, value, output, 0)


def _truth(values: Values, name: str) -> bool:
    if not name:
        return True
    found = values.constant(name)
    if found is None:
        raise CannotLowerError("its condition is computed")
    return bool(found.reshape(-1)[0])


def _stack(piece: Piece, series: Sequence[str], value: onnx.ValueInfoProto, output: str, axis: int) -> None:
    if not series:
        from onnx import helper

        kind = value.type.tensor_type
        if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            raise CannotLowerError("it runs no iteration and its body does not say the shape of what it would have stacked")
        empty = np.empty((0, *(dim.dim_value for dim in kind.shape.dim)), helper.tensor_dtype_to_np_dtype(kind.elem_type))
        piece.op("Identity", empty, into=output)
        return
    piece.op("Concat", *(piece.unsqueeze(name, [axis]) for name in series), into=output, axis=axis)


# --- Scan ------------------------------------------------------------------------------------------------------------------------------


def _expand_scan(proto: onnx.NodeProto, piece: Piece) -> None:
    if piece.around.opset < 9:
        _expand_batched_scan(proto, piece)
        return
    attrs = piece.node.attrs
    series_count = int(attrs["num_scan_inputs"])
    state_count = len(proto.input) - series_count
    state, series = list(proto.input[:state_count]), list(proto.input[state_count:])
    axes = [int(axis) for axis in attrs.get("scan_input_axes", [0] * series_count)]
    backward = [bool(value) for value in attrs.get("scan_input_directions", [0] * series_count)]
    results = _iterate(_graph(proto, "body"), piece, piece.node.name, state, list(zip(series, axes, backward, strict=True)))
    outputs = list(proto.output)
    scans = len(outputs) - state_count
    out_axes = [int(axis) for axis in attrs.get("scan_output_axes", [0] * scans)]
    prepend = [bool(value) for value in attrs.get("scan_output_directions", [0] * scans)]
    for name, output in zip(results[0], outputs, strict=False):
        if output:
            piece.op("Identity", name, into=output)
    for steps, output, axis, back in zip(results[1], outputs[state_count:], out_axes, prepend, strict=True):
        if not output:
            continue
        if not steps:
            raise CannotLowerError("it runs no iteration")
        ordered = steps[::-1] if back else steps
        piece.op("Concat", *(piece.unsqueeze(name, [axis]) for name in ordered), into=output, axis=axis)


def _iterate(
    body: onnx.GraphProto, piece: Piece, prefix: str, state: list[str], series: Sequence[tuple[str, int, bool]]
) -> tuple[list[str], list[list[str]]]:
    """Final state and, per stacked output, its value in every iteration."""
    lengths = {piece.around.shape(name)[axis] for name, axis, _ in series}
    length = lengths.pop()
    if lengths:
        raise CannotLowerError("its inputs have different lengths")
    if length > MAX_ITERATIONS or length * len(body.node) > MAX_NODES:
        raise CannotLowerError(f"it has more than {MAX_ITERATIONS} iterations or {MAX_NODES} nodes when unrolled")
    stacked: list[list[str]] = [[] for _ in body.output[len(state) :]]
    formal = [value.name for value in body.input]
    for step in range(length):
        parts = [
            piece.op("Gather", name, np.asarray(length - 1 - step if backward else step, np.int64), axis=axis)
            for name, axis, backward in series
        ]
        results = _inline(body, piece, f"{prefix}/{step}", dict(zip(formal, [*state, *parts], strict=True)))
        state = results[: len(state)]
        for collected, name in zip(stacked, results[len(state) :], strict=True):
            collected.append(name)
    return state, stacked


def _expand_batched_scan(proto: onnx.NodeProto, piece: Piece) -> None:
    """Opset 8: a batch axis before everything, time on axis 1, and an optional length per sequence."""
    attrs = piece.node.attrs
    if proto.input[0]:
        raise CannotLowerError("sequence_lens of the opset 8 form is not taken")
    series_count = int(attrs["num_scan_inputs"])
    given = list(proto.input[1:])
    state_count = len(given) - series_count
    backward = [bool(value) for value in attrs.get("directions", [0] * series_count)]
    body = _graph(proto, "body")
    rows: list[list[str]] = [[] for _ in proto.output]
    lengths = {piece.around.shape(name)[1] for name in given[state_count:]}
    if len(lengths) != 1:
        raise CannotLowerError("its inputs have different lengths")
    length = lengths.pop()
    batch = piece.around.shape(given[0])[0]
    if batch * length > MAX_ITERATIONS or batch * length * len(body.node) > MAX_NODES:
        raise CannotLowerError(f"it has more than {MAX_ITERATIONS} iterations or {MAX_NODES} nodes when unrolled")
    formal = [value.name for value in body.input]
    for item in range(batch):
        picked = [piece.op("Gather", name, np.asarray(item, np.int64), axis=0) for name in given]
        state, series = picked[:state_count], picked[state_count:]
        stacked: list[list[str]] = [[] for _ in body.output[state_count:]]
        for step in range(length):
            at = [np.asarray(length - 1 - step if back else step, np.int64) for back in backward]
            parts = [piece.op("Gather", name, index, axis=0) for name, index in zip(series, at, strict=True)]
            results = _inline(body, piece, f"{piece.node.name}/{item}/{step}", dict(zip(formal, [*state, *parts], strict=True)))
            state = results[:state_count]
            for collected, name in zip(stacked, results[state_count:], strict=True):
                collected.append(name)
        whole = [piece.op("Concat", *(piece.unsqueeze(name, [0]) for name in steps), axis=0) for steps in stacked]
        for row, name in zip(rows, [*state, *whole], strict=True):
            row.append(name)
    for row, output in zip(rows, proto.output, strict=True):
        if output:
            piece.op("Concat", *(piece.unsqueeze(name, [0]) for name in row), into=output, axis=0)
