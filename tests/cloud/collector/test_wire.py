"""OTLP bodies: bombs, garbage, and answers that protobuf reads."""

import contextlib
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from edgekit.cloud.collector._wire import UNPACKED_LIMIT_BYTES, answer, error_body, inflate, parse
from edgekit.errors import RequestError


@given(st.binary(max_size=2000))
def test_inflate_undoes_gzip_and_leaves_plain_bodies(data):
    assert inflate(gzip.compress(data), "gzip") == data
    assert inflate(data, "") == inflate(data, "identity") == data


@pytest.mark.parametrize(
    ("body", "encoding", "found"),
    [
        (b"not gzip", "gzip", "not valid gzip"),
        (gzip.compress(b"x" * 100)[:-9], "gzip", "ends early"),
        (b"", "gzip", "ends early"),
        (gzip.compress(b"\0" * (UNPACKED_LIMIT_BYTES + 1)), "gzip", "more than 16 MiB"),
        (b"", "br", "'br'"),
    ],
    ids=["not gzip", "cut off", "empty", "a bomb", "another coding"],
)
def test_what_is_no_gzip_or_a_bomb_is_refused(body, encoding, found):
    with pytest.raises(RequestError, match=found):
        inflate(body, encoding)


DEEP_JSON = b'{"resourceMetrics":[{"resource":{"attributes":[{"key":"k","value":' + b'{"arrayValue":{"values":[' * 5000
DEEP_PROTOBUF = b""
for _ in range(300):  # AnyValue.array_value.values, nested
    inner = b"\x0a" + bytes([len(DEEP_PROTOBUF) & 0x7F | 0x80, len(DEEP_PROTOBUF) >> 7]) + DEEP_PROTOBUF
    DEEP_PROTOBUF = b"\x2a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"[]", "json"),
        (b"null", "json"),
        (b'{"resourceMetrics":{}}', "json"),
        (b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"sum":{"dataPoints":[{"asDouble":"x"}]}}]}]}]}', "json"),
        (b"\xff\xfe", "json"),
        (DEEP_JSON, "json"),
        (b"[" * 200_000, "json"),
        (b"\xff" * 40, "protobuf"),
        (b"\x0a\x7f", "protobuf"),
    ],
)
def test_garbage_is_one_clear_line(body, encoding):
    with pytest.raises(RequestError, match="OTLP metrics body: not valid") as caught:
        parse("metrics", body, encoding)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_protobuf_nested_beyond_reason_is_refused():
    attribute = b"\x0a\x01k\x12" + bytes([len(DEEP_PROTOBUF) & 0x7F | 0x80, len(DEEP_PROTOBUF) >> 7]) + DEEP_PROTOBUF
    resource = b"\x0a" + bytes([len(attribute) & 0x7F | 0x80, len(attribute) >> 7]) + attribute
    group = b"\x0a" + bytes([len(resource) & 0x7F | 0x80, len(resource) >> 7]) + resource
    body = b"\x0a" + bytes([len(group) & 0x7F | 0x80, len(group) >> 7]) + group
    with pytest.raises(RequestError, match="not valid protobuf"):
        parse("metrics", body, "protobuf")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_request_error(body):
    for encoding in ("json", "protobuf"):
        with contextlib.suppress(RequestError):
            parse("metrics", body, encoding)


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_answers(signal):
    assert json.loads(answer(signal, 0, "", "json")) == {}
    assert answer(signal, 0, "", "protobuf") == b""
    partial = json.loads(answer(signal, 3, "why", "json"))["partialSuccess"]
    assert partial == {"rejectedDataPoints" if signal == "metrics" else "rejectedLogRecords": "3", "errorMessage": "why"}


def test_protobuf_answer_is_readable():
    response = metrics_service_pb2.ExportMetricsServiceResponse.FromString(answer("metrics", 3, "why", "protobuf"))
    assert response.partial_success.rejected_data_points == 3


@pytest.mark.parametrize("text", ["short", "ü" * 70, "x" * 20_000])
def test_error_is_a_google_rpc_status(text):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="test_status.proto", package="t", syntax="proto3")
    message = file.message_type.add(name="Status")
    message.field.add(name="code", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=1)
    message.field.add(name="message", number=2, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    status_type = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Status"))
    status = status_type.FromString(error_body(400, text, "protobuf"))
    assert (status.code, status.message) == (3, text)
    assert json.loads(error_body(503, text, "json")) == {"code": 14, "message": text}
