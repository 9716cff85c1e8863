"""The pure rules: who is taken, and who runs next with whom."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime._admission import (
    PATIENCE_S,
    PROBE_AFTER_S,
    Decision,
    Load,
    Waiting,
    choose_batch,
    decide,
    estimated_wait_s,
    finish_in_order_s,
    first_batch,
)

NOW = 100.0
RUN_S = 0.010


def constant(rows):
    return RUN_S


def load(running=(), *, instances=1, capacity=4, max_rows=1, last=NOW):
    """``running``: ages of the batches that run, each of which takes `RUN_S`."""
    free_s = [NOW - age + RUN_S for age in running] + [NOW] * (instances - len(running))
    return Load(free_s, instances - len(running), capacity, max_rows, last, not running)


def request(remaining_s=None, **others):
    return Waiting(deadline_s=math.inf if remaining_s is None else NOW + remaining_s, **others)


def queue(count, **others):
    return [request(sequence=index - count, **others) for index in range(count)]


# name: (load, requests that wait, seconds until the deadline, expected)
DECISIONS = {
    "idle": (load(), 0, None, Decision.ACCEPT),
    "idle, enough time": (load(), 0, 0.011, Decision.ACCEPT),
    "idle, expired": (load(), 0, 0.0, Decision.REFUSE_EXPIRED),
    "idle, too little time": (load(), 0, 0.009, Decision.REFUSE_HOPELESS),
    "idle, too little time, estimate is old": (load(last=NOW - PROBE_AFTER_S), 0, 0.009, Decision.PROBE),
    "expired is expired, however old the estimate": (load(last=0.0), 0, -1.0, Decision.REFUSE_EXPIRED),
    "busy, no deadline": (load([0.0]), 0, None, Decision.ACCEPT),
    "busy, just enough time for residual and run": (load([0.004]), 0, 0.0161, Decision.ACCEPT),
    "busy, too little": (load([0.004]), 0, 0.0159, Decision.REFUSE_HOPELESS),
    "busy, too little, no probe while one runs": (load([0.004], last=0.0), 0, 0.0159, Decision.REFUSE_HOPELESS),
    "one of two is free": (load([0.0], instances=2), 0, 0.011, Decision.ACCEPT),
    "two busy halve the wait": (load([0.0, 0.0], instances=2), 2, 0.0301, Decision.ACCEPT),
    "two busy, too little": (load([0.0, 0.0], instances=2), 2, 0.0199, Decision.REFUSE_HOPELESS),
    "a batch takes all": (load([0.004], max_rows=4), 3, 0.0161, Decision.ACCEPT),
    "a batch is full, the next takes it": (load([0.004], max_rows=4, capacity=8), 4, 0.0261, Decision.ACCEPT),
    "a batch is full, too little for the next": (load([0.004], max_rows=4, capacity=8), 4, 0.0259, Decision.REFUSE_HOPELESS),
    "queue full": (load([0.0]), 4, None, Decision.REFUSE_FULL),
    "queue full, hopeless is said first": (load([0.0]), 4, 0.020, Decision.REFUSE_HOPELESS),
    "no queue at all": (load([0.0], capacity=0), 0, None, Decision.REFUSE_FULL),
    "no queue, but it can start": (load(capacity=0), 0, None, Decision.ACCEPT),
    "what can start at once does not count": (load(max_rows=8), 7 + 4, None, Decision.ACCEPT),
    "beyond what can start at once": (load(max_rows=8), 8 + 4, None, Decision.REFUSE_FULL),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decide(name):
    state, waiting, remaining_s, expected = DECISIONS[name]
    # Those that wait go first, and have the time for it.
    others = queue(waiting, remaining_s=None if remaining_s is None else max(remaining_s - 1e-6, 0.010 * (waiting + 1)), level=1)
    assert decide(state, others, request(remaining_s), constant, NOW) is expected


def test_nothing_measured_refuses_nothing():
    assert decide(load([0.0]), queue(3), request(1e-6), lambda rows: 0.0, NOW) in (Decision.ACCEPT, Decision.REFUSE_HOPELESS)
    assert decide(load(), [], request(1e-6), lambda rows: 0.0, NOW) is Decision.ACCEPT


def test_a_newcomer_may_not_make_others_late():
    promised = [request(0.0201, sequence=0)]
    tight = request(0.011, sequence=1)
    assert decide(load(), promised, tight, constant, NOW) is Decision.ACCEPT
    promised = [request(0.0115, sequence=0)]
    assert decide(load(), promised, tight, constant, NOW) is Decision.REFUSE_HOPELESS
    # Unless they are less important.
    promised = [request(0.0115, sequence=0, level=3)]
    assert decide(load(), promised, tight, constant, NOW) is Decision.ACCEPT
    # Nor is it refused for those that are late anyway.
    promised = [request(0.001, sequence=0), request(0.5, sequence=1)]
    assert decide(load(), promised, request(0.4, sequence=2), constant, NOW) is Decision.ACCEPT


def test_an_estimated_wait():
    assert estimated_wait_s(load(), [], constant, NOW) == 0.0
    assert estimated_wait_s(load([0.004]), [], constant, NOW) == pytest.approx(0.006)
    assert estimated_wait_s(load([0.004]), queue(2), constant, NOW) == pytest.approx(0.026)
    assert estimated_wait_s(load([0.004], max_rows=2), queue(2), constant, NOW) == pytest.approx(0.016)
    assert estimated_wait_s(load([0.0, 0.0], instances=2), queue(2), constant, NOW) == pytest.approx(0.020)


# --- batches -------------------------------------------------------------------------------------------------------------------------------

requests = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 3)), min_size=1, max_size=6)
"""Deadline in steps of time, rows."""


def in_order(cases, rows=True):
    made = [Waiting(sequence=index, deadline_s=NOW + steps, rows=size if rows else 1) for index, (steps, size) in enumerate(cases)]
    return sorted(made, key=lambda waiting: waiting.order)


def compositions(count):
    for cuts in itertools.product((False, True), repeat=count - 1):
        sizes, size = [], 1
        for cut in cuts:
            if cut:
                sizes.append(size)
                size = 0
            size += 1
        yield [*sizes, size]


def feasible(waiting, predict, max_rows):
    """Whether some order and some partition into batches answers all in time: by trying all of them."""
    for order in itertools.permutations(waiting):
        for sizes in compositions(len(order)):
            end_s, index, fine = NOW, 0, True
            for size in sizes:
                batch = order[index : index + size]
                index += size
                end_s += predict(sum(item.rows for item in batch))
                fine = fine and (size == 1 or sum(item.rows for item in batch) <= max_rows)
                fine = fine and all(end_s <= item.deadline_s for item in batch)
            if fine:
                return True
    return False


def run_all(waiting, predict, max_rows):
    """What the rule makes of it: the number of late ones, and the batches."""
    left, end_s, late, batches = list(waiting), NOW, 0, []
    while left:
        count = first_batch(left, [end_s], predict, max_rows)
        batch, left = left[:count], left[count:]
        end_s += predict(sum(item.rows for item in batch))
        late += sum(end_s > item.deadline_s for item in batch)
        batches.append(batch)
    return late, batches


@settings(derandomize=True, deadline=None, max_examples=250)
@given(requests.map(lambda cases: cases[:5]), st.integers(0, 3), st.integers(1, 3), st.integers(1, 4))
def test_no_overrun_that_was_avoidable(cases, fixed, each, max_rows):
    def predict(rows):
        return fixed + each * rows

    waiting = in_order(cases, rows=False)
    late, _ = run_all(waiting, predict, max_rows)
    assert (late == 0) == feasible(waiting, predict, max_rows)


@settings(derandomize=True, deadline=None)
@given(requests, st.integers(1, 4), st.booleans())
def test_batches_keep_order_and_size(cases, max_rows, timeless):
    waiting = in_order(cases)
    if timeless:
        for item in waiting:
            item.deadline_s = math.inf
        waiting.sort(key=lambda item: item.order)
    _, batches = run_all(waiting, lambda rows: 1 + rows, max_rows)
    assert [item for batch in batches for item in batch] == waiting
    assert all(len(batch) == 1 or sum(item.rows for item in batch) <= max_rows for batch in batches)
    if timeless:  # nothing speaks against the largest
        for one, following in itertools.pairwise(batches):
            assert sum(item.rows for item in one) + following[0].rows > max_rows


@settings(derandomize=True, deadline=None, max_examples=200)
@given(requests.map(lambda cases: cases[:5]), st.integers(0, 3), st.integers(1, 3), st.integers(1, 4))
def test_what_was_accepted_can_be_answered_in_time(cases, fixed, each, max_rows):
    """Requests arrive one by one before anything runs: those that are taken are all in time, and a refusal was needed."""

    def predict(rows):
        return fixed + each * rows

    pending = []
    for index, (steps, _) in enumerate(cases):
        new = Waiting(sequence=index, deadline_s=NOW + steps)
        decision = decide(Load([NOW], 1, 100, max_rows, NOW, False), pending, new, predict, NOW)
        possible = sorted([*pending, new], key=lambda item: item.order)
        assert (decision is Decision.ACCEPT) == feasible(possible, predict, max_rows)
        if decision is Decision.ACCEPT:
            pending = possible
    if pending:
        late, _ = run_all(pending, predict, max_rows)
        assert late == 0


def test_other_shapes_are_left_for_the_next_batch():
    waiting = [Waiting(sequence=index, key=key) for index, key in enumerate("aabab")]
    assert choose_batch(waiting, [NOW], constant, 8, may_age=False) == ([0, 1, 3], False)
    waiting = [Waiting(sequence=index, key=Waiting.ALONE) for index in range(3)]
    assert choose_batch(waiting, [NOW], constant, 8, may_age=False) == ([0], False)


def test_a_request_larger_than_a_batch_runs_alone():
    waiting = [Waiting(sequence=0, rows=9), Waiting(sequence=1)]
    assert choose_batch(waiting, [NOW], constant, 8, may_age=False) == ([0], False)


def test_one_that_waited_too_long_leads_when_it_may():
    waiting = [Waiting(sequence=5, arrived_s=NOW, level=1), Waiting(sequence=1, arrived_s=NOW - PATIENCE_S)]
    assert choose_batch(waiting, [NOW], constant, 1, may_age=False) == ([0], False)
    assert choose_batch(waiting, [NOW], constant, 1, may_age=True) == ([1], True)
    waiting[1].arrived_s += 0.001
    assert choose_batch(waiting, [NOW], constant, 1, may_age=True) == ([0], False)


def test_finish_in_order():
    assert finish_in_order_s(queue(5), [NOW], constant, 2) == pytest.approx(NOW + 3 * RUN_S)
    assert finish_in_order_s(queue(5), [NOW, NOW], constant, 2) == pytest.approx(NOW + 2 * RUN_S)
