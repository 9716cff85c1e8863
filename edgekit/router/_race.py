"""Running a flight: starts attempts, waits for the first answer, cancels the other. What starts when is `Flight`'s."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import msgspec

from edgekit.router._breaker import HedgeThrottle
from edgekit.router._cloud import CloudAttempt, CloudEndpoint
from edgekit.router._decide import Decision, RequestFacts, Tier, margin_s
from edgekit.router._flight import Flight
from edgekit.router._local import LocalJob, LocalTier
from edgekit.router._work import Answer, Work

__all__ = ["Finish", "Race", "SharedThrottle"]

_Event = tuple[Tier, Answer | BaseException]


class SharedThrottle(HedgeThrottle):
    """A `HedgeThrottle` for several threads."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def try_take(self) -> bool:
        with self._lock:
            return super().try_take()

    def failed(self) -> None:
        with self._lock:
            super().failed()

    def succeeded(self) -> None:
        with self._lock:
            super().succeeded()


class Finish(msgspec.Struct, frozen=True):
    """How a race ended: the answer, who gave it, when, and whether two tiers worked on it."""

    answer: Answer
    tier: Tier
    at_s: float
    hedged: bool


class Race:
    """One request's attempts, run from the thread that waits for the answer.

    Args:
        work: the request.
        decision: not a refusal.
        local: the device.
        endpoint: the cloud endpoint that was chosen, if any.
        cloud_slow_s: its estimated 95th percentile.
    """

    def __init__(
        self,
        work: Work,
        facts: RequestFacts,
        decision: Decision,
        local: LocalTier,
        endpoint: CloudEndpoint | None,
        cloud_slow_s: float,
        throttle: HedgeThrottle,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = work
        self._sla_s = facts.sla_s
        self._decision = decision
        self._local = local
        self._endpoint = endpoint
        self._cloud_slow_s = cloud_slow_s
        self._throttle = throttle
        self._clock = clock
        self._flight = Flight(facts, decision)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._job: LocalJob | None = None
        self._attempt: CloudAttempt | None = None

    def run(self) -> Finish:
        """Wait for the first answer.

        Raises:
            EdgeKitError: no tier answered; which error, see `Flight.error`.
        """
        flight = self._flight
        try:
            self._start(flight.first())
            while True:
                event = self._next_event(flight.next_at())
                now = self._clock()
                if event is None:
                    self._on_time(now)
                else:
                    tier, result = event
                    if isinstance(result, Answer):
                        flight.pending.discard(tier)
                        return Finish(result, tier, now, flight.hedged)
                    self._on_failure(tier, result, now)
                if flight.over(now):
                    raise flight.error()
        finally:
            self._cancel_rest()

    def _next_event(self, until_s: float) -> _Event | None:
        try:
            return self._events.get(timeout=max(0.0, until_s - self._clock()))
        except queue.Empty:
            return None

    def _on_time(self, now: float) -> None:
        if self._attempt is not None and self._flight.cloud_missed(now):
            self._attempt.missed(now)
        tier = self._flight.on_time(now, self._throttle, self._outlook)
        if tier is not None:
            self._start(tier)

    def _outlook(self, until_s: float, now: float) -> tuple[float, float]:
        return self._local.outlook(self._job, until_s, now) if self._job is not None else (0.0, now)

    def _on_failure(self, tier: Tier, error: BaseException, now: float) -> None:
        if tier is Tier.EDGE and self._job is not None and self._job.given_back:
            self._flight.give_back(tier)
        elif tier is Tier.CLOUD:
            self._throttle.failed()
        other = self._flight.on_failure(tier, error, now)
        if other is not None:
            self._start(other)

    def _start(self, tier: Tier) -> None:
        now = self._clock()
        if tier is Tier.EDGE:
            # Once given back, or past its deadline, it only runs as a late one.
            late = self._decision.late or self._job is not None or now >= self._work.deadline_s
            self._job = LocalJob(self._work, self._on_done, late, returnable=not late and self._flight.cloud_left)
            self._local.submit(self._job)
        elif self._endpoint is not None:
            self._attempt = self._endpoint.start(self._work, self._on_done, self._cloud_slow_s)
            if self._decision.tiers[0] is Tier.CLOUD:
                self._local.offloaded(self._work, self._work.deadline_s - margin_s(self._sla_s) - now, now)

    def _on_done(self, tier: Tier, result: Answer | BaseException) -> None:
        self._events.put((tier, result))

    def _cancel_rest(self) -> None:
        """Drop what still waits or runs for this request; an attempt that has ended hears nothing."""
        pending = self._flight.pending
        if self._job is not None and Tier.EDGE in pending:
            self._local.cancel(self._job)
        if self._attempt is not None and Tier.CLOUD in pending:
            self._attempt.cancel(self._clock())
