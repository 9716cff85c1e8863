"""What the router's state machine keeps of one request that is not over. No behaviour."""

from __future__ import annotations

import math

from edgekit.router._decide import Decision, TierEstimate
from edgekit.router._device import Place
from edgekit.router._events import Ask, Failure

__all__ = ["Open", "Sent"]


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


class Open:
    """One request that is not over.

    Attributes:
        until_s: its deadline less the margin.
        decision, edge, cloud: the first decision and what it rested on.
        endpoints: that the indices of ``decision`` are of.
        place: in the device's queue, while it waits there.
        run: its attempt on the device, while that runs; 0 for none.
        sent: its attempt in the cloud, while that runs.
        edge_left: the device may still be asked.
        tried: endpoints that were asked.
        look_s: when to look again at an attempt that is under way; infinite for never.
        retry_s: when to try the cloud again; infinite for never.
        due_s: when the machine wants to be woken for it.
        failures: ``(attempt, failure)`` of the device's and of the cloud's last one.
        followers: identical requests that share its answer.
        gone: its own client has left; it goes on for its followers.
        held: the device's attempt whose answer waits for a second opinion; 0 for none.
    """

    __slots__ = (
        "ask",
        "bound",
        "cloud",
        "cloud_failure",
        "decision",
        "due_s",
        "edge",
        "edge_failure",
        "edge_left",
        "endpoints",
        "followers",
        "gone",
        "hedged",
        "held",
        "look_s",
        "place",
        "retries",
        "retry_s",
        "run",
        "sent",
        "tried",
        "until_s",
    )

    decision: Decision
    edge: TierEstimate
    cloud: TierEstimate | None

    def __init__(self, ask: Ask, margin_s: float) -> None:
        self.ask = ask
        self.until_s = ask.deadline_s - margin_s
        self.endpoints: tuple[int, ...] = ()
        self.place: Place | None = None
        self.run = 0
        self.sent: Sent | None = None
        self.edge_left = True
        self.bound = False
        self.tried: tuple[int, ...] = ()
        self.look_s = math.inf
        self.retry_s = math.inf
        self.retries = 0
        self.due_s = math.inf
        self.edge_failure: tuple[int, Failure] | None = None
        self.cloud_failure: tuple[int, Failure] | None = None
        self.followers: list[Ask] = []
        self.gone = False
        self.hedged = False
        self.held = 0
