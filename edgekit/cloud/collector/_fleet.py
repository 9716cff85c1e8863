"""From grouped rows to what the operator sees. Pure; the JSON of ``/api/fleet`` and ``/api/series`` is documented here.

Which source counts: the router sees every request once, so where a router reports, SLA, offload and latency are its own; the runtimes behind it would count the
same requests again. Triton gives cumulative sums and no histogram, so its rows have a mean and no percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from edgekit.cloud.collector._queries import ROUTED, FleetRows, LatencyRow, Receipt, SumRow
from edgekit.telemetry import quantile_of_buckets

__all__ = ["STALE_AFTER_S", "fleet_view", "series_view"]

_R = TypeVar("_R", LatencyRow, SumRow)

ROUTER = "edgekit-router"
STALE_AFTER_S = 30.0  # six export intervals
SMOOTHING_S = 15.0  # three export intervals
ANSWERED = ("ok", "late")  # outcomes whose duration is a latency; a refusal is quick and says nothing about serving
FAILED = ("error", "rejected")


class _Latency:
    """Counts by bucket over groups that may differ in scale."""

    def __init__(self, rows: Iterable[LatencyRow] = ()) -> None:
        self.scale = 20
        self.zero = 0
        self.buckets: dict[int, int] = {}
        for row in rows:
            self._add(row)

    def _add(self, row: LatencyRow) -> None:
        if row.scale < self.scale:
            coarser: dict[int, int] = {}
            for index, count in self.buckets.items():
                key = index >> (self.scale - row.scale)
                coarser[key] = coarser.get(key, 0) + count
            self.buckets, self.scale = coarser, row.scale
        for index, count in row.buckets.items():
            key = index >> (row.scale - self.scale)
            self.buckets[key] = self.buckets.get(key, 0) + count
        self.zero += row.zero_count

    @property
    def count(self) -> int:
        return self.zero + sum(self.buckets.values())

    def quantiles_ms(self) -> dict[str, float | None]:
        """p50, p95 and p99 in milliseconds, each within the histogram's relative error."""
        return {name: _rounded(1e3 * quantile_of_buckets(q, self.zero, self.buckets, self.scale)) for name, q in _QUANTILES}


_QUANTILES = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))


def _rounded(value: float) -> float | None:
    return None if not math.isfinite(value) else float(f"{value:.4g}")


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole > 0 else None


class _Routed(msgspec.Struct):
    """Routed requests, by what became of them."""

    total: float = 0
    met: float = 0
    missed: float = 0
    edge: float = 0
    cloud: float = 0
    failed: float = 0

    def add(self, row: SumRow) -> None:
        """Count one group."""
        self.total += row.value
        self.met += row.value if row.sla == "met" else 0
        self.missed += row.value if row.sla == "missed" else 0
        self.edge += row.value if row.tier == "edge" else 0
        self.cloud += row.value if row.tier == "cloud" else 0
        self.failed += row.value if row.outcome in FAILED else 0

    def view(self) -> dict[str, float | None]:
        """Shares; ``None`` where nothing was routed."""
        return {"sla_hit_rate": _share(self.met, self.met + self.missed), "offload_share": _share(self.cloud, self.edge + self.cloud)}


def _routed(rows: Iterable[SumRow]) -> _Routed:
    out = _Routed()
    for row in rows:
        if row.name == ROUTED:
            out.add(row)
    return out


def _rate(count: float, earliest_ms: int | None, now_ms: int, window_s: float) -> float | None:
    """Per second over the part of the window since the first report, so that a device that came a minute ago is not divided by an hour."""
    if earliest_ms is None:
        return None
    span_s = min(max((now_ms - earliest_ms) / 1e3, 1.0), window_s)
    return _rounded(count / span_s)


def _counts(latencies: Sequence[LatencyRow], sums: Sequence[SumRow]) -> tuple[float, float]:
    """``(requests, errors)`` of one source: the router's counter, else Triton's, else the runtimes' histograms."""
    routed = _routed(sums)
    if routed.total:
        return routed.total, routed.failed
    triton = [row for row in sums if row.name == "edgekit.triton.requests"]
    if triton and not latencies:
        return sum(row.value for row in triton), sum(row.value for row in triton if row.outcome in FAILED)
    total = sum(row.zero_count + sum(row.buckets.values()) for row in latencies)
    failed = sum(row.zero_count + sum(row.buckets.values()) for row in latencies if row.outcome in FAILED)
    return total, failed


def _latency_source(latencies: Sequence[LatencyRow]) -> tuple[str, list[LatencyRow]]:
    """The router's rows when there are any, else the runtimes'; answered requests only."""
    answered = [row for row in latencies if row.outcome in ANSWERED]
    router = [row for row in answered if row.service == ROUTER]
    if router:
        return "router", router
    return ("runtime" if answered else "none"), answered


def _first_ms(latencies: Sequence[LatencyRow], sums: Sequence[SumRow]) -> int | None:
    return min([row.earliest_ms for row in latencies] + [row.earliest_ms for row in sums], default=None)


def _mean_ms(sums: Sequence[SumRow]) -> float | None:
    """Triton's mean request time: increase of its duration counter over the increase of its successes."""
    seconds = sum(row.value for row in sums if row.name == "edgekit.triton.request.time")
    answered = sum(row.value for row in sums if row.name == "edgekit.triton.requests" and row.outcome == "ok")
    return _rounded(1e3 * seconds / answered) if answered else None


def _models(latencies: Sequence[LatencyRow], sums: Sequence[SumRow]) -> list[dict[str, Any]]:
    counted: dict[tuple[str, str], float] = {}
    for row in latencies:
        if row.model and row.service != ROUTER:
            key = (row.model, row.version)
            counted[key] = counted.get(key, 0) + row.zero_count + sum(row.buckets.values())
    for total in sums:
        if total.model and total.name == "edgekit.triton.requests":
            key = (total.model, total.version)
            counted[key] = counted.get(key, 0) + total.value
    if not counted:  # a router in front of what does not report
        for row in latencies:
            if row.model:
                key = (row.model, row.version)
                counted[key] = counted.get(key, 0) + row.zero_count + sum(row.buckets.values())
    known = {model for model, version in counted if version}  # refused requests name no version; they are no other model
    ordered = sorted(((key, n) for key, n in counted.items() if key[1] or key[0] not in known), key=lambda item: (-item[1], item[0]))
    return [{"model": model, "version": version, "requests": requests} for (model, version), requests in ordered]


def _verified(digests: Iterable[str], receipts: Sequence[Receipt]) -> str | None:
    """Proof level of the bundle that runs; a receipt about another bundle proves nothing about this one."""
    running = {digest for digest in digests if digest}
    fitting = [
        receipt
        for receipt in receipts
        if receipt.verified and (not running or not receipt.bundle_digest or receipt.bundle_digest in running)
    ]
    return fitting[-1].verified if fitting else None


def _device_view(device_id: str, rows: FleetRows, now_ms: int, window_s: float) -> dict[str, Any]:
    processes = sorted((row for row in rows.devices if row.device_id == device_id), key=lambda row: row.last_seen_ms)
    latencies = [row for row in rows.latencies if row.device_id == device_id]
    sums = [row for row in rows.sums if row.device_id == device_id]
    requests, errors = _counts(latencies, sums)
    last_seen_ms = max(process.last_seen_ms for process in processes)
    digests = [process.bundle_digest for process in processes if process.bundle_digest]
    _, answered = _latency_source(latencies)
    return {
        "device_id": device_id,
        "services": [process.service for process in processes],
        "service_version": processes[-1].service_version,
        "profile": next((process.profile for process in reversed(processes) if process.profile), ""),
        "tier": next((process.tier for process in reversed(processes) if process.tier), ""),
        "models": _models(latencies, sums),
        "bundle_digest": digests[-1] if digests else "",
        "verified": _verified(digests, [receipt for receipt in rows.receipts if receipt.device_id == device_id]),
        "requests": requests,
        "requests_per_s": _rate(requests, _first_ms(latencies, sums), now_ms, window_s),
        **_Latency(answered).quantiles_ms(),
        "mean_ms": _mean_ms(sums),
        **_routed(sums).view(),
        "errors": errors,
        "last_seen_ms": last_seen_ms,
        "stale": now_ms - last_seen_ms > STALE_AFTER_S * 1e3,
    }


def fleet_view(rows: FleetRows, now_ms: int, window_s: float) -> dict[str, Any]:
    """The JSON of ``/api/fleet``.

    ``now_ms`` and ``last_seen_ms`` are milliseconds since the Unix epoch; ``*_ms`` latencies are milliseconds, ``None`` where nothing was measured; shares are
    0 to 1. ``totals.latency_source`` is ``router``, ``runtime`` or ``none``; ``devices`` are sorted by id.
    """
    source, answered = _latency_source(rows.latencies)
    routed = _routed(rows.sums)
    counters = [row for row in rows.sums if row.name == ROUTED]
    if not counters and not rows.latencies:
        counters = rows.sums  # only Triton reports: its counters are all that is known
    requests, errors = _counts(rows.latencies, counters)
    ids = sorted({device.device_id for device in rows.devices})
    devices = [_device_view(device_id, rows, now_ms, window_s) for device_id in ids]
    return {
        "now_ms": now_ms,
        "window_s": window_s,
        "totals": {
            "requests": requests,
            "requests_per_s": _rate(requests, _first_ms(rows.latencies, counters), now_ms, window_s),
            "errors": errors,
            "error_share": _share(errors, requests),
            **routed.view(),
            **_Latency(answered).quantiles_ms(),
            "latency_source": source,
            "devices": len(devices),
            "devices_reporting": sum(not device["stale"] for device in devices),
        },
        "tiers": [_tier_view(tier, answered) for tier in sorted({row.tier for row in answered})],
        "devices": devices,
    }


def _tier_view(tier: str, answered: Sequence[LatencyRow]) -> dict[str, Any]:
    latency = _Latency(row for row in answered if row.tier == tier)
    return {"tier": tier, "requests": latency.count, **latency.quantiles_ms()}


def series_view(latencies: Sequence[LatencyRow], sums: Sequence[SumRow], from_ms: int, to_ms: int, step_ms: int) -> dict[str, Any]:
    """The JSON of ``/api/series``: one value a bin, oldest first; ``None`` where a bin is empty.

    ``times_ms`` are the starts of the bins (milliseconds since the Unix epoch); ``tiers`` maps a tier to ``p50_ms``, ``p95_ms``, ``p99_ms`` and
    ``requests_per_s``; ``sla_hit_rate`` and ``offload_share`` are 0 to 1. Rates are over at least 15 s.
    """
    times = list(range(from_ms // step_ms * step_ms, to_ms + 1, step_ms))
    source, answered = _latency_source(latencies)
    tiers: dict[str, dict[str, list[float | None]]] = {}
    for tier in sorted({row.tier for row in answered}):
        grouped = _by_bin(row for row in answered if row.tier == tier)
        bins = {start: _Latency(grouped.get(start, ())) for start in times}
        quantiles = [bins[start].quantiles_ms() for start in times]
        tiers[tier] = {name: [q[name] for q in quantiles] for name, _ in _QUANTILES}
        tiers[tier]["requests_per_s"] = _rates([bins[start].count for start in times], times, step_ms, to_ms)
    counters = _by_bin(sums)
    routed = [_routed(counters.get(start, ())).view() for start in times]
    return {
        "now_ms": to_ms,
        "step_s": step_ms / 1e3,
        "latency_source": source,
        "times_ms": times,
        "tiers": tiers,
        "sla_hit_rate": [view["sla_hit_rate"] for view in routed],
        "offload_share": [view["offload_share"] for view in routed],
    }


def _by_bin(rows: Iterable[_R]) -> dict[int, list[_R]]:
    grouped: dict[int, list[_R]] = {}
    for row in rows:
        grouped.setdefault(row.time_ms, []).append(row)
    return grouped


def _rates(counts: Sequence[int], times: Sequence[int], step_ms: int, now_ms: int) -> list[float | None]:
    """Requests per second, each over its bin and as many before it as make `SMOOTHING_S`; ``None`` before the first request.

    Devices report every few seconds, so narrower bins would alternate between one report and two.
    """
    first = next((k for k, count in enumerate(counts) if count), len(counts))
    width = max(1, math.ceil(SMOOTHING_S * 1e3 / step_ms))
    rates: list[float | None] = [None] * first
    for k in range(first, len(counts)):
        begin = max(first, k - width + 1)
        span_s = max(min(times[k] + step_ms, now_ms) - times[begin], 1000) / 1e3
        rates.append(_rounded(sum(counts[begin : k + 1]) / span_s))
    return rates
