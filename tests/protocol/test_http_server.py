"""What the HTTP transport does beyond the codecs: paths, methods, limits, codings, headers, damage."""

import gzip
import http.client
import json
import socket
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.protocol import InferRequest, Limits, Tensor, serve
from edgekit.protocol._http_codec import encode_request
from edgekit.protocol._http_exchange import ConnectionLimits
from edgekit.protocol._http_server import HttpTransport

pytestmark = pytest.mark.slow
X = np.arange(4, dtype=np.float32).reshape(1, 4)
JSON_BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}]}).encode()
INFER = "/v2/models/echo/infer"


@pytest.fixture(scope="module")
def small_server(core):
    with serve(core, ("127.0.0.1", 0), None, limits=Limits(body_bytes=10_000)) as running:
        assert running.grpc_port is None
        yield running


@pytest.fixture
def ask(small_server):
    connection = http.client.HTTPConnection("127.0.0.1", small_server.http_port, timeout=10)

    def send(method, path, body=None, headers=None):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    yield send
    connection.close()


def test_endpoints(ask, core):
    assert json.loads(ask("GET", "/v2")[2]) == {
        "name": "echo-server",
        "version": "1.2",
        "extensions": ["binary_tensor_data", "classification", "system_shared_memory", "logging"],
    }
    assert [ask("GET", path)[0] for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready")] == [200] * 3
    assert json.loads(ask("GET", "/v2/health/live")[2]) == {"live": True}
    assert json.loads(ask("GET", "/v2/health/ready")[2]) == {"ready": True}
    assert json.loads(ask("GET", "/v2/models/echo/versions/1/ready")[2]) == {"name": "echo", "ready": True}
    assert json.loads(ask("GET", "/v2/models/echo/versions/1")[2])["platform"] == "edgekit_test"
    assert json.loads(ask("GET", "/v2/models/echo/config")[2])["input"][0]["data_type"] == "TYPE_FP32"
    assert json.loads(ask("GET", "/v2/models/echo/stats")[2])["model_stats"][0]["name"] == "echo"
    assert json.loads(ask("GET", "/v2/models/stats")[2])["model_stats"][0]["inference_count"] == 3
    assert len(json.loads(ask("POST", "/v2/repository/index")[2])) == 2
    assert len(json.loads(ask("POST", "/v2/repository/index", b'{"ready": true}')[2])) == 1
    assert ask("POST", "/v2/repository/models/echo/load", b'{"parameters": {"a": 1}}')[0] == 200
    assert ask("POST", "/v2/repository/models/echo/unload")[0] == 200
    assert core.changes[-2:] == [("load", "echo", {"a": 1}), ("unload", "echo", {})]


def test_infer_in_json(ask, core):
    status, headers, body = ask("POST", "/v2/models/echo/versions/1/infer", JSON_BODY)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}]
    assert core.requests[-1].model_version == "1"
    assert headers["x-edgekit-decision"] == "local  x-evil: 1"
    assert "x-evil" not in headers


def test_deadline_header(ask, core):
    assert ask("POST", INFER, JSON_BODY, {"x-edgekit-deadline-ms": "60000"})[0] == 200
    assert core.requests[-1].deadline_s is not None
    status, _, body = ask("POST", INFER, JSON_BODY, {"x-edgekit-deadline-ms": "soon"})
    assert status == 400
    assert "x-edgekit-deadline-ms" in json.loads(body)["error"]


REFUSALS = {
    "unknown path": ("GET", "/v3", None, {}, 404, "no such endpoint"),
    "unknown path below a model": ("GET", "/v2/models/echo/frob", None, {}, 404, "no such endpoint"),
    "unknown model": ("POST", "/v2/models/no%2Fpe/infer", JSON_BODY, {}, 404, "no/pe"),
    "wrong method": ("GET", INFER, None, {}, 405, "method GET; expected POST"),
    "wrong method of metadata": ("POST", "/v2", None, {}, 405, "expected GET"),
    "unknown coding": ("POST", INFER, JSON_BODY, {"Content-Encoding": "br"}, 415, "'br'; expected identity, gzip or deflate"),
    "damaged gzip": ("POST", INFER, JSON_BODY, {"Content-Encoding": "gzip"}, 400, "damaged compressed data"),
    "truncated gzip": ("POST", INFER, gzip.compress(JSON_BODY)[:-9], {"Content-Encoding": "gzip"}, 400, "truncated compressed data"),
    "gzip bomb": ("POST", INFER, gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}, 413, "more than 10000 bytes"),
    "large body": ("POST", INFER, b" " * 10_001, {}, 413, "10001 bytes; expected at most 10000"),
    "large body in pieces": ("POST", INFER, iter([b" " * 6000] * 2), {}, 413, "more than 10000 bytes"),
    "bad control body": ("POST", "/v2/repository/index", b"[", {}, 400, "request body"),
    "NaN as JSON": ("POST", "/v2/models/nan/infer", JSON_BODY, {}, 400, "output 'y': holds NaN or infinity"),
    "a bug": ("POST", "/v2/models/bug/infer", JSON_BODY, {}, 500, "internal error"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(ask, name):
    method, path, body, headers, status, message = REFUSALS[name]
    got, answer_headers, answer = ask(method, path, body, headers)
    assert got == status
    assert answer_headers["Content-Type"] == "application/json"
    error = json.loads(answer)["error"]
    assert message in error
    assert "secret" not in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)])
def test_codings(ask, coding, compress):
    assert ask("POST", INFER, compress(JSON_BODY), {"Content-Encoding": coding})[0] == 200


def test_too_many_at_once_are_refused(echo_core):
    with serve(echo_core, ("127.0.0.1", 0), None, max_in_flight=1) as server:
        first = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        first.request("POST", "/v2/models/held/infer", JSON_BODY)
        assert echo_core.entered.acquire(timeout=5)
        second = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        second.request("POST", INFER, JSON_BODY)
        refused = second.getresponse()
        assert refused.status == 503
        assert refused.headers["x-edgekit-error"] == "OverloadedError"
        refused.read()
        second.request("GET", "/v2/health/live")  # health still answers
        assert second.getresponse().status == 200
        echo_core.release.set()
        assert first.getresponse().status == 200
        first.close()
        second.close()


def test_expect_continue(small_server):
    with socket.create_connection(("127.0.0.1", small_server.http_port), 10) as sock:
        head = f"POST {INFER} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len(JSON_BODY)}\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(JSON_BODY)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_body_that_ends_early_leaves_the_server_well(small_server, ask):
    with socket.create_connection(("127.0.0.1", small_server.http_port), 10) as sock:
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\n".encode() + JSON_BODY)
    with socket.create_connection(("127.0.0.1", small_server.http_port), 10) as sock:
        sock.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400")
    assert ask("POST", INFER, JSON_BODY)[0] == 200


@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_body_makes_a_500(ask, data):
    message = encode_request(
        InferRequest("m", [Tensor("x", X), Tensor("s", np.array([b"ab", b"c"], dtype=object))]), binary=data.draw(st.booleans())
    )
    body = bytearray(message.body)
    for _ in range(data.draw(st.integers(0, 4))):
        position = data.draw(st.integers(0, len(body)))
        body[position : position + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
    length = data.draw(st.sampled_from([message.header_length, None, -1, 0, 1, 10**9]))
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    assert ask("POST", INFER, bytes(body), headers)[0] in {200, 400, 404}


def test_a_body_that_does_not_come_is_given_up(echo_core):
    transport = HttpTransport(echo_core, "127.0.0.1", 0, Limits(), 4, connections=ConnectionLimits(body_s=0.02))
    with socket.create_connection(("127.0.0.1", transport.port), 10) as sock:
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n123".encode())
        answer = sock.recv(65536)
    transport.stop(0.0)
    assert answer.startswith(b"HTTP/1.1 408")
