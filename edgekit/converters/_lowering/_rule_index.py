"""Selecting and placing elements, by ``Gather`` along one flat axis: every target has that, few have the general forms.

A scatter is turned round: constants say, for each place of the result, which update lands there, so it becomes a gather too::

    data [a b c], updates [x y] at 2 and 0      flat [a b c x y]  gathered at [4 1 3]  =  [y b x]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []

_MAX_ROUNDS = 64
"""Most updates of one place that are combined one after the other."""
_COMBINE = {"add": ("Add", 0), "mul": ("Mul", 1), "max": ("Max", None), "min": ("Min", None)}


def _constant(piece: Piece, name: str, what: str) -> np.ndarray:
    found = piece.around.constant(name)
    if found is None:
        raise CannotLowerError(f"{what} ({name!r}) is computed")
    return found


def _flat(piece: Piece, tensor: str) -> str:
    return piece.op("Reshape", tensor, np.array([-1], np.int64))


def _shaped(piece: Piece, tensor: str, shape: Sequence[int], into: str = "") -> str:
    if math.prod(shape) == 0:
        raise CannotLowerError("a tensor of it is empty")
    return piece.op("Reshape", tensor, np.array(shape, np.int64), into=into)


def _take(piece: Piece, flat: str, places: np.ndarray, into: str = "") -> str:
    """Elements of a flat tensor at constant places, in the shape of those."""
    return piece.op("Gather", flat, places.astype(np.int64), axis=0, into=into)


# --- gather ------------------------------------------------------------------------------------------------------------------------------


@lowers("GatherElements")
def gather_elements(piece: Piece) -> None:
    """Places in the flat data: those of the index's own coordinates, with the index on ``axis``."""
    data, indices = piece.node.inputs
    shape = piece.around.shape(data)
    axis = int(piece.node.attrs.get("axis", 0)) % len(shape)
    target = piece.around.shape(indices)
    grid = np.meshgrid(*map(np.arange, target), indexing="ij", sparse=True)
    strides = _strides(shape)
    base = sum((grid[each] * strides[each] for each in range(len(shape)) if each != axis), np.zeros(target, np.int64))
    known = piece.around.constant(indices)
    if known is not None:
        _take(piece, _flat(piece, data), base + (known.astype(np.int64) % shape[axis]) * strides[axis], into=piece.node.outputs[0])
        return
    chosen = _counted_from_the_front(piece, indices, shape[axis])
    places = piece.op("Add", piece.op("Mul", chosen, np.asarray(strides[axis], np.int64)), base.astype(np.int64))
    piece.op("Gather", _flat(piece, data), places, axis=0, into=piece.node.outputs[0])


@lowers("GatherND")
def gather_nd(piece: Piece) -> None:
    """Index tuples become places in the flat data; what a tuple leaves open is gathered as a row."""
    data, indices = piece.node.inputs
    batch = int(piece.node.attrs.get("batch_dims", 0))
    shape, index_shape = piece.around.shape(data), piece.around.shape(indices)
    depth = index_shape[-1]
    rows, row = shape[: batch + depth], shape[batch + depth :]
    strides = _strides(rows)
    batches = np.meshgrid(*map(np.arange, shape[:batch]), indexing="ij")
    base = sum((each * stride for each, stride in zip(batches, strides, strict=False)), np.zeros(shape[:batch], np.int64))
    base = np.asarray(base, np.int64).reshape(*shape[:batch], *[1] * (len(index_shape) - 1 - batch))
    flat = _shaped(piece, data, (math.prod(rows), *row))
    known = piece.around.constant(indices)
    if known is not None:
        wrapped = known.astype(np.int64) % np.array(rows[batch:], np.int64)
        places = (wrapped * np.array(strides[batch:], np.int64)).sum(-1) + base
        piece.op("Gather", flat, places.astype(np.int64), axis=0, into=piece.node.outputs[0])
        return
    chosen = _counted_from_the_front(piece, indices, np.array(rows[batch:], np.int64))
    scaled = piece.op("Mul", chosen, np.array(strides[batch:], np.int64))
    places_name = piece.op("Add", piece.reduce("ReduceSum", scaled, [-1]), base)
    piece.op("Gather", flat, places_name, axis=0, into=piece.node.outputs[0])


def _counted_from_the_front(piece: Piece, indices: str, size: Any) -> str:
    """Indices as int64 with negative ones, which count from the end, made positive."""
    wide = piece.op("Cast", indices, to=7)
    negative = piece.op("Less", wide, np.asarray(0, np.int64))
    return piece.op("Where", negative, piece.op("Add", wide, np.asarray(size, np.int64)), wide)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


# --- scatter -----------------------------------------------------------------------------------------------------------------------------


@lowers("ScatterElements", "Scatter")
def scatter_elements(piece: Piece) -> None:
    """Each update's place in the flat data is constant."""
    data, indices, updates = piece.node.inputs
    shape = piece.around.shape(data)
    axis = int(piece.node.attrs.get("axis", 0)) % len(shape)
    known = _constant(piece, indices, "its index").astype(np.int64) % shape[axis]
    grid = list(np.meshgrid(*map(np.arange, known.shape), indexing="ij"))
    grid[axis] = known
    places = sum((each * stride for each, stride in zip(grid, _strides(shape), strict=True)), np.zeros(known.shape, np.int64))
    _place(piece, data, updates, np.asarray(places).ravel())


@lowers("ScatterND")
def scatter_nd(piece: Piece) -> None:
    """Each update's place in the flat data is constant; an update is a row of the axes that its index tuple leaves open."""
    data, indices, updates = piece.node.inputs
    shape = piece.around.shape(data)
    known = _constant(piece, indices, "its index").astype(np.int64)
    depth = known.shape[-1]
    strides = _strides(shape)
    starts = (known % np.array(shape[:depth], np.int64) * np.array(strides[:depth], np.int64)).sum(-1)
    row = math.prod(shape[depth:])
    _place(piece, data, updates, (starts[..., None] + np.arange(row)).ravel())


@lowers("TensorScatter")
def tensor_scatter(piece: Piece) -> None:
    """A cache whose next entries are written at an index for each batch item, round the end with ``circular``."""
    cache, update, *rest = piece.node.inputs
    shape, size = piece.around.shape(cache), piece.around.shape(update)
    axis = int(piece.node.attrs.get("axis", -2)) % len(shape)
    starts = _constant(piece, rest[0], "its write index").astype(np.int64) if rest and rest[0] else np.zeros(shape[0], np.int64)
    grid = list(np.meshgrid(*map(np.arange, size), indexing="ij"))
    grid[axis] = grid[axis] + starts.reshape(-1, *[1] * (len(shape) - 1))
    if piece.node.attrs.get("mode", "linear") == "circular":
        grid[axis] = grid[axis] % shape[axis]
    places = sum((each * stride for each, stride in zip(grid, _strides(shape), strict=True)), np.zeros(size, np.int64))
    _place(piece, cache, update, np.asarray(places).ravel())


def _place(piece: Piece, data: str, updates: str, places: np.ndarray) -> None:
    """Put flat updates at constant places of the flat data; one round for each time that a place is hit again."""
    shape = piece.around.shape(data)
    total = math.prod(shape)
    reduction = str(piece.node.attrs.get("reduction", "none"))
    result = _flat(piece, data)
    source = _flat(piece, updates)
    if not len(places):
        piece.op("Identity", data, into=piece.node.outputs[0])
        return
    if reduction == "none":
        chosen = np.arange(total)
        chosen[places] = total + np.arange(len(places))  # the last of several wins
        result = _take(piece, piece.op("Concat", result, source, axis=0), chosen)
    else:
        result = _combined(piece, result, source, places, total, reduction)
    _shaped(piece, result, shape, into=piece.node.outputs[0])


def _combined(piece: Piece, result: str, source: str, places: np.ndarray, total: int, reduction: str) -> str:
    if reduction not in _COMBINE:
        raise CannotLowerError(f"reduction {reduction}")
    op, neutral = _COMBINE[reduction]
    for chosen in _rounds(places, total):
        if neutral is None:
            # The value that is there is its own neutral element of a maximum.
            updates = _take(piece, piece.op("Concat", result, source, axis=0), np.where(chosen < 0, np.arange(total), total + chosen))
        else:
            element = np.array([neutral], piece.around.dtype(piece.node.inputs[0]))
            updates = _take(piece, piece.op("Concat", source, element, axis=0), np.where(chosen < 0, len(places), chosen))
        result = piece.op(op, result, updates)
    return result


def _rounds(places: np.ndarray, total: int) -> list[np.ndarray]:
    """Per round, for every place the number of the update that lands there, -1 for none; in the order of the updates."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.arange(len(places)) - first
    if len(rank) and rank.max() >= _MAX_ROUNDS:
        raise CannotLowerError(f"more than {_MAX_ROUNDS} updates of one place")
    found = []
    for each in range(int(rank.max()) + 1 if len(rank) else 0):
        chosen = np.full(total, -1, np.int64)
        chosen[ordered[rank == each]] = order[rank == each]
        found.append(chosen)
    return found


@lowers("Col2Im")
def col2im(piece: Piece) -> None:
    """Add columns back at the places that they were taken from; each place gathers its contributions and sums them."""
    columns, image_name, block_name = piece.node.inputs
    image = _constant(piece, image_name, "its image size").astype(int).tolist()
    block = _constant(piece, block_name, "its block size").astype(int).tolist()
    attrs, rank = piece.node.attrs, len(image)
    dilations = attrs.get("dilations", [1] * rank)
    strides = attrs.get("strides", [1] * rank)
    pads = attrs.get("pads", [0] * 2 * rank)
    batch, rows, count = piece.around.shape(columns)
    steps = [
        (size + pads[axis] + pads[rank + axis] - dilations[axis] * (block[axis] - 1) - 1) // strides[axis] + 1
        for axis, size in enumerate(image)
    ]
    lines = []
    for axis, size in enumerate(image):
        line = np.arange(block[axis])[:, None] * dilations[axis] + np.arange(steps[axis])[None] * strides[axis] - pads[axis]
        lines.append(np.where((line >= 0) & (line < size), line, -1))
    places = np.zeros((1, 1), np.int64)
    inside = np.ones((1, 1), bool)
    for size, line in zip(image, lines, strict=True):  # rows of kernel places against columns of positions, axis by axis
        places = (places[:, None, :, None] * size + line[None, :, None, :]).reshape(places.shape[0] * line.shape[0], -1)
        inside = (inside[:, None, :, None] & (line >= 0)[None, :, None, :]).reshape(places.shape)
    total = math.prod(image)
    channels = rows // math.prod(block)
    taken = places.ravel()[inside.ravel()]
    numbers = np.arange(places.size)[inside.ravel()]
    flat = _shaped(piece, columns, (batch * channels, places.size))
    zero = np.zeros((batch * channels, 1), piece.around.dtype(columns))
    padded = piece.op("Concat", flat, zero, axis=1)
    parts = [piece.op("Gather", padded, np.where(chosen < 0, places.size, numbers[chosen]), axis=1) for chosen in _rounds(taken, total)]
    result = parts[0]
    for part in parts[1:]:
        result = piece.op("Add", result, part)
    if places.shape[1] != count:
        raise CannotLowerError("its columns do not fit its sizes")
    _shaped(piece, result, (batch, channels, *image), into=piece.node.outputs[0])


@lowers("MaxUnpool")
def max_unpool(piece: Piece) -> None:
    """Values at constant flat indices of a zero tensor."""
    values, indices, *rest = piece.node.inputs
    shape = piece.around.shape(values)
    known = _constant(piece, indices, "its index").astype(np.int64)
    attrs, rank = piece.node.attrs, len(shape) - 2
    kernel = attrs["kernel_shape"]
    strides, pads = attrs.get("strides", [1] * rank), attrs.get("pads", [0] * 2 * rank)
    plain = [(size - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i] for i, size in enumerate(shape[2:])]
    sizes = [*shape[:2], *plain]
    total = math.prod(sizes)
    chosen = np.full(total, known.size, np.int64)
    chosen[known.ravel()] = np.arange(known.size)
    zero = np.zeros(1, piece.around.dtype(values))
    result = _take(piece, piece.op("Concat", _flat(piece, values), zero, axis=0), chosen)
    if rest and rest[0] and _constant(piece, rest[0], "its output shape").tolist() != list(sizes):
        # onnx's reference pads the plain result, ONNX Runtime counts the indices in the wanted shape: they give different answers.
        raise CannotLowerError("an output shape other than the one that the window gives")
    _shaped(piece, result, sizes, into=piece.node.outputs[0])


# --- masks -------------------------------------------------------------------------------------------------------------------------------


@lowers("Trilu")
def trilu(piece: Piece) -> None:
    """A constant triangle chooses between the input and zero."""
    tensor, *rest = piece.node.inputs
    shape = piece.around.shape(tensor)
    k = int(_constant(piece, rest[0], "its diagonal").reshape(-1)[0]) if rest and rest[0] else 0
    whole = np.ones(shape[-2:], bool)
    keep = np.triu(whole, k) if piece.node.attrs.get("upper", 1) else np.tril(whole, k)
    piece.op("Where", keep, tensor, np.zeros((), piece.around.dtype(tensor)), into=piece.node.outputs[0])


@lowers("EyeLike")
def eye_like(piece: Piece) -> None:
    """Only the shape of the input counts."""
    from onnx import helper

    rows, columns = piece.around.shape(piece.node.inputs[0])
    wanted = piece.node.attrs.get("dtype")
    dtype = helper.tensor_dtype_to_np_dtype(wanted) if wanted else np.dtype(piece.around.dtype(piece.node.inputs[0]))
    piece.op("Identity", np.eye(rows, columns, int(piece.node.attrs.get("k", 0))).astype(dtype), into=piece.node.outputs[0])


@lowers("Hardmax")
def hardmax(piece: Piece) -> None:
    """One at the first maximum of each row, zero elsewhere; before opset 13 a row is everything from ``axis`` on."""
    from onnx import helper

    tensor = piece.node.inputs[0]
    shape = piece.around.shape(tensor)
    old = piece.around.opset < 13
    axis = int(piece.node.attrs.get("axis", 1 if old else -1)) % max(len(shape), 1)
    if old:
        tensor = _shaped(piece, tensor, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    line = shape if not old else (math.prod(shape[:axis]), math.prod(shape[axis:]))
    axis = axis if not old else 1
    first = piece.op("ArgMax", tensor, axis=axis, keepdims=1)
    places = np.arange(line[axis]).reshape([-1 if each == axis else 1 for each in range(len(line))])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(piece.around.dtype(piece.node.inputs[0])))
    found = piece.op("Equal", first, places.astype(np.int64))
    if not old:
        piece.op("Cast", found, to=kind, into=piece.node.outputs[0])
        return
    _shaped(piece, piece.op("Cast", found, to=kind), shape, into=piece.node.outputs[0])


@lowers("Compress")
def compress(piece: Piece) -> None:
    """A constant condition is a list of places."""
    data, condition = piece.node.inputs
    places = np.flatnonzero(_constant(piece, condition, "its condition"))
    axis = piece.node.attrs.get("axis")
    if axis is None:
        _take(piece, _flat(piece, data), places, into=piece.node.outputs[0])
    else:
        piece.op("Gather", data, places.astype(np.int64), axis=int(axis), into=piece.node.outputs[0])


@lowers("ReverseSequence")
def reverse_sequence(piece: Piece) -> None:
    """Constant lengths say where every element comes from."""
    data, lengths_name = piece.node.inputs
    shape = piece.around.shape(data)
    batch, time = (int(piece.node.attrs.get(name, default)) for name, default in (("batch_axis", 1), ("time_axis", 0)))
    lengths = _constant(piece, lengths_name, "its lengths").astype(np.int64)
    grid = list(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    length = lengths.reshape([-1 if axis == batch else 1 for axis in range(len(shape))])
    grid[time] = np.where(grid[time] < length, length - 1 - grid[time], grid[time])
    places = sum((each * stride for each, stride in zip(grid, _strides(shape), strict=True)), np.zeros(shape, np.int64))
    _take(piece, _flat(piece, data), np.asarray(places), into=piece.node.outputs[0])
