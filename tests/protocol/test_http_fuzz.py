"""Seeded noise on the wire: whatever comes, the server stays well, says what is wrong, and never answers 500."""

import contextlib
import http.client
import io
import socket
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.protocol import InferRequest, Limits, Tensor, serve
from edgekit.protocol._http_codec import encode_request
from tests.protocol.conftest import SubmittingEcho

pytestmark = pytest.mark.slow
X = np.arange(4, dtype=np.float32).reshape(1, 4)
GOOD_STATUSES = {200, 400, 401, 404, 405, 408, 411, 413, 414, 415, 417, 431, 501, 503, 505}
FUZZ = settings(
    derandomize=True, deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def server():
    core = SubmittingEcho()
    with serve(core, ("127.0.0.1", 0), None, limits=Limits(body_bytes=100_000)) as running:
        yield running


def messages():
    message = encode_request(InferRequest("echo", [Tensor("x", X), Tensor("s", np.array([b"ab", b"c"], dtype=object))]))
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nInference-Header-Content-Length: {message.header_length}\r\n"
    plain = head.encode() + b"Content-Length: %d\r\n\r\n" % len(message.body) + message.body
    cut = len(message.body) // 2
    parts = (message.body[:cut], message.body[cut:], b"")
    chunked = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    get = b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\nX-Long: " + b"a" * 50 + b"\r\n\r\n"
    register = (
        b'POST /v2/systemsharedmemory/region/r/register HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\n\r\n{"key": "/no", "byte_size": 64}'
    )
    logs = b'POST /v2/logging HTTP/1.1\r\nHost: h\r\nContent-Length: 15\r\n\r\n{"log_file": 1}'
    return [plain, chunked, get, register, logs]


MESSAGES = messages()


def conversation(port, raw, cut):
    """All statuses that come back for ``raw``, sent in two pieces; the client closes its side after it."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        with contextlib.suppress(ConnectionError):  # the server may have said enough
            sock.sendall(raw[:cut])
            sock.sendall(raw[cut:])
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(1 << 16):
                received += piece
    statuses = []
    while received.startswith(b"HTTP/1.1 "):
        head, _, rest = received.partition(b"\r\n\r\n")
        statuses.append(int(head[9:12]))
        fields = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n"))
        received = rest[int(fields.get("Content-Length", 0)) if statuses[-1] != 100 else 0 :]
    assert received == b""  # nothing but whole answers
    return statuses


@FUZZ
@given(st.data())
def test_mutated_requests(server, data):
    raw = bytearray(b"".join(data.draw(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3))))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(raw)))
        piece = data.draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"\r\n", b"\n", b"\r\n\r\n", b"\0", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b": ", b"999999999"]
            )
        )
        raw[position : position + data.draw(st.integers(0, 6))] = piece
    statuses = conversation(server.http_port, bytes(raw), data.draw(st.integers(0, len(raw))))
    assert set(statuses) <= GOOD_STATUSES | {100}


@FUZZ
@given(st.binary(max_size=300), st.integers(0, 300))
def test_noise(server, raw, cut):
    assert set(conversation(server.http_port, raw, cut)) <= GOOD_STATUSES


@FUZZ
@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=6), st.data())
def test_good_requests_are_all_answered_however_they_are_cut(server, chosen, data):
    raw = b"".join(chosen)
    expected = [200 if message[:4] == b"GET " or b"/infer" in message[:40] else 400 for message in chosen]
    assert conversation(server.http_port, raw, data.draw(st.integers(0, len(raw)))) == expected


def events(body):
    return b"POST /v2/models/echo/generate_stream HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


FOUND = {
    "bytes that are not UTF-8 in a parameter": events(b'{"x": [0.5], "parameters": {"sequence_i\xb0": 5}}'),
    "the same as an id": events(b'{"x": [0.5], "id": "\xb0"}'),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_longer_runs_found(server, name):
    """Of ``python -m tests.protocol.fuzz``: each was answered with 500."""
    assert conversation(server.http_port, FOUND[name], 0) == [400]


def test_the_server_is_well_after_all_that(server):
    for _ in range(3):
        assert conversation(server.http_port, MESSAGES[0], 10) == [200]


def test_clients_that_vanish_in_the_middle(server):
    random = np.random.default_rng(0)
    for _ in range(200):
        message = MESSAGES[int(random.integers(len(MESSAGES)))]
        with socket.create_connection(("127.0.0.1", server.http_port), 10) as sock:
            sock.sendall(message[: int(random.integers(1, len(message) + 1))])
            if random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    transport = server._transports[0]
    deadline_s = time.monotonic() + 5
    while transport._application.connections:
        assert time.monotonic() < deadline_s
    assert transport._application.budget.used == 0
    assert conversation(server.http_port, MESSAGES[0], 10) == [200]
