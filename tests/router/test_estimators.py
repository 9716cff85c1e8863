"""Estimators: calibration, drift, recovery and cold start, with injected time and seeded noise."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._estimators import CloudEstimator
from edgekit.router._services import Calibration
from edgekit.router._window import ServiceWindow

MODEL, SIZE = "m", 4096


def noisy(random_source, median_s, sigma=0.15):
    return median_s * math.exp(random_source.gauss(0.0, sigma))


# The window


def test_probabilities_are_calibrated():
    """The share of next samples within the predicted quantile is the quantile: 500 draws of a p, so within 4 standard errors (0.09 at p = 0.5)."""
    random_source = random.Random(1)
    window = ServiceWindow()
    now = 0.0
    for _ in range(400):
        now += 0.05
        window.add(noisy(random_source, 0.02, 0.4), now)
    for budget_s in (0.015, 0.02, 0.03, 0.05):
        predicted = window.probability(budget_s, now)
        seen = statistics.fmean(noisy(random_source, 0.02, 0.4) <= budget_s for _ in range(500))
        assert predicted <= seen + 0.09  # caution and drift only make it smaller
        assert predicted >= seen - 0.20


def test_p95_covers_its_share():
    random_source = random.Random(2)
    window, now, inside = ServiceWindow(), 0.0, []
    for index in range(2000):
        now += 0.05
        value = noisy(random_source, 0.02, 0.4)
        if index > 100:
            inside.append(value <= window.quantiles(now)[1])
        window.add(value, now)
    assert 0.93 <= statistics.fmean(inside) <= 0.99  # the drift factor is never below 1, so coverage leans to the safe side


def test_one_outlier_does_not_move_it():
    random_source = random.Random(3)
    window, now = ServiceWindow(), 0.0
    for _ in range(200):
        now += 0.05
        window.add(noisy(random_source, 0.02), now)
    window.add(1.0, now)
    assert window.drift < 1.2
    assert window.probability(0.05, now) > 0.98


def test_noise_is_no_drift():
    """Of a median of three the 95th percentile is exceeded in 0.7 % of all cases, the upper quartile in 16 %."""
    random_source = random.Random(7)
    window, now, drifted = ServiceWindow(), 0.0, 0
    for turn in range(3000):
        now += 0.01
        window.add(noisy(random_source, 0.02, 0.1), now)
        drifted += turn >= 200 and window.drift > 1.0
    assert drifted < 0.025 * 2800


@pytest.mark.parametrize("factor", [2.0, 3.0, 6.0, 200.0])
def test_throttling_is_seen_within_three_requests(factor):
    random_source = random.Random(4)
    window, now = ServiceWindow(), 0.0
    for _ in range(400):
        now += 0.05
        window.add(noisy(random_source, 0.02), now)
    budget = 0.02 * factor * 0.8
    assert window.probability(max(budget, 0.04), now) >= 0.99
    for _ in range(3):
        now += 0.2
        window.add(noisy(random_source, 0.02 * factor), now)
    assert window.quantiles(now)[0] == pytest.approx(0.02 * factor, rel=0.3)
    assert window.probability(budget, now) < 0.5


def test_a_step_is_learned_for_good_within_eight():
    random_source = random.Random(5)
    window, now = ServiceWindow(), 0.0
    for _ in range(400):
        now += 0.05
        window.add(noisy(random_source, 0.02, 0.1), now)
    for _ in range(8):
        now += 0.05
        window.add(noisy(random_source, 0.05, 0.1), now)
    assert window.drift < 1.3  # no drift any more (a median of three, with 10 % noise), but what the window holds
    assert window.quantiles(now)[0] == pytest.approx(0.05, rel=0.2)


def test_a_spike_does_not_outlive_a_restart():
    window, now = ServiceWindow(), 0.0
    for value in [0.0010] * 100 + [0.15, 0.15] + [0.0015] * 6:
        now += 0.05
        window.add(value, now)
    assert window.quantiles(now)[1] < 0.002


def test_an_idle_window_remembers_its_last_samples_with_caution():
    window = ServiceWindow()
    for index in range(50):
        window.add(0.02, index * 0.05)
    later = 1000.0
    assert window.samples > 40
    assert window.quantiles(later)[0] == pytest.approx(0.02, rel=0.02)
    assert window.samples == 4
    assert window.probability(0.0215, later) == 0.0  # 0.02 s with the caution of four samples is 0.0225 s
    assert window.probability(0.023, later) == 1.0


def test_an_empty_window_knows_nothing():
    window = ServiceWindow()
    assert math.isnan(window.probability(1.0, 0.0))


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=80), st.floats(0.0, 20.0), st.floats(0.0, 20.0))
@settings(max_examples=150, deadline=None)
def test_more_time_is_never_less_likely(values, one, other):
    window = ServiceWindow()
    for index, value in enumerate(values):
        window.add(value, index * 0.1)
    now = len(values) * 0.1
    low, high = sorted((one, other))
    assert 0.0 <= window.probability(low, now) <= window.probability(high, now) <= 1.0
    p50, p95 = window.quantiles(now)
    assert p50 <= p95
    assert 1.0 <= window.drift <= 4.0


def test_what_is_left_of_work_under_way():
    window = ServiceWindow()
    for index in range(200):
        window.add(0.02 if index % 2 else 0.06, index * 0.05)
    assert window.remaining_s(0.0, 10.0) == pytest.approx(0.04, rel=0.03)
    assert window.remaining_s(0.03, 10.0) == pytest.approx(0.03, rel=0.05)  # it is one of the slow ones
    assert window.remaining_s(0.5, 10.0) == 0.5  # slower than all: as long again
    assert window.still(0.07, 0.03, 10.0) == 1.0
    assert window.still(0.05, 0.03, 10.0) == 0.0
    assert window.still(1.0, 0.1, 10.0) == pytest.approx(0.9)
    assert window.still(0.4, 0.5, 10.0) == 0.0


@given(st.integers(0, 1000), st.floats(0.7, 3.0))
@settings(max_examples=20, deadline=None)
def test_calibrated_predictions_cover_their_share(seed, truth):
    """Predictions that are off by a factor: after the factor was learned, one in twenty misses (noise is uniform over +-20 %)."""
    calibration, inside = Calibration(), []
    source = random.Random(seed)
    for index in range(4000):
        within = truth * source.uniform(0.8, 1.2) <= calibration.factor
        calibration.observe(within)
        if index >= 2000:
            inside.append(within)
    assert 0.93 <= statistics.fmean(inside) <= 0.97


# The cloud


def answered(cloud, latency_s, now, size=SIZE):
    cloud.start()
    cloud.succeeded(MODEL, size, latency_s, now)


def test_an_unmeasured_cloud_has_a_prior_around_30_ms():
    cloud = CloudEstimator()
    estimate = cloud.estimate(MODEL, SIZE, 0.03, 0.0)
    assert not estimate.known
    assert estimate.p_meet == pytest.approx(0.5)
    assert cloud.estimate(MODEL, SIZE, 1.0, 0.0).p_meet > 0.99
    cloud.seed(0.100)
    assert cloud.estimate(MODEL, SIZE, 0.12, 0.0, device_service_s=0.02).p_meet == pytest.approx(0.5)


def test_it_learns_the_latency_as_a_distribution():
    random_source = random.Random(13)
    cloud, now = CloudEstimator(), 0.0
    for _ in range(300):
        now += 0.05
        answered(cloud, noisy(random_source, 0.05, 0.3), now)
    assert cloud.estimate(MODEL, SIZE, 0.05, now).p_meet == pytest.approx(0.5, abs=0.17)
    assert cloud.estimate(MODEL, SIZE, 0.2, now).p_meet > 0.98
    assert cloud.estimate(MODEL, SIZE, 0.01, now).p_meet < 0.02


def test_payload_and_goodput():
    """1 MB/s of goodput: a 100 kB request takes 100 ms more than an empty one, also when few of them were seen."""
    random_source = random.Random(14)
    cloud, now = CloudEstimator(), 0.0
    for _ in range(200):
        now += 0.05
        size = random_source.choice([1_000, 10_000, 50_000])
        answered(cloud, noisy(random_source, 0.02, 0.1) + size / 1e6, now, size)
    small = cloud.estimate(MODEL, 1_000, 0.1, now)
    large = cloud.estimate(MODEL, 100_000, 0.1, now)
    assert small.p_meet > 0.95
    assert large.p_meet < 0.1
    assert large.typical_s - small.typical_s == pytest.approx(0.099, rel=0.2)


def test_a_fast_refusal_does_not_look_fast():
    cloud, now = CloudEstimator(), 0.0
    for _ in range(50):
        now += 0.05
        answered(cloud, 0.05, now)
    before = cloud.estimate(MODEL, SIZE, 0.2, now)
    cost = cloud.cost_s(now)
    cloud.start()
    cloud.failed(now)
    after = cloud.estimate(MODEL, SIZE, 0.2, now)
    assert after.p_meet < before.p_meet - 0.1
    assert cloud.cost_s(now) > 10 * cost
    assert cloud.estimate(MODEL, SIZE, 0.2, now + 60.0).p_meet > 0.9  # forgotten, or it would never be asked again


def test_retry_after_is_honoured():
    cloud = CloudEstimator()
    cloud.start()
    cloud.failed(10.0, retry_after_s=3.0)
    assert not cloud.may_send(12.9)
    assert cloud.may_send(13.0)


def test_load_raises_the_cost_and_a_cancelled_attempt_leaves_no_trace():
    cloud = CloudEstimator()
    answered(cloud, 0.05, 1.0)
    idle = cloud.cost_s(1.0)
    cloud.start()
    assert cloud.cost_s(1.0) == pytest.approx(2 * idle)
    assert not cloud.cancelled(0.05, 0.06, 1.0)
    assert cloud.cost_s(1.0) == pytest.approx(idle)
    assert cloud.failure_share(1.0) == 0.0


def test_an_attempt_cancelled_long_after_it_was_due_is_a_failure():
    cloud = CloudEstimator()
    cloud.start()
    assert cloud.cancelled(0.13, 0.06, 1.0)
    assert cloud.failure_share(1.0) > 0.1
    assert cloud.in_flight == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(1e-4, 5.0), st.integers(0, 10**7)), max_size=60), st.floats(-1.0, 5.0))
@settings(max_examples=100, deadline=None)
def test_cloud_probabilities_stay_probabilities(history, budget_s):
    cloud, now = CloudEstimator(), 0.0
    for good, latency_s, size in history:
        now += 0.1
        cloud.start()
        if good:
            cloud.succeeded(MODEL, size, latency_s, now)
        else:
            cloud.failed(now)
    estimate = cloud.estimate(MODEL, SIZE, budget_s, now)
    assert 0.0 <= estimate.p_meet <= 1.0
    assert 0.0 <= estimate.typical_s <= estimate.slow_s
    assert cloud.in_flight == 0


def test_an_answer_that_came_late_is_a_sample_all_the_same():
    cloud = CloudEstimator()
    for index in range(20):
        answered(cloud, 0.05, index * 0.05)
    for index in range(8):
        cloud.start()
        cloud.failed(2.0 + index)
        cloud.late(MODEL, SIZE, 0.5, 2.5 + index)
    assert cloud.in_flight == 0
    assert cloud.estimate(MODEL, SIZE, 0.3, 10.0).p_meet < 0.1
    assert cloud.estimate(MODEL, SIZE, 0.3, 10.0).typical_s == pytest.approx(0.5, rel=0.1)
