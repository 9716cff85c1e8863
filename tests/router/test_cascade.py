"""How sure an answer is: against values worked out by hand, and never a number where there is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.router._cascade import ConfidenceRule, EscalationThrottle, confidence_of

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], np.float32)


def test_the_least_certain_row_counts():
    assert confidence_of({"p": PROBABILITIES}, ConfidenceRule("p")) == pytest.approx(0.05, abs=1e-6)
    assert confidence_of({"p": PROBABILITIES[:1]}, ConfidenceRule()) == pytest.approx(0.5, abs=1e-6)


def test_logits_go_through_a_softmax():
    logits = np.log(PROBABILITIES) + 300.0  # far beyond what exp takes
    assert confidence_of({"l": logits}, ConfidenceRule("l", "logits")) == pytest.approx(0.05, abs=1e-4)


def test_a_score_is_taken_as_it_is():
    outputs = {"p": PROBABILITIES, "score": np.array([[0.9], [0.3]], np.float32)}
    assert confidence_of(outputs, ConfidenceRule("score", "score")) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("outputs", "rule"),
    [
        ({"p": PROBABILITIES}, ConfidenceRule("other")),
        ({"p": PROBABILITIES, "q": PROBABILITIES}, ConfidenceRule()),
        ({"p": np.array(["a"], dtype=object)}, ConfidenceRule("p")),
        ({"p": PROBABILITIES[:, :1]}, ConfidenceRule("p")),
        ({"p": np.float32(0.5).reshape(())}, ConfidenceRule("p")),
        ({"p": PROBABILITIES[:0]}, ConfidenceRule("p")),
        ({"p": PROBABILITIES * np.nan}, ConfidenceRule("p")),
        ({}, ConfidenceRule()),
    ],
)
def test_no_number_where_there_is_none(outputs, rule):
    assert confidence_of(outputs, rule) is None


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(-50, 50, width=32)))
def test_it_is_what_a_full_sort_gives(rows):
    ordered = np.sort(rows.astype(np.float64), axis=1)
    assert confidence_of({"l": rows}, ConfidenceRule("l")) == (ordered[:, -1] - ordered[:, -2]).min()
    assert 0.0 <= confidence_of({"l": rows}, ConfidenceRule("l", "logits")) <= 1.0


def test_one_escalation_a_model_at_a_time():
    throttle = EscalationThrottle()
    taken = [now for now in np.arange(0.0, 10.0, 0.25) if throttle.try_take("m", 2.0, now)]
    assert taken == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert throttle.try_take("other", 2.0, 9.9)
    assert not throttle.try_take("m", 2.0, -100.0)
