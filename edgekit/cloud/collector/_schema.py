"""Tables of the store, the same on chDB and on a ClickHouse server.

A row is identified by ``(device_id, boot_id, sequence, point_id)``: who sent it, since which start, in which batch, and which series and interval it is (a hash,
so that a proxy may split or reorder a batch). `ReplacingMergeTree` with ``FINAL`` keeps one row of each; ``precedence`` makes that the one that came first, so a
resend changes nothing.
"""

from __future__ import annotations

import msgspec

__all__ = ["DEVICES", "EXPONENTIAL", "GAUGE", "HISTOGRAM", "LOGS", "RETENTION_DAYS", "SUM", "TABLES", "Table"]

RETENTION_DAYS = 30


class Table(msgspec.Struct, frozen=True):
    """Name, columns with ClickHouse types in insert order, and the engine clause."""

    name: str
    columns: dict[str, str]
    engine: str

    @property
    def ddl(self) -> str:
        """``CREATE TABLE IF NOT EXISTS``."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        return f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}) ENGINE = {self.engine}"


_NAME = "LowCardinality(String)"
_TIME = "DateTime64(3, 'UTC')"
_IDENTITY = {"device_id": "String", "boot_id": "String", "sequence": "UInt64", "point_id": "UInt64", "precedence": "UInt64"}
_SOURCE = {
    "received": _TIME,  # the collector's clock
    "time": _TIME,  # the device's clock, or `received` where that cannot be right
    "service_name": _NAME,
    "service_version": _NAME,
    "tier": _NAME,
    "profile": _NAME,
    "bundle_digest": "String",
}
_SERIES = {
    "start": _TIME,
    "name": _NAME,
    "unit": _NAME,
    "attributes": "Map(LowCardinality(String), String)",
    "temporality": "UInt8",  # OTLP: 0 none, 1 delta, 2 cumulative
}
_METRIC = {**_IDENTITY, **_SOURCE, **_SERIES}
_SUMMARY = {"n": "UInt64", "total": "Float64", "minimum": "Float64", "maximum": "Float64"}

_ENGINE = (
    "ReplacingMergeTree(precedence) PARTITION BY toYYYYMM(time) ORDER BY (device_id, boot_id, sequence, point_id) "
    f"TTL toDateTime(time) + INTERVAL {RETENTION_DAYS} DAY SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
)

SUM = Table("edgekit_metrics_sum", {**_METRIC, "monotonic": "UInt8", "value": "Float64"}, _ENGINE)
GAUGE = Table("edgekit_metrics_gauge", {**_METRIC, "value": "Float64"}, _ENGINE)
HISTOGRAM = Table("edgekit_metrics_histogram", {**_METRIC, **_SUMMARY, "bounds": "Array(Float64)", "counts": "Array(UInt64)"}, _ENGINE)
EXPONENTIAL = Table(
    "edgekit_metrics_exponential_histogram",
    {**_METRIC, **_SUMMARY, "scale": "Int8", "zero_count": "UInt64", "positive": "Map(Int32, UInt64)", "negative": "Map(Int32, UInt64)"},
    _ENGINE,
)
LOGS = Table(
    "edgekit_logs",
    {
        **_IDENTITY,
        **_SOURCE,
        "severity": "UInt8",
        "event": _NAME,
        "body": "String",
        "attributes": "Map(LowCardinality(String), String)",
        "verified": _NAME,  # of a receipt: how far its proof went
        "receipt_digest": "String",  # of a receipt: the bundle that it is about
    },
    _ENGINE,
)
DEVICES = Table(
    "edgekit_devices",
    {
        "device_id": "String",
        "service_name": _NAME,
        "service_version": _NAME,
        "tier": _NAME,
        "profile": _NAME,
        "bundle_digest": "String",
        "boot_id": "String",
        "last_seen": _TIME,
    },
    f"ReplacingMergeTree(last_seen) ORDER BY (device_id, service_name) TTL toDateTime(last_seen) + INTERVAL {RETENTION_DAYS} DAY",
)
TABLES = (SUM, GAUGE, HISTOGRAM, EXPONENTIAL, LOGS, DEVICES)
