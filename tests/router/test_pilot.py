"""The router's state machine, one step at a time, and what holds after any history."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router import Pilot, PilotOptions
from edgekit.router._breaker import HedgeAllowance
from edgekit.router._decide import Reason, Tier
from edgekit.router._events import Ask, Cancel, Check, Cost, Deliver, Failure, FailureKind, Refuse, RunEdge, SendCloud, Terms
from edgekit.router._retry import RetryLimits

MODEL, SIZE, SLA_S, GRACE_S = "m", 4096, 0.1, 1.0
BROKEN = Failure(FailureKind.BROKEN)


def ask(number, now, sla_s=SLA_S, **more):
    return Ask(number, MODEL, SIZE, now, now + sla_s, now + sla_s + GRACE_S, sla_s, **more)


def made(endpoints=1, service_s=0.02, options=None, budgets=None, seed=0):
    """A pilot that knows its device, and whose endpoints answered their first health checks after 20 ms."""
    pilot = Pilot(options or PilotOptions(), endpoints, random.Random(seed), budgets)
    if service_s is not None:
        pilot.seed_edge(MODEL, SIZE, [service_s] * 50, 0.0)
    checks = pilot.tick(0.0)
    assert {check.endpoint for check in checks} == set(range(endpoints))
    for check in checks:
        pilot.checked(check.endpoint, True, 0.02, 0.0)
    return pilot


def kinds(actions):
    return [type(action) for action in actions]


def one(actions, kind):
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


# One request


def test_the_device_answers():
    pilot = made()
    (run,) = pilot.accept(ask(1, 1.0), 1.0)
    assert run == RunEdge(1, 1)
    told = pilot.decision(1)
    assert (told.tiers, told.reason, told.endpoint, told.late) == ((Tier.EDGE, Tier.CLOUD), Reason.LOCAL_FITS, 0, False)
    assert told.edge.p_meet == 1.0
    assert told.cloud is not None
    assert pilot.answered(run.attempt, 1.02) == [Deliver(1, run.attempt, False, Tier.EDGE, Reason.LOCAL_FITS, False)]
    assert pilot.snapshot(1.02)["open"] == 0


def test_a_passed_deadline_is_refused_without_work():
    (refusal,) = made().accept(ask(1, 1.0), 1.2)
    assert (refusal.failure.kind, refusal.reason, refusal.attempt) == (FailureKind.DEADLINE, Reason.DEADLINE_PASSED, 0)


def test_what_no_tier_makes_by_its_limit_is_refused_early_and_the_device_is_probed_with_it():
    pilot = made(endpoints=0, service_s=2.0)
    (refusal,) = pilot.accept(ask(1, 1.0), 1.0)
    assert (refusal.failure.kind, refusal.reason) == (FailureKind.DEADLINE, Reason.HOPELESS)
    assert pilot.probe_request == 1
    probe = one(pilot.tick(pilot.next_at()), RunEdge)
    assert (probe.request, probe.shadow) == (1, True)
    assert pilot.answered(probe.attempt, pilot.next_at() if pilot.next_at() < math.inf else 30.0) == []


def test_a_full_queue_of_late_requests_lets_one_in_that_is_in_time_and_gives_up_the_last():
    pilot = made(endpoints=0, options=PilotOptions(queue=2))
    run = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    assert pilot.accept(ask(2, 1.0), 1.0) == pilot.accept(ask(3, 1.001), 1.001) == []
    while pilot.next_at() < 1.15:
        assert pilot.tick(pilot.next_at()) == []  # 2 and 3 are late by then, and wait for whatever is left
    (refusal,) = pilot.accept(ask(4, 1.15, sla_s=0.9), 1.15)
    assert (refusal.request, refusal.failure.kind) == (3, FailureKind.OVERLOADED)
    assert one(pilot.answered(run.attempt, 1.16), RunEdge).request == 4
    assert pilot.snapshot(1.16)["open"] == 2


def test_a_request_waits_its_turn_and_is_handed_over_while_it_waits():
    """The first hangs on the only worker; the second goes to the cloud before it is too late for that, and runs nowhere else."""
    pilot = made()
    one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    assert pilot.accept(ask(2, 1.0, sla_s=0.4), 1.0) == []
    assert pilot.decision(2).reason in {Reason.LOCAL_FITS, Reason.LOCAL_QUEUED}
    sent = None
    while sent is None:
        now = pilot.next_at()
        assert now < 1.4
        sent = next((action for action in pilot.tick(now) if isinstance(action, SendCloud) and action.request == 2), None)
    delivered = one(pilot.answered(sent.attempt, now + 0.03), Deliver)
    assert (delivered.request, delivered.tier, delivered.hedged, delivered.late) == (2, Tier.CLOUD, False, False)


def test_a_hanging_device_is_hedged_and_the_loser_is_cancelled():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, sla_s=0.4), 1.0), RunEdge)
    sent = None
    while sent is None:
        now = pilot.next_at()
        sent = next((action for action in pilot.tick(now) if isinstance(action, SendCloud)), None)
    assert now < 1.4
    cancel, delivered = pilot.answered(sent.attempt, now + 0.03)
    assert cancel == Cancel(run.attempt)
    assert (delivered.tier, delivered.hedged) == (Tier.CLOUD, True)
    assert pilot.answered(run.attempt, now + 5.0) == []  # frees the worker, tells nobody
    assert one(pilot.accept(ask(2, now + 6.0, sla_s=50.0), now + 6.0), RunEdge)


@pytest.mark.parametrize(("kind", "stops"), [(FailureKind.OVERLOADED, True), (FailureKind.REQUEST, False)])
def test_a_cloud_that_fails_now_and_then_gets_no_hedges_though_its_breaker_is_closed(kind, stops):
    pilot = made(options=PilotOptions(retries=RetryLimits(share=0.0, floor_per_s=0.0)))
    now = 1.0
    for number in range(1, 15):
        sent = one(pilot.accept(ask(number, now, sla_s=2.0, terms=Terms(cloud_only=True)), now), SendCloud)
        if number % 2:
            assert kinds(pilot.failed(sent.attempt, Failure(kind), now + 0.03)) == [Refuse]
        else:
            assert kinds(pilot.answered(sent.attempt, now + 0.03)) == [Deliver]
        now += 1.0
    assert pilot.endpoint_open(0)
    assert pilot._hedges.allows
    pilot.accept(ask(20, now, sla_s=0.4), now)
    sent = []
    while pilot.next_at() < now + 0.4:
        sent += [action for action in pilot.tick(pilot.next_at()) if isinstance(action, SendCloud)]
    assert sent == [] if stops else len(sent) == 1


def test_one_that_waits_is_looked_at_a_last_time_while_the_cloud_can_still_make_it():
    """At the first look the device is sure, and the next one would be after the cloud's last half chance; then more urgent ones come between."""
    pilot = made(service_s=0.01, options=PilotOptions(queue=200))
    for number in range(1, 101):  # the cloud answers in 180 to 219 ms
        now = 0.4 * number
        sent = one(pilot.accept(ask(number, now, sla_s=2.0, terms=Terms(cloud_only=True)), now), SendCloud)
        pilot.answered(sent.attempt, now + 0.18 + 0.001 * (number * 7 % 40))
    now = start = 50.0
    edge_only = Terms(edge_only=True)
    run = one(pilot.accept(ask(200, now, sla_s=0.95, terms=edge_only), now), RunEdge)
    for number in range(201, 276):
        assert pilot.accept(ask(number, now, sla_s=0.95, terms=edge_only), now) == []
    assert pilot.accept(ask(300, now, sla_s=0.95), now) == []
    waits = pilot._open[300]
    last = waits.until_s - waits.cloud.typical_s
    first = waits.look_s
    while now + 0.01 < first:
        now += 0.01
        assert SendCloud not in kinds(pilot.tick(now))
        run = one(pilot.answered(run.attempt, now), RunEdge)
    assert pilot.tick(first) == []
    assert first < waits.look_s == last
    for number in range(400, 412):
        assert pilot.accept(ask(number, first + 0.01, sla_s=0.2, terms=edge_only), first + 0.01) == []
    assert one(pilot.tick(last), SendCloud).request == 300
    assert last < start + 0.75


def test_a_failure_falls_back_once_and_then_the_devices_error_is_told():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    sent = one(pilot.failed(run.attempt, BROKEN, 1.001), SendCloud)
    (refusal,) = pilot.failed(sent.attempt, Failure(FailureKind.DEADLINE), 1.002)
    assert (refusal.failure, refusal.attempt) == (BROKEN, run.attempt)


def test_the_requests_own_fault_ends_it():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    (refusal,) = pilot.failed(run.attempt, Failure(FailureKind.REQUEST), 1.001)
    assert (refusal.failure.kind, refusal.attempt) == (FailureKind.REQUEST, run.attempt)


def test_a_cloud_failure_is_retried_within_the_deadline_out_of_the_budget():
    pilot = made(options=PilotOptions(retries=RetryLimits(share=0.0, floor_per_s=0.1)))  # one in ten seconds
    for number, retried in ((1, True), (2, False)):
        terms = Terms(cloud_only=True)
        sent = one(pilot.accept(ask(number, 1.0, sla_s=2.0, terms=terms), 1.0), SendCloud)
        actions = pilot.failed(sent.attempt, BROKEN, 1.01)
        if retried:
            assert actions == []
            again = one(pilot.tick(pilot.next_at()), SendCloud)
            assert one(pilot.answered(again.attempt, 1.2), Deliver).tier is Tier.CLOUD
        else:
            assert kinds(actions) == [Refuse]


def test_another_endpoint_is_asked_at_once():
    pilot = made(endpoints=3)
    sent = one(pilot.accept(ask(1, 1.0, sla_s=2.0, terms=Terms(cloud_only=True)), 1.0), SendCloud)
    again = one(pilot.failed(sent.attempt, BROKEN, 1.01), SendCloud)
    assert again.endpoint != sent.endpoint


def test_past_its_deadline_it_still_gets_a_late_answer_of_the_device():
    pilot = made(service_s=0.02)
    first = one(pilot.accept(ask(1, 1.0, terms=Terms(edge_only=True)), 1.0), RunEdge)
    late = one(pilot.answered(first.attempt, 1.5), Deliver)
    assert late.late


def test_nobody_waits_beyond_the_limit():
    pilot = made(endpoints=0)
    run = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    while pilot.next_at() < 1.0 + SLA_S + GRACE_S:
        assert pilot.tick(pilot.next_at()) == []
    actions = pilot.tick(pilot.next_at())
    assert one(actions, Cancel).attempt == run.attempt
    assert one(actions, Refuse).failure.kind is FailureKind.DEADLINE


def test_a_client_that_leaves_takes_its_attempts_along():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    pilot.accept(ask(2, 1.0), 1.0)
    assert pilot.left(2, 1.001) == []  # it waited
    assert pilot.left(1, 1.002) == [Cancel(run.attempt)]
    assert pilot.left(1, 1.003) == []
    assert pilot.snapshot(1.003)["edge"]["waiting"] == 0


# Several requests


def test_identical_requests_in_flight_share_one_attempt():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, digest=b"x"), 1.0), RunEdge)
    assert pilot.accept(ask(2, 1.005, digest=b"x"), 1.005) == []
    assert pilot.accept(ask(3, 1.006, digest=b"x"), 1.006) == []
    assert pilot.left(2, 1.007) == []
    first, third = pilot.answered(run.attempt, 1.02)
    assert (first.request, first.reason) == (1, Reason.LOCAL_FITS)
    assert (third.request, third.attempt, third.reason) == (3, run.attempt, Reason.SHARED)
    assert one(pilot.accept(ask(4, 1.03, digest=b"x"), 1.03), RunEdge)  # not in flight any more


def test_a_request_with_less_time_does_not_share():
    pilot = made(options=PilotOptions(workers=2))
    pilot.accept(ask(1, 1.0, digest=b"x"), 1.0)
    assert one(pilot.accept(ask(2, 1.001, sla_s=0.05, digest=b"x"), 1.001), RunEdge)


def test_the_attempt_goes_on_for_the_others_when_its_own_client_leaves():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, digest=b"x"), 1.0), RunEdge)
    pilot.accept(ask(2, 1.001, digest=b"x"), 1.001)
    assert pilot.left(1, 1.002) == []
    told = pilot.answered(run.attempt, 1.02)
    assert [action.request for action in told] == [1, 2]


def test_a_follower_starts_anew_when_the_shared_attempt_failed_of_itself():
    pilot = made(endpoints=0)
    run = one(pilot.accept(ask(1, 1.0, digest=b"x"), 1.0), RunEdge)
    pilot.accept(ask(2, 1.001, digest=b"x"), 1.001)
    actions = pilot.failed(run.attempt, BROKEN, 1.002)
    assert one(actions, Refuse).request == 1
    again = one(actions, RunEdge)
    assert again.request == 2
    assert one(pilot.answered(again.attempt, 1.02), Deliver).request == 2


def test_real_time_goes_before_batch_and_batch_is_not_hedged():
    pilot = made(options=PilotOptions(workers=1))
    first = one(pilot.accept(ask(1, 1.0), 1.0), RunEdge)
    pilot.accept(ask(2, 1.0, sla_s=5.0, priority=1), 1.0)
    pilot.accept(ask(3, 1.0), 1.0)
    actions = pilot.answered(first.attempt, 1.02)
    assert one(actions, RunEdge).request == 3
    batch = one(pilot.answered(one(actions, RunEdge).attempt, 1.04), RunEdge)
    assert batch.request == 2
    while pilot.next_at() < 6.0:  # it hangs
        assert not [action for action in pilot.tick(pilot.next_at()) if isinstance(action, SendCloud)]


def test_a_sequence_stays_where_its_state_is():
    pilot = made(endpoints=2)
    now, where = 1.0, None
    for number in range(1, 20):
        actions = pilot.accept(ask(number, now, sla_s=2.0, sequence="s", terms=Terms(cloud_only=number == 1)), now)
        sent = one(actions, SendCloud)
        where = sent.endpoint if where is None else where
        assert sent.endpoint == where
        assert one(pilot.answered(sent.attempt, now + 0.03), Deliver).tier is Tier.CLOUD
        now += 0.1
    assert pilot.decision(19).reason is Reason.STICKY
    sent = one(pilot.accept(ask(20, now, sla_s=2.0, sequence="s"), now), SendCloud)
    assert kinds(pilot.failed(sent.attempt, BROKEN, now + 0.01)) == [Refuse]  # no other tier has its state
    assert one(pilot.accept(ask(21, now + 0.1, sequence="s"), now + 0.1), RunEdge)  # a new start


def sequence_on(pilot, cloud, now=1.0):
    """A sequence whose first request was answered there; returns the endpoint."""
    actions = pilot.accept(ask(1, now, sla_s=2.0, sequence="s", terms=Terms(cloud_only=cloud, edge_only=not cloud)), now)
    (begun,) = [action for action in actions if isinstance(action, SendCloud if cloud else RunEdge)]
    assert one(pilot.answered(begun.attempt, now + 0.03), Deliver).tier is (Tier.CLOUD if cloud else Tier.EDGE)
    return begun.endpoint if cloud else -1


def break_tier(pilot, place, now=2.0):
    """Open a tier's breaker: an endpoint's health check fails, or the device fails requests that are no sequence's."""
    if place >= 0:
        pilot.checked(place, False, 0.02, now)
        return
    for number in range(100, 140):
        if pilot._device.breaker.closed:
            pilot.failed(one(pilot.accept(ask(number, now, sla_s=2.0, terms=Terms(edge_only=True)), now), RunEdge).attempt, BROKEN, now)
            pilot.left(number, now)


def test_a_sequence_is_moved_when_its_tier_goes_and_stays_there():
    pilot = made()
    sequence_on(pilot, cloud=False)
    break_tier(pilot, -1)
    sent = one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s"), 3.0), SendCloud)
    assert pilot.decision(2).reason is Reason.MOVED
    pilot.answered(sent.attempt, 3.03)
    pilot._device.recovered(3.1)
    one(pilot.accept(ask(3, 3.2, sla_s=2.0, sequence="s"), 3.2), SendCloud)
    assert pilot.decision(3).reason is Reason.STICKY


@pytest.mark.parametrize("endpoints", [1, 2])
def test_a_sequence_in_the_cloud_comes_back_when_its_endpoint_goes(endpoints):
    pilot = made(endpoints=endpoints)
    where = sequence_on(pilot, cloud=True)
    break_tier(pilot, where)
    one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s"), 3.0), RunEdge)
    assert pilot.decision(2).reason is Reason.MOVED


def test_whatever_asks_for_it_nothing_of_edge_only_is_sent():
    """No way there is known: nothing offers the cloud to such a request. This is the last door."""
    pilot = made()
    actions = pilot.accept(ask(1, 1.0, terms=Terms(edge_only=True)), 1.0)
    assert kinds(actions) == [RunEdge]
    assert pilot._send(pilot._open[1], 0, None, 1.0, actions) is False
    assert kinds(actions) == [RunEdge]


def test_a_sequence_under_edge_only_is_never_moved_to_the_cloud():
    pilot = made()
    sequence_on(pilot, cloud=False)
    break_tier(pilot, -1)
    one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s", terms=Terms(edge_only=True)), 3.0), RunEdge)
    assert pilot.decision(2).reason is Reason.STICKY


@pytest.mark.parametrize("left", ["policy", "budget"])
def test_a_sequence_that_may_not_be_in_the_cloud_any_more_is_moved_to_the_device(left):
    purse = Purse(1)
    pilot = made(budgets=purse if left == "budget" else None)
    sequence_on(pilot, cloud=True)
    terms = Terms(edge_only=left == "policy")
    one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s", terms=terms), 3.0), RunEdge)
    assert pilot.decision(2).reason is Reason.MOVED


def test_a_sequence_with_nowhere_to_go_is_told_so_and_one_that_begins_again_goes_where_it_can():
    pilot = made()
    sequence_on(pilot, cloud=True)
    break_tier(pilot, 0)
    refused = one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s", on_edge=False), 3.0), Refuse)
    assert refused.failure.kind is FailureKind.BROKEN
    one(pilot.accept(ask(3, 3.1, sla_s=2.0, sequence="s", sequence_start=True), 3.1), RunEdge)
    assert pilot.decision(3).reason is not Reason.MOVED


def test_a_refusal_for_now_leaves_a_sequence_where_it_is():
    pilot = made()
    sequence_on(pilot, cloud=True)
    for number, kind in ((2, FailureKind.OVERLOADED), (3, FailureKind.DEADLINE)):
        sent = one(pilot.accept(ask(number, 3.0, sla_s=2.0, sequence="s"), 3.0), SendCloud)
        assert kinds(pilot.failed(sent.attempt, Failure(kind), 3.01)) == [Refuse]
    one(pilot.accept(ask(4, 3.1, sla_s=2.0, sequence="s"), 3.1), SendCloud)


def test_a_state_that_is_lost_is_no_fault_of_the_tier_that_was_to_have_it():
    pilot = made()
    sequence_on(pilot, cloud=False)
    break_tier(pilot, -1)
    before = pilot.snapshot(3.0)["cloud"]
    sent = one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s"), 3.0), SendCloud)
    refused = one(pilot.failed(sent.attempt, Failure(FailureKind.STATE_LOST, unsent=True), 3.01), Refuse)
    assert (refused.attempt, refused.failure.kind) == (sent.attempt, FailureKind.STATE_LOST)
    assert pilot.snapshot(3.0)["cloud"] == before


FIRST = {"sequence": "s", "sequence_start": True}


def test_the_first_request_of_a_sequence_falls_back_as_any_does_and_the_rest_follow_it():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, sla_s=2.0, **FIRST), 1.0), RunEdge)
    sent = one(pilot.failed(run.attempt, BROKEN, 1.01), SendCloud)
    assert one(pilot.answered(sent.attempt, 1.04), Deliver).tier is Tier.CLOUD
    one(pilot.accept(ask(2, 1.1, sla_s=2.0, sequence="s"), 1.1), SendCloud)
    assert pilot.decision(2).reason is Reason.STICKY


def test_the_first_request_of_a_sequence_falls_back_from_a_dead_endpoint_to_the_device():
    pilot = made(service_s=0.02)
    sent = one(pilot.accept(ask(1, 1.0, sla_s=0.022, **FIRST), 1.0), SendCloud)  # the device is too slow for it
    run = one(pilot.failed(sent.attempt, BROKEN, 1.001), RunEdge)
    assert one(pilot.answered(run.attempt, 1.02), Deliver).tier is Tier.EDGE
    one(pilot.accept(ask(2, 1.1, sla_s=2.0, sequence="s"), 1.1), RunEdge)


@pytest.mark.parametrize("terms", [Terms(edge_only=True), Terms(cloud_only=True)])
def test_the_first_request_of_a_sequence_falls_back_nowhere_where_it_may_not_be(terms):
    pilot = made()
    kind, now = RunEdge if terms.edge_only else SendCloud, 1.0
    actions = pilot.accept(ask(1, now, sla_s=2.0, terms=terms, **FIRST), now)
    while pilot.holds(1):  # retries among them
        assert {type(action) for action in actions} <= {kind, Check}
        attempts = [action.attempt for action in actions if isinstance(action, kind)]
        now = now + 0.01 if attempts else pilot.next_at()
        actions = pilot.failed(attempts[0], BROKEN, now) if attempts else pilot.tick(now)
    assert one(actions, Refuse).failure.kind is FailureKind.BROKEN


def test_a_first_request_that_hangs_in_the_cloud_goes_to_the_device_instead_never_beside():
    pilot = made(service_s=0.08, options=PilotOptions(workers=2))  # one for a probe
    sent = one(pilot.accept(ask(1, 1.0, sla_s=0.085, **FIRST), 1.0), SendCloud)
    actions = []
    while not actions and pilot.next_at() < 2.0:
        now = pilot.next_at()
        actions = [action for action in pilot.tick(now) if not getattr(action, "shadow", isinstance(action, Check))]
    assert actions[0] == Cancel(sent.attempt)
    assert one(pilot.answered(one(actions, RunEdge).attempt, now + 0.08), Deliver).hedged is False


def test_requests_of_a_sequence_take_turns_and_follow_the_one_before():
    """All three are here at once; the first fails over, and the others go where it was answered."""
    pilot = made(options=PilotOptions(workers=4))
    run = one(pilot.accept(ask(1, 1.0, sla_s=2.0, **FIRST), 1.0), RunEdge)
    assert [pilot.accept(ask(number, 1.0, sla_s=2.0, sequence="s"), 1.0) for number in (2, 3)] == [[], []]
    assert pilot.decision(3).reason is Reason.STICKY
    sent = one(pilot.failed(run.attempt, BROKEN, 1.01), SendCloud)
    for number in (1, 2):
        delivered, sent = pilot.answered(sent.attempt, 1.01 + 0.03 * number)
        assert (delivered.request, sent.request) == (number, number + 1)
    assert one(pilot.answered(sent.attempt, 1.2), Deliver).request == 3


def test_one_sequence_waits_for_itself_only():
    pilot = made(options=PilotOptions(workers=4))
    for number, more in enumerate(({"sequence": "s"}, {"sequence": "t"}, {"sequence": "s", "version": "2"}, {}), 1):
        assert kinds(pilot.accept(ask(number, 1.0, sla_s=2.0, **more), 1.0)) == [RunEdge]


def test_requests_that_wait_for_an_earlier_one_are_bounded_and_leave_in_peace():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, sla_s=2.0, **FIRST), 1.0), RunEdge)
    for number in range(2, 66):
        assert pilot.accept(ask(number, 1.0, sla_s=2.0, sequence="s"), 1.0) == []
    refused = one(pilot.accept(ask(66, 1.0, sla_s=2.0, sequence="s"), 1.0), Refuse)
    assert (refused.failure.kind, refused.reason) == (FailureKind.OVERLOADED, Reason.STICKY)
    assert pilot.left(2, 1.01) == []  # it had not begun
    assert one(pilot.answered(run.attempt, 1.02), RunEdge).request == 3


def test_a_request_whose_client_leaves_makes_way_for_the_next():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, sla_s=2.0, sequence="s"), 1.0), RunEdge)
    pilot.accept(ask(2, 1.0, sla_s=2.0, sequence="s"), 1.0)
    assert kinds(pilot.left(1, 1.01)) == [Cancel]  # the device is busy with it still
    assert one(pilot.answered(run.attempt, 1.02), RunEdge).request == 2


def test_one_that_waits_beyond_its_deadline_is_answered_late_and_beyond_its_limit_refused():
    pilot = made()
    run = one(pilot.accept(ask(1, 1.0, sla_s=9.0, **FIRST), 1.0), RunEdge)
    for number in (2, 3):
        pilot.accept(ask(number, 1.0 + number, sequence="s"), 1.0 + number)  # until 3.1 and 4.1, or 4.1 and 5.1 at the latest
    ends = []
    while pilot.next_at() < 4.5:
        ends += pilot.tick(pilot.next_at())
    assert [(end.request, end.failure.kind) for end in ends if isinstance(end, Refuse)] == [(2, FailureKind.DEADLINE)]
    run = one(pilot.answered(run.attempt, 4.6), RunEdge)
    delivered = one(pilot.answered(run.attempt, 4.7), Deliver)
    assert (delivered.request, delivered.late) == (3, True)


@pytest.mark.parametrize("cloud", [False, True])
def test_a_sequence_leaves_a_tier_that_says_it_stops_with_its_next_request(cloud):
    pilot = made()
    sequence_on(pilot, cloud=cloud)
    begun = one(pilot.accept(ask(2, 3.0, sla_s=2.0, sequence="s"), 3.0), SendCloud if cloud else RunEdge)
    assert pilot.accept(ask(3, 3.0, sla_s=2.0, sequence="s"), 3.0) == []
    actions = pilot.answered(begun.attempt, 3.03, stopping=True)
    assert one(actions, Deliver).request == 2
    assert one(actions, RunEdge if cloud else SendCloud).request == 3
    assert pilot.decision(3).reason is Reason.MOVED


def test_attempts_that_were_cancelled_are_no_failures_of_the_device():
    """A remote device reports the end of what was cancelled as an error; ten of these must not open its breaker."""
    pilot = made()
    for number in range(1, 11):
        now = 10.0 * number
        run = one(pilot.accept(ask(number, now, sla_s=5.0), now), RunEdge)
        assert pilot.left(number, now + 0.001) == [Cancel(run.attempt)]
        assert pilot.failed(run.attempt, BROKEN, now + 0.002) == []
    state = pilot.snapshot(120.0)["edge"]
    assert (state["breaker"], state["running"]) == ("closed", 0)
    assert pilot.decision(10).edge.service_s == pytest.approx(0.02, rel=0.02)  # and a short life is no sample of a fast one


def test_edge_only_never_leaves_even_a_dead_device():
    pilot = made()
    terms = Terms(edge_only=True)
    for number in range(1, 30):
        now = float(number)
        run = one(pilot.accept(ask(number, now, terms=terms), now), RunEdge)
        assert kinds(pilot.failed(run.attempt, BROKEN, now + 0.01)) == [Refuse]


class Purse:
    """Budgets of so many requests; checks that nothing is taken twice."""

    def __init__(self, requests):
        self.left = requests

    def may_spend(self, cost: Cost, now):
        return self.left >= cost.requests

    def spend(self, cost: Cost, now):
        if self.left < cost.requests:
            return False
        self.left -= cost.requests
        return True

    def give_back(self, cost: Cost, spent_s):
        raise AssertionError("nothing is taken for what is not sent")


def test_a_spent_budget_leaves_the_device():
    pilot = made(service_s=0.2, budgets=Purse(5))
    tiers = []
    for number in range(1, 20):
        now = 10.0 * number
        action = next(action for action in pilot.accept(ask(number, now), now) if isinstance(action, RunEdge | SendCloud))
        tiers.append(type(action))
        pilot.answered(action.attempt, now + 0.03 if isinstance(action, SendCloud) else now + 0.2)
    assert tiers.count(SendCloud) == 5


def test_hedges_are_a_share_of_the_requests():
    allowance, taken = HedgeAllowance(0.02), 0
    for _ in range(10_000):
        allowance.requested()
        if allowance.allows:
            allowance.take()
            taken += 1
    assert taken <= 0.02 * 10_000 + HedgeAllowance.FIRST


# Any history

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "answer", "answer", "fail", "leave", "tick", "check"]),
        st.integers(0, 10**6),
        st.floats(0.0, 0.08),
    ),
    min_size=1,
    max_size=120,
)
TERMS = (Terms(), Terms(edge_only=True), Terms(cloud_only=True), Terms(may_hedge=False))
FAILURES = (*(Failure(kind) for kind in FailureKind), Failure(FailureKind.OVERLOADED, 0.3))


class History:
    """Plays steps on a pilot and checks every action."""

    def __init__(self, endpoints, workers, budget):
        self.purse = Purse(budget)
        self.budget, self.workers = budget, workers
        self.pilot = made(endpoints, options=PilotOptions(workers=workers, queue=6), budgets=self.purse, seed=3)
        self.now, self.number, self.log = 0.0, 0, []
        self.asks, self.over, self.gone = {}, set(), set()
        self.edge, self.cloud, self.cancelled = {}, {}, set()  # attempts under way -> request
        self.shadows, self.asked = set(), {}
        self.sent = self.hedged = 0

    def play(self, steps):
        for what, choice, wait_s in steps:
            self.now += wait_s
            getattr(self, what)(choice)
        while self.pilot.next_at() < self.now + 5.0 and len(self.over | self.gone) < len(self.asks):
            self.now = max(self.now, self.pilot.next_at())
            self.take(self.pilot.tick(self.now))
        assert self.over | self.gone == self.asks.keys()  # nobody waits beyond the limit
        assert not self.gone & self.over or all(self.asks[number].digest for number in self.gone & self.over)
        assert self.sent == self.budget - self.purse.left <= self.budget
        assert self.hedged <= 0.02 * len(self.asks) + HedgeAllowance.FIRST
        again = sum(times - 1 for times in self.asked.values())
        assert again <= 0.2 * len(self.asks) + 1.0 * (self.now + 10.0)  # retries: a fifth, and one a second
        assert set(self.edge) <= self.cancelled | self.shadows  # whatever still runs was given up
        return self.log

    def accept(self, choice):
        self.number += 1
        one_ask = ask(
            self.number,
            self.now,
            sla_s=(0.03, 0.1, 0.4)[choice % 3],
            priority=choice % 5 == 0,
            digest=b"same" if choice % 7 == 0 and choice % 4 else b"",
            sequence="ab"[choice % 2] if choice % 4 in (0, 1) else "",
            sequence_start=choice % 3 == 0,
            sequence_end=choice % 33 == 0,
            terms=TERMS[choice // 3 % 4],
        )
        self.asks[self.number] = one_ask
        self.take(self.pilot.accept(one_ask, self.now))

    def under_way(self, choice):
        attempts = sorted(self.edge | {attempt: request for attempt, request in self.cloud.items() if attempt not in self.cancelled})
        return attempts[choice % len(attempts)] if attempts else None

    def answer(self, choice):
        attempt = self.under_way(choice)
        if attempt is not None:
            self.edge.pop(attempt, None) or self.cloud.pop(attempt, None)
            self.take(self.pilot.answered(attempt, self.now))

    def fail(self, choice):
        attempt = self.under_way(choice)
        if attempt is not None:
            self.edge.pop(attempt, None) or self.cloud.pop(attempt, None)
            self.take(self.pilot.failed(attempt, FAILURES[choice % len(FAILURES)], self.now))

    def leave(self, choice):
        here = sorted(self.asks.keys() - self.over - self.gone)
        if here:
            self.gone.add(here[choice % len(here)])
            self.take(self.pilot.left(here[choice % len(here)], self.now))

    def tick(self, _choice):
        self.take(self.pilot.tick(self.now))

    def check(self, choice):
        self.take(self.pilot.tick(self.now))

    def take(self, actions):
        self.log.extend(actions)
        for action in actions:
            if isinstance(action, RunEdge):
                assert len(self.edge) < self.workers
                self.edge[action.attempt] = action.request
                assert action.shadow or action.request not in self.over
                if action.shadow:
                    self.shadows.add(action.attempt)
                assert not self.asks[action.request].terms.cloud_only
            elif isinstance(action, SendCloud):
                told = self.asks[action.request]
                assert not told.terms.edge_only
                assert action.request not in self.over
                assert self.now < action.limit_s <= told.limit_s
                self.cloud[action.attempt] = action.request
                self.sent += 1
                self.asked[action.request] = self.asked.get(action.request, 0) + 1
            elif isinstance(action, Cancel):
                assert action.attempt in self.edge or action.attempt in self.cloud
                assert action.attempt not in self.cancelled
                self.cancelled.add(action.attempt)
            elif isinstance(action, Deliver | Refuse):
                assert action.request not in self.over  # never told twice
                self.over.add(action.request)
                self.hedged += isinstance(action, Deliver) and action.hedged and action.reason is not Reason.SHARED
                if isinstance(action, Deliver):
                    assert action.late == (self.now > self.asks[action.request].deadline_s)
            elif isinstance(action, Check):
                self.pilot.checked(action.endpoint, self.number % 3 > 0, 0.02, self.now)
        live = {attempt: request for attempt, request in (self.edge | self.cloud).items() if attempt not in self.cancelled | self.shadows}
        turns = [self.asks[request].sequence for request in live.values() if self.asks[request].sequence]
        assert len(turns) == len(set(turns))  # of each sequence one attempt is under way


@given(STEPS, st.integers(0, 3), st.integers(1, 3), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_after_any_history_nothing_is_lost_told_twice_or_sent_where_it_must_not(steps, endpoints, workers, budget):
    log = History(endpoints, workers, budget).play(steps)
    assert log == History(endpoints, workers, budget).play(steps)  # the same chances, the same actions


def test_a_cloud_that_hangs_is_beside_the_device_past_the_deadline_and_cancelled_by_its_answer():
    pilot = made(service_s=0.2)
    sent = one(pilot.accept(ask(1, 1.0), 1.0), SendCloud)
    run, now = None, 1.0
    while run is None:
        now = max(now, pilot.next_at())
        assert now < 2.0
        for action in pilot.tick(now):
            if isinstance(action, RunEdge) and action.shadow:
                now += 0.2
                rest = pilot.answered(action.attempt, now)
                assert not rest
            elif isinstance(action, RunEdge):
                run = action
    assert now >= 1.1
    cancel, delivered = pilot.answered(run.attempt, now + 0.2)
    assert cancel == Cancel(sent.attempt)
    assert (delivered.tier, delivered.late) == (Tier.EDGE, True)
