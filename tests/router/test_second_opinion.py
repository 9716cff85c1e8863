"""Second opinions: an unsure answer goes to the cloud and comes back in time whatever the cloud does; audits run behind the client's back and cost the budget."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._budgets import Book, BudgetLimits, Budgets, Limit
from edgekit.router._decide import Reason, Tier
from edgekit.router._events import Ask, Cancel, Check, Deliver, Failure, FailureKind, Refuse, RunEdge, SendCloud, Terms
from edgekit.router._pilot import Pilot, PilotOptions
from edgekit.router._second_opinion import AUDIT_LIMIT_S

SLA_S = 0.1
UNSURE = Terms(escalate_below=0.2, escalate_every_s=2.0)


def pilot(endpoints=1, budgets=None):
    """Knows a device of 5 ms, and a cloud of 20 ms that is there."""
    made = Pilot(PilotOptions(), endpoints, random.Random(1), budgets)
    made.seed_edge("m", 100, [0.005] * 30, 0.0)
    for action in made.tick(0.0):
        assert isinstance(action, Check)
        made.checked(action.endpoint, True, 0.02, 0.0)
    return made


def ask(number=1, at=1.0, terms=UNSURE, **more):
    return Ask(number, "m", 100, at, at + SLA_S, at + 1.0, SLA_S, terms=terms, **more)


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def answer_on_edge(made, request, confidence, took_s=0.005):
    (run,) = of(made.accept(request, request.accepted_s), RunEdge)
    return run.attempt, made.answered(run.attempt, request.accepted_s + took_s, confidence)


def test_a_sure_answer_is_given_at_once():
    _, actions = answer_on_edge(pilot(), ask(), 0.2)
    (given_,) = actions
    assert (given_.tier, given_.reason) == (Tier.EDGE, Reason.LOCAL_FITS)


def test_an_unsure_one_waits_for_the_clouds():
    made = pilot()
    _, (sent,) = answer_on_edge(made, ask(), 0.1)
    assert isinstance(sent, SendCloud)
    (given_,) = made.answered(sent.attempt, 1.05)
    assert given_ == Deliver(1, sent.attempt, False, Tier.CLOUD, Reason.LOCAL_UNSURE, False)


def test_it_is_given_in_time_when_the_cloud_is_silent():
    made = pilot()
    attempt, (sent,) = answer_on_edge(made, ask(), 0.1)
    at = made.next_at()
    assert 1.0 + SLA_S / 2 < at < 1.0 + SLA_S
    actions = made.tick(at)
    assert of(actions, Deliver) == [Deliver(1, attempt, False, Tier.EDGE, Reason.LOCAL_UNSURE, False)]
    assert of(actions, Cancel) == [Cancel(sent.attempt)]
    assert made.answered(sent.attempt, at + 1.0) == []


@pytest.mark.parametrize("kind", FailureKind)
def test_it_is_given_as_soon_as_the_cloud_fails(kind):
    made = pilot()
    attempt, (sent,) = answer_on_edge(made, ask(), 0.1)
    (given_,) = made.failed(sent.attempt, Failure(kind), 1.03)
    assert given_ == Deliver(1, attempt, False, Tier.EDGE, Reason.LOCAL_UNSURE, False)


CASES = {
    "the policy keeps it here": (1, None, {"terms": Terms(edge_only=True, escalate_below=0.2, audit_share=1.0)}, 0.1, 0.005),
    "there is no cloud": (0, None, {}, 0.1, 0.005),
    "the budget is spent": (1, 0, {}, 0.1, 0.005),
    "it is part of a sequence": (1, None, {"sequence": "s"}, 0.1, 0.005),
    "it is late": (1, None, {}, 0.1, 0.15),
    "there is no time left": (1, None, {}, 0.1, 0.094),
    "it does not say": (1, None, {}, None, 0.005),
    "nobody wants to know": (1, None, {"terms": Terms()}, 0.0, 0.005),
}


@pytest.mark.parametrize("why", CASES)
def test_an_unsure_answer_is_given_at_once_when(why):
    endpoints, limit, more, confidence, took_s = CASES[why]
    budgets = Budgets(Book(BudgetLimits(Limit(requests=limit))))
    _, actions = answer_on_edge(pilot(endpoints, budgets), ask(**more), confidence, took_s)
    assert [type(action) for action in actions] == [Deliver]


def test_one_escalation_in_two_seconds():
    made, escalated = pilot(), []
    for number in range(1, 101):
        at = 1.0 + number * 0.2
        _, actions = answer_on_edge(made, ask(number, at), 0.0)
        for sent in of(actions, SendCloud):
            escalated.append(at)
            made.answered(sent.attempt, at + 0.03)
    assert len(escalated) == 10
    assert all(later - earlier >= 2.0 - 1e-9 for earlier, later in itertools.pairwise(escalated))


def test_a_hedge_that_is_on_its_way_is_the_second_opinion():
    made = pilot()
    (run,) = of(made.accept(ask(), 1.0), RunEdge)
    sent = []
    while not sent:
        sent = of(made.tick(made.next_at()), SendCloud)
    at = made._open[1].sent.started_s + 0.001
    assert made.answered(run.attempt, at, 0.1) == []
    (given_,) = made.answered(sent[0].attempt, at + 0.001)
    assert (given_.tier, given_.hedged) == (Tier.CLOUD, True)


def test_audits_come_after_the_answer_and_cost_the_budget():
    budgets = Budgets(Book(BudgetLimits(Limit(requests=3))))
    made, audits = pilot(1, budgets), []
    for number in range(1, 11):
        at = float(number)
        _, actions = answer_on_edge(made, ask(number, at, Terms(audit_share=1.0)), None)
        assert isinstance(actions[0], Deliver)
        audits += of(actions, SendCloud)
        for sent in of(actions, SendCloud):
            assert sent.limit_s == at + 0.005 + AUDIT_LIMIT_S
            assert made.answered(sent.attempt, at + 0.04) == []
    assert [(sent.request, sent.shadow) for sent in audits] == [(1, True), (2, True), (3, True)]
    assert made.snapshot(20.0)["cloud"][0]["in_flight"] == 0


def test_a_failed_audit_tells_its_endpoint():
    made = pilot()
    for number in range(1, 6):
        _, actions = answer_on_edge(made, ask(number, float(number), Terms(audit_share=1.0)), None)
        for sent in of(actions, SendCloud):
            assert made.failed(sent.attempt, Failure(FailureKind.BROKEN), number + 0.03) == []
    assert not made.endpoint_open(0)


@pytest.mark.parametrize(("unsent", "spent"), [(False, 1), (True, 0)])
def test_what_never_left_costs_nothing(unsent, spent):
    budgets = Budgets(Book(BudgetLimits(Limit(requests=9))))
    for terms, confidence in ((Terms(audit_share=1.0), None), (UNSURE, 0.1)):
        made = pilot(1, budgets)
        before = budgets.spent(1.0)[0][0]
        _, actions = answer_on_edge(made, ask(terms=terms), confidence)
        (sent,) = of(actions, SendCloud)
        made.failed(sent.attempt, Failure(FailureKind.BROKEN, unsent=unsent), 1.03)
        assert budgets.spent(1.03)[0][0] - before == spent


def test_the_audit_share_is_kept():
    made, audits = pilot(), 0
    for number in range(1, 1501):
        _, actions = answer_on_edge(made, ask(number, number * 0.05, Terms(audit_share=0.05)), None)
        for sent in of(actions, SendCloud):
            audits += 1
            made.answered(sent.attempt, number * 0.05 + 0.02)
    assert 41 <= audits <= 109  # 75 expected, standard deviation 8.4; four of them either way


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "edge", "edge", "edge fails", "cloud", "cloud fails", "leave", "time", "time"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.0005, 0.004, 0.03]),
    ),
    max_size=80,
)
TERMS = [UNSURE, Terms(escalate_below=0.5, escalate_every_s=0.001, audit_share=0.5), Terms(edge_only=True, escalate_below=1.0), Terms()]


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False))
def test_every_request_ends_once_and_second_opinions_never_make_it_late(events, source):
    budgets = Budgets(Book(BudgetLimits(Limit(requests=12))))
    made, now, number = pilot(2, budgets), 1.0, 0
    asks, ended, edge, cloud, in_time, sent_count = {}, set(), [], [], {}, 0

    def take(actions):
        nonlocal sent_count
        for action in actions:
            if isinstance(action, RunEdge) and not action.shadow:
                edge.append(action)
            elif isinstance(action, SendCloud):
                sent_count += 1
                assert not asks[action.request].terms.edge_only
                cloud.append(action)
            elif isinstance(action, Deliver | Refuse):
                assert action.request not in ended
                ended.add(action.request)
                if in_time.get(action.request):
                    assert isinstance(action, Deliver)
                    assert not action.late

    def run_clock(until):
        nonlocal now
        while made.next_at() <= until:
            now = max(now, made.next_at())
            take(made.tick(now))
        now = max(now, until)

    for kind, index, wait_s in events:
        run_clock(now + wait_s)
        if kind == "ask":
            number += 1
            asks[number] = ask(number, now, TERMS[index % len(TERMS)])
            take(made.accept(asks[number], now))
        elif kind.startswith("edge") and edge:
            run = edge.pop(index % len(edge))
            if kind == "edge":
                if run.request not in ended and now < asks[run.request].deadline_s:
                    in_time[run.request] = True
                take(made.answered(run.attempt, now, source.random()))
            else:
                take(made.failed(run.attempt, Failure(FailureKind.BROKEN), now))
        elif kind.startswith("cloud") and cloud:
            sent = cloud.pop(index % len(cloud))
            take(made.answered(sent.attempt, now) if kind == "cloud" else made.failed(sent.attempt, Failure(FailureKind.BROKEN), now))
        elif kind == "leave" and asks:
            request = sorted(asks)[index % len(asks)]
            if request not in ended:
                take(made.left(request, now))
                ended.add(request)
    while edge or len(ended) < len(asks):
        run_clock(now + 0.01)
        if edge:
            take(made.answered(edge.pop().attempt, now, 0.0))
    assert ended == set(asks)
    assert sent_count <= 12
    assert budgets.spent(now)[0][0] == sent_count
