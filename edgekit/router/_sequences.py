"""Where the requests of each sequence go: to the tier that has its state, and to another one, with the state, when that tier goes. Pure; time is an argument."""

from __future__ import annotations

from collections import OrderedDict

from edgekit.router._cloud_tier import CloudTier
from edgekit.router._device import Device
from edgekit.router._events import Ask

__all__ = ["Sequences", "home"]

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
