"""Breaker and hedge throttle: invariants over random histories, with injected time and seeded chance."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._breaker import Breaker, BreakerPolicy, BreakerState, HedgeThrottle


def _opened(seed=0, policy=None):
    breaker = Breaker(policy, random.Random(seed))
    for _ in range(5):
        breaker.failed(100.0)
    return breaker


def test_five_failures_in_a_row_open_it():
    breaker = Breaker(random_source=random.Random(0))
    for _ in range(4):
        breaker.failed(0.0)
    breaker.succeeded()  # not in a row
    for _ in range(4):
        breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(0.0)
    assert breaker.state is BreakerState.OPEN


def test_a_failed_health_check_opens_it_at_once():
    breaker = Breaker()
    breaker.trip(3.0)
    assert not breaker.closed
    assert not breaker.probe_due(3.9)
    assert breaker.probe_due(4.5)


def test_one_probe_at_a_time():
    breaker = _opened()
    now = breaker.probe_at_s
    assert breaker.probe_due(now)
    breaker.start_probe()
    assert not breaker.probe_due(now + 1000)
    assert not breaker.closed


def test_waits_double_to_a_minute_while_checks_are_answered_and_requests_fail():
    breaker = _opened(seed=4)
    now, waits = 100.0, []
    for _ in range(10):
        waits.append(breaker.probe_at_s - now)
        now = breaker.probe_at_s
        breaker.start_probe()
        breaker.probe_ended(True, now)
        breaker.failed(now)
    for index, wait in enumerate(waits):
        base = min(60.0, 2.0**index)
        assert base <= wait <= 1.5 * base
    assert len({round(wait / min(60.0, 2.0**index), 6) for index, wait in enumerate(waits)}) == len(waits)  # jitter is drawn each time


def test_failing_checks_are_repeated_every_two_or_three_seconds():
    breaker = _opened(seed=5)
    for _ in range(10):
        now = breaker.probe_at_s
        breaker.start_probe()
        breaker.probe_ended(False, now)
        assert 1.0 <= breaker.probe_at_s - now <= 3.0


def test_after_a_probe_one_failure_reopens_and_waits_longer():
    breaker = _opened(policy=BreakerPolicy(jitter=0.0))
    first_wait = breaker.probe_at_s - 100.0
    breaker.start_probe()
    breaker.probe_ended(True, 101.0)
    assert breaker.closed
    breaker.failed(102.0)  # it answers health checks and hangs on requests
    assert not breaker.closed
    assert breaker.probe_at_s - 102.0 == 2 * first_wait


def test_a_success_after_a_probe_forgets_the_past():
    breaker = _opened(policy=BreakerPolicy(jitter=0.0))
    breaker.start_probe()
    breaker.probe_ended(True, 101.0)
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(102.0)
    assert breaker.closed
    breaker.failed(102.0)
    assert breaker.probe_at_s == 103.0


def test_good_health_checks_forget_the_past_after_as_long_as_the_last_wait():
    breaker = _opened(policy=BreakerPolicy(jitter=0.0))
    now = breaker.probe_at_s
    for _ in range(3):  # waits of 2, 4 and 8 s
        breaker.start_probe()
        breaker.probe_ended(True, now)
        breaker.failed(now)
        now = breaker.probe_at_s
    breaker.start_probe()
    breaker.probe_ended(True, now)
    breaker.healthy(now + 5.0)
    breaker.trip(now + 5.0)
    assert breaker.probe_at_s == now + 5.0 + 16.0
    now = breaker.probe_at_s
    breaker.start_probe()
    breaker.probe_ended(True, now)
    breaker.healthy(now + 16.0)
    breaker.trip(now + 20.0)
    assert breaker.probe_at_s == now + 21.0


def test_a_late_success_does_not_close_an_open_breaker():
    breaker = _opened()
    breaker.succeeded()
    assert not breaker.closed


ACTIONS = st.lists(st.sampled_from(["ok", "fail", "trip", "tick", "probe ok", "probe fail"]), max_size=120)


@given(ACTIONS, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_invariants_over_any_history(actions, seed):
    breaker = Breaker(random_source=random.Random(seed))
    now, in_a_row, probing, waits = 0.0, 0, False, []
    for action in actions:
        before = breaker.state
        if action == "tick":
            now += 0.7
        elif action == "ok":
            breaker.succeeded()
            in_a_row = 0
            assert breaker.state is before  # nothing but a probe closes it
        elif action == "fail":
            breaker.failed(now)
            in_a_row += 1
            if before is BreakerState.CLOSED and in_a_row >= 5:
                assert breaker.state is BreakerState.OPEN
        elif action == "trip":
            breaker.trip(now)
            assert breaker.state is not BreakerState.CLOSED
        elif breaker.probe_due(now):
            assert now >= breaker.probe_at_s
            breaker.start_probe()
            assert breaker.state is BreakerState.PROBING
            assert not breaker.probe_due(now + 1e9)
            breaker.probe_ended(action == "probe ok", now)
            assert breaker.closed == (action == "probe ok")
            in_a_row = 4 if action == "probe ok" else 0
            probing = True
        if before is not BreakerState.OPEN and breaker.state is BreakerState.OPEN:
            waits.append(breaker.probe_at_s - now)
            in_a_row = 0
    assert all(1.0 <= wait <= 90.0 for wait in waits)
    assert not probing or breaker.state is not BreakerState.PROBING


def test_throttle_allows_five_at_once_then_one_in_ten():
    throttle = HedgeThrottle()
    assert sum(throttle.try_take() for _ in range(100)) == 5
    taken = 0
    for _ in range(1000):
        throttle.succeeded()
        taken += throttle.try_take()
    assert taken == pytest.approx(100, abs=2)


@given(st.lists(st.sampled_from(["take", "ok", "fail"]), max_size=150))
@settings(max_examples=60, deadline=None)
def test_hedges_never_exceed_six_plus_a_tenth_of_the_successes(events):
    throttle, taken, succeeded = HedgeThrottle(), 0, 0
    for event in events:
        if event == "take":
            taken += throttle.try_take()
        elif event == "ok":
            throttle.succeeded()
            succeeded += 1
        else:
            throttle.failed()
        assert 0.0 <= throttle.tokens <= 10.0
        assert taken <= 6 + 0.1 * succeeded + 1e-6


def test_failures_stop_hedging():
    throttle = HedgeThrottle()
    for _ in range(5):
        throttle.failed()
    assert not throttle.try_take()
