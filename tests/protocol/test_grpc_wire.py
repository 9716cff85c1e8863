"""Heads, timeouts, statuses and the cutting of messages."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import OverloadedError, RequestError
from edgekit.protocol._grpc_wire import (
    Message,
    MessageReader,
    StatusError,
    framed,
    inflate,
    read_end,
    read_head,
    read_reset,
    status_text,
    timeout_s,
    timeout_text,
)

QUICK = settings(derandomize=True, deadline=None, max_examples=100)
HEAD = {b":method": b"POST", b":path": b"/s/M", b"content-type": b"application/grpc"}


def head(**changes):
    named = {key.replace("_", "-").encode(): value for key, value in changes.items()}
    return read_head({**HEAD, **named}.items())


def test_head():
    assert head().http_status == 200
    found = head(grpc_timeout=b"250m", grpc_encoding=b"gzip", authorization=b"Bearer x")
    assert (found.path, found.timeout_s, found.encoding, found.authorization) == ("/s/M", 0.25, 31, "Bearer x")
    assert head(grpc_encoding=b"identity").encoding == 0


@pytest.mark.parametrize("kind", [b"application/grpc+proto", b"application/grpc;charset=utf-8"])
def test_content_types_of_grpc(kind):
    assert head(content_type=kind).http_status == 200


def test_what_is_no_grpc_call_gets_an_http_status():
    assert head(content_type=b"application/grpc-web").http_status == 415
    assert head(content_type=b"application/json").http_status == 415
    assert read_head({**HEAD, b":method": b"GET"}.items()).http_status == 405
    assert read_head([(b":method", b"POST")]).http_status == 415


def test_an_unknown_encoding_is_not_implemented():
    with pytest.raises(StatusError, match="grpc-encoding: 'snappy'; expected identity,deflate,gzip") as caught:
        head(grpc_encoding=b"snappy")
    assert caught.value.grpc_status == "UNIMPLEMENTED"


def test_timeouts():
    assert [timeout_s(text) for text in ("1H", "2M", "3S", "4m", "5u", "6n", "99999999n")] == pytest.approx(
        [3600, 120, 3, 4e-3, 5e-6, 6e-9, 0.099999999]
    )


@pytest.mark.parametrize("text", ["", "1", "m", "-1m", "1.5S", "123456789m", "1x", "１m", "1 m", "1mm"])
def test_bad_timeouts(text):
    with pytest.raises(RequestError, match="header grpc-timeout"):
        timeout_s(text)


@QUICK
@given(st.floats(0, 1e12))
def test_a_timeout_is_written_shorter_by_a_512th_at_most(seconds):
    told = timeout_s(timeout_text(seconds).decode())
    assert told <= max(seconds, 1e-6)
    assert told >= min(seconds, 99_990_000) * (1 - 1 / 512 - 1e-4) - 1e-6


def test_the_end_of_a_call():
    assert read_end({b"grpc-status": b"0", b"grpc-message": b"fine"}) is None
    ends = {
        (b"5", b"no%20%C3%BC", b"20"): ("NOT_FOUND", "no ü", 0.02),
        (b"77", b"", b"-1"): ("UNKNOWN", "", None),
        (b"x", b"%zz%ff", b"1e3"): ("UNKNOWN", "%zz\ufffd", None),
    }
    for (status, text, pushback), expected in ends.items():
        found = read_end({b"grpc-status": status, b"grpc-message": text, b"grpc-retry-pushback-ms": pushback})
        assert (found.status, found.text, found.pushback_s) == expected
    for status, name in ((b"502", "UNAVAILABLE"), (b"404", "UNIMPLEMENTED"), (b"200", "UNKNOWN"), (b"", "UNKNOWN")):
        assert read_end({b":status": status}).status == name
    assert [read_reset(code).status for code in (0, 7, 8, 11)] == ["INTERNAL", "UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"]


def test_status_text_is_percent_encoded():
    assert status_text("100% é\n") == b"100%25 %C3%A9%0A"
    assert len(status_text("x" * 10_000)) < 2100


@QUICK
@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_any_cut_gives_the_same_messages(messages, data):
    wire = b"".join(framed(len(message)) + message for message in messages)
    reader = MessageReader(100)
    found = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        found += [bytes(message.data) for message in reader.feed(wire[:size])]
        wire = wire[size:]
    assert found == messages
    assert reader.complete()


@QUICK
@given(st.lists(st.binary(max_size=30), max_size=8))
def test_no_bytes_break_the_reader(chunks):
    reader = MessageReader(1000, 31)
    with contextlib.suppress(StatusError, OverloadedError):
        for chunk in chunks:
            reader.feed(chunk)
    assert reader.held <= sum(map(len, chunks))


def test_a_message_that_is_one_chunk_is_not_copied():
    chunk = framed(8) + b"01234567"
    (message,) = MessageReader(100).feed(chunk)
    assert message.data.obj is chunk


def test_refused_prefixes():
    with pytest.raises(OverloadedError, match="message: 101 bytes; expected at most 100"):
        MessageReader(100).feed(framed(101) + b"x" * 101)  # all of it, and...
    with pytest.raises(OverloadedError, match="101 bytes"):
        MessageReader(100).feed(framed(101))  # ...before any of it is there
    with pytest.raises(StatusError, match="flag 7"):
        MessageReader(100).feed(b"\x07\0\0\0\0")
    with pytest.raises(StatusError, match="compressed, and no header"):
        MessageReader(100).feed(b"\x01\0\0\0\0")


def test_inflate():
    assert bytes(inflate(Message(gzip.compress(b"abc"), 31), 100)) == b"abc"
    assert bytes(inflate(Message(zlib.compress(b"abc"), 15), 100)) == b"abc"
    assert inflate(Message(b"abc"), 100) == b"abc"
    with pytest.raises(OverloadedError, match="more than 100 bytes after decompression"):
        inflate(Message(gzip.compress(bytes(10_000)), 31), 100)
    with pytest.raises(RequestError, match="truncated"):
        inflate(Message(gzip.compress(b"abc" * 50)[:-9], 31), 1000)
    with pytest.raises(RequestError, match="damaged"):
        inflate(Message(b"hello world", 31), 100)
