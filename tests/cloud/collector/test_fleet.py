"""The fleet's figures from grouped rows: exact quantiles, and no request counted twice."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cloud.collector._fleet import fleet_view, series_view
from edgekit.cloud.collector._queries import Device, FleetRows, LatencyRow, Receipt, SumRow
from edgekit.telemetry import LogHistogram

NOW_MS = 1_800_000_000_000
ERROR = 0.0109 + 5e-4  # bucket error at scale 5, and four significant digits


def latency(values_s, device="d1", service="edgekit-router", tier="edge", outcome="ok", time_ms=0, scale=5, model="m", version="1"):
    histogram = LogHistogram(scale)
    for value in values_s:
        histogram.record(value)
    return LatencyRow(
        device,
        service,
        tier,
        model,
        version,
        outcome,
        time_ms,
        scale,
        histogram.zero_count,
        dict(histogram.buckets),
        histogram.sum,
        NOW_MS - 60_000,
    )


def routed(value, device="d1", tier="edge", sla="met", outcome="ok", time_ms=0):
    return SumRow("edgekit.route.requests", device, "edgekit-router", tier, "m", "", sla, outcome, time_ms, value, NOW_MS - 60_000)


def triton(name, value, outcome="", device="t"):
    return SumRow(f"edgekit.triton.{name}", device, "edgekit-triton", "cloud", "m", "1", "", outcome, 0, value, NOW_MS - 10_000)


def device(device_id="d1", service="edgekit-router", tier="edge", digest="sha256:aa", seen_ms=NOW_MS - 1000):
    return Device(device_id, service, "1.0", tier, "generic-x86", digest, seen_ms)


def view(latencies=(), sums=(), devices=(), receipts=(), window_s=300.0):
    return fleet_view(FleetRows(list(latencies), list(sums), list(devices), list(receipts)), NOW_MS, window_s)


def exact_ms(values_s, q):
    return 1e3 * sorted(values_s)[max(1, math.ceil(q * len(values_s))) - 1]


@given(st.lists(st.lists(st.floats(min_value=1e-4, max_value=10), min_size=1, max_size=50), min_size=1, max_size=6))
def test_percentiles_are_those_of_all_values_not_means_of_percentiles(parts):
    rows = [latency(values, device=f"d{k}") for k, values in enumerate(parts)]
    everything = [value for values in parts for value in values]
    totals = view(rows)["totals"]
    for name, q in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert totals[name] == pytest.approx(exact_ms(everything, q), rel=ERROR)


def test_histograms_of_several_scales_are_merged_at_the_coarsest():
    rng = random.Random(5)
    parts = {scale: [rng.lognormvariate(-4, 1) for _ in range(500)] for scale in (5, 8, 3, 20)}
    rows = [latency(values, device=f"d{scale}", scale=scale) for scale, values in parts.items()]
    everything = [value for values in parts.values() for value in values]
    base = 2 ** (2**-3)
    assert view(rows)["totals"]["p95_ms"] == pytest.approx(exact_ms(everything, 0.95), rel=(base - 1) / (base + 1) + 5e-4)


def test_where_a_router_reports_the_runtimes_behind_it_are_not_counted_again():
    rows = [latency([0.1] * 10), latency([0.01] * 8, service="edgekit-runtime"), latency([0.2] * 2, tier="cloud")]
    sums = [routed(10), routed(2, tier="cloud", sla="missed"), routed(1, tier="none", sla="missed", outcome="error")]
    result = view(rows, sums, [device(), device(service="edgekit-runtime")])
    totals = result["totals"]
    assert totals["latency_source"] == "router"
    assert (totals["requests"], totals["errors"]) == (13, 1)
    assert totals["sla_hit_rate"] == pytest.approx(10 / 13, abs=1e-6)
    assert totals["offload_share"] == pytest.approx(2 / 12, abs=1e-6)
    assert totals["requests_per_s"] == pytest.approx(13 / 60, rel=1e-3)
    assert totals["p50_ms"] == pytest.approx(100, rel=ERROR)
    assert [(tier["tier"], tier["requests"]) for tier in result["tiers"]] == [("cloud", 2), ("edge", 10)]
    (one,) = result["devices"]
    assert (one["requests"], one["models"]) == (13, [{"model": "m", "version": "1", "requests": 8}])
    assert sorted(one["services"]) == ["edgekit-router", "edgekit-runtime"]


def test_requests_that_nobody_answered_are_no_other_version():
    """A router alone: what it refuses has no version, and may be more than what was answered."""
    refused = latency([0.001] * 9, tier="none", outcome="rejected", version="")
    (one,) = view([latency([0.1] * 5), refused], [routed(5)], [device()])["devices"]
    assert one["models"] == [{"model": "m", "version": "1", "requests": 5}]
    (one,) = view([refused], [routed(9, tier="none")], [device()])["devices"]
    assert one["models"] == [{"model": "m", "version": "", "requests": 9}]


def test_without_a_router_the_runtimes_tell_and_sla_is_not_invented():
    rows = [latency([0.01] * 8, service="edgekit-runtime"), latency([0.00001] * 2, service="edgekit-runtime", outcome="rejected")]
    totals = view(rows, [], [device(service="edgekit-runtime")])["totals"]
    assert (totals["latency_source"], totals["sla_hit_rate"], totals["offload_share"]) == ("runtime", None, None)
    assert (totals["requests"], totals["errors"], totals["error_share"]) == (10, 2, 0.2)
    assert totals["p50_ms"] == pytest.approx(10, rel=ERROR), "a quick refusal is no latency"


def test_triton_has_a_mean_and_no_percentile():
    sums = [triton("requests", 10, "ok"), triton("requests", 1, "error"), triton("request.time", 0.05), triton("inferences", 20)]
    result = view([], sums, [device("t", "edgekit-triton", "cloud", "")])
    (one,) = result["devices"]
    assert (one["mean_ms"], one["p50_ms"], one["p99_ms"]) == (5.0, None, None)
    assert (one["requests"], one["errors"], one["tier"]) == (11, 1, "cloud")
    assert one["requests_per_s"] == pytest.approx(1.1)
    assert result["totals"]["requests"] == 11
    with_router = view([latency([0.1])], [*sums, routed(1)], [device(), device("t", "edgekit-triton", "cloud", "")])
    assert with_router["totals"]["requests"] == 1


def test_nothing_at_all():
    result = view()
    assert result["devices"] == []
    assert result["totals"]["requests"] == 0
    assert result["totals"]["requests_per_s"] is None
    assert result["totals"]["p99_ms"] is None
    assert result["totals"]["latency_source"] == "none"


@pytest.mark.parametrize(
    ("running", "receipts", "verified"),
    [
        ("sha256:aa", [("sha256:aa", "host")], "host"),
        ("sha256:aa", [("sha256:bb", "host")], None),
        ("sha256:aa", [("", "parser")], "parser"),
        ("", [("sha256:bb", "host")], "host"),
        ("sha256:aa", [("sha256:aa", "")], None),
        ("sha256:aa", [], None),
    ],
)
def test_a_receipt_proves_only_the_bundle_that_runs(running, receipts, verified):
    result = view([], [], [device(digest=running)], [Receipt("d1", digest, level) for digest, level in receipts])
    assert result["devices"][0]["verified"] == verified


def test_stale_devices_stay_listed():
    result = view([], [], [device("new"), device("old", seen_ms=NOW_MS - 31_000)])
    assert [(one["device_id"], one["stale"]) for one in result["devices"]] == [("new", False), ("old", True)]
    assert (result["totals"]["devices"], result["totals"]["devices_reporting"]) == (2, 1)


def test_series_has_a_value_for_every_bin_and_gaps_where_there_is_nothing():
    step_ms, from_ms = 10_000, NOW_MS - 40_000
    rows = [
        latency([0.1] * 30, time_ms=from_ms + 10_000),
        latency([0.2] * 30, time_ms=from_ms + 20_000),
        latency([0.3] * 30, tier="cloud", time_ms=from_ms + 20_000),
    ]
    sums = [routed(3, time_ms=from_ms + 10_000), routed(1, sla="missed", tier="cloud", time_ms=from_ms + 10_000)]
    result = series_view(rows, sums, from_ms, NOW_MS, step_ms)
    assert result["times_ms"] == [from_ms + k * step_ms for k in range(5)]
    edge, cloud = result["tiers"]["edge"], result["tiers"]["cloud"]
    assert [value is None for value in edge["p99_ms"]] == [True, False, False, True, True]
    assert edge["p50_ms"][2] == pytest.approx(200, rel=ERROR)
    assert cloud["p95_ms"][2] == pytest.approx(300, rel=ERROR)
    assert edge["requests_per_s"] == [None, 3.0, 3.0, 1.5, 0.0], "over 15 s or more, from the first request on"
    assert result["sla_hit_rate"] == [None, 0.75, None, None, None]
    assert result["offload_share"] == [None, 0.25, None, None, None]
    assert result["step_s"] == 10.0
