"""What the router did in the last minute, for a person who watches: requests by model, reason and tier. Time is an argument."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from edgekit.telemetry import RotatingHistogram

__all__ = ["WINDOW_S", "Tally", "TallyRow"]

WINDOW_S = 60.0


class TallyRow(msgspec.Struct, frozen=True):
    """Requests that ended alike.

    Attributes:
        reason: a value of `Reason`.
        tier: ``edge`` or ``cloud``; ``none`` for requests that nobody answered.
        met: of them, answered by their deadline.
        hedged: of them, two tiers were asked.
        p50_ms, p99_ms: from acceptance to the end.
    """

    model: str
    reason: str
    tier: str
    requests: int
    met: int
    hedged: int
    p50_ms: float
    p99_ms: float


class _Group:
    __slots__ = ("all", "hedged", "met")

    def __init__(self) -> None:
        self.all, self.met, self.hedged = (RotatingHistogram(WINDOW_S) for _ in range(3))


class Tally:
    """Counts requests as they end. Safe from several threads.

    Attributes:
        explain: the router's `Router.explain`, once there is a router.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, str, str], _Group] = {}
        self.explain: Callable[[], dict[str, Any]] = dict

    def ended(self, model: str, reason: str, tier: str, latency_s: float, now: float, *, met: bool, hedged: bool) -> None:
        """Count one request."""
        with self._lock:
            group = self._groups.setdefault((model, reason, tier), _Group())
            group.all.record(latency_s, now)
            if met:
                group.met.record(latency_s, now)
            if hedged:
                group.hedged.record(latency_s, now)

    def rows(self, now: float) -> list[TallyRow]:
        """What ended within the last minute, the most frequent first; forgets what did not come again."""
        with self._lock:
            self._groups = {key: group for key, group in self._groups.items() if group.all.count(now)}
            rows = [
                TallyRow(
                    *key,
                    group.all.count(now),
                    group.met.count(now),
                    group.hedged.count(now),
                    1e3 * group.all.quantile(0.5, now),
                    1e3 * group.all.quantile(0.99, now),
                )
                for key, group in self._groups.items()
            ]
        return sorted(rows, key=lambda row: (-row.requests, row.model, row.reason, row.tier))
