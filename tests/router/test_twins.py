"""Equal requests in flight get one digest, all others their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.router._twins import Twins

X = np.arange(600, dtype=np.float32)
TEXT = np.array([b"ab", b"c"], dtype=object)


def changed(index):
    array = X.copy()
    array[index] += 1
    return array


OTHERS = {
    "model": ("other", "1", {"x": X}),
    "version": ("m", "2", {"x": X}),
    "name": ("m", "1", {"y": X}),
    "a value that is not looked at first": ("m", "1", {"x": changed(100)}),
    "the first value": ("m", "1", {"x": changed(0)}),
    "shape": ("m", "1", {"x": X.reshape(2, 300)}),
    "dtype": ("m", "1", {"x": X.view(np.int32)}),
    "text": ("m", "1", {"x": TEXT}),
    "text, later": ("m", "1", {"x": np.array([b"ab", b"d"], dtype=object)}),
    "one more": ("m", "1", {"x": X, "y": X}),
    "nothing": ("m", "1", {"x": X[:0]}),
    "strided": ("m", "1", {"x": np.stack([changed(3), X], axis=1)[:, 0]}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_has_its_own(what):
    twins = Twins()
    first = twins.enter("m", "1", {"x": X})
    others = [twins.enter(*parts) for parts in OTHERS.values()]
    assert first not in others
    assert len(set(others)) == len(others)
    copies = {name: array.copy() for name, array in OTHERS[what][2].items()}
    assert twins.enter(*OTHERS[what][:2], copies) == others[list(OTHERS).index(what)]


def test_equal_means_bit_for_bit():
    twins = Twins()
    zero, nan = np.zeros(2, np.float32), np.full(50, np.nan)
    assert twins.enter("m", "", {"x": zero}) != twins.enter("m", "", {"x": -zero})
    assert twins.enter("m", "", {"x": nan}) == twins.enter("m", "", {"x": nan.copy()})


def test_what_is_over_is_nobodys_twin():
    twins = Twins()
    first = twins.enter("m", "", {"x": X})
    assert twins.enter("m", "", {"x": X.copy()}) == first
    twins.leave(first)
    assert twins.enter("m", "", {"x": X.copy()}) == first
    twins.leave(first)
    twins.leave(first)
    assert len(twins) == 0
    assert twins.enter("m", "", {"x": X}) != first


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_digests_are_as_the_values_in_flight(steps):
    twins, flying = Twins(), []
    for enters, value in steps:
        if enters:
            digest = twins.enter("m", "", {"x": np.full((200,), value)})
            assert all((digest == other) == (value == its) for other, its in flying)
            flying.append((digest, value))
        elif flying:
            twins.leave(flying.pop(value % len(flying))[0])
    assert len(twins) == len({digest for digest, _ in flying})
