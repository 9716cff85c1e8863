"""A sequence's state goes where its requests go, and is in one place: any order of ends, tiers that fail, and requests that come at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import OverloadedError, RequestError, UnavailableError
from edgekit.protocol import InferResponse, Tensor
from edgekit.router._carrier import Carrier, StateLostError, export_of
from edgekit.router._work import Answer, Work

PLACES = (-1, 0, 1)


def work(name, x, *, start=False, end=False):
    parameters = {"sequence_id": name, "sequence_start": start, "sequence_end": end}
    return Work("m", "", {"x": np.array([x])}, 8, 0.0, 0.0, parameters=parameters)


class Tiers:
    """Tiers whose model adds what comes to a sum, one for each sequence; asked in the order in which the test ends their attempts."""

    def __init__(self):
        self.states = {place: {} for place in PLACES}
        self.deaf = set()  # keep their states to themselves
        self.carrier = Carrier(self.take)
        self.pending = []  # attempts that were sent: (number, place, work)
        self.lost, self.answers = {}, {}
        self.numbers = iter(range(1, 10_000))

    def send(self, place, asked):
        number = next(self.numbers)
        self.carrier.begin(
            number, place, asked, lambda sent: self.pending.append((number, place, sent)), lambda error: self.failed(number, error)
        )
        return number

    def failed(self, number, error):
        self.lost[number] = error
        self.carrier.ended(number, error)

    def take(self, place, asked, took):
        request = export_of(asked)
        state = self.states[place].get(request.parameters["sequence_id"])
        if place in self.deaf or state is None:
            took(RequestError("sequence", "not open"))
            return
        del self.states[place][request.parameters["sequence_id"]]
        took(InferResponse("m", "1", [Tensor("sum", np.array([state]))], parameters={"sequence_state_of": "digest"}))

    def end(self, index, error=None):
        """The tier answers one of the attempts that were sent, or refuses it and leaves the state as it is."""
        number, place, sent = self.pending.pop(index)
        name, states = sent.parameters["sequence_id"], self.states[place]
        if error is None and not sent.parameters["sequence_start"] and name not in states:
            error = RequestError("sequence", "not open")
        if error is not None:
            self.carrier.ended(number, error)
            return
        before = 0 if sent.parameters["sequence_start"] else states[name]
        before = int(sent.inputs["sum"][0]) if "sum" in sent.inputs else before
        states[name] = before + int(sent.inputs["x"][0])
        self.answers[number] = states[name]
        if sent.parameters["sequence_end"]:
            del states[name]
        self.carrier.ended(number, Answer({}, "1"))

    def places_of(self, name):
        return [place for place in PLACES if name in self.states[place]] + ["hand"] * (("m", name) in self.carrier._in_hand)


def test_it_is_brought_along_once_and_others_wait():
    tiers = Tiers()
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    first, second = tiers.send(0, work("s", 10)), tiers.send(0, work("s", 100))
    assert [number for number, _, _ in tiers.pending] == [first]  # the other waits for the state
    assert tiers.places_of("s") == ["hand"]
    _, _, sent = tiers.pending[0]
    assert sent.parameters["sequence_start"] is True
    assert sent.parameters["sequence_state_of"] == "digest"
    tiers.end(0)
    tiers.end(0)
    assert tiers.answers == {1: 1, first: 11, second: 111}
    assert tiers.places_of("s") == [0]


def test_one_in_hand_is_kept_until_its_request_is_answered():
    tiers = Tiers()
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    tiers.send(0, work("s", 10))
    waits = tiers.send(0, work("s", 100))
    tiers.end(0, OverloadedError("cloud", "busy"))
    assert [number for number, _, _ in tiers.pending] == [waits]  # it brings the state now
    tiers.end(0, UnavailableError("cloud", "gone"))
    assert tiers.places_of("s") == ["hand"]
    back = tiers.send(-1, work("s", 1000))
    tiers.end(0)
    assert tiers.answers[back] == 1001
    assert tiers.places_of("s") == [-1]


def test_a_state_that_cannot_be_had_is_told_once_and_the_sequence_can_begin_again():
    tiers = Tiers()
    tiers.deaf.add(0)
    tiers.send(0, work("s", 1, start=True))
    tiers.end(0)
    number = tiers.send(-1, work("s", 2))
    assert isinstance(tiers.lost[number], StateLostError)
    assert str(tiers.lost[number]) == (
        "sequence 's' of model 'm': its state is lost: sequence: not open; begin it again, with sequence_start"
    )
    assert tiers.pending == []
    again = tiers.send(-1, work("s", 3, start=True))
    tiers.end(0)
    assert tiers.answers[again] == 3


def test_a_server_that_answers_without_a_state_has_lost_it_too():
    took = []
    carrier = Carrier(lambda _place, _work, tell: tell(InferResponse("m", "1", [])))
    carrier.begin(1, 0, work("s", 1, start=True), took.append, took.append)
    carrier.ended(1, Answer({}, "1"))
    carrier.begin(2, 1, work("s", 1), took.append, took.append)
    assert isinstance(took[1], StateLostError)
    assert "keeps states to itself" in str(took[1])


@pytest.mark.parametrize("starts_elsewhere", [False, True])
def test_a_new_start_needs_no_state(starts_elsewhere):
    tiers = Tiers()
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    number = tiers.send(0 if starts_elsewhere else -1, work("s", 7, start=True))
    tiers.end(0)
    assert tiers.answers[number] == 7


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "end", "refuse", "break"]), st.sampled_from("ab"), st.sampled_from(PLACES), st.integers(0, 7)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_a_sequence_is_in_one_place_and_its_sum_is_that_of_what_was_answered(steps):
    """One request of a sequence at a time, as its client must; tiers refuse, break, and are changed at will."""
    tiers = Tiers()
    sums, busy, begun = {}, {}, set()
    for kind, name, place, choice in steps:
        if kind == "send":
            if name in busy:
                continue
            x, start = choice + 1, name not in begun
            begun.add(name)
            number = tiers.send(place, work(name, x, start=start))
            assert number not in tiers.lost
            busy[name] = (number, x)
        elif tiers.pending:
            index = choice % len(tiers.pending)
            number, _, sent = tiers.pending[index]
            ended = sent.parameters["sequence_id"]
            tiers.end(index, {"end": None, "refuse": OverloadedError("t", "busy"), "break": UnavailableError("t", "gone")}[kind])
            _, x = busy.pop(ended)
            if kind == "end":
                sums[ended] = sums.get(ended, 0) + x
                assert tiers.answers[number] == sums[ended]
            elif ended not in sums:
                begun.discard(ended)  # it never began
        for each in sums:
            assert len(tiers.places_of(each)) == 1
    assert tiers.carrier._attempts.keys() == {number for number, _ in busy.values()}
