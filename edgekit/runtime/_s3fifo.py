"""A cache bounded in bytes with S3-FIFO eviction. No lock, no clock: the time is an argument.

Yang, Zhang, Qiu, Yue and Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023. New entries go through a small queue, a tenth of the
bytes; those that are asked for again there move to the main queue, the others leave quickly, so one-time requests drive out nothing. Keys that left
the small queue are remembered for a while; one that comes back goes to the main queue at once. Instead of the paper's number of entries, bytes count.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

__all__ = ["ByteCache"]

_SMALL = 0.1  # share of the bytes, the paper's
_MOST_USES = 3  # two bits in the paper; more uses say nothing more

K = TypeVar("K")
V = TypeVar("V")


class _Entry(Generic[K, V]):
    __slots__ = ("expires_s", "in_main", "key", "size", "uses", "value")

    def __init__(self, key: K, value: V, size: int, expires_s: float, in_main: bool) -> None:
        self.key = key
        self.value = value
        self.size = size
        self.expires_s = expires_s
        self.in_main = in_main
        self.uses = 0


class ByteCache(Generic[K, V]):
    """Not safe from several threads.

    Args:
        max_bytes: the sum of all sizes never exceeds it.

    Attributes:
        bytes_used: that sum now.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._entries: dict[K, _Entry[K, V]] = {}
        self._small: deque[_Entry[K, V]] = deque()
        self._main: deque[_Entry[K, V]] = deque()
        self._small_bytes = 0
        self._left: OrderedDict[K, int] = OrderedDict()  # keys that left the small queue, with their sizes
        self._left_bytes = 0
        self.bytes_used = 0

    def __len__(self) -> int:
        """Entries, expired ones that nobody asked for included."""
        return len(self._entries)

    def get(self, key: K, now_s: float) -> V | None:
        """What was put, unless it expired or was evicted."""
        entry = self._entries.get(key)
        if entry is None or entry.expires_s <= now_s:
            return None
        if entry.uses < _MOST_USES:
            entry.uses += 1
        return entry.value

    def put(self, key: K, value: V, size: int, now_s: float, expires_s: float) -> bool:
        """Keep ``value`` until ``expires_s``, or until others need its bytes. False when it is larger than the whole cache."""
        if size > self._max:
            return False
        entry = self._entries.get(key)
        if entry is not None:
            self._grow(entry, size - entry.size)
            entry.value, entry.size, entry.expires_s = value, size, expires_s
            while self.bytes_used > self._max:
                self._evict(now_s)
            return key in self._entries
        while self.bytes_used + size > self._max:
            self._evict(now_s)
        known = self._left.pop(key, None)
        if known is not None:
            self._left_bytes -= known
        entry = _Entry(key, value, size, expires_s, in_main=known is not None)
        self._entries[key] = entry
        (self._main if entry.in_main else self._small).append(entry)
        self._grow(entry, size)
        return True

    def _evict(self, now_s: float) -> None:
        """Let one entry go. Main entries lose a use each time they are passed over, so this ends."""
        while True:
            from_small = bool(self._small) and (self._small_bytes >= _SMALL * self._max or not self._main)
            entry = (self._small if from_small else self._main).popleft()
            if entry.expires_s > now_s and entry.uses > (1 if from_small else 0):
                self._keep(entry, from_small=from_small)
                continue
            del self._entries[entry.key]
            self._grow(entry, -entry.size)
            if from_small:
                self._remember(entry)
            return

    def _keep(self, entry: _Entry[K, V], *, from_small: bool) -> None:
        if from_small:
            self._small_bytes -= entry.size
            entry.in_main, entry.uses = True, 0
        else:
            entry.uses -= 1
        self._main.append(entry)

    def _remember(self, entry: _Entry[K, V]) -> None:
        self._left[entry.key] = entry.size
        self._left_bytes += entry.size
        while self._left_bytes > (1 - _SMALL) * self._max:
            _, size = self._left.popitem(last=False)
            self._left_bytes -= size

    def _grow(self, entry: _Entry[K, V], by: int) -> None:
        self.bytes_used += by
        if not entry.in_main:
            self._small_bytes += by
