"""Asking the cloud although the device has answered: because its answer is not sure (an escalation), or to see whether the tiers agree (an audit). Pure.

An escalated answer is held while the cloud is asked. The client gets the cloud's answer when that comes in time, else the device's: at the deadline less the
margin, or as soon as the cloud fails. So a second opinion never makes a request late, and never fails it. An audit begins when the client has its answer.
"""

from __future__ import annotations

import random

import msgspec

from edgekit.router._bearings import PilotOptions
from edgekit.router._cascade import EscalationThrottle
from edgekit.router._decide import Health, Reason, Tier
from edgekit.router._events import Action, Ask, Budgets, Failure, SendCloud
from edgekit.router._open import Open, Sent
from edgekit.router._second_look import SecondLooks

__all__ = ["AUDIT_LIMIT_S", "SecondOpinions"]

LIKELY = 0.5  # the cloud must at least be this likely to answer before the held answer has to go
AUDIT_LIMIT_S = 10.0  # nobody waits for an audit, and none waits longer


class SecondOpinions(SecondLooks):
    """`SecondLooks`, where an answer of the device is not always the end."""

    def __init__(self, options: PilotOptions, endpoints: int, random_source: random.Random, budgets: Budgets | None = None) -> None:
        super().__init__(options, endpoints, random_source, budgets)
        self._escalations = EscalationThrottle()
        self._audits: dict[int, tuple[Ask, Sent]] = {}

    def _edge_answered(self, open_: Open, attempt: int, confidence: float | None, now: float, out: list[Action]) -> None:
        """Give the device's answer to the client, or hold it."""
        below = open_.ask.terms.escalate_below
        if below is None or confidence is None or confidence >= below:
            self._deliver(open_, attempt, Tier.EDGE, now, out)
            if open_.ask.terms.audit_share and not open_.ask.sequence:
                self._audit(open_.ask, now, out)
        elif not self._hold(open_, attempt, now, out):
            self._deliver(open_, attempt, Tier.EDGE, now, out)

    def _hold(self, open_: Open, attempt: int, now: float, out: list[Action]) -> bool:
        """Wait for the cloud's answer, which may be on its way already as a hedge; False when there will be none in time."""
        ask = open_.ask
        if ask.sequence or now >= open_.until_s:
            return False
        if open_.sent is None:
            index, cloud = self._best(open_, now)
            if cloud is None or cloud.p_meet < LIKELY or not self._escalations.try_take(ask.model, ask.terms.escalate_every_s, now):
                return False
            open_.held = attempt
            if not self._send(open_, index, cloud, now, out):
                open_.held = 0
                return False
        super()._calibrate(open_, Tier.EDGE, now)
        open_.held = attempt
        open_.decision = msgspec.structs.replace(open_.decision, reason=Reason.LOCAL_UNSURE)
        open_.look_s = open_.until_s
        self._plan(open_, now)
        return True

    def _calibrate(self, open_: Open, tier: Tier | None, now: float) -> None:
        if not open_.held:  # the device's time was noted when its answer came
            super()._calibrate(open_, tier, now)

    def _wake(self, open_: Open, now: float, out: list[Action]) -> None:
        if open_.held and now >= open_.until_s:
            self._deliver(open_, open_.held, Tier.EDGE, now, out)
        else:
            super()._wake(open_, now, out)

    def _after_failure(self, open_: Open, attempt: int, failure: Failure, now: float, out: list[Action]) -> None:
        if open_.held:
            self._deliver(open_, open_.held, Tier.EDGE, now, out)
        else:
            super()._after_failure(open_, attempt, failure, now, out)

    # Audits

    def _audit(self, ask: Ask, now: float, out: list[Action]) -> None:
        """Ask the cloud about an answered request, for its share of them."""
        if self._random.random() >= ask.terms.audit_share:
            return
        late = msgspec.structs.replace(ask, deadline_s=now + AUDIT_LIMIT_S, limit_s=now + AUDIT_LIMIT_S)
        indices, clouds = self._offers(late, (), AUDIT_LIMIT_S, now, 0.0)
        fit = [(cloud.cost_s, index, cloud) for index, cloud in zip(indices, clouds, strict=True) if cloud.health is Health.OK]
        if not fit or not self._cloud.pay(late, now):
            return
        _, index, cloud = min(fit, key=lambda one: one[:2])
        self._attempt += 1
        self._audits[self._attempt] = (late, Sent(self._attempt, index, now, cloud.slow_s, late.limit_s))
        self._cloud.endpoints[index].sent(self._attempt, now, late.limit_s)
        out.append(SendCloud(self._attempt, ask.request, index, late.limit_s, shadow=True))

    def _audit_ended(self, attempt: int, failure: Failure | None, now: float) -> None:
        """An attempt that belongs to no request any more; if it was an audit, its endpoint learns from it."""
        audit = self._audits.pop(attempt, None)
        if audit is None:
            return
        ask, sent = audit
        if failure is None:
            self._cloud_answered(ask, sent, now)
        else:
            self._cloud_failed(ask, sent, failure, now)
