"""The cloud endpoints together: which of them a request is offered, and what sending it there costs. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

from edgekit.router._breaker import Breaker
from edgekit.router._decide import TierEstimate
from edgekit.router._endpoint import Endpoint
from edgekit.router._events import Ask, Budgets, Cost

__all__ = ["CloudTier", "Offers"]

Offers = tuple[tuple[int, ...], Sequence[TierEstimate]]
"""Indices of endpoints and what each of them can promise."""

_NONE: Offers = ((), ())


class CloudTier:
    """The endpoints, in the configuration's order.

    Args:
        count: how many.
        budgets: asked before anything is sent; ``None`` for no bounds.
        random_source: draws two of many endpoints, and the breakers' jitter.
    """

    def __init__(self, count: int, budgets: Budgets | None, random_source: random.Random) -> None:
        self.endpoints = [Endpoint(Breaker(random_source=random_source)) for _ in range(count)]
        self.budgets = budgets
        self._random = random_source

    def offers(self, ask: Ask, tried: tuple[int, ...], budget_s: float, now: float, device_service_s: float) -> Offers:
        """What the endpoints that were not tried can promise within ``budget_s`` from now.

        Of more than two that can be asked, two are drawn (the power of two choices: the better of two random ones is nearly the best, and a crowd of routers
        does not run to the same one).
        """
        if ask.terms.edge_only:
            return _NONE
        endpoints = self.endpoints
        if len(endpoints) == 1 and not tried:
            return (0,), (endpoints[0].estimate(ask, budget_s, now, device_service_s),)
        usable = [index for index, endpoint in enumerate(endpoints) if index not in tried and endpoint.usable(now)]
        if len(usable) > 2:
            first, second = int(self._random.random() * len(usable)), int(self._random.random() * (len(usable) - 1))
            usable = [usable[first], usable[second + (second >= first)]]
        elif not usable:
            some = [index for index in range(len(endpoints)) if index not in tried][:1]  # to say that there are some
            return tuple(some), [endpoints[index].estimate(ask, budget_s, now, device_service_s) for index in some]
        return tuple(usable), [endpoints[index].promise(ask, budget_s, now, device_service_s) for index in usable]

    def affordable(self, ask: Ask, now: float) -> bool:
        """The operator's budgets have an attempt left."""
        return self.budgets is None or self.budgets.may_spend(_cost(ask), now)

    def pay(self, ask: Ask, now: float) -> bool:
        """Take an attempt out of the budgets; False when it is not left."""
        return self.budgets is None or self.budgets.spend(_cost(ask), now)

    def give_back(self, ask: Ask, spent_s: float) -> None:
        """What was paid at ``spent_s`` was for an attempt that never left."""
        if self.budgets is not None:
            self.budgets.give_back(_cost(ask), spent_s)

    @property
    def open(self) -> bool:
        """At least one endpoint's breaker is closed."""
        return any(endpoint.breaker.closed for endpoint in self.endpoints)


def _cost(ask: Ask) -> Cost:
    terms = ask.terms
    return Cost(1, ask.payload_bytes, terms.dollars_per_request + terms.dollars_per_byte * ask.payload_bytes)
