"""When bytes leave a bad network."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.router.faults import Direction, Shaper, crossing_s
from edgekit.router.faults._shape import CHUNK_BYTES

chunks = st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 200_000)), min_size=1, max_size=60)
directions = st.builds(
    Direction,
    delay_s=st.floats(0, 0.2),
    jitter_s=st.floats(0, 0.1),
    bytes_per_s=st.floats(1e3, 1e9) | st.just(math.inf),
    loss=st.floats(0, 0.5),
)


def leave(direction, arriving, seed=0):
    """``(came, leaves)`` of chunks of one connection, given the gaps between them."""
    shaper, now, previous, times = Shaper(random.Random(seed)), 0.0, -math.inf, []
    for gap, size in arriving:
        now += gap
        previous = shaper.due(direction, size, now, previous)
        times.append((now, previous))
    return times, shaper


@given(chunks, directions, st.integers(0, 9))
def test_order_is_kept_nothing_is_early_and_the_seed_decides(arriving, direction, seed):
    times, _ = leave(direction, arriving, seed)
    assert all(left >= came + direction.delay_s for came, left in times)
    assert [left for _, left in times] == sorted(left for _, left in times)
    assert times == leave(direction, arriving, seed)[0]


@given(chunks)
def test_a_good_network_adds_nothing(arriving):
    assert all(came == left for came, left in leave(Direction(), arriving)[0])


@given(chunks, st.floats(1e3, 1e8))
def test_no_more_than_the_bandwidth_leaves_in_any_span(arriving, bytes_per_s):
    times, _ = leave(Direction(bytes_per_s=bytes_per_s), arriving)
    for first in range(len(arriving)):
        carried = 0
        for last in range(first, len(arriving)):
            carried += arriving[last][1]
            assert carried / bytes_per_s <= times[last][1] - times[first][0] + 1e-9


def test_connections_share_the_bandwidth():
    shaper, direction = Shaper(random.Random(0)), Direction(bytes_per_s=1e6)
    assert shaper.due(direction, 500_000, 0.0, -math.inf) == pytest.approx(0.5)
    assert shaper.due(direction, 500_000, 0.0, -math.inf) == pytest.approx(1.0)  # another connection's


def test_losses_stall_as_often_as_they_say():
    times, shaper = leave(Direction(loss=0.02, stall_s=0.2), [(1.0, 1000)] * 20_000)
    assert abs(shaper.stalls - 400) < 100  # five standard deviations of a binomial
    assert all(left - came in (0.0, pytest.approx(0.2)) for came, left in times)
    _, larger = leave(Direction(loss=0.02), [(1.0, 100 * 1448)] * 500)
    assert abs(larger.stalls - 500 * (1 - 0.98**100)) < 40  # any of its hundred segments


@pytest.mark.parametrize("wrong", [{"delay_s": -1}, {"jitter_s": math.inf}, {"bytes_per_s": 0}, {"loss": 1}, {"slice_bytes": -1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match="faults"):
        Direction(**wrong)


@given(directions, st.integers(1, 2_000_000), st.integers(0, 9))
def test_a_message_crosses_as_its_chunks_do_one_after_the_other(direction, size, seed):
    whole, rest = divmod(size, CHUNK_BYTES)
    times, _ = leave(direction, [(0.0, CHUNK_BYTES)] * whole + [(0.0, rest)] * (rest > 0), seed)
    assert crossing_s(direction, size, random.Random(seed)) == times[-1][1]
