"""Axis orders: pure functions on permutations, no TensorFlow.

An *order* says how a tensor lies in memory: ``physical = logical.transpose(order)``, so ``order[k]`` is the logical axis at physical axis
``k``. An NCHW tensor that is stored NHWC has the order ``(0, 2, 3, 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "Order",
    "axis_last",
    "channels_last",
    "collapsed",
    "drop_axes",
    "identity",
    "inverse",
    "is_free",
    "permuted",
    "regrouped",
    "relabel",
    "reshape_order",
]

Order = tuple[int, ...]


def identity(rank: int) -> Order:
    """The logical order itself."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Batch, spatial axes, channels: what TensorFlow Lite's convolutions read."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def axis_last(order: Order, axis: int) -> Order:
    """``order`` with one logical axis moved to the end."""
    return (*(each for each in order if each != axis), axis)


def inverse(order: Order) -> Order:
    """The permutation that undoes ``order``."""
    return tuple(order.index(axis) for axis in range(len(order)))


def permuted(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """Physical shape of a logical one."""
    return tuple(shape[axis] for axis in order)


def is_free(shape: Sequence[int], before: Order, after: Order) -> bool:
    """True when going from one order to the other moves axes of size 1 only, which is a reshape and no copy across memory."""
    return [axis for axis in before if shape[axis] != 1] == [axis for axis in after if shape[axis] != 1]


def relabel(order: Order, perm: Sequence[int]) -> Order:
    """Order of ``logical.transpose(perm)`` when the memory stays as it is."""
    position = inverse(tuple(perm))
    return tuple(position[axis] for axis in order)


def collapsed(shape: Sequence[int], perm: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same transpose on fewer axes: those of size 1 left out, those that stay neighbours in order made one."""
    kept = [axis for axis in perm if shape[axis] != 1]
    runs: list[list[int]] = []
    solid = [axis for axis in range(len(shape)) if shape[axis] != 1]
    for axis in kept:
        before = solid.index(axis) - 1
        if runs and before >= 0 and runs[-1][-1] == solid[before]:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    inward = sorted(runs)
    return tuple(math.prod(shape[axis] for axis in run) for run in inward), tuple(inward.index(run) for run in runs)


def drop_axes(order: Order, axes: Sequence[int]) -> Order:
    """Order of a tensor after logical axes were removed from it."""
    kept = sorted(set(order) - set(axes))
    return tuple(kept.index(axis) for axis in order if axis not in axes)


def reshape_order(before: Sequence[int], after: Sequence[int], order: Order) -> Order | None:
    """Order of the result when a logical reshape can be done on the memory as it lies; None when it cannot.

    A reshape splits and merges neighbouring axes. Axes are grouped so that each group of the input becomes a group of the output; the memory
    need not move when the axes of every group lie together and in order. Axes of size 1 can be anywhere.
    """
    if 0 in before or 0 in after:
        return identity(len(after)) if order == identity(len(before)) else None
    groups = _groups(before, after)
    memory = [axis for axis in order if before[axis] != 1]
    result: list[int] = []
    while memory:
        sources, targets = next(group for group in groups if memory[0] in group[0])
        if memory[: len(sources)] != sources:
            return None
        result += targets
        memory = memory[len(sources) :]
    return _with_ones(result, after)


def regrouped(before: Sequence[int], after: Sequence[int], order: Order) -> tuple[Order, Order]:
    """Orders before and after a logical reshape that cannot be done on the memory as it lies.

    Memory must move; it moves so that the groups of axes (see `reshape_order`) keep the sequence in which their largest axes lie, and an image
    that lies channels-last stays so.
    """
    if 0 in before or 0 in after:
        return identity(len(before)), identity(len(after))
    groups = sorted(_groups(before, after), key=lambda group: order.index(max(group[0], key=lambda axis: before[axis])))
    return _with_ones([axis for group in groups for axis in group[0]], before), _with_ones(
        [axis for group in groups for axis in group[1]], after
    )


def _with_ones(order: list[int], shape: Sequence[int]) -> Order:
    """An order of the axes larger than 1, with those of size 1 put behind their predecessors."""
    result = list(order)
    for axis, size in enumerate(shape):
        if size == 1:
            result.insert(0 if axis == 0 else result.index(axis - 1) + 1, axis)
    return tuple(result)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes larger than 1 with equal products, as (axes before, axes after)."""
    sources = [axis for axis, size in enumerate(before) if size != 1]
    targets = [axis for axis, size in enumerate(after) if size != 1]
    groups = []
    while sources and targets:
        group = ([sources.pop(0)], [targets.pop(0)])
        left, right = before[group[0][0]], after[group[1][0]]
        while left != right:
            if left < right:
                group[0].append(sources.pop(0))
                left *= before[group[0][-1]]
            else:
                group[1].append(targets.pop(0))
                right *= after[group[1][-1]]
        groups.append(group)
    return groups
