"""What is learned: run times, batch sizes, concurrency; and whose turn it is."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime._concurrency import RETRY_S, WINDOW_S, ConcurrencyLimit
from edgekit.runtime._estimates import _RETRY_AFTER, BatchTimes, ServiceTimes
from edgekit.runtime._fairness import BORROW_S, Share, whose_turn


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_service_times_are_the_median_of_the_newest(values):
    times = ServiceTimes()
    for value in values:
        times.add(value)
    newest = sorted(values[-63:])
    assert times.p50_s == newest[len(newest) // 2]
    times.add(0.5, restart=True)
    assert times.p50_s == 0.5


def climb(times, seconds, runs=400):
    """Run batches as large as the limit allows, as a full queue would."""
    for _ in range(runs):
        times.add(times.limit, seconds(times.limit))
    return times.limit


LIMITS = {
    "all of it is fixed cost": (lambda rows: 1.0, 32, 32),
    "rows cost next to nothing": (lambda rows: 1.0 + 0.01 * rows, 32, 32),
    "nothing is gained": (lambda rows: 1.0 * rows, 32, 1),
    "gains end at four": (lambda rows: 1.0 + 0.1 * min(rows, 4) + 2.0 * max(0, rows - 4), 32, 4),
    "nobody may batch": (lambda rows: 1.0, 1, 1),
    "no power of two": (lambda rows: 1.0, 12, 12),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_climbs_while_rows_become_cheaper(name):
    seconds, most, expected = LIMITS[name]
    times = BatchTimes(most)
    assert times.limit == 1
    assert climb(times, seconds) == expected


def test_a_limit_is_tried_again_when_it_held_back():
    times = BatchTimes(8)
    assert climb(times, float) == 1
    for _ in range(_RETRY_AFTER):
        times.held_back()
    assert times.limit == 2
    assert climb(times, lambda rows: 1.0) == 8


def test_a_run_that_found_the_device_idle_is_no_measure_for_one_row():
    """Such a run takes half as long again, two rows together save nothing over two in a row."""
    times = BatchTimes(8)
    for _ in range(50):
        times.add(1, 1.5, busy=False)
        times.add(1, 1.0)
        times.add(2, 2.0)
    assert times.limit == 1
    assert times.predict(1) in (1.0, 1.5)
    only_idle = BatchTimes(8)
    for _ in range(50):
        only_idle.add(1, 1.5, busy=False)
    assert only_idle.limit == 1


def test_tiny_runs_are_compared_as_they_come():
    times = BatchTimes(8)
    for _ in range(50):
        times.add(times.limit, 1e-4, busy=False)
    assert times.limit == 8


def test_a_limit_goes_down_when_batches_stop_to_pay():
    times = BatchTimes(8)
    assert climb(times, lambda rows: 1.0) == 8
    for _ in range(8):
        for _ in range(_RETRY_AFTER):
            times.held_back()
        climb(times, float, 100)
    assert times.limit == 1


def test_a_size_that_fails_is_not_tried_again():
    times = BatchTimes(32)
    assert climb(times, lambda rows: 1.0) == 32
    times.shrink(16)
    assert times.limit == 8
    assert climb(times, lambda rows: 1.0) == 8
    times.shrink(1)
    assert times.limit == 1


def test_a_request_of_more_rows_than_run_together_says_nothing_bad_of_small_ones():
    times = BatchTimes(32)
    for _ in range(8):
        times.add(400_000, 4.0)
    assert times.predict(400_000) == pytest.approx(4.0)
    assert times.predict(1) <= 4.0 * 32 / 400_000 + 1e-12
    alone = BatchTimes(1)  # a model whose requests run one by one
    alone.add(4, 0.004)
    assert alone.predict(1) == pytest.approx(0.001)


def test_predictions_where_nothing_was_seen():
    times = BatchTimes(8)
    assert times.predict(3) == 0.0
    times.add(4, 2.0)
    assert [times.predict(rows) for rows in (1, 2, 4, 5, 8, 16)] == [2.0, 2.0, 2.0, 4.0, 4.0, 8.0]
    times.add(1, 1.0)
    assert [times.predict(rows) for rows in (1, 2, 3)] == [1.0, 2.0, 2.0]
    times.add(1, 3.0, restart=True)
    assert (times.predict(1), times.predict(4), times.limit) == (3.0, 12.0, 1)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(1e-6, 1.0)), max_size=60), st.integers(1, 32))
def test_the_limit_stays_within_bounds_and_predictions_are_never_negative(runs, most):
    times = BatchTimes(most)
    for rows, seconds in runs:
        times.add(rows, seconds)
        assert 1 <= times.limit <= most
        assert all(times.predict(count) > 0 for count in (1, rows, 2 * most))


def saturate(limit, rate, seconds, now_s=0.0):
    """Batches end at the rate that the limit brings, with requests waiting all the time."""
    end_s = now_s + seconds
    while now_s < end_s:
        now_s += 1 / rate(limit.limit)
        limit.completed(1, True, now_s)
    return now_s


RATES = {
    "each instance brings as much": (lambda count: 100.0 * count, 4),
    "two cores": (lambda count: 100.0 * min(count, 2), 2),
    "one core, and switching costs": (lambda count: 100.0 / count, 1),
    "no difference": (lambda count: 100.0, 1),
}


@pytest.mark.parametrize("name", RATES)
def test_concurrency_settles_where_more_brings_nothing(name):
    rate, expected = RATES[name]
    limit = ConcurrencyLimit(4)
    now_s = saturate(limit, rate, 12 * RETRY_S)
    spent = dict.fromkeys(range(1, 5), 0)
    for _ in range(200):
        now_s = saturate(limit, rate, WINDOW_S, now_s)
        spent[limit.limit] += 1
    assert max(spent, key=spent.get) == expected
    assert spent[expected] >= 0.9 * sum(spent.values())


def test_concurrency_finds_back_when_the_device_changes():
    limit = ConcurrencyLimit(2)
    now_s = saturate(limit, lambda count: 100.0 * count, 3 * RETRY_S)
    assert limit.limit == 2
    now_s = saturate(limit, lambda count: 100.0 / count, 3 * RETRY_S, now_s)
    assert limit.limit == 1


def test_one_bad_window_does_not_give_a_core_away():
    """Two cores bring half as much again as one; one window in eight is a third slower, because others use the device too."""
    for bad in range(8):
        limit, now_s, low = ConcurrencyLimit(2, 2), 0.0, 0
        for index in range(240):
            slow = 0.65 if index % 8 == bad else 1.0
            now_s = saturate(limit, lambda count, slow=slow: slow * (1500.0 if count == 2 else 1000.0), WINDOW_S, now_s)
            low += limit.limit == 1
        assert low <= 12  # the trials


def test_what_others_leave_free_during_a_trial_is_no_gain_of_it():
    """Two cores bring half as much again as one; others take four tenths of the device, and stop just when one core is tried."""
    limit, now_s, tried, lows = ConcurrencyLimit(2, 2), 0.0, [], []

    def rate(count):
        if count == 1:
            tried.append(count)
        return (1.0 if tried else 0.6) * (1500.0 if count == 2 else 1000.0)

    for _ in range(400):
        now_s = saturate(limit, rate, WINDOW_S, now_s)
        lows.append(limit.limit == 1)
    assert tried
    assert not any(one and two for one, two in itertools.pairwise(lows))  # never longer than its trial


def test_below_the_cores_only_for_a_gain():
    for equal, expected in ((lambda count: 100.0, 2), (lambda count: 100.0 / count, 1)):
        limit = ConcurrencyLimit(4, 2)
        now_s, spent = saturate(limit, equal, 4 * RETRY_S), dict.fromkeys(range(1, 5), 0)
        for _ in range(200):
            now_s = saturate(limit, equal, WINDOW_S, now_s)
            spent[limit.limit] += 1
        assert max(spent, key=spent.get) == expected


def test_a_step_down_that_costs_much_is_short():
    limit = ConcurrencyLimit(2)

    def rate(count):
        return 1000.0 * count

    now_s = saturate(limit, rate, 3 * RETRY_S)
    assert limit.limit == 2
    lower_s = 0.0
    for _ in range(20_000):
        before_s, low = now_s, limit.limit == 1
        now_s = saturate(limit, rate, 1e-3, now_s)
        lower_s += (now_s - before_s) * low
    assert now_s > 2 * RETRY_S
    assert 0 < lower_s < WINDOW_S / 4  # it was tried, and not for a window


def test_an_idle_model_learns_nothing():
    limit = ConcurrencyLimit(4)
    for turn in range(1000):
        limit.completed(1, False, turn * 0.01)
    assert limit.limit == 1
    fixed = ConcurrencyLimit(3, 3)
    assert fixed.limit == 3


# --- several models ------------------------------------------------------------------------------------------------------------------------


def test_fair_by_compute_time_whatever_a_run_costs():
    random.seed(4)
    runs_s = [0.001, 0.01, 0.1]
    shares, now_s = [Share() for _ in runs_s], 0.0
    for share, run_s in zip(shares, runs_s, strict=True):
        share.run_s = run_s
    for _ in range(5000):
        chosen = whose_turn(shares, now_s)
        spent_s = runs_s[chosen] * random.uniform(0.8, 1.2)
        shares[chosen].used(spent_s)
        now_s += spent_s
        assert max(share.virtual_s for share in shares) - min(share.virtual_s for share in shares) <= 2 * max(runs_s)


def test_idleness_saves_nothing_up():
    idle = Share(3.0)
    idle.begins(50.0)
    assert idle.virtual_s == 50.0
    ahead = Share(60.0)
    ahead.begins(50.0)
    assert ahead.virtual_s == 60.0


def test_a_deadline_goes_ahead_of_its_turn_within_bounds():
    plain, hurried = Share(), Share()
    plain.run_s, hurried.run_s = 0.010, 0.001
    hurried.virtual_s = BORROW_S / 2
    hurried.deadline_s = 100.0 + 0.0105
    assert whose_turn([plain, hurried], 100.0) == 1
    hurried.deadline_s = 100.0 + 0.020  # it can wait for another run
    assert whose_turn([plain, hurried], 100.0) == 0
    hurried.deadline_s, hurried.virtual_s = 100.0, BORROW_S + 0.001  # it borrowed enough
    assert whose_turn([plain, hurried], 100.0) == 0
    plain.deadline_s = math.inf
    assert whose_turn([plain], 100.0) == 0


def test_deadlines_cannot_starve_another_model():
    """One model always has a deadline that is about to pass; the other still gets half of the time."""
    plain, hurried, now_s = Share(), Share(), 100.0
    plain.run_s = hurried.run_s = 0.01
    used = [0.0, 0.0]
    for _ in range(2000):
        hurried.deadline_s = now_s + 0.005
        chosen = whose_turn([plain, hurried], now_s)
        (plain, hurried)[chosen].used(0.01)
        used[chosen] += 0.01
        now_s += 0.01
    assert used[1] - used[0] <= BORROW_S + 0.02
