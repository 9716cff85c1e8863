"""`ByteCache`: bounded whatever comes, true to what was put, and better than LRU where S3-FIFO says so."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime._s3fifo import ByteCache

operations = st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 60), st.integers(0, 5)), max_size=200)


@given(operations, st.integers(1, 200))
def test_bounded_and_true(steps, capacity):
    """Against a dictionary that never forgets: a hit is the last value put, not expired; the sizes add up and stay within the bound."""
    cache = ByteCache(capacity)
    truth, now_s = {}, 0.0
    for index, (put, key, size, passed_s) in enumerate(steps):
        now_s += passed_s
        if put:
            kept = cache.put(key, index, size, now_s, now_s + 10)
            assert kept is (size <= capacity) or (kept is False and key in truth)
            if size <= capacity:
                truth[key] = (index, size, now_s + 10)
        else:
            found = cache.get(key, now_s)
            if found is not None:
                value, _, expires_s = truth[key]
                assert found == value
                assert now_s < expires_s
        assert cache.bytes_used == sum(entry.size for entry in cache._entries.values()) <= capacity
        assert cache._small_bytes == sum(entry.size for entry in cache._small)
        assert len(cache._small) + len(cache._main) == len(cache)
        assert cache._left_bytes == sum(cache._left.values()) <= 0.9 * capacity


def test_it_is_kept_while_there_is_room():
    cache = ByteCache(100)
    for key in range(10):
        assert cache.put(key, str(key), 10, 0.0, 1.0)
    assert [cache.get(key, 0.5) for key in range(10)] == [str(key) for key in range(10)]
    assert [cache.get(key, 1.0) for key in range(10)] == [None] * 10
    assert cache.put(3, "again", 10, 1.0, 2.0)  # an expired one is replaced where it is
    assert len(cache) == 10
    assert cache.get(3, 1.5) == "again"


def test_expired_entries_go_first_and_are_not_kept_for_their_uses():
    cache = ByteCache(30)
    for key in range(3):
        cache.put(key, key, 10, 0.0, 1.0 if key == 0 else 9.0)
        for _ in range(3):
            cache.get(key, 0.0)
    cache.put("new", "new", 10, 2.0, 9.0)
    assert [cache.get(key, 2.0) for key in (0, 1, 2, "new")] == [None, 1, 2, "new"]


class LeastRecentlyUsed:
    def __init__(self, capacity):
        self.capacity, self.entries = capacity, OrderedDict()

    def get(self, key, now_s):
        if key in self.entries:
            self.entries.move_to_end(key)
            return True
        return None

    def put(self, key, value, size, now_s, expires_s):
        self.entries[key] = size
        while len(self.entries) * size > self.capacity:
            self.entries.popitem(last=False)


def hit_ratio(cache, trace):
    hits = 0
    for key in trace:
        if cache.get(key, 0.0) is None:
            cache.put(key, True, 10, 0.0, 1.0)
        else:
            hits += 1
    return hits / len(trace)


@pytest.mark.parametrize(("skew", "gain"), [(0.7, 1.2), (0.9, 1.1), (1.1, 1.03)])
@pytest.mark.parametrize("scan", [False, True])
def test_more_hits_than_lru(skew, gain, scan):
    rng = np.random.default_rng(5)
    weights = 1 / np.arange(1, 3001) ** skew
    trace = rng.choice(3000, 30_000, p=weights / weights.sum())
    if scan:
        trace = np.stack([trace, np.arange(10_000, 10_000 + len(trace))], axis=1).reshape(-1)
    assert hit_ratio(ByteCache(2000), trace.tolist()) > gain * hit_ratio(LeastRecentlyUsed(2000), trace.tolist())
