"""Our clients against our servers, and against servers that misbehave."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from edgekit.errors import (
    BindError,
    DeadlineError,
    EngineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UsageError,
)
from edgekit.protocol import InferRequest, RequestedOutput, Tensor, connect, serve
from edgekit.protocol._remote_errors import error_from_grpc, error_from_http

pytestmark = pytest.mark.slow
X = np.arange(8, dtype=np.float32).reshape(2, 4)
BOTH = pytest.mark.parametrize("scheme", ["http", "grpc"])


def request(model="echo", **fields):
    return InferRequest(model, [Tensor("x", X)], **fields)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def raw_server(answer):
    """A TCP server that gives each connection to ``answer`` in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=answer, args=(connection,))
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def test_health_metadata_and_statistics(client):
    assert client.ready()
    assert client.model_ready("echo")
    assert not client.model_ready("nothing")
    metadata = client.model_metadata("echo")
    assert (metadata.name, metadata.versions, metadata.inputs[0].shape) == ("echo", ["1"], [-1, 4])
    assert client.statistics("echo")[0]["inference_stats"]["success"] == {"count": 3, "ns": 1 << 40}
    assert client.statistics()[0]["name"] == "echo"


def test_infer(client, core):
    text = np.array([b"\xff\0", b"", b"abc"], dtype=object)
    sent = InferRequest(
        "echo", [Tensor("x", X), Tensor("text", text)], "1", "id-7", [RequestedOutput("x"), RequestedOutput("text")], {"k": "v"}
    )
    response = client.infer(sent, 5.0)
    assert (response.model_name, response.model_version, response.id) == ("echo", "1", "id-7")
    np.testing.assert_array_equal(response.outputs[0].data, X)
    assert response.outputs[1].data.tolist() == text.tolist()
    arrived = core.requests[-1]
    assert arrived.parameters["k"] == "v"
    assert 0 < arrived.parameters["timeout"] <= 5_000_000
    assert 0 < arrived.deadline_s - time.monotonic() < 5.0


def test_a_large_tensor_goes_both_ways(client):
    large = np.random.default_rng(0).random((3, 1000, 1000), dtype=np.float32)
    response = client.infer(InferRequest("echo", [Tensor("x", large)]), 30.0)
    np.testing.assert_array_equal(response.outputs[0].data, large)


def test_refusals_keep_their_type(client):
    with pytest.raises(NotFoundError, match="no such model"):
        client.infer(request("nothing"), 5.0)
    with pytest.raises(NotFoundError):
        client.model_metadata("nothing")
    with pytest.raises(RequestError, match="output 'z'"):
        client.infer(request(outputs=[RequestedOutput("z")]), 5.0)
    with pytest.raises(EngineError, match=r"internal error [0-9a-f]{12}") as caught:
        client.infer(request("bug"), 5.0)
    assert "secret" not in str(caught.value)


def test_time_that_has_run_out_is_not_sent(client, core):
    before = len(core.requests)
    with pytest.raises(DeadlineError, match="before it was sent"):
        client.infer(request(deadline_s=time.monotonic() - 1), 5.0)
    assert len(core.requests) == before


def test_start_answers_many_at_once(client):
    done = []
    flights = [client.start(request(id=str(index)), 10.0) for index in range(32)]
    for flight in flights:
        flight.add_done_callback(done.append)
    assert [flight.result(10.0).id for flight in flights] == [str(index) for index in range(32)]
    assert all(flight.done() for flight in flights)
    assert len(done) == 32


def test_start_holds_the_error(client):
    flight = client.start(request("nothing"), 5.0)
    with pytest.raises(NotFoundError):
        flight.result(5.0)
    flight.cancel()  # too late, changes nothing
    with pytest.raises(NotFoundError):
        flight.result(0.0)
    with pytest.raises(DeadlineError):
        client.start(request(deadline_s=time.monotonic() - 1), 5.0).result(1.0)


@BOTH
def test_deadline_cancel_and_close_while_the_server_works(scheme, echo_core):
    with serve(echo_core, ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
        client = connect(f"{scheme}://127.0.0.1:{server.http_port if scheme == 'http' else server.grpc_port}")
        with pytest.raises(DeadlineError):
            client.infer(request("held"), 0.05)
        flight = client.start(request("held"), 30.0)
        with pytest.raises(DeadlineError, match="no answer yet"):
            flight.result(0.01)
        flight.cancel()
        with pytest.raises(UnavailableError, match="cancelled"):
            flight.result(5.0)
        flight = client.start(request("held"), 30.0)
        for _ in range(3):
            assert echo_core.entered.acquire(timeout=5)
        client.close()
        with pytest.raises(UnavailableError):
            flight.result(5.0)
        with pytest.raises(UnavailableError, match="closed"):
            client.infer(request(), 1.0)
        with pytest.raises(UnavailableError, match="closed"):
            client.start(request(), 1.0).result(1.0)
        echo_core.release.set()


@BOTH
def test_nobody_listens(scheme):
    client = connect(f"{scheme}://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError):
        client.infer(request(), 5.0)
    with pytest.raises(UnavailableError):
        client.start(request(), 5.0).result(5.0)
    assert not client.ready()
    client.close()


@BOTH
def test_a_server_that_comes_back_is_used_again(scheme, echo_core):
    server = serve(echo_core, ("127.0.0.1", 0), ("127.0.0.1", 0))
    port = server.http_port if scheme == "http" else server.grpc_port
    client = connect(f"{scheme}://127.0.0.1:{port}")
    client.infer(request(), 5.0)
    server.stop()
    with pytest.raises(UnavailableError):
        client.infer(request(), 5.0)
    again = {"http": None, "grpc": None, scheme: ("127.0.0.1", port)}
    with serve(echo_core, **again):
        deadline_s = time.monotonic() + 5.0
        while not client.ready() and time.monotonic() < deadline_s:
            pass
        assert client.infer(request(), 5.0).outputs
    client.close()


@BOTH
def test_a_server_that_never_answers(scheme):
    released = threading.Event()

    def answer(connection):
        with connection:
            released.wait()

    with raw_server(answer) as port:
        client = connect(f"{scheme}://127.0.0.1:{port}")
        started_s = time.monotonic()
        with pytest.raises((DeadlineError, UnavailableError)):  # gRPC has no connection before the HTTP/2 preface
            client.infer(request(), 0.1)
        assert time.monotonic() - started_s < 2.0
        client.close()
        released.set()


MISBEHAVIOUR = {
    "hangs up": b"",
    "no HTTP": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_an_http_server_that_misbehaves(name):
    def answer(connection):
        with connection:
            connection.recv(65536)
            connection.sendall(MISBEHAVIOUR[name])

    with raw_server(answer) as port:
        client = connect(f"http://127.0.0.1:{port}")
        with pytest.raises((UnavailableError, EngineError)):  # half a head reads as an answer without a body
            client.infer(request(), 2.0)
        client.close()


WRONG = {
    "not JSON": (b"200 OK", b"<html>", EngineError),
    "an answer of another kind": (b"200 OK", b"[]", EngineError),
    "a proxy's page": (b"502 Bad Gateway", b"<html>bad gateway</html>", UnavailableError),
    "a refusal": (b"400 Bad Request", b'{"error": "no"}', RequestError),
    "too busy": (b"429 Too Many Requests", b"", OverloadedError),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_http_server_that_answers_something_else(name):
    status, body, kind = WRONG[name]

    def answer(connection):
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))

    with raw_server(answer) as port:
        client = connect(f"http://127.0.0.1:{port}/prefix/")
        with pytest.raises(kind):
            client.infer(request(), 2.0)
        client.close()


def test_a_kept_connection_that_the_server_dropped_is_replaced():
    connections = []

    def answer(connection):
        connections.append(connection)
        with connection:
            connection.recv(65536)
            body = b"{}"
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(answer) as port:
        client = connect(f"http://127.0.0.1:{port}")
        assert [client.ready() for _ in range(5)] == [True] * 5
        client.close()
    assert len(connections) == 5


def test_error_kinds():
    assert type(error_from_http("u", 503, "OverloadedError", "full")) is OverloadedError
    assert type(error_from_http("u", 503, None, "")) is UnavailableError
    assert type(error_from_http("u", 503, "os.system", "")) is UnavailableError
    assert type(error_from_http("u", 500, "EngineError", "x")) is EngineError
    assert type(error_from_grpc("u", "RESOURCE_EXHAUSTED", "full")) is OverloadedError
    assert type(error_from_grpc("u", "DATA_LOSS", "")) is EngineError


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://host:99999", "grpc://"])
def test_bad_urls(url):
    with pytest.raises(UsageError):
        connect(url)


@BOTH
def test_port_in_use_names_the_flag(scheme, echo_core):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        where = {"http": None, "grpc": None, scheme: address}
        with pytest.raises(BindError, match=rf"port {address[1]} on 127.0.0.1 is in use; expected a free port; .*--{scheme}"):
            serve(echo_core, **where)
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BindError, match="in use"):
        serve(echo_core, ("127.0.0.1", 0), taken.getsockname())
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours(host, echo_core):
    with pytest.raises(BindError, match="cannot be listened on"):
        serve(echo_core, (host, 0), None)


def test_stop_lets_requests_finish_and_leaves_no_thread(echo_core):
    before = set(threading.enumerate())
    server = serve(echo_core, ("127.0.0.1", 0), ("127.0.0.1", 0))
    clients = [connect(f"http://127.0.0.1:{server.http_port}"), connect(f"grpc://127.0.0.1:{server.grpc_port}")]
    flights = [client.start(request("held"), 10.0) for client in clients]
    assert all(echo_core.entered.acquire(timeout=5) for _ in flights)
    stopper = threading.Thread(target=server.stop, args=(10.0,))
    stopper.start()
    assert not server.wait(0.02)
    echo_core.release.set()
    stopper.join()
    assert server.wait(0)
    assert [flight.result(1.0).model_name for flight in flights] == ["held", "held"]
    server.stop()  # a second stop does nothing
    for client in clients:
        client.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # grpcio's own are ending when its stop and close return
        assert not thread.is_alive(), thread
