"""When to stop sending to a tier, when to look again, and how many hedges are allowed. Pure state machines: time and chance are arguments.

Breaker, per endpoint::

    CLOSED ──5 failures in a row, or a failed health check──▶ OPEN (wait, doubling)
      ▲                                                        │ wait is over
      │ probe answered (one more failure re-opens)             ▼
      └──────────────────────────────────────────────────── PROBING (one background check, no client's request)

Five failures in a row are Envoy's outlier detection (``consecutive_5xx``); 1 s doubling to 60 s with jitter 0.5 is Linkerd's. There the probe is a client's
request; here it is a health check, which costs nobody anything. So while checks fail they come every 2 s (and half as much, by chance), and a recovery is soon
known; the wait doubles when a server answers checks and then fails requests. A missed deadline is a failure: a server that hangs is as useless as one that
refuses. The doubling is forgotten after a real success, or once health checks have been good for as long as the last wait was; so two outages with a quiet hour
between them are two short waits.
"""

from __future__ import annotations

import enum
import random

import msgspec

__all__ = ["Breaker", "BreakerPolicy", "BreakerState", "HedgeAllowance", "HedgeThrottle"]


class BreakerState(enum.Enum):
    """What a breaker lets through: everything, nothing, or nothing but the one probe that runs."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class BreakerPolicy(msgspec.Struct, frozen=True):
    """Numbers of a `Breaker`; the defaults and their sources are in the module's docstring."""

    failures: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    max_check_wait_s: float = 2.0
    jitter: float = 0.5


class Breaker:
    """One endpoint's breaker. Not safe from several threads; its owner locks.

    Args:
        policy: thresholds and waits.
        random_source: draws the jitter; seeded in tests.
    """

    __slots__ = ("_closed_at_s", "_failures", "_opened", "_policy", "_random", "_wait_s", "probe_at_s", "state")

    def __init__(self, policy: BreakerPolicy | None = None, random_source: random.Random | None = None) -> None:
        self._policy = policy or BreakerPolicy()
        self._random = random_source or random.Random()
        self._failures = 0
        self._opened = 0  # times in a row that requests failed without a success between
        self._wait_s = 0.0
        self._closed_at_s = 0.0
        self.state = BreakerState.CLOSED
        self.probe_at_s = 0.0

    @property
    def closed(self) -> bool:
        """True when requests may go."""
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """A request was answered in time. A late success of an older request does not close an open breaker."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0
            self._opened = 0

    def failed(self, now: float) -> None:
        """A request failed or missed its deadline."""
        if self.state is not BreakerState.CLOSED:
            return
        self._failures += 1
        if self._failures >= self._policy.failures:
            self._open(now)

    def trip(self, now: float) -> None:
        """A background health check failed, or the server said that it stops: no need to spend five requests on knowing it."""
        if self.state is BreakerState.CLOSED:
            self._open(now)

    def healthy(self, now: float) -> None:
        """A background health check was good while requests may go."""
        if self.state is BreakerState.CLOSED and now - self._closed_at_s >= self._wait_s:
            self._failures = 0
            self._opened = 0

    def probe_due(self, now: float) -> bool:
        """True when `start_probe` may be called."""
        return self.state is BreakerState.OPEN and now >= self.probe_at_s

    def start_probe(self) -> None:
        """The one probe starts; a second is not due before this one ended."""
        self.state = BreakerState.PROBING

    def probe_ended(self, answered: bool, now: float) -> None:
        """Close after an answer, wait twice as long after none.

        A server may answer health checks and still hang on requests, so the wait is forgotten only after a real success, and until then one
        failure opens the breaker again.
        """
        if self.state is not BreakerState.PROBING:
            return
        if answered:
            self.state = BreakerState.CLOSED
            self._failures = self._policy.failures - 1
            self._closed_at_s = now
        else:
            self._wait(now, self._policy.max_check_wait_s)

    def _open(self, now: float) -> None:
        self._opened += 1
        self._failures = 0
        self._wait(now, self._policy.max_wait_s)

    def _wait(self, now: float, most_s: float) -> None:
        policy = self._policy
        wait_s = min(most_s, policy.first_wait_s * 2.0 ** min(self._opened - 1, 30))
        self._wait_s = wait_s * (1.0 + policy.jitter * self._random.random())
        self.probe_at_s = now + self._wait_s
        self.state = BreakerState.OPEN


class HedgeThrottle:
    """Stops hedging when it is needed too often (gRFC A6): that is overload, and duplicates make it worse.

    Ten tokens; every hedge takes one (the first attempt did not answer when it should have), every request answered in time gives a tenth back, and at
    five or fewer no hedge is sent. So hedges never exceed 6 plus a tenth of the requests. How many there may be at best is `HedgeAllowance`'s; this one also counts
    attempts that failed without being hedges, and so stops hedges into a cloud that fails one request in ten, long before its breaker opens.
    """

    __slots__ = ("_tokens",)

    MAX_TOKENS = 10.0
    STOP_AT = 5.0
    GAIN = 0.1

    def __init__(self) -> None:
        self._tokens = self.MAX_TOKENS

    @property
    def tokens(self) -> float:
        """What is left."""
        return self._tokens

    @property
    def allows(self) -> bool:
        """True unless hedging is stopped."""
        return self._tokens > self.STOP_AT

    def try_take(self) -> bool:
        """Take a token for one hedge; False when hedging is stopped."""
        if not self.allows:
            return False
        self._tokens -= 1.0
        return True

    def failed(self) -> None:
        """An attempt failed."""
        self._tokens = max(0.0, self._tokens - 1.0)

    def succeeded(self) -> None:
        """A request was answered in time."""
        self._tokens = min(self.MAX_TOKENS, self._tokens + self.GAIN)


class HedgeAllowance:
    """Keeps hedges below a share of the requests: each request brings that share of a hedge, what is not used is kept up to a bound.

    So over any stretch of n requests there are at most ``share * n + KEPT`` hedges.
    """

    __slots__ = ("_left", "share")

    KEPT = 5.0
    FIRST = 3.0

    def __init__(self, share: float = 0.02) -> None:
        self.share = share
        self._left = self.FIRST

    @property
    def left(self) -> float:
        """Hedges that may be sent."""
        return self._left

    @property
    def allows(self) -> bool:
        """One more may be sent."""
        return self._left >= 1.0

    def requested(self) -> None:
        """A request came."""
        self._left = min(self.KEPT, self._left + self.share)

    def take(self) -> None:
        """One is sent; ask `allows` before."""
        self._left -= 1.0
