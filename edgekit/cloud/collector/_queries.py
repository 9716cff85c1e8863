"""What the fleet page asks of the store. Percentiles are never averaged: bucket counts are summed here and read there (`_fleet`)."""

from __future__ import annotations

import msgspec

from edgekit.cloud.collector._schema import DEVICES, EXPONENTIAL, LOGS, SUM
from edgekit.cloud.collector._store import Store
from edgekit.telemetry import RECEIPT_EVENT

__all__ = ["Device", "FleetRows", "LatencyRow", "Receipt", "SumRow", "fleet_rows", "series_rows"]

DURATION = "edgekit.request.duration"
ROUTED = "edgekit.route.requests"
TRITON_SUMS = ("edgekit.triton.requests", "edgekit.triton.request.time", "edgekit.triton.inferences")
DEVICE_HORIZON_MS = 7 * 86_400_000  # a device that was silent for a week is no longer listed
DELTA = 1


class LatencyRow(msgspec.Struct, frozen=True):
    """Merged buckets of ``edgekit.request.duration`` (seconds) for one group. ``time_ms`` is the start of the bin, 0 without bins."""

    device_id: str
    service: str
    tier: str
    model: str
    version: str
    outcome: str
    time_ms: int
    scale: int
    zero_count: int
    buckets: dict[int, int]
    total_s: float
    earliest_ms: int


class SumRow(msgspec.Struct, frozen=True):
    """Increase of a counter for one group."""

    name: str
    device_id: str
    service: str
    tier: str
    model: str
    version: str
    sla: str
    outcome: str
    time_ms: int
    value: float
    earliest_ms: int


class Device(msgspec.Struct, frozen=True):
    """A process that ever reported: device and role."""

    device_id: str
    service: str
    service_version: str
    tier: str
    profile: str
    bundle_digest: str
    last_seen_ms: int


class Receipt(msgspec.Struct, frozen=True):
    """Newest receipt of a device about one bundle."""

    device_id: str
    bundle_digest: str
    verified: str


class FleetRows(msgspec.Struct, frozen=True):
    """All that one page refresh needs."""

    latencies: list[LatencyRow]
    sums: list[SumRow]
    devices: list[Device]
    receipts: list[Receipt]


_WINDOW = (
    "time > fromUnixTimestamp64Milli({from_ms:Int64}) AND time <= fromUnixTimestamp64Milli({to_ms:Int64}) "
    f"AND temporality = {DELTA} AND name IN {{names:Array(String)}}"
)


def _bin(bin_ms: int) -> str:
    return f"intDiv(toUnixTimestamp64Milli(time), {bin_ms}) * {bin_ms}" if bin_ms else "toInt64(0)"


def _latencies(store: Store, from_ms: int, to_ms: int, bin_ms: int, device: str) -> list[LatencyRow]:
    sql = f"""
        SELECT {device} AS device, service_name, attributes['edgekit.tier'] AS answered, attributes['edgekit.model'] AS model,
            attributes['edgekit.model.version'] AS version, attributes['edgekit.outcome'] AS outcome, {_bin(bin_ms)} AS bin, scale,
            sum(zero_count), sumMap(positive), sum(total), toUnixTimestamp64Milli(min(start))
        FROM {EXPONENTIAL.name} FINAL WHERE {_WINDOW}
        GROUP BY device, service_name, answered, model, version, outcome, bin, scale"""  # noqa: S608 - our own constants
    rows = store.query(sql, {"from_ms": from_ms, "to_ms": to_ms, "names": [DURATION]})
    return [LatencyRow(*row) for row in rows]


def _sums(store: Store, from_ms: int, to_ms: int, bin_ms: int, device: str, names: tuple[str, ...]) -> list[SumRow]:
    sql = f"""
        SELECT name, {device} AS device, service_name, attributes['edgekit.tier'] AS answered, attributes['edgekit.model'] AS model,
            attributes['edgekit.model.version'] AS version, attributes['edgekit.sla'] AS sla, attributes['edgekit.outcome'] AS outcome,
            {_bin(bin_ms)} AS bin, sum(value), toUnixTimestamp64Milli(min(start))
        FROM {SUM.name} FINAL WHERE {_WINDOW}
        GROUP BY name, device, service_name, answered, model, version, sla, outcome, bin"""  # noqa: S608 - our own constants
    return [SumRow(*row) for row in store.query(sql, {"from_ms": from_ms, "to_ms": to_ms, "names": list(names)})]


def _devices(store: Store, now_ms: int) -> list[Device]:
    sql = f"""
        SELECT device_id, service_name, service_version, tier, profile, bundle_digest, toUnixTimestamp64Milli(last_seen)
        FROM {DEVICES.name} FINAL WHERE last_seen > fromUnixTimestamp64Milli({{from_ms:Int64}})"""  # noqa: S608 - our own constants
    return [Device(*row) for row in store.query(sql, {"from_ms": now_ms - DEVICE_HORIZON_MS})]


def _receipts(store: Store) -> list[Receipt]:
    sql = f"""
        SELECT device_id, if(receipt_digest = '', bundle_digest, receipt_digest) AS digest, argMax(verified, time)
        FROM {LOGS.name} FINAL WHERE event = {{event:String}} GROUP BY device_id, digest"""  # noqa: S608 - our own constants
    return [Receipt(*row) for row in store.query(sql, {"event": RECEIPT_EVENT})]


def fleet_rows(store: Store, now_ms: int, window_ms: int) -> FleetRows:
    """Everything of the last ``window_ms``, by device."""
    # A device's clock may be ahead by what ingest tolerates; its newest points belong to the window all the same.
    from_ms, to_ms = now_ms - window_ms, now_ms + 5 * 60_000
    return FleetRows(
        _latencies(store, from_ms, to_ms, 0, "device_id"),
        _sums(store, from_ms, to_ms, 0, "device_id", (ROUTED, *TRITON_SUMS)),
        _devices(store, now_ms),
        _receipts(store),
    )


def series_rows(store: Store, from_ms: int, to_ms: int, bin_ms: int) -> tuple[list[LatencyRow], list[SumRow]]:
    """Latencies and routed requests in bins of ``bin_ms``, over all devices."""
    return _latencies(store, from_ms, to_ms, bin_ms, "''"), _sums(store, from_ms, to_ms, bin_ms, "''", (ROUTED,))
