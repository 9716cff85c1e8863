"""What the router's state machine keeps of one request that is not over. No behaviour."""

from __future__ import annotations

import math

import msgspec

from edgekit.router._decide import Decision, Reason, TierEstimate
from edgekit.router._device import Place
from edgekit.router._events import Ask, Failure

__all__ = ["Open", "Sent"]


_UNDECIDED = Decision((), Reason.DEADLINE_PASSED, -1, False)
_UNKNOWN = TierEstimate(0.0, 0.0, 0.0, False)


class Sent:
    """One attempt at a cloud endpoint.

    Attributes:
        due_s: absolute; without an answer by then it counts as failed, whatever comes later: the deadline, or well beyond its 99th percentile if it left too late for that.
        settled: its endpoint has heard how it ended.
        slow_s: the 95th percentile that was expected of it.
    """

    __slots__ = ("attempt", "due_s", "endpoint", "settled", "slow_s", "started_s")

    def __init__(self, attempt: int, endpoint: int, started_s: float, slow_s: float, due_s: float) -> None:
        self.attempt = attempt
        self.endpoint = endpoint
        self.started_s = started_s
        self.slow_s = slow_s
        self.due_s = due_s
        self.settled = False


class Open(msgspec.Struct, eq=False):
    """One request that is not over. A struct, since one is made for every request.

    Attributes:
        ask: the request.
        until_s: its deadline less the margin.
        decision, edge, cloud: the first decision and what it rested on.
        endpoints: that the indices of ``decision`` are of.
        place: in the device's queue, while it waits there.
        run: its attempt on the device, while that runs; 0 for none.
        sent: its attempt in the cloud, while that runs.
        edge_left: the device may still be asked.
        bound: of a sequence whose state is somewhere, and so is this request.
        waits: for its turn, behind earlier requests of its sequence.
        tried: endpoints that were asked.
        look_s: when to look again at an attempt that is under way; infinite for never.
        retry_s: when to try the cloud again; infinite for never.
        due_s: when the machine wants to be woken for it.
        edge_failure, cloud_failure: ``(attempt, failure)`` of the device's and of the cloud's last one.
        followers: identical requests that share its answer.
        gone: its own client has left; it goes on for its followers.
        held: the device's attempt whose answer waits for a second opinion; 0 for none.
    """

    ask: Ask
    until_s: float
    decision: Decision = _UNDECIDED
    edge: TierEstimate = _UNKNOWN
    cloud: TierEstimate | None = None
    endpoints: tuple[int, ...] = ()
    place: Place | None = None
    run: int = 0
    sent: Sent | None = None
    edge_left: bool = True
    bound: bool = False
    waits: bool = False
    tried: tuple[int, ...] = ()
    look_s: float = math.inf
    retry_s: float = math.inf
    retries: int = 0
    due_s: float = math.inf
    edge_failure: tuple[int, Failure] | None = None
    cloud_failure: tuple[int, Failure] | None = None
    followers: list[Ask] = []
    gone: bool = False
    hedged: bool = False
    held: int = 0
