"""What goes into the router's state machine and what comes out of it: data, no behaviour.

An input is a request (`Ask`), the end of an attempt (`Failure` says how it failed), a health check's result, or the time. Every input returns a list of
actions, which whoever drives the machine performs: the router with threads, the simulator in virtual time. All times are seconds on one monotonic clock.
Requests are numbered by the driver, attempts by the machine; neither number is used twice.
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

from edgekit.router._decide import Reason, Tier, TierEstimate

__all__ = [
    "Action",
    "Ask",
    "Budgets",
    "Cancel",
    "Check",
    "Cost",
    "Deliver",
    "Explanation",
    "Failure",
    "FailureKind",
    "Refuse",
    "RunEdge",
    "SendCloud",
    "Steering",
    "Terms",
]


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What cloud attempts use of the operator's budgets."""

    requests: int
    bytes: int
    dollars: float


class Budgets(Protocol):
    """The operator's cloud budgets; time is the machine's."""

    def may_spend(self, cost: Cost, now: float) -> bool:
        """True when ``cost`` is left in every window."""
        ...

    def spend(self, cost: Cost, now: float) -> bool:
        """Take ``cost`` before the attempt is sent; False, with nothing taken, when it is not left."""
        ...

    def give_back(self, cost: Cost, spent_s: float) -> None:
        """``cost``, taken at ``spent_s``, was for an attempt that never left."""
        ...


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What the operator's policy says of one request.

    Attributes:
        edge_only: it never leaves the device, whatever happens.
        cloud_only: the device is not asked.
        may_hedge: a second tier may be asked before the first one has failed.
        dollars_per_request, dollars_per_byte: the price of one cloud attempt, for the budgets.
        escalate_below: an answer of the device whose confidence is below goes to the cloud too, and the cloud's is given; ``None`` for never.
        escalate_every_s: at most one escalation a model in this time.
        audit_share: share of the device's confident answers that the cloud is asked about all the same, off the request's path.
    """

    edge_only: bool = False
    cloud_only: bool = False
    may_hedge: bool = True
    dollars_per_request: float = 0.0
    dollars_per_byte: float = 0.0
    escalate_below: float | None = None
    escalate_every_s: float = 2.0
    audit_share: float = 0.0


FREE = Terms()


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One request, as a decision sees it.

    Attributes:
        request: its number.
        payload_bytes: size of all inputs.
        accepted_s: absolute; when it came.
        deadline_s: absolute; an answer after it has missed the SLA.
        limit_s: absolute, at or after the deadline: a late answer is worth something until here, and nobody waits longer.
        sla_s: the length of the promise, for the margin.
        priority: 0 is real time, larger is less urgent; only real-time requests are hedged.
        sequence: of a stateful model; its requests stay on the tier that has its state, which is moved with them when that tier goes.
        sequence_end: the last of its sequence.
        sequence_start: the first of its sequence, which begins anew if it was open.
        digest: of model, version and inputs; a request whose digest is in flight already shares its answer. Empty for never.
        on_edge: the device has the model.
        terms: what the operator's policy says.
    """

    request: int
    model: str
    payload_bytes: int
    accepted_s: float
    deadline_s: float
    limit_s: float
    sla_s: float
    priority: int = 0
    sequence: str = ""
    sequence_end: bool = False
    digest: bytes = b""
    version: str = ""
    on_edge: bool = True
    terms: Terms = FREE
    sequence_start: bool = False


class FailureKind(enum.Enum):
    """How an attempt failed, as far as the next step depends on it."""

    REQUEST = "request"
    """The request itself is wrong: no other tier would answer it."""
    NOT_FOUND = "not_found"
    """This tier does not have the model; another may."""
    OVERLOADED = "overloaded"
    """It was refused since the tier has too much to do."""
    DEADLINE = "deadline"
    """It was refused, or given up, since it could not be in time: slow, not broken."""
    STATE_LOST = "state_lost"
    """The state of its sequence could not be brought to this tier, which was not asked."""
    BROKEN = "broken"
    """Everything else: no connection, an engine's error."""


class Failure(msgspec.Struct, frozen=True, gc=False):
    """How an attempt failed.

    Attributes:
        retry_after_s: the endpoint asked to be left alone for this long.
        unsent: certainly nothing of it has left, so it costs nothing.
    """

    kind: FailureKind
    retry_after_s: float | None = None
    unsent: bool = False


class RunEdge(msgspec.Struct, frozen=True, gc=False):
    """Run ``request`` on the device now: a worker is free.

    Attributes:
        shadow: nobody waits for it; it measures the device with the inputs of ``request``, which may be over (see `Pilot.probe_request`).
    """

    attempt: int
    request: int
    shadow: bool = False


class SendCloud(msgspec.Struct, frozen=True, gc=False):
    """Send ``request`` to a cloud endpoint now.

    Attributes:
        endpoint: its index.
        limit_s: absolute; the attempt is given up then.
        shadow: nobody waits for the answer (an audit); the request may be over.
    """

    attempt: int
    request: int
    endpoint: int
    limit_s: float
    shadow: bool = False


class Cancel(msgspec.Struct, frozen=True, gc=False):
    """Nobody waits for an attempt that runs; whatever comes of it changes nothing. The driver still reports the end of one on the device, which frees its worker."""

    attempt: int


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """Give the client the answer of ``attempt``; the request is over.

    Attributes:
        late: after the deadline.
        tier: who answered.
        reason: why the first decision was what it was.
        hedged: two tiers worked on it since the first had not answered when it should have.
    """

    request: int
    attempt: int
    late: bool
    tier: Tier
    reason: Reason
    hedged: bool


class Refuse(msgspec.Struct, frozen=True, gc=False):
    """Nobody answers; the request is over.

    Attributes:
        failure: of the attempt that tells most, or why nothing was tried.
        attempt: that attempt, whose error the client should see; 0 when there is none.
        reason: why the first decision was what it was.
    """

    request: int
    failure: Failure
    attempt: int
    reason: Reason


class Check(msgspec.Struct, frozen=True, gc=False):
    """Ask for an endpoint's health, off every request's path; report with `Steering.checked`."""

    endpoint: int


Action = RunEdge | SendCloud | Cancel | Deliver | Refuse | Check


class Explanation(msgspec.Struct, frozen=True, gc=False):
    """A request's first decision and what it rested on.

    Attributes:
        tiers: order in which tiers may be asked; empty when refused.
        endpoint: the cloud endpoint that was looked at; -1 for none.
        late: no tier is likely to make the deadline.
        edge: the device's estimate, wait included.
        cloud: that endpoint's estimate; ``None`` without one.
    """

    tiers: tuple[Tier, ...]
    reason: Reason
    endpoint: int
    late: bool
    edge: TierEstimate
    cloud: TierEstimate | None


class Steering(Protocol):
    """What steers requests: `Pilot`, and the simpler policies it is compared with. Pure; whoever calls it locks."""

    def accept(self, ask: Ask, now: float) -> list[Action]:
        """A request came."""
        ...

    def answered(self, attempt: int, now: float, confidence: float | None = None) -> list[Action]:
        """An attempt was answered; ``confidence`` is the answer's margin, where the policy wants one."""
        ...

    def failed(self, attempt: int, failure: Failure, now: float) -> list[Action]:
        """An attempt ended without an answer."""
        ...

    def left(self, request: int, now: float) -> list[Action]:
        """The client has gone; the request is over."""
        ...

    def checked(self, endpoint: int, healthy: bool, round_trip_s: float, now: float) -> list[Action]:
        """A health check ended."""
        ...

    def tick(self, now: float) -> list[Action]:
        """It is `next_at`, or later."""
        ...

    def next_at(self) -> float:
        """Absolute time at which `tick` is wanted; infinite for never."""
        ...

    def decision(self, request: int) -> Explanation | None:
        """The first decision of a request that is not over, or was just accepted; ``None`` for others."""
        ...
