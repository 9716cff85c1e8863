"""What small bodies may cost: memory is counted, and what would take too much is refused while others are answered."""

import contextlib
import gc
import gzip
import http.client
import json
import threading

import grpc
import numpy as np
import pytest

from edgekit.errors import OverloadedError, RequestError
from edgekit.protocol import InferRequest, Limits, Tensor, serve
from edgekit.protocol._byte_budget import ByteBudget, Charge
from edgekit.protocol._compression import WINDOW_BITS, inflate
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._http_codec import decode_request, encode_request
from edgekit.protocol._http_exchange import ConnectionLimits
from edgekit.protocol._http_server import HttpTransport
from edgekit.protocol._tensors import array_from_raw
from tests.protocol.grpc_memory import INFER, STREAM_INFER, Client, HoldingCore, Peer, infer_message, request_headers
from tests.protocol.waiting import until


def test_a_budget_is_never_exceeded_and_comes_back():
    budget = ByteBudget(100)
    overdrawn = []

    def work():
        for _ in range(300):
            charge = Charge(budget)
            try:
                charge.take(40)
                charge.take(30)
                charge.give(10)
            except OverloadedError:
                pass
            overdrawn.append(budget.used > 100)
            charge.give_back()
            assert charge.taken == 0

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0
    assert not any(overdrawn)
    assert budget.take(100)
    assert not budget.take(1)


def test_json_and_single_values_have_limits_of_their_own():
    limits = Limits(json_bytes=200, values=3)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
    assert decode_request(body.ljust(200), None, "m", limits=limits)
    with pytest.raises(RequestError, match="JSON of the request: 201 bytes; expected at most 200; send the tensors in binary form"):
        decode_request(body.ljust(201), None, "m", limits=limits)
    with pytest.raises(RequestError, match="JSON of the request"):
        decode_request(body.ljust(300), "201", "m", limits=limits)
    assert len(array_from_raw("x", "BYTES", [3], bytes(12), limits)) == 3
    with pytest.raises(RequestError, match="4 elements; expected at most 3"):
        array_from_raw("x", "BYTES", [4], bytes(16), limits)


def packed(count):
    data = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [count], "data": [0] * count}]}).encode()
    return gzip.compress(data), len(data)


@pytest.fixture
def ask():
    """Send a body; the connection, whose answer is to come."""
    with contextlib.ExitStack() as opened:

        def send(port, body, path="/v2/models/held/infer", encoding="gzip"):
            connection = opened.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))
            connection.request("POST", path, body, {"Content-Encoding": encoding})
            return connection

        yield send


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["submitting", "blocking"])
def test_what_comes_out_of_small_bodies_is_counted(submitting_core, echo_core, ask, kind):
    core = submitting_core if kind == "submitting" else echo_core
    body, size = packed(100_000)
    most = 7 * size  # half of it for the numbers of one that is read, while two others wait
    transport = HttpTransport(core, "127.0.0.1", 0, Limits(), 8, connections=ConnectionLimits(buffered_bytes=most))
    budget = transport._application.budget
    try:
        waiting = []
        for _ in range(3):
            waiting.append(ask(transport.port, body))
            assert core.entered.acquire(timeout=20)
        until(lambda: budget.used < 4 * size)
        assert budget.used >= 3 * size
        late = ask(transport.port, body).getresponse()
        assert late.status == 503
        assert b"too many bytes" in late.read()
        small = ask(transport.port, packed(10)[0], "/v2/models/echo/infer").getresponse()
        assert small.status == 200
        core.release.set()
        assert [connection.getresponse().status for connection in waiting] == [200, 200, 200]
        until(lambda: budget.used == 0)
    finally:
        core.release.set()
        transport.stop(0)


@pytest.mark.slow
def test_compressed_tensors_are_not_counted_as_json(submitting_core):
    x = np.arange(500_000, dtype=np.float32)
    transport = HttpTransport(submitting_core, "127.0.0.1", 0, Limits(), 8, connections=ConnectionLimits(buffered_bytes=4 * x.nbytes))
    try:
        message = encode_request(InferRequest("echo", [Tensor("x", x)]))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", transport.port, timeout=30)) as connection:
            fields = {**message.headers(), "Content-Encoding": "gzip"}
            connection.request("POST", "/v2/models/echo/infer", gzip.compress(message.body, 1), fields)
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.read().endswith(x.tobytes())
    finally:
        transport.stop(0)


@pytest.mark.slow
def test_who_leaves_while_its_body_is_read_holds_nothing(submitting_core, ask):
    transport = HttpTransport(submitting_core, "127.0.0.1", 0, Limits(), 8)
    try:
        for _ in range(5):
            ask(transport.port, packed(50_000)[0]).close()
        ask(transport.port, packed(10)[0], "/v2/models/echo/infer").getresponse()
        submitting_core.release.set()
        until(lambda: transport._application.budget.used == 0 and not transport._application._pool._work_queue.qsize())
    finally:
        transport.stop(0)
    assert transport._application.budget.used == 0


def test_large_grpc_messages_are_counted_until_they_are_answered():
    peer = Peer(HoldingCore())
    dispatcher = peer.owner.dispatcher
    dispatcher.budget.most = 1_000_000
    client = Client(peer)
    first = [client.call(path, infer_message("held", 100_000, id="a")) for path in (INFER, STREAM_INFER)]
    assert dispatcher.budget.used > 800_000
    refused = client.call(INFER, infer_message("held", 100_000))
    assert client.status(refused)[0] == 8
    assert client.status(client.call(INFER, infer_message("echo", 1000)))[0] == 0
    client.reset(first[0])
    assert dispatcher.budget.used < 500_000
    done = peer.core.held[1][1]
    done(RequestError("x", "refused"))
    client.pump()
    assert dispatcher.budget.used == 0
    peer.close()


def test_grpc_messages_that_grow_are_counted():
    peer = Peer(HoldingCore(), limits=Limits())
    dispatcher = peer.owner.dispatcher
    dispatcher.budget.most = 3_000_000
    client = Client(peer)
    for size, status in ((100_000, 0), (1_000_000, 8), (100_000, 0)):
        data = gzip.compress(infer_message("echo", size) if size < 1_000_000 else infer_message("echo", 1) + bytes(8_000_000))
        call = client.engine.send_request(request_headers(INFER, {"grpc_encoding": "gzip"}))
        client.engine.send_data(call, b"\1" + len(data).to_bytes(4, "big") + data, end_stream=True)
        until(lambda call=call: client.pump() or call in client.ended)
        assert client.status(call)[0] == status
        assert dispatcher.budget.used == 0
    peer.close()


@pytest.mark.slow
def test_what_is_no_inference_is_short(submitting_core, ask):
    transport = HttpTransport(submitting_core, "127.0.0.1", 0, Limits(), 8)
    try:
        assert ask(transport.port, gzip.compress(bytes(5 << 20)), "/v2/logging").getresponse().status == 413
        assert ask(transport.port, b" " * (5 << 20), "/v2/repository/index", "identity").getresponse().status == 413
    finally:
        transport.stop(0)


def test_json_of_many_objects_is_not_read():
    entry = b'{"name":"a","datatype":"FP32","shape":[]}'
    body = b'{"inputs":[' + b",".join([entry] * 30_000) + b"]}"
    with pytest.raises(RequestError, match="30001 objects"):
        decode_request(body, None, "m")
    with pytest.raises(RequestError, match="inputs: 300 of them"):
        decode_request(b'{"inputs":[' + b",".join([entry] * 300) + b"]}", None, "m")
    text = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["{" * 10_000]}
    assert decode_request(json.dumps({"inputs": [text]}).encode(), None, "m").inputs


def test_what_is_inflated_is_counted_before_it_is_there():
    budget = ByteBudget(3 << 20)
    for size, fits in ((1 << 20, True), (10 << 20, False)):
        charge = Charge(budget)
        data = gzip.compress(bytes(size))
        if fits:
            assert len(inflate("body", data, WINDOW_BITS["gzip"], 64 << 20, charge)) == size
            assert charge.taken == size
        else:
            with pytest.raises(OverloadedError):
                inflate("body", data, WINDOW_BITS["gzip"], 64 << 20, charge)
        charge.give_back()
        assert budget.used == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["submitting", "blocking"])
def test_a_refused_request_is_not_kept_for_the_collector(submitting_core, echo_core, kind):
    """An error holds the frames that it went through, and they hold the request: nothing may hold the error in a circle."""
    core = submitting_core if kind == "submitting" else echo_core
    good = encode_request(InferRequest("echo", [Tensor("x", np.zeros(100_000, np.float32))]))
    bad = good.body[: good.header_length] + good.body[good.header_length : -4]
    message = message_classes()["ModelInferRequest"](model_name="echo")
    message.inputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.extend(range(100_000))
    with serve(core, ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
        gc.collect()
        gc.disable()
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)) as connection:
                for headers, body in ((good.headers(), bad), ({"Content-Encoding": "gzip", **good.headers()}, gzip.compress(bad))):
                    connection.request("POST", "/v2/models/echo/infer", body, headers)
                    answer = connection.getresponse()
                    assert (answer.status, answer.read()[:2]) == (400, b'{"')
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                infer = channel.unary_unary(INFER, lambda sent: sent.SerializeToString())
                with pytest.raises(grpc.RpcError, match="100000 values"):
                    infer(message, timeout=30)
            until(lambda: not [found for found in gc.get_objects() if isinstance(found, RequestError)])
        finally:
            gc.enable()
