"""grpcio's clients against our server: deadlines, cancellation, sizes, compression, TLS, token, unix sockets, health, drain."""

import contextlib
import socket
import ssl
import threading
import time

import grpc
import numpy as np
import pytest

from edgekit.errors import StorageError
from edgekit.protocol import Access, InferRequest, Limits, Tensor, serve
from edgekit.protocol._grpc_codec import decode_response, encode_request
from edgekit.protocol._grpc_messages import message_classes, methods
from tests.protocol.test_http_security import NO_OPENSSL, certificates

__all__ = ["certificates"]
pytestmark = pytest.mark.slow
X = np.arange(8, dtype=np.float32).reshape(2, 4)
HEALTH = "/grpc.health.v1.Health/Check"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(params=["submitting", "blocking"])
def core(request, submitting_core, echo_core):
    return submitting_core if request.param == "submitting" else echo_core


@pytest.fixture
def server(core):
    with serve(core, None, ("127.0.0.1", 0)) as running:
        yield running
        core.release.set()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=UNLIMITED) as opened:
        yield opened


@contextlib.contextmanager
def opened(core, **options):
    """A channel to a server of its own."""
    with (
        serve(core, None, ("127.0.0.1", 0), **options) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=UNLIMITED) as channel,
    ):
        yield channel


def closes(connection):
    """The other side closes without a byte."""
    try:
        return connection.recv(100) == b""
    except OSError:
        return True


def rpc(channel, name):
    method = methods()[name]
    make = channel.stream_stream if method.streaming else channel.unary_unary
    return make(method.path(name), method.request.SerializeToString, method.response.FromString)


def message(model="echo", array=X, **fields):
    return encode_request(InferRequest(model, [Tensor("x", array)], **fields))


def test_deadline_and_cancellation(channel, core):
    infer = rpc(channel, "ModelInfer")
    assert infer(message(), timeout=10).outputs  # connected: the time below is the request's own
    with pytest.raises(grpc.RpcError) as caught:
        infer(message("held", id="d"), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert core.requests[-1].deadline_s - time.monotonic() < 0.5
    call = infer.future(message("held", id="c"), timeout=10)
    assert core.entered.acquire(timeout=5)
    assert core.entered.acquire(timeout=5)
    call.cancel()
    if hasattr(core, "cancelled"):  # before the release: a request answered first would no longer be there to cancel
        assert core.cancels.acquire(timeout=5)
        assert core.cancels.acquire(timeout=5)
        assert core.cancelled == ["d", "c"]
    core.release.set()
    assert infer(message(), timeout=10).outputs


def test_sizes_up_to_the_limit(core):
    with opened(core, limits=Limits(body_bytes=40 << 20)) as channel:
        infer = rpc(channel, "ModelInfer")
        for size in (0, 1, 16_000, 16_384, 70_000, 1 << 20, 10_000_000):
            array = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
            (tensor,) = decode_response(infer(message(array=array), timeout=60)).outputs
            np.testing.assert_array_equal(tensor.data, array)
        with pytest.raises(grpc.RpcError) as caught:
            infer(message(array=np.zeros(11 << 20, np.float32)), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [8, 2_000, 1 << 20])  # as it is, compressed in the loop, compressed in a thread
def test_compressed_messages(channel, compression, size):
    zeros = np.zeros(size, np.float32)
    answer, call = rpc(channel, "ModelInfer").with_call(message(array=zeros), compression=compression, timeout=30)
    assert answer.raw_output_contents[0] == zeros.tobytes()
    assert "x-edgekit-decision" in dict(call.trailing_metadata())
    replies = list(
        rpc(channel, "ModelStreamInfer")(iter([message(array=zeros, id=str(i)) for i in range(5)]), compression=compression, timeout=30)
    )
    assert [reply.infer_response.id for reply in replies] == list("01234")
    assert all(reply.infer_response.raw_output_contents[0] == zeros.tobytes() for reply in replies)


def test_a_compressed_bomb_is_refused(core):
    with opened(core, limits=Limits(body_bytes=100_000)) as channel:
        infer = rpc(channel, "ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(message(array=np.zeros(1 << 20, np.float32)), compression=grpc.Compression.Gzip, timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "after decompression" in caught.value.details()


def test_many_streams_on_one_connection(channel):
    infer = rpc(channel, "ModelInfer")
    calls = [infer.future(message(id=str(index)), timeout=30) for index in range(600)]  # more than one connection may have open
    codes = [call.code() for call in calls]  # waits for each
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}  # a blocking core has 64 threads
    assert grpc.StatusCode.OK in codes  # of the first that arrive, which need not be those that were begun first
    assert all(call.result().id == str(index) for index, call in enumerate(calls) if codes[index] is grpc.StatusCode.OK)


def test_a_stream_runs_both_ways_at_once(channel):
    turn = threading.Semaphore(1)

    def requests():
        for index in range(20):
            assert turn.acquire(timeout=10)  # the next goes out when the last has been answered
            yield message(id=str(index))

    seen = []
    for reply in rpc(channel, "ModelStreamInfer")(requests(), timeout=30):
        seen.append(reply.infer_response.id)
        turn.release()
    assert seen == [str(index) for index in range(20)]


def test_big_messages_on_a_stream(channel):
    array = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    replies = list(rpc(channel, "ModelStreamInfer")(iter([message(array=array, id=str(index)) for index in range(6)]), timeout=60))
    assert sorted(reply.infer_response.id for reply in replies) == list("012345")
    assert all(reply.infer_response.raw_output_contents[0] == array.tobytes() for reply in replies)


def test_the_decision_is_in_the_trailers(channel):
    _, call = rpc(channel, "ModelInfer").with_call(message(), timeout=10)
    assert dict(call.trailing_metadata())["x-edgekit-decision"] == "local  x-evil: 1"


def test_the_standard_health_service(channel):
    check = channel.unary_unary(HEALTH)
    assert check(b"", timeout=10) == b"\x08\x01"
    name = b"inference.GRPCInferenceService"
    assert check(b"\x0a" + bytes([len(name)]) + name, timeout=10) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\x0a\x04nope", timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_token(core):
    with opened(core, access=Access(token="secret")) as channel:
        infer = rpc(channel, "ModelInfer")
        for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "secret")]):
            with pytest.raises(grpc.RpcError) as caught:
                infer(message(), timeout=10, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert infer(message(), timeout=10, metadata=[("authorization", "Bearer secret")]).outputs
        assert rpc(channel, "ServerReady")(message_classes()["ServerReadyRequest"](), timeout=10).ready
        with pytest.raises(grpc.RpcError):
            rpc(channel, "ServerMetadata")(message_classes()["ServerMetadataRequest"](), timeout=10)


@NO_OPENSSL
def test_tls(certificates, core):
    ca, certificate, key, client_certificate, client_key = certificates
    with open(ca, "rb") as file:
        root = file.read()
    with serve(core, None, ("127.0.0.1", 0), access=Access(certificate, key)) as server:
        address = f"localhost:{server.grpc_port}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(root), UNLIMITED) as channel:
            assert rpc(channel, "ModelInfer")(message(array=np.zeros(1 << 20, np.float32)), timeout=30).outputs
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
            rpc(channel, "ModelInfer")(message(), timeout=2)
        context = ssl.create_default_context(cafile=ca)  # offers no h2
        with (
            socket.create_connection(("127.0.0.1", server.grpc_port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as other,
        ):
            assert closes(other)
    with serve(core, None, ("127.0.0.1", 0), access=Access(certificate, key, client_ca=ca)) as server:
        address = f"localhost:{server.grpc_port}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(root)) as channel, pytest.raises(grpc.RpcError):
            rpc(channel, "ModelInfer")(message(), timeout=2)
        with open(client_certificate, "rb") as file, open(client_key, "rb") as other:
            mutual = grpc.ssl_channel_credentials(root, other.read(), file.read())
        with grpc.secure_channel(address, mutual) as channel:
            assert rpc(channel, "ModelInfer")(message(), timeout=30).outputs
    with pytest.raises(StorageError, match="No such file"):
        serve(core, None, ("127.0.0.1", 0), access=Access("/nowhere.pem"))


def test_a_unix_socket(tmp_path, core):
    path = tmp_path / "grpc.sock"
    with serve(core, None, (f"unix:{path}", 0)) as server:
        assert server.grpc_port == 0
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert rpc(channel, "ModelInfer")(message(id="u"), timeout=10).id == "u"
    assert not path.exists()


def test_stopping_finishes_what_runs_and_ends_idle_streams(core):
    server = serve(core, None, ("127.0.0.1", 0))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        held = rpc(channel, "ModelInfer").future(message("held", id="h"), timeout=20)
        assert core.entered.acquire(timeout=5)
        going = threading.Event()

        def requests():
            yield message(id="s")
            going.wait()

        stream = rpc(channel, "ModelStreamInfer")(requests(), timeout=20)
        assert next(stream).infer_response.id == "s"
        stopper = threading.Thread(target=server.stop, args=(10.0,))
        stopper.start()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        going.set()
        assert not held.done()
        core.release.set()
        assert held.result().id == "h"
        stopper.join(10)
        assert not stopper.is_alive()


def test_a_stop_without_grace_drops_what_runs(core):
    server = serve(core, None, ("127.0.0.1", 0))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        held = rpc(channel, "ModelInfer").future(message("held"), timeout=20)
        assert core.entered.acquire(timeout=5)
        stopper = threading.Thread(target=server.stop, args=(0.0,))
        stopper.start()
        with pytest.raises(grpc.RpcError) as caught:
            held.result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        core.release.set()
        stopper.join(10)
        assert not stopper.is_alive()
