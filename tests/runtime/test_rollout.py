"""The rule of rollouts: exact bounds, honest risk, and a state machine that cannot go wrong."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom

from edgekit.errors import UsageError
from edgekit.runtime._binomial import at_least, at_most, more_than_beside, upper_bound
from edgekit.runtime._rollout import Counts, Observations, RolloutLimits, decide_rollout, progress_of, resume_rollout, start_rollout

QUICK = RolloutLimits(min_requests=50, min_step_s=0.0)


@given(trials=st.integers(1, 5000), share=st.floats(0, 1), rate=st.floats(1e-4, 1 - 1e-4))
def test_tails_are_those_of_the_binomial_distribution(trials, share, rate):
    events = round(share * trials)
    assert at_most(events, trials, rate) == pytest.approx(binom.cdf(events, trials, rate), rel=1e-7, abs=1e-12)
    assert at_least(events, trials, rate) == pytest.approx(binom.sf(events - 1, trials, rate), rel=1e-7, abs=1e-12)


@given(trials=st.integers(1, 2000), beside=st.integers(0, 2000), events=st.integers(0, 200), others=st.integers(0, 200))
def test_the_comparison_is_fishers(trials, beside, events, others):
    events, others = min(events, trials), min(others, beside)
    expected = hypergeom.sf(events - 1, trials + beside, events + others, trials)
    assert more_than_beside(events, trials, others, beside) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_bounds_known_by_heart():
    assert upper_bound(0, 300, 0.05) == pytest.approx(0.00994, abs=1e-5)  # the rule of three
    assert upper_bound(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1)
    assert upper_bound(5, 5, 0.05) == 1.0
    assert upper_bound(0, 0, 0.05) == 1.0
    assert at_least(0, 10, 0.01) == 1.0
    assert at_least(1, 10, 0.0) == 0.0
    assert at_most(3, 10, 1.0) == 0.0


def play(rollout, candidate_rate, baseline_rate, seed, requests=4000, per_check=10):
    """Run a rollout on coin flips until it ends; returns its last decision and how many requests the candidate had."""
    rng = np.random.default_rng(seed)
    counts = {"base": [0, 0], "cand": [0, 0]}
    total = 0
    decision = None
    for turn in range(requests // per_check):
        took = rng.binomial(per_check, rollout.share) if rollout.share < 1 else per_check
        for who, n, rate in (("cand", took, candidate_rate), ("base", per_check - took, baseline_rate)):
            counts[who][0] += n
            counts[who][1] += rng.binomial(n, rate)
        total += took
        seen = Observations(Counts(*counts["base"]), Counts(*counts["cand"]))
        decision = decide_rollout(rollout, seen, float(turn))
        rollout = decision.rollout
        if decision.action in ("promote", "rollback"):
            return decision, total
        if decision.action == "advance":
            counts = {"base": [0, 0], "cand": [0, 0]}
    return decision, total


def test_a_candidate_at_its_limit_is_rarely_rolled_back():
    """Risk 5 %, a candidate exactly at the limit, looked at 400 times: without spending the risk over looks, a third would go."""
    limits = RolloutLimits(max_error_rate=0.05, risk=0.05)
    ends = [play(start_rollout("split", "1", "2", 0.0, limits), 0.05, 0.0, seed)[0].action for seed in range(300)]
    rolled_back = ends.count("rollback")
    assert rolled_back <= binom.ppf(0.999, 300, 0.05)  # 27; the bounds are conservative, so it is far fewer


def test_a_candidate_as_bad_as_the_baseline_stays():
    """Both fail ten times the limit: the device's trouble, not the candidate's."""
    ends = [play(start_rollout("split", "1", "2", 0.0), 0.1, 0.1, seed)[0].action for seed in range(100)]
    assert ends.count("rollback") <= binom.ppf(0.999, 100, 0.01)


@pytest.mark.parametrize(("rate", "within"), [(1.0, 40), (0.3, 100), (0.1, 640)])
def test_a_bad_candidate_goes_soon(rate, within):
    for seed in range(20):
        decision, took = play(start_rollout("split", "1", "2", 0.0), rate, 0.0, seed)
        assert decision.action == "rollback"
        assert took <= within
        assert "requests to version 2 failed; the limit is 1.00%, and version 1 had 0 of" in decision.reason


def test_a_good_canary_is_promoted_step_by_step():
    rollout = start_rollout("canary", "1", "2", 0.0, RolloutLimits(min_step_s=0.0))
    shares = []
    for _ in range(20):
        shares.append(rollout.share)
        decision = decide_rollout(rollout, Observations(Counts(400), Counts(800)), 1.0)
        rollout = decision.rollout
        if decision.action == "promote":
            break
        assert decision.action == "advance"
    assert shares == [0.05, 0.25, 0.5, 1.0]
    assert decision.reason == "800 requests at 100% kept the limits"


def test_not_failing_is_not_enough_to_go_up():
    """100 requests without an error show 4 % at most, not the limit of 1 %."""
    rollout = start_rollout("canary", "1", "2", 0.0, RolloutLimits(min_requests=100, min_step_s=0.0))
    decision = decide_rollout(rollout, Observations(Counts(100), Counts(100)), 1.0)
    assert decision.action == "hold"
    assert "0 of 100, so 3.62% at most, which does not show 1.00% yet" in decision.reason


def test_a_step_lasts_its_time():
    rollout = start_rollout("canary", "1", "2", 100.0, RolloutLimits(min_step_s=10.0))
    seen = Observations(Counts(9000), Counts(9000))
    assert decide_rollout(rollout, seen, 109.0).action == "hold"
    assert decide_rollout(rollout, seen, 110.0).action == "advance"


def test_what_cannot_be_loaded_goes_at_once():
    decision = decide_rollout(start_rollout("canary", "1", "2", 0.0), Observations(problem="damaged"), 0.0)
    assert (decision.action, decision.reason) == ("rollback", "version 2 cannot answer: damaged")


def test_slow_answers_count_as_failures_do():
    rollout = start_rollout("canary", "1", "2", 0.0, RolloutLimits(slo_ms=5))
    decision = decide_rollout(rollout, Observations(Counts(400, 0, 1), Counts(20, 0, 12)), 0.0)
    assert decision.action == "rollback"
    assert "12 of 20 requests to version 2 were slower than 5 ms or refused" in decision.reason


def test_a_restart_keeps_what_risk_was_spent():
    rollout = start_rollout("canary", "1", "2", 0.0)
    rollout = decide_rollout(rollout, Observations(Counts(), Counts(20)), 1.0).rollout
    assert (rollout.looks, rollout.next_look) == (1, 40)
    resumed, seen = resume_rollout(rollout, 50.0)
    assert (resumed.looks, resumed.next_look, resumed.step_since_s) == (1, 20, 50.0)
    assert seen == Observations()


def test_a_restart_goes_on_where_the_step_was_written_down():
    rollout = start_rollout("canary", "1", "2", 0.0)
    counted = Observations(Counts(900, 1, 2), Counts(50, 0, 1))
    later = decide_rollout(rollout, counted, 7.0).rollout
    resumed, seen = resume_rollout(rollout, 100.0, progress_of(later, counted, 8.0))
    assert seen == counted
    assert (resumed.looks, resumed.next_look, resumed.step_since_s) == (1, 80, 92.0)
    other = start_rollout("canary", "1", "2", 0.0, share=0.25)
    assert resume_rollout(other, 100.0, progress_of(later, counted, 8.0))[1] == Observations()


counts = st.builds(
    lambda requests, errors, slow: Counts(requests, min(errors, requests), min(slow, requests - min(errors, requests))),
    st.integers(0, 20000),
    st.integers(0, 400),
    st.integers(0, 400),
)


@settings(max_examples=150)
@given(
    mode=st.sampled_from(["canary", "split", "shadow"]),
    share=st.one_of(st.none(), st.floats(0.01, 1.0)),
    seen=st.lists(st.tuples(counts, counts, st.floats(0, 100)), max_size=12),
)
def test_the_state_machine(mode, share, seen):
    """Steps only go up, one at a time; looks only grow; only a canary goes up or is promoted; a decision is repeatable; nothing but hold keeps it going."""
    rollout = start_rollout(mode, "1", "2", 0.0, QUICK, share)
    assert rollout.steps == tuple(sorted(set(rollout.steps)))
    now_s = 0.0
    for baseline, candidate, passed_s in seen:
        now_s += passed_s
        observed = Observations(baseline, candidate)
        decision = decide_rollout(rollout, observed, now_s)
        assert decision == decide_rollout(rollout, observed, now_s)
        after = decision.rollout
        assert (after.baseline, after.candidate, after.steps, after.limits) == (
            rollout.baseline,
            rollout.candidate,
            rollout.steps,
            rollout.limits,
        )
        assert after.looks - rollout.looks in (0, 1)
        assert after.step - rollout.step == (1 if decision.action == "advance" else 0)
        if decision.action in ("advance", "promote"):
            assert mode == "canary"
            assert candidate.requests >= QUICK.min_requests
            assert upper_bound(candidate.errors, candidate.requests, 0.05) <= max(0.01, baseline.errors / max(1, baseline.requests))
        if decision.action == "promote":
            assert rollout.share == 1.0
        if decision.action == "rollback":
            assert candidate.errors > 0.01 * candidate.requests or candidate.slow > 0.01 * candidate.requests
        if decision.action in ("promote", "rollback"):
            break
        if decision.action == "hold":
            assert after.next_look > candidate.requests or candidate.requests < rollout.next_look
        rollout = msgspec.json.decode(msgspec.json.encode(after), type=type(after))  # what a restart would read
        assert rollout == after


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("blue", "1", "2", 0.0), "rollout: 'blue'; expected canary, split or shadow"),
        (("canary", "1", "1", 0.0), "version 1 is what answers now"),
        (("split", "1", "2", 0.0, None, 0.0), "share: 0; expected more than 0"),
        (("split", "1", "2", 0.0, None, math.nan), "share: nan"),
    ],
)
def test_refusals(arguments, line):
    with pytest.raises(UsageError, match=line):
        start_rollout(*arguments)


@pytest.mark.parametrize(
    "wrong", [{"max_error_rate": 0.0}, {"risk": 1.0}, {"slo_ms": -1.0}, {"min_step_s": math.inf}, {"max_slow_rate": math.nan}]
)
def test_limits_that_cannot_be(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RolloutLimits(**wrong)
