"""OTLP request bodies to protobuf messages, and answers back. Everything that a sender can make large has a limit here."""

from __future__ import annotations

import zlib
from typing import Any, Literal

from edgekit.errors import EnvironmentMissingError, RequestError

__all__ = ["BODY_LIMIT_BYTES", "UNPACKED_LIMIT_BYTES", "Encoding", "Signal", "answer", "error_body", "inflate", "parse", "request_type"]

BODY_LIMIT_BYTES = 4 << 20  # as sent
UNPACKED_LIMIT_BYTES = 16 << 20  # after gunzip
GRPC_INVALID_ARGUMENT, GRPC_UNAVAILABLE = 3, 14  # google.rpc.Code

Signal = Literal["metrics", "logs"]
Encoding = Literal["json", "protobuf"]


def request_type(signal: Signal) -> Any:
    """The protobuf class of ``Export…ServiceRequest``.

    Raises:
        EnvironmentMissingError: opentelemetry-proto is not installed.
    """
    try:
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("collector", "opentelemetry-proto", "collector") from exc
    return metrics_service_pb2.ExportMetricsServiceRequest if signal == "metrics" else logs_service_pb2.ExportLogsServiceRequest


def inflate(body: bytes, encoding: str) -> bytes:
    """Undo ``Content-Encoding``; never makes more than the limit of bytes, whatever a bomb promises.

    Raises:
        RequestError: not gzip, cut short, too large, or another encoding.
    """
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise RequestError("Content-Encoding", repr(encoding), "gzip or none")
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(body, UNPACKED_LIMIT_BYTES + 1)
    except zlib.error as exc:
        raise RequestError("request body", "not valid gzip", "a gzip body as Content-Encoding says") from exc
    if len(plain) > UNPACKED_LIMIT_BYTES:
        raise RequestError(
            "request body", f"more than {UNPACKED_LIMIT_BYTES >> 20} MiB when unpacked", f"at most {UNPACKED_LIMIT_BYTES >> 20} MiB"
        )
    if not inflater.eof:
        raise RequestError("request body", "gzip data ends early", "a whole gzip body")
    return plain


def parse(signal: Signal, body: bytes, encoding: Encoding) -> Any:
    """One ``Export…ServiceRequest``.

    Raises:
        RequestError: the body is no such message; the text is one line.
    """
    from google.protobuf import json_format, message

    request = request_type(signal)()
    thing = f"OTLP {signal} body"
    try:
        if encoding == "json":
            if body.lstrip()[:1] != b"{":  # the parser would take an empty list for an empty message
                raise ValueError("the body is no JSON object")
            json_format.Parse(body, request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
    except (json_format.ParseError, message.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError, AttributeError) as exc:
        detail = " ".join(str(exc).split())[:200]
        kind = "JSON" if encoding == "json" else "protobuf"
        raise RequestError(thing, f"not valid {kind} ({detail})", f"an Export{signal.title()}ServiceRequest") from exc
    return request


def answer(signal: Signal, rejected: int, reason: str, encoding: Encoding) -> bytes:
    """Body of a 200: empty, or ``partialSuccess`` with how many rows were refused."""
    response = response_message(signal, rejected, reason)
    if encoding == "protobuf":
        return bytes(response.SerializeToString())
    from google.protobuf import json_format

    text: str = json_format.MessageToJson(response, indent=None)
    return text.encode()


def response_message(signal: Signal, rejected: int, reason: str) -> Any:
    """``Export…ServiceResponse``."""
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

    if signal == "metrics":
        response = metrics_service_pb2.ExportMetricsServiceResponse()
        if rejected:
            response.partial_success.rejected_data_points = rejected
    else:
        response = logs_service_pb2.ExportLogsServiceResponse()
        if rejected:
            response.partial_success.rejected_log_records = rejected
    if rejected:
        response.partial_success.error_message = reason
    return response


def error_body(status: int, line: str, encoding: Encoding) -> bytes:
    """``google.rpc.Status`` with one line of text, as OTLP/HTTP wants of errors; written by hand, it has two fields."""
    import json

    code = GRPC_INVALID_ARGUMENT if 400 <= status < 500 and status != 429 else GRPC_UNAVAILABLE
    if encoding == "json":
        return json.dumps({"code": code, "message": line}).encode()
    text = line.encode()
    length, size = bytearray(), len(text)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((0x08, code, 0x12)) + bytes(length) + text
