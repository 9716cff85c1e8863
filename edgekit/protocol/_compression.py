"""gzip and deflate as HTTP and gRPC mean them, with a bound on what comes out. Pure.

"deflate" is the zlib format of RFC 1950 in both (RFC 9110, 8.4.1.2; gRPC over HTTP/2, "Message-Encoding").
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable

from edgekit.errors import OverloadedError, RequestError
from edgekit.protocol._byte_budget import Charge

__all__ = ["LEAST_BYTES", "QUICK_BYTES", "WINDOW_BITS", "InflatedSizeError", "accepted_coding", "compress", "inflate"]

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the two formats."""
LEAST_BYTES = 1024
"""Answers below this are sent as they are: they fit into one packet anyway."""
QUICK_BYTES = 32 << 10
"""Up to here compressing takes about a millisecond, and an event loop may do it itself."""
_PIECE_BYTES = 1 << 20
_LEVEL = 1  # of numbers, higher ones take several times as long and save a few percent more


class InflatedSizeError(OverloadedError):
    """More comes out of a compressed body than may."""

    http_status = 413


def inflate(
    thing: str,
    data: bytes | bytearray | memoryview,
    window_bits: int,
    limit_bytes: int,
    charge: Charge | None = None,
) -> bytes:
    """What was compressed.

    Args:
        thing: what it is, for errors.
        data: all of it.
        window_bits: one of `WINDOW_BITS`.
        limit_bytes: the most that may come out; no more than this is ever held.
        charge: holds what comes out, and while it comes out what that takes beside it.

    Raises:
        InflatedSizeError: more comes out.
        RequestError: damaged or truncated data, or bytes after it.
    """
    decoder = zlib.decompressobj(window_bits)
    pieces: list[bytes] = []
    size = 0
    while not decoder.eof and size <= limit_bytes:
        try:  # each piece as large as all before it: zlib copies what is left of the data every time
            piece = _piece(decoder, data, min(max(_PIECE_BYTES, size), limit_bytes + 1 - size), charge)
        except zlib.error as exc:
            raise RequestError(thing, f"damaged compressed data ({exc})", "what its encoding says") from exc
        if not piece and not decoder.unconsumed_tail:
            break
        pieces.append(piece)
        size += len(piece)
        data = decoder.unconsumed_tail
    if len(pieces) == 1:
        plain = pieces[0]
    else:
        with charge.meanwhile(size) if charge is not None else contextlib.nullcontext():
            plain = b"".join(pieces)
    if size > limit_bytes:
        raise InflatedSizeError(thing, f"more than {limit_bytes} bytes after decompression", f"at most {limit_bytes}")
    if not decoder.eof:
        raise RequestError(thing, "truncated compressed data", "what its encoding says")
    if decoder.unused_data:
        raise RequestError(thing, f"{len(decoder.unused_data)} bytes after the compressed data", "the compressed data alone")
    return plain


def _piece(decoder: zlib._Decompress, data: bytes | bytearray | memoryview, most: int, charge: Charge | None) -> bytes:
    """What comes next, up to ``most`` bytes, which are held before there is a place for them."""
    if charge is None:
        return decoder.decompress(data, most)
    charge.take(most)
    piece = decoder.decompress(data, most)
    charge.give(most - len(piece))
    return piece


def compress(parts: Iterable[bytes | memoryview], window_bits: int) -> bytes:
    """All of ``parts``, one after the other, in the format ``window_bits`` (of `WINDOW_BITS`)."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, window_bits)
    return b"".join([*[encoder.compress(part) for part in parts], encoder.flush()])


def accepted_coding(field: str | None) -> str:
    """The coding for an answer to a request with this ``Accept-Encoding`` (RFC 9110, 12.5.3): ``gzip``, ``deflate``, or empty for none.

    Only what the client names is used; of equal ones gzip, and nothing where it prefers ``identity``.
    """
    best, best_weight = "", 0.0
    plain_weight = 0.0
    for item in (field or "").lower().split(","):
        coding, _, parameter = (part.strip() for part in item.partition(";"))
        weight = _weight(parameter)
        if coding == "identity":
            plain_weight = weight
        elif coding in WINDOW_BITS and (weight > best_weight or (weight == best_weight > 0 and coding == "gzip")):
            best, best_weight = coding, weight
    return best if best_weight > 0 and best_weight >= plain_weight else ""


def _weight(parameter: str) -> float:
    """The quality value of ``q=0.5``; 1 without one, 0 for what is none."""
    if not parameter:
        return 1.0
    name, _, value = parameter.partition("=")
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if name.strip() == "q" and 0 <= weight <= 1 else 0.0
