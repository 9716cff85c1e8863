"""Who still needs a model that others no longer get."""

from __future__ import annotations

import math
import threading

__all__ = ["Holds"]


class Holds:
    """Counts those that stay on a model, until it is retired and after. Safe from several threads.

    Attributes:
        retired_s: when it was replaced, on `time.monotonic`; infinite before. Who holds it goes on, nobody comes new.
        closed: it is gone, held or not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.retired_s = math.inf
        self.closed = False

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self) -> bool:
        """Stay on the model until `remove`; false when it is too late for that."""
        with self._lock:
            if self.closed or self.retired_s != math.inf:
                return False
            self._count += 1
            return True

    def remove(self) -> bool:
        """Leave; true for the last of a retired model, which must be closed now."""
        with self._lock:
            self._count -= 1
            return self._count == 0 and self.retired_s != math.inf and not self.closed

    def retire(self, now_s: float) -> bool:
        """Nobody new; true when nobody is left, and the model must be closed now."""
        with self._lock:
            self.retired_s = min(self.retired_s, now_s)
            return self._count == 0

    def close(self) -> None:
        """It is gone."""
        with self._lock:
            self.closed = True
