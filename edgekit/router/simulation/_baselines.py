"""The policies that the router is compared with: the same inputs and actions, no estimates of probability, no hedging by need.

All of them are better than careless: the device's queue drops what has missed its deadline before it runs it, and an attempt that fails falls back to the
tier that was not asked yet (not for the two that use one tier only).
"""

from __future__ import annotations

import math
import random
from collections import deque

from edgekit.router._decide import Reason, Tier
from edgekit.router._events import (
    Action,
    Ask,
    Budgets,
    Cancel,
    Cost,
    Deliver,
    Explanation,
    Failure,
    FailureKind,
    Refuse,
    RunEdge,
    SendCloud,
)

__all__ = ["AlwaysHedge", "Baseline", "CloudOnly", "LeastExpected", "LocalOnly", "RandomTier", "StaticThreshold"]

TOO_LATE = Failure(FailureKind.DEADLINE)
NO_BUDGET = Failure(FailureKind.OVERLOADED)
# Of `LeastExpected`: Finagle's Peak-EWMA decay and first guess, and what a failure counts as.
DECAY_S = 10.0
FIRST_GUESS_S = 0.030
FAILURE_S = 5.0
GAIN = 0.2


class _Open:
    """A request that is not over."""

    __slots__ = ("ask", "failure", "pending", "untried")

    def __init__(self, ask: Ask, untried: list[Tier]) -> None:
        self.ask = ask
        self.untried = untried
        self.pending: set[int] = set()  # attempts
        self.failure = (TOO_LATE, 0)


class Baseline:
    """Queue, workers and attempts; a subclass says which tiers a request is given to.

    Args:
        workers: requests that the device runs at the same time.
        endpoints: of the cloud tier, taken in turn.
        budgets: of the cloud; an attempt that they do not allow fails.
    """

    both_at_once = False

    def __init__(self, workers: int, endpoints: int, budgets: Budgets | None = None) -> None:
        self._budgets = budgets
        self._free = workers
        self._workers = workers
        self._endpoints = endpoints
        self._turn = 0
        self._attempt = 0
        self._queue: deque[tuple[int, int]] = deque()  # attempt, request
        self._open: dict[int, _Open] = {}
        self._of: dict[int, tuple[int, Tier, float]] = {}  # attempt -> request, tier, when it began

    def tiers(self, ask: Ask, now: float) -> list[Tier]:
        """The tiers to ask, in this order."""
        raise NotImplementedError

    def learn(self, tier: Tier, elapsed_s: float | None, now: float) -> None:
        """An attempt took ``elapsed_s``, or failed."""

    def accept(self, ask: Ask, now: float) -> list[Action]:
        """See `Steering`."""
        tiers = [tier for tier in self.tiers(ask, now) if tier is Tier.EDGE or self._endpoints]
        state = self._open[ask.request] = _Open(ask, tiers or [Tier.EDGE])
        actions = self._start(state, now)
        if self.both_at_once and state.untried:
            actions += self._start(state, now)
        return actions

    def answered(self, attempt: int, now: float, confidence: float | None = None) -> list[Action]:  # noqa: ARG002 - of the interface
        """See `Steering`."""
        request, tier, began_s = self._of.pop(attempt)
        self.learn(tier, now - began_s, now)
        actions: list[Action] = []
        state = self._open.pop(request, None)
        if state is not None:
            actions.append(Deliver(request, attempt, now > state.ask.deadline_s, tier, Reason.LOCAL_FITS, len(state.pending) > 1))
            for other in state.pending - {attempt}:
                # What runs on the device ends there; the cloud's answer will not be heard; a place in the queue is found void in its turn.
                if self._of[other][1] is Tier.CLOUD:
                    del self._of[other]
                    actions.append(Cancel(other))
        if tier is Tier.EDGE:
            self._free += 1
            actions += self._work(now)
        return actions

    def failed(self, attempt: int, failure: Failure, now: float) -> list[Action]:
        """See `Steering`."""
        request, tier, _ = self._of.pop(attempt)
        self.learn(tier, None, now)
        return self._go_on(request, attempt, failure, now)

    def left(self, request: int, now: float) -> list[Action]:  # noqa: ARG002 - of the interface
        """See `Steering`."""
        self._open.pop(request, None)
        return []

    def checked(self, endpoint: int, healthy: bool, round_trip_s: float, now: float) -> list[Action]:  # noqa: ARG002 - of the interface
        """See `Steering`; no baseline asks."""
        return []

    def tick(self, now: float) -> list[Action]:  # noqa: ARG002 - of the interface
        """See `Steering`."""
        return []

    def next_at(self) -> float:
        """See `Steering`: never."""
        return math.inf

    def decision(self, request: int) -> Explanation | None:  # noqa: ARG002 - of the interface
        """See `Steering`: nothing is predicted."""
        return None

    @property
    def waiting(self) -> int:
        """Requests that wait for the device, or run there."""
        return len(self._queue) + self._workers - self._free

    def _start(self, state: _Open, now: float) -> list[Action]:
        tier = state.untried.pop(0)
        self._attempt += 1
        attempt, request = self._attempt, state.ask.request
        state.pending.add(attempt)
        self._of[attempt] = (request, tier, now)
        if tier is Tier.CLOUD and self._budgets is not None and not self._budgets.spend(Cost(1, state.ask.payload_bytes, 0.0), now):
            del self._of[attempt]
            return self._go_on(request, attempt, NO_BUDGET, now)
        if tier is Tier.CLOUD:
            self._turn = (self._turn + 1) % self._endpoints
            return [SendCloud(attempt, request, self._turn, state.ask.limit_s)]
        self._queue.append((attempt, request))
        return self._work(now)

    def _work(self, now: float) -> list[Action]:
        """Give free workers what waits; what is too late does not run."""
        actions: list[Action] = []
        while self._free and self._queue:
            attempt, request = self._queue.popleft()
            state = self._open.get(request)
            if state is None:
                del self._of[attempt]
            elif now >= state.ask.deadline_s:
                del self._of[attempt]
                actions += self._go_on(request, attempt, TOO_LATE, now)
            else:
                self._free -= 1
                actions.append(RunEdge(attempt, request))
        return actions

    def _go_on(self, request: int, attempt: int, failure: Failure, now: float) -> list[Action]:
        """After an attempt without an answer."""
        state = self._open.get(request)
        if state is None:
            return []
        state.pending.discard(attempt)
        state.failure = (failure, attempt)
        if state.pending:
            return []
        if state.untried and now < state.ask.limit_s:
            return self._start(state, now)
        del self._open[request]
        return [Refuse(request, *state.failure, Reason.NO_TIER)]


class LocalOnly(Baseline):
    """Everything on the device."""

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        return [Tier.EDGE]


class CloudOnly(Baseline):
    """Everything in the cloud."""

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        return [Tier.CLOUD]


class StaticThreshold(Baseline):
    """The device while fewer than ``threshold`` requests wait or run there."""

    def __init__(self, workers: int, endpoints: int, threshold: int, budgets: Budgets | None = None) -> None:
        super().__init__(workers, endpoints, budgets)
        self._threshold = threshold

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        return [Tier.EDGE, Tier.CLOUD] if self.waiting < self._threshold else [Tier.CLOUD, Tier.EDGE]


class RandomTier(Baseline):
    """A fair coin."""

    def __init__(self, workers: int, endpoints: int, source: random.Random, budgets: Budgets | None = None) -> None:
        super().__init__(workers, endpoints, budgets)
        self._source = source

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        return [Tier.EDGE, Tier.CLOUD] if self._source.random() < 0.5 else [Tier.CLOUD, Tier.EDGE]


class LeastExpected(Baseline):
    """The tier with the least expected latency: moving averages, a queue on the device counted in service times; failures are forgotten within seconds."""

    def __init__(self, workers: int, endpoints: int, bench_s: float, budgets: Budgets | None = None) -> None:
        super().__init__(workers, endpoints, budgets)
        self._service_s = bench_s
        self._cloud_s = FIRST_GUESS_S
        self._heard_s = 0.0
        self._ran_s = 0.0

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        edge_s = self._service_s * (1 + self.waiting / self._workers)
        cloud_s = FIRST_GUESS_S + (self._cloud_s - FIRST_GUESS_S) * math.exp((self._heard_s - now) / DECAY_S)
        return [Tier.EDGE, Tier.CLOUD] if edge_s <= cloud_s else [Tier.CLOUD, Tier.EDGE]

    def learn(self, tier: Tier, elapsed_s: float | None, now: float) -> None:
        if tier is Tier.CLOUD:
            self._cloud_s += GAIN * ((FAILURE_S if elapsed_s is None else elapsed_s) - self._cloud_s)
            self._heard_s = now
        elif elapsed_s is not None:
            # The service time alone: since the attempt began, or since the worker ended the one before.
            self._service_s += GAIN * (min(elapsed_s, now - self._ran_s) - self._service_s)
            self._ran_s = now


class AlwaysHedge(Baseline):
    """Both tiers at once, the first answer wins."""

    both_at_once = True

    def tiers(self, ask: Ask, now: float) -> list[Tier]:  # noqa: ARG002
        return [Tier.EDGE, Tier.CLOUD]
