"""How starts are compared: pair by pair, so that a slow round says nothing about a contender."""

import pytest

from benchmarks.cold_start import compare, medians


def test_ratios_are_those_of_each_rounds_own_pair():
    bare = [(0.1, 50e6, 0.2), (0.4, 50e6, 0.8), (0.1, 50e6, 0.2)]  # the machine was slow in the second round
    ours = [(0.11, 52e6, 0.22), (0.44, 53e6, 0.88), (0.12, 52e6, 0.24)]
    found = compare({"bare": bare, "ours": ours})["relative_to_bare"]
    assert found == {
        "ours": {"start_ratio": 1.1, "start_ratio_quartiles": [1.1, pytest.approx(1.15)], "cpu_ratio": 1.1, "rss_added_mb": 2.0}
    }


def test_medians_are_of_each_contender_by_itself():
    found = medians({"bare": [(0.1, 50e6, 0.2), (0.3, 60e6, 0.4), (0.2, 70e6, 0.6)]})
    assert found == {"bare": {"start_ms": 200.0, "start_least_ms": 100.0, "cpu_ms": 400.0, "rss_mb": 60.0}}
