"""The router in process: every request keeps its deadline by going to the device, to the cloud, or to both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from edgekit.errors import DeadlineError, EdgeKitError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferenceClient, Parameters, connect
from edgekit.router._cloud import CloudEndpoint
from edgekit.router._decide import Decision, Reason, RequestFacts, Tier, TierEstimate, decide, margin_s
from edgekit.router._edge import EdgeTarget, absent, open_edge
from edgekit.router._flight import is_final
from edgekit.router._local import LocalTier
from edgekit.router._metrics import HasMeter, Outcome, RouterMetrics
from edgekit.router._race import Finish, Race, SharedThrottle
from edgekit.router._work import Work, payload_bytes

__all__ = ["CloudTarget", "RouteResult", "Router", "RouterOptions"]

CloudTarget = str | InferenceClient


class RouterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may change.

    Attributes:
        workers: requests that the device runs at the same time. More than it has instances would only queue where the router cannot see them.
        queue: requests that may wait for the device.
        grace_ms: how long after its deadline a late answer is still worth waiting for; ``None`` for four times the SLA, at least a second.
        warm_up: measure a few runs of the bundle's golden sample first, so that the first request meets an estimate.
    """

    workers: int = 1
    queue: int = 64
    grace_ms: float | None = None
    warm_up: bool = True

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue < 1 or (self.grace_ms is not None and not 0 <= self.grace_ms < 1e9):
            raise UsageError("router options", str(self), "workers >= 1, queue >= 1 and grace_ms >= 0")


class RouteResult(msgspec.Struct, frozen=True):
    """One answer and how it came about.

    Attributes:
        outputs: every output by name, owned by the caller; those of a remote tier may be read-only.
        tier: ``edge`` or ``cloud``.
        reason: why the decision was what it was, a value of `Reason`.
        latency_ms: from acceptance to the answer.
        hedged: the second tier was asked since the first had not answered when it should have.
        late: the answer came after the deadline.
    """

    outputs: dict[str, np.ndarray]
    tier: str
    reason: str
    latency_ms: float
    hedged: bool
    late: bool
    model: str
    model_version: str


class Router:
    """Chooses, per request, the device or the cloud tier. Safe to call from several threads.

    Args:
        edge: a bundle or its path (run in this process), a `Session`, a client, or the URL of an edge server.
        cloud: URLs or clients of the cloud tier's servers; ``None`` for the device alone.
        sla_ms: within how many milliseconds of its acceptance a request must be answered, unless it says otherwise.
        telemetry: has a ``meter``; ``None`` for none.
        model: the model's name where ``edge`` is a server; a bundle has its own.
        options: queue, workers, grace.

    Raises:
        UsageError: ``sla_ms`` is not a positive number, or a target cannot be what it should.
        EdgeKitError: the bundle cannot be loaded.
    """

    def __init__(
        self,
        edge: EdgeTarget,
        cloud: CloudTarget | Sequence[CloudTarget] | None = None,
        *,
        sla_ms: float,
        telemetry: HasMeter | None = None,
        model: str = "",
        options: RouterOptions | None = None,
    ) -> None:
        if not 0 < sla_ms < 1e9:
            raise UsageError("sla_ms", str(sla_ms), "milliseconds, a number above 0")
        self.options = options or RouterOptions()
        self.sla_s = sla_ms / 1e3
        self._grace_s = max(1.0, 4 * self.sla_s) if self.options.grace_ms is None else self.options.grace_ms / 1e3
        self._metrics = RouterMetrics(telemetry)
        self._throttle = SharedThrottle()
        self._pool_lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._last: tuple[Decision, TierEstimate, tuple[TierEstimate, ...]] | None = None
        self._clock = time.monotonic
        self.runner = open_edge(edge, model)
        try:
            self._endpoints = _endpoints(cloud, self._metrics)
        except BaseException:
            self.runner.close()
            raise
        self._local = LocalTier(self.runner, self.options.workers, self.options.queue)
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise
        for endpoint in self._endpoints:
            endpoint.start_watch()

    def infer(
        self, inputs: Mapping[str, np.ndarray], deadline_ms: float | None = None, *, model: str = "", version: str = ""
    ) -> dict[str, np.ndarray]:
        """Answer one request; see `route`."""
        return self.route(inputs, deadline_ms, model=model, version=version).outputs

    async def ainfer(
        self, inputs: Mapping[str, np.ndarray], deadline_ms: float | None = None, *, model: str = "", version: str = ""
    ) -> dict[str, np.ndarray]:
        """`infer` that lets the event loop go on."""
        return (await self.aroute(inputs, deadline_ms, model=model, version=version)).outputs

    def route(
        self,
        inputs: Mapping[str, np.ndarray],
        deadline_ms: float | None = None,
        *,
        model: str = "",
        version: str = "",
        deadline_s: float | None = None,
        grace_ms: float | None = None,
        request_id: str = "",
        parameters: Parameters | None = None,
    ) -> RouteResult:
        """Answer one request, and say how.

        An answer that comes after the deadline is still given (``late``), for as long as the grace lasts.

        Args:
            inputs: every input by name; only read, also for a moment after the return when two tiers were asked.
            deadline_ms: from now; the SLA when left out.
            model: the edge's model when left out.
            version: any when left out.
            deadline_s: absolute on `time.monotonic` instead of ``deadline_ms``, for a request that was accepted earlier.
            grace_ms: instead of the options'; 0 when nobody waits for a late answer.
            request_id, parameters: passed on to a remote tier.

        Raises:
            RequestError: the request itself is wrong; it was not tried elsewhere.
            DeadlineError: refused since the deadline has passed, or no answer came.
            OverloadedError: refused since the device's queue is full and there is no cloud to ask.
            EdgeKitError: what the device (else the cloud) failed with, when both did.
        """
        accepted_s = self._clock()
        if deadline_s is None:
            deadline_s = accepted_s + (self.sla_s if deadline_ms is None else _milliseconds(deadline_ms) / 1e3)
        model = model or self._default_model()
        size = _payload(inputs)
        grace_s = self._grace_s if grace_ms is None else grace_ms / 1e3
        work = Work(model, version, inputs, size, deadline_s, deadline_s + grace_s, request_id, parameters or {})
        version_told = version or self.runner.version
        try:
            decision, finish = self._race(work, accepted_s)
        except EdgeKitError as error:
            outcome: Outcome = "rejected" if isinstance(error, RequestError | DeadlineError | OverloadedError) else "error"
            self._metrics.finished(model, version_told, "none", outcome, is_final(error), self._clock() - accepted_s)
            raise
        late = finish.at_s > deadline_s
        if not late:
            self._throttle.succeeded()
        duration_s = finish.at_s - accepted_s
        tier = finish.tier.value
        self._metrics.finished(model, finish.answer.version or version_told, tier, "late" if late else "ok", not late, duration_s)
        return RouteResult(
            finish.answer.outputs, tier, decision.reason.value, duration_s * 1e3, finish.hedged, late, model, finish.answer.version
        )

    async def aroute(
        self, inputs: Mapping[str, np.ndarray], deadline_ms: float | None = None, *, model: str = "", version: str = ""
    ) -> RouteResult:
        """`route` that lets the event loop go on. The deadline runs from the call."""
        deadline_s = self._clock() + (self.sla_s if deadline_ms is None else _milliseconds(deadline_ms) / 1e3)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor(), lambda: self.route(inputs, model=model, version=version, deadline_s=deadline_s))

    def explain(self) -> dict[str, Any]:
        """The last decision with what it rested on, and the present state of breakers and hedging. JSON-able."""
        last = self._last
        told: dict[str, Any] = {
            "sla_ms": self.sla_s * 1e3,
            "hedge_tokens": round(self._throttle.tokens, 1),
            "cloud": [{"url": endpoint.url, "breaker": "open" if endpoint.open else "closed"} for endpoint in self._endpoints],
        }
        if last is not None:
            decision, local, clouds = last
            told["decision"] = {
                "tiers": [tier.value for tier in decision.tiers],
                "reason": decision.reason.value,
                "late": decision.late,
                "endpoint": self._endpoints[decision.endpoint].url if decision.endpoint >= 0 else "",
            }
            told["edge_estimate"] = _estimate_told(local)
            told["cloud_estimates"] = [_estimate_told(estimate) for estimate in clouds]
        return told

    @property
    def cloud_reachable(self) -> bool:
        """True when at least one endpoint's breaker is closed."""
        return any(not endpoint.open for endpoint in self._endpoints)

    @property
    def endpoints(self) -> Sequence[CloudEndpoint]:
        """The cloud tier's endpoints, in the order given."""
        return self._endpoints

    def close(self) -> None:
        """Stop: refuse what waits, close what the router opened, join its threads. May be called twice."""
        for endpoint in self._endpoints:
            endpoint.close()
        self._local.close()
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _race(self, work: Work, now: float) -> tuple[Decision, Finish]:
        decision, clouds = self._decide(work, now)
        if not decision.tiers:
            raise _refusal(decision, work, self.runner.model)
        if decision.tiers[0] is Tier.CLOUD and decision.reason is not Reason.LOCAL_ABSENT:
            self.runner.check(work.inputs)  # a bad request does not travel
        endpoint = self._endpoints[decision.endpoint] if decision.endpoint >= 0 else None
        slow_s = clouds[decision.endpoint].slow_s if endpoint is not None else 0.0
        facts = RequestFacts(work.deadline_s, work.limit_s, self.sla_s)
        race = Race(work, facts, decision, self._local, endpoint, slow_s, self._throttle, self._clock)
        return decision, race.run()

    def _decide(self, work: Work, now: float) -> tuple[Decision, tuple[TierEstimate, ...]]:
        budget_s = work.deadline_s - margin_s(self.sla_s) - now
        local = self._local.estimate(work, budget_s, now)
        clouds = tuple([endpoint.estimate(work, budget_s, now, local.service_s) for endpoint in self._endpoints])
        decision = decide(RequestFacts(work.deadline_s, work.limit_s, self.sla_s), local, clouds, now, self._throttle.allows)
        self._last = (decision, local, clouds)
        self._metrics.decided(decision.reason.value)
        return decision, clouds

    def _warm_up(self) -> None:
        if not self.options.warm_up:
            return
        size, seconds = self.runner.warm_up()
        if seconds:
            self._local.seed(self.runner.model, size, seconds)

    def _default_model(self) -> str:
        if not self.runner.model:
            raise RequestError("model", "not given", "a name, since the edge is a server and may have several", "name it")
        return self.runner.model

    def _executor(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.options.queue, thread_name_prefix="edgekit-router-async")
            return self._pool


def _endpoints(cloud: CloudTarget | Sequence[CloudTarget] | None, metrics: RouterMetrics) -> list[CloudEndpoint]:
    if cloud is None:
        return []
    targets = [cloud] if isinstance(cloud, str) or not isinstance(cloud, Sequence) else cloud
    clients = [(connect(target), True) if isinstance(target, str) else (target, False) for target in targets]
    return [CloudEndpoint(client, owned=owned, on_breaker=metrics.breaker) for client, owned in clients]


def _milliseconds(deadline_ms: float) -> float:
    if not 0 < deadline_ms < 1e9:
        raise RequestError("deadline_ms", str(deadline_ms), "milliseconds, a number above 0")
    return deadline_ms


def _payload(inputs: Mapping[str, np.ndarray]) -> int:
    try:
        return payload_bytes(inputs)
    except (AttributeError, TypeError) as exc:
        raise RequestError("inputs", "a value that is not a NumPy array", "a mapping of input names to NumPy arrays") from exc


def _refusal(decision: Decision, work: Work, has: str) -> EdgeKitError:
    if decision.reason is Reason.LOCAL_FULL:
        return OverloadedError(
            "edge", "its queue is full, and no cloud endpoint can be asked", "", "send fewer requests, or add a cloud tier"
        )
    if decision.reason is Reason.LOCAL_ABSENT:
        return absent(work.model, work.version, has)
    return DeadlineError("request", "its deadline has passed before any work was done", "", "allow more time")


def _estimate_told(estimate: TierEstimate) -> dict[str, Any]:
    return {
        "p_meet": round(estimate.p_meet, 4),
        "typical_ms": round(estimate.typical_s * 1e3, 3),
        "slow_ms": round(estimate.slow_s * 1e3, 3),
        "known": estimate.known,
        "health": estimate.health.value,
    }
