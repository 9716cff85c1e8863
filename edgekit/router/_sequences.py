"""Where the state of each sequence of requests is: its requests go there and nowhere else. Pure; time is an argument."""

from __future__ import annotations

from collections import OrderedDict

from edgekit.router._events import Ask

__all__ = ["Sequences"]

IDLE_S = 600.0  # forgotten after this long without a request
MOST = 10_000  # sequences; beyond that the one that was idle longest is forgotten


class Sequences:
    """Tier of each live sequence: -1 for the device, else an endpoint's index."""

    __slots__ = ("_where",)

    def __init__(self) -> None:
        self._where: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def where(self, ask: Ask, now: float) -> int | None:
        """Where the request's sequence is; ``None`` when this is its first."""
        key = (ask.model, ask.sequence)
        entry = self._where.get(key)
        if entry is None or now - entry[1] > IDLE_S:
            return None
        self._where[key] = (entry[0], now)
        self._where.move_to_end(key)
        return entry[0]

    def bind(self, ask: Ask, where: int, now: float) -> None:
        """The sequence begins there."""
        self._where[ask.model, ask.sequence] = (where, now)
        self._where.move_to_end((ask.model, ask.sequence))
        if len(self._where) > MOST:
            self._where.popitem(last=False)

    def lose(self, ask: Ask) -> None:
        """The sequence has ended, or its state is gone with its tier."""
        self._where.pop((ask.model, ask.sequence), None)
