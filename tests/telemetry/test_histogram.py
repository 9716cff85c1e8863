"""Log-bucket histograms against exact quantiles, and the algebra of merging."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.telemetry import LogHistogram, RotatingHistogram
from edgekit.telemetry._histogram import quantile_of_buckets

ERROR_SCALE_5 = 0.01084  # (base - 1) / (base + 1) with base = 2 ** (1 / 32)

durations = st.floats(min_value=1e-9, max_value=1e6, allow_nan=False)


def exact(values, q):
    ordered = sorted(values)
    return ordered[max(1, math.ceil(q * len(ordered))) - 1]


def filled(values, scale=5):
    histogram = LogHistogram(scale)
    for value in values:
        histogram.record(value)
    return histogram


def state(histogram):
    return histogram.scale, dict(histogram.buckets), histogram.zero_count, histogram.count, repr((histogram.min, histogram.max))


@given(st.lists(durations, min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_quantile_is_within_the_promised_relative_error(values, q):
    truth = exact(values, q)
    assert abs(filled(values).quantile(q) - truth) <= ERROR_SCALE_5 * truth


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("shape", ["lognormal", "pareto", "two modes"])
def test_quantile_of_distributions(shape, q):
    rng = random.Random(7)
    draw = {
        "lognormal": lambda: rng.lognormvariate(-4, 1),
        "pareto": lambda: 0.001 * rng.paretovariate(1.2),
        "two modes": lambda: rng.gauss(0.005, 0.0005) if rng.random() < 0.97 else rng.gauss(0.25, 0.01),
    }[shape]
    values = [draw() for _ in range(20_000)]
    histogram = filled(values)
    truth = exact(values, q)
    assert abs(histogram.quantile(q) - truth) <= ERROR_SCALE_5 * truth
    assert histogram.sum == pytest.approx(sum(values))
    assert (histogram.min, histogram.max, histogram.count) == (min(values), max(values), len(values))
    assert len(histogram.buckets) < 1000


@given(st.lists(durations, max_size=60), st.lists(durations, max_size=60), st.lists(durations, max_size=60))
def test_merge_is_associative_commutative_and_equals_recording_all(a, b, c):
    left = filled(a)
    left.merge(filled(b))
    left.merge(filled(c))
    right = filled(b)
    right.merge(filled(c))
    other = filled(a)
    other.merge(right)
    swapped = filled(c)
    swapped.merge(filled(a))
    swapped.merge(filled(b))
    everything = filled(a + b + c)
    for merged in (left, other, swapped):
        assert state(merged) == state(everything)
        assert merged.sum == pytest.approx(everything.sum)


@given(st.lists(durations, min_size=1, max_size=60), st.integers(min_value=-2, max_value=4))
def test_merge_of_two_scales_equals_recording_at_the_coarser(values, coarse):
    merged = filled(values, 5)
    merged.merge(LogHistogram(coarse))
    direct = filled(values, coarse)
    assert state(merged) == state(direct)
    into_coarse = LogHistogram(coarse)
    into_coarse.merge(filled(values, 5))
    assert state(into_coarse) == state(direct)


def test_bucket_bounds_follow_otlp():
    # Upper bounds are inclusive: at scale 0 bucket i is (2**i, 2**(i+1)], so 1, 2 and 4 are the tops of -1, 0 and 1.
    assert dict(filled([1.0, 2.0, 2.1, 4.0, 0.5], scale=0).buckets) == {-1: 1, 0: 1, 1: 2, -2: 1}


def test_values_that_are_no_durations():
    histogram = filled([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300])
    assert histogram.count == 4
    assert histogram.zero_count == 3
    assert histogram.quantile(0.5) == 0.0
    assert histogram.max == 1e300
    assert len(histogram.buckets) == 1


def test_empty_reset_copy_and_dense():
    histogram = LogHistogram()
    assert math.isnan(histogram.quantile(0.5))
    assert math.isnan(histogram.mean)
    assert histogram.dense() == (0, [])
    histogram.record(1.0, 3)
    histogram.record(1.1)
    offset, counts = histogram.dense()
    assert {offset + k: count for k, count in enumerate(counts) if count} == dict(histogram.buckets)
    twin = histogram.copy()
    histogram.reset()
    assert (histogram.count, twin.count, twin.mean) == (0, 4, pytest.approx(4.1 / 4))


@given(st.lists(durations, min_size=1, max_size=100), durations)
def test_share_at_most_is_right_but_for_the_bucket_of_the_limit(values, limit):
    share = filled(values).share_at_most(limit)
    width = 2 ** (1 / 32)
    assert sum(v <= limit / width for v in values) / len(values) <= share <= sum(v <= limit * width for v in values) / len(values)


def test_share_at_most_edges():
    assert math.isnan(LogHistogram().share_at_most(1))
    histogram = filled([0.0, 1.0, 2.0, 1e300])
    assert [histogram.share_at_most(v) for v in (-1, 0, 1, 3, math.inf)] == [0, 0.25, 0.5, 0.75, 1]


def test_quantile_of_no_buckets_is_nan():
    assert math.isnan(quantile_of_buckets(0.5, 0, {}, 5))
    assert quantile_of_buckets(0.5, 3, {}, 5) == 0.0


def test_scale_out_of_range_is_refused():
    with pytest.raises(ValueError, match="scale 21"):
        LogHistogram(21)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(durations, st.floats(min_value=0, max_value=20)), min_size=1, max_size=80),
    st.integers(min_value=1, max_value=6),
)
def test_rotating_keeps_what_is_younger_than_the_window_to_a_slice(steps, slices):
    window_s = 6.0
    rotating = RotatingHistogram(window_s, slices)
    now_s, history = 100.0, []
    for value, step_s in steps:
        now_s += step_s
        rotating.record(value, now_s)
        history.append((value, now_s))
    surely = [v for v, at in history if now_s - at < window_s * (1 - 1 / slices)]
    at_most = [v for v, at in history if now_s - at <= window_s]
    assert len(surely) <= rotating.count(now_s) <= len(at_most)
    kept = at_most[-rotating.count(now_s) :]
    assert abs(rotating.quantile(0.9, now_s) - exact(kept, 0.9)) <= ERROR_SCALE_5 * exact(kept, 0.9)
    assert rotating.snapshot(now_s).count == len(kept)
    assert rotating.mean(now_s) == pytest.approx(sum(kept) / len(kept))
    assert rotating.count(now_s + window_s) == 0
    assert math.isnan(rotating.quantile(0.5, now_s + window_s))


def test_rotating_takes_a_late_record_and_refuses_a_senseless_window():
    rotating = RotatingHistogram(6, 3)
    rotating.record(1.0, 50.0)
    rotating.record(2.0, 10.0)
    assert rotating.count(50.0) == 2
    assert rotating.share_at_most(1.5, 50.0) == 0.5
    with pytest.raises(ValueError, match="expected a positive window"):
        RotatingHistogram(0, 3)
