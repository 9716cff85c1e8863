"""The decision: a table of cases, and what holds for every input."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._decide import Decision, Health, Reason, RequestFacts, Tier, TierEstimate, decide, margin_s

NOW = 1000.0
SLA = 0.1
FACTS = RequestFacts(NOW + SLA, NOW + SLA + 1.0, SLA)
EDGE, CLOUD = Tier.EDGE, Tier.CLOUD


def tier(p, typical=0.02, slow=0.04, known=True, health=Health.OK, cost=0.0, sure=0.05):
    return TierEstimate(p, typical, slow, known, health, cost, sure_s=sure)


def waiting(p):
    return TierEstimate(p, 0.07, 0.09, True, Health.OK, 0.0, 0.02, 0.05)


UNKNOWN = tier(0.0, 0.0, 0.0, known=False)
OPEN = tier(0.9, health=Health.FAILING)

CASES = {
    "local fits": (tier(0.99), [tier(1.0)], (EDGE, CLOUD), Reason.LOCAL_FITS),
    "local fits, no cloud": (tier(0.995), [], (EDGE,), Reason.LOCAL_FITS),
    "local fits, cloud open: nothing is spent on the cloud": (tier(1.0), [OPEN], (EDGE,), Reason.LOCAL_FITS),
    "cloud likelier, but a hedge is enough": (tier(0.9), [tier(0.95)], (EDGE, CLOUD), Reason.LOCAL_HEDGED),
    "cloud likelier, and too slow to be a hedge": (tier(0.9), [tier(0.95, slow=0.09)], (CLOUD, EDGE), Reason.LOCAL_TOO_SLOW),
    "a queue that is likely to be in time": (waiting(0.8), [tier(0.95)], (EDGE, CLOUD), Reason.LOCAL_QUEUED),
    "a queue, and no time to hand over": (waiting(0.8), [tier(0.95, sure=0.1)], (CLOUD, EDGE), Reason.LOCAL_TOO_SLOW),
    "a queue that is not likely to be in time": (waiting(0.7), [tier(0.95)], (CLOUD, EDGE), Reason.LOCAL_TOO_SLOW),
    "neither has a chance": (tier(0.0), [tier(0.09)], (EDGE, CLOUD), Reason.LOCAL_LIKELIER),
    "cloud likelier": (tier(0.5), [tier(0.9)], (CLOUD, EDGE), Reason.LOCAL_TOO_SLOW),
    "neither sure, device likelier": (tier(0.6), [tier(0.5)], (EDGE, CLOUD), Reason.LOCAL_LIKELIER),
    "a tie stays local": (tier(0.5), [tier(0.5)], (EDGE, CLOUD), Reason.LOCAL_LIKELIER),
    "not sure, no cloud": (tier(0.5), [], (EDGE,), Reason.OFFLINE),
    "not sure, breaker open": (tier(0.5), [OPEN], (EDGE,), Reason.CLOUD_OPEN_BREAKER),
    "not sure, one breaker open, one endpoint full": (tier(0.5), [OPEN, tier(0.0, health=Health.FULL)], (EDGE,), Reason.CLOUD_FULL),
    "device failing": (tier(1.0, health=Health.FAILING), [tier(0.2)], (CLOUD, EDGE), Reason.LOCAL_FAILING),
    "device failing, cloud open": (tier(1.0, health=Health.FAILING), [OPEN], (EDGE,), Reason.NO_TIER),
    "queue full": (tier(0.0, health=Health.FULL), [tier(0.2)], (CLOUD, EDGE), Reason.LOCAL_FULL),
    "queue full, no cloud": (tier(0.0, health=Health.FULL), [], (), Reason.LOCAL_FULL),
    "model absent": (tier(0.0, health=Health.ABSENT, known=False), [tier(0.2)], (CLOUD,), Reason.LOCAL_ABSENT),
    "model absent, no cloud": (tier(0.0, health=Health.ABSENT, known=False), [], (), Reason.LOCAL_ABSENT),
    "cold start": (UNKNOWN, [tier(0.9)], (EDGE, CLOUD), Reason.COLD_START),
    "cold start, no cloud": (UNKNOWN, [], (EDGE,), Reason.COLD_START),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_order_and_reason(case):
    local, clouds, tiers, reason = case
    decision = decide(FACTS, local, clouds, NOW)
    assert (decision.tiers, decision.reason) == (tiers, reason)


def test_a_passed_deadline_is_refused():
    decision = decide(FACTS, tier(1.0), [tier(1.0)], NOW + SLA)
    assert decision.tiers == ()
    assert decision.reason is Reason.DEADLINE_PASSED


def test_the_margin_is_two_milliseconds_or_a_twentieth():
    assert margin_s(0.01) == 0.002
    assert margin_s(0.04) == 0.002
    assert margin_s(1.0) == 0.05


def test_a_throttled_hedge_is_not_relied_on():
    decision = decide(FACTS, tier(0.9), [tier(0.95)], NOW, may_hedge=False)
    assert (decision.tiers, decision.reason) == ((CLOUD, EDGE), Reason.LOCAL_TOO_SLOW)


def test_late_when_no_tier_makes_it():
    decision = decide(FACTS, tier(0.0), [tier(0.001)], NOW)
    assert decision.late
    assert not decide(FACTS, tier(0.0), [tier(0.5)], NOW).late


def test_of_several_endpoints_the_likeliest_then_the_cheapest():
    clouds = [tier(0.8), tier(0.95, cost=0.4), tier(0.951, cost=0.1), tier(1.0, health=Health.FAILING)]
    assert decide(FACTS, tier(0.5), clouds, NOW).endpoint == 2


ESTIMATES = st.builds(
    TierEstimate,
    st.floats(0, 1),
    st.floats(0, 2),
    st.floats(0, 5),
    st.booleans(),
    st.sampled_from([Health.OK, Health.FAILING, Health.FULL]),
    st.floats(0, 5),
)


@given(ESTIMATES, st.lists(ESTIMATES, max_size=3), st.floats(-0.1, 3), st.floats(0, 2), st.floats(0.001, 2))
@settings(max_examples=150, deadline=None)
def test_what_holds_for_every_decision(local, clouds, remaining, grace, sla):
    facts = RequestFacts(NOW + remaining, NOW + remaining + grace, sla)
    decision: Decision = decide(facts, local, clouds, NOW)
    usable = [index for index, cloud in enumerate(clouds) if cloud.health is Health.OK]
    assert len(set(decision.tiers)) == len(decision.tiers) <= 2
    if CLOUD in decision.tiers:
        assert decision.endpoint in usable  # never to a cloud that is not there, nor to an open breaker
    passed = facts.deadline_s <= NOW
    if passed:
        assert decision.tiers == ()
    if decision.tiers == ():
        assert passed or (local.health is Health.FULL and not usable)
    assert decision == decide(facts, local, clouds, NOW)  # pure


def test_a_perfect_predictor_misses_only_what_no_tier_makes():
    for edge_s, cloud_s in itertools.product((0.01, 0.05, 0.2), repeat=2):
        exact = [tier(float(value <= 0.095), value, value) for value in (edge_s, cloud_s)]
        decision = decide(FACTS, exact[0], [exact[1]], NOW)
        chosen = edge_s if decision.tiers[0] is EDGE else cloud_s
        assert (chosen <= 0.095) == (min(edge_s, cloud_s) <= 0.095)
        if edge_s <= 0.095:
            assert decision.tiers[0] is EDGE  # the cloud is not used without need
