"""OTLP messages to rows: identity, clocks, and what is refused point by point."""

import math

import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from edgekit.cloud.collector import _rows
from edgekit.cloud.collector._rows import POINT_LIMIT, log_rows, metric_rows
from edgekit.cloud.collector._schema import TABLES
from edgekit.cloud.collector._wire import parse
from edgekit.errors import RequestError

NOW_MS = 1_800_000_000_000
COLUMNS = {table.name: list(table.columns) for table in TABLES}


def records(decoded, table):
    return [dict(zip(COLUMNS[table], row, strict=True)) for row in decoded.rows.get(table, [])]


def one_metric(kind, **point):
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    added = getattr(metric, kind).data_points.add(time_unix_nano=NOW_MS * 1_000_000)
    positive, attributes = point.pop("positive", None), point.pop("attributes", ())
    if positive:
        added.positive.offset = positive[0]
        added.positive.bucket_counts.extend(positive[1])
    for key in attributes:
        added.attributes.add(key=key).value.string_value = key
    for name, value in point.items():
        if isinstance(value, list):
            getattr(added, name).extend(value)
        else:
            setattr(added, name, value)
    return request


def test_what_a_device_sends_arrives_whole(otlp):
    def fill(meter):
        meter.counter("c").add(2, {"b": True, "s": "x", "i": 3})
        meter.gauge("g", "By").set(7)
        meter.histogram("h").record(0.25)

    (body,) = otlp.metrics(fill, otlp.resource(), NOW_MS)
    decoded = metric_rows(parse("metrics", body, "json"), NOW_MS)
    (total,) = records(decoded, "edgekit_metrics_sum")
    assert total["attributes"] == {"b": "true", "s": "x", "i": "3"}
    assert (total["value"], total["monotonic"], total["temporality"], total["name"]) == (2.0, 1, 1, "c")
    assert (total["device_id"], total["boot_id"], total["sequence"], total["profile"]) == ("d1", "b1", 0, "generic-x86")
    assert (total["time"], total["start"], total["received"]) == (NOW_MS, NOW_MS - 5000, NOW_MS)
    (gauge,) = records(decoded, "edgekit_metrics_gauge")
    assert (gauge["value"], gauge["unit"], gauge["temporality"]) == (7.0, "By", 0)
    (histogram,) = records(decoded, "edgekit_metrics_exponential_histogram")
    assert (histogram["n"], histogram["total"], histogram["minimum"], histogram["maximum"], histogram["scale"]) == (1, 0.25, 0.25, 0.25, 5)
    assert histogram["positive"] == {-65: 1}, "0.25 is the inclusive top of bucket -2 * 32 - 1"
    (device,) = records(decoded, "edgekit_devices")
    assert (device["device_id"], device["service_name"], device["last_seen"]) == ("d1", "edgekit-router", NOW_MS)
    assert decoded.rejected == 0
    assert decoded.count == 4


def test_identity_is_the_same_when_sent_again_or_split_and_differs_otherwise(otlp):
    def fill(meter):
        for k in range(3):
            meter.counter("c").add(1, {"k": k})

    (body,) = otlp.metrics(fill, otlp.resource(), NOW_MS)
    first = metric_rows(parse("metrics", body, "json"), NOW_MS)
    again = metric_rows(parse("metrics", body, "json"), NOW_MS + 99_000)
    identity = COLUMNS["edgekit_metrics_sum"][:4]

    def ids(decoded):
        return {tuple(record[name] for name in identity) for record in records(decoded, "edgekit_metrics_sum")}

    assert len(ids(first)) == 3
    assert ids(first) == ids(again)
    split = parse("metrics", body, "json")
    del split.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0]
    assert ids(metric_rows(split, NOW_MS)) < ids(first)
    precedence = [records(decoded, "edgekit_metrics_sum")[0]["precedence"] for decoded in (first, again)]
    assert precedence[0] > precedence[1], "the first to arrive wins"
    (other_batch,) = otlp.metrics(fill, otlp.resource(boot="b2"), NOW_MS)
    assert ids(metric_rows(parse("metrics", other_batch, "json"), NOW_MS)).isdisjoint(ids(first))


@pytest.mark.parametrize(
    ("device_ms", "stored_ms"),
    [
        (NOW_MS - 86_400_000, NOW_MS - 86_400_000),  # a spool after a day offline
        (NOW_MS + 60_000, NOW_MS + 60_000),
        (NOW_MS + 6 * 60_000, NOW_MS),  # clock ahead
        (1_000, NOW_MS),  # no clock: 1970
        (0, NOW_MS),
        ((1 << 64) // 1_000_000 - 1, NOW_MS),
    ],
)
def test_a_clock_that_cannot_be_right_is_replaced(device_ms, stored_ms):
    request = one_metric("sum", as_double=1.0)
    request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].time_unix_nano = device_ms * 1_000_000
    (row,) = records(metric_rows(request, NOW_MS), "edgekit_metrics_sum")
    assert row["time"] == stored_ms


REFUSED = {
    "no value": one_metric("sum"),
    "NaN": one_metric("gauge", as_double=math.nan),
    "infinite": one_metric("sum", as_double=math.inf),
    "too many attributes": one_metric("sum", as_int=1, attributes=[str(k) for k in range(65)]),
    "absurd scale": one_metric("exponential_histogram", scale=21),
    "absurd count": one_metric("exponential_histogram", scale=5, count=1 << 62, positive=(0, [1 << 62])),
    "absurd zero count": one_metric("exponential_histogram", scale=5, count=1 << 62, zero_count=1 << 62),
    "too many buckets": one_metric("exponential_histogram", scale=5, count=9000, positive=(0, [1] * 9000)),
    "offset beyond 32 bits": one_metric("exponential_histogram", scale=5, count=2, positive=((1 << 31) - 2, [1, 1])),
    "count is not the sum": one_metric("exponential_histogram", scale=5, count=3, positive=(0, [1])),
    "sum is NaN": one_metric("exponential_histogram", scale=5, count=1, sum=math.nan, positive=(0, [1])),
    "buckets for no bounds": one_metric("histogram", count=2, bucket_counts=[1, 1]),
    "a summary": one_metric("summary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_point_that_cannot_be_right_is_refused_alone(name):
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    request.CopyFrom(REFUSED[name])
    request.resource_metrics[0].scope_metrics[0].metrics.add().CopyFrom(
        one_metric("gauge", as_int=1).resource_metrics[0].scope_metrics[0].metrics[0]
    )
    decoded = metric_rows(request, NOW_MS)
    assert decoded.rejected == 1
    assert decoded.reason
    assert "\n" not in decoded.reason
    assert len(records(decoded, "edgekit_metrics_gauge")) == 1
    assert decoded.count == 2


def test_explicit_histograms_are_kept():
    decoded = metric_rows(one_metric("histogram", count=3, sum=4.0, bucket_counts=[1, 2], explicit_bounds=[1.0]), NOW_MS)
    (row,) = records(decoded, "edgekit_metrics_histogram")
    assert (row["n"], row["bounds"], row["counts"], row["minimum"], row["maximum"]) == (3, [1.0], [1, 2], -math.inf, math.inf)


@pytest.mark.parametrize("sequence", ["-1", "x", str(1 << 64), "²"])
def test_a_sequence_that_is_none_refuses_the_batch_not_the_request(sequence):
    request = one_metric("sum", as_int=1)
    request.resource_metrics[0].resource.attributes.add(key="edgekit.sequence").value.string_value = sequence
    request.resource_metrics.add().CopyFrom(one_metric("gauge", as_int=1).resource_metrics[0])
    decoded = metric_rows(request, NOW_MS)
    assert (decoded.rejected, decoded.reason) == (1, "edgekit.sequence is no number of 64 bits")
    assert len(records(decoded, "edgekit_metrics_gauge")) == 1


def empty_points():
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    points = request.resource_metrics.add().scope_metrics.add().metrics.add().sum.data_points
    for _ in range(POINT_LIMIT + 1):
        points.add()
    return request


def empty_groups():
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    request.ParseFromString(b"\x0a\x00" * (POINT_LIMIT + 1))
    return request


@pytest.mark.parametrize("make", [empty_points, empty_groups])
def test_a_small_body_of_very_many_messages_is_refused_before_it_becomes_rows(make, monkeypatch):
    monkeypatch.setattr(_rows, "_add_point", lambda *_: pytest.fail("a point was looked at"))
    with pytest.raises(RequestError, match="more than 100000 entries"):
        metric_rows(make(), NOW_MS)


@pytest.mark.parametrize(
    ("content", "verified", "digest"),
    [
        ({"verified": "host", "bundle_digest": "sha256:1"}, "host", "sha256:1"),
        ({"verification": {"verified": "parser"}}, "parser", ""),
        ({"verified": {"x": 1}, "bundle_digest": 5}, "", ""),
        ({}, "", ""),
    ],
)
def test_receipts_get_columns_of_their_own(otlp, content, verified, digest):
    body = otlp.receipt(content, otlp.resource(), NOW_MS)
    (row,) = records(log_rows(parse("logs", body, "json"), NOW_MS), "edgekit_logs")
    assert (row["event"], row["verified"], row["receipt_digest"], row["severity"]) == ("edgekit.receipt", verified, digest, 9)


def test_other_logs_and_bodies_that_are_no_json_pass():
    request = logs_service_pb2.ExportLogsServiceRequest()
    group = request.resource_logs.add().scope_logs.add()
    group.log_records.add(severity_number=17).body.string_value = "plain"
    group.log_records.add().body.kvlist_value.values.add(key="k").value.int_value = 1
    record = group.log_records.add()
    record.attributes.add(key="event.name").value.string_value = "edgekit.receipt"
    record.body.string_value = "[" * 100_000
    for k in range(65):
        group.log_records.add().attributes.add(key=str(k))
    group.log_records[-1].attributes.extend([group.log_records[-1].attributes[0]] * 65)
    decoded = log_rows(request, NOW_MS)
    rows = records(decoded, "edgekit_logs")
    assert [row["severity"] for row in rows[:2]] == [17, 0]
    assert rows[2]["verified"] == ""
    assert decoded.rejected == 1


def test_long_texts_are_cut():
    request = one_metric("sum", as_int=1, attributes=["k" * 1000])
    request.resource_metrics[0].resource.attributes.add(key="device.id").value.string_value = "d" * 1000
    (row,) = records(metric_rows(request, NOW_MS), "edgekit_metrics_sum")
    assert len(row["device_id"]) == 256
    assert row["attributes"] == {"k" * 128: "k" * 256}
