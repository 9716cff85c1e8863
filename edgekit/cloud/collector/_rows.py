"""OTLP messages to rows of the store: pure, bounded, and strict about what may enter.

A point that cannot be right (no number, absurd counts, too many buckets) is refused alone and reported as ``partial_success``; the rest of its batch is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from edgekit.cloud.collector._schema import DEVICES, EXPONENTIAL, GAUGE, HISTOGRAM, LOGS, RETENTION_DAYS, SUM
from edgekit.errors import RequestError
from edgekit.telemetry import RECEIPT_EVENT

__all__ = ["POINT_LIMIT", "Decoded", "log_rows", "metric_rows"]

POINT_LIMIT = 100_000  # points or records of one request; a protobuf of 2-byte messages must not become millions of rows
ATTRIBUTE_LIMIT = 64
KEY_LENGTH, VALUE_LENGTH = 128, 256  # characters
BODY_LENGTH = 1 << 20  # characters of a log body
BUCKET_LIMIT = 8192
COUNT_LIMIT = 10**12  # of one bucket and one interval; larger ones would wrap 64 bits when a fleet is summed
FUTURE_LIMIT_MS = 5 * 60_000
PAST_LIMIT_MS = RETENTION_DAYS * 86_400_000
UINT64_MAX = (1 << 64) - 1

Row = tuple[Any, ...]


class Decoded(msgspec.Struct):
    """Rows by table name, how many points were refused, and the first reason."""

    rows: dict[str, list[Row]]
    rejected: int = 0
    reason: str = ""

    @property
    def count(self) -> int:
        """Rows over all tables."""
        return sum(map(len, self.rows.values()))

    def refuse(self, reason: str) -> None:
        """Count one refused point."""
        self.rejected += 1
        self.reason = self.reason or reason


class _Refused(Exception):  # noqa: N818 - control flow inside this module, not an error of the program
    pass


class _Source(msgspec.Struct, frozen=True):
    """Who sent a batch, from its resource attributes."""

    device_id: str
    boot_id: str
    sequence: int
    service_name: str
    service_version: str
    tier: str
    profile: str
    bundle_digest: str

    def columns(self, point_id: int, received_ms: int, time_ms: int) -> Row:
        """Values of the identity and source columns."""
        return (
            self.device_id,
            self.boot_id,
            self.sequence,
            point_id,
            UINT64_MAX - received_ms,  # precedence: the first to arrive stays
            received_ms,
            time_ms,
            self.service_name,
            self.service_version,
            self.tier,
            self.profile,
            self.bundle_digest,
        )


def _text(value: Any) -> str:
    """An OTLP ``AnyValue`` as a string; nested values are only named."""
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    raw = getattr(value, kind)
    if kind == "bool_value":
        return "true" if raw else "false"
    return str(raw)[:VALUE_LENGTH] if kind in ("string_value", "int_value", "double_value") else f"<{kind}>"


def _attributes(pairs: Sequence[Any]) -> dict[str, str]:
    if len(pairs) > ATTRIBUTE_LIMIT:
        raise _Refused(f"{len(pairs)} attributes; at most {ATTRIBUTE_LIMIT} are taken")
    return {pair.key[:KEY_LENGTH]: _text(pair.value) for pair in pairs}


def _source(resource: Any) -> _Source:
    found = _attributes(resource.attributes)
    sequence = found.get("edgekit.sequence", "0")
    if not (sequence.isascii() and sequence.isdigit() and int(sequence) <= UINT64_MAX):
        raise _Refused("edgekit.sequence is no number of 64 bits")
    return _Source(
        device_id=found.get("device.id") or found.get("service.instance.id") or found.get("host.name") or "unknown",
        boot_id=found.get("edgekit.boot.id", ""),
        sequence=int(sequence),
        service_name=found.get("service.name", ""),
        service_version=found.get("service.version", ""),
        tier=found.get("edgekit.tier", ""),
        profile=found.get("edgekit.device_profile", ""),
        bundle_digest=found.get("edgekit.bundle.digest", ""),
    )


def _point_id(*parts: Any) -> int:
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _plausible_ms(time_ns: int, received_ms: int) -> int:
    """The sender's time, or the collector's where the sender's clock is plainly wrong (no battery-backed clock, never set)."""
    time_ms = time_ns // 1_000_000
    return time_ms if received_ms - PAST_LIMIT_MS < time_ms <= received_ms + FUTURE_LIMIT_MS else received_ms


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _Refused(f"value {value} is no number")
    return float(value)


def _counts(values: Sequence[int]) -> list[int]:
    if len(values) > BUCKET_LIMIT:
        raise _Refused(f"{len(values)} buckets; at most {BUCKET_LIMIT} are taken")
    counts = list(values)
    if counts and max(counts) > COUNT_LIMIT:
        raise _Refused(f"a bucket count above {COUNT_LIMIT}")
    return counts


def _summary(point: Any, counted: int) -> Row:
    if point.count != counted:
        raise _Refused(f"count {point.count} is not the sum of the buckets, {counted}")
    minimum = _finite(point.min) if point.HasField("min") else -math.inf
    maximum = _finite(point.max) if point.HasField("max") else math.inf
    return point.count, _finite(point.sum), minimum, maximum


def _sparse(buckets: Any) -> dict[int, int]:
    counts = _counts(buckets.bucket_counts)
    if counts and not -(1 << 31) <= buckets.offset < (1 << 31) - len(counts):
        raise _Refused(f"bucket offset {buckets.offset}")
    return {buckets.offset + k: count for k, count in enumerate(counts) if count}


def _number(point: Any) -> Row:
    kind = point.WhichOneof("value")
    if kind is None:
        raise _Refused("a data point without a value")
    return (_finite(float(getattr(point, kind))),)


def _explicit(point: Any) -> Row:
    counts, bounds = _counts(point.bucket_counts), list(point.explicit_bounds[: BUCKET_LIMIT + 1])
    if counts and len(counts) != len(bounds) + 1:
        raise _Refused(f"{len(counts)} buckets for {len(bounds)} bounds")
    return (*_summary(point, sum(counts) if counts else point.count), bounds, counts)


def _exponential(point: Any) -> Row:
    if not -10 <= point.scale <= 20:
        raise _Refused(f"scale {point.scale}")
    if point.zero_count > COUNT_LIMIT:
        raise _Refused(f"a bucket count above {COUNT_LIMIT}")
    positive, negative = _sparse(point.positive), _sparse(point.negative)
    summary = _summary(point, point.zero_count + sum(positive.values()) + sum(negative.values()))
    return (*summary, point.scale, point.zero_count, positive, negative)


# OTLP's field of a metric -> table, and the columns after the common ones.
_KINDS: dict[str, tuple[str, Callable[[Any, Any], Row]]] = {
    "sum": (SUM.name, lambda data, point: (int(data.is_monotonic), *_number(point))),
    "gauge": (GAUGE.name, lambda _, point: _number(point)),
    "histogram": (HISTOGRAM.name, lambda _, point: _explicit(point)),
    "exponential_histogram": (EXPONENTIAL.name, lambda _, point: _exponential(point)),
}


def _bounded(groups: Iterable[Any], field: str, seen: list[int]) -> Iterator[Any]:
    """Items of ``field`` over ``groups``; refuses a request with too many before any of them is looked at."""
    for group in groups:
        items = getattr(group, field)
        seen[0] += len(items)
        if seen[0] > POINT_LIMIT:
            raise RequestError("OTLP body", f"more than {POINT_LIMIT} entries", "smaller batches")
        yield from items


def _device_row(source: _Source, received_ms: int) -> Row:
    return (
        source.device_id,
        source.service_name,
        source.service_version,
        source.tier,
        source.profile,
        source.bundle_digest,
        source.boot_id,
        received_ms,
    )


def _sources(groups: Sequence[Any], out: Decoded, received_ms: int) -> Iterator[tuple[Any, _Source | str]]:
    if len(groups) > POINT_LIMIT:
        raise RequestError("OTLP body", f"more than {POINT_LIMIT} entries", "smaller batches")
    for group in groups:
        try:
            source = _source(group.resource)
        except _Refused as exc:
            yield group, str(exc)
            continue
        out.rows.setdefault(DEVICES.name, []).append(_device_row(source, received_ms))
        yield group, source


def metric_rows(request: Any, received_ms: int) -> Decoded:
    """Rows of an ``ExportMetricsServiceRequest`` that arrived at ``received_ms`` (milliseconds since the Unix epoch).

    Raises:
        RequestError: more entries than one request may hold.
    """
    out = Decoded({})
    seen = [0]
    for group, source in _sources(request.resource_metrics, out, received_ms):
        for metric in _bounded(_bounded([group], "scope_metrics", seen), "metrics", seen):
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind) if kind else None
            points = list(_bounded([data], "data_points", seen)) if data is not None else []
            for point in points:
                if isinstance(source, str):
                    out.refuse(source)
                elif kind not in _KINDS:
                    out.refuse(f"metric type {kind}")
                else:
                    _add_point(out, source, metric, kind, point, received_ms)
    return out


def _add_point(out: Decoded, source: _Source, metric: Any, kind: str, point: Any, received_ms: int) -> None:
    table, columns_of = _KINDS[kind]
    data = getattr(metric, kind)
    try:
        attributes = _attributes(point.attributes)
        columns = columns_of(data, point)
    except _Refused as exc:
        out.refuse(f"{metric.name[:KEY_LENGTH]}: {exc}")
        return
    name = metric.name[:KEY_LENGTH]
    start_ns, time_ns = point.start_time_unix_nano, point.time_unix_nano
    time_ms = _plausible_ms(time_ns, received_ms)
    start_ms = time_ms - min(max(0, (time_ns - start_ns) // 1_000_000), PAST_LIMIT_MS) if start_ns else time_ms
    identity = _point_id(kind, name, sorted(attributes.items()), start_ns, time_ns)
    series = (start_ms, name, metric.unit[:KEY_LENGTH], attributes, int(getattr(data, "aggregation_temporality", 0)))
    out.rows.setdefault(table, []).append((*source.columns(identity, received_ms, time_ms), *series, *columns))


def log_rows(request: Any, received_ms: int) -> Decoded:
    """Rows of an ``ExportLogsServiceRequest``; of a receipt, its proof level and bundle digest get columns of their own.

    Raises:
        RequestError: more entries than one request may hold.
    """
    out = Decoded({})
    seen = [0]
    for group, source in _sources(request.resource_logs, out, received_ms):
        for record in _bounded(_bounded([group], "scope_logs", seen), "log_records", seen):
            if isinstance(source, str):
                out.refuse(source)
                continue
            try:
                attributes = _attributes(record.attributes)
            except _Refused as exc:
                out.refuse(str(exc))
                continue
            out.rows.setdefault(LOGS.name, []).append(_log_row(source, record, attributes, received_ms))
    return out


def _log_row(source: _Source, record: Any, attributes: dict[str, str], received_ms: int) -> Row:
    body = record.body.string_value if record.body.WhichOneof("value") == "string_value" else str(record.body)
    body = body[:BODY_LENGTH]
    time_ns = record.time_unix_nano or record.observed_time_unix_nano
    event = attributes.get("event.name") or getattr(record, "event_name", "")[:KEY_LENGTH]
    verified, digest = _receipt(body) if event == RECEIPT_EVENT else ("", "")
    return (
        *source.columns(_point_id(event, body, time_ns), received_ms, _plausible_ms(time_ns, received_ms)),
        min(max(int(record.severity_number), 0), 24),
        event,
        body,
        attributes,
        verified,
        digest,
    )


def _receipt(body: str) -> tuple[str, str]:
    """``(verified, bundle_digest)`` of a receipt; empty where it has none. ``verified`` stands at the top or under ``verification``."""
    try:
        receipt = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(receipt, dict):
        return "", ""
    verification = receipt.get("verification")
    verified = receipt.get("verified", verification.get("verified") if isinstance(verification, dict) else None)
    digest = receipt.get("bundle_digest")
    return (
        verified[:KEY_LENGTH] if isinstance(verified, str) else "",
        digest[:KEY_LENGTH] if isinstance(digest, str) else "",
    )
