"""One cloud endpoint as a tier: its client, what is learned from every attempt, its breaker, and a watch that asks for its health.

No request ever waits on an endpoint whose breaker is open: the watch, a thread of its own, finds out when it is back. An endpoint without traffic is asked
every few seconds, so that a dead cloud is usually known before a request needs it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgekit.errors import EdgeKitError, UnavailableError
from edgekit.protocol import InferenceClient, InFlight
from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health, Tier, TierEstimate
from edgekit.router._estimators import CloudEstimator
from edgekit.router._flight import is_final
from edgekit.router._work import OnDone, Work, answer_from_response, request_from_work

__all__ = ["CloudAttempt", "CloudEndpoint"]

CHECK_EVERY_S = 5.0
CHECK_TIMEOUT_S = 1.0


class CloudEndpoint:
    """One server of the cloud tier. Safe from several threads.

    Args:
        client: how it is reached.
        owned: close the client with the endpoint.
        on_breaker: told ``(url, open)`` whenever the breaker changes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: InferenceClient,
        *,
        owned: bool,
        on_breaker: Callable[[str, bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.url = client.url
        self._owned = owned
        self._on_breaker = on_breaker
        self._clock = clock
        self._estimator = CloudEstimator()
        self._breaker = Breaker()
        self._lock = threading.Lock()
        self._round_trip_s: float | None = None
        self._heard_s = -CHECK_EVERY_S
        self._told_open: bool | None = None
        self._closed = False
        self._wake = threading.Event()
        self._watch = threading.Thread(target=self._loop, name="edgekit-router-watch", daemon=True)

    def start_watch(self) -> None:
        """Begin to ask for the endpoint's health in the background."""
        self._watch.start()

    @property
    def open(self) -> bool:
        """True while requests are kept away."""
        with self._lock:
            return not self._breaker.closed

    def estimate(self, work: Work, budget_s: float, now: float, device_service_s: float) -> TierEstimate:
        """What the endpoint can promise for ``work`` within ``budget_s`` from now; the device's service time is the first guess of the cloud's."""
        with self._lock:
            health = Health.OK if self._breaker.closed and self._estimator.may_send(now) else Health.FAILING
            return self._estimator.estimate(work.model, work.payload_bytes, budget_s, now, health, device_service_s)

    def start(self, work: Work, on_done: OnDone, slow_s: float) -> CloudAttempt:
        """Send ``work``; ``on_done`` hears the end."""
        now = self._clock()
        with self._lock:
            self._estimator.start()
        attempt = CloudAttempt(self, work, on_done, now, slow_s)
        attempt.send(self.client.start(request_from_work(work), max(0.001, work.limit_s - now)))
        return attempt

    def close(self) -> None:
        """Stop the watch and, if it is ours, the client; attempts under way fail."""
        self._closed = True
        self._wake.set()
        if self._owned:
            self.client.close()
        if self._watch.is_alive():
            self._watch.join(2 * CHECK_TIMEOUT_S)

    def learn_success(self, work: Work, latency_s: float, now: float) -> None:
        """An answer in time."""
        with self._lock:
            self._estimator.succeeded(work.model, work.payload_bytes, latency_s, now)
            self._breaker.succeeded()
            self._heard_s = now

    def learn_failure(self, now: float, retry_after_s: float | None = None) -> None:
        """A failure, or a missed deadline."""
        with self._lock:
            self._estimator.failed(now, retry_after_s)
            self._breaker.failed(now)
        self._tell()

    def learn_refusal(self, now: float) -> None:
        """The endpoint answered that the request itself is wrong: it works."""
        with self._lock:
            self._estimator.refused()
            self._breaker.succeeded()
            self._heard_s = now

    def learn_cancelled(self, elapsed_s: float, slow_s: float, now: float) -> None:
        """The other tier answered first."""
        with self._lock:
            if self._estimator.cancelled(elapsed_s, slow_s, now):
                self._breaker.failed(now)
        self._tell()

    def check(self) -> None:
        """Ask for the endpoint's health when that is due; blocks up to a second."""
        now = self._clock()
        with self._lock:
            probing = self._breaker.probe_due(now)
            if probing:
                self._breaker.start_probe()
            elif not self._breaker.closed or now - self._heard_s < CHECK_EVERY_S:
                return
        healthy = self._is_ready()
        now, asked = self._clock(), now
        with self._lock:
            self._heard_s = now
            if probing:
                self._breaker.probe_ended(healthy, now)
            elif healthy:
                self._breaker.healthy(now)
            else:
                self._breaker.trip(now)
            if healthy:
                # The first check also pays for connecting, so the least one seen is the round trip.
                self._round_trip_s = min(now - asked, self._round_trip_s or now - asked)
                self._estimator.seed(self._round_trip_s)
        self._tell()

    def _is_ready(self) -> bool:
        try:
            return self.client.ready(CHECK_TIMEOUT_S)
        except EdgeKitError:
            return False

    def _tell(self) -> None:
        """Report a change of the breaker, and let the watch wait for its probe."""
        is_open = self.open
        if is_open != self._told_open:
            self._told_open = is_open
            self._on_breaker(self.url, is_open)
            self._wake.set()

    def _loop(self) -> None:
        while not self._closed:
            self.check()
            with self._lock:
                at = self._heard_s + CHECK_EVERY_S if self._breaker.closed else self._breaker.probe_at_s
            self._wake.wait(max(0.001, at - self._clock()))
            self._wake.clear()


class CloudAttempt:
    """One request at one endpoint; it is accounted for exactly once, however it ends."""

    __slots__ = ("_endpoint", "_in_flight", "_lock", "_on_done", "_settled", "_slow_s", "_started_s", "_work")

    def __init__(self, endpoint: CloudEndpoint, work: Work, on_done: OnDone, started_s: float, slow_s: float) -> None:
        self._endpoint = endpoint
        self._work = work
        self._on_done = on_done
        self._started_s = started_s
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._settled = False
        self._in_flight: InFlight | None = None

    def send(self, in_flight: InFlight) -> None:
        """Listen for the end of what the client sent."""
        self._in_flight = in_flight
        in_flight.add_done_callback(self._ended)

    def missed(self, now: float) -> None:
        """The deadline has passed without an answer: a failure, whatever comes later."""
        if self._settle():
            self._endpoint.learn_failure(now)

    def cancel(self, now: float) -> None:
        """The other tier answered first, or nobody waits any more."""
        if self._settle():
            if now >= self._work.deadline_s:
                self._endpoint.learn_failure(now)
            else:
                self._endpoint.learn_cancelled(now - self._started_s, self._slow_s, now)
        if self._in_flight is not None:
            self._in_flight.cancel()

    def _settle(self) -> bool:
        with self._lock:
            first, self._settled = not self._settled, True
        return first

    def _ended(self, in_flight: InFlight) -> None:
        now = self._endpoint._clock()
        try:
            answer = answer_from_response(in_flight.result(0))
        except EdgeKitError as exc:
            self._failed(exc, now)
            return
        except Exception as exc:  # noqa: BLE001 - a client's thread must not die of what a transport raises
            failure = UnavailableError(self._endpoint.url, f"failed with {type(exc).__name__}: {exc}")
            failure.__cause__ = exc
            self._failed(failure, now)
            return
        if self._settle():
            if now <= self._work.deadline_s:
                self._endpoint.learn_success(self._work, now - self._started_s, now)
            else:
                self._endpoint.learn_failure(now)
        self._on_done(Tier.CLOUD, answer)

    def _failed(self, error: EdgeKitError, now: float) -> None:
        if self._settle():
            if is_final(error):
                self._endpoint.learn_refusal(now)
            else:
                self._endpoint.learn_failure(now, getattr(error, "retry_after_s", None))
        self._on_done(Tier.CLOUD, error)
