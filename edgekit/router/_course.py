"""The way of one request through the router: which attempt starts when, and how it ends. Pure; `Pilot` has the inputs.

How a request goes:

- *Decide* (`decide`): device, cloud, or the device's queue with the cloud held back.
- *Bind late*: a request that waits for the device is looked at again at the last moment at which the cloud still makes it (well beyond its 99th percentile), and when its
  turn comes. It goes to the cloud if that is likelier by then by more than the hundredth that the device is allowed to miss.
  Nothing is done twice, and the device never idles while the cloud is paid.
- *Hedge*: one that runs and has not answered when it should have is looked at again too; the other tier is asked as well when the chance that is left has
  dropped below it. Hedges are at most 2 % of the requests, and stop when they are needed too often (`HedgeThrottle`).
- *Fall back* after a failure, to whatever is likeliest of what was not tried; then *retry* the cloud, out of a budget.
- *Rescue*: past its deadline it may run on the device behind all others, until its limit. Nobody waits longer than that.

The first answer wins and the other attempt is cancelled.
"""

from __future__ import annotations

import math

import msgspec

from edgekit.router._bearings import Bearings
from edgekit.router._decide import (
    GUESS,
    HOPELESS,
    LIKELY,
    SURE,
    Decision,
    Health,
    Reason,
    RequestFacts,
    Tier,
    TierEstimate,
    decide,
    margin_s,
)
from edgekit.router._device import LATE, Place
from edgekit.router._events import Action, Ask, Cancel, Deliver, Failure, FailureKind, Refuse, RunEdge, SendCloud
from edgekit.router._open import Open, Sent
from edgekit.router._retry import retry_at
from edgekit.router._sequences import MOST_WAITING, home

__all__ = ["Course"]

IN_TIME = 0.95  # without a cloud: a request that is less likely than this lets others go first that can still be in time
_ITS_TURN = Decision((), Reason.STICKY, -1, False)  # it waits behind others of its sequence, and is decided when its turn comes
MOST_SENT = 3  # cloud attempts of one request, retries included


class Course(Bearings):
    """What happens to a request; see the module and `Pilot`."""

    def _share(self, ask: Ask) -> bool:
        """Let a request share the answer of an identical one in flight that has no more time than it and the same terms."""
        leader = self._digests.get(ask.digest)
        if leader is None:
            return False
        first = leader.ask
        fits = first.deadline_s <= ask.deadline_s and first.limit_s <= ask.limit_s and first.priority <= ask.priority
        if not fits or first.terms != ask.terms or ask.sequence or first.sequence:
            return False
        leader.followers.append(ask)
        self._follows[ask.request] = leader
        return True

    # The way of a request

    def _begin(self, ask: Ask, now: float, out: list[Action]) -> None:
        open_ = Open(ask, ask.deadline_s - margin_s(ask.sla_s))
        self._open[ask.request] = self._last = open_
        if ask.digest:
            self._digests.setdefault(ask.digest, open_)
        if ask.sequence and not self._sequences.enter(ask):
            open_.waits = True
            open_.decision = _ITS_TURN
            if self._sequences.waiting(ask) > MOST_WAITING:
                self._end(open_, now, out, FailureKind.OVERLOADED)
            else:
                self._plan(open_, now)
        else:
            self._start(open_, now, out)

    def _start(self, open_: Open, now: float, out: list[Action]) -> None:
        """Decide, and begin the first attempt."""
        ask = open_.ask
        budget_s = open_.until_s - now
        open_.edge = edge = self._device.estimate(ask, budget_s, now)
        open_.endpoints, clouds = self._offers(ask, (), budget_s, now, edge.service_s)
        open_.decision = decision = decide(ask, edge, clouds, now, self._may_hedge(open_))
        open_.cloud = clouds[decision.endpoint] if decision.endpoint >= 0 else None
        if (
            decision.reason is Reason.LOCAL_LIKELIER
            and edge.p_meet < LIKELY
            and self._cloud.endpoints[open_.endpoints[decision.endpoint]].try_due(now)
        ):
            tiers = (Tier.CLOUD, Tier.EDGE)
            open_.decision = decision = msgspec.structs.replace(decision, tiers=tiers, reason=Reason.CLOUD_TRIED, late=False)
        useless = open_.cloud is None or open_.cloud.p_meet < GUESS
        if useless and edge.wait_s > 0.0 and edge.p_meet < IN_TIME:
            # One in twenty or more of such will be set aside for others that can still be in time.
            open_.edge = edge = msgspec.structs.replace(edge, slow_s=ask.limit_s - now)
        if ask.sequence and not ask.sequence_start and self._start_bound(open_, now, out):
            return
        if decision.late and self._hopeless(open_, now):
            open_.decision = msgspec.structs.replace(decision, tiers=(), reason=Reason.HOPELESS)
            self._offloaded(ask, now)
            self._end(open_, now, out)
        elif not decision.tiers:
            self._end(open_, now, out)
        elif decision.tiers[0] is Tier.EDGE:
            self._to_device(open_, now, decision.late, out)
        elif not self._send(open_, open_.endpoints[decision.endpoint], open_.cloud, now, out):
            self._fall_back(open_, now, out)
        else:
            self._plan(open_, now)

    def _start_bound(self, open_: Open, now: float, out: list[Action]) -> bool:
        """A later request of a sequence: where the state is, or is moved to. False when nobody knows where that is and nothing can be done without."""
        ask, decision, at = open_.ask, open_.decision, self._sequences.where(open_.ask, now)
        late = now >= ask.deadline_s
        if (late and not open_.waits) or (at is None and not decision.tiers):
            return False
        to = None if at is None else home(ask, at, self._device, self._cloud, now)
        if at is None:
            to = -1 if decision.tiers[0] is Tier.EDGE else open_.endpoints[decision.endpoint]
        else:
            tier = Tier.EDGE if (at if to is None else to) < 0 else Tier.CLOUD
            open_.decision = msgspec.structs.replace(decision, tiers=(tier,), reason=Reason.STICKY if to == at else Reason.MOVED)
        open_.bound = True
        if to is None:
            self._sequences.lose(ask)
            self._end(open_, now, out, FailureKind.BROKEN)
        elif to < 0:
            self._to_device(open_, now, late or decision.late, out)
        elif self._cloud.endpoints[to].usable(now) and self._send(open_, to, self._estimate_at(open_, to, now), now, out):
            open_.edge_left = False
            self._plan(open_, now)
        else:
            self._end(open_, now, out, FailureKind.OVERLOADED)
        return True

    def _turn_of_next(self, ask: Ask, now: float, out: list[Action]) -> None:
        """A request is over: the next one of its sequence begins."""
        following = self._open.get(self._sequences.leave(ask)) if ask.sequence else None
        if following is not None:
            self._start(following, now, out)
            following.waits = False

    def _estimate_at(self, open_: Open, endpoint: int, now: float) -> TierEstimate:
        return self._cloud.endpoints[endpoint].estimate(open_.ask, open_.until_s - now, now, open_.edge.service_s)

    def _hopeless(self, open_: Open, now: float) -> bool:
        """No tier makes it even by the limit."""
        ask, budget_s = open_.ask, open_.ask.limit_s - now
        edge = self._device.estimate(ask, budget_s, now)
        if edge.health is not Health.ABSENT and (not edge.known or edge.p_meet >= HOPELESS):
            return False
        _, clouds = self._offers(ask, (), budget_s, now, edge.service_s)
        return all(cloud.p_meet < HOPELESS for cloud in clouds)

    def _to_device(self, open_: Open, now: float, late: bool, out: list[Action]) -> None:
        open_.edge_left = False
        device = self._device
        if device.health is Health.FULL:
            open_.edge_failure = (0, Failure(FailureKind.OVERLOADED))
            self._after_failure(open_, 0, Failure(FailureKind.OVERLOADED), now, out)
            return
        first = device.first()
        if device.free and (first is None or first[0] >= LATE):
            self._run(open_, now, out)
            return
        open_.place = device.enqueue(open_.ask, now, late)
        open_.look_s = self._hand_over_s(open_, now)
        self._plan(open_, now)
        self._feed(now, out)
        if (place := device.surplus()) is not None:
            self._give_way(place, now, out)

    def _give_way(self, place: Place, now: float, out: list[Action]) -> None:
        """A request that is late anyway leaves a full queue to one that is not."""
        open_ = self._open[place[2]]
        self._device.remove(place)
        open_.place = None
        if open_.sent is None:
            self._end(open_, now, out, FailureKind.OVERLOADED)

    def _run(self, open_: Open, now: float, out: list[Action]) -> None:
        self._attempt += 1
        open_.run = self._attempt
        self._attempts[self._attempt] = open_
        self._device.start(self._attempt, open_.ask, now)
        if open_.ask.sequence:
            self._sequences.bind(open_.ask, -1, now)
        out.append(RunEdge(self._attempt, open_.ask.request))
        open_.look_s = self._hedge_s(open_, now)
        self._plan(open_, now)

    def _send(self, open_: Open, endpoint: int, estimate: TierEstimate | None, now: float, out: list[Action]) -> bool:
        """Ask an endpoint; False when the operator's policy forbids it or the budgets have nothing left for it."""
        ask = open_.ask
        if ask.terms.edge_only or not self._cloud.pay(ask, now):
            return False
        self._attempt += 1
        slow_s, sure_s = (estimate.slow_s, estimate.sure_s) if estimate is not None else (0.0, math.inf)
        open_.sent = Sent(self._attempt, endpoint, now, slow_s, max(ask.deadline_s, now + sure_s))
        open_.tried = (*open_.tried, endpoint)
        if ask.sequence:
            self._sequences.bind(ask, endpoint, now)
        self._attempts[self._attempt] = open_
        self._cloud.endpoints[endpoint].sent(self._attempt, now, now + sure_s)
        out.append(SendCloud(self._attempt, ask.request, endpoint, ask.limit_s))
        if not open_.run and not open_.held:
            self._offloaded(ask, now)
            open_.look_s = self._rescue_s(open_, now, slow_s)
        return True

    def _feed(self, now: float, out: list[Action]) -> None:
        """Give what waits to free workers, as far as it is still worth it; then see whether a probe is wanted."""
        device = self._device
        while device.free and (place := device.first()) is not None:
            open_ = self._open[place[2]]
            crowd = device.others_in_time()
            device.remove(place)
            open_.place = None
            if place[0] >= LATE:
                if now < open_.ask.limit_s:
                    self._run(open_, now, out)
                else:
                    self._end(open_, now, out)
            else:
                self._turn(open_, crowd, now, out)
        self._plan_probe(now)

    def _turn(self, open_: Open, crowd: bool, now: float, out: list[Action]) -> None:
        """A worker is free for a request: run it, hand it to the cloud, or let others go first."""
        ask = open_.ask
        edge = self._device.alone(ask, open_.until_s, now)
        if open_.bound or not edge.known or edge.p_meet >= SURE:
            self._run(open_, now, out)
            return
        if open_.sent is None and now < ask.deadline_s:
            indices, clouds = self._offers(ask, open_.tried, open_.until_s - now, now, edge.service_s)
            decision = decide(ask, edge, clouds, now, self._may_hedge(open_))
            if decision.tiers[0] is Tier.CLOUD:
                open_.edge_left = True
                if self._send(open_, indices[decision.endpoint], clouds[decision.endpoint], now, out):
                    self._plan(open_, now)
                    return
                open_.edge_left = False
        if edge.p_meet >= (IN_TIME if crowd else HOPELESS):
            self._run(open_, now, out)
            return
        open_.place = self._device.enqueue(ask, now, late=True)  # runs when nothing else waits
        self._plan(open_, now)

    # Failures

    def _after_failure(self, open_: Open, attempt: int, failure: Failure, now: float, out: list[Action]) -> None:
        if failure.kind is FailureKind.REQUEST:
            self._end(open_, now, out, attempt=attempt)
        elif open_.run or open_.sent is not None or open_.place is not None:
            self._plan(open_, now)
        elif open_.bound:
            if failure.kind not in (FailureKind.OVERLOADED, FailureKind.DEADLINE):  # after these the state is what it was
                self._sequences.lose(open_.ask)
            self._end(open_, now, out)
        else:
            self._fall_back(open_, now, out)

    def _fall_back(self, open_: Open, now: float, out: list[Action], *, paid: bool = False) -> None:
        """Nothing is under way: start what is likeliest of what is left, or end. ``paid``: this is a retry, and counted as one."""
        ask = open_.ask
        if now >= ask.limit_s:
            self._end(open_, now, out)
            return
        late = now >= ask.deadline_s
        budget_s = (ask.limit_s if late else open_.until_s) - now
        edge = self._device.estimate(ask, budget_s, now)
        if not open_.edge_left:
            edge = msgspec.structs.replace(edge, health=Health.ABSENT)
        indices, clouds = self._offers(ask, open_.tried, budget_s, now, edge.service_s)
        decision = decide(RequestFacts(ask.limit_s, ask.limit_s, ask.sla_s) if late else ask, edge, clouds, now)
        if decision.tiers and decision.tiers[0] is Tier.CLOUD:
            index, cloud = indices[decision.endpoint], clouds[decision.endpoint]
            paid = (
                paid or open_.cloud_failure is None or self._retries.try_take(now)
            )  # another endpoint, after one has failed, is a retry too
            if paid and self._send(open_, index, cloud, now, out):
                self._plan(open_, now)
                return
            decision = decide(ask, edge, (), now)
        if decision.tiers:
            self._to_device(open_, now, late or decision.late, out)
        elif not self._retry(open_, now):
            self._end(open_, now, out)

    def _retry(self, open_: Open, now: float) -> bool:
        """Plan one more cloud attempt; False when there is no time, no budget or no sense in it."""
        ask, last = open_.ask, open_.cloud_failure
        if last is None or last[1].kind not in (FailureKind.BROKEN, FailureKind.OVERLOADED):
            return False
        if now >= ask.deadline_s or open_.retries + 1 >= MOST_SENT or not self._cloud.open:
            return False
        needs_s = open_.cloud.typical_s if open_.cloud is not None else 0.0
        at = retry_at(open_.retries + 1, self._random.random(), now, open_.until_s, needs_s, last[1].retry_after_s)
        if at is None or not self._retries.try_take(now):
            return False
        open_.retries += 1
        open_.retry_s = at
        self._plan(open_, now)
        return True

    # The end

    def _deliver(self, open_: Open, attempt: int, tier: Tier, now: float, out: list[Action]) -> None:
        reason = open_.decision.reason
        if now <= open_.ask.deadline_s:
            self._throttle.succeeded()
        self._calibrate(open_, tier, now)
        self._close(open_, tier, now, out)
        if open_.ask.sequence_end:
            self._sequences.lose(open_.ask)
        for ask in (open_.ask, *open_.followers):
            shared = reason if ask is open_.ask else Reason.SHARED
            out.append(Deliver(ask.request, attempt, now > ask.deadline_s, tier, shared, open_.hedged))
        self._turn_of_next(open_.ask, now, out)

    def _end(self, open_: Open, now: float, out: list[Action], kind: FailureKind | None = None, attempt: int = 0) -> None:
        """Nobody answers: tell the request's own fault, else what the device said, else the cloud, else that time ran out."""
        waits = bool(open_.run or open_.sent is not None or open_.place is not None)
        self._calibrate(open_, None, now)
        self._close(open_, None, now, out)
        told = None
        for one in (open_.edge_failure, open_.cloud_failure):
            if one is not None and told is None and (one[0] == attempt if attempt else not waits):
                told = one
        if told is None:
            full = open_.decision.reason is Reason.LOCAL_FULL and not open_.decision.tiers
            absent = open_.decision.reason is Reason.LOCAL_ABSENT and not open_.decision.tiers
            early = FailureKind.OVERLOADED if full else FailureKind.NOT_FOUND if absent else FailureKind.DEADLINE
            told = (0, Failure(kind or early))
        if open_.ask.sequence_start and not open_.waits:
            self._sequences.lose(open_.ask)  # it did not begin
        out.append(Refuse(open_.ask.request, told[1], told[0], open_.decision.reason))
        for ask in open_.followers:
            if told[1].kind is FailureKind.REQUEST:
                out.append(Refuse(ask.request, told[1], told[0], Reason.SHARED))
            else:
                self._begin(ask, now, out)  # on its own; its limit is not before this one's
        self._turn_of_next(open_.ask, now, out)

    def _close(self, open_: Open, winner: Tier | None, now: float, out: list[Action]) -> None:
        """Forget a request and cancel what still waits or runs for it."""
        del self._open[open_.ask.request]
        digest = open_.ask.digest
        if digest and self._digests.get(digest) is open_:
            del self._digests[digest]
        for ask in open_.followers:
            self._follows.pop(ask.request, None)
        if open_.place is not None:
            self._device.remove(open_.place)
            open_.place = None
        if open_.run and winner is not Tier.EDGE:
            self._cancel_run(open_, out)
        if open_.sent is not None:
            self._cancel_sent(open_, open_.sent, now, out)

    def _cancel_run(self, open_: Open, out: list[Action]) -> None:
        self._attempts.pop(open_.run, None)
        self._given_up.add(open_.run)
        out.append(Cancel(open_.run))
        open_.run = 0

    def _cancel_sent(self, open_: Open, sent: Sent, now: float, out: list[Action]) -> None:
        self._attempts.pop(sent.attempt, None)
        open_.sent = None
        endpoint = self._cloud.endpoints[sent.endpoint]
        endpoint.ended(sent.attempt)
        if not sent.settled:
            if now >= sent.due_s:
                endpoint.failed(now)
            else:
                endpoint.cancelled(now - sent.started_s, sent.slow_s, now)
            self._plan_check(sent.endpoint)
        out.append(Cancel(sent.attempt))
