"""The router as a server: an `InferenceCore`, so that any Open Inference Protocol client talks to it as to the device or the cloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
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
    serve,
)
from edgekit.router._edge import EdgeTarget, SessionRunner, absent
from edgekit.router._metrics import HasMeter
from edgekit.router._router import CloudTarget, Router, RouterOptions

__all__ = ["RouterCore", "serve_router"]

TIER_PARAMETER = "edgekit_tier"
DECISION_PARAMETER = "edgekit_decision"


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
        return ServerMetadata("edgekit-router", edgekit._version.__version__, ["binary_tensor_data", "statistics", "model_configuration"])

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
        started_ns = time.monotonic_ns()
        try:
            result = self._router.route(
                {tensor.name: tensor.data for tensor in request.inputs},
                model=request.model_name,
                version=request.model_version,
                deadline_s=request.deadline_s,
                grace_ms=None if request.deadline_s is None else 0.0,
                request_id=request.id,
                parameters=request.parameters,
            )
            outputs = _requested(result.outputs, request)
        except EdgeKitError:
            self._count(request.model_name, request.model_version, started_ns, answered=False)
            raise
        self._count(result.model, result.model_version, started_ns, answered=True)
        return InferResponse(
            model_name=result.model,
            model_version=result.model_version,
            outputs=outputs,
            id=request.id,
            parameters={TIER_PARAMETER: result.tier, DECISION_PARAMETER: result.reason},
        )

    def repository_index(self, ready_only: bool = False) -> list[RepositoryEntry]:
        """The edge's model, when the edge is one bundle; an edge server's own index is the server's to tell."""
        runner = self._router.runner
        if not runner.model:
            return []
        ready = self._edge_ready(runner.model, "") or self._router.cloud_reachable
        entry = RepositoryEntry(runner.model, runner.version, "READY" if ready else "UNAVAILABLE")
        return [entry] if ready or not ready_only else []

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
) -> Server:
    """Start the router as a server; stopping the server closes the router.

    Args:
        edge, cloud, sla_ms, model, telemetry, options: as `Router`.
        http, grpc: addresses to listen on, port 0 for any; ``None`` for none.
        access: TLS and bearer token.

    Raises:
        BindError: an address that cannot be listened on.
        EdgeKitError: as `Router`.
    """
    router = Router(edge, cloud, sla_ms=sla_ms, telemetry=telemetry, model=model, options=options)
    try:
        return serve(RouterCore(router), http, grpc, access=access, on_stop=[router.close])
    except BaseException:
        router.close()
        raise


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
