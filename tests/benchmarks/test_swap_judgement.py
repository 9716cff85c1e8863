"""What a request met of a swap, and how ratios of p99 are told with their uncertainty."""

import numpy as np
import pytest

from benchmarks._swap_judgement import AFTER_S, Answer, Swap, judge, latencies, phase_of, pooled, sort_round, spans

SWAPS = [Swap(10.0, 10.2, "2"), Swap(11.0, 11.1, "1")]


def answer(due, ms=1.0, version="1"):
    return Answer(due, due + ms / 1e3, version)


def test_a_swap_ends_a_moment_after_the_first_answer_of_the_version_that_came():
    first, second = spans([answer(10.1), answer(10.5, version="2"), answer(10.7, version="2")], SWAPS)
    assert first == (10.0, 10.2, pytest.approx(10.501 + AFTER_S))
    assert second.end == np.inf  # version 1 never answered again


def test_a_swap_whose_version_comes_late_ends_where_the_next_begins():
    assert spans([answer(11.5, version="2"), answer(11.3)], SWAPS)[0].end == 11.0


def test_requests_are_of_the_swap_or_of_the_quiet_time_after_it_by_when_they_were_due():
    answers = [
        answer(9.0, 7),
        answer(10.0, 1),
        answer(10.5, 2, "2"),
        answer(10.7, 3, "2"),
        answer(10.9, 4, "2"),
        answer(11.0, 5, "1"),
        answer(11.9, 6),
    ]
    found = sort_round(answers, SWAPS, [], end=12.0)
    first, second = found.units
    assert first.swapping == pytest.approx([1, 2])
    assert (first.quiet[0], first.quiet[1]) == (pytest.approx([3]), pytest.approx([4]))  # halved at 10.8
    assert (second.swapping, second.quiet[0], second.quiet[1]) == (pytest.approx([5]), [], pytest.approx([6]))
    assert sum(map(len, found.phases.values())) == 3  # of the swaps alone; what came before the first is nobody's


@pytest.mark.parametrize(
    ("due", "ms", "met"),
    [
        (10.1, 1, "installing"),
        (10.2, 1, "installing"),
        (10.25, 1, "neither"),
        (10.25, 60, "loading"),
        (10.35, 1, "loading"),
        (10.45, 1, "neither"),
    ],
)
def test_a_request_met_what_was_at_work_while_it_waited(due, ms, met):
    assert phase_of(answer(due, ms), spans([answer(10.4, version="2")], SWAPS)[0], [(10.3, 10.4)]) == met


def test_pooled_ratios_rest_on_all_requests_and_say_how_sure_they_are():
    rng = np.random.default_rng(3)
    same = [(rng.exponential(1, 100), rng.exponential(1, 300)) for _ in range(16)]
    found = pooled(same)
    assert found["low"] < 1 < found["high"]
    assert found["low"] < found["ratio"] < found["high"]
    assert found == pooled(same)  # seeded
    slower = pooled([(1.5 * over, under) for over, under in same])
    assert slower["ratio"] == pytest.approx(1.5 * found["ratio"], rel=1e-3)
    assert slower["low"] > 1
    few = pooled(same[:3])
    assert few["high"] - few["low"] > found["high"] - found["low"]


def test_one_bad_swap_of_many_widens_the_interval_and_says_so():
    calm = [([1.0] * 100, [1.0] * 100)] * 30
    wild = pooled([*calm, ([1.0] * 50 + [9.0] * 50, [1.0] * 100)])
    assert (wild["low"], wild["high"]) == (1.0, 9.0)


def test_the_whole_is_told():
    answers = [answer(10 + step / 1000, 1 + step % 7, "2" if 300 < step < 1000 else "1") for step in range(2000)]
    found = judge([sort_round(answers, SWAPS, [(10.25, 10.3), (11.2, 11.25)], end=12.0)] * 3)
    assert found["swaps"] == 6
    assert len(found["p99_ratios"]) == len(found["rounds"]) == 3
    assert found["p99_ratio"]["ratio"] == pytest.approx(1.0, abs=0.1)
    counted = {name: row["requests"] for name, row in found["phases"].items()}
    assert sum(counted.values()) == 3 * 2000
    assert (
        3 * 51 <= counted["loading"] <= 3 * 58
    )  # 50 ms of the first swap, at a request a millisecond that takes up to 7; the second was over before


def test_too_few_requests_have_no_percentiles():
    assert latencies([1.0] * 99) == {"requests": 99}
    assert latencies([1.0] * 100)["p99_ms"] == 1.0
