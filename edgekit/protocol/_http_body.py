"""Bodies that come in several pieces, and the buffers that they are read into. Pure but for the clock.

A fresh buffer of a hundred kilobytes costs more than what is done with it: the system maps its pages one by one, and takes them back when it is freed. So buffers are used
again once nothing refers to them any more.
"""

from __future__ import annotations

import time
from collections import deque

from edgekit.protocol._http_exchange import Call
from edgekit.protocol._http_parse import ChunkedBody

__all__ = ["BufferPool", "Incoming"]

_SMALLEST = 32 << 10
_LARGEST = 1 << 20  # larger bodies grow as they come, so that nothing is allocated by a length that only the sender claims
_KEPT_BYTES = 4 << 20  # of each size


class BufferPool:
    """Buffers that were used before. For one thread."""

    def __init__(self) -> None:
        self._kept: dict[int, deque[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """A buffer of at least ``size`` bytes, up to the largest kept kind; its content is anything."""
        kind = max(_SMALLEST, 1 << (size - 1).bit_length())
        kept = self._kept.get(kind)
        if kept:
            buffer = kept.popleft()
            if _is_free(buffer):
                return buffer
        return bytearray(kind)

    def give(self, buffer: bytearray) -> None:
        """Keep a buffer for later. Views of it may still exist: it is used again only once they are gone."""
        kind = len(buffer)
        if _SMALLEST <= kind <= _LARGEST and kind & (kind - 1) == 0:
            kept = self._kept.setdefault(kind, deque())
            if len(kept) * kind < _KEPT_BYTES:
                kept.append(buffer)


def _is_free(buffer: bytearray) -> bool:
    """No view of the buffer exists: only then it can change its size."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True


class Incoming:
    """A body on its way in.

    Attributes:
        call: whose body it is.
        size: bytes that have come.
        reserved: bytes of the server's budget that it holds.
        accepted_s: when it began, on `time.monotonic`.
    """

    def __init__(self, call: Call, limit: int, pool: BufferPool) -> None:
        self.call = call
        self.reserved = 0
        self.accepted_s = time.monotonic()
        self._chunks = ChunkedBody(limit) if call.length is None else None
        self._length = call.length or 0
        self._done = 0  # bytes in full buffers
        self._full: list[bytearray] = []
        self._pool = pool
        self._filled = 0
        self._buffer = bytearray() if self._chunks is not None else self._next()

    @property
    def size(self) -> int:
        if self._chunks is not None:
            return len(self._chunks.data)
        return self._done + self._filled

    def room(self) -> memoryview | None:
        """Where the next bytes of the body may be written; ``None`` when they have to go through `feed`."""
        if self._chunks is not None:
            return None
        return memoryview(self._buffer)[self._filled : self._filled + self._length - self._done - self._filled]

    def wrote(self, count: int) -> bool:
        """So many bytes were written into the `room`; true when the body is complete."""
        self._filled += count
        if self.size == self._length:
            return True
        if self._filled == len(self._buffer):
            self._full.append(self._buffer)
            self._done += self._filled
            self._filled = 0
            self._buffer = self._next()
        return False

    def feed(self, data: bytes) -> bytes | None:
        """Take more; what follows the body once it is complete, ``None`` before. Raises `HttpError` for a bad chunk."""
        if self._chunks is not None:
            return self._chunks.feed(data)
        at = 0
        while at < len(data):
            room = self.room()
            assert room is not None
            count = min(len(room), len(data) - at)
            room[:count] = data[at : at + count]
            at += count
            if self.wrote(count):
                return data[at:]
        return None

    def body(self) -> tuple[memoryview, bytearray | None]:
        """The whole body, and the buffer to give back to the pool when nobody needs it any more."""
        if self._chunks is not None:
            return memoryview(self._chunks.data).toreadonly(), None
        if not self._full:
            return memoryview(self._buffer)[: self._filled].toreadonly(), self._buffer
        whole = b"".join([*self._full, memoryview(self._buffer)[: self._filled]])
        return memoryview(whole), None

    def _next(self) -> bytearray:
        """A buffer for what comes next: as large as all before it, so that no more than twice what came is allocated."""
        left = self._length - self._done
        return self._pool.take(min(left, _LARGEST)) if self._done < _LARGEST else bytearray(min(left, self._done))
