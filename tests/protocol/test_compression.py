"""Compressed bodies: what comes out is bounded, and the answer's coding is what the client asked for."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.protocol._compression import WINDOW_BITS, InflatedSizeError, accepted_coding, compress, inflate
from edgekit.protocol._grpc_wire import MessageReader, framed, packed, prefixed, read_head
from edgekit.protocol._grpc_wire import inflate as inflate_message
from tests.protocol.grpc_memory import INFER, STREAM_INFER, Client, Peer, infer_message
from tests.protocol.waiting import until


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(sorted(WINDOW_BITS)))
def test_what_was_compressed_comes_back(parts, coding):
    whole = b"".join(parts)
    data = compress(parts, WINDOW_BITS[coding])
    assert (gzip if coding == "gzip" else zlib).decompress(data) == whole
    assert inflate("body", data, WINDOW_BITS[coding], len(whole)) == whole
    if whole:
        with pytest.raises(InflatedSizeError, match="after decompression"):
            inflate("body", data, WINDOW_BITS[coding], len(whole) - 1)
    with pytest.raises(RequestError, match="truncated"):
        inflate("body", data[:-1], WINDOW_BITS[coding], 10_000)
    with pytest.raises(RequestError, match="3 bytes after"):
        inflate("body", data + b"abc", WINDOW_BITS[coding], 10_000)


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        (None, ""),
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("GZIP;Q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0, deflate", "deflate"),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip", "gzip"),
        ("*", ""),
        ("br", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=7", ""),
        ("gzip;level=1", ""),
        (",,;,gzip ; q=1.0", "gzip"),
    ],
)
def test_the_coding_of_an_answer(field, coding):
    assert accepted_coding(field) == coding


@pytest.mark.parametrize("size", [1_000, 100_000])  # compressed in the loop, and in a thread
def test_what_crosses_the_wire_is_compressed(size):
    peer = Peer()
    client = Client(peer)
    for path in (INFER, STREAM_INFER):
        call = client.call(path, infer_message(size=size, id="7"), grpc_encoding="gzip", grpc_accept_encoding="gzip", pump=False)
        until(lambda call=call: client.pump() or call in client.ended)
        assert client.headers[call][b"grpc-encoding"] == b"gzip"
        assert client.status(call) == (0, "")
        data = client.messages[call]
        assert data[0] == 1
        (message,) = MessageReader(1_000_000, WINDOW_BITS["gzip"]).feed(data)
        assert len(message.data) < 4 * size
        assert b"echo" in bytes(inflate_message(message, 1_000_000))
        plain = client.call(path, infer_message(size=size), grpc_encoding="gzip")
        assert client.messages[plain][0] == 0
        assert b"grpc-encoding" not in client.headers[plain]
    assert peer.owner.dispatcher._in_flight == 0
    peer.close()


def test_a_client_that_leaves_while_its_answer_is_compressed():
    peer = Peer()
    client = Client(peer)
    for path in (INFER, STREAM_INFER):
        call = client.call(path, infer_message(size=100_000), grpc_encoding="gzip", grpc_accept_encoding="gzip", pump=False)
        peer.feed(client.engine.data_to_send())
        client.reset(call)
        until(lambda: client.pump() or peer.owner.dispatcher._in_flight == 0)
    assert peer.owner.open_calls == 0
    assert client.status(client.call(INFER, infer_message())) == (0, "")
    peer.close()


def test_a_grpc_message_is_compressed_where_that_makes_it_smaller():
    parts = [b"abc" * 500, memoryview(bytes(1000))]
    data = b"".join(packed(parts, WINDOW_BITS["gzip"]))
    assert data[0] == 1
    assert len(data) < 200
    (message,) = MessageReader(10_000, WINDOW_BITS["gzip"]).feed(data)
    assert inflate_message(message, 10_000) == b"abc" * 500 + bytes(1000)
    assert packed([b"ab"], WINDOW_BITS["deflate"]) == prefixed([b"ab"]) == [framed(2), b"ab"]


@pytest.mark.parametrize(
    ("sent", "takes", "answered"),
    [("gzip", "identity, deflate, gzip", 31), ("deflate", "deflate", 15), ("gzip", "deflate", 0), ("gzip", None, 0), (None, "gzip", 0)],
)
def test_answers_are_compressed_as_the_request_is(sent, takes, answered):
    fields = {"grpc-encoding": sent, "grpc-accept-encoding": takes}
    head = read_head([(key.encode(), value.encode()) for key, value in fields.items() if value is not None])
    assert head.answer_encoding == answered
