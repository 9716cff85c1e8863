"""What became of sequences, for telemetry and statistics."""

from __future__ import annotations

import threading
from collections import Counter

from edgekit.telemetry import Meter

__all__ = ["SequenceCounts"]

_TIER = "edge"


class SequenceCounts:
    """Counts by model and version. Safe from several threads.

    Args:
        meter: gets ``edgekit.sequence.changes``, ``edgekit.sequence.open`` and ``edgekit.sequence.bytes``; none without.
    """

    def __init__(self, meter: Meter | None) -> None:
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._changes = meter.counter("edgekit.sequence.changes", "1") if meter is not None else None
        self._open = meter.gauge("edgekit.sequence.open", "1") if meter is not None else None
        self._bytes = meter.gauge("edgekit.sequence.bytes", "By") if meter is not None else None

    def add(self, change: str, model: str, version: str) -> None:
        """Count one ``change``: begin, end, expire, drain or refuse."""
        with self._lock:
            self._seen[model, version, change] += 1
        if self._changes is not None:
            attributes = {
                "edgekit.model": model,
                "edgekit.model.version": version,
                "edgekit.tier": _TIER,
                "edgekit.change": change,
            }
            self._changes.add(1, attributes)

    def show(self, count: int, state_bytes: int) -> None:
        """What is open now, all models together."""
        if self._open is not None and self._bytes is not None:
            self._open.set(count)
            self._bytes.set(state_bytes)

    def describe(self, model: str, version: str) -> dict[str, int]:
        """What was counted of one version."""
        with self._lock:
            return {change: self._seen[model, version, change] for change in ("begin", "end", "expire", "drain")}
