"""The HTTP client in a server's own event loop: the same answers and errors as in threads, and nothing left when the loop ends."""

import asyncio
import contextlib
import socket
import threading

import numpy as np
import pytest

from edgekit.errors import DeadlineError, EngineError, OverloadedError, UnavailableError
from edgekit.protocol import InferRequest, Tensor, _http_client, connect, serve
from edgekit.protocol._event_loop import host_here, hosting, new_event_loop
from edgekit.protocol._http_client_loop import read_head
from edgekit.protocol._http_codec import encode_response
from edgekit.protocol._types import InferResponse

ANY = ("127.0.0.1", 0)
LARGE = np.random.default_rng(0).random((3, 1000, 1000), dtype=np.float32)


def request(value=1.0, **fields):
    return InferRequest("echo", [Tensor("x", np.full((1, 4), value, np.float32))], **fields)


def in_loop(scenario, *, uvloop=False):
    """What the coroutine ``scenario()`` gives, in a loop that takes guests."""
    loop = new_event_loop(uvloop=uvloop)
    try:
        with hosting(loop):
            return loop.run_until_complete(asyncio.wait_for(scenario(), 20))
    finally:
        loop.close()


async def ended(flight):
    """The end of a request, heard in the loop; and whether the loop's own thread brought it (it brings none before this waits)."""
    loop = asyncio.get_running_loop()
    told = loop.create_future()
    thread, waiting = threading.get_ident(), False

    def tell(_flight):
        here = waiting and threading.get_ident() == thread
        loop.call_soon_threadsafe(told.set_result, here)

    flight.add_done_callback(tell)
    waiting = True
    return await told


@contextlib.contextmanager
def scripted(*answers):
    """A server that reads a request and sends the next answer, each a list of pieces; ``None`` closes the connection instead."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = list(answers)
    seen = []

    def read(connection):
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        seen.append(body)
        return True

    def run():
        with contextlib.suppress(OSError):
            while left:
                connection, _ = listener.accept()
                connection.settimeout(10.0)
                with connection:
                    while left and read(connection):
                        pieces = left.pop(0)
                        if pieces is None:
                            break
                        for piece in pieces:
                            connection.sendall(piece)
                        if b"Connection: close" in pieces[0]:
                            break

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answer(value=1.0, fields=""):
    """An answer of the protocol in one piece."""
    sent = request(parameters={"binary_data_output": True})
    message = encode_response(InferResponse("echo", "1", [Tensor("x", np.full((1, 4), value, np.float32))]), sent)
    head = "".join(f"{name}: {text}\r\n" for name, text in message.headers().items())
    return f"HTTP/1.1 200 OK\r\n{head}{fields}Content-Length: {message.length}\r\n\r\n".encode() + message.body


GOOD = [answer()]


def bare(status, body=b"", fields=b""):
    return [b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)]


@pytest.mark.parametrize(("uvloop", "loop_reads_large"), [(False, True), (True, True), (False, False)])
def test_the_loops_thread_sends_and_reads_once_a_connection_is_open(echo_core, uvloop, loop_reads_large, monkeypatch):
    if not loop_reads_large:
        monkeypatch.setattr(_http_client, "_LOOP_BYTES", LARGE.nbytes - 1)
    with serve(echo_core, ANY, None) as server:
        client = connect(f"http://127.0.0.1:{server.http_port}")

        async def scenario():
            first = client.start(request(), 5.0)
            assert await ended(first) in (True, False)  # it opens the connection, in a thread
            here = []
            for value in range(1, 4):
                flight = client.start(request(value, id=str(value)), 5.0)
                here.append(await ended(flight))
                response = flight.result(0)
                assert response.id == str(value)
                np.testing.assert_array_equal(response.outputs[0].data, np.full((1, 4), value, np.float32))
            sent = InferRequest("echo", [Tensor("x", LARGE), Tensor("e", np.zeros((0, 2), np.float32))])
            flight = client.start(sent, 10.0)
            here.append(await ended(flight))
            np.testing.assert_array_equal(flight.result(0).outputs[0].data, LARGE)
            return here

        assert in_loop(scenario, uvloop=uvloop) == [True] * 3 + [loop_reads_large]
        client.close()
    assert host_here() is None


ODD = {
    "head in pieces": ([answer()[:10], answer()[10:90], answer()[90:]], None),
    "a body in two pieces": ([answer()[:-7], answer()[-7:]], None),
    "chunked": (
        [answer().replace(b"\r\nContent-Length", b"\r\nX-Length").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)],
        None,
    ),
    "bytes after the answer": ([answer() + b"HTTP/1.1 200"], None),
    "to be closed": ([answer(fields="Connection: close\r\n")], None),
    "refused for now": (
        bare(b"503 Service Unavailable", b'{"error": "busy"}', b"x-edgekit-error: OverloadedError\r\nRetry-After: 7\r\n"),
        OverloadedError,
    ),
    "not the protocol": (bare(b"200 OK", b"[]"), EngineError),
    "not HTTP": ([b"hello\r\n\r\n"], UnavailableError),
    "a colon is missing": ([b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"], UnavailableError),
    "half a body": ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}"], UnavailableError),
    "half a head": ([b"HTTP/1.1 200 OK\r\nX: Connection: close"], UnavailableError),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_end_as_they_do_in_threads_and_the_next_request_is_answered(name):
    pieces, error = ODD[name]
    if name == "chunked":
        head, _, body = pieces[0].partition(b"\r\n\r\n")
        pieces = [head + b"\r\n\r\n", b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"]
    with scripted(GOOD, pieces, GOOD) as (port, seen), contextlib.ExitStack() as ends:
        client = ends.enter_context(contextlib.closing(connect(f"http://127.0.0.1:{port}")))

        async def scenario():
            for expected in (None, error, None):
                flight = client.start(request(), 5.0)
                await ended(flight)
                if expected is None:
                    assert flight.result(0).outputs[0].data.tolist() == [[1.0] * 4]
                    continue
                with pytest.raises(expected) as caught:
                    flight.result(0)
                assert caught.value.retry_after_s == (7.0 if name == "refused for now" else None)

        in_loop(scenario)
        assert len(seen) == 3  # no request was sent twice


def test_a_connection_that_the_server_dropped_meanwhile_is_replaced():
    with scripted(GOOD, None, GOOD) as (port, seen), contextlib.ExitStack() as ends:  # it reads the second request and hangs up
        client = ends.enter_context(contextlib.closing(connect(f"http://127.0.0.1:{port}")))

        async def scenario():
            for _ in range(2):
                flight = client.start(request(), 5.0)
                await ended(flight)
                assert flight.result(0).outputs

        in_loop(scenario)
        assert len(seen) == 3


def test_deadline_cancel_close_and_the_loops_end(echo_core):
    with serve(echo_core, ANY, None) as server:
        client, other = (connect(f"http://127.0.0.1:{server.http_port}") for _ in range(2))
        left = []

        async def scenario():
            for each in (client, other):
                await ended(each.start(request(), 5.0))
            late = client.start(InferRequest("held", request().inputs), 0.05)
            assert await ended(late)
            with pytest.raises(DeadlineError):
                late.result(0)
            await ended(client.start(request(), 5.0))  # a thread's; its connection is kept for the next
            cancelled = client.start(InferRequest("held", request().inputs), 30.0)
            cancelled.cancel()
            with pytest.raises(UnavailableError, match="cancelled"):
                cancelled.result(0)
            closed = other.start(InferRequest("held", request().inputs), 30.0)
            other.close()
            await ended(closed)
            with pytest.raises(UnavailableError):
                closed.result(0)
            with pytest.raises(UnavailableError, match="closed"):
                other.start(request(), 5.0).result(0)
            await ended(client.start(request(), 5.0))
            left.append(client.start(InferRequest("held", request().inputs), 30.0))

        in_loop(scenario)
        with pytest.raises(UnavailableError, match="is stopping"):
            left[0].result(0)
        client.close()
        echo_core.release.set()


def test_read_head():
    assert read_head(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Y:  z ") == (200, {"content-length": "3", "x-y": "z"}, True)
    assert read_head(b"HTTP/1.0 200 OK")[2] is False
    assert read_head(b"HTTP/1.1 404 Not Found\r\nConnection: Close")[::2] == (404, False)
    for wrong in (b"", b"HTTP/2 200", b"HTTP/1.1 abc", b"HTTP/1.1 200 OK\r\nx"):
        with pytest.raises(ValueError, match=r".*"):
            read_head(wrong)
