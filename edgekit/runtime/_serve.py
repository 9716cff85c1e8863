"""Bundles on the wire: repository, runtime and transports together, as ``edgekit serve`` runs them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import msgspec

from edgekit.errors import StorageError, UsageError
from edgekit.protocol import Access, Limits, Server, serve
from edgekit.runtime._cached_core import CachedCore
from edgekit.runtime._core import ResultObserver, RuntimeCore
from edgekit.runtime._events import RepositoryEvent, RepositoryMetrics
from edgekit.runtime._front import VersionedCore
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._receipts import list_receipts
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._repository_options import RepositoryOptions, open_repository
from edgekit.runtime._result_cache import CacheOptions
from edgekit.runtime._scheduler import DEFAULT_MAX_BATCH, DEFAULT_QUEUE
from edgekit.runtime._sequence_table import SequenceLimits
from edgekit.runtime._sequences import SequenceCore
from edgekit.runtime._store import PathStore
from edgekit.runtime.engines import EngineOptions
from edgekit.telemetry import Meter, Telemetry

__all__ = ["RuntimeMetrics", "serve_bundles"]

_log = logging.getLogger(__name__)

# Buckets and names are the telemetry layer's; tier is what tells the device from the cloud in one store.
_TIER = "edge"


class RuntimeMetrics:
    """A `ResultObserver` that records into a meter: ``edgekit.request.duration`` and ``edgekit.queue.duration`` (seconds) by model, version, tier,
    engine and outcome, and ``edgekit.queue.depth`` (requests) by model.

    Args:
        meter: of the server's telemetry.
        queue_depth: `RuntimeCore.queue_depth`; may be set later through the attribute of that name.
    """

    def __init__(self, meter: Meter, queue_depth: Callable[[str], int] | None = None) -> None:
        self.queue_depth = queue_depth
        self._duration = meter.histogram("edgekit.request.duration", "s")
        self._queue = meter.histogram("edgekit.queue.duration", "s")
        self._depth = meter.gauge("edgekit.queue.depth", "1")

    def __call__(self, model: str, version: str, engine: str, queue_s: float, compute_s: float, outcome: str) -> None:
        attributes = _attributes(model, version, engine, outcome)
        self._duration.record(queue_s + compute_s, attributes)
        self._queue.record(queue_s, attributes)
        if self.queue_depth is not None:
            self._depth.set(self.queue_depth(model), {"edgekit.model": model, "edgekit.tier": _TIER})

    def together(self, model: str, version: str, engine: str, queue_s: list[float], compute_s: float) -> None:
        """Requests that ran together and went well."""
        attributes = _attributes(model, version, engine, "ok")
        self._duration.record_all([waited_s + compute_s for waited_s in queue_s], attributes)
        self._queue.record_all(queue_s, attributes)
        if self.queue_depth is not None:
            self._depth.set(self.queue_depth(model), {"edgekit.model": model, "edgekit.tier": _TIER})


def _attributes(model: str, version: str, engine: str, outcome: str) -> dict[str, str]:
    return {
        "edgekit.model": model,
        "edgekit.model.version": version,
        "edgekit.tier": _TIER,
        "edgekit.engine": engine,
        "edgekit.outcome": outcome,
    }


def _check(instances: int, queue_capacity: int, max_batch: int, threads: int) -> None:
    numbers = (("instances", instances, 0), ("queue capacity", queue_capacity, 0), ("max batch", max_batch, 1), ("threads", threads, 0))
    for name, found, least in numbers:
        if found < least:
            raise UsageError(name, str(found), f"{least} or more")


def serve_bundles(
    paths: Sequence[str | os.PathLike[str]],
    http: tuple[str, int] | None = ("127.0.0.1", 8000),
    grpc: tuple[str, int] | None = ("127.0.0.1", 8001),
    telemetry: Telemetry | None = None,
    *,
    options: EngineOptions | None = None,
    instances: int = 0,
    queue_capacity: int = DEFAULT_QUEUE,
    max_batch: int = DEFAULT_MAX_BATCH,
    limits: Limits | None = None,
    on_result: ResultObserver | None = None,
    repository: RepositoryOptions | None = None,
    cache: CacheOptions | None = None,
    access: Access | None = None,
    sequences: SequenceLimits | None = None,
    trace_folder: str | os.PathLike[str] | None = None,
) -> Server:
    """Load bundles, warm them, and serve them; returns once the server is ready. Stopping the server unloads them.

    Args:
        paths: bundles (a directory or an ``.edgekit`` file), or folders that contain bundles. None where ``repository`` names a folder.
        http, grpc: addresses, port 0 for any; ``None`` for none.
        telemetry: requests are recorded in its meter; it is told which bundle runs, and carries the receipts of what is served.
        options: for every engine.
        instances: batches that each model runs at once; 0 learns how many are worth it, where its engine runs them side by side.
        queue_capacity: requests that may wait for each model; more are refused.
        max_batch: rows that run together at most, where the model takes that; the limit within it is learned. 1 keeps requests apart.
        limits: what one message may hold.
        on_result: told about every request, beside ``telemetry``.
        repository: a folder of installed versions to follow, lazy loading, quotas.
        cache: how answers are kept for equal requests; none are when left out.
        access: TLS and bearer token.
        sequences: what requests that share a state may take up.
        trace_folder: where clients may have traces of requests written; without one they may not.

    Raises:
        BindError: an address that cannot be listened on.
        UsageError: fewer than 0 instances or places in the queue, a batch of no rows.
        EdgeKitError: a bundle that cannot be found, read, loaded or warmed.
    """
    metrics = RuntimeMetrics(telemetry.meter) if telemetry is not None else None
    observers = [observer for observer in (metrics, on_result) if observer is not None]
    events = _Events(telemetry) if telemetry is not None else None
    _check(instances, queue_capacity, max_batch, (options or EngineOptions()).threads)
    models = open_repository(
        paths,
        repository or RepositoryOptions(),
        options=options,
        instances=instances,
        queue_capacity=queue_capacity,
        max_batch=max_batch,
        on_event=events,
    )
    if events is not None:
        events.repository = models
    observer = _all(observers) if observers else None
    core = RuntimeCore(models, observer)
    meter = telemetry.meter if telemetry is not None else None
    cached = CachedCore(core, models, cache, observer, meter) if cache is not None and cache.max_bytes else None
    # A shadow's copies are not answered from the cache: its candidate is to run.
    front = VersionedCore(cached or core, models, core.infer)
    whole = SequenceCore(front, core, models, sequences, meter)
    if metrics is not None:
        metrics.queue_depth = core.queue_depth
    # Listening comes first: a port in use shows before minutes of loading, and until all is warm the server says "live, not ready".
    server = serve(
        whole,
        http,
        grpc,
        limits=limits,
        access=access,
        trace_folder=trace_folder,
        before_stop=[whole.leave],
        on_stop=[whole.close, front.close, *([cached.close] if cached is not None else []), core.close],
    )
    try:
        models.load_all(strict=isinstance(models.store, PathStore))
        front.start()
    except BaseException:
        server.stop(0.0)
        raise
    if telemetry is not None:
        _announce(telemetry, models.defaults())
    return server


class _Events:
    """Counts what happens to the models, and tells the collector when another version answers."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.repository: ModelRepository | None = None
        self._telemetry = telemetry
        self._count = RepositoryMetrics(telemetry.meter)

    def __call__(self, event: RepositoryEvent) -> None:
        self._count(event)
        if event.kind == "swap" and self.repository is not None:
            _announce(self._telemetry, self.repository.defaults())


def _announce(telemetry: Telemetry, models: Sequence[LoadedModel]) -> None:
    """Tell the collector what runs here, and what was proven about it on this device."""
    if not models:
        return
    # One bundle names the device in the fleet; with several, the first of them.
    telemetry.set_bundle(models[0].bundle.digest, models[0].bundle.manifest.device)
    served = {model.bundle.digest for model in models}
    try:
        newest = {receipt.digest: receipt for receipt in list_receipts() if receipt.digest in served}
    except StorageError as exc:
        _log.warning("receipts are not sent: %s", exc)
        return
    for receipt in newest.values():
        telemetry.send_receipt(msgspec.to_builtins(receipt) | {"bundle_digest": receipt.digest})


class _Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[ResultObserver]) -> None:
        self._observers = observers

    def __call__(self, model: str, version: str, engine: str, queue_s: float, compute_s: float, outcome: str) -> None:
        for observer in self._observers:
            observer(model, version, engine, queue_s, compute_s, outcome)

    def together(self, model: str, version: str, engine: str, queue_s: list[float], compute_s: float) -> None:
        for observer in self._observers:
            if isinstance(observer, RuntimeMetrics):
                observer.together(model, version, engine, queue_s, compute_s)
            else:
                for waited_s in queue_s:
                    observer(model, version, engine, waited_s, compute_s, "ok")


def _all(observers: Sequence[ResultObserver]) -> ResultObserver:
    return observers[0] if len(observers) == 1 else _Observers(observers)
