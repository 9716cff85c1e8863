"""The router's own decision, estimators, breaker and flights, driven over virtual time: steady, throttled, cloud down, cloud back.

One device with one worker (service log-normal around 20 ms, sigma 0.15), a cloud that answers in 45 ms (log-normal, sigma 0.25), Poisson arrivals of 15 a second, an
SLA of 100 ms. Nothing waits: a heap of events is the clock. Seeds are fixed; each scenario runs on three.
"""

import heapq
import itertools
import math
import random
from collections import deque

import pytest

from edgekit.errors import DeadlineError, UnavailableError
from edgekit.router import (
    Breaker,
    CloudEstimator,
    Flight,
    Health,
    HedgeThrottle,
    LocalEstimator,
    RequestFacts,
    Tier,
    decide,
    margin_s,
)

SLA_S, GRACE_S, RATE_PER_S = 0.1, 1.0, 15.0
MODEL, SIZE = "m", 4096
HANG, REFUSE = "hang", "refuse"
SEEDS = [1, 2, 3]


class Request:
    def __init__(self, at):
        self.at = at
        self.facts = RequestFacts(at + SLA_S, at + SLA_S + GRACE_S, SLA_S)
        self.flight = self.decision = self.answered_at = self.tier = None
        self.failed = self.refused = False
        self.answers = self.cloud_started = 0
        self.cloud_settled = False

    @property
    def met(self):
        return self.answered_at is not None and self.answered_at <= self.facts.deadline_s

    @property
    def over(self):
        return self.answered_at is not None or self.failed or self.refused


class World:
    """Device, cloud and router in virtual time. ``throttle(t)`` scales the device's service; ``cloud(t)`` is None (well), HANG, REFUSE or "none"."""

    def __init__(self, seed, throttle=lambda _: 1.0, cloud=lambda _: None, has_cloud=True):
        self.random = random.Random(seed)
        self.throttle_at, self.cloud_at, self.has_cloud = throttle, cloud, has_cloud
        self.local, self.cloud, self.breaker, self.hedges = (
            LocalEstimator(),
            CloudEstimator(),
            Breaker(random_source=random.Random(seed)),
            HedgeThrottle(),
        )
        self.local.seed(MODEL, SIZE, [self.service(0.0) for _ in range(3)], 0.0)
        self.cloud.seed(0.025)
        self.queue, self.late, self.busy = deque(), deque(), False
        self.events, self.order, self.now = [], itertools.count(), 0.0
        self.requests, self.probes = [], []

    def service(self, now):
        return 0.02 * self.throttle_at(now) * math.exp(self.random.gauss(0.0, 0.15))

    def at(self, when, action, *args):
        heapq.heappush(self.events, (when, next(self.order), action, args))

    def run(self, seconds):
        self.seconds = seconds
        if self.has_cloud:
            self.at(2.5, self.check_cloud)
        at = self.random.expovariate(RATE_PER_S)
        while at < seconds:
            self.at(at, self.accept, Request(at))
            at += self.random.expovariate(RATE_PER_S)
        while self.events:
            self.now, _, action, args = heapq.heappop(self.events)
            action(*args)
        assert all(request.over for request in self.requests)
        assert all(request.answers <= 1 for request in self.requests)
        return self

    def accept(self, request):
        self.requests.append(request)
        budget = request.facts.deadline_s - margin_s(SLA_S) - self.now
        local = self.local.estimate(MODEL, SIZE, budget, self.now)
        health = Health.OK if self.breaker.closed and self.cloud.may_send(self.now) else Health.FAILING
        clouds = [self.cloud.estimate(MODEL, SIZE, budget, self.now, health, local.service_s)] if self.has_cloud else []
        request.decision = decide(request.facts, local, clouds, self.now, self.hedges.allows)
        request.flight = Flight(request.facts, request.decision)
        self.start(request, request.flight.first())
        self.wait(request)

    def wait(self, request):
        if not request.over:
            self.at(max(self.now, request.flight.next_at()), self.poke, request)

    def poke(self, request):
        if request.over or self.now < request.flight.next_at():
            return
        if request.flight.cloud_missed(self.now):
            self.settle(request, failed=True)
        self.go_on(
            request, request.flight.on_time(self.now, self.hedges, lambda *args: self.local.outlook(request.ticket, MODEL, SIZE, *args))
        )
        self.wait(request)

    def go_on(self, request, tier):
        if tier is not None:
            self.start(request, tier)
        elif request.flight.over(self.now):
            request.failed = True

    def start(self, request, tier):
        if tier is Tier.EDGE:
            self.submit(request)
            return
        request.cloud_started += 1
        request.cloud_at = self.now
        request.cloud_slow_s = self.cloud.estimate(MODEL, SIZE, 1.0, self.now).slow_s
        assert self.breaker.closed  # no request ever goes to an open breaker
        assert self.has_cloud
        self.cloud.start()
        if request.decision.tiers[0] is Tier.CLOUD:
            self.local.offloaded(request.facts.deadline_s - margin_s(SLA_S) - self.now, self.now)
            self.at(max(self.now, self.local.next_probe_s), self.probe_device)
        state = self.cloud_at(self.now)
        if state is None:
            latency = 0.045 * math.exp(self.random.gauss(0.0, 0.25))
            self.at(self.now + latency, self.cloud_answers, request, latency)
        elif state == REFUSE:
            self.at(self.now + 0.001, self.cloud_fails, request)

    def settle(self, request, failed):
        if not request.cloud_settled:
            request.cloud_settled = True
            if failed:
                self.cloud.failed(self.now)
                self.breaker.failed(self.now)
                self.watch()
            elif self.cloud.cancelled(self.now - request.cloud_at, request.cloud_slow_s, self.now):
                self.breaker.failed(self.now)
                self.watch()

    def cloud_answers(self, request, latency):
        if request.over:
            return
        if not request.cloud_settled:
            request.cloud_settled = True
            self.cloud.succeeded(MODEL, SIZE, latency, self.now)
            self.breaker.succeeded()
        self.answer(request, Tier.CLOUD)

    def cloud_fails(self, request):
        if not request.over:
            self.settle(request, failed=True)
            self.hedges.failed()
            self.go_on(request, request.flight.on_failure(Tier.CLOUD, UnavailableError("cloud", "refused"), self.now))

    def answer(self, request, tier):
        request.answers += 1
        request.answered_at, request.tier = self.now, tier
        if request.met:
            self.hedges.succeeded()
        if tier is Tier.EDGE and Tier.CLOUD in request.flight.pending:
            self.settle(request, failed=False)

    def check_cloud(self):
        """The watch's question every five seconds."""
        if self.breaker.closed and self.cloud_at(self.now) is None:
            self.breaker.healthy(self.now)
        elif self.breaker.closed:
            self.breaker.trip(self.now)
            self.watch()
        if self.now < self.seconds:
            self.at(self.now + 5.0, self.check_cloud)

    def watch(self):
        if not self.breaker.closed:
            self.at(self.breaker.probe_at_s, self.probe_cloud)

    def probe_cloud(self):
        if self.breaker.probe_due(self.now):
            self.breaker.start_probe()
            self.probes.append(self.now)
            self.breaker.probe_ended(self.cloud_at(self.now) is None, self.now)
            self.watch()

    def submit(self, request):
        request.ticket = self.local.enqueue(MODEL, SIZE, self.now)
        request.returnable = request.flight.cloud_left and not request.decision.late
        late = request.decision.late or self.now >= request.facts.deadline_s
        (self.late if late else self.queue).append(request)
        self.work()

    def work(self):
        while not self.busy and (self.queue or self.late):
            request = (self.queue or self.late).popleft()
            hopeless = self.now + self.local.service(MODEL, SIZE, self.now)[0] > request.facts.deadline_s
            if request.over or (hopeless and request.returnable):
                self.local.drop(request.ticket)
                if not request.over:
                    request.returnable = False
                    request.flight.give_back(Tier.EDGE)
                    self.go_on(request, request.flight.on_failure(Tier.EDGE, DeadlineError("edge", "hopeless"), self.now))
                continue
            self.busy = True
            self.local.start(request.ticket, MODEL, SIZE, self.now)
            self.at(self.now + self.service(self.now), self.device_ends, request)
        if not self.busy and self.local.next_probe_s < math.inf:
            self.at(max(self.now, self.local.next_probe_s), self.probe_device)

    def probe_device(self):
        if not self.busy and self.local.probe_due(self.now):
            self.busy = True
            ticket = self.local.enqueue(MODEL, SIZE, self.now)
            self.local.start(ticket, MODEL, SIZE, self.now)
            self.at(self.now + self.service(self.now), self.shadow_ends, ticket)

    def shadow_ends(self, ticket):
        self.local.finish(ticket, MODEL, SIZE, self.now)
        self.busy = False
        self.work()

    def device_ends(self, request):
        self.local.finish(request.ticket, MODEL, SIZE, self.now)
        self.busy = False
        if not request.over:
            self.answer(request, Tier.EDGE)
        self.work()

    def between(self, start, end):
        return [request for request in self.requests if start <= request.at < end]


def hit_rate(requests):
    return sum(request.met for request in requests) / len(requests)


def edge_share(requests):
    return sum(request.tier is Tier.EDGE for request in requests) / len(requests)


def during(start, end, value, otherwise):
    return lambda now: value if start <= now < end else otherwise


@pytest.mark.parametrize("seed", SEEDS)
def test_steady(seed):
    """Load 0.3: a queue of four (80 ms) comes to pass about once in 300 requests, and the cloud makes those in 45 ms. Only chance is left, once in some hundred."""
    world = World(seed).run(120.0)
    assert hit_rate(world.requests) >= 0.997
    assert edge_share(world.requests) >= 0.98  # the device first
    assert not any(request.failed for request in world.requests)
    assert sum(request.cloud_started for request in world.requests) <= 0.02 * len(world.requests)
    assert sum(request.flight.hedged for request in world.requests) <= 0.01 * len(world.requests)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_device_throttled_sixfold(seed):
    """120 ms a run: the device cannot make it. Lost is what runs or waits when it begins and has no time left for the cloud (three or four of some 300);
    from a second on, the cloud's own tail beyond 100 ms (log-normal: once in a thousand)."""
    world = World(seed, throttle=during(20.0, 40.0, 6.0, 1.0)).run(60.0)
    assert hit_rate(world.between(20.0, 21.0)) >= 0.7
    assert hit_rate(world.between(21.0, 40.0)) >= 0.99
    assert edge_share(world.between(20.0, 40.0)) <= 0.1
    assert not any(request.failed for request in world.requests)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_device_throttled_threefold_is_not_given_up(seed):
    """60 ms a run, load 0.9: an idle device still makes it, a queue does not. The cloud takes what the queue would miss."""
    world = World(seed, throttle=during(20.0, 40.0, 3.0, 1.0)).run(40.0)
    throttled = world.between(20.0, 40.0)
    assert hit_rate(throttled) >= 0.99
    assert 0.05 <= edge_share(throttled) <= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recovered_device_is_used_again_within_a_probe_interval(seed):
    """All traffic is in the cloud; a 120 ms probe comes every 1.2 s (10 % of the device's time; noise makes that at most 1.8 s), then a chain of six."""
    world = World(seed, throttle=during(20.0, 40.0, 6.0, 1.0)).run(60.0)
    assert edge_share(world.between(36.0, 40.0)) <= 0.05
    assert edge_share(world.between(42.5, 60.0)) >= 0.95
    assert hit_rate(world.between(40.0, 60.0)) >= 0.99


@pytest.mark.parametrize("kind", [HANG, REFUSE])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_cloud_costs_nothing_while_the_device_is_well(seed, kind):
    """No errors, and as good as the device alone, less one request in a hundred that was sent to the cloud for its queue's sake before the breaker opened."""
    world = World(seed, cloud=during(20.0, 40.0, kind, None)).run(60.0)
    alone = World(seed, has_cloud=False).run(60.0)
    assert not any(request.failed for request in world.requests)
    assert hit_rate(world.requests) >= hit_rate(alone.requests) - 0.01
    assert not any(
        request.cloud_started for request in world.between(26.0, 40.0)
    )  # the watch asks every 5 s, so the breaker is open by then


@pytest.mark.parametrize("kind", [HANG, REFUSE])
@pytest.mark.parametrize("seed", SEEDS)
def test_throttled_and_the_cloud_dies_and_comes_back(seed, kind):
    """While both are gone nobody can make it: 120 ms x 15/s overload the device, so answers are late, and what waits beyond the grace fails. The cloud is back at
    36 s; the breaker's waits of 1, 2, 4 and 8 s, each longer by half at most, end before 36 + 12 s."""
    world = World(seed, throttle=during(20.0, 70.0, 6.0, 1.0), cloud=during(30.0, 36.0, kind, None)).run(80.0)
    assert hit_rate(world.between(24.0, 30.0)) >= 0.98
    assert hit_rate(world.between(48.0, 70.0)) >= 0.98
    assert edge_share(world.between(48.0, 70.0)) <= 0.1
    assert hit_rate(world.between(75.0, 80.0)) >= 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_offline_never_touches_a_cloud_and_recovers_by_itself(seed):
    world = World(seed, has_cloud=False, throttle=during(20.0, 25.0, 6.0, 1.0)).run(60.0)
    assert not any(request.cloud_started for request in world.requests)
    assert hit_rate(world.between(0.0, 20.0)) >= 0.99
    assert hit_rate(world.between(30.0, 60.0)) >= 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_routed_beats_either_tier_alone_under_faults(seed):
    """The device throttled for a quarter of the time, the cloud hanging for another: either alone loses its quarter, the router some requests at the edges."""
    faults = {"throttle": during(15.0, 30.0, 6.0, 1.0), "cloud": during(35.0, 50.0, HANG, None)}
    routed = World(seed, **faults).run(60.0)
    alone = World(seed, throttle=faults["throttle"], has_cloud=False).run(60.0)
    assert hit_rate(routed.requests) >= 0.99
    assert hit_rate(alone.requests) <= 0.80
    assert not any(request.failed for request in routed.requests)
