"""Server-sent events over a real server: order, errors, pipelining, clients that leave or do not read."""

import gzip
import http.client
import json
import socket
import threading
import types

import numpy as np
import pytest

from edgekit.errors import DeadlineError
from edgekit.protocol import InferRequest, InferResponse, Limits, ModelMetadata, Tensor, TensorMetadata, serve
from edgekit.protocol._byte_budget import ByteBudget
from edgekit.protocol._events_stream import EventStream
from edgekit.protocol._generate import chunks_of
from tests.protocol.conftest import EchoCore, SubmittingEcho
from tests.protocol.waiting import until

PATH = "/v2/models/echo/generate_stream"
LIMIT_S = 30


class Chunked:
    """Model ``echo`` takes 4 numbers at once; model ``states`` is the same with states. Chunk ``fails_at`` fails; ``hold_at`` waits for ``release``."""

    fails_at = hold_at = -1
    error = DeadlineError

    def model_metadata(self, name, version=""):
        self._known(name)
        tensor = TensorMetadata("x", "FP32", [1, 4])
        return ModelMetadata(name, ["1"], "edgekit_test", [tensor], [tensor])

    def model_config(self, name, version=""):
        return {"name": name} | ({"sequence_batching": {}} if name == "states" else {})

    def infer(self, request):
        index = sum(1 for one in self.requests if one.inputs)
        if request.inputs and index == self.hold_at:
            self.entered.release()
            assert self.release.wait(LIMIT_S)
        answer = super().infer(request)
        self.seen.release()
        if request.inputs and index == self.fails_at:
            raise self.error("chunk", "too late")
        return answer


class BlockingCore(Chunked, EchoCore):
    models = (*EchoCore.models, "states")

    def __init__(self):
        super().__init__()
        self.seen = threading.Semaphore(0)


class SubmittingCore(Chunked, SubmittingEcho):
    models = (*EchoCore.models, "states")

    def __init__(self):
        super().__init__()
        self.seen = threading.Semaphore(0)

    def turn(self):
        """In a thread each, as a runtime's workers answer."""
        inbox, self._inbox = self._inbox, []
        for ticket in inbox:
            self.threads.append(threading.Thread(target=self._answer, args=(ticket,)))
            self.threads[-1].start()


@pytest.fixture(params=[BlockingCore, SubmittingCore])
def chunked(request):
    core = request.param()
    yield core
    core.release.set()
    for thread in getattr(core, "threads", ()):
        thread.join(LIMIT_S)


@pytest.fixture
def port(chunked):
    with serve(chunked, ("127.0.0.1", 0), None) as server:
        yield server.http_port
        chunked.release.set()


def body_of(count, **parameters):
    return json.dumps({"x": list(range(count)), "parameters": parameters}).encode()


def post(port, body, path=PATH, **fields):
    """Status, headers and the events as (name, document)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request("POST", path, body, fields)
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    if answer.getheader("Content-Type") != "text/event-stream":
        return answer.status, answer.headers, json.loads(raw)
    return answer.status, answer.headers, events_of(raw)


def events_of(raw):
    found = []
    for block in raw.decode().split("\n\n"):
        if block:
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def test_each_chunk_is_an_event(port, chunked):
    status, headers, events = post(port, body_of(13))
    assert (status, headers["Cache-Control"], headers["Transfer-Encoding"]) == (200, "no-cache", "chunked")
    assert [document["x"] for _, document in events[:-1]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [document["chunk"] for _, document in events[:-1]] == [0, 1, 2]
    assert events[-1] == ("end", {"chunks": 3, "left_over": 1})
    assert all("sequence_id" not in request.parameters for request in chunked.requests)


def test_a_model_with_states_gets_a_sequence(port, chunked):
    post(port, body_of(12, hop=4), "/v2/models/states/generate_stream")
    asked = [request.parameters for request in chunked.requests]
    assert len({one["sequence_id"] for one in asked}) == 1
    assert [(one["sequence_start"], one["sequence_end"]) for one in asked] == [(True, False), (False, False), (False, True)]
    assert all("hop" not in one for one in asked)


def test_a_client_may_name_its_sequence(port, chunked):
    post(port, body_of(12, sequence_id=7, sequence_start=True), "/v2/models/states/generate_stream")
    asked = [request.parameters for request in chunked.requests]
    assert [(one["sequence_id"], one["sequence_start"], one["sequence_end"]) for one in asked] == [
        (7, True, False),
        (7, False, False),
        (7, False, False),
    ]


def test_an_error_before_the_first_event_is_an_answer(port, chunked):
    for body, expected in ((b"{", "cannot be read"), (body_of(3), "at least one chunk of 4"), (body_of(8, hop=9), "from 1 to 4")):
        status, _, document = post(port, body)
        assert status == 400
        assert expected in document["error"]
    assert post(port, body_of(8), "/v2/models/nothing/generate_stream")[0] == 404
    chunked.fails_at = 0
    status, _, document = post(port, body_of(8))
    assert (status, "too late" in document["error"]) == (504, True)


def test_an_error_later_is_the_last_event_and_ends_the_sequence(port, chunked):
    chunked.fails_at = 1
    status, _, events = post(port, body_of(16), "/v2/models/states/generate_stream")
    assert (status, len(events)) == (200, 2)
    assert "too late" in events[1][1]["error"]
    for _ in range(3):
        assert chunked.seen.acquire(timeout=LIMIT_S)
    last = chunked.requests[-1]
    assert (last.inputs, last.parameters["sequence_end"]) == ([], True)
    assert last.parameters["sequence_id"] == chunked.requests[0].parameters["sequence_id"]


def test_a_bug_is_told_by_its_id_only(port, chunked):
    chunked.error = ZeroDivisionError
    chunked.fails_at = 1
    _, _, events = post(port, body_of(16))
    assert "internal error" in events[1][1]["error"]
    assert "too late" not in str(events)


def test_answers_before_and_after_keep_their_order(port):
    """Pipelined: a control request, a stream and another control request on one connection."""
    body = body_of(8)
    stream = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        sock.sendall(live + stream + stream + last)
        raw = b""
        while piece := sock.recv(65536):
            raw += piece
    heads = [block.split(b"\r\n\r\n")[0] for block in raw.split(b"HTTP/1.1 ")[1:]]
    assert [b"text/event-stream" in head for head in heads] == [False, True, True, False]
    assert raw.count(b"event: end") == 2


def test_a_client_that_leaves_ends_its_stream(port, chunked):
    chunked.hold_at = 1
    body = body_of(400)
    head = f"POST /v2/models/states/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        sock.sendall(head + body)
        assert chunked.entered.acquire(timeout=LIMIT_S)  # the first event is written, the second chunk runs
    # The server sees the end of the connection before this answer, which comes after it on the same loop.
    until_gone(port)
    chunked.release.set()
    for _ in range(3):
        assert chunked.seen.acquire(timeout=LIMIT_S)
    ended = [request for request in chunked.requests if not request.inputs]
    assert [one.parameters["sequence_end"] for one in ended] == [True]
    assert sum(1 for request in chunked.requests if request.inputs) == 2


def until_gone(port):
    """A few exchanges later the loop has handled a connection that was closed before them."""
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
        connection.close()


class Reader:
    """A connection whose client reads or does not."""

    def __init__(self):
        self.reads = True
        self.parts = []

    def takes(self, exchange):
        return self.reads

    def send_part(self, data):
        self.parts.append(data)


def test_a_client_that_does_not_read_is_waited_for():
    """The next chunk begins when the one before was written and the client reads, not before; what was waited for goes on."""
    request = InferRequest("echo", [Tensor("x", np.arange(12, dtype=np.float32)[np.newaxis])])
    metadata = ModelMetadata("echo", ["1"], "t", [TensorMetadata("x", "FP32", [1, 4])], [])
    reader, asked, settled = Reader(), [], []
    exchange = types.SimpleNamespace(
        connection=reader,
        call=types.SimpleNamespace(keep_alive=True),
        ticket=None,
        wake=None,
        settle=settled.append,
    )
    host = types.SimpleNamespace(
        ask=lambda request, done: asked.append((request, done)),
        tell=lambda stream, answer: stream.answered(answer),
        handler=types.SimpleNamespace(date=b""),
    )
    stream = EventStream(host, exchange, chunks_of(request, metadata), False)
    stream.pump()
    stream.pump()
    assert len(asked) == 1
    reader.reads = False
    asked[0][1](InferResponse("echo", "1", asked[0][0].inputs))
    assert (len(asked), len(reader.parts)) == (1, 1)
    stream.pump()
    assert len(asked) == 1
    reader.reads = True
    stream.pump()
    assert len(asked) == 2
    asked[1][1](InferResponse("echo", "1", asked[1][0].inputs))
    asked[2][1](InferResponse("echo", "1", asked[2][0].inputs))
    assert (len(asked), len(reader.parts), len(settled)) == (3, 2, 1)
    assert settled[0][0].endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("line", "status"), [("GET {} HTTP/1.1", b"405"), ("POST {} HTTP/1.0", b"505"), ("POST /v2/models/echo/generate HTTP/1.1", b"404")]
)
def test_what_is_not_offered(port, line, status):
    body = body_of(8)
    head = f"{line.format(PATH)}\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        sock.sendall(head + body)
        assert sock.recv(65536).split(b" ")[1] == status


def test_what_a_body_takes_is_given_back(port, chunked, monkeypatch):
    """The budget holds what JSON becomes while it is read, and its tensors until the answer is out."""
    budgets = []
    take = ByteBudget.take

    def noted(budget, count):
        budgets.append((budget, count))
        return take(budget, count)

    monkeypatch.setattr(ByteBudget, "take", noted)
    body = body_of(4000)
    post(port, body)
    assert max(count for _, count in budgets) >= 16 * len(body)
    assert any(count == 16000 for _, count in budgets)
    post(port, b"{" + body)
    chunked.fails_at = 0
    post(port, body)
    until(lambda: all(budget.used == 0 for budget, _ in budgets))


def test_a_body_that_would_be_too_much_is_refused():
    core = BlockingCore()
    with serve(core, ("127.0.0.1", 0), None, limits=Limits(json_bytes=1000)) as server:
        assert post(server.http_port, body_of(8))[0] == 200
        status, _, document = post(server.http_port, body_of(1000))
        assert status == 400
        assert "at most 1000; send the tensors in binary form" in document["error"]
        packed = gzip.compress(body_of(1000))
        status, _, document = post(server.http_port, packed, **{"Content-Encoding": "gzip"})
        assert status in (400, 413)
    with serve(core, ("127.0.0.1", 0), None) as server:
        status, _, document = post(server.http_port, b'{"x": "' + b":" * 70_000 + b'"}')
        assert (status, "70001 colons" in document["error"]) == (400, True)
