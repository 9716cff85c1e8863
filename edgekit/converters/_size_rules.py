"""Sizes that follow from open ones, found from the sizes that a graph has at several settings of them. Pure.

A graph is made at two or three settings of its open dimensions; every number that is not the same in all of them depends on them. What it is in general is read
off a tensor that has it, or of whose size it is a multiple with a constant added. That is a conclusion from examples, so what is made with it must be proven at sizes
that are not among them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

__all__ = ["Seen", "Size", "express"]


@dataclass(frozen=True)
class Seen:
    """A dimension of a tensor that is there when the model runs.

    Attributes:
        tensor: which; whatever the caller calls it.
        axis: of the tensor.
        values: its length at every setting.
    """

    tensor: Hashable
    axis: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """``base + slope * length``; a constant where ``of`` is None."""

    base: int
    slope: int = 0
    of: Seen | None = None


def express(values: tuple[int, ...], own: Iterable[Seen], inputs: Iterable[Seen], others: Iterable[Seen] = ()) -> Size | None:
    """What a number is in general; None when nothing shows it.

    The same length of what the operator itself reads comes first, then that of an input of the graph, then sums and multiples of those, then other tensors.

    Args:
        values: at every setting.
        own: dimensions of what the operator reads.
        inputs: of the graph's inputs.
        others: of everything else that is computed before.
    """
    if len(set(values)) == 1:
        return Size(values[0])
    near, far = list(own), list(inputs)
    for seen in (*near, *far):
        if seen.values == values:
            return Size(0, 1, seen)
    for seen in (*near, *far):
        if (line := _line(values, seen.values)) is not None:
            return Size(*line, seen)
    return next((Size(0, 1, seen) for seen in others if seen.values == values), None)


def _line(values: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[int, int] | None:
    """Base and whole slope of ``values`` over ``lengths``."""
    step = lengths[1] - lengths[0]
    if not step or (values[1] - values[0]) % step:
        return None
    slope = (values[1] - values[0]) // step
    base = values[0] - slope * lengths[0]
    fits = slope and all(base + slope * length == value for value, length in zip(values, lengths, strict=True))
    return (base, slope) if fits else None
