"""The router in process: every request keeps its deadline by going to the device, to the cloud, or to both."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from edgekit.errors import DeadlineError, EdgeKitError, NotFoundError, OverloadedError, RequestError, UsageError
from edgekit.protocol import InferenceClient, Parameters, connect
from edgekit.router._decide import TierEstimate
from edgekit.router._driver import Call, Driver, Finish
from edgekit.router._edge import EdgeTarget, SessionRunner, open_edge
from edgekit.router._events import Ask, Explanation
from edgekit.router._metrics import HasMeter, Outcome, RouterMetrics
from edgekit.router._pilot import Pilot, PilotOptions
from edgekit.router._policy import Policy
from edgekit.router._policy_metrics import PolicyMetrics
from edgekit.router._policy_watch import Operator
from edgekit.router._tally import Tally
from edgekit.router._work import Asked, Work, payload_bytes, read_asked

__all__ = ["CloudTarget", "RouteResult", "Router", "RouterOptions"]

CloudTarget = str | InferenceClient


class RouterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may change.

    Attributes:
        workers: requests that the device runs at the same time. More than it has instances would only queue where the router cannot see them. 0, for an edge
            server: learned from how its answers slow down when more are under way.
        queue: requests that may wait for the device.
        grace_ms: how long after its deadline a late answer is still worth waiting for; ``None`` for four times the SLA, at least a second.
        warm_up: measure a few runs of the bundle's golden sample first, so that the first request meets an estimate.
    """

    workers: int = 1
    queue: int = 64
    grace_ms: float | None = None
    warm_up: bool = True

    def __post_init__(self) -> None:
        if self.workers < 0 or self.queue < 1 or (self.grace_ms is not None and not 0 <= self.grace_ms < 1e9):
            raise UsageError("router options", str(self), "workers >= 0, queue >= 1 and grace_ms >= 0")


class RouteResult(msgspec.Struct, frozen=True):
    """One answer and how it came about.

    Attributes:
        outputs: every output by name, owned by the caller; those of a remote tier may be read-only.
        tier: ``edge`` or ``cloud``.
        reason: why the decision was what it was, a value of `Reason`.
        latency_ms: from acceptance to the answer.
        hedged: the second tier was asked since the first had not answered when it should have.
        late: the answer came after the deadline.
        p_edge, p_cloud: probability that the device, and the best cloud endpoint, would answer in time, as it was when the request came.
    """

    outputs: dict[str, np.ndarray]
    tier: str
    reason: str
    latency_ms: float
    hedged: bool
    late: bool
    model: str
    model_version: str
    p_edge: float
    p_cloud: float


class CloudEndpoint(msgspec.Struct, frozen=True):
    """One endpoint of the cloud tier as others may use it: its client, and whether requests are kept away from it now."""

    url: str
    client: InferenceClient
    open: bool


class Router:
    """Chooses, per request, the device or the cloud tier. Safe to call from several threads.

    Args:
        edge: a bundle or its path (run in this process), a `Session`, a client, or the URL of an edge server.
        cloud: URLs or clients of the cloud tier's servers; ``None`` for the device alone.
        sla_ms: within how many milliseconds of its acceptance a request must be answered, unless it says otherwise.
        telemetry: has a ``meter``; ``None`` for none.
        model: the model's name where ``edge`` is a server; a bundle has its own.
        options: queue, workers, grace.
        policy: the operator's policy file, which is followed while the router runs (see `edgekit.router.Policy`); ``None`` for none.
        budget_state: where the policy's budgets are kept across restarts; by default a file in EdgeKit's state folder.
        tally: counts what ends, for somebody who watches.

    Raises:
        UsageError: ``sla_ms`` is not a positive number, a target cannot be what it should, or the policy file is wrong.
        StorageError: the policy file cannot be read, or its budgets are another process's.
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
        policy: str | os.PathLike[str] | None = None,
        budget_state: str | os.PathLike[str] | None = None,
        tally: Tally | None = None,
    ) -> None:
        if not 0 < sla_ms < 1e9:
            raise UsageError("sla_ms", str(sla_ms), "milliseconds, a number above 0")
        self.options = options or RouterOptions()
        self.sla_s = sla_ms / 1e3
        self._metrics = RouterMetrics(telemetry)
        self._last: Explanation | None = None
        self._tally = tally
        self._clock = time.monotonic
        self._unnamed = itertools.count()
        with contextlib.ExitStack() as undo:
            files = [None if path is None else Path(path) for path in (policy, budget_state)]
            self._operator = Operator(files[0], PolicyMetrics(telemetry), files[1], self._policy_changed)
            undo.callback(self._operator.close)
            self.runner = open_edge(edge, model)
            undo.callback(self.runner.close)
            if not self.options.workers and isinstance(self.runner, SessionRunner):
                raise UsageError("workers", "0", "1 or more for a model in this process; only an edge server's can be learned")
            self._clients = _clients(cloud)
            undo.callback(self._close_clients)
            present = self._operator.policy
            settings = PilotOptions(self.options.workers, self.options.queue, present.file.hedge.share, present.retry)
            # The state machine's chances (which endpoints are compared, how long a breaker waits) are nothing that anybody must not foresee.
            pilot = Pilot(settings, len(self._clients), random.Random(), self._operator.budgets)
            self._warm_up(pilot)
            undo.pop_all()
        self.runner.open(self.options.workers)
        clients = [client for client, _ in self._clients]
        self._driver = Driver(pilot, self.runner, clients, self._breaker_changed, self._operator.opinions)
        self._driver.start()
        self._operator.start(frozenset([self.runner.model]) if isinstance(self.runner, SessionRunner) else None)
        if tally is not None:
            tally.explain = self.explain

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
        done = threading.Event()
        ends: list[RouteResult | EdgeKitError] = []

        def ended(end: RouteResult | EdgeKitError) -> None:
            ends.append(end)
            done.set()

        leave = self.begin(
            inputs,
            ended,
            deadline_ms,
            model=model,
            version=version,
            deadline_s=deadline_s,
            grace_ms=grace_ms,
            request_id=request_id,
            parameters=parameters,
        )
        try:
            done.wait()
        except BaseException:
            leave()
            raise
        end = ends.pop()
        try:
            if isinstance(end, EdgeKitError):
                raise end
            return end
        finally:
            del end  # an error's traceback has this frame, which must not have the error

    async def aroute(
        self, inputs: Mapping[str, np.ndarray], deadline_ms: float | None = None, *, model: str = "", version: str = ""
    ) -> RouteResult:
        """`route` that lets the event loop go on. The deadline runs from the call; a task that is cancelled gives its request up."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RouteResult] = loop.create_future()

        def settle(end: RouteResult | EdgeKitError) -> None:
            if not future.done():
                if isinstance(end, EdgeKitError):
                    future.set_exception(end)
                else:
                    future.set_result(end)

        leave = self.begin(inputs, lambda end: _post(loop, settle, end), deadline_ms, model=model, version=version)
        try:
            return await future
        except asyncio.CancelledError:
            leave()
            raise

    def begin(
        self,
        inputs: Mapping[str, np.ndarray],
        ended: Callable[[RouteResult | EdgeKitError], None],
        deadline_ms: float | None = None,
        *,
        model: str = "",
        version: str = "",
        deadline_s: float | None = None,
        grace_ms: float | None = None,
        request_id: str = "",
        parameters: Parameters | None = None,
    ) -> Callable[[], None]:
        """`route` without a thread that waits: returns at once.

        Args:
            inputs, deadline_ms, model, version, deadline_s, grace_ms, request_id, parameters: as for `route`.
            ended: called once with the answer or the error, in any thread, maybe before this returns; must be quick and must not raise.

        Returns:
            what gives the request up; ``ended`` is not called after that, unless it is being called.

        Raises:
            RequestError: what can be seen to be wrong at once.
        """
        accepted_s = self._clock()
        policy = self._operator.policy
        asked = read_asked(parameters)
        model = model or self._default_model()
        sla_s = policy.sla_s(model, asked.priority) or self.sla_s
        if deadline_s is None:
            deadline_s = accepted_s + (sla_s if deadline_ms is None else _milliseconds(deadline_ms) / 1e3)
        limit_s = deadline_s + (self._grace_s(sla_s) if grace_ms is None else grace_ms / 1e3)
        work = Work(model, version, inputs, _payload(inputs), deadline_s, limit_s, request_id, parameters or {})
        if not version and policy.has_canary(model):
            work = self._with_canary(work, policy, asked)

        def done(end: Finish | EdgeKitError) -> None:
            ended(self._told(call, accepted_s, end))

        call = Call(work, done, policy)
        ask_of = functools.partial(self._ask, work, policy, asked, accepted_s, sla_s)
        self._driver.begin(call, ask_of, shares=policy.coalesces(model) and asked.plain)
        explanation = call.explanation
        if explanation is not None:
            self._last = explanation
            self._metrics.decided(explanation.reason.value)
        return lambda: self._driver.leave(call)

    def _ask(self, work: Work, policy: Policy, asked: Asked, accepted_s: float, sla_s: float, request: int, digest: bytes) -> Ask:
        return Ask(
            request,
            work.model,
            work.payload_bytes,
            accepted_s,
            work.deadline_s,
            work.limit_s,
            sla_s,
            asked.urgency,
            asked.sequence,
            asked.sequence_end,
            digest,
            work.version,
            # A later request of a sequence goes to the version that the first one was given, whatever it is given itself.
            self.runner.serves(work.model, work.version or ("" if asked.sequence and not asked.sequence_start else work.edge_version)),
            policy.terms(work.model),
            asked.sequence_start,
        )

    def _with_canary(self, work: Work, policy: Policy, asked: Asked) -> Work:
        """The versions that the request's key gets; one without a key gets any."""
        key = asked.split_key or asked.sequence or work.id or f"\0{next(self._unnamed)}"
        edge, cloud = (policy.canary_version(work.model, tier, key) for tier in ("edge", "cloud"))
        return msgspec.structs.replace(work, edge_version=edge, cloud_version=cloud)

    def explain(self) -> dict[str, Any]:
        """The last decision with what it rested on, and the present state of device, breakers and hedging. JSON-able."""
        state = self._driver.read(lambda pilot, now: pilot.snapshot(now))
        told: dict[str, Any] = {"sla_ms": self.sla_s * 1e3, **state, "policy": self._operator.told(self._clock())}
        for endpoint, (client, _) in zip(told["cloud"], self._clients, strict=True):
            endpoint["url"] = client.url
        last = self._last
        if last is not None:
            told["decision"] = {
                "tiers": [tier.value for tier in last.tiers],
                "reason": last.reason.value,
                "late": last.late,
                "endpoint": self._clients[last.endpoint][0].url if last.endpoint >= 0 else "",
            }
            told["edge_estimate"] = _estimate_told(last.edge)
            told["cloud_estimate"] = _estimate_told(last.cloud) if last.cloud is not None else None
        return told

    @property
    def cloud_reachable(self) -> bool:
        """True when at least one endpoint's breaker is closed."""
        return self._driver.read(lambda pilot, _now: pilot.cloud_open)

    @property
    def endpoints(self) -> Sequence[CloudEndpoint]:
        """The cloud tier's endpoints, in the order given, as they are now."""
        closed = self._driver.read(lambda pilot, _now: [pilot.endpoint_open(index) for index in range(len(self._clients))])
        return [CloudEndpoint(client.url, client, not is_closed) for (client, _), is_closed in zip(self._clients, closed, strict=True)]

    def close(self) -> None:
        """Stop: refuse what waits, close what the router opened, join its threads. May be called twice."""
        self._driver.close()
        self._close_clients()
        self._operator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _told(self, call: Call, accepted_s: float, end: Finish | EdgeKitError) -> RouteResult | EdgeKitError:
        """Count a request's end, and say how it came about."""
        work, explanation = call.work, call.explanation
        version = work.version or self.runner.version
        now = self._clock()
        if isinstance(end, EdgeKitError):
            outcome: Outcome = "rejected" if isinstance(end, RequestError | DeadlineError | OverloadedError) else "error"
            self._metrics.finished(work.model, version, "none", outcome, is_final(end), now - accepted_s)
            if self._tally is not None:
                reason = explanation.reason.value if explanation is not None else "error"
                self._tally.ended(work.model, reason, "none", now - accepted_s, now, met=False, hedged=False)
            return end
        duration_s = end.at_s - accepted_s
        version = end.answer.version or version
        tier, reason = end.tier.value, end.reason.value
        self._metrics.finished(work.model, version, tier, "late" if end.late else "ok", not end.late, duration_s)
        if self._tally is not None:
            self._tally.ended(work.model, reason, tier, duration_s, now, met=not end.late, hedged=end.hedged)
        p_edge = explanation.edge.p_meet if explanation is not None else 0.0
        p_cloud = explanation.cloud.p_meet if explanation is not None and explanation.cloud is not None else 0.0
        return RouteResult(
            end.answer.outputs, tier, reason, duration_s * 1e3, end.hedged, end.late, work.model, end.answer.version, p_edge, p_cloud
        )

    def _grace_s(self, sla_s: float) -> float:
        return max(1.0, 4 * sla_s) if self.options.grace_ms is None else self.options.grace_ms / 1e3

    def _policy_changed(self, policy: Policy) -> None:
        def change(pilot: Pilot, _now: float) -> None:
            pilot.set_retries(policy.retry)
            pilot.set_hedge_share(policy.file.hedge.share)

        self._driver.read(change)

    def _breaker_changed(self, endpoint: int, is_open: bool) -> None:
        self._metrics.breaker(self._clients[endpoint][0].url, is_open)

    def _close_clients(self) -> None:
        for client, owned in self._clients:
            if owned:
                client.close()

    def _warm_up(self, pilot: Pilot) -> None:
        if not self.options.warm_up:
            return
        size, seconds = self.runner.warm_up()
        if seconds:
            pilot.seed_edge(self.runner.model, size, seconds, self._clock())

    def _default_model(self) -> str:
        if not self.runner.model:
            raise RequestError("model", "not given", "a name, since the edge is a server and may have several", "name it")
        return self.runner.model


def is_final(error: BaseException) -> bool:
    """True when the request itself is at fault, so that no other tier would answer it.

    A model that one tier does not have is not the request's fault: the other may have it.
    """
    return isinstance(error, RequestError) and not isinstance(error, NotFoundError)


def _clients(cloud: CloudTarget | Sequence[CloudTarget] | None) -> list[tuple[InferenceClient, bool]]:
    """Clients of the endpoints, and whether the router closes them."""
    if cloud is None:
        return []
    targets = [cloud] if isinstance(cloud, str) or not isinstance(cloud, Sequence) else cloud
    return [(connect(target), True) if isinstance(target, str) else (target, False) for target in targets]


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[[RouteResult | EdgeKitError], None], end: RouteResult | EdgeKitError) -> None:
    """Hand an end to its loop; one that was closed meanwhile has nobody who waits."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, end)


def _milliseconds(deadline_ms: float) -> float:
    if not 0 < deadline_ms < 1e9:
        raise RequestError("deadline_ms", str(deadline_ms), "milliseconds, a number above 0")
    return deadline_ms


def _payload(inputs: Mapping[str, np.ndarray]) -> int:
    try:
        return payload_bytes(inputs)
    except (AttributeError, TypeError) as exc:
        raise RequestError("inputs", "a value that is not a NumPy array", "a mapping of input names to NumPy arrays") from exc


def _estimate_told(estimate: TierEstimate) -> dict[str, Any]:
    return {
        "p_meet": round(estimate.p_meet, 4),
        "typical_ms": round(estimate.typical_s * 1e3, 3),
        "slow_ms": round(estimate.slow_s * 1e3, 3),
        "known": estimate.known,
        "health": estimate.health.value,
    }
