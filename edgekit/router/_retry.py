"""When a failed attempt may be tried again. Pure; time and randomness are arguments.

Retries multiply load just when a server has too much of it. So they come out of a budget (Finagle's ``RetryBudget``: a share of the requests of the last
seconds, and a floor so that a quiet client can retry at all), wait with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter": uniform from 0 to
the exponential bound spreads best), and never run past the deadline.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

__all__ = ["RetryBudget", "RetryLimits", "backoff_s", "retry_at"]

BASE_S = 0.05
CAP_S = 1.0
_SLICES = 10  # of the window; what is counted is forgotten a slice at a time


class RetryLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may be tried again.

    Attributes:
        share: of the requests of the window.
        floor_per_s: retries that are always allowed, per second of the window.
        window_s: seconds looked back.
    """

    share: float = 0.2
    floor_per_s: float = 1.0
    window_s: float = 10.0


class RetryBudget:
    """Retries of the last ``window_s`` never exceed ``share`` of its requests plus ``floor_per_s`` for each of its seconds. Not safe from several threads.

    Requests are forgotten as soon as a part of their slice (a tenth of the window) is older than the window, retries only when all of it is: both err on the
    side of fewer retries.
    """

    __slots__ = ("_limits", "_now", "_requests", "_requests_seen", "_retries", "_retries_seen", "_slice_ends_s")

    def __init__(self, limits: RetryLimits | None = None) -> None:
        self._limits = limits or RetryLimits()
        self._now = self._slice_ends_s = -math.inf
        self._requests: deque[list[float]] = deque()  # [when it is forgotten from: the begin of its slice, count]
        self._retries: deque[list[float]] = deque()  # [the end of its slice, count]
        self._requests_seen = self._retries_seen = 0.0

    def set_limits(self, limits: RetryLimits) -> None:
        """Other limits from now on; what was counted stays."""
        self._limits = limits
        self._slice_ends_s = -math.inf

    def requested(self, now: float) -> None:
        """A request came."""
        self._requests_seen += 1
        if now < self._slice_ends_s and self._requests:  # as most; nothing need be forgotten before it is asked for
            self._requests[-1][1] += 1
            return
        self._forget(now)
        _count(self._requests, begins_s := self._slice())
        self._slice_ends_s = begins_s + self._limits.window_s / _SLICES

    def try_take(self, now: float) -> bool:
        """Take one retry, if there is one left."""
        self._forget(now)
        if self.left < 1:
            return False
        self._retries_seen += 1
        _count(self._retries, self._slice() + self._limits.window_s / _SLICES)
        return True

    @property
    def left(self) -> float:
        """Retries that may be taken, as of the last call."""
        limits = self._limits
        return limits.share * self._requests_seen + limits.floor_per_s * limits.window_s - self._retries_seen

    def _slice(self) -> float:
        width_s = self._limits.window_s / _SLICES
        return self._now - self._now % width_s

    def _forget(self, now: float) -> None:
        self._now = now = max(now, self._now)  # a clock that steps back brings nothing back
        window_s = self._limits.window_s
        while self._requests and self._requests[0][0] < now - window_s:
            self._requests_seen -= self._requests.popleft()[1]
        while self._retries and self._retries[0][0] <= now - window_s:
            self._retries_seen -= self._retries.popleft()[1]


def _count(slices: deque[list[float]], at_s: float) -> None:
    if slices and slices[-1][0] == at_s:
        slices[-1][1] += 1
    else:
        slices.append([at_s, 1.0])


def backoff_s(retry: int, draw: float) -> float:
    """Seconds to wait before a request's ``retry``-th retry (1 is the first); ``draw`` is uniform in [0, 1)."""
    return float(draw * min(CAP_S, BASE_S * 2.0 ** min(retry - 1, 30)))


def retry_at(retry: int, draw: float, now: float, deadline_s: float, needs_s: float, retry_after_s: float | None = None) -> float | None:
    """Absolute time of a request's next retry; ``None`` when it could not be answered by the deadline any more.

    Args:
        retry: 1 for the first.
        draw: uniform in [0, 1).
        needs_s: how long an attempt takes.
        retry_after_s: the server asked to be left alone for this long.
    """
    at = now + max(backoff_s(retry, draw), retry_after_s or 0.0)
    return at if at + needs_s <= deadline_s else None
