"""The world does what it says: link, servers, outages, limits; nothing is lost or answered twice."""

import math

import pytest
from msgspec.structs import replace

from edgekit.router._decide import Reason, Tier
from edgekit.router._events import Check, Deliver, RunEdge
from edgekit.router.simulation import POLICIES, SCENARIOS, Endpoint, State, Steps, World, make_trace, steering
from edgekit.router.simulation._baselines import Baseline, CloudOnly, LocalOnly
from tests.router.simulation.traces import random_trace, trace

RUN = [policy for policy in POLICIES if policy != "oracle"]


def run(world, policy):
    return World(world, policy).run()


def test_the_device_runs_one_after_the_other():
    outcome = run(trace([0.0, 0.001, 0.5]), LocalOnly(1, 1))
    assert outcome.answered_s == pytest.approx([0.01, 0.02, 0.51])
    assert outcome.edge_runs == [1, 1, 1]
    assert not any(outcome.cloud_sends)


def test_two_workers_run_two_at_a_time():
    outcome = run(trace([0.0, 0.001, 0.002], workers=2), LocalOnly(2, 1))
    assert outcome.answered_s == pytest.approx([0.01, 0.011, 0.02])


def test_a_slow_device_takes_longer():
    outcome = run(trace([0.0, 0.02], device=Steps([(0.0, 1.0), (0.025, 0.5)])), LocalOnly(1, 1))
    assert outcome.answered_s == pytest.approx([0.01, 0.035])


def test_the_cloud_takes_uplink_round_trip_and_service():
    """10 kB over 1 MB/s, 20 ms of network, 10 ms of service; the second waits for the uplink."""
    outcome = run(trace([0.0, 0.0], payload=10_000, uplink=1e6), CloudOnly(1, 1))
    assert outcome.answered_s == pytest.approx([0.04, 0.05])
    assert outcome.by_cloud == [True, True]


def test_a_busy_server_makes_requests_wait_in_the_order_in_which_they_reach_it():
    endpoint = Endpoint([0.01, 0.01, 0.01], Steps.constant(0.02), servers=1)
    outcome = run(trace([0.0, 0.001, 0.002], endpoints=[endpoint], jitter=[2.0, 1.0, 1.0]), CloudOnly(1, 1))
    assert outcome.answered_s == pytest.approx([0.051, 0.031, 0.041])


def test_a_lost_request_is_sent_again():
    outcome = run(trace([0.0, 0.0, 0.0], loss=Steps.constant(0.2), luck=[0.5, 0.1, 0.03]), CloudOnly(1, 1))
    assert outcome.answered_s == pytest.approx([0.03, 0.23, 0.63])


@pytest.mark.parametrize(("state", "told"), [(State.REFUSES, 0.02), (State.HANGS, 1.1)])
def test_a_dead_cloud_refuses_at_once_or_never_answers(state, told):
    """A refusal comes after the network's 20 ms; silence lasts until the request's limit, a second after its deadline."""
    endpoint = Endpoint([0.01], Steps.constant(0.02), state=Steps.constant(state))
    outcome = run(trace([0.0], endpoints=[endpoint]), CloudOnly(1, 1))
    assert outcome.refused == [True]
    assert outcome.over_s == pytest.approx([told])
    assert outcome.failed_attempts == [1]


@pytest.mark.parametrize(("state", "told"), [(State.REFUSES, 0.025), (State.HANGS, 1.1)])
def test_what_runs_on_a_server_that_dies_is_lost(state, told):
    endpoint = Endpoint([0.01], Steps.constant(0.02), state=Steps([(0.0, State.WELL), (0.025, state), (0.03, State.WELL)]))
    outcome = run(trace([0.0], endpoints=[endpoint]), CloudOnly(1, 1))
    assert outcome.refused == [True]
    assert outcome.over_s == pytest.approx([told])


def test_an_attempt_is_given_up_at_its_limit():
    outcome = run(trace([0.0], cloud=(5.0,)), CloudOnly(1, 1))
    assert outcome.over_s == pytest.approx([1.1])
    assert outcome.failed_attempts == [1]


def test_health_checks_see_the_state():
    heard = []

    class Asks(LocalOnly):
        def accept(self, ask, now):
            return [*super().accept(ask, now), *(Check(index) for index in range(3))]

        def checked(self, endpoint, healthy, round_trip_s, now):
            heard.append((endpoint, healthy, round(round_trip_s, 3), round(now, 3)))
            return []

    states = [Steps.constant(state) for state in State]
    endpoints = [Endpoint([0.01] * 2, Steps.constant(0.02), state=state) for state in states]
    run(trace([0.0, 3.0], endpoints=endpoints), Asks(1, 3))
    assert heard[:3] == [(0, True, 0.02, 0.02), (1, False, 0.02, 0.02), (2, False, 1.0, 1.0)]


@pytest.mark.parametrize("policy", RUN)
@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_or_refused_once(seed, policy):
    """The world itself raises when one is ended twice, or when an answer is given that is not there."""
    world = random_trace(seed, 150)
    outcome = run(world, steering(policy, world, seed, 3))
    assert all((at == at) != refused for at, refused in zip(outcome.answered_s, outcome.refused, strict=True))
    if policy == "edgekit":  # it promises that nobody waits longer than the limit
        limits = [at + sla + world.grace_s for at, sla in zip(world.arrive_s, world.sla_s, strict=True)]
        assert all(over <= limit + 1e-9 for over, limit in zip(outcome.over_s, limits, strict=True))


@pytest.mark.parametrize("policy", RUN)
def test_the_same_seed_gives_the_same_run(policy):
    def once():
        world = make_trace("failover-storm", 400, 7)
        outcome = run(world, steering(policy, world, 7, 3))
        return outcome.over_s, outcome.cloud_sends, outcome.edge_runs, outcome.refused

    assert once() == once()


def test_policies_meet_the_same_world():
    """Requests a second apart queue nowhere: each takes as long on either tier whoever sends it there."""
    world = make_trace("lossy-wifi", 60, 3)
    world = replace(world, arrive_s=[float(index) for index in range(60)])

    def latencies(policy):
        outcome = run(world, policy)
        return [at - arrive for at, arrive in zip(outcome.answered_s, world.arrive_s, strict=True)]

    device, cloud = latencies(LocalOnly(1, 1)), latencies(CloudOnly(1, 1))
    assert device == pytest.approx(world.work_s)
    assert latencies(steering("always-hedge", world, 1)) == pytest.approx([min(both) for both in zip(device, cloud, strict=True)])


class Broken(Baseline):
    """Hands out the same answer twice, or none that there is, or more than the device can run."""

    def __init__(self, fault):
        super().__init__(1, 1)
        self._fault = fault

    def accept(self, ask, now):
        if self._fault == "busy":
            return [RunEdge(1, 1), RunEdge(2, 1)]
        if self._fault == "idle":
            return []
        return [RunEdge(1, 1)] if self._fault == "twice" else [Deliver(1, 9, False, Tier.EDGE, Reason.LOCAL_FITS, False)]

    def answered(self, attempt, now, confidence=None):
        return [Deliver(1, attempt, False, Tier.EDGE, Reason.LOCAL_FITS, False)] * 2


@pytest.mark.parametrize(
    ("fault", "words"), [("busy", "workers"), ("idle", "nothing is left"), ("twice", "ended twice"), ("invented", "which was not there")]
)
def test_a_policy_that_breaks_the_rules_is_found_out(fault, words):
    with pytest.raises(RuntimeError, match=words):
        run(trace([0.0]), Broken(fault))


def test_a_late_deadline_of_the_queue_is_not_run():
    """The third would begin after its deadline: it is refused without a run."""
    outcome = run(trace([0.0, 0.0, 0.0], 0.06, cloud=()), LocalOnly(1, 0))
    assert outcome.edge_runs == [1, 1, 0]
    assert outcome.refused == [False, False, True]
    assert math.isnan(outcome.answered_s[2])


def test_all_scenarios_have_a_source_and_faults_are_named():
    assert {name for name, scenario in SCENARIOS.items() if scenario.fault} == {
        "thermal",
        "contention",
        "lte-mobility",
        "lossy-wifi",
        "brown-out",
        "cloud-down",
        "failover-storm",
    }
    assert all(scenario.sources and scenario.about.endswith(".") for scenario in SCENARIOS.values())
