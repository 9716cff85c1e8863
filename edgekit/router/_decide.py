"""Which tier answers a request: a pure function of what is known now.

The rule: the device, when the probability that it answers by the deadline is at least 0.99; or at least 0.9 and a hedge still comes in time (then one of
the two makes it with 0.995: 0.9 + 0.1 x the 0.95 of a hedge at the cloud's 95th percentile); or when it would wait for its turn, is likely (0.8) to get it in
time, and can be handed to the cloud as long as it waits (nothing was done twice then). Else the tier with the higher probability; else, when neither can
make it, the one most likely to, marked late. Nothing here reads a clock, waits or counts.

All times are seconds on one monotonic clock. A margin of max(2 ms, 5 % of the SLA) is kept from every deadline for what no estimate sees (hand-over between
threads, encoding of the answer).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

__all__ = [
    "GUESS",
    "HOPELESS",
    "LIKELY",
    "SURE",
    "Decision",
    "Facts",
    "Health",
    "Reason",
    "RequestFacts",
    "Tier",
    "TierEstimate",
    "decide",
    "margin_s",
]

SURE = 0.99
HEDGED = 0.9
LIKELY = 0.8
# A cloud that is less likely than this is not asked for being likelier than a device that has no chance; what it can do now is found out by tries.
GUESS = 0.1
# Below this no tier is said to make it: with a window of some hundred samples it cannot be told from zero.
HOPELESS = 0.01
MARGIN_FLOOR_S = 0.002
MARGIN_SHARE = 0.05


class Tier(enum.Enum):
    """Where an attempt runs; the value is the telemetry attribute."""

    EDGE = "edge"
    CLOUD = "cloud"


class Reason(enum.Enum):
    """Why a decision is what it is. Few values, since it is a telemetry attribute."""

    LOCAL_FITS = "local_fits"
    """The device answers in time with at least 0.99."""
    LOCAL_HEDGED = "local_hedged"
    """The device answers in time with at least 0.9, and the cloud can still be asked when it does not."""
    LOCAL_QUEUED = "local_queued"
    """The device is likely to get to it in time; while it waits it can still be handed to the cloud."""
    LOCAL_LIKELIER = "local_likelier"
    """The device is not sure to answer in time, and no cloud endpoint is likelier to, or likely at all."""
    CLOUD_TRIED = "cloud_tried"
    """No tier is likely to make it; the cloud, since nothing recent is known of it."""
    LOCAL_TOO_SLOW = "local_too_slow"
    """A cloud endpoint is likelier to answer in time than the device."""
    LOCAL_UNSURE = "local_unsure"
    """The device answered, and was not sure of its answer: the cloud is asked for a second opinion."""
    LOCAL_FAILING = "local_failing"
    """The device's last attempts failed, so the cloud is asked."""
    LOCAL_FULL = "local_full"
    """The device's queue takes no more."""
    LOCAL_ABSENT = "local_absent"
    """The device does not have the model."""
    CLOUD_OPEN_BREAKER = "cloud_open_breaker"
    """The device is not sure, and every cloud endpoint's breaker is open: the device, with nothing spent on the cloud."""
    CLOUD_FULL = "cloud_full"
    """The device is not sure, and the cloud endpoints that can be asked have as much in flight as they take."""
    OFFLINE = "offline"
    """The device is not sure, and there is no cloud tier."""
    COLD_START = "cold_start"
    """Nothing is known about the device's service time yet: the device, hedged."""
    NO_TIER = "no_tier"
    """The device fails and no cloud endpoint can be asked: the device is tried all the same."""
    DEADLINE_PASSED = "deadline_passed"
    """Refused without any work."""
    HOPELESS = "hopeless"
    """Refused early: no tier would answer even by the time that a late answer is waited for."""
    SHARED = "shared"
    """The same request is in flight already; its answer is shared."""
    STICKY = "sticky"
    """Its sequence has its state there."""
    MOVED = "moved"
    """The tier that had its sequence goes, or may not be asked any more: the sequence is moved here with its state."""
    EDGE_ONLY = "edge_only"
    """The operator's policy keeps it on the device."""
    BUDGET_SPENT = "budget_spent"
    """The device is not sure, and the cloud budget is spent."""


class Health(enum.Enum):
    """Whether a tier can be given a request at all."""

    OK = "ok"
    FAILING = "failing"
    FULL = "full"
    ABSENT = "absent"


class Facts(Protocol):
    """What a decision needs to know about a request; `RequestFacts`, or the request itself."""

    @property
    def deadline_s(self) -> float:
        """See `RequestFacts`."""
        ...

    @property
    def limit_s(self) -> float:
        """See `RequestFacts`."""
        ...

    @property
    def sla_s(self) -> float:
        """See `RequestFacts`."""
        ...


class RequestFacts(msgspec.Struct, frozen=True, gc=False):
    """What a decision needs to know about a request.

    Attributes:
        deadline_s: absolute; an answer after it has missed the SLA.
        limit_s: absolute, at or after the deadline: a late answer is worth something until here, and nobody waits longer.
        sla_s: the length of the promise, for the margin.
    """

    deadline_s: float
    limit_s: float
    sla_s: float


class TierEstimate(msgspec.Struct, frozen=True, gc=False):
    """What is known about one tier (the device, or one cloud endpoint) for one request.

    Attributes:
        p_meet: probability of an answer by the deadline less the margin.
        typical_s: from now to the answer, median.
        slow_s: from now to the answer, 95th percentile.
        known: False when nothing was measured yet.
        health: whether it can be given a request.
        cost_s: Peak-EWMA latency times load; tells endpoints of equal probability apart.
        service_s: median service time without the wait, of the device.
        wait_s: expected time until its turn, of the device.
        sure_s: from now to an answer that can be counted on, beyond the 99th percentile; of a cloud endpoint.
    """

    p_meet: float
    typical_s: float
    slow_s: float
    known: bool = True
    health: Health = Health.OK
    cost_s: float = 0.0
    service_s: float = 0.0
    wait_s: float = 0.0
    sure_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What to do with a request, and why.

    Attributes:
        tiers: order in which tiers may be asked, at most two; empty when refused.
        reason: why.
        endpoint: index of the cloud endpoint that the cloud attempt uses; -1 for none.
        late: no tier can make the deadline; this is the one most likely to.
    """

    tiers: tuple[Tier, ...]
    reason: Reason
    endpoint: int
    late: bool


def margin_s(sla_s: float) -> float:
    """What is kept back from a deadline."""
    return max(MARGIN_FLOOR_S, MARGIN_SHARE * sla_s)


def decide(facts: Facts, local: TierEstimate, clouds: Sequence[TierEstimate], now: float, may_hedge: bool = True) -> Decision:
    """Choose the order of tiers for one request.

    Args:
        facts: deadline and SLA.
        local: the device.
        clouds: every cloud endpoint, in the configuration's order; empty when there is no cloud tier.
        now: the time, on the clock of ``facts``.
        may_hedge: False while hedging is throttled.
    """
    if now >= facts.deadline_s:
        return Decision((), Reason.DEADLINE_PASSED, -1, False)
    endpoint = _best_endpoint(clouds)
    cloud = clouds[endpoint] if endpoint >= 0 else None
    tiers, reason = _order(local, cloud, clouds)
    if reason is Reason.LOCAL_TOO_SLOW and cloud is not None:
        if local.wait_s > 0.0 and local.p_meet >= LIKELY and facts.deadline_s - margin_s(facts.sla_s) - cloud.sure_s > now:
            tiers, reason = (Tier.EDGE, Tier.CLOUD), Reason.LOCAL_QUEUED
        elif may_hedge and _hedge_is_enough(facts, local, cloud, now):
            tiers, reason = (Tier.EDGE, Tier.CLOUD), Reason.LOCAL_HEDGED
    return Decision(tiers, reason, endpoint, bool(tiers) and _best(local, cloud) < HOPELESS)


def _best(local: TierEstimate, cloud: TierEstimate | None) -> float:
    """Highest probability of the tiers that can be asked; an unknown device may well make it."""
    best = cloud.p_meet if cloud is not None else 0.0
    if local.health is Health.OK:
        best = max(best, local.p_meet if local.known else 1.0)
    return best


def _best_endpoint(clouds: Sequence[TierEstimate]) -> int:
    """Index of the likeliest endpoint that can be asked, the cheaper of equals; -1 for none."""
    chosen = -1
    for index, candidate in enumerate(clouds):
        if candidate.health is not Health.OK:
            continue
        if chosen < 0 or _likelier(candidate, clouds[chosen]):
            chosen = index
    return chosen


def _likelier(candidate: TierEstimate, incumbent: TierEstimate) -> bool:
    if abs(candidate.p_meet - incumbent.p_meet) > HOPELESS:
        return candidate.p_meet > incumbent.p_meet
    return candidate.cost_s < incumbent.cost_s


def _order(local: TierEstimate, cloud: TierEstimate | None, clouds: Sequence[TierEstimate]) -> tuple[tuple[Tier, ...], Reason]:
    edge_first = (Tier.EDGE,) if cloud is None else (Tier.EDGE, Tier.CLOUD)
    if local.health is Health.ABSENT:
        return () if cloud is None else (Tier.CLOUD,), Reason.LOCAL_ABSENT
    if local.health is Health.FULL:
        return () if cloud is None else (Tier.CLOUD, Tier.EDGE), Reason.LOCAL_FULL
    if local.health is Health.FAILING:
        return (edge_first, Reason.NO_TIER) if cloud is None else ((Tier.CLOUD, Tier.EDGE), Reason.LOCAL_FAILING)
    if not local.known:
        return edge_first, Reason.COLD_START
    if local.p_meet >= SURE:
        return edge_first, Reason.LOCAL_FITS
    if cloud is None:
        return edge_first, _no_cloud(clouds)
    if cloud.p_meet > max(GUESS, local.p_meet):
        return (Tier.CLOUD, Tier.EDGE), Reason.LOCAL_TOO_SLOW
    return edge_first, Reason.LOCAL_LIKELIER


def _no_cloud(clouds: Sequence[TierEstimate]) -> Reason:
    if not clouds:
        return Reason.OFFLINE
    return Reason.CLOUD_FULL if any(cloud.health is Health.FULL for cloud in clouds) else Reason.CLOUD_OPEN_BREAKER


def _hedge_is_enough(facts: Facts, local: TierEstimate, cloud: TierEstimate, now: float) -> bool:
    """The device is likely, and done more often than not before the cloud must start."""
    hedge_at = facts.deadline_s - margin_s(facts.sla_s) - cloud.slow_s
    return local.p_meet >= HEDGED and hedge_at >= now + local.typical_s
