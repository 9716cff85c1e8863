"""A small world in virtual time around a `Pilot`: one device, one or more cloud endpoints, Poisson arrivals, an SLA of 100 ms.

Service on the device is log-normal around 20 ms (sigma 0.15), the cloud answers in 45 ms (log-normal, sigma 0.25). A heap of events is the clock; nothing waits.
`edgekit.router.simulation` has the large one; this one breaks things on purpose and checks every step.
"""

import heapq
import itertools
import math
import random

from edgekit.router import Pilot, PilotOptions
from edgekit.router._events import Ask, Cancel, Check, Deliver, Failure, FailureKind, Refuse, RunEdge, SendCloud

SLA_S, GRACE_S = 0.1, 1.0
MODEL, SIZE = "m", 4096
HANG, REFUSE = "hang", "refuse"


class World:
    """``throttle(t)`` scales the device's service; ``cloud(t)`` is None (well), HANG or REFUSE."""

    def __init__(self, seed, throttle=lambda _: 1.0, cloud=lambda _: None, endpoints=1, rate=15.0):
        self.random = random.Random(seed)
        self.throttle_at, self.cloud_at, self.rate = throttle, cloud, rate
        self.pilot = Pilot(PilotOptions(), endpoints, random.Random(seed + 1))
        self.pilot.seed_edge(MODEL, SIZE, [self.service(0.0) for _ in range(3)], 0.0)
        self.events, self.order, self.now, self.tick_at = [], itertools.count(), 0.0, math.inf
        self.asks, self.ends, self.sent, self.ran, self.cancelled = {}, {}, {}, set(), set()
        self.shadows, self.checks, self.running = [], [], set()

    def service(self, now):
        return 0.02 * self.throttle_at(now) * math.exp(self.random.gauss(0.0, 0.15))

    def at(self, when, action, *args):
        heapq.heappush(self.events, (when, next(self.order), action, args))

    def run(self, seconds):
        self.seconds = seconds
        self.perform([])
        at, number = self.random.expovariate(self.rate), 0
        while at < seconds:
            number += 1
            self.at(at, self.accept, Ask(number, MODEL, SIZE, at, at + SLA_S, at + SLA_S + GRACE_S, SLA_S))
            at += self.random.expovariate(self.rate)
        while self.events and self.events[0][0] < seconds + 5.0:
            self.now, _, action, args = heapq.heappop(self.events)
            action(*args)
        assert self.ends.keys() == self.asks.keys()
        return self

    def accept(self, ask):
        self.asks[ask.request] = ask
        self.perform(self.pilot.accept(ask, self.now))

    def perform(self, actions):
        for action in actions:
            if isinstance(action, RunEdge):
                self.running.add(action.attempt)
                assert len(self.running) == 1  # one worker
                (self.shadows.append(self.now) if action.shadow else self.ran.add(action.request))
                self.at(self.now + self.service(self.now), self.device_ends, action.attempt)
            elif isinstance(action, SendCloud):
                self.send(action)
            elif isinstance(action, Cancel):
                self.cancelled.add(action.attempt)
            elif isinstance(action, Deliver | Refuse):
                assert action.request not in self.ends  # told once
                self.ends[action.request] = (self.now, action)
            elif isinstance(action, Check):
                self.checks.append(self.now)
                well = self.cloud_at(self.now) is None
                self.at(self.now + (0.025 if well else 1.0), self.checked, action.endpoint, well)
        self.plan_tick()

    def plan_tick(self):
        at = self.pilot.next_at()
        if at != self.tick_at and at < self.seconds + 5.0:
            self.tick_at = at
            self.at(max(at, self.now), self.tick, at)

    def tick(self, planned):
        if planned == self.tick_at:
            self.tick_at = math.inf
            self.perform(self.pilot.tick(self.now))

    def send(self, action):
        self.sent.setdefault(action.request, self.now)
        state = self.cloud_at(self.now)
        if state is None:
            self.at(self.now + 0.045 * math.exp(self.random.gauss(0.0, 0.25)), self.cloud_ends, action.attempt)
        elif state == REFUSE:
            self.at(self.now + 0.001, self.cloud_ends, action.attempt, Failure(FailureKind.BROKEN))

    def cloud_ends(self, attempt, failure=None):
        if attempt not in self.cancelled:
            self.perform(self.pilot.failed(attempt, failure, self.now) if failure else self.pilot.answered(attempt, self.now))

    def device_ends(self, attempt):
        self.running.discard(attempt)
        self.perform(self.pilot.answered(attempt, self.now))

    def checked(self, endpoint, well):
        self.perform(self.pilot.checked(endpoint, well, 0.025, self.now))

    def between(self, start, end):
        return [number for number, ask in self.asks.items() if start <= ask.accepted_s < end]

    # What came of requests

    def met(self, number):
        end = self.ends[number][1]
        return isinstance(end, Deliver) and not end.late

    def hit_rate(self, numbers=None):
        numbers = list(self.asks) if numbers is None else numbers
        return sum(self.met(number) for number in numbers) / len(numbers)

    def edge_share(self, numbers):
        told = [self.ends[number][1] for number in numbers]
        return sum(isinstance(end, Deliver) and end.tier.value == "edge" for end in told) / len(told)

    @property
    def failed(self):
        return [number for number, (_, end) in self.ends.items() if isinstance(end, Refuse)]

    @property
    def twice(self):
        """Share of the requests that ran on the device and were sent to the cloud."""
        return len(self.ran & self.sent.keys()) / len(self.asks)


def during(start, end, value, otherwise):
    return lambda now: value if start <= now < end else otherwise
