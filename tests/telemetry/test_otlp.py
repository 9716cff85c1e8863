"""The JSON that we write by hand, read back by the protobuf library's own JSON parser."""

import json
import math

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from edgekit.telemetry import Meter
from edgekit.telemetry._otlp import Resource, encode_metrics, encode_receipt


def parse(batch):
    return json_format.Parse(batch.body, metrics_service_pb2.ExportMetricsServiceRequest())


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def test_every_kind_of_point_is_what_protobuf_reads():
    meter = Meter(start_ns=5)
    meter.counter("c", "1", "what").add(2.5, {"s": "ü", "b": True, "i": 7, "f": 0.5})
    meter.gauge("g", "By").set(-3)
    histogram = meter.histogram("h")
    for value in (0.0, 1.0, 1.5, 100.0):
        histogram.record(value)
    (batch,) = encode_metrics(meter.collect(9), Resource({"device.id": "d"}))
    assert batch.rows == 3
    (resource_metrics,) = parse(batch).resource_metrics
    assert attributes(resource_metrics.resource.attributes) == {"device.id": "d", "edgekit.sequence": 0}
    metrics = {metric.name: metric for metric in resource_metrics.scope_metrics[0].metrics}
    (point,) = metrics["c"].sum.data_points
    assert (point.as_double, point.start_time_unix_nano, point.time_unix_nano) == (2.5, 5, 9)
    assert attributes(point.attributes) == {"s": "ü", "b": True, "i": 7, "f": 0.5}
    assert (metrics["c"].sum.aggregation_temporality, metrics["c"].sum.is_monotonic) == (1, True)
    assert (metrics["c"].unit, metrics["c"].description) == ("1", "what")
    assert metrics["g"].gauge.data_points[0].as_double == -3
    assert metrics["h"].exponential_histogram.aggregation_temporality == 1
    (point,) = metrics["h"].exponential_histogram.data_points
    assert (point.count, point.zero_count, point.sum, point.min, point.max, point.scale) == (4, 1, 102.5, 0, 100, 5)
    assert sum(point.positive.bucket_counts) == 3
    assert point.positive.offset == -1, "1.0 is the inclusive top of bucket -1"
    assert len(point.positive.bucket_counts) == 1 + math.ceil(math.log2(100) * 32)


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.booleans(), st.integers(), st.floats()), max_size=5))
def test_any_attributes_survive(pairs):
    (batch,) = encode_metrics(_one_point(), Resource(pairs))
    read = attributes(parse(batch).resource_metrics[0].resource.attributes)
    for key, value in pairs.items():
        exact = (
            isinstance(value, str | bool)
            or (isinstance(value, int) and abs(value) < 1 << 62)
            or (isinstance(value, float) and math.isfinite(value))
        )
        assert read[key] == (value if exact else read[key])


def _one_point():
    meter = Meter(start_ns=0)
    meter.counter("c").add()
    return meter.collect(1)


def test_batches_are_bounded_numbered_and_lose_nothing():
    meter = Meter(series_limit=2000, start_ns=0)
    histogram = meter.histogram("h")
    for k in range(500):
        for value in (1e-6 * (k + 1), 1e3):
            histogram.record(value, {"series": k, "text": "x" * 200})
    resource = Resource({"device.id": "d"})
    batches = encode_metrics(meter.collect(1), resource, 256 << 10)
    assert len(batches) > 4
    assert max(len(batch.body) for batch in batches) <= 256 << 10
    seen, sequences = [], []
    for batch in batches:
        (resource_metrics,) = parse(batch).resource_metrics
        sequences.append(attributes(resource_metrics.resource.attributes)["edgekit.sequence"])
        points = resource_metrics.scope_metrics[0].metrics[0].exponential_histogram.data_points
        assert len(points) == batch.rows
        seen += [attributes(point.attributes)["series"] for point in points]
    assert sorted(seen) == list(range(500))
    assert sequences == list(range(len(batches)))
    assert encode_metrics([], resource) == []


def test_receipt_is_a_log_record():
    receipt = {"verified": "host", "seconds": 1.5, "path": pytest, "samples": [1, 2]}
    batch = encode_receipt(receipt, Resource({"device.id": "d"}), 77)
    request = json_format.Parse(batch.body, logs_service_pb2.ExportLogsServiceRequest())
    (record,) = request.resource_logs[0].scope_logs[0].log_records
    assert (record.time_unix_nano, record.severity_number) == (77, 9)
    assert attributes(record.attributes) == {"event.name": "edgekit.receipt"}
    assert json.loads(record.body.string_value) == {**receipt, "path": str(pytest)}
