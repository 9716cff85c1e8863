"""One request's attempts: which start, when, and what is left at the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DeadlineError, EngineError, NotFoundError, RequestError, UnavailableError
from edgekit.router import Decision, Flight, HedgeThrottle, Reason, RequestFacts, Tier

EDGE, CLOUD = Tier.EDGE, Tier.CLOUD
FACTS = RequestFacts(10.1, 11.1, 0.1)


def flight(*tiers, hedge_at=None, late=False):
    return Flight(FACTS, Decision(tiers, Reason.LOCAL_FITS, 0 if CLOUD in tiers else -1, hedge_at, 10.08, 10.1, late, 1.0, 1.0))


def spent():
    throttle = HedgeThrottle()
    for _ in range(10):
        throttle.failed()
    return throttle


def test_a_failed_attempt_falls_back_and_a_second_failure_is_the_end():
    one = flight(EDGE, CLOUD)
    assert one.first() is EDGE
    assert one.on_failure(EDGE, EngineError("edge", "broke"), 10.0) is CLOUD
    assert not one.over(10.0)
    assert one.on_failure(CLOUD, UnavailableError("cloud", "gone"), 10.0) is None
    assert one.over(10.0)
    assert isinstance(one.error(), EngineError)  # what the device said


def test_there_is_no_fallback_to_a_cloud_that_was_not_chosen():
    one = flight(EDGE)
    one.first()
    assert one.on_failure(EDGE, EngineError("edge", "broke"), 10.0) is None
    assert one.over(10.0)


@pytest.mark.parametrize("first", [EDGE, CLOUD])
def test_the_requests_own_fault_ends_it(first):
    other = CLOUD if first is EDGE else EDGE
    one = flight(first, other, hedge_at=10.05)
    one.first()
    assert one.on_failure(first, RequestError("input 'x'", "wrong shape"), 10.0) is None
    assert one.over(10.0)
    assert isinstance(one.error(), RequestError)


def test_a_model_that_one_tier_lacks_is_asked_of_the_other():
    one = flight(EDGE, CLOUD)
    one.first()
    assert one.on_failure(EDGE, NotFoundError("model 'm'", "no such model"), 10.0) is CLOUD


def test_the_hedge_starts_once_at_its_time():
    one = flight(EDGE, CLOUD, hedge_at=10.05)
    one.first()
    assert one.next_at() == 10.05
    assert one.on_time(10.04, HedgeThrottle()) is None
    assert one.on_time(10.05, HedgeThrottle()) is CLOUD
    assert one.hedged
    assert one.on_time(10.06, HedgeThrottle()) is None
    assert one.pending == {EDGE, CLOUD}
    assert one.on_failure(CLOUD, UnavailableError("cloud", "gone"), 10.07) is None
    assert not one.over(10.07)  # the device still runs


def test_a_hedge_is_put_off_while_the_device_is_sure():
    one = flight(EDGE, CLOUD, hedge_at=10.05)
    one.first()
    asked = []

    def outlook(until_s, now):
        asked.append((until_s, now))
        return (1.0, 10.07) if now < 10.07 else (0.9, 10.09)

    assert one.on_time(10.05, HedgeThrottle(), outlook) is None
    assert one.next_at() == 10.07
    assert one.on_time(10.07, HedgeThrottle(), outlook) is CLOUD
    assert asked == [(pytest.approx(10.095), 10.05), (pytest.approx(10.095), 10.07)]


def test_a_hedge_is_not_put_off_past_the_clouds_median():
    one = flight(EDGE, CLOUD, hedge_at=10.05)
    one.first()
    assert one.on_time(10.05, HedgeThrottle(), lambda *_: (1.0, 10.5)) is None
    assert one.next_at() == 10.08
    assert one.on_time(10.08, HedgeThrottle(), lambda *_: (1.0, 10.5)) is None
    assert one.next_at() == FACTS.limit_s  # sure to the end: no duplicate
    assert one.on_failure(EDGE, EngineError("edge", "broke"), 10.09) is CLOUD


def test_a_throttled_hedge_still_may_fall_back():
    one = flight(EDGE, CLOUD, hedge_at=10.05)
    one.first()
    assert one.on_time(10.05, spent()) is None
    assert not one.hedged
    assert one.on_failure(EDGE, EngineError("edge", "broke"), 10.06) is CLOUD


def test_a_hedge_to_the_device_is_not_throttled():
    one = flight(CLOUD, EDGE, hedge_at=10.05)
    one.first()
    assert one.on_time(10.05, spent()) is EDGE


def test_a_cloud_that_hangs_until_the_deadline_is_reported_once_and_the_device_rescues():
    one = flight(CLOUD, EDGE)
    one.first()
    assert one.next_at() == FACTS.deadline_s
    assert not one.cloud_missed(10.09)
    assert one.cloud_missed(10.1)
    assert not one.cloud_missed(10.2)
    assert one.on_time(10.1, spent()) is EDGE
    assert one.next_at() == FACTS.limit_s


def test_nobody_waits_beyond_the_limit():
    one = flight(EDGE, CLOUD)
    one.first()
    assert one.next_at() == FACTS.limit_s
    assert not one.over(11.0)
    assert one.on_time(11.1, HedgeThrottle()) is None
    assert one.over(11.1)
    assert isinstance(one.error(), DeadlineError)
    assert "edge" in str(one.error())


def test_a_request_given_back_goes_to_the_cloud_and_may_return():
    one = flight(EDGE, CLOUD)
    one.first()
    assert one.cloud_left
    one.give_back(EDGE)
    assert one.on_failure(EDGE, DeadlineError("edge", "cannot"), 10.05) is CLOUD
    assert not one.cloud_left
    assert one.on_failure(CLOUD, UnavailableError("cloud", "gone"), 10.06) is EDGE


STEPS = st.lists(st.sampled_from(["wait", "edge fails", "cloud fails"]), max_size=12)
ORDERS = st.sampled_from([(EDGE,), (CLOUD,), (EDGE, CLOUD), (CLOUD, EDGE)])


@given(ORDERS, st.one_of(st.none(), st.floats(10.001, 10.099)), STEPS)
@settings(max_examples=80, deadline=None)
def test_each_tier_is_tried_at_most_once_and_time_only_shrinks(order, hedge_at, steps):
    one = flight(*order, hedge_at=hedge_at if len(order) == 2 else None)
    started, now, throttle = [one.first()], 10.0, HedgeThrottle()
    for step in steps:
        if one.over(now):
            break
        assert one.next_at() <= FACTS.limit_s
        other = None
        if step == "wait":
            now = max(now, one.next_at())
            one.cloud_missed(now)
            other = one.on_time(now, throttle)
        else:
            tier = EDGE if step == "edge fails" else CLOUD
            if tier in one.pending:
                other = one.on_failure(tier, UnavailableError(tier.value, "gone"), now)
        if other is not None:
            started.append(other)
    assert len(started) == len(set(started)) <= 2
    assert set(started) <= set(order)
    assert one.over(FACTS.limit_s)
