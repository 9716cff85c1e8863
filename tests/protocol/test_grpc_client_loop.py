"""The gRPC client in a server's own event loop: the same answers and errors as by grpcio, and nothing left when the loop ends."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from edgekit.errors import DeadlineError, EngineError, NotFoundError, OverloadedError, RequestError, UnavailableError
from edgekit.protocol import Access, Credentials, InferRequest, Limits, Tensor, connect, serve
from edgekit.protocol import _grpc_client as client_module
from edgekit.protocol._event_loop import host_here
from edgekit.protocol._grpc_client import GrpcClient
from edgekit.protocol._grpc_client_loop import LoopChannel
from edgekit.protocol._grpc_codec import encode_response
from edgekit.protocol._grpc_messages import SERVICE
from edgekit.protocol._grpc_wire import framed
from edgekit.protocol._target import parse_target
from edgekit.protocol._types import InferResponse
from tests.protocol.scripted_grpc import HEADERS, scripted
from tests.protocol.test_client_loop import LARGE, ended, in_loop, request

ANY = ("127.0.0.1", 0)
OK = ((b"grpc-status", b"0"),)


def message(value=1.0):
    raw = encode_response(InferResponse("echo", "1", [Tensor("x", np.full((1, 4), value, np.float32))])).SerializeToString()
    return framed(len(raw)) + raw


def good(connection, stream_id, _sent):
    connection.answer(stream_id, message())


async def until(condition):
    """Return once ``condition()`` is true; `in_loop` bounds it."""
    while not condition():  # noqa: ASYNC110 - nothing tells what another thread has done
        await asyncio.sleep(0.001)


async def opened(client):
    """The client's connection in this loop, once it takes calls."""
    host = host_here()
    await until(lambda: client._channel_at(host) is not None)
    return client._channel_at(host)[0]


async def answer_of(client, sent, timeout_s=10.0):
    """What the request brought, and whether the loop's own thread brought it."""
    flight = client.start(sent, timeout_s)
    here = await ended(flight)
    return flight.result(0), here


@contextlib.asynccontextmanager
async def asking(port, **options):
    """A client with an open connection."""
    client = GrpcClient(parse_target(f"grpc://127.0.0.1:{port}"), Credentials(), **options)
    try:
        await opened(client)
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("uvloop", [False, True])
def test_the_loops_thread_sends_and_reads_once_a_connection_is_open(echo_core, uvloop):
    with serve(echo_core, None, ANY) as server:
        client = connect(f"grpc://127.0.0.1:{server.grpc_port}")

        async def scenario():
            response, here = await answer_of(client, request(0.0, id="first"))  # no connection yet: grpcio's
            assert (response.id, here) == ("first", False)
            channel = await opened(client)
            for value in range(1, 4):
                response, here = await answer_of(client, request(value, id=str(value)))
                assert (response.id, here) == (str(value), True)
                np.testing.assert_array_equal(response.outputs[0].data, np.full((1, 4), value, np.float32))
            sent = InferRequest("echo", [Tensor("x", LARGE), Tensor("e", np.zeros((0, 2), np.float32)), Tensor("s", np.array([b"a", b""]))])
            response, here = await answer_of(client, sent)
            assert here
            np.testing.assert_array_equal(response.outputs[0].data, LARGE)
            assert not response.outputs[0].data.flags.writeable
            assert response.outputs[2].data.tolist() == [b"a", b""]
            flights = [client.start(request(value), 10.0) for value in range(50)]
            for value, flight in enumerate(flights):
                await ended(flight)
                assert flight.result(0).outputs[0].data[0, 0] == value
            with pytest.raises(NotFoundError, match="'nope': no such model"):
                await answer_of(client, InferRequest("nope", request().inputs))
            assert client._channel_at(host_here())[0] is channel
            assert {entry.deadline_s is not None for entry in echo_core.requests} == {True}

        in_loop(scenario, uvloop=uvloop)
        client.close()
    assert host_here() is None


def refused(connection, stream_id, _sent):
    trailers = [(b"grpc-status", b"8"), (b"grpc-message", b"full: 100%25, \xc3\xa9 %C3%A9"), (b"grpc-retry-pushback-ms", b"250")]
    connection.h2.send_response(stream_id, [*HEADERS, *trailers], end_stream=True)


def by_a_proxy(connection, stream_id, _sent):
    connection.h2.send_response(stream_id, [(b":status", b"503"), (b"content-type", b"text/html")])
    connection.h2.send_data(stream_id, b"<html>", end_stream=True)


def going_away(connection, stream_id, _sent):
    connection.h2.send_goaway(0, last_stream_id=max(0, stream_id - 2))


def in_pieces(connection, stream_id, _sent):
    connection.answer(stream_id, message())
    connection.flush(piece=7)


def no_protocol(connection, _stream_id, _sent):
    connection.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.transport.close()


def sends(body, trailers=OK):
    return lambda connection, stream_id, _sent: connection.answer(stream_id, body, trailers)


def resets(code):
    return lambda connection, stream_id, _sent: connection.h2.reset_stream(stream_id, code)


ODD = {
    "refused, with a pushback": (refused, OverloadedError, "full: 100%"),
    "a proxy's error page": (by_a_proxy, UnavailableError, "HTTP status 503"),
    "reset": (resets(2), EngineError, "error 2"),
    "cancelled by the server": (resets(8), UnavailableError, "error 8"),
    "hung up": (lambda connection, _stream, _sent: connection.transport.abort(), UnavailableError, "the connection broke"),
    "not HTTP/2": (no_protocol, UnavailableError, "the connection broke"),
    "no status": (sends(message(), ()), EngineError, "without a gRPC status"),
    "no message": (sends(b""), EngineError, "without an answer"),
    "half a message": (sends(message()[:-3]), EngineError, "without an answer"),
    "two messages": (sends(message() * 2), EngineError, "more than one message"),
    "compressed": (sends(b"\1" + message()[1:]), EngineError, "compressed"),
    "too long": (sends(b"\0" + (100 << 20).to_bytes(4, "big") + b"x" * 100), EngineError, "at most"),
    "not the protocol": (sends(framed(3) + b"\xff\xff\xff"), EngineError, "not Open Inference Protocol"),
    "a tensor that is too short": (sends(framed(len(message()) - 6) + message()[5:-1]), EngineError, "not Open Inference Protocol"),
    "in pieces": (in_pieces, None, ""),
    "refused before it was seen": (resets(7), None, ""),
    "going away before it was seen": (going_away, None, ""),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_end_in_one_line_and_the_next_request_is_answered(name):
    odd, error, text = ODD[name]

    async def scenario():
        async with scripted(odd, good) as (port, seen), asking(port, limits=Limits(body_bytes=1 << 20)) as client:
            if error is None:
                response, _ = await answer_of(client, request())
                assert response.outputs[0].data.tolist() == [[1.0] * 4]
                assert len(seen) == (1 if name == "in pieces" else 2)  # by grpcio, once more
            else:
                with pytest.raises(error, match=text) as caught:
                    await answer_of(client, request())
                assert caught.value.retry_after_s == (0.25 if "pushback" in name else None)
                assert len(seen) == 1
            await opened(client)
            assert (await answer_of(client, request()))[1]

    in_loop(scenario)


def test_a_connection_on_which_nothing_comes_is_given_up():
    def silent(_connection, _stream_id, _sent):
        """A server that is gone, and nobody has said so."""

    async def scenario():
        async with scripted(silent, good) as (port, seen), asking(port) as client:
            before = await opened(client)
            with pytest.raises(DeadlineError, match="no answer in time"):
                await answer_of(client, request(), 0.05)
            assert before.done
            after = await opened(client)
            assert after is not before
            assert (await answer_of(client, request()))[1]
            assert seen[0][0] is not seen[1][0]

    in_loop(scenario)


def test_what_goes_to_the_server():
    async def scenario():
        async with scripted(good) as (port, seen):
            client = GrpcClient(parse_target(f"grpc://127.0.0.1:{port}"), Credentials(token="secret"))
            await opened(client)
            await answer_of(client, request(), 2.0)
            client.close()
            fields = seen[0][1]
            assert fields[b":path"] == f"/{SERVICE}/ModelInfer".encode()
            assert fields[b":authority"] == f"127.0.0.1:{port}".encode()
            assert fields[b"authorization"] == b"Bearer secret"
            assert (fields[b"te"], fields[b"content-type"]) == (b"trailers", b"application/grpc")
            assert 1_990_000 <= int(fields[b"grpc-timeout"].removesuffix(b"u")) <= 2_000_000
            await asyncio.sleep(0)

    in_loop(scenario)


def test_a_server_that_allows_fewer_streams_gets_the_others_later():
    held = []

    def hold(connection, stream_id, _sent):
        held.append((connection, stream_id))

    async def scenario():
        async with scripted(hold) as (port, seen), asking(port) as client:
            first = client.start(request(), 10.0)
            await until(lambda: held)
            connection = held[0][0]
            connection.h2.update_settings({3: 1})  # MAX_CONCURRENT_STREAMS
            connection.flush()
            channel = await opened(client)
            await until(lambda: channel._engine.remote_settings[3] == 1)
            second = client.start(request(), 10.0)
            good(*held.pop(), b"")
            connection.flush()
            await ended(first)
            await until(lambda: held)
            good(*held.pop(), b"")
            connection.flush()
            await ended(second)
            assert second.result(0).outputs
            assert len(seen) == 2

    in_loop(scenario)


def test_deadline_cancel_close_and_the_loops_end(submitting_core):
    with serve(submitting_core, None, ANY) as server:
        client, other = (connect(f"grpc://127.0.0.1:{server.grpc_port}") for _ in range(2))
        held = InferRequest("held", request().inputs)
        left = []

        async def scenario():
            await opened(client)
            with pytest.raises(DeadlineError):
                await answer_of(client, held, 0.05)
            await opened(client)
            for _ in range(submitting_core.cancels._value):
                submitting_core.cancels.acquire()
            cancelled = client.start(held, 30.0)
            await answer_of(client, request())  # so the one before has been sent
            cancelled.cancel()
            with pytest.raises(UnavailableError, match="cancelled"):
                cancelled.result(0)
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, submitting_core.cancels.acquire, True, 10.0)  # the server has dropped it
            await opened(other)
            closed = other.start(held, 30.0)
            other.close()
            await ended(closed)
            with pytest.raises(UnavailableError, match="closed"):
                closed.result(0)
            with pytest.raises(UnavailableError, match="closed"):
                other.start(request(), 5.0).result(0)
            with pytest.raises(DeadlineError, match="before it was sent"):
                client.start(request(), 0.0).result(0)
            await answer_of(client, request())
            left.append(client.start(held, 30.0))

        in_loop(scenario)
        with pytest.raises(UnavailableError, match="is stopping"):
            left[0].result(0)
        client.close()
        submitting_core.release.set()


def test_unix_socket_and_token(echo_core, tmp_path):
    path = f"unix:{tmp_path}/grpc.sock"
    with serve(echo_core, None, (path, 0), access=Access(token="secret")):
        for token, error in (("secret", None), ("wrong", UnavailableError)):
            client = connect(f"grpc+{path}", Credentials(token=token))

            async def scenario(client=client, error=error):
                await opened(client)
                with pytest.raises(error) if error else contextlib.nullcontext():
                    assert (await answer_of(client, request()))[1]

            in_loop(scenario)
            client.close()


def test_without_ngh2_and_with_tls_all_is_grpcios(echo_core, monkeypatch):
    found = client_module.importlib.util.find_spec
    monkeypatch.setattr(client_module.importlib.util, "find_spec", lambda name: None if name == "ngh2" else found(name))
    with serve(echo_core, None, ANY) as server:
        client = connect(f"grpc://127.0.0.1:{server.grpc_port}")
        secure = connect("grpcs://127.0.0.1:1")

        async def scenario():
            for _ in range(3):
                assert not (await answer_of(client, request()))[1]
            with pytest.raises(UnavailableError):
                await answer_of(secure, request(), 1.0)
            assert not host_here().guests

        in_loop(scenario)
        for each in (client, secure):
            each.close()


def test_a_server_that_is_not_there_is_tried_again_now_and_then(echo_core):
    async def scenario():
        async with scripted(good) as (port, _):
            pass
        client = connect(f"grpc://127.0.0.1:{port}")
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await answer_of(client, request(), 1.0)
        channel, _ = client._in_loops[host_here()]
        await until(lambda: channel.done)
        channel.again_s = float("inf")
        assert client._channel_at(host_here()) is None
        assert client._in_loops[host_here()][0] is channel  # not yet
        channel.again_s = 0.0
        assert client._channel_at(host_here()) is None
        assert client._in_loops[host_here()][0] is not channel
        client.close()
        await asyncio.sleep(0)

    in_loop(scenario)


def test_a_loop_that_ends_while_it_connects_leaves_nothing():
    async def scenario():
        channel = LoopChannel(host_here(), parse_target("grpc://127.0.0.1:1"), "/x", {}, 1000, gone.append)
        assert host_here().guests == {channel}

    gone = []
    in_loop(scenario)
    assert len(gone) == 1
    assert gone[0].done


@contextlib.contextmanager
def grpcio_server(answer):
    """A server of grpcio whose ``ModelInfer`` is ``answer(bytes, context)``."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            assert details.method == f"/{SERVICE}/ModelInfer"
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(2), [Handler()], options=[("grpc.max_receive_message_length", -1)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_against_grpcios_server():
    seen = []
    array = LARGE[:, :300]

    def answer(data, context):
        seen.append((len(data), context.time_remaining(), dict(context.invocation_metadata())))
        if len(seen) == 2:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", "1500")])
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later, 50% of the time: ü")
        if len(seen) == 3:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such tensor")
        context.set_compression(grpc.Compression.Gzip)  # whatever the client takes
        return encode_response(InferResponse("echo", "1", [Tensor("x", array)])).SerializeToString()

    async def scenario():
        with grpcio_server(answer) as port:
            async with asking(port) as client:
                sent = InferRequest("echo", [Tensor("x", array)])
                response, here = await answer_of(client, sent)
                assert here
                np.testing.assert_array_equal(response.outputs[0].data, array)
                assert seen[0][0] > array.nbytes
                assert 5.0 < seen[0][1] <= 10.0
                with pytest.raises(OverloadedError, match="later, 50% of the time: ü") as caught:
                    await answer_of(client, sent)
                assert caught.value.retry_after_s == 1.5
                with pytest.raises(RequestError, match="no such tensor"):
                    await answer_of(client, sent)

    in_loop(scenario)


def test_grpcio_hears_a_pushback_too():
    def answer(_data, context):
        context.set_trailing_metadata([("grpc-retry-pushback-ms", "1500")])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")

    with grpcio_server(answer) as port, contextlib.closing(connect(f"grpc://127.0.0.1:{port}")) as client:
        with pytest.raises(OverloadedError) as caught:
            client.infer(request(), 5.0)
        assert caught.value.retry_after_s == 1.5
