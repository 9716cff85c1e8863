"""The demo's own parts: text reading, the load and its summary, the deadline that fits the machine."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cli.demo._fleet import fitting_load
from edgekit.cli.demo._load import Answer, Event, arrivals, drive, summarise
from edgekit.cli.demo._ocr import LINE_SHAPE, _decode, _split, line_tensor
from edgekit.errors import DeadlineError, UnavailableError
from edgekit.protocol import InferResponse


def test_a_line_keeps_its_ratio_and_is_padded_with_zeros():
    tensor = line_tensor(np.full((24, 48, 3), 255, np.uint8))
    assert tensor.shape == LINE_SHAPE
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[..., :96], 1.0)
    np.testing.assert_array_equal(tensor[..., 96:], 0.0)


@given(st.integers(8, 40), st.integers(1, 2000), st.integers(0, 100))
def test_splitting_loses_no_column_and_every_piece_fits(height, width, seed):
    line = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    pieces = _split(line)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), line)
    assert all(0 < piece.shape[1] <= int(height * LINE_SHAPE[3] / LINE_SHAPE[2]) for piece in pieces)


def test_a_wide_line_is_cut_in_the_gap():
    line = np.full((20, 200, 3), 255, np.uint8)
    line[5:15, :90] = 0
    line[5:15, 110:] = 0
    first, second = _split(line)
    assert 90 <= first.shape[1] <= 110
    assert second.shape[1] == 200 - first.shape[1]


def test_decoding_drops_blanks_and_repeats():
    characters = ["", "a", "b", " "]
    path = [0, 1, 1, 0, 1, 2, 2, 3, 2, 0]
    text, confidence = _decode(np.eye(4)[path] * 0.9, characters)
    assert text == "aab b"
    assert confidence == pytest.approx(0.9)
    assert _decode(np.eye(4)[[0, 0]], characters) == ("", 0.0)


@given(st.floats(1, 100), st.integers(0, 5))
def test_arrivals_are_ordered_seeded_and_inside_the_run(rate, seed):
    times = arrivals(rate, 10.0, seed)
    assert times == sorted(times) == arrivals(rate, 10.0, seed)
    assert all(0 < at < 10 for at in times)


def test_arrivals_come_at_the_rate():
    # 40,000 expected, standard deviation 200: five of them.
    assert abs(len(arrivals(400, 100.0, 1)) - 40_000) < 1000


@given(st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_load_leaves_both_tiers_room(edge_ms, cloud_ms):
    load = fitting_load(edge_ms, cloud_ms)
    assert load.sla_ms >= 3 * max(edge_ms, cloud_ms)
    assert load.rate_per_s * edge_ms <= 331 + 0.05 * edge_ms  # a third of one core, and the rounding of the rate
    assert load.rate_per_s <= 14


class Scripted:
    """A client that answers at once, late or not at all, by request number."""

    def __init__(self):
        self.seen = []
        self.lock = threading.Lock()

    def infer(self, request, timeout_s):
        with self.lock:
            number = len(self.seen)
            self.seen.append(timeout_s)
        if number % 4 == 3:
            raise DeadlineError("server", "too late")
        if number % 4 == 2:
            raise UnavailableError("server", "gone")
        return InferResponse(request.model_name, "1", [], parameters={"edgekit_tier": "cloud" if number % 4 else "edge"})


def test_every_request_of_the_schedule_is_answered_once_and_events_act_in_order():
    client, acted = Scripted(), []
    schedule = [0.002 * number for number in range(40)]
    events = [Event(0.01, "a", lambda: acted.append("a")), Event(0.03, "b", lambda: acted.append("b"))]
    answers = drive(client, "m", [np.zeros(1, np.float32)], schedule, 500.0, "", events)
    assert [answer.at_s for answer in answers] == schedule
    assert len(client.seen) == 40
    assert all(timeout <= 0.5 for timeout in client.seen)
    assert acted == ["a", "b"]
    summary = summarise("p", answers, 500.0)
    assert (summary.requests, summary.errors) == (40, 20)
    assert summary.sla_hit_rate == 0.5
    assert summary.cloud_share == 0.5


def test_an_answer_after_the_deadline_is_no_hit():
    summary = summarise("p", [Answer(0, 50, "edge"), Answer(0, 150, "edge"), Answer(0, 10, "", "DeadlineError")], 100)
    assert summary.sla_hit_rate == pytest.approx(1 / 3)
    assert summary.errors == 1
