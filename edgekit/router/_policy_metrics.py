"""What the policy tells the collector; names and attributes as in ``docs/policy.md``."""

from __future__ import annotations

import math
import threading
from typing import Any, Literal

from edgekit.router._budgets import DOLLAR_UNIT, Amount, BudgetLimits
from edgekit.router._metrics import HasMeter
from edgekit.telemetry import NoopMeter

__all__ = ["Compared", "PolicyMetrics"]

NO_LIMIT = -1.0  # infinity is no value of a gauge, and a limit that was there must not stay
Compared = Literal["audit", "shadow", "escalation"]
"""Why the cloud was asked for an answer that the device had given."""


class PolicyMetrics:
    """Instruments, and counts for a person who asks. Safe from several threads."""

    def __init__(self, telemetry: HasMeter | None) -> None:
        meter = telemetry.meter if telemetry is not None else NoopMeter()
        self._spent = meter.gauge("edgekit.route.budget.spent", "1", "spent in the window, by window and unit")
        self._limit = meter.gauge("edgekit.route.budget.limit", "1", "limit of the window, by window and unit")
        self._valid = meter.gauge("edgekit.route.policy.valid", "1", "1 while the policy file is the policy in force")
        self._reloads = meter.counter("edgekit.route.policy.reloads", "{reload}", "changes of the policy file, by outcome")
        self._agreement = meter.counter("edgekit.route.agreement", "{answer}", "answers of both tiers compared, by reason and result")
        self._escalations = meter.counter("edgekit.route.escalations", "{request}", "unsure answers escalated, by whose the client got")
        self._unsure = meter.counter("edgekit.route.confidence.missing", "{answer}", "answers that the cascade's output said nothing about")
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], list[int]] = {}  # (model, why) -> [compared, agreed]

    def state(self, valid: bool, limits: BudgetLimits, spent: tuple[Amount, Amount]) -> None:
        """Set the gauges."""
        self._valid.set(1.0 if valid else 0.0)
        for window, limit, amount in (("hour", limits.hour.amount, spent[0]), ("day", limits.day.amount, spent[1])):
            for index, unit in enumerate(("requests", "bytes", "dollars")):
                scale = DOLLAR_UNIT if unit == "dollars" else 1
                attributes = {"edgekit.budget.window": window, "edgekit.budget.unit": unit}
                self._spent.set(amount[index] * scale, attributes)
                self._limit.set(limit[index] * scale if limit[index] < math.inf else NO_LIMIT, attributes)

    def reloaded(self, *, accepted: bool) -> None:
        """The file changed."""
        self._reloads.add(1, {"edgekit.outcome": "accepted" if accepted else "refused"})

    def compared(self, model: str, why: Compared, agreed: bool) -> None:
        """Both tiers answered one request."""
        with self._lock:
            counts = self._counts.setdefault((model, why), [0, 0])
            counts[0] += 1
            counts[1] += agreed
        self._agreement.add(1, {"edgekit.model": model, "edgekit.reason": why, "edgekit.agreed": agreed})

    def escalated(self, model: str, tier: str) -> None:
        """The cloud was asked about an unsure answer, and the client has the answer of ``tier``."""
        self._escalations.add(1, {"edgekit.model": model, "edgekit.tier": tier})

    def no_confidence(self, model: str) -> None:
        """The policy wants to know how sure an answer is, and the answer does not say."""
        self._unsure.add(1, {"edgekit.model": model})

    def told(self) -> list[dict[str, Any]]:
        """Comparisons so far. JSON-able."""
        with self._lock:
            rows = sorted((*key, *counts) for key, counts in self._counts.items())
        return [{"model": model, "reason": why, "compared": compared, "agreed": agreed} for model, why, compared, agreed in rows]
