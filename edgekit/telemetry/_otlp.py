"""OTLP as JSON, written without protobuf (opentelemetry-proto 1.x, "JSON Protobuf Encoding": 64-bit integers are strings, enums are numbers).

Pure: points in, batches of bytes out. A batch keeps its sequence number for life, so that sending it again is the same bytes and the store can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from edgekit._version import __version__
from edgekit.telemetry._histogram import LogHistogram
from edgekit.telemetry._meter import AttributeValue, MetricPoint

__all__ = ["BATCH_LIMIT_BYTES", "RECEIPT_EVENT", "Batch", "Resource", "encode_metrics", "encode_receipt"]

BATCH_LIMIT_BYTES = 4 << 20  # receivers refuse more (gRPC's default message limit, and our collector's)
ENVELOPE_BYTES = 16 << 10  # room for resource, scope and brackets
DELTA = 1  # AggregationTemporality
SEVERITY_INFO = 9
RECEIPT_EVENT = "edgekit.receipt"

Signal = Literal["metrics", "logs"]


class Batch(msgspec.Struct, frozen=True):
    """One request body, ready to send. ``rows`` is how many points or records are in it, for honest drop counts."""

    signal: Signal
    body: bytes
    rows: int


class Resource:
    """Who sends: attributes that every batch carries, and the sequence that makes its rows unique.

    Args:
        attributes: the design's resource attributes; ``edgekit.boot.id`` must be new at each start.
    """

    def __init__(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.attributes = dict(attributes)
        self._sequence = 0

    def next(self) -> dict[str, Any]:
        """The OTLP resource of the next batch; every call takes one sequence number."""
        numbered = {**self.attributes, "edgekit.sequence": self._sequence}
        self._sequence += 1
        return {"attributes": _attributes(numbered)}


def _value(value: AttributeValue) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if -(1 << 63) <= value < 1 << 63 else {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value} if value - value == 0 else {"stringValue": str(value)}
    return {"stringValue": value}


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _data_point(point: MetricPoint) -> dict[str, Any]:
    common = {
        "attributes": _attributes(point.attributes),
        "startTimeUnixNano": str(point.start_ns),
        "timeUnixNano": str(point.time_ns),
    }
    if point.histogram is None:
        return common | {"asDouble": float(point.value)}
    return common | _buckets(point.histogram)


def _buckets(histogram: LogHistogram) -> dict[str, Any]:
    offset, counts = histogram.dense()
    return {
        "count": str(histogram.count),
        "sum": histogram.sum,
        "min": histogram.min,
        "max": histogram.max,
        "scale": histogram.scale,
        "zeroCount": str(histogram.zero_count),
        "positive": {"offset": offset, "bucketCounts": [str(count) for count in counts]},
    }


_DATA_FIELD: dict[str, tuple[str, dict[str, Any]]] = {
    "sum": ("sum", {"aggregationTemporality": DELTA, "isMonotonic": True}),
    "gauge": ("gauge", {}),
    "histogram": ("exponentialHistogram", {"aggregationTemporality": DELTA}),
}


def _metrics(points: Sequence[tuple[MetricPoint, msgspec.Raw]]) -> list[dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for point, encoded in points:
        field, fixed = _DATA_FIELD[point.kind]
        metric = grouped.setdefault(
            point.name, {"name": point.name, "unit": point.unit, "description": point.description, field: {"dataPoints": [], **fixed}}
        )
        metric[field]["dataPoints"].append(encoded)
    return list(grouped.values())


def _groups(points: Iterable[MetricPoint], limit_bytes: int) -> Iterable[list[tuple[MetricPoint, msgspec.Raw]]]:
    group: list[tuple[MetricPoint, msgspec.Raw]] = []
    size = 0
    for point in points:
        encoded = msgspec.json.encode(_data_point(point))
        cost = len(encoded) + len(point.name) + len(point.unit) + len(point.description) + 160
        if group and size + cost > limit_bytes:
            yield group
            group, size = [], 0
        group.append((point, msgspec.Raw(encoded)))
        size += cost
    if group:
        yield group


def encode_metrics(points: Iterable[MetricPoint], resource: Resource, limit_bytes: int = BATCH_LIMIT_BYTES) -> list[Batch]:
    """Points as request bodies for ``/v1/metrics``, each of at most ``limit_bytes``; none for no points."""
    return [
        Batch("metrics", _body("resourceMetrics", "scopeMetrics", "metrics", resource, _metrics(group)), len(group))
        for group in _groups(points, limit_bytes - ENVELOPE_BYTES)
    ]


def encode_receipt(receipt: Mapping[str, Any], resource: Resource, now_ns: int) -> Batch:
    """A receipt as one OTLP log record for ``/v1/logs``: its body is the receipt as JSON text, ``event.name`` tells what it is."""
    record = {
        "timeUnixNano": str(now_ns),
        "observedTimeUnixNano": str(now_ns),
        "severityNumber": SEVERITY_INFO,
        "severityText": "INFO",
        "body": {"stringValue": msgspec.json.encode(receipt, enc_hook=str).decode()},
        "attributes": _attributes({"event.name": RECEIPT_EVENT}),
    }
    return Batch("logs", _body("resourceLogs", "scopeLogs", "logRecords", resource, [record]), 1)


def _body(outer: str, middle: str, inner: str, resource: Resource, rows: list[dict[str, Any]]) -> bytes:
    scope = {"name": "edgekit", "version": __version__}
    return msgspec.json.encode({outer: [{"resource": resource.next(), middle: [{"scope": scope, inner: rows}]}]})
