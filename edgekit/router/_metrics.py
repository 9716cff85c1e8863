"""What the router tells the collector. Names and attributes are those of ``docs/telemetry.md``; every attribute has few values."""

from __future__ import annotations

from typing import Literal, Protocol

from edgekit.telemetry import Meter, NoopMeter

__all__ = ["HasMeter", "Outcome", "RouterMetrics"]

Outcome = Literal["ok", "late", "rejected", "error"]
"""``ok``: answered by the deadline. ``late``: answered after it. ``rejected``: refused early or for the request's own fault. ``error``: everything else."""


class HasMeter(Protocol):
    """What the router needs of a telemetry object."""

    @property
    def meter(self) -> Meter:
        """Where instruments are made."""
        ...


class RouterMetrics:
    """The router's instruments."""

    def __init__(self, telemetry: HasMeter | None) -> None:
        meter = telemetry.meter if telemetry is not None else NoopMeter()
        self.enabled = telemetry is not None
        self._duration = meter.histogram("edgekit.request.duration", "s", "from acceptance to the answer, by tier and outcome")
        self._requests = meter.counter("edgekit.route.requests", "{request}", "requests by tier and by whether the SLA was met")
        self._decisions = meter.counter("edgekit.route.decisions", "{decision}", "decisions by reason")
        self._breaker = meter.gauge("edgekit.route.breaker", "1", "1 while the endpoint's breaker is open")

    def decided(self, reason: str) -> None:
        """Count one decision."""
        self._decisions.add(1, {"edgekit.reason": reason})

    def finished(self, model: str, version: str, tier: str, outcome: Outcome, sla_met: bool, duration_s: float) -> None:
        """Count one request's end; ``tier`` is ``edge``, ``cloud`` or ``none``."""
        self._duration.record(
            duration_s,
            {"edgekit.model": model, "edgekit.model.version": version, "edgekit.tier": tier, "edgekit.outcome": outcome},
        )
        self._requests.add(
            1,
            {"edgekit.model": model, "edgekit.tier": tier, "edgekit.sla": "met" if sla_met else "missed", "edgekit.outcome": outcome},
        )

    def breaker(self, endpoint: str, is_open: bool) -> None:
        """Set one endpoint's breaker."""
        self._breaker.set(1.0 if is_open else 0.0, {"edgekit.endpoint": endpoint})
