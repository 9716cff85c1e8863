"""What a person who watches is told of the last minute."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.router import Router, Tally
from edgekit.router._tally import WINDOW_S

ends = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from(["local_fits", "hopeless"]),
    st.sampled_from(["edge", "cloud", "none"]),
    st.booleans(),
    st.booleans(),
    st.floats(0.001, 2.0),
)


@given(st.lists(ends, max_size=60))
def test_every_request_is_in_one_row(listed):
    tally = Tally()
    for number, (model, reason, tier, met, hedged, latency_s) in enumerate(listed):
        tally.ended(model, reason, tier, latency_s, number * 0.5, met=met, hedged=hedged)
    rows = tally.rows(len(listed) * 0.5)
    assert {(row.model, row.reason, row.tier): row.requests for row in rows} == Counter(end[:3] for end in listed)
    assert sum(row.met for row in rows) == sum(end[3] for end in listed)
    assert sum(row.hedged for row in rows) == sum(end[4] for end in listed)
    assert [row.requests for row in rows] == sorted((row.requests for row in rows), reverse=True)
    assert all(row.p50_ms <= row.p99_ms for row in rows)


def test_what_is_older_than_a_minute_is_forgotten():
    tally = Tally()
    tally.ended("m", "local_fits", "edge", 0.01, 0.0, met=True, hedged=False)
    assert len(tally.rows(WINDOW_S * 0.8)) == 1
    assert tally.rows(WINDOW_S * 1.1) == []


def test_the_router_counts_what_it_answers_and_what_it_does_not(bundle):
    tally = Tally()
    with Router(bundle, sla_ms=5000, tally=tally) as router:
        for _ in range(3):
            router.infer({"x": np.ones((1, 8), np.float32)})
        with pytest.raises(RequestError):
            router.infer({"x": np.ones((1, 7), np.float32)})
        rows = tally.rows(router._clock())
        assert {(row.tier, row.requests, row.met) for row in rows} == {("edge", 3, 3), ("none", 1, 0)}
        assert tally.explain()["sla_ms"] == 5000
