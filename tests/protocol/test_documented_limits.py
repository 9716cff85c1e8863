"""The limits on docs/serving.md are those of the code; that the code holds to them is tested where it does."""

from pathlib import Path

import pytest

from edgekit.protocol import (
    Limits,
    _grpc_connection,
    _grpc_dispatch,
    _grpc_owner,
    _grpc_server,
    _grpc_wire,
    _http_codec,
    _http_routes,
    _shared_memory,
    _trace,
    _trace_files,
)
from edgekit.protocol._compression import LEAST_BYTES
from edgekit.protocol._http_exchange import ConnectionLimits

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ROWS = {cells[1].strip(): cells[2].strip() for line in PAGE.splitlines() if len(cells := line.split("|")) > 3}
MESSAGE, HTTP = Limits(), ConnectionLimits()


def size(count):
    """``256 MiB``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            assert count % unit == 0
            return f"{count // unit} {name}"
    return f"{count} bytes"


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        ("request line, head, fields", f"{size(HTTP.head.line_bytes)}, {size(HTTP.head.head_bytes)}, {HTTP.head.fields}"),
        ("body, also after decompression", f"{size(MESSAGE.body_bytes)}; {size(_http_routes._CONTROL_BYTES)} where it is no inference"),
        (
            f"JSON of it; beyond {size(_http_codec._MANY_OBJECTS_BYTES)} of JSON, objects in it",
            f"{size(MESSAGE.json_bytes)}; {_http_codec._OBJECTS_OF_TENSOR * (MESSAGE.tensors + 1):,}",
        ),
        ("tensors of a request, dimensions, BYTES elements", f"{MESSAGE.tensors}, {MESSAGE.dims}, {MESSAGE.values >> 20} Mi"),
        ("connections", f"{HTTP.connections:,}, and what the process's limit of descriptors leaves"),
        ("requests of one connection under way", str(HTTP.pipeline)),
        ("head, body", f"{HTTP.head_s:g} s, {HTTP.body_s:g} s"),
        ("idle connection", f"{HTTP.idle_s:g} s"),
        ("shared memory regions", str(_shared_memory._MAX_REGIONS)),
        (
            "message, also after decompression",
            f"{size(MESSAGE.body_bytes)} and {size(_grpc_wire.message_limit_bytes(MESSAGE) - MESSAGE.body_bytes)} for the rest",
        ),
        (
            "values in typed contents, BYTES elements; requests that are no inference",
            f"{MESSAGE.values >> 20} Mi; {size(_grpc_dispatch._CONTROL_BYTES)}",
        ),
        (
            "connections; calls of one; of all",
            f"{_grpc_server._MAX_CONNECTIONS:,}; {_grpc_owner._MAX_STREAMS}; {_grpc_connection._MAX_CALLS:,}",
        ),
        ("header fields of a call", f"128, {size(_grpc_owner._MAX_HEADER_BYTES)}"),
        (
            f"WINDOW_UPDATE, pieces of a message below {_grpc_connection._SMALL_FRAME_BYTES} bytes",
            f"{_grpc_connection._CREDIT:,} a second, and {_grpc_connection._CREDIT_OF_MESSAGE} for each message sent and one for each KiB of it",
        ),
        ("request of a unary call", f"{_grpc_connection._REQUEST_S:g} s"),
    ],
)
def test_a_table_says_what_the_code_says(row, limit):
    assert ROWS[row] == limit


@pytest.mark.parametrize(
    "sentence",
    [
        f"they hold at least {size(LEAST_BYTES)}",
        f"gets answers of {size(LEAST_BYTES)} and more compressed",
        f"Up to {_grpc_dispatch._STREAM_RUNNING} requests of a stream are under way",
        f"when the folder holds {_trace_files.MOST_FILES:,} files or {size(_trace_files.MOST_BYTES)}",
        f"`morning.1`, ...), {_trace.MOST_TRACES:,} at most",
        f"{size(_grpc_connection._CLOGGED_BYTES)}, or {_grpc_connection._STALL_S:g} s without a byte taken",
        f"{size(HTTP.write_buffer_bytes)} | the same; closed after {HTTP.write_s:g} s",
        f"{size(HTTP.buffered_bytes)}, a quarter of the machine's memory where that is less | 503",
        f"{size(_grpc_dispatch._UNDER_WAY_BYTES)}, a quarter of the machine's memory where that is less | RESOURCE_EXHAUSTED",
    ],
)
def test_the_text_says_what_the_code_says(sentence):
    assert sentence in " ".join(PAGE.split())
