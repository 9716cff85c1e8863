"""What the router's state machine knows and counts, without what it does about it: tiers, budgets, what every attempt's end tells, and when to be woken. Pure."""

from __future__ import annotations

import heapq
import math
import random

import msgspec

from edgekit.router._breaker import Breaker, HedgeAllowance, HedgeThrottle
from edgekit.router._cloud_tier import CloudTier, Offers
from edgekit.router._decide import HOPELESS, Health, Tier, TierEstimate, margin_s
from edgekit.router._device import Device
from edgekit.router._events import Action, Ask, Budgets, Failure, FailureKind, RunEdge
from edgekit.router._open import Open, Sent
from edgekit.router._retry import RetryBudget, RetryLimits
from edgekit.router._sequences import Sequences

__all__ = ["Bearings", "PilotOptions"]

OVERDUE = 2.0  # a run that has taken this many times its 95th percentile is looked at, whenever its deadline is


class PilotOptions(msgspec.Struct, frozen=True):
    """Settings of a `Pilot`.

    Attributes:
        workers: requests that the device runs at the same time; 0 to learn it.
        queue: requests that may wait for the device.
        hedge_share: hedges as a share of the requests; half as many may be sent to the cloud for a late answer.
        retries: how much may be tried again.
    """

    workers: int = 1
    queue: int = 64
    hedge_share: float = 0.02
    retries: RetryLimits = RetryLimits()


class Bearings:
    """State, and the bookkeeping that several steps of a request's way share; see `Course` for these."""

    def __init__(self, options: PilotOptions, endpoints: int, random_source: random.Random, budgets: Budgets | None = None) -> None:
        self._random = random_source
        self._device = Device(options.workers, options.queue, Breaker(random_source=random_source))
        self._cloud = CloudTier(endpoints, budgets, random_source)
        self._hedges = HedgeAllowance(options.hedge_share)
        self._rescues = HedgeAllowance(options.hedge_share / 2)
        self._throttle = HedgeThrottle()
        self._retries = RetryBudget(options.retries)
        self._sequences = Sequences()
        self._open: dict[int, Open] = {}
        self._follows: dict[int, Open] = {}  # request -> whose answer it shares
        self._digests: dict[bytes, Open] = {}
        self._attempts: dict[int, Open] = {}  # attempts whose end matters to a request
        self._given_up: set[int] = set()  # attempts on the device that were cancelled, until they end
        self._attempt = 0
        self._probe_ask: Ask | None = None
        self._last: Open | None = None
        # (when, what): a request's number, -1 - index of an endpoint's health check, or 0 for a shadow probe.
        self._timers: list[tuple[float, int]] = [(-math.inf, -1 - index) for index in range(endpoints)]
        self._check_at = [-math.inf] * endpoints
        self._probe_at = math.inf

    # What may be asked

    def _offers(self, ask: Ask, tried: tuple[int, ...], budget_s: float, now: float, device_service_s: float) -> Offers:
        """The endpoints that may be asked, none without budget."""
        if not self._cloud.affordable(ask, now):
            return (), ()
        return self._cloud.offers(ask, tried, budget_s, now, device_service_s)

    def _best(self, open_: Open, now: float) -> tuple[int, TierEstimate | None]:
        """The likeliest endpoint that was not tried and might still make it."""
        indices, clouds = self._offers(open_.ask, open_.tried, open_.until_s - now, now, open_.edge.service_s)
        best, chosen = HOPELESS, -1
        for position, cloud in enumerate(clouds):
            if cloud.health is Health.OK and cloud.p_meet >= best:
                best, chosen = cloud.p_meet, position
        return (indices[chosen], clouds[chosen]) if chosen >= 0 else (-1, None)

    def _may_hedge(self, open_: Open) -> bool:
        ask = open_.ask
        return ask.priority == 0 and ask.terms.may_hedge and not ask.sequence and self._hedges.allows and self._throttle.allows

    # What the tiers' ends tell

    def _cloud_answered(self, ask: Ask, sent: Sent, now: float) -> None:
        endpoint = self._cloud.endpoints[sent.endpoint]
        endpoint.ended(sent.attempt)
        if sent.settled:
            endpoint.answered_late(ask, now - sent.started_s, now)
        elif now <= sent.due_s:
            endpoint.answered(ask, now - sent.started_s, now)
        else:
            endpoint.failed(now)
            endpoint.answered_late(ask, now - sent.started_s, now)
        self._plan_check(sent.endpoint)

    def _cloud_failed(self, ask: Ask, sent: Sent, failure: Failure, now: float) -> None:
        endpoint = self._cloud.endpoints[sent.endpoint]
        if failure.unsent:
            self._cloud.give_back(ask, sent.started_s)
        endpoint.ended(sent.attempt)
        if failure.kind is FailureKind.STATE_LOST:
            endpoint.cancelled(0.0, sent.slow_s, now)
            return
        if failure.kind is not FailureKind.REQUEST:  # a request that is wrong says nothing of the load
            self._throttle.failed()
        if sent.settled:
            return
        if failure.kind is FailureKind.REQUEST:
            endpoint.refused(now)
        else:
            endpoint.failed(now, failure.retry_after_s, failure.kind is FailureKind.OVERLOADED)
        self._plan_check(sent.endpoint)

    def _device_failed(self, attempt: int, failure: Failure, open_: Open | None, now: float) -> None:
        device = self._device
        ask = device.ask_of(attempt)
        if attempt in self._given_up:
            self._given_up.discard(attempt)
            device.give_up(attempt, now)  # it ended since it was cancelled
        elif failure.kind is FailureKind.STATE_LOST:
            device.drop(attempt)
        elif failure.kind in (FailureKind.REQUEST, FailureKind.NOT_FOUND):
            device.drop(attempt)
            self._device_recovered(now)  # a refusal of the request is an answer
        elif failure.kind is FailureKind.DEADLINE:  # slow is not broken: it is a sample, and all that is known is its least value
            device.finish(attempt, now, ask.deadline_s if open_ is not None else now)
            device.breaker.probe_ended(False, now)
        else:
            device.drop(attempt)
            device.breaker.failed(now)
            device.breaker.probe_ended(False, now)
            self._probe_ask = ask

    def _device_recovered(self, now: float) -> None:
        self._device.recovered(now)
        if not self._device.probes.next_s < math.inf:
            self._probe_ask = None

    def _offloaded(self, ask: Ask, now: float) -> None:
        """A request that might have run on the device does not; the next shadow probe runs with its inputs."""
        if ask.on_edge and not ask.terms.cloud_only:
            self._device.probes.offloaded(ask.deadline_s - margin_s(ask.sla_s) - now, now)
            self._probe_ask = ask
            self._plan_probe(now)

    def _probe(self, now: float, out: list[Action]) -> None:
        self._probe_at = math.inf
        ask, device = self._probe_ask, self._device
        if ask is not None and device.probe_due(now):
            if not device.breaker.closed:
                device.breaker.start_probe()
            self._attempt += 1
            device.start(self._attempt, ask, now)
            out.append(RunEdge(self._attempt, ask.request, shadow=True))
        self._plan_probe(now)

    def _calibrate(self, open_: Open, tier: Tier | None, now: float) -> None:
        """Whether the first tier's predicted 95th percentile came true, as far as that is known; ``tier`` answered, or nobody."""
        tiers = open_.decision.tiers
        estimate = open_.edge if tiers and tiers[0] is Tier.EDGE else open_.cloud
        if not tiers or estimate is None or not estimate.known or estimate.slow_s >= open_.ask.limit_s - open_.ask.accepted_s:
            return  # nothing was predicted
        within = now - open_.ask.accepted_s <= estimate.slow_s
        if within and tier is not tiers[0]:
            return  # the first one might have made it still
        if tiers[0] is Tier.EDGE:
            self._device.calibration.observe(within)
        else:
            self._cloud.endpoints[open_.endpoints[open_.decision.endpoint]].estimator.calibration.observe(within)

    # When to be woken

    def _hand_over_s(self, open_: Open, now: float) -> float:
        """When to look at a request that waits: the last moment at which the cloud can be counted on, or soon when that has passed."""
        cloud = open_.cloud
        if cloud is None or open_.bound or open_.decision.late:
            return math.inf
        at = open_.until_s - cloud.sure_s
        if at <= now:
            at = min(open_.until_s - cloud.typical_s, now + 0.5 * open_.edge.wait_s)
        return at if at > now else math.inf

    def _hedge_s(self, open_: Open, now: float) -> float:
        """When to look at a request that runs: when it has taken well beyond the device's 95th percentile, but no later than the last moment at which the cloud
        can be counted on; when that has passed, at the device's 95th or the cloud's last median, whichever is earlier; a half chance is better than none.
        """
        cloud = open_.cloud
        if cloud is None or open_.ask.sequence or open_.decision.late or open_.sent is not None:
            return math.inf
        slow_s = max(open_.edge.service_s, open_.edge.slow_s - open_.edge.wait_s)
        at = open_.until_s - cloud.sure_s
        at = min(at, now + OVERDUE * slow_s) if at > now else min(open_.until_s - cloud.typical_s, now + slow_s)
        return at if at > now else math.inf

    def _rescue_s(self, open_: Open, now: float, slow_s: float) -> float:
        """When to look at a request that the cloud has, which takes ``slow_s`` at its 95th percentile: as `_hedge_s`, with the tiers exchanged."""
        edge = open_.edge
        if not open_.edge_left or open_.bound or not edge.known:
            return math.inf
        at = open_.until_s - max(edge.service_s, edge.slow_s - edge.wait_s)
        return min(at, now + OVERDUE * slow_s) if slow_s else at

    def _plan(self, open_: Open, now: float) -> None:
        """Be woken for a request at the next moment that matters to it."""
        ask = open_.ask
        due = min(ask.limit_s, open_.look_s, open_.retry_s)
        if now < ask.deadline_s:
            due = min(due, ask.deadline_s)
        elif open_.sent is not None and not open_.sent.settled:
            due = min(due, open_.sent.due_s)
        if due != open_.due_s:
            open_.due_s = due
            heapq.heappush(self._timers, (due, ask.request))

    def _plan_check(self, endpoint: int) -> None:
        at = self._cloud.endpoints[endpoint].check_at_s
        if at != self._check_at[endpoint]:
            self._check_at[endpoint] = at
            if at < math.inf:
                heapq.heappush(self._timers, (at, -1 - endpoint))

    def _plan_probe(self, now: float) -> None:
        device = self._device
        if self._probe_ask is None or device.running or device.waiting:
            self._probe_at = math.inf
            return
        at = max(now, device.next_probe_s)
        if at != self._probe_at:
            self._probe_at = at
            if at < math.inf:
                heapq.heappush(self._timers, (at, 0))
