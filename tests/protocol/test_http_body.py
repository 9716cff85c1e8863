"""Bodies in pieces: whole again however they are cut, in buffers that are never used twice at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.protocol._http_body import BufferPool, Incoming
from edgekit.protocol._http_exchange import Call

LIMIT = 1 << 30


def incoming(length, pool=None):
    return Incoming(Call("POST", 1, length, keep_alive=True, expects_continue=False), LIMIT, pool or BufferPool())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 100, 32 << 10, (32 << 10) + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20]),
    st.lists(st.tuples(st.integers(1, 1 << 21), st.booleans()), min_size=1, max_size=12),
)
def test_bodies_are_whole_again(length, cuts):
    raw = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    body = incoming(length)
    at, turn, complete = 0, 0, False
    while not complete:
        size, direct = cuts[turn % len(cuts)]
        size = max(size, length // 500)  # a body of megabytes byte by byte shows nothing more
        turn += 1
        if direct:  # as the loop reads: into the room, as much as there is
            room = body.room()
            count = min(size, len(room), length - at)
            room[:count] = raw[at : at + count]
            complete = body.wrote(count)
            at += count
        else:  # beyond the end is the next request's
            rest = body.feed(raw[at : at + size] + (b"next" if at + size >= length else b""))
            at = min(length, at + size)
            complete = rest is not None
            assert rest == (b"next" if complete else None)
        assert body.size == at
    whole, _ = body.body()
    assert whole.readonly
    assert bytes(whole) == raw


def test_nothing_is_allocated_by_a_length_that_is_only_claimed():
    body = incoming(LIMIT)
    assert len(body.room()) <= 1 << 20
    for _ in range(20):
        got = body.size
        room = body.room()
        assert len(room) <= max(1 << 20, got)
        body.wrote(len(room))


def test_a_buffer_is_used_again_only_when_nobody_looks_at_it():
    pool = BufferPool()
    body = incoming(100_000, pool)
    assert body.feed(b"a" * 100_000) == b""
    view, buffer = body.body()
    array = np.ndarray((25_000,), np.float32, view, 0)
    pool.give(buffer)
    assert pool.take(100_000) is not buffer  # the array still looks
    pool.give(buffer)
    del view, array, body
    assert pool.take(90_000) is buffer  # the same kind of size
    assert pool.take(90_000) is not buffer


def test_the_pool_is_bounded():
    pool = BufferPool()
    for size in (1, 32 << 10, 100_000, 1 << 20, 1 << 21, 3000):
        for _ in range(500):
            pool.give(bytearray(max(32 << 10, 1 << (size - 1).bit_length())))
    pool.give(bytearray(40_000))  # of no kind
    kept = [len(buffer) for buffers in pool._kept.values() for buffer in buffers]
    assert sum(kept) <= 3 * (4 << 20)
    assert 40_000 not in kept
    assert 1 << 21 not in kept


@pytest.mark.parametrize("size", [1, 32 << 10, (32 << 10) + 1, 1 << 20])
def test_a_buffer_is_large_enough(size):
    assert len(BufferPool().take(size)) >= size
