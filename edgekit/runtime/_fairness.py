"""Whose batch a free worker takes, when several models want one. Pure.

Fair by compute time (start-time fair queueing, Goyal et al., SIGCOMM 1996): each model has a virtual time that grows by what it used; the one behind goes first.
A model that was idle starts where the device is, so it cannot save up a burst. One whose first request would miss its deadline may go ahead of its turn,
at most `BORROW_S` of compute time (borrowed virtual time, Duda and Cheriton, SOSP 1999).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["BORROW_S", "Share", "whose_turn"]

BORROW_S = 0.1
"""Compute time that a model may be ahead of the others for the sake of deadlines."""


class Share:
    """What one model used, and what it needs next.

    Attributes:
        virtual_s: compute time used, with what idleness forfeited.
        deadline_s: of the first request that waits; infinite for none.
        run_s: what its next batch takes, by estimate.
    """

    __slots__ = ("deadline_s", "run_s", "virtual_s")

    def __init__(self, virtual_s: float = 0.0) -> None:
        self.virtual_s = virtual_s
        self.deadline_s = math.inf
        self.run_s = 0.0

    def begins(self, device_s: float) -> None:
        """It has work that can run, when the device's virtual time (the least of all that want to run or do) is ``device_s``."""
        self.virtual_s = max(self.virtual_s, device_s)

    def used(self, seconds: float) -> None:
        """It ran."""
        self.virtual_s += seconds


def whose_turn(shares: Sequence[Share], now_s: float) -> int:
    """Index of the share that goes first; ``shares`` are those that could start now (not empty)."""
    if len(shares) == 1:
        return 0
    behind_s = min(share.virtual_s for share in shares)
    longest_s = max(share.run_s for share in shares)
    urgent = [
        index
        for index, share in enumerate(shares)
        if share.deadline_s - now_s < share.run_s + longest_s and share.virtual_s - behind_s <= BORROW_S
    ]
    if urgent:
        return min(urgent, key=lambda index: shares[index].deadline_s)
    return min(range(len(shares)), key=lambda index: shares[index].virtual_s)
