"""Heads and chunks of HTTP/1.1: what is read, and everything that two readers could read in two ways is refused."""

import http.client
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.protocol._http_parse import ChunkedBody, HeadLimits, HttpError, check_partial_head, parse_head

QUICK = settings(derandomize=True, deadline=None, max_examples=200)
LIMITS = HeadLimits()


def head(*lines, line="POST /v2/models/m/infer HTTP/1.1", host=True):
    return "\r\n".join([line, *(["Host: h"] if host else []), *lines, "", ""]).encode("latin-1")


def test_a_plain_head():
    got = parse_head(head("Content-Length:  12 ", "X-A: b\tc", "x-a: d", "Empty:"), LIMITS)
    assert (got.method, got.path, got.length, got.minor) == ("POST", "/v2/models/m/infer", 12, 1)
    assert got.fields == {"host": "h", "content-length": "12", "x-a": "b\tc, d", "empty": ""}
    assert got.keep_alive
    assert not got.expects_continue


GOOD = {
    "query": (head(line="GET /v2?x=1#y HTTP/1.1"), {"path": "/v2"}),
    "absolute": (head(line="GET http://h:80/v2/health?q HTTP/1.1"), {"path": "/v2/health"}),
    "absolute without a path": (head(line="GET http://h HTTP/1.1"), {"path": "/"}),
    "encoded stays encoded": (head(line="GET /v2/models/a%2Fb HTTP/1.1"), {"path": "/v2/models/a%2Fb"}),
    "close": (head("Connection: x, Close"), {"keep_alive": False}),
    "HTTP/1.0": (head(line="GET / HTTP/1.0", host=False), {"keep_alive": False, "minor": 0, "length": 0}),
    "HTTP/1.0 kept": (head("Connection: keep-alive", line="GET / HTTP/1.0"), {"keep_alive": True}),
    "chunked": (head("Transfer-Encoding: Chunked"), {"length": None}),
    "continue": (head("Expect: 100-Continue", "Content-Length: 3"), {"expects_continue": True}),
    "no length": (head(), {"length": 0}),
    "largest length": (head("Content-Length: " + "9" * 18), {"length": 10**18 - 1}),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_heads(name):
    raw, expected = GOOD[name]
    got = parse_head(raw, LIMITS)
    assert {key: getattr(got, key) for key in expected} == expected


BAD = {
    "both lengths": (head("Content-Length: 3", "Transfer-Encoding: chunked"), 400, "both Content-Length and Transfer-Encoding"),
    "two lengths": (head("Content-Length: 3", "Content-Length: 4"), 400, "content-length: given more than once"),
    "the same length twice": (head("Content-Length: 3", "content-length: 3"), 400, "given more than once"),
    "a list of lengths": (head("Content-Length: 3, 3"), 400, "expected digits"),
    "signed length": (head("Content-Length: +3"), 400, "expected digits"),
    "negative length": (head("Content-Length: -3"), 400, "expected digits"),
    "hexadecimal length": (head("Content-Length: 0x3"), 400, "expected digits"),
    "length of other digits": (head("Content-Length: \xb2"), 400, "expected digits"),
    "length with a gap": (head("Content-Length: 1 2"), 400, "expected digits"),
    "empty length": (head("Content-Length:"), 400, "expected digits"),
    "huge length": (head("Content-Length: " + "9" * 19), 400, "expected digits"),
    "two codings": (head("Transfer-Encoding: gzip, chunked"), 501, "expected chunked"),
    "chunked twice": (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400, "given more than once"),
    "chunked with a tail": (head("Transfer-Encoding: chunked\x0b"), 400, "field"),
    "identity": (head("Transfer-Encoding: identity"), 501, "expected chunked"),
    "chunked in HTTP/1.0": (head("Transfer-Encoding: chunked", line="POST / HTTP/1.0"), 400, "in HTTP/1.0"),
    "space before the colon": (head("Content-Length : 3"), 400, "no space before the colon"),
    "folded": (head("X-A: b", " c"), 400, "on one line"),
    "first line folded": (head(" X-A: b", host=False), 400, "on one line"),
    "no colon": (head("X-A"), 400, "NAME: value"),
    "no name": (head(": x"), 400, "NAME: value"),
    "a name that is no token": (head("X A: b"), 400, "NAME: value"),
    "zero byte": (head("X-A: a\0b"), 400, "NAME: value"),
    "CR alone": (head("X-A: a\rContent-Length: 3"), 400, "NAME: value"),
    "LF alone": (head("X-A: a\nContent-Length: 3"), 400, "without CR"),
    "LF in the request line": (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "without CR"),
    "no Host": (head(host=False), 400, "no Host"),
    "two Hosts": (head("Host: other"), 400, "host: given more than once"),
    "two tokens": (head("Authorization: a", "Authorization: b"), 400, "authorization: given more than once"),
    "two JSON lengths": (
        head("Inference-Header-Content-Length: 1", "Inference-Header-Content-Length: 2"),
        400,
        "inference-header-content-length: given more than once",
    ),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 505, "expected HTTP/1.1"),
    "HTTP/1.2": (head(line="GET / HTTP/1.2"), 505, "expected HTTP/1.1"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "request line"),
    "lower case version": (head(line="GET / http/1.1"), 400, "request line"),
    "two spaces": (head(line="GET  / HTTP/1.1"), 400, "request line"),
    "tab": (head(line="GET\t/ HTTP/1.1"), 400, "request line"),
    "trailing space": (head(line="GET / HTTP/1.1 "), 400, "request line"),
    "target with a high byte": (head(line="GET /\xe4 HTTP/1.1"), 400, "request line"),
    "target of another kind": (head(line="CONNECT h:80 HTTP/1.1"), 400, "expected a path"),
    "asterisk": (head(line="OPTIONS * HTTP/1.1"), 400, "expected a path"),
    "other expectation": (head("Expect: 200-maybe"), 417, "expected 100-continue"),
    "long line": (head(line=f"GET /{'a' * 9000} HTTP/1.1"), 414, "at most 8192"),
    "many fields": (head(*[f"X-{index}: 1" for index in range(100)]), 431, "at most 100"),
    "large head": (head("X-A: " + "a" * 33_000), 431, "at most 32768"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_heads(name):
    raw, status, message = BAD[name]
    with pytest.raises(HttpError) as caught:
        parse_head(raw, LIMITS)
    assert caught.value.http_status == status
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\n", 400),
        (b"\x16\x03\x01\x02", 400),
        (b" GET", 400),
        (b"A" * 9000, 414),
        (b"GET / HTTP/1.1\r\n" + b"a" * 40_000, 431),
    ],
)
def test_what_cannot_become_a_head_is_refused_early(raw, status):
    with pytest.raises(HttpError) as caught:
        check_partial_head(raw, LIMITS)
    assert caught.value.http_status == status


@QUICK
@given(st.integers(1, 200))
def test_every_beginning_of_a_good_head_may_go_on(count):
    raw = head("Content-Length: 3", "X-A: " + "b" * 100)
    check_partial_head(raw[: min(count, len(raw) - 4)], LIMITS)


@QUICK
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"GET / HTTP/1.1\r\nHost: h\r\n" + tail))
def test_any_bytes_make_a_head_or_an_error(raw):
    raw = raw.replace(b"\r\n\r\n", b"") + b"\r\n\r\n"
    status, got = 200, None
    try:
        got = parse_head(raw, LIMITS)
    except HttpError as exc:
        status = exc.http_status
    assert status in {200, 400, 414, 417, 431, 501, 505}
    if got is None:
        return
    # What we take, the standard library reads the same way.
    theirs = http.client.parse_headers(io.BytesIO(raw.partition(b"\r\n")[2]))
    assert {key.lower() for key in theirs} == set(got.fields)
    assert got.fields.get("content-length") == theirs.get("content-length")


def chunks(pieces, extension=b"", trailer=b""):
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    return body + b"0\r\n" + trailer + b"\r\n"


@QUICK
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.sampled_from([b"", b";a", b' ; a="b c"']),
    st.sampled_from([b"", b"X-T: 1\r\n", b"X-T: 1\r\nY:\r\n"]),
    st.binary(max_size=10),
    st.lists(st.integers(1, 30), max_size=40),
)
def test_chunks_however_they_are_cut(pieces, extension, trailer, after, cuts):
    raw = chunks(pieces, extension, trailer) + after
    body = ChunkedBody(1000)
    rest = None
    at = 0
    for cut in [*cuts, len(raw)]:
        if at >= len(raw):
            break
        rest = body.feed(raw[at : at + cut])
        at += cut
        if rest is not None:
            break
    assert bytes(body.data) == b"".join(pieces)
    assert rest is not None
    assert rest + raw[at:] == after


BAD_CHUNKS = {
    "no size": b"\r\n",
    "minus": b"-1\r\n",
    "prefix": b"0x1\r\na\r\n",
    "underscore": b"1_0\r\n",
    "space before": b" 1\r\na\r\n",
    "letters": b"xyz\r\n",
    "huge": b"f" * 16 + b"\r\n",
    "LF alone": b"1\na\r\n",
    "LF first": b"\n",
    "data too long": b"1\r\nab\r\n",
    "LF after data": b"1\r\na\n0\r\n",
    "endless extension": b"1;" + b"a" * 300,
    "zero byte in the extension": b"1;\0\r\n",
    "bad trailer": b"0\r\nno colon\r\n\r\n",
    "folded trailer": b"0\r\nX: 1\r\n b\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * 2000,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("step", [1, 1000])
def test_bad_chunks(name, step):
    raw = BAD_CHUNKS[name]
    body = ChunkedBody(1000)
    with pytest.raises(HttpError) as caught:
        for at in range(0, len(raw), step):
            assert body.feed(raw[at : at + step]) is None
    assert caught.value.http_status == 400


def test_chunks_beyond_the_limit_are_refused_before_they_come():
    body = ChunkedBody(10)
    assert body.feed(b"6\r\nabcdef\r\n") is None
    with pytest.raises(HttpError) as caught:
        body.feed(b"5\r\n")
    assert caught.value.http_status == 413
