import numpy as np
import pytest
from onnx import helper

from edgekit.bundle import GoldenSample
from edgekit.converters._ranges import activation_ranges
from edgekit.converters.quantization._calibration import METHODS, collect
from edgekit.converters.quantization._histogram import BINS, GrowingHistogram, entropy_range, error_range, percentile_range

from .models import cnn, model, samples


def histogram(*parts):
    found = GrowingHistogram()
    for part in parts:
        found.add(part, float(np.abs(part).max()))
    return found


def test_a_histogram_that_grew_counts_as_one_that_was_wide_from_the_start():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(1000) * scale for scale in (0.01, 1, 300)]
    grown = histogram(*parts)
    edges = np.linspace(-grown.limit, grown.limit, BINS + 1)
    wanted, _ = np.histogram(np.concatenate(parts), edges)
    assert grown.limit == 2.0 ** np.ceil(np.log2(np.abs(np.concatenate(parts)).max()))
    assert np.array_equal(grown.counts, wanted)


def test_zeros_before_anything_else_are_kept():
    grown = histogram(np.zeros(5), np.array([3.0]))
    assert grown.counts.sum() == 6
    assert grown.limit == 4.0


def test_percentile_cuts_one_value_in_ten_thousand():
    values = np.concatenate([np.random.default_rng(1).uniform(-1, 1, 100_000), [1000.0]])
    low, high = percentile_range(histogram(values), float(values.min()), 1000.0)
    assert high < 2 * 2048 / BINS * 2  # one bin of the widened histogram beyond 1
    assert low == values.min()


def test_error_range_is_near_the_known_optimum_of_a_normal_distribution():
    """For 256 steps the least squared error of N(0,1) is at 3.92 sigma (M. Zamir and others give 4.02 for a mid-rise quantiser; both within 4 %)."""
    values = np.random.default_rng(2).standard_normal(400_000)
    low, high = error_range(histogram(values), -8.0, 8.0)
    assert high == pytest.approx(3.95, rel=0.06)
    assert low == -high


def test_entropy_range_cuts_a_far_outlier_and_keeps_a_uniform_one():
    rng = np.random.default_rng(3)
    spiky = np.concatenate([rng.standard_normal(200_000), np.full(3, 60.0)])
    assert entropy_range(histogram(spiky), float(spiky.min()), 60.0)[1] < 20
    flat = rng.uniform(0, 1, 200_000)
    assert entropy_range(histogram(flat), 0.0, float(flat.max()))[1] == pytest.approx(1.0, rel=0.03)


def test_every_method_stays_within_what_was_seen():
    proto = cnn()
    given = samples(proto, 6)
    calibration = collect(proto, given)
    seen = activation_ranges(proto, [GoldenSample(each, {}) for each in given])
    assert set(calibration.ranges) == set(seen)
    for name, limits in seen.items():
        assert calibration.ranges[name].minmax == pytest.approx(limits)
        for method in METHODS:
            low, high = calibration.ranges[name].of(method)
            assert limits[0] - 1e-6 <= low <= high <= limits[1] + 1e-6


def test_a_tensor_that_overflows_has_no_range():
    nodes = [helper.make_node("Exp", ["x"], ["e"], "exp"), helper.make_node("Tanh", ["e"], ["y"], "tanh")]
    proto = model(nodes, {"x": (1, 4)}, {"y": (1, 4)}, {})
    calibration = collect(proto, [{"x": np.full((1, 4), 200, np.float32)}])
    assert set(calibration.ranges) == {"x", "y"}


def test_the_report_is_the_same_for_the_same_samples():
    proto = cnn()
    first, second = (collect(proto, samples(proto, 4), source="test").report() for _ in range(2))
    assert first == second
    assert first["samples"] == 4
