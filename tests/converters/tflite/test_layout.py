"""Axis orders against NumPy, which is the definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.converters.tflite._layout import (
    axis_last,
    channels_last,
    collapsed,
    drop_axes,
    identity,
    inverse,
    is_free,
    permuted,
    relabel,
    reshape_order,
)

orders = st.integers(1, 5).flatmap(lambda rank: st.permutations(range(rank)).map(tuple))


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(before, after, order): two factorisations of the same number of elements, with axes of size 1 in between."""
    factors = draw(st.lists(st.sampled_from([2, 3]), max_size=4))

    def grouping() -> tuple[int, ...]:
        cuts = draw(st.lists(st.integers(0, len(factors)), max_size=3).map(sorted))
        edges = [0, *cuts, len(factors)]
        return tuple(math.prod(factors[a:b]) for a, b in itertools.pairwise(edges))

    before, after = grouping(), grouping()
    return before, after, tuple(draw(st.permutations(range(len(before)))))


def test_channels_last():
    assert channels_last(4) == (0, 2, 3, 1)
    assert channels_last(3) == (0, 2, 1)
    assert channels_last(2) == (0, 1)
    assert permuted((1, 3, 4, 5), channels_last(4)) == (1, 4, 5, 3)


@given(orders)
def test_inverse_undoes(order):
    array = numbered(tuple(range(2, 2 + len(order))))
    assert np.array_equal(array.transpose(order).transpose(inverse(order)), array)


@given(orders, st.randoms(use_true_random=False))
def test_relabel_is_a_transpose_that_moves_nothing(order, random):
    array = numbered(tuple(range(2, 2 + len(order))))
    perm = random.sample(range(len(order)), len(order))
    logical = array.transpose(perm)
    assert np.array_equal(logical.transpose(relabel(order, perm)), array.transpose(order))


@given(orders, st.integers(0, 4))
def test_drop_axes(order, axis):
    axis %= len(order)
    array = numbered(tuple(range(2, 2 + len(order))))
    dropped = np.squeeze(array.transpose(order).take([0], order.index(axis)), order.index(axis))
    assert np.array_equal(array.take(0, axis).transpose(drop_axes(order, [axis])), dropped)


@given(orders, st.lists(st.sampled_from([1, 1, 2, 3]), min_size=5, max_size=5), st.randoms(use_true_random=False))
def test_free_means_the_memory_is_the_same(order, sizes, random):
    shape = tuple(sizes[: len(order)])
    other = tuple(random.sample(range(len(order)), len(order)))
    array = numbered(shape)
    same = np.array_equal(array.transpose(order).ravel(), array.transpose(other).ravel())
    assert is_free(shape, order, other) == same


@given(reshapes())
def test_reshape_on_memory_as_it_lies(case):
    before, after, order = case
    array = numbered(before)
    result = reshape_order(before, after, order)
    if result is not None:
        memory = array.transpose(order).reshape(permuted(after, result))
        assert np.array_equal(memory, array.reshape(after).transpose(result))


@given(reshapes())
def test_reshape_in_logical_order_is_always_possible_and_stays_so(case):
    before, after, _ = case
    assert reshape_order(before, after, identity(len(before))) == identity(len(after))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 3, 4, 5), (1, 3, 20), (0, 2, 1)),  # spatial axes merged: channels stay last
        ((1, 3, 4, 5), (3, 20), (1, 0)),  # batch of 1 dropped as well
        ((2, 3, 1, 1), (2, 3), (0, 1)),  # pooled features flattened
        ((2, 3, 1, 5), (2, 3, 5), (0, 2, 1)),  # height squeezed
        ((2, 3, 4, 5), (2, 12, 5), None),  # channels mixed with height: the memory has to move
    ],
)
def test_reshapes_of_images_that_lie_channels_last(before, after, expected):
    assert reshape_order(before, after, channels_last(4)) == expected


def test_axis_last():
    assert axis_last((0, 2, 3, 1), 2) == (0, 3, 1, 2)


@given(st.data())
def test_a_transpose_on_merged_axes_moves_the_same_elements(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=7))
    perm = data.draw(st.permutations(range(len(shape))))
    array = np.arange(np.prod(shape)).reshape(shape)
    fewer, order = collapsed(shape, perm)
    assert len(fewer) <= len(shape)
    assert np.array_equal(array.reshape(fewer).transpose(order).ravel(), array.transpose(perm).ravel())
