"""Sequences of tensors without sequences: who reads one is given its elements."""

from __future__ import annotations

import numpy as np

from edgekit.converters._graph import Node
from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []


def _elements(piece: Piece, name: str) -> list[str]:
    """Names of a sequence's elements, in order."""
    producer = next((node for node in piece.around.graph.nodes if name in node.outputs), None)
    match producer.op if producer is not None else "":
        case "SequenceEmpty":
            return []
        case "SequenceConstruct":
            return list(_inputs(producer))
        case "Identity":
            return _elements(piece, _inputs(producer)[0])
        case "SequenceInsert":
            sequence, tensor, *at = _inputs(producer)
            found = _elements(piece, sequence)
            found.insert(_place(piece, at, len(found), len(found)), tensor)
            return found
        case "SequenceErase":
            sequence, *at = _inputs(producer)
            found = _elements(piece, sequence)
            del found[_place(piece, at, len(found), len(found) - 1)]
            return found
        case "SplitToSequence":
            return _split(piece, producer)
        case op:
            raise CannotLowerError(f"its sequence comes from {op or 'outside'}")


def _inputs(node: Node | None) -> tuple[str, ...]:
    assert node is not None  # the cases above have found one
    return node.inputs


def _place(piece: Piece, names: list[str], length: int, default: int) -> int:
    if not names or not names[0]:
        return default
    found = piece.around.constant(names[0])
    if found is None:
        raise CannotLowerError("a place in its sequence is computed")
    place = int(found.reshape(-1)[0])
    return place + length if place < 0 else place


def _split(piece: Piece, node: Node | None) -> list[str]:
    assert node is not None
    tensor, *rest = node.inputs
    shape = piece.around.shape(tensor)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    sizes = [1] * shape[axis]
    if rest and rest[0]:
        given = piece.around.constant(rest[0])
        if given is None:
            raise CannotLowerError("the sizes of its parts are computed")
        sizes = [int(size) for size in given] if given.ndim else _equal_parts(shape[axis], int(given))
    found, start = [], 0
    for size in sizes:
        part = piece.op("Slice", tensor, piece.ints(start), piece.ints(start + size), piece.ints(axis))
        start += size
        squeezed = not (rest and rest[0]) and not node.attrs.get("keepdims", 1)
        found.append(piece.squeeze(part, [axis]) if squeezed else part)
    return found


def _equal_parts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


@lowers("SequenceAt")
def sequence_at(piece: Piece) -> None:
    """One element."""
    found = _elements(piece, piece.node.inputs[0])
    piece.op("Identity", found[_place(piece, [piece.node.inputs[1]], len(found), 0)], into=piece.node.outputs[0])


@lowers("SequenceLength")
def sequence_length(piece: Piece) -> None:
    """A number that is known."""
    piece.op("Identity", np.asarray(len(_elements(piece, piece.node.inputs[0])), np.int64), into=piece.node.outputs[0])


@lowers("ConcatFromSequence")
def concat_from_sequence(piece: Piece) -> None:
    """All elements behind each other, along an old or a new axis."""
    found = _elements(piece, piece.node.inputs[0])
    axis = int(piece.node.attrs["axis"])
    if piece.node.attrs.get("new_axis", 0):
        found = [piece.unsqueeze(name, [axis]) for name in found]
    piece.op("Concat", *found, axis=axis, into=piece.node.outputs[0])
