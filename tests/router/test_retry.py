"""The retry budget over random traffic, and waits that never pass the deadline."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._retry import BASE_S, CAP_S, RetryBudget, RetryLimits, backoff_s, retry_at

STEPS = st.lists(st.tuples(st.sampled_from(["request", "retry"]), st.sampled_from([0.0, 0.01, 0.3, 1.0, 4.0])), max_size=200)


@settings(max_examples=100)
@given(STEPS)
def test_retries_never_exceed_their_share_of_any_window(steps):
    limits = RetryLimits(share=0.2, floor_per_s=0.3)
    budget, now = RetryBudget(limits), 1e6
    requests, retries = [], []
    for kind, wait_s in steps:
        now += wait_s
        if kind == "request":
            budget.requested(now)
            requests.append(now)
        elif budget.try_take(now):
            retries.append(now)
            seen = sum(at >= now - limits.window_s for at in requests)
            taken = sum(at > now - limits.window_s for at in retries)
            assert taken <= 0.2 * seen + 0.3 * limits.window_s


def test_a_quiet_client_can_retry_and_a_busy_one_a_fifth():
    budget = RetryBudget()
    assert [budget.try_take(100.0) for _ in range(11)] == [True] * 10 + [False]  # the floor: 1 a second for ten
    for _ in range(50):
        budget.requested(100.0)
    assert sum(budget.try_take(100.0) for _ in range(50)) == 10


def test_what_was_taken_comes_back_after_the_window():
    budget = RetryBudget(RetryLimits(share=0.0, floor_per_s=0.1))
    assert budget.try_take(50.0)
    assert not budget.try_take(59.9)
    assert budget.try_take(61.1)  # the window, and the rest of its slice


def test_a_clock_that_steps_back_refills_nothing():
    budget = RetryBudget(RetryLimits(share=0.0, floor_per_s=0.1))
    assert budget.try_take(50.0)
    assert not budget.try_take(-1e9)
    assert not budget.try_take(50.0)


def test_requests_count_after_a_clock_stepped_back_behind_what_was_forgotten():
    budget = RetryBudget(RetryLimits(share=0.5, floor_per_s=0.0))
    budget.requested(50.0)
    assert not budget.try_take(90.0)  # nothing is left of it
    budget.requested(50.0)
    budget.requested(50.0)
    assert budget.try_take(90.0)
    assert not budget.try_take(90.0)


def test_other_limits_keep_what_was_counted():
    budget = RetryBudget(RetryLimits(share=0.0, floor_per_s=1.0, window_s=100.0))
    assert sum(budget.try_take(1000.0) for _ in range(200)) == 100
    budget.set_limits(RetryLimits(share=0.0, floor_per_s=1.0, window_s=10.0))
    assert not budget.try_take(1005.0)
    assert budget.try_take(1021.0)


def test_full_jitter_is_bounded_and_spread():
    source = random.Random(3)
    for retry in range(1, 12):
        waits = [backoff_s(retry, source.random()) for _ in range(500)]
        bound = min(CAP_S, BASE_S * 2 ** (retry - 1))
        assert 0 <= min(waits) < 0.02 * bound
        assert 0.98 * bound < max(waits) <= bound
    assert backoff_s(10_000, 1.0) == CAP_S


@given(st.integers(1, 40), st.floats(0, 0.999), st.floats(0, 1e4), st.floats(0, 5), st.floats(0, 2), st.none() | st.floats(0, 10))
def test_a_retry_is_never_past_the_deadline(retry, draw, now, left_s, needs_s, after_s):
    at = retry_at(retry, draw, now, now + left_s, needs_s, after_s)
    if at is not None:
        assert now <= at <= now + left_s - needs_s + 1e-9
        assert at >= now + (after_s or 0.0)
