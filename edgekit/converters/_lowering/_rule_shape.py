"""Padding in every mode, and reductions over nothing."""

from __future__ import annotations

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []


@lowers("Pad")
def pad(piece: Piece) -> None:
    """Per axis, either constants beside the tensor or a gather of the places that the mode repeats; negative pads cut."""
    node = piece.node
    tensor = node.inputs[0]
    shape = list(piece.around.shape(tensor))
    before, after = _pads(piece, len(shape))
    mode = str(node.attrs.get("mode", "constant"))
    for axis, size in enumerate(shape):
        if not before[axis] and not after[axis]:
            continue
        cut, cut_end = max(-before[axis], 0), max(-after[axis], 0)
        added = max(before[axis], 0), max(after[axis], 0)
        if mode == "constant":
            tensor = _filled(piece, tensor, shape, axis, (cut, size - cut_end), added)
        else:
            kept = np.arange(cut, size - cut_end)
            places = np.pad(kept, added, mode=mode)  # type: ignore[call-overload]  # NumPy names them alike
            tensor = piece.op("Gather", tensor, places.astype(np.int64), axis=axis)
        shape[axis] = size + before[axis] + after[axis]
    piece.op("Identity", tensor, into=node.outputs[0])


def _pads(piece: Piece, rank: int) -> tuple[list[int], list[int]]:
    node = piece.node
    if piece.around.opset < 11:
        given = np.array(node.attrs["pads"])
    else:
        found = piece.around.constant(node.input(1))
        if found is None:
            raise CannotLowerError("its pads are computed")
        given = found
    axes = list(range(rank))
    if node.input(3):
        named = piece.around.constant(node.input(3))
        if named is None:
            raise CannotLowerError("its axes are computed")
        axes = [int(axis) % rank for axis in named]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = int(given[place]), int(given[len(axes) + place])
    return before, after


def _filled(piece: Piece, tensor: str, shape: list[int], axis: int, kept: tuple[int, int], added: tuple[int, int]) -> str:
    node = piece.node
    value = np.zeros(())
    if node.input(2):
        found = piece.around.constant(node.input(2))
        if found is None:
            raise CannotLowerError("the value that it fills in is computed")
        value = found.reshape(())
    elif piece.around.opset < 11:
        value = np.asarray(node.attrs.get("value", 0.0))
    dtype = piece.around.dtype(node.inputs[0])
    part = tensor
    if kept != (0, shape[axis]):
        part = piece.op("Slice", tensor, piece.ints(kept[0]), piece.ints(kept[1]), piece.ints(axis))
    blocks = [np.full([count if each == axis else size for each, size in enumerate(shape)], value).astype(dtype) for count in added]
    parts: list[str | np.ndarray] = [*(blocks[:1] if added[0] else []), part, *(blocks[1:] if added[1] else [])]
    return piece.op("Concat", *parts, axis=axis) if len(parts) > 1 else part
