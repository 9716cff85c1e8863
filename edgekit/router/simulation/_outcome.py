"""What became of every request of one run."""

from __future__ import annotations

import math

from edgekit.router._decide import Tier

__all__ = ["Outcome"]


class Outcome:
    """Filled by the `World`; lists are by request. Times are absolute, in virtual seconds.

    Attributes:
        answered_s: when the client got its answer; NaN for none.
        by_cloud: that answer came from the cloud.
        refused: the client was told that there is no answer.
        over_s: when it was over for the client; infinite while it is not.
        edge_runs: times that the device began to run it.
        cloud_sends: times that it was sent to the cloud.
        failed_attempts: attempts that ended without an answer.
        sent_s: when attempts were sent to the cloud; kept only under a budget.
        probes: runs of the device for no request.
        decision_ns: nanoseconds of processor time of each `Steering.accept`, if measured.
        end_s: the time now, or at the end.
    """

    def __init__(self, count: int) -> None:
        self.answered_s = [math.nan] * count
        self.by_cloud = [False] * count
        self.refused = [False] * count
        self.over_s = [math.inf] * count
        self.edge_runs = [0] * count
        self.cloud_sends = [0] * count
        self.failed_attempts = [0] * count
        self.sent_s: list[float] = []
        self.probes = 0
        self.decision_ns: list[int] = []
        self.end_s = 0.0
        self._predicted: dict[int, tuple[Tier, float]] = {}
        self._covered = self._missed = 0

    def predict(self, request: int, first: Tier, slow_s: float) -> None:
        """The first attempt of ``request`` was said to end by ``slow_s`` (absolute) with a probability of 0.95."""
        self._predicted[request] = (first, slow_s)

    def ended(self, request: int, tier: Tier, now: float) -> None:
        """An attempt really ended, whether or not anybody still waited for it."""
        entry = self._predicted.get(request)
        if entry is not None and entry[0] is tier:
            del self._predicted[request]
            if now <= entry[1]:
                self._covered += 1
            else:
                self._missed += 1

    def coverage(self) -> float:
        """Share of first attempts that ended by the 95th percentile that was predicted for them; NaN when nothing was.

        One that never ended counts as missed when its request was given up after that time, and not at all when before: nobody knows.
        """
        missed = self._missed + sum(1 for request, (_, slow_s) in self._predicted.items() if self.over_s[request] > slow_s)
        total = self._covered + missed
        return self._covered / total if total else math.nan
