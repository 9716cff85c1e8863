"""A gRPC connection in memory: calls, streams, flow control both ways, and peers that do not keep to the rules."""

import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.protocol import InferRequest, Limits, Tensor
from edgekit.protocol._access import Access
from edgekit.protocol._grpc_codec import encode_request
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._grpc_wire import framed
from tests.protocol.grpc_memory import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INFER,
    LIVE,
    PING,
    PREFACE,
    PRIORITY,
    READY,
    RST_STREAM,
    SETTINGS,
    STREAM_INFER,
    WINDOW_UPDATE,
    Client,
    Peer,
    answer_to,
    frame,
    frames_of,
    header_block,
    infer_message,
)

CANCELLED = struct.pack(">I", 8)


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.close()


@pytest.fixture
def client(peer):
    return Client(peer)


def answers(raw, name="ModelStreamInferResponse"):
    found = []
    while raw:
        size = int.from_bytes(raw[1:5], "big")
        found.append(message_classes()[name].FromString(raw[5 : 5 + size]))
        raw = raw[5 + size :]
    return found


def test_a_call(client):
    stream = client.call(INFER, infer_message(id="7"))
    (answer,) = answers(client.messages[stream], "ModelInferResponse")
    assert (answer.id, answer.model_name, len(answer.raw_output_contents[0])) == ("7", "echo", 16)
    assert client.status(stream) == (0, "")
    assert client.headers[stream][b"x-edgekit-decision"] == b"local  x-evil: 1"
    assert client.ended[stream] == 0


def test_what_one_turn_brings_is_run_together(client, peer):
    streams = [client.call(INFER, infer_message(), pump=False) for _ in range(5)]
    client.pump()
    assert [client.status(stream)[0] for stream in streams] == [0] * 5
    assert peer.core.turns == [5]


@pytest.mark.parametrize(
    ("path", "messages", "status", "text"),
    [
        ("/nope", [b""], 12, "method /nope"),
        ("/inference.GRPCInferenceService/CudaSharedMemoryStatus", [b""], 12, "no such method"),
        (INFER, [], 12, "no message"),
        (INFER, [infer_message()] * 2, 12, "more than one message"),
        (INFER, [b"\xff\xff"], 3, "not a protobuf message"),
        (INFER, [infer_message("nothing")], 5, "no such model"),
        (LIVE, [b"\xff"], 3, "not a protobuf message"),
    ],
)
def test_statuses(peer, client, path, messages, status, text):
    stream = client.call(path, *messages)
    wait_for(peer, client, stream)
    found = client.status(stream)
    assert found[0] == status
    assert text in found[1]


def wait_for(peer, client, stream):
    """Until a call that takes a thread is answered."""
    peer.owner.dispatcher._control_pool.submit(int).result()
    for _ in range(1000):
        client.pump()
        if stream in client.ended or b"grpc-status" in client.headers.get(stream, {}):
            return
        peer.loop.turn()
    raise AssertionError("no answer")


def test_a_bug_is_told_by_number_only(client):
    stream = client.call(INFER, infer_message("bug"))
    status, text = client.status(stream)
    assert status == 13
    assert "internal error" in text
    assert "secret" not in text


@pytest.mark.parametrize(("extra", "status"), [({"content_type": "application/json"}, b"415"), ({":method": "GET"}, b"405")])
def test_what_is_no_grpc_call(client, extra, status):
    stream = client.call(INFER, b"", end=False, **extra)
    assert client.headers[stream][b":status"] == status
    assert client.resets[stream] == 0  # no more of the request is wanted


def test_a_call_that_is_refused_early_is_told_to_stop(client):
    stream = client.call("/nope", b"x" * 100, end=False)
    assert client.status(stream)[0] == 12
    assert client.resets[stream] == 0
    assert client.status(client.call(INFER, infer_message()))[0] == 0


def test_a_message_that_is_cut_off(client):
    stream = client.call(INFER, end=False)
    client.engine.send_data(stream, framed(100) + b"x" * 50, end_stream=True)
    client.pump()
    assert client.status(stream) == (3, "message: cut off; expected as many bytes as its prefix says")


def test_messages_beyond_the_limit_are_refused_before_they_arrive():
    peer = Peer(limits=Limits(body_bytes=1000))
    client = Client(peer)
    stream = client.call(INFER, end=False)
    client.engine.send_data(stream, framed(1000 + (1 << 20) + 1))
    client.pump()
    assert client.status(stream)[0] == 8
    assert client.status(client.call(INFER, infer_message()))[0] == 0
    peer.close()


def test_a_token():
    peer = Peer(access=Access(token="secret"))
    client = Client(peer)
    assert client.status(client.call(INFER, infer_message())) == (
        16,
        "header authorization: not the token of this server; expected Bearer TOKEN",
    )
    assert client.status(client.call(INFER, infer_message(), authorization="Bearer wrong"))[0] == 16
    assert client.status(client.call(INFER, infer_message(), authorization="Bearer secret"))[0] == 0
    stream = client.call(LIVE, b"")
    wait_for(peer, client, stream)
    assert client.status(stream)[0] == 0  # health needs none
    peer.close()


def test_a_stream_is_answered_in_the_order_of_its_requests(client, peer):
    sent = [infer_message(id="0"), infer_message("held", id="1"), infer_message(id="2"), infer_message("nothing", id="3")]
    stream = client.call(STREAM_INFER, *sent, end=False)
    assert [reply.infer_response.id for reply in answers(client.messages[stream])] == ["0"]
    (request, done) = peer.core.held.pop()
    done(answer_to(request))
    client.pump()
    client.pump()
    assert [(reply.infer_response.id, bool(reply.error_message)) for reply in answers(client.messages[stream])] == [
        ("0", False),
        ("1", False),
        ("2", False),
        ("3", True),
    ]
    assert stream not in client.ended
    client.send(stream, infer_message(id="4", parameters={"triton_enable_empty_final_response": True}), end=True)
    last = answers(client.messages[stream])[-1].infer_response
    assert (last.id, last.parameters["triton_final_response"].bool_param) == ("4", True)
    assert client.status(stream)[0] == 0


def test_a_streams_requests_reach_the_core_in_order(client, peer):
    text = np.array([b"x" * 100] * 5000, dtype=object)  # long enough to be read in a thread
    slow = encode_request(InferRequest("held", [Tensor("x", text)], id="1")).SerializeToString()
    busy = threading.Event()
    for _ in range(2):
        peer.owner.dispatcher._pool.submit(busy.wait)
    stream = client.call(STREAM_INFER, infer_message("held", id="0"), slow, infer_message("held", id="2"), end=False)
    assert [request.id for request, _ in peer.core.held] == ["0"]
    busy.set()
    while len(peer.core.held) < 3:
        client.pump()
    assert [request.id for request, _ in peer.core.held] == ["0", "1", "2"]
    client.reset(stream)


def test_a_stream_ends_when_its_last_answer_is_given(client, peer):
    stream = client.call(STREAM_INFER, infer_message("held", id="1"))
    assert stream not in client.ended
    (request, done) = peer.core.held.pop()
    done(answer_to(request))
    client.pump()
    assert (len(answers(client.messages[stream])), client.status(stream)[0]) == (1, 0)
    empty = client.call(STREAM_INFER)
    assert client.status(empty)[0] == 0


def test_a_stream_message_that_is_no_protobuf_ends_it(client, peer):
    stream = client.call(STREAM_INFER, infer_message("held", id="1"), b"\xff\xff", end=False)
    assert client.status(stream)[0] == 3
    assert peer.core.cancelled == ["1"]


def test_cancelling_reaches_the_core(client, peer):
    unary = client.call(INFER, infer_message("held", id="u"))
    stream = client.call(STREAM_INFER, infer_message("held", id="s"), end=False)
    client.reset(unary)
    client.reset(stream)
    assert sorted(peer.core.cancelled) == ["s", "u"]
    for request, done in peer.core.held:  # too late, and nobody's
        done(answer_to(request))
    client.pump()
    assert client.status(client.call(INFER, infer_message()))[0] == 0
    assert peer.owner.open_calls == 0


@pytest.mark.parametrize("path", [INFER, STREAM_INFER, LIVE, "/nope"])
def test_cancelling_at_once_costs_the_call_only(peer, path):
    peer.greet()
    body = framed(len(infer_message())) + infer_message()
    for index, whole in enumerate((True, False, True)):
        stream = 1 + 2 * index
        peer.feed(
            frame(HEADERS, END_HEADERS, stream, header_block(path)),
            frame(DATA, END_STREAM if whole else 0, stream, body if whole else body[:-1]),
            frame(RST_STREAM, 0, stream, CANCELLED),
        )
    assert not peer.wire.closed
    peer.wire.take()
    peer.feed(frame(HEADERS, END_HEADERS, 7, BLOCK), frame(DATA, END_STREAM, 7, body))
    assert [kind for kind, _, stream, _ in frames_of(peer.wire.sent) if stream == 7 and kind != WINDOW_UPDATE] == [HEADERS, DATA, HEADERS]
    assert (peer.owner.open_calls, peer.owner.held_bytes) == (0, 0)


def test_an_answer_that_cannot_be_written_costs_its_connection_only(peer, monkeypatch):
    broken, other = Client(peer), Client(Peer(owner=peer.owner))
    other.peer.loop = peer.loop

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(peer.connection, "send", fail)
    broken.call(INFER, infer_message(), pump=False)
    peer.feed(broken.engine.data_to_send())
    assert peer.wire.closed == "abort"
    assert other.status(other.call(INFER, infer_message()))[0] == 0


def test_a_client_that_vanishes_cancels_all(client, peer):
    for index in range(3):
        client.call(INFER, infer_message("held", id=str(index)))
    client.call(INFER, end=False)
    client.engine.send_data(7, framed(100) + b"half")
    client.pump()
    assert peer.owner.held_bytes == 9
    peer.connection.connection_lost(ConnectionResetError())
    assert sorted(peer.core.cancelled) == ["0", "1", "2"]
    assert (peer.owner.open_calls, peer.owner.held_bytes, peer.owner.connections) == (0, 0, set())


def test_answers_wait_for_the_clients_window(peer):
    client = Client(peer, window=1000)
    stream = client.call(INFER, infer_message(size=2000))  # 8,000 bytes back
    assert len(client.messages[stream]) == 1000
    seen = 0
    while (fresh := len(client.messages[stream]) - seen) > 0:
        assert fresh <= 1000
        seen += fresh
        client.engine.acknowledge_received_data(fresh, stream)
        client.pump()
    assert (len(answers(client.messages[stream], "ModelInferResponse")), client.status(stream)[0]) == (1, 0)


def test_a_stream_whose_answers_wait_is_held_back(client, peer):
    message = infer_message("held", size=1000)
    stream = client.call(STREAM_INFER, end=False)
    for _ in range(500):  # 2 MB; a stream may send 1 MiB ahead
        client.engine.send_data(stream, framed(len(message)) + message)
    client.pump()
    assert len(peer.core.held) == 64
    assert 64 * 4000 < peer.owner.held_bytes <= 1 << 20
    answered = 0
    while peer.core.held:
        request, done = peer.core.held.pop(0)
        done(answer_to(request))
        client.pump()
        answered += 1
    assert answered == 500
    assert (peer.owner.held_bytes, len(answers(client.messages[stream]))) == (0, 500)


def test_nothing_is_written_while_the_client_does_not_read(client, peer):
    peer.connection.pause_writing()
    stream = client.call(INFER, infer_message())
    assert stream not in client.headers
    peer.connection.resume_writing()
    client.pump()
    assert client.status(stream)[0] == 0


def test_the_sweep_gives_up_on_slow_clients(peer):
    client = Client(peer)
    slow = client.call(INFER, end=False)
    late = client.call(INFER, infer_message("held", id="late"), grpc_timeout="1S")
    idle = client.call(STREAM_INFER, end=False)
    begun_s = peer.connection._begun_s
    peer.connection.sweep(begun_s + 0.5)
    client.pump()
    assert not client.ended
    peer.connection.sweep(begun_s + 5)
    client.pump()
    assert client.status(late)[0] == 4
    assert peer.core.cancelled == ["late"]
    peer.connection.sweep(begun_s + 100)
    client.pump()
    assert client.status(slow)[0] == 4
    assert idle not in client.ended  # a stream may wait as long as it likes
    peer.connection.pause_writing()
    client.call(INFER, infer_message())
    for later_s in (101, 120, 140):
        peer.wire.buffered += 1  # it reads, slowly
        peer.connection.sweep(begun_s + later_s)
    assert not peer.wire.closed
    peer.connection.sweep(begun_s + 200)
    assert peer.wire.closed == "abort"


def test_a_connection_that_says_nothing_is_closed(peer):
    peer.connection.sweep(peer.connection._begun_s + 9)
    assert not peer.wire.closed
    peer.connection.sweep(peer.connection._begun_s + 11)
    assert peer.wire.closed == "abort"


def test_draining_lets_calls_finish_and_idle_streams_go(client, peer):
    held = client.call(INFER, infer_message("held"))
    idle = client.call(STREAM_INFER, end=False)
    peer.owner.draining = True
    peer.connection.begin_drain()
    crossing = client.call(INFER, infer_message(), pump=False)  # sent before the client knows
    client.pump()
    assert client.goaways == [(2**31 - 1, 0), (crossing, 0)]
    assert client.status(crossing)[0] == 0
    assert client.status(idle)[0] == 14
    assert held not in client.ended
    assert not peer.wire.closed
    request, done = peer.core.held.pop()
    done(answer_to(request))
    client.pump()
    assert client.status(held)[0] == 0
    assert peer.wire.closed == "close"
    refused = Peer(owner=peer.owner)
    assert refused.wire.closed == "abort"


def test_a_server_that_stops_is_not_ready(client, peer):
    for path, answers in (("/grpc.health.v1.Health/Check", (b"\x08\x01", b"\x08\x02")), (READY, (b"\x08\x01", b""))):
        for peer.owner.dispatcher.control.stopping in (False, True):
            stream = client.call(path, b"")
            wait_for(peer, client, stream)
            assert client.messages[stream][5:] == answers[peer.owner.dispatcher.control.stopping]


def test_too_many_connections_and_calls(peer):
    peer.owner.max_connections = 1
    assert Peer(owner=peer.owner).wire.closed == "abort"
    client = Client(peer)
    peer.owner.open_calls = 1 << 14
    assert client.status(client.call(INFER, infer_message()))[0] == 8
    peer.owner.open_calls = 0
    assert client.status(client.call(INFER, infer_message()))[0] == 0


def test_too_much_that_is_not_complete(client, peer):
    peer.owner.max_held_bytes = 10_000
    first = client.call(INFER, end=False)
    client.engine.send_data(first, framed(50_000) + b"x" * 9000)
    second = client.call(INFER, end=False)
    client.engine.send_data(second, framed(50_000) + b"x" * 9000)
    client.pump()
    assert client.status(second) == (8, "server: too much is being sent to it at once; try again later")
    assert peer.owner.held_bytes == 9005


BLOCK = header_block()
FLOODS = {
    "rapid resets": lambda index: frame(HEADERS, END_HEADERS, 1 + 2 * index, BLOCK) + frame(RST_STREAM, 0, 1 + 2 * index, CANCELLED),
    "continuations": lambda index: frame(CONTINUATION, 0, 1) if index else frame(HEADERS, 0, 1, BLOCK),
    "pings": lambda index: frame(PING, 0, 0, b"12345678"),
    "settings": lambda index: frame(SETTINGS),
    "empty data": lambda index: frame(DATA, 0, 1) if index else frame(HEADERS, END_HEADERS, 1, BLOCK),
    "window updates": lambda index: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "small pieces": lambda index: frame(DATA, 0, 1, b"\0\0\1\0\0") if index else frame(HEADERS, END_HEADERS, 1, BLOCK),
    "priorities": lambda index: frame(PRIORITY, 0, 1, bytes(5)),
    "unknown frames": lambda index: frame(99, 0, 0, b"x"),
    "calls beyond the limit": lambda index: frame(HEADERS, END_HEADERS, 1 + 2 * index, BLOCK),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(peer, name):
    peer.greet()
    sent = 0
    while not peer.wire.closed:
        peer.feed(FLOODS[name](sent))
        sent += 1
        assert sent < 3000
    assert frames_of(peer.wire.sent)[-1][0] == GOAWAY
    peer.feed(frame(PING, 0, 0, b"12345678"))  # nothing is read after that
    assert frames_of(peer.wire.sent)[-1][0] == GOAWAY


BREACHES = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS to a plain port": bytes.fromhex("16030100c6010000c20303") + bytes(64),
    "a frame beyond the limit": PREFACE + frame(SETTINGS) + frame(DATA, 0, 1, b"x" * ((1 << 20) + 1)),
    "data on no stream": PREFACE + frame(SETTINGS) + frame(DATA, 0, 0, b"x"),
    "an even stream": PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 2, BLOCK),
    "damaged headers": PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
    "too many headers": PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, BLOCK + b"\0\x01a\x01b" * 200),
    "headers too large": PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, header_block(extra={"a": "b" * 20_000})),
    "a window beyond 2^31": PREFACE + frame(SETTINGS) + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "a short ping": PREFACE + frame(SETTINGS) + frame(PING, 0, 0, b"hello"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breaches_end_the_connection(peer, name):
    peer.feed(BREACHES[name])
    assert peer.wire.closed
    assert frames_of(peer.wire.sent)[-1][0] == GOAWAY


FRAMES = st.builds(
    frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 5, 2, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=40), st.sampled_from([BLOCK, CANCELLED, framed(3) + b"abc", framed(len(infer_message())) + infer_message()])
    ),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(FRAMES, max_size=12), st.booleans(), st.binary(max_size=8))
def test_no_frames_break_the_server(frames, opened, tail):
    peer = Peer()
    peer.greet()
    if opened:
        peer.feed(frame(HEADERS, END_HEADERS, 1, BLOCK))
    for one in frames:
        peer.feed(one)
    peer.feed(tail)
    if not peer.wire.closed:
        assert frames_of(peer.wire.sent)  # whole frames only
        peer.connection.sweep(peer.connection._begun_s + 1000)
    peer.close()
    assert (peer.owner.open_calls, peer.owner.held_bytes) == (0, 0)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data())
def test_no_body_breaks_a_call(data):
    peer = Peer()
    client = Client(peer)
    raw = bytearray(framed(len(infer_message())) + infer_message())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw)))
        raw[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    for path in (INFER, STREAM_INFER):
        stream = client.call(path, end=False)
        client.engine.send_data(stream, bytes(raw), end_stream=True)
        client.pump()
        assert client.status(stream)[0] in {0, 3, 5, 8, 12, 13}
        assert "internal error" not in client.status(stream)[1]
    assert client.status(client.call(INFER, infer_message()))[0] == 0
    peer.close()


def test_end_stream_may_come_in_a_frame_of_its_own(peer):
    peer.greet()
    body = framed(len(infer_message())) + infer_message()
    peer.feed(frame(HEADERS, END_HEADERS, 1, BLOCK), *(frame(DATA, 0, 1, body[index : index + 7]) for index in range(0, len(body), 7)))
    before = len(frames_of(peer.wire.sent))
    peer.feed(frame(DATA, END_STREAM, 1))
    assert [kind for kind, *_ in frames_of(peer.wire.sent)[before:] if kind != WINDOW_UPDATE] == [HEADERS, DATA, HEADERS]
