"""The concurrency limit: it follows a server's knee, in closed form and with seeded noise."""

import heapq
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._breaker import Breaker
from edgekit.router._device import Device
from edgekit.router._events import Ask
from edgekit.router._limit import FLOOR, MOST, ConcurrencyLimit


def settle(limit, servers, rounds=4000, service_s=0.02, sigma=0.2, seed=1):
    """As many requests as the limit allows are under way at a server that runs ``servers`` of them at once; returns the latest limits' mean."""
    source, now, seen = random.Random(seed), 0.0, []
    free, under_way = [0.0] * servers, []
    for turn in range(rounds):
        while limit.allows(len(under_way)):
            end = max(now, heapq.heappop(free)) + service_s * math.exp(source.gauss(0.0, sigma))
            heapq.heappush(free, end)
            heapq.heappush(under_way, (end, now))
        now, sent = heapq.heappop(under_way)
        limit.answered("m", now - sent, len(under_way) + 1, now)
        if turn > rounds // 2:
            seen.append(limit.value)
    return sum(seen) / len(seen)


@pytest.mark.parametrize(("servers", "first"), [(4, 3.0), (16, 20.0), (64, 20.0)])
def test_it_settles_above_what_the_server_runs_at_once_and_not_far_above(servers, first):
    assert servers <= settle(ConcurrencyLimit(first), servers) <= 2.5 * servers + 4


@pytest.mark.parametrize("servers", [1, 2, 8])
def test_a_devices_limit_is_learned_from_one(servers):
    found = settle(ConcurrencyLimit(1.0, 1.0, 0.5), servers)
    assert 0.9 * servers <= found <= 2.0 * servers + 2.0


def test_kinds_are_apart():
    """A model that takes ten times as long is no queue."""
    limit, source = ConcurrencyLimit(), random.Random(2)
    for index in range(2000):
        kind = index % 2
        limit.answered(kind, (0.01, 0.1)[kind] * math.exp(source.gauss(0.0, 0.3)), int(limit.value), index * 0.01)
    assert limit.value > 100.0


def test_what_is_not_used_does_not_grow():
    limit = ConcurrencyLimit()
    before = limit.value
    for index in range(500):
        limit.answered("m", 0.02, 1, index * 0.1)
    assert limit.value == before


@given(st.lists(st.one_of(st.floats(1e-4, 5.0), st.just(None)), max_size=300), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_it_stays_between_its_bounds(history, in_flight):
    limit = ConcurrencyLimit()
    for index, latency_s in enumerate(history):
        if latency_s is None:
            limit.dropped(0.9)
        else:
            limit.answered("m", latency_s, in_flight, index * 0.5)
        assert FLOOR <= limit.value <= MOST


def test_a_learned_device_runs_one_at_first_and_no_more_than_its_server_bears():
    device = Device(0, 64, Breaker())
    assert device.workers == 1
    now, ask = 0.0, Ask(1, "m", 4096, 0.0, 1e9, 1e9, 0.1)
    for turn in range(3000):  # a server with one core: as many times the service time as there are under way
        attempts = range(device.workers)
        for attempt in attempts:
            device.start(attempt, ask, now)
        now += 0.02 * len(attempts)
        for attempt in attempts:
            device.finish(attempt, now)
        assert 1 <= device.workers <= 3, turn
