"""gRPC over HTTP/2, as data: heads of calls, length-prefixed messages, statuses. Pure: no I/O, the caller gives the time.

Reference: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md (called "the protocol" below).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from edgekit.errors import EdgeKitError, OverloadedError, RequestError
from edgekit.protocol import _compression
from edgekit.protocol._byte_budget import Charge
from edgekit.protocol._compression import WINDOW_BITS
from edgekit.protocol._deadline import rounded_down
from edgekit.protocol._tensors import Limits, shorten

__all__ = [
    "ACCEPTED_ENCODINGS",
    "OK",
    "PREFIX_BYTES",
    "PUSHBACK",
    "CallHead",
    "Message",
    "MessageReader",
    "RefusedError",
    "StatusError",
    "answer_encoding",
    "framed",
    "inflate",
    "is_grpc",
    "message_limit_bytes",
    "not_grpc",
    "packed",
    "prefixed",
    "pushback_s",
    "read_end",
    "read_head",
    "read_reset",
    "status_number",
    "status_text",
    "timeout_s",
    "timeout_text",
]

OK = 0
_STATUS = {
    name: number
    for number, name in enumerate(
        (
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        )
    )
}
_NAMES = {b"%d" % number: name for name, number in _STATUS.items()}
# What an answer that is not gRPC's means: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_OF_HTTP = {
    b"400": "INTERNAL",
    b"401": "UNAUTHENTICATED",
    b"403": "PERMISSION_DENIED",
    b"404": "UNIMPLEMENTED",
    **dict.fromkeys((b"429", b"502", b"503", b"504"), "UNAVAILABLE"),
}
# What a stream that was reset means ("HTTP2 Transport Mapping" in the protocol); INTERNAL for all others.
_OF_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
_WINDOW_BITS = {name.encode(): bits for name, bits in WINDOW_BITS.items()}
_TIMEOUT_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MOST_TIMEOUT_S = 99_999_999  # 8 digits
_LARGER_UNIT = {b"u": b"m", b"m": b"S"}
_CONTENT_TYPE = b"application/grpc"
PUSHBACK = b"grpc-retry-pushback-ms"
PREFIX_BYTES = 5  # flag, 4-byte big-endian length
_SMALL_BYTES = 1024
_SLACK_BYTES = 1 << 20
_MESSAGE_TEXT = 2000  # characters of grpc-message: a header, which clients bound at 8 KiB


class StatusError(EdgeKitError):
    """A call that ends with a status of its own (``UNIMPLEMENTED`` for an unknown method)."""

    def __init__(self, status: str, thing: str, found: str, expected: str = "", hint: str = "") -> None:
        super().__init__(thing, found, expected, hint)
        self.grpc_status = status


class CallHead(msgspec.Struct):
    """What the headers of a call say.

    Attributes:
        path: ``/service/method``.
        timeout_s: seconds that the client still waits, ``None`` for no limit.
        encoding: of compressed messages, as zlib's window bits; 0 for none.
        answer_encoding: the same, of what may be sent back: what the client compresses with itself, if it takes that too.
        authorization: value of the header, ``None`` without it.
        http_status: 200, or why this is no gRPC call at all (405 for the method, 415 for the content type).
    """

    path: str = ""
    timeout_s: float | None = None
    encoding: int = 0
    answer_encoding: int = 0
    authorization: str | None = None
    http_status: int = 200


class RefusedError(Exception):
    """How a call ended that brought no message.

    Attributes:
        status: by name.
        text: the server's.
        pushback_s: it asked to be left alone for so long.
    """

    def __init__(self, status: str, text: str, pushback_s: float | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.pushback_s = pushback_s


class Message(msgspec.Struct):
    """One message as it came: bytes, or compressed bytes and zlib's window bits for them."""

    data: memoryview | bytes
    encoding: int = 0


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> CallHead:
    """The head of a call.

    Raises:
        StatusError: a message encoding that is not known.
        RequestError: a timeout that is none.
    """
    fields = dict(headers)
    head = CallHead(fields.get(b":path", b"").decode("latin-1"))
    content_type = fields.get(b"content-type", b"")
    if fields.get(b":method") != b"POST":
        head.http_status = 405
    elif content_type[: len(_CONTENT_TYPE)] != _CONTENT_TYPE or content_type[len(_CONTENT_TYPE) : len(_CONTENT_TYPE) + 1] not in b"+;":
        head.http_status = 415
    timeout = fields.get(b"grpc-timeout")
    if timeout is not None:
        head.timeout_s = timeout_s(timeout.decode("latin-1"))
    encoding = fields.get(b"grpc-encoding", b"identity")
    if encoding != b"identity":
        head.encoding = _WINDOW_BITS.get(encoding, 0)
        if not head.encoding:
            found = repr(shorten(encoding.decode("latin-1")))
            raise StatusError("UNIMPLEMENTED", "header grpc-encoding", found, ACCEPTED_ENCODINGS.decode())
        if encoding in fields.get(b"grpc-accept-encoding", b"").replace(b" ", b"").split(b","):
            head.answer_encoding = head.encoding
    authorization = fields.get(b"authorization")
    if authorization is not None:
        head.authorization = authorization.decode("latin-1")
    return head


def timeout_s(text: str) -> float:
    """Seconds of a ``grpc-timeout`` header: 1 to 8 digits and a unit.

    Raises:
        RequestError: anything else.
    """
    digits, unit = text[:-1], text[-1:]
    if unit not in _TIMEOUT_UNITS_S or not (1 <= len(digits) <= 8 and digits.isascii() and digits.isdigit()):
        raise RequestError("header grpc-timeout", repr(shorten(text)), "1 to 8 digits and one of H, M, S, m, u, n")
    return int(digits) * _TIMEOUT_UNITS_S[unit]


def timeout_text(seconds: float) -> bytes:
    """A ``grpc-timeout`` header for at least a microsecond, rounded down by a 512th at most: headers that are the same again take a byte or two."""
    number, unit = rounded_down(max(1, int(min(seconds, _MOST_TIMEOUT_S) * 1e6))), b"u"
    while number >= 10**8:
        number, unit = number // 1000, _LARGER_UNIT[unit]
    return b"%d%s" % (number, unit)


def read_end(fields: Mapping[bytes, bytes]) -> RefusedError | None:
    """What the last headers of a call say: ``None`` for a call that went well.

    Args:
        fields: the trailers, or all headers of an answer that is nothing else.
    """
    status = fields.get(b"grpc-status")
    if status is None:
        return not_grpc(fields)
    if status == b"0":
        return None
    text = urllib.parse.unquote(fields.get(b"grpc-message", b"").decode("latin-1"), errors="replace")
    return RefusedError(_NAMES.get(status, "UNKNOWN"), text, pushback_s(fields.get(PUSHBACK)))


def not_grpc(fields: Mapping[bytes, bytes]) -> RefusedError:
    """What an answer says that is not gRPC's: somebody else's, in between."""
    http_status = fields.get(b":status", b"")
    return RefusedError(
        _OF_HTTP.get(http_status, "UNKNOWN"), f"not an answer of gRPC (HTTP status {http_status.decode('latin-1') or 'missing'})"
    )


def read_reset(error_code: int) -> RefusedError:
    """What a stream that the server has reset says."""
    return RefusedError(_OF_RESET.get(error_code, "INTERNAL"), f"the server has reset the stream (HTTP/2 error {error_code})")


def answer_encoding(fields: Mapping[bytes, bytes]) -> int:
    """How the messages of an answer may be compressed, as `CallHead.encoding`; 0 also for what is not known, whose messages are then refused."""
    return _WINDOW_BITS.get(fields.get(b"grpc-encoding", b""), 0)


def is_grpc(fields: Mapping[bytes, bytes]) -> bool:
    """An answer's headers are gRPC's."""
    return fields.get(b":status") == b"200" and fields.get(b"content-type", b"").startswith(_CONTENT_TYPE)


def pushback_s(value: bytes | str | None) -> float | None:
    """Seconds of a ``grpc-retry-pushback-ms`` trailer (gRFC A6); ``None`` without one, and for "do not retry", which the caller's own budget decides."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    return int(text) / 1e3 if text.isascii() and text.isdigit() and len(text) < 10 else None


def status_number(name: str) -> int:
    """Number of a status by name."""
    return _STATUS[name]


def status_text(text: str) -> bytes:
    """A ``grpc-message`` value: UTF-8, percent-encoded as the protocol says, cut to what clients accept in a header."""
    raw = shorten(text, _MESSAGE_TEXT).encode(errors="replace")
    return b"".join(b"%c" % octet if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet for octet in raw)


def message_limit_bytes(limits: Limits) -> int:
    """The longest message: the tensors, and names, shapes and parameters beside them."""
    return min(limits.body_bytes + _SLACK_BYTES, (1 << 31) - 1)


def framed(size: int) -> bytes:
    """The prefix of an uncompressed message of ``size`` bytes."""
    return b"\0" + size.to_bytes(4, "big")


def prefixed(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A message in parts, with its prefix."""
    return [framed(sum(map(len, parts))), *parts]


def packed(parts: Sequence[bytes | memoryview], encoding: int) -> list[bytes | memoryview]:
    """As `prefixed`, compressed where that makes it smaller."""
    data = _compression.compress(parts, encoding)
    if len(data) >= sum(map(len, parts)):
        return prefixed(parts)
    return [b"\1" + len(data).to_bytes(4, "big"), data]


class MessageReader:
    """Cuts the bytes of one call into messages.

    Args:
        limit_bytes: the longest message, compressed or not.
        encoding: `CallHead.encoding`.

    Attributes:
        held: bytes of a message that is not complete yet.
    """

    __slots__ = ("_chunks", "_encoding", "_limit", "_needed", "held")

    def __init__(self, limit_bytes: int, encoding: int = 0) -> None:
        self._limit = limit_bytes
        self._encoding = encoding
        self._chunks: list[bytes | bytearray] = []
        self._needed = PREFIX_BYTES  # bytes until more is known: the prefix, then prefix and message
        self.held = 0

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that ``chunk`` completes. A message that is one chunk is not copied.

        Raises:
            OverloadedError: a message beyond the limit.
            StatusError: a prefix that the protocol does not know, or a compressed message in a call without an encoding.
        """
        length = len(chunk) - PREFIX_BYTES
        if not self.held and 0 < length <= self._limit and chunk[:PREFIX_BYTES] == framed(length):
            return [Message(memoryview(chunk)[PREFIX_BYTES:])]
        if self.held + len(chunk) < self._needed:
            if len(chunk) >= _SMALL_BYTES:
                self._chunks.append(chunk)
            elif chunk:  # many small ones would take many times their size
                if not self._chunks or type(self._chunks[-1]) is not bytearray:
                    self._chunks.append(bytearray())
                self._chunks[-1] += chunk
            self.held += len(chunk)
            return []
        data = chunk if not self._chunks else b"".join((*self._chunks, chunk))
        messages: list[Message] = []
        view = memoryview(data)
        start = 0
        while len(data) - start >= PREFIX_BYTES:
            flag, end = data[start], start + PREFIX_BYTES + self._length(data, start)
            if end > len(data):
                break
            messages.append(Message(view[start + PREFIX_BYTES : end], self._encoding if flag else 0))
            start = end
        self._keep(data, start)
        return messages

    def complete(self) -> bool:
        """No message is cut off when the call ends here."""
        return not self.held

    def _keep(self, data: bytes, start: int) -> None:
        self.held = len(data) - start
        self._chunks = [data[start:] if start else data] if self.held else []
        self._needed = PREFIX_BYTES + (self._length(data, start) if self.held >= PREFIX_BYTES else 0)

    def _length(self, data: bytes, start: int) -> int:
        """Length of the message whose prefix begins at ``start``."""
        flag, length = data[start], int.from_bytes(data[start + 1 : start + PREFIX_BYTES], "big")
        if flag > 1:
            raise StatusError("INTERNAL", "message prefix", f"flag {flag}", "0 or 1")
        if flag and not self._encoding:
            raise StatusError("INTERNAL", "message", "compressed, and no header grpc-encoding", "an encoding")
        if length > self._limit:
            raise OverloadedError("message", f"{length} bytes", f"at most {self._limit}", "send less in one message")
        return length


def inflate(message: Message, limit_bytes: int, charge: Charge | None = None) -> memoryview | bytes:
    """The bytes of a message, decompressed; ``charge`` as for `edgekit.protocol._compression.inflate`.

    Raises:
        InflatedSizeError: more than ``limit_bytes`` come out.
        RequestError: damaged or truncated data.
    """
    if not message.encoding:
        return message.data
    return _compression.inflate("message", message.data, message.encoding, limit_bytes, charge)
