"""A bound on the memory that what strangers sent may take, all of a transport's requests together."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from edgekit.errors import OverloadedError

__all__ = ["ByteBudget", "Charge"]


class ByteBudget:
    """Bytes that may be held at once. Safe from several threads.

    Args:
        most: bytes; a quarter of the machine's memory where that is less.

    Attributes:
        most: bytes that may be held.
        used: bytes that are held.
    """

    def __init__(self, most: int) -> None:
        self.most = min(most, _memory_bytes() // 4)
        self.used = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Hold so many more; false when that would be too many."""
        with self._lock:
            if self.used + count > self.most:
                return False
            self.used += count
            return True

    def give(self, count: int) -> None:
        """They are held no more."""
        with self._lock:
            self.used -= count


def _memory_bytes() -> int:
    """Of the machine; as good as endless where that cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return 1 << 62


class Charge:
    """What one request holds of a budget beside its body. For one thread at a time.

    Attributes:
        taken: bytes.
    """

    __slots__ = ("_budget", "taken")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.taken = 0

    def take(self, count: int) -> None:
        """Hold so many more; raises `OverloadedError` when there are none left."""
        if not self._budget.take(count):
            raise OverloadedError("server", "too many bytes of requests are being read", "", "try again later")
        self.taken += count

    def give(self, count: int) -> None:
        """So many are held no more."""
        self._budget.give(count)
        self.taken -= count

    @contextlib.contextmanager
    def meanwhile(self, count: int) -> Iterator[None]:
        """Hold so many more for a while."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)

    def give_back(self) -> None:
        """Nothing is held any more."""
        self.give(self.taken)
