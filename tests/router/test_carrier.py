"""A sequence's state goes where its requests go, and is in one place: any order of ends, tiers that fail, requests that are given up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DeadlineError, OverloadedError, RequestError, UnavailableError
from edgekit.protocol import InferResponse, Tensor
from edgekit.router._carrier import Carrier, StateLostError, export_of
from edgekit.router._work import Answer, Work

PLACES = (-1, 0, 1)


def work(name, x, *, start=False, end=False, canary=""):
    parameters = {"sequence_id": name, "sequence_start": start, "sequence_end": end}
    return Work("m", canary, {"x": np.array([x])}, 8, 0.0, 0.0, parameters=parameters, edge_version=canary)


class Tiers:
    """Tiers whose model adds what comes to a sum, one for each sequence and version; asked in the order in which the test ends their attempts."""

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
        state = self.states[place].pop((request.model_version, request.parameters["sequence_id"]), None)
        if place in self.deaf or state is None:
            took(RequestError("sequence", "not open"))
        else:
            took(InferResponse("m", "1", [Tensor("sum", np.array([state]))], parameters={"sequence_state_of": "digest"}))

    def end(self, index, error=None):
        """The tier answers one of the attempts that were sent, or refuses it and leaves the state as it is."""
        number, place, sent = self.pending.pop(index)
        states, key = self.states[place], (sent.version, sent.parameters["sequence_id"])
        if error is None and not sent.parameters["sequence_start"] and key not in states:
            error = RequestError("sequence", "not open")
        if error is not None:
            self.carrier.ended(number, error)
            return
        before = 0 if sent.parameters["sequence_start"] else states[key]
        before = int(sent.inputs["sum"][0]) if "sum" in sent.inputs else before
        states[key] = before + int(sent.inputs["x"][0])
        self.answers[number] = states[key]
        if sent.parameters["sequence_end"]:
            del states[key]
        self.carrier.ended(number, Answer({}, "1"))

    def places_of(self, name):
        in_hand = any(key[2] == name for key in self.carrier._in_hand)
        return [place for place in PLACES for _, found in self.states[place] if found == name] + ["hand"] * in_hand


def test_it_is_brought_along_once():
    tiers = Tiers()
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    second = tiers.send(0, work("s", 10))
    assert tiers.places_of("s") == ["hand"]
    _, _, sent = tiers.pending[0]
    assert sent.parameters["sequence_start"] is True
    assert sent.parameters["sequence_state_of"] == "digest"
    assert sent.version == "1"  # of the bundle that made it, though nobody named one
    tiers.end(0)
    third = tiers.send(0, work("s", 100))
    assert "sum" not in tiers.pending[0][2].inputs
    tiers.end(0)
    assert tiers.answers == {1: 1, second: 11, third: 111}
    assert tiers.places_of("s") == [0]


def test_a_sequence_stays_on_the_version_that_it_began_on():
    """The operator's canary share changes in mid-sequence: what is drawn for later requests does not matter, at home or away."""
    tiers = Tiers()
    for index, (place, canary) in enumerate([(-1, "2"), (-1, ""), (-1, "3"), (0, ""), (0, "2"), (-1, "")]):
        number = tiers.send(place, work("s", 1, start=index == 0, canary=canary))
        tiers.end(0)
        assert tiers.answers[number] == index + 1
    assert [version for version, _ in tiers.states[-1]] == ["1"]  # brought back as what made it


def test_one_in_hand_is_kept_until_its_request_is_answered():
    tiers = Tiers()
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    for error in (OverloadedError("cloud", "busy"), UnavailableError("cloud", "gone")):
        tiers.send(0, work("s", 10))
        tiers.end(0, error)
        assert tiers.places_of("s") == ["hand"]
    back = tiers.send(-1, work("s", 1000))
    tiers.end(0)
    assert tiers.answers[back] == 1001
    assert tiers.places_of("s") == [-1]


def test_a_request_that_is_given_up_while_its_state_travels_hands_it_to_the_next():
    took = []
    tiers = Tiers()
    tiers.carrier = Carrier(lambda place, asked, tell: took.append((place, asked, tell)))
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    first = tiers.send(0, work("s", 10))
    second = tiers.send(1, work("s", 10))  # the client gave the first one up, and sends it again
    assert isinstance(tiers.lost[first], DeadlineError)
    assert tiers.pending == []
    ((place, asked, tell),) = took  # asked for once
    Tiers.take(tiers, place, asked, tell)
    tiers.end(0)
    assert tiers.answers == {1: 1, second: 11}


def test_the_answer_of_one_that_was_given_up_moves_nothing():
    """A first request hangs in the cloud and is answered by the device; the cloud's answer comes at last."""
    tiers = Tiers()
    tiers.send(0, work("s", 1, start=True))
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(1)
    tiers.send(-1, work("s", 10))
    tiers.end(0)  # the cloud's
    tiers.end(0)
    last = tiers.send(-1, work("s", 100))
    assert "sum" not in tiers.pending[0][2].inputs
    tiers.end(0)
    assert tiers.answers[last] == 111


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
    tiers.send(-1, work("s", 2))
    tiers.end(0)  # refused there: it is not open
    assert tiers.answers == {1: 1}
    again = tiers.send(-1, work("s", 3, start=True))
    tiers.end(0)
    assert tiers.answers[again] == 3


def test_one_that_begins_anew_needs_no_state_that_was_lost_on_its_way():
    took = []
    tiers = Tiers()
    tiers.carrier = Carrier(lambda _place, _asked, tell: took.append(tell))
    tiers.send(-1, work("s", 1, start=True))
    tiers.end(0)
    tiers.send(0, work("s", 10))
    again = tiers.send(0, work("s", 100, start=True))
    took[0](UnavailableError("edge", "gone"))
    tiers.end(0)
    assert tiers.answers[again] == 100


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
    tiers.send(0, work("s", 1))
    tiers.end(0, OverloadedError("cloud", "busy"))  # it is in hand now
    number = tiers.send(0 if starts_elsewhere else -1, work("s", 7, start=True))
    tiers.end(0)
    assert tiers.answers[number] == 7
    tiers.send(0 if starts_elsewhere else -1, work("s", 1, end=True))
    tiers.end(0)
    assert tiers.carrier._at == tiers.carrier._in_hand == tiers.carrier._current == {}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "end", "end", "refuse", "break", "again"]),
        st.sampled_from("ab"),
        st.sampled_from(PLACES),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_a_sequence_is_in_one_place_and_its_sum_is_that_of_what_was_answered(steps):
    """One request of a sequence at a time; tiers refuse, break, and are changed at will, and a first request that hangs is sent to another one ("again")."""
    tiers = Tiers()
    sums, busy, begun, hung = {}, {}, set(), set()
    for kind, name, place, choice in steps:
        if kind == "send" and name not in busy:
            x, start = choice + 1, name not in begun
            begun.add(name)
            number = tiers.send(place, work(name, x, start=start, canary=("", "2")[choice % 2]))
            assert number not in tiers.lost
            busy[name] = (number, x)
        elif kind == "again" and name in busy and name not in sums:
            if place not in {at for _, at, sent in tiers.pending if sent.parameters["sequence_id"] == name}:
                hung.add(name)
                x = busy[name][1]
                busy[name] = (tiers.send(place, work(name, x, start=True)), x)
        elif kind in ("end", "refuse", "break") and tiers.pending:
            index = choice % len(tiers.pending)
            number, _, sent = tiers.pending[index]
            ended = sent.parameters["sequence_id"]
            tiers.end(index, {"end": None, "refuse": OverloadedError("t", "busy"), "break": UnavailableError("t", "gone")}[kind])
            if busy.get(ended, (0, 0))[0] != number:
                continue  # it was given up
            _, x = busy.pop(ended)
            if kind == "end":
                sums[ended] = sums.get(ended, 0) + x
                assert tiers.answers[number] == sums[ended]
            elif ended not in sums:
                begun.discard(ended)  # it never began
        for each in sums.keys() - hung:
            assert len(tiers.places_of(each)) == 1
    assert tiers.carrier._current == {("m", "", name): number for name, (number, _) in busy.items()}
    assert tiers.carrier._attempts.keys() == {number for number, _, _ in tiers.pending}
