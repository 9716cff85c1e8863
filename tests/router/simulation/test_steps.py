"""Functions of time that are constant between breakpoints."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.router.simulation import Steps

POINTS = st.lists(st.tuples(st.floats(0.01, 5.0), st.sampled_from([0.0, 0.25, 1.0, 3.0])), min_size=1, max_size=6)


def steps_of(points):
    times, now = [], 0.0
    for gap, _ in points:
        times.append(now)
        now += gap
    return Steps(zip(times, [value for _, value in points], strict=True))


def test_values_and_breakpoints():
    steps = Steps([(0.0, 1.0), (2.0, 0.5), (3.0, 0.0)])
    assert [steps.at(time) for time in (-1.0, 0.0, 1.9, 2.0, 2.9, 3.0, 99.0)] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    assert list(steps.changes(0.0, 2.5)) == [2.0]
    assert list(steps.changes(2.0, 9.0)) == [3.0]
    assert steps.integral(2.5) == 2.25
    assert Steps([(0.0, 1.0), (2.0, 1.0), (3.0, 0.0)]).times == [0.0, 3.0]  # a breakpoint is a change


def test_work_over_a_change_and_work_that_is_never_done():
    steps = Steps([(0.0, 1.0), (2.0, 0.5), (3.0, 0.0)])
    assert steps.when(1.0, 0.5) == 1.5
    assert steps.when(1.0, 1.25) == 2.5
    assert steps.when(1.0, 2.0) == math.inf
    assert steps.when(7.0, 0.0) == 7.0
    assert Steps.constant(0.0).when(0.0, 1.0) == math.inf


@given(POINTS, st.floats(0.0, 10.0), st.floats(0.0, 10.0), st.floats(0.001, 10.0))
def test_who_starts_later_is_not_done_earlier(points, start, later, amount):
    steps = steps_of(points)
    assert steps.when(start + later, amount) >= steps.when(start, amount) - 1e-9


@given(POINTS, st.floats(0.0, 10.0), st.floats(0.001, 10.0))
def test_when_inverts_the_integral(points, start, amount):
    steps = steps_of(points)
    end = steps.when(start, amount)
    if end < math.inf:
        assert steps.integral(end) - steps.integral(start) == pytest.approx(amount, abs=1e-9)


@pytest.mark.parametrize("points", [[], [(1.0, 1.0)], [(0.0, 1.0), (0.0, 2.0)], [(0.0, -1.0)]])
def test_what_is_no_function_of_time_is_refused(points):
    with pytest.raises(ValueError, match="steps"):
        Steps(points)
