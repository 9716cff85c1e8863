"""Connections over real sockets: order, limits, slow and vanishing clients, drain; over cores that submit and cores that block."""

import gc
import json
import socket
import threading
import time

import msgspec
import numpy as np
import pytest

from edgekit.protocol import InferRequest, Limits, Tensor
from edgekit.protocol._http_codec import decode_response, encode_request
from edgekit.protocol._http_exchange import ConnectionLimits, Exchange
from edgekit.protocol._http_parse import HeadLimits
from edgekit.protocol._http_server import HttpTransport
from tests.protocol.waiting import until

pytestmark = pytest.mark.slow
X = np.arange(4, dtype=np.float32).reshape(1, 4)
FOREVER_S = 60.0


@pytest.fixture(params=["uvloop", "asyncio"])
def transport(request, submitting_core):
    made = []

    def start(core=submitting_core, limits=None, max_in_flight=8, **connections):
        pytest.importorskip("uvloop")
        made.append(
            HttpTransport(
                core,
                "127.0.0.1",
                0,
                limits or Limits(),
                max_in_flight,
                connections=ConnectionLimits(**connections),
                uvloop=request.param == "uvloop",
            )
        )
        return made[-1]

    yield start
    submitting_core.release.set()
    for one in made:
        one.stop(time.monotonic() + 5)


class Client:
    """A raw connection that can count answers."""

    def __init__(self, transport, **options):
        self.sock = socket.create_connection(("127.0.0.1", transport.port), 10, **options)
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, *pieces):
        for piece in pieces:
            self.sock.sendall(piece)

    def more(self):
        piece = self.sock.recv(1 << 16)
        self.rest += piece
        return bool(piece)

    def answer(self):
        """Status, fields and body of the next answer; None at the end."""
        while b"\r\n\r\n" not in self.rest:
            if not self.more():
                assert not self.rest
                return None
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (row.partition(": ") for row in lines)}
        length = int(fields["content-length"])
        while len(self.rest) < length:
            assert self.more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return int(line.split()[1]), fields, body

    def answers(self):
        found = []
        while (one := self.answer()) is not None:
            found.append(one)
        return found


def infer(model="echo", request_id="", value=X, fields=""):
    message = encode_request(InferRequest(model, [Tensor("x", value)], id=request_id))
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\n{fields}"
    head += f"Inference-Header-Content-Length: {message.header_length}\r\nContent-Length: {len(message.body)}\r\n\r\n"
    return head.encode() + message.body


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"


def tensor_of(answer):
    status, fields, body = answer
    assert status == 200, body
    response = decode_response(body, fields.get("inference-header-content-length"))
    return response.id, response.outputs[0].data


def test_answers_come_in_the_order_of_the_requests(transport, submitting_core):
    with Client(transport()) as client:
        client.send(infer("held", "0") + infer("echo", "1") + LIVE + infer("nothing", "3") + infer("echo", "4"))
        assert submitting_core.entered.acquire(timeout=5)
        submitting_core.release.set()
        answers = [client.answer() for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 404, 200]
    assert [tensor_of(answers[index])[0] for index in (0, 1, 4)] == ["0", "1", "4"]


def test_what_comes_together_is_one_turn(transport, submitting_core):
    with Client(transport()) as client:
        client.send(b"".join(infer(request_id=str(index)) for index in range(8)))
        assert [tensor_of(client.answer())[0] for _ in range(8)] == [str(index) for index in range(8)]
    assert submitting_core.turns == [8]


@pytest.mark.parametrize("plain", [False, True])
def test_the_short_path_answers_as_the_full_path(transport, submitting_core, plain):
    class Plain(type(submitting_core)):
        def infer(self, request):
            response = super().infer(request)
            return msgspec.structs.replace(response, parameters={}) if plain else response  # parameters need the full way back

    submitting_core = Plain()
    random = np.random.default_rng(0)
    with Client(transport(core=submitting_core)) as client:
        bodies = []
        for _ in range(6):  # the first takes the full path, the third the short one, the fifth the short way back as well
            value = random.random((1, 4), dtype=np.float32)
            client.send(infer(value=value))
            answer = client.answer()
            assert tensor_of(answer)[1].tolist() == value.tolist()
            bodies.append((answer[1].keys(), answer[2][: int(answer[1]["inference-header-content-length"])]))
            arrived = submitting_core.requests[-1]
            assert arrived.inputs[0].data.flags.aligned
    assert all(body == bodies[0] for body in bodies)


def test_requests_leave_nothing_to_the_collector(transport, submitting_core):
    with Client(transport()) as client:
        client.send(infer())
        client.answer()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.send(infer())
                assert client.answer()[0] == 200
            del submitting_core.requests[:]
            until(lambda: not [found for found in gc.get_objects() if isinstance(found, Exchange | InferRequest)])
        finally:
            gc.enable()


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_requests_in_pieces(transport, step):
    raw = (
        infer(request_id="a")
        + LIVE
        + b"\r\nPOST /v2/repository/index HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        + infer(request_id="b")
    )
    with Client(transport()) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(*(raw[at : at + step] for at in range(0, len(raw), step)))
        answers = [client.answer() for _ in range(4)]
    assert [answer[0] for answer in answers] == [200] * 4
    assert [tensor_of(answers[index])[0] for index in (0, 3)] == ["a", "b"]


def test_large_bodies_and_answers(transport):
    large = np.random.default_rng(0).random((1, 3_000_000), dtype=np.float32)
    with Client(transport()) as client:
        sender = threading.Thread(target=client.send, args=(infer(value=large) * 2,))
        sender.start()
        for _ in range(2):
            assert np.array_equal(tensor_of(client.answer())[1], large)
        sender.join()


def test_http_1_0_and_close(transport):
    server = transport()
    with Client(server) as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert [(status, fields["connection"]) for status, fields, _ in client.answers()] == [(200, "close")]
    with Client(server) as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.answer()[1]["connection"] == "keep-alive"
        client.send(infer(fields="Connection: close\r\n") + LIVE)
        assert len(client.answers()) == 1  # what follows a close is not answered


def test_head_has_no_body(transport):
    with Client(transport()) as client:
        client.send(b"HEAD /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        while client.more():
            pass
    head, _, body = client.rest.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405")
    assert b"Allow: GET" in head
    assert body == b""


def test_an_error_in_the_middle_ends_the_connection_after_the_good_answers(transport):
    with Client(transport()) as client:
        client.send(infer(request_id="1") + b"POST /v2 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab" + LIVE)
        answers = client.answers()
    assert [status for status, _, _ in answers] == [200, 400]
    assert answers[1][1]["connection"] == "close"
    assert "given more than once" in json.loads(answers[1][2])["error"]


def test_a_bad_chunk_is_refused(transport):
    with Client(transport()) as client:
        client.send(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n")
        assert [status for status, _, _ in client.answers()] == [400]


@pytest.mark.parametrize("how", ["closes", "resets", "ends its side"])
def test_a_client_that_leaves_cancels_its_requests(transport, submitting_core, how):
    with Client(transport(left_s=0.02)) as client:
        client.send(infer("held", "mine") + infer("held", "too"))
        assert submitting_core.entered.acquire(timeout=5)
        assert submitting_core.entered.acquire(timeout=5)
        if how == "resets":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "ends its side":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            client.sock.close()
        until(lambda: submitting_core.cancelled == ["mine", "too"])
        submitting_core.release.set()
        if how == "ends its side":
            assert [status for status, _, _ in client.answers()] == [503, 503]


def test_a_client_that_has_sent_all_still_gets_its_answers(transport, submitting_core):
    with Client(transport(left_s=60.0)) as client:
        client.send(infer("held", "0") + infer(request_id="1"))
        client.sock.shutdown(socket.SHUT_WR)
        assert submitting_core.entered.acquire(timeout=5)
        submitting_core.release.set()
        assert [tensor_of(answer)[0] for answer in client.answers()] == ["0", "1"]


SLOW = {
    "head": (b"GET /v2 HT", {"head_s": 0.05}, 408),
    "head after a request": (LIVE + b"GET /v2 HT", {"head_s": 0.05}, 408),
    "body": (b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", {"body_s": 0.05}, 408),
    "chunk": (b"POST /v2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", {"body_s": 0.05}, 408),
    "idle": (b"", {"idle_s": 0.05}, None),
    "idle after a request": (LIVE, {"idle_s": 0.05}, 200),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_clients_are_given_up(transport, name):
    raw, limits, status = SLOW[name]
    with Client(transport(**limits)) as client:
        client.send(raw)
        answers = client.answers()
    assert ([answers[-1][0]] if answers else [None]) == [status]


def test_a_head_that_drips_in_is_given_up(transport):
    with Client(transport(head_s=0.1)) as client:
        client.sock.settimeout(0.01)
        answered = b""
        for _ in range(500):
            client.send(b"A")
            try:
                answered = client.sock.recv(1000)
                break
            except TimeoutError:
                pass
    assert answered.startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_held_and_then_dropped(transport, submitting_core):
    large = np.zeros((1, 1_000_000), np.float32)
    server = transport(write_buffer_bytes=1000, write_s=0.2, pipeline=4)
    with Client(server) as client:
        client.sock.settimeout(0.5)
        sent = 0
        with pytest.raises((TimeoutError, ConnectionError)):  # at which request depends on the sockets' buffers
            for _ in range(100):
                client.send(infer(value=large))
                sent += 1
        assert sent < 20
        assert len(submitting_core.requests) < 20
    with Client(server) as other:
        other.send(LIVE)
        assert other.answer()[0] == 200


def test_only_so_many_requests_of_a_connection_are_under_way(transport, submitting_core):
    with Client(transport(pipeline=3)) as client:
        client.send(b"".join(infer("held", str(index)) for index in range(10)))
        for _ in range(3):
            assert submitting_core.entered.acquire(timeout=5)
        assert not submitting_core.entered.acquire(timeout=0.05)
        submitting_core.release.set()
        assert [tensor_of(client.answer())[0] for _ in range(10)] == [str(index) for index in range(10)]


def test_only_so_many_connections(transport):
    server = transport(connections=2)
    with Client(server) as first, Client(server) as second:
        for client in (first, second):
            client.send(LIVE)
            assert client.answer()[0] == 200
        with Client(server) as third:
            assert [(status, "too many connections" in body.decode()) for status, _, body in third.answers()] == [(503, True)]
        first.send(LIVE)
        assert first.answer()[0] == 200


def test_only_so_many_bytes_of_bodies(transport):
    server = transport(buffered_bytes=100_000)
    with Client(server) as client:
        client.send(infer(value=np.zeros((1, 100_000), np.float32))[:300_000])
        assert client.answer()[0] == 503
    with Client(server) as client:  # what was counted is given back
        for _ in range(10):
            client.send(infer(value=np.zeros((1, 20_000), np.float32)))
            assert client.answer()[0] == 200


def test_limits_of_the_head(transport):
    server = transport(head=HeadLimits(line_bytes=100, head_bytes=500, fields=3))
    for raw, status in (
        (b"GET /" + b"a" * 200, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 600, 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n", 431),
    ):
        with Client(server) as client:
            client.send(raw)
            assert [answer[0] for answer in client.answers()] == [status]


def test_stop_answers_what_is_under_way(transport, submitting_core):
    server = transport()
    with Client(server) as busy, Client(server) as idle, Client(server) as beginning:
        for client in (idle, beginning):
            client.send(LIVE)
            assert client.answer()[0] == 200
        beginning.send(b"POST /v2/mod")
        busy.send(infer("held", "last"))
        assert submitting_core.entered.acquire(timeout=5)
        stopper = threading.Thread(target=server.stop, args=(time.monotonic() + FOREVER_S,))
        stopper.start()
        assert idle.answer() is None
        assert beginning.answer() is None
        submitting_core.release.set()
        answer = busy.answer()
        assert tensor_of(answer)[0] == "last"
        assert answer[1]["connection"] == "close"
        stopper.join(5)
        assert not stopper.is_alive()
    with pytest.raises(ConnectionRefusedError):
        Client(server)


def test_stop_does_not_wait_beyond_its_time(transport, submitting_core):
    server = transport()
    with Client(server) as client:
        client.send(infer("held"))
        assert submitting_core.entered.acquire(timeout=5)
        server.stop(time.monotonic() + 0.05)
        with pytest.raises(ConnectionError):
            while client.more():
                pass
            raise ConnectionError  # closed without a reset
    submitting_core.release.set()


def test_a_bug_of_the_core_is_a_500_and_the_next_request_works(transport, submitting_core):
    class Buggy(type(submitting_core)):
        def submit(self, request, done):
            if request.id == "bad":
                raise ZeroDivisionError("secret")
            return super().submit(request, done)

    with Client(transport(core=Buggy())) as client:
        client.send(infer(request_id="bad") + infer(request_id="good") + infer("bug"))
        answers = [client.answer() for _ in range(3)]
    assert [status for status, _, _ in answers] == [500, 200, 500]
    assert b"secret" not in answers[0][2] + answers[2][2]
    assert b"internal error" in answers[0][2]


def test_blocking_cores_are_answered_in_order_too(transport, echo_core):
    with Client(transport(core=echo_core, max_in_flight=4)) as client:
        client.send(infer("held", "0") + infer("echo", "1") + LIVE)
        assert echo_core.entered.acquire(timeout=5)
        echo_core.release.set()
        assert [client.answer()[0] for _ in range(3)] == [200] * 3
