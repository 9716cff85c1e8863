"""What happens to the models of a repository, for telemetry: counted, and logged where it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edgekit.telemetry import Meter

__all__ = ["EventObserver", "RepositoryEvent", "RepositoryMetrics"]

_TIER = "edge"


class RepositoryEvent(NamedTuple):
    """One change.

    Attributes:
        kind: ``load``, ``unload``, ``swap`` (another version answers by default), ``evict`` (for memory), ``advance``, ``promote``, ``rollback``,
            ``load_failed`` or ``fallback`` (it does not run on what its bundle lists first; the reason says why).
        model, version: which; the version is the one that came, or the one that went.
        reason: one sentence; may be empty.
        runs_on, wanted: of a ``fallback``: engine and accelerator that run it, and those that its bundle lists first (``openvino/cpu``, ``openvino/npu``).
    """

    kind: str
    model: str
    version: str
    reason: str = ""
    runs_on: str = ""
    wanted: str = ""


EventObserver = Callable[[RepositoryEvent], None]


class RepositoryMetrics:
    """An `EventObserver` that counts into ``edgekit.model.changes`` by model, version, tier and ``edgekit.change`` (the event's kind); a ``fallback`` also
    by ``edgekit.runs_on`` and ``edgekit.wanted``.
    """

    def __init__(self, meter: Meter) -> None:
        self._changes = meter.counter("edgekit.model.changes", "1")

    def __call__(self, event: RepositoryEvent) -> None:
        attributes = {
            "edgekit.model": event.model,
            "edgekit.model.version": event.version,
            "edgekit.tier": _TIER,
            "edgekit.change": event.kind,
        }
        if event.wanted:
            attributes |= {"edgekit.runs_on": event.runs_on, "edgekit.wanted": event.wanted}
        self._changes.add(1, attributes)
