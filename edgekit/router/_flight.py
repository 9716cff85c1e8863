"""One request's way through its attempts: which one starts when, and when nothing is left to wait for. Pure; time is an argument.

At most two attempts run, one a tier. A second one starts because

- the first failed (*fallback*), or
- the first has not answered when it should have (*hedge*, at ``Decision.hedge_at_s``; put off while the device is still sure to make it), or
- the cloud has not answered at the deadline and the device was not asked (*rescue*: a late answer instead of none).

The first answer wins and the other attempt is cancelled. Nobody waits longer than ``RequestFacts.limit_s``. Hedges to the cloud are throttled; a hedge to the
device is not: it burdens nobody else, and it is what keeps a hanging cloud from being an error.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit.errors import DeadlineError, NotFoundError, RequestError
from edgekit.router._breaker import HedgeThrottle
from edgekit.router._decide import SURE, Decision, RequestFacts, Tier, margin_s

__all__ = ["Flight", "Outlook", "is_final"]

Outlook = Callable[[float, float], tuple[float, float]]
"""``(until_s, now) -> (probability of ending by until_s, when to ask again)``."""


def is_final(error: BaseException) -> bool:
    """True when the request itself is at fault, so that no other tier would answer it.

    A model that one tier does not have is not the request's fault: the other may have it.
    """
    return isinstance(error, RequestError) and not isinstance(error, NotFoundError)


class Flight:
    """State of one request between its decision and its end. Not safe from several threads.

    Args:
        facts: deadline and limit.
        decision: must not be a refusal (it has a first tier).
    """

    __slots__ = ("_errors", "_facts", "_final", "_hedge_at_s", "_hedge_by_s", "_missed", "_untried", "hedged", "pending")

    def __init__(self, facts: RequestFacts, decision: Decision) -> None:
        self._facts = facts
        self._untried = list(decision.tiers)
        self._hedge_at_s = decision.hedge_at_s
        self._hedge_by_s = decision.hedge_by_s
        self._errors: dict[Tier, BaseException] = {}
        self._final: BaseException | None = None
        self._missed = False
        self.pending: set[Tier] = set()
        self.hedged = False

    def first(self) -> Tier:
        """Start the first attempt."""
        return self._start()

    @property
    def cloud_left(self) -> bool:
        """True when the cloud can still be asked, so that the device may give the request back instead of running it in vain."""
        return Tier.CLOUD in self._untried

    def next_at(self) -> float:
        """Absolute time at which `on_time` wants to be called if no attempt ends before."""
        if self._untried and self._hedge_at_s is not None:
            return self._hedge_at_s
        if Tier.CLOUD in self.pending and not self._missed:
            return self._facts.deadline_s
        return self._facts.limit_s

    def cloud_missed(self, now: float) -> bool:
        """True once: the cloud has not answered at the deadline, which its breaker must hear of now and not when the request ends."""
        if self._missed or Tier.CLOUD not in self.pending or now < self._facts.deadline_s:
            return False
        self._missed = True
        return True

    def on_time(self, now: float, throttle: HedgeThrottle, outlook: Outlook | None = None) -> Tier | None:
        """Time has come to `next_at`; returns the tier to start, if any.

        Args:
            now: the time.
            throttle: may refuse a hedge to the cloud.
            outlook: asked, when a hedge to the cloud is due, how likely the device is to make it and when to ask again (`LocalEstimator.outlook`).
        """
        if not self._untried or now >= self._facts.limit_s:
            return None
        if self._hedge_at_s is not None and now >= self._hedge_at_s:
            self._hedge_at_s = None
            if outlook is not None and self._untried[0] is Tier.CLOUD and self._put_off(outlook, now):
                return None
            if self._untried[0] is Tier.EDGE or throttle.try_take():
                self.hedged = True
                return self._start()
        elif self._untried[0] is Tier.EDGE and now >= self._facts.deadline_s:
            return self._start()
        return None

    def on_failure(self, tier: Tier, error: BaseException, now: float) -> Tier | None:
        """An attempt ended without an answer; returns the tier to fall back to, if any."""
        self.pending.discard(tier)
        self._errors[tier] = error
        if is_final(error):
            self._final = error
        elif self._untried and not self.pending and now < self._facts.limit_s:
            return self._start()
        return None

    def give_back(self, tier: Tier) -> None:
        """``tier`` gave the request back without running it: it may be asked once more when nothing else is left."""
        self._untried.append(tier)

    def over(self, now: float) -> bool:
        """True when no attempt can bring an answer any more."""
        return self._final is not None or not self.pending or now >= self._facts.limit_s

    def error(self) -> BaseException:
        """What to tell the client once `over`: the request's own fault, else what the device said, else the cloud, else that time ran out."""
        if self._final is not None:
            return self._final
        if not self.pending:
            for tier in (Tier.EDGE, Tier.CLOUD):
                if tier in self._errors:
                    return self._errors[tier]
        waited = " and ".join(tier.value for tier in Tier if tier in self.pending) or "any tier"
        return DeadlineError("request", f"no answer from {waited} in time", "", "allow more time, or add capacity")

    def _put_off(self, outlook: Outlook, now: float) -> bool:
        """Leave a device alone that is still sure to make it: most duplicates are of requests that would have been answered a moment later."""
        p_meet, again_s = outlook(self._facts.deadline_s - margin_s(self._facts.sla_s), now)
        if p_meet < SURE:
            return False
        again_s = min(again_s, self._hedge_by_s)
        if again_s > now:
            self._hedge_at_s = again_s
        return True

    def _start(self) -> Tier:
        tier = self._untried.pop(0)
        self.pending.add(tier)
        return tier
