"""The router as a server: an `InferenceCore`, so that any Open Inference Protocol client talks to it as to the device or the cloud."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import edgekit._version
from edgekit.errors import EdgeKitError, RequestError, UsageError
from edgekit.protocol import (
    Access,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameters,
    RepositoryEntry,
    Server,
    ServerMetadata,
    Tensor,
    Ticket,
    serve,
)
from edgekit.router._edge import ClientRunner, EdgeTarget, SessionRunner, absent
from edgekit.router._metrics import HasMeter
from edgekit.router._router import CloudTarget, Router, RouteResult, RouterOptions
from edgekit.router._tally import Tally

__all__ = ["RouterCore", "serve_router"]

TIER_PARAMETER = "edgekit_tier"
DECISION_PARAMETER = "edgekit_decision"
_EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "schedule_policy", "sequence", "statistics")


class _Counts:
    """Of one model version; times in nanoseconds, as Triton's statistics extension has them."""

    __slots__ = ("fail", "fail_ns", "last_ms", "success", "success_ns")

    def __init__(self) -> None:
        self.success = self.success_ns = self.fail = self.fail_ns = self.last_ms = 0

    def told(self, name: str, version: str) -> dict[str, Any]:
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.success,
            "execution_count": self.success,
            "inference_stats": {
                "success": {"count": self.success, "ns": self.success_ns},
                "fail": {"count": self.fail, "ns": self.fail_ns},
            },
            "batch_stats": [],
        }


class _Ticket:
    """See `Ticket`."""

    __slots__ = ("cancel",)

    def __init__(self, leave: Callable[[], None]) -> None:
        self.cancel = leave


class RouterCore:
    """See `InferenceCore`. Signature and metadata are the edge's; either tier makes it ready.

    Args:
        router: answers; not closed with the core.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Counts] = {}

    def live(self) -> bool:
        """The process works."""
        return True

    def ready(self) -> bool:
        """The edge is ready, or a cloud endpoint's breaker is closed."""
        return self._edge_ready("", "") or self._router.cloud_reachable

    def server_metadata(self) -> ServerMetadata:
        """Name, version and extensions."""
        return ServerMetadata("edgekit-router", edgekit._version.__version__, list(_EXTENSIONS))

    def model_ready(self, name: str, version: str = "") -> bool:
        """As `ready`, for one model; an unknown one raises `NotFoundError`."""
        self._known(name, version)
        return self._edge_ready(name, version) or any(
            not endpoint.open and endpoint.client.model_ready(name, version) for endpoint in self._router.endpoints
        )

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The edge's; when it does not answer, the cloud's."""
        self._known(name, version)
        try:
            return self._router.runner.metadata(name)
        except EdgeKitError:
            for endpoint in self._router.endpoints:
                if not endpoint.open:
                    return endpoint.client.model_metadata(name, version)
            raise

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration extension, from the metadata."""
        metadata = self.model_metadata(name, version)
        return {
            "name": metadata.name,
            "platform": metadata.platform,
            "backend": "",
            "max_batch_size": 0,
            "input": [{"name": t.name, "data_type": f"TYPE_{_config_type(t.datatype)}", "dims": t.shape} for t in metadata.inputs],
            "output": [{"name": t.name, "data_type": f"TYPE_{_config_type(t.datatype)}", "dims": t.shape} for t in metadata.outputs],
        }

    def class_labels(self, name: str, version: str = "") -> Sequence[str]:
        """Those of a bundle in this process; the protocol does not tell a server's."""
        runner = self._router.runner
        return runner.class_labels if isinstance(runner, SessionRunner) and runner.serves(name, version) else ()

    def infer(self, request: InferRequest) -> InferResponse:
        """Route one request; the response's parameters say which tier answered and why.

        A request that brings a deadline is kept to it: its client has gone by then, so there is no grace. One that brings none has the router's SLA.
        """
        done = threading.Event()
        ends: list[InferResponse | Exception] = []

        def ended(end: InferResponse | Exception) -> None:
            ends.append(end)
            done.set()

        ticket = self.submit(request, ended)
        try:
            done.wait()
        except BaseException:
            ticket.cancel()
            raise
        end = ends.pop()
        try:
            if isinstance(end, Exception):
                raise end
            return end
        finally:
            del end  # an error's traceback has this frame, which must not have the error

    def submit(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> Ticket:
        """See `SubmittingCore.submit`; as `infer`."""
        started_ns = time.monotonic_ns()

        def ended(end: RouteResult | EdgeKitError) -> None:
            done(self._response(request, end, started_ns))

        try:
            leave = self._router.begin(
                {tensor.name: tensor.data for tensor in request.inputs},
                ended,
                model=request.model_name,
                version=request.model_version,
                deadline_s=request.deadline_s,
                grace_ms=None if request.deadline_s is None else 0.0,
                request_id=request.id,
                parameters=request.parameters,
            )
        except EdgeKitError as error:
            ended(error)
            return _Ticket(_nothing)
        return _Ticket(leave)

    def turn(self) -> None:
        """See `SubmittingCore.turn`: every request was begun when it was submitted."""

    def _response(self, request: InferRequest, end: RouteResult | EdgeKitError, started_ns: int) -> InferResponse | Exception:
        try:
            if isinstance(end, EdgeKitError):
                raise end
            outputs = _requested(end.outputs, request)
        except EdgeKitError as error:
            self._count(request.model_name, request.model_version, started_ns, answered=False)
            return error
        self._count(end.model, end.model_version, started_ns, answered=True)
        return InferResponse(
            model_name=end.model,
            model_version=end.model_version,
            outputs=outputs,
            id=request.id,
            parameters={TIER_PARAMETER: end.tier, DECISION_PARAMETER: decision_told(end)},
        )

    def repository_index(self, ready_only: bool = False) -> list[RepositoryEntry]:
        """The edge's models: the bundle, or what an edge server keeps statistics of (the protocol's clients cannot ask for an index)."""
        runner = self._router.runner
        if runner.model and isinstance(runner, SessionRunner):
            ready = self._edge_ready(runner.model, "") or self._router.cloud_reachable
            entries = [RepositoryEntry(runner.model, runner.version, "READY" if ready else "UNAVAILABLE")]
        elif isinstance(runner, ClientRunner):
            entries = self._remote_index(runner)
        return [entry for entry in entries if entry.state == "READY" or not ready_only]

    def _remote_index(self, runner: ClientRunner) -> list[RepositoryEntry]:
        """A server that does not answer has no models as far as anybody can tell, but the one that the router was given by name."""
        try:
            rows = runner.client.statistics()
        except EdgeKitError:
            rows = []
        found = {(str(row.get("name", "")), str(row.get("version", ""))) for row in rows}
        if runner.model and runner.model not in {name for name, _ in found}:
            found.add((runner.model, ""))
        return [
            RepositoryEntry(name, version, "READY" if self._edge_ready(name, version) or self._router.cloud_reachable else "UNAVAILABLE")
            for name, version in sorted(found)
        ]

    def repository_load(self, name: str, parameters: Parameters) -> None:  # noqa: ARG002 - the interface's
        """Refused: the router has no models of its own."""
        raise _no_repository(name, "load")

    def repository_unload(self, name: str, parameters: Parameters) -> None:  # noqa: ARG002 - the interface's
        """Refused: the router has no models of its own."""
        raise _no_repository(name, "unload")

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """What was routed since the start, by model version."""
        if name:
            self._known(name, version)
        with self._lock:
            rows = [(key, counts.told(*key)) for key, counts in sorted(self._counts.items())]
        return [told for key, told in rows if name in ("", key[0]) and version in ("", key[1])]

    def _known(self, name: str, version: str) -> None:
        """Raise `NotFoundError` for a model that the edge cannot have and no cloud may have."""
        if not self._router.runner.serves(name, version) and not self._router.endpoints:
            raise absent(name, version, self._router.runner.model)

    def _edge_ready(self, name: str, version: str) -> bool:
        try:
            return self._router.runner.ready(name or self._router.runner.model, version)
        except EdgeKitError:
            return False

    def _count(self, model: str, version: str, started_ns: int, *, answered: bool) -> None:
        """Count one request. Failures of models that never answered are not kept: names come from outside."""
        elapsed_ns = time.monotonic_ns() - started_ns
        with self._lock:
            key = (model, version or self._router.runner.version)
            if not answered:
                counts = self._counts.get(key)
                if counts is not None:
                    counts.fail += 1
                    counts.fail_ns += elapsed_ns
                return
            counts = self._counts.setdefault(key, _Counts())
            counts.success += 1
            counts.success_ns += elapsed_ns
            counts.last_ms = time.time_ns() // 1_000_000


def serve_router(
    edge: EdgeTarget,
    cloud: CloudTarget | list[CloudTarget] | None,
    sla_ms: float,
    http: tuple[str, int] | None = ("127.0.0.1", 8000),
    grpc: tuple[str, int] | None = ("127.0.0.1", 8001),
    *,
    model: str = "",
    telemetry: HasMeter | None = None,
    options: RouterOptions | None = None,
    access: Access | None = None,
    policy: str | os.PathLike[str] | None = None,
    budget_state: str | os.PathLike[str] | None = None,
    tally: Tally | None = None,
) -> Server:
    """Start the router as a server; stopping the server closes the router.

    Args:
        edge, cloud, sla_ms, model, telemetry, options, policy, budget_state, tally: as `Router`.
        http, grpc: addresses to listen on, port 0 for any; ``None`` for none.
        access: TLS and bearer token.

    Raises:
        BindError: an address that cannot be listened on.
        EdgeKitError: as `Router`.
    """
    router = Router(
        edge, cloud, sla_ms=sla_ms, telemetry=telemetry, model=model, options=options, policy=policy, budget_state=budget_state, tally=tally
    )
    try:
        return serve(RouterCore(router), http, grpc, access=access, on_stop=[router.close])
    except BaseException:
        router.close()
        raise


def decision_told(result: RouteResult) -> str:
    """How an answer came about, in one line for a header: ``edge;reason=local_fits;p_edge=0.998;p_cloud=0.950;hedged=0``."""
    return f"{result.tier};reason={result.reason};p_edge={result.p_edge:.3f};p_cloud={result.p_cloud:.3f};hedged={int(result.hedged)}"


def _nothing() -> None:
    """Nobody has to give up what has ended."""


def _requested(outputs: dict[str, Any], request: InferRequest) -> list[Tensor]:
    """The outputs that the request names, in its order; all when it names none."""
    if not request.outputs:
        return [Tensor(name, array) for name, array in outputs.items()]
    chosen = []
    for wanted in request.outputs:
        if wanted.name not in outputs:
            raise RequestError(f"output {wanted.name!r}", "no such output", f"outputs {', '.join(outputs)}")
        chosen.append(Tensor(wanted.name, outputs[wanted.name]))
    return chosen


def _config_type(datatype: str) -> str:
    return "STRING" if datatype == "BYTES" else datatype


def _no_repository(name: str, operation: str) -> UsageError:
    return UsageError(f"model {name!r}", f"the router cannot {operation} models", "", f"{operation} it on the edge or the cloud server")
