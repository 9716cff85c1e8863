"""Where the requests of each sequence go: to the tier that has its state, and to another one, with the state, when that tier goes. Pure; time is an argument.

One request of a sequence is under way at a time: the next one needs the state that it leaves, and two that travel on different connections may overtake each other.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from edgekit.router._cloud_tier import CloudTier
from edgekit.router._device import Device
from edgekit.router._events import Ask

__all__ = ["MOST_WAITING", "Sequences", "home"]

IDLE_S = 600.0  # forgotten after this long without a request
MOST = 10_000  # sequences; beyond that the one that was idle longest is forgotten
MOST_WAITING = 64  # requests of one sequence that wait for an earlier one; as many as an edge server lets wait

Key = tuple[str, str, str]
"""Model, version as the client asks for it, and id."""


class Sequences:
    """The live sequences: where each has its state (-1 for the device, else an endpoint's index), and the one request of each that is under way."""

    __slots__ = ("_turns", "_where")

    def __init__(self) -> None:
        self._where: OrderedDict[Key, tuple[int, float]] = OrderedDict()
        self._turns: dict[Key, deque[int]] = {}  # the request under way, then those that wait for it, in order

    def enter(self, ask: Ask) -> bool:
        """A request came. True when its turn is now; else it waits for the ones before it, whose state it needs."""
        turns = self._turns.setdefault(_key(ask), deque())
        turns.append(ask.request)
        return len(turns) == 1

    def waiting(self, ask: Ask) -> int:
        """Requests of its sequence that wait, itself included."""
        return len(self._turns[_key(ask)]) - 1

    def leave(self, ask: Ask) -> int:
        """A request that entered is over; returns the one whose turn has come by that, 0 for none."""
        key = _key(ask)
        turns = self._turns[key]
        first = turns[0] == ask.request
        turns.remove(ask.request)
        if not turns:
            del self._turns[key]
        return turns[0] if first and turns else 0

    def where(self, ask: Ask, now: float) -> int | None:
        """Where the request's sequence has its state; ``None`` when nobody knows."""
        key = _key(ask)
        entry = self._where.get(key)
        if entry is None or now - entry[1] > IDLE_S:
            return None
        self._where[key] = (entry[0], now)
        self._where.move_to_end(key)
        return entry[0]

    def bind(self, ask: Ask, where: int, now: float) -> None:
        """A request of it goes there."""
        self._where[_key(ask)] = (where, now)
        self._where.move_to_end(_key(ask))
        if len(self._where) > MOST:
            self._where.popitem(last=False)

    def lose(self, ask: Ask) -> None:
        """The sequence has ended, or its state is gone with its tier."""
        self._where.pop(_key(ask), None)


def _key(ask: Ask) -> Key:
    return ask.model, ask.version, ask.sequence


def home(ask: Ask, at: int, device: Device, cloud: CloudTier, now: float) -> int | None:
    """Where the next request of a sequence goes whose state is ``at``: there while it may and can; else where the state can be moved to; ``None`` for nowhere.

    A tier whose breaker is open is one that goes: it may still answer, and hand the state over. With nowhere else to go, the device is tried all the same.
    """
    for place in (at, *(place for place in range(-1, len(cloud.endpoints)) if place != at)):
        breaker = device.breaker if place < 0 else cloud.endpoints[place].breaker
        if breaker.closed and _may(ask, place, cloud, now):
            return place
    return at if at < 0 and _may(ask, at, cloud, now) else None


def _may(ask: Ask, place: int, cloud: CloudTier, now: float) -> bool:
    """The operator's policy and budgets allow it, and the device has the model."""
    if place < 0:
        return ask.on_edge and not ask.terms.cloud_only
    return not ask.terms.edge_only and cloud.affordable(ask, now)
