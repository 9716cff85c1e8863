"""`start_collector`: OTLP in, one store, the fleet page out."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
from pathlib import Path
from typing import Self

from edgekit.cloud.collector._grpc import GrpcServer
from edgekit.cloud.collector._http import HttpServer, Services
from edgekit.cloud.collector._ingest import Ingest
from edgekit.cloud.collector._store import StoreThread, open_store
from edgekit.cloud.collector._wire import request_type

__all__ = ["Collector", "start_collector"]

_log = logging.getLogger("edgekit.collector")


class Collector:
    """A running collector; `stop` it, or use it as a context manager.

    Attributes:
        http_port: of OTLP/HTTP, the page and its JSON.
        grpc_port: of OTLP/gRPC, ``None`` without it.
        url: of the fleet page, and what devices give as their collector.
    """

    def __init__(self, services: Services, http: HttpServer, grpc: GrpcServer | None, host: str, ends: contextlib.ExitStack) -> None:
        self.http_port = http.port
        self.grpc_port = grpc.port if grpc is not None else None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{http.port}"
        self.services = services
        self._ends = ends

    def stop(self) -> None:
        """Close the ports, write what was accepted, close the store, end every thread. May be called twice."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def start_collector(
    store: str | Path,
    http: tuple[str, int] = ("127.0.0.1", 4318),
    otlp_grpc: tuple[str, int] | None = ("127.0.0.1", 4317),
    *,
    insert_interval_s: float = 1.0,
) -> Collector:
    """Start the collector in this process.

    Args:
        store: a folder for the embedded store (made when missing; one process at a time), or the URL of a ClickHouse server.
        http: address of OTLP/HTTP, the fleet page and its JSON; port 0 takes a free one.
        otlp_grpc: address of OTLP/gRPC; ``None`` leaves it out.
        insert_interval_s: least time between two inserts; requests are acknowledged when their insert is done.

    Raises:
        BindError: a port is in use.
        StorageError: the store cannot be opened or written.
        UnavailableError: the ClickHouse server does not answer.
        UsageError: the store is neither a folder nor such a URL.
        EnvironmentMissingError: a package of the extra ``collector`` is missing.
    """
    request_type("metrics")  # a missing package is said now, not at the first request
    with contextlib.ExitStack() as ends:
        thread = StoreThread(lambda: open_store(store))
        ends.callback(thread.close)
        ingest = Ingest(thread, insert_interval_s)
        ends.callback(ingest.stop)
        decoders = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="edgekit-collector-decode")
        ends.callback(decoders.shutdown)
        services = Services(thread, ingest, decoders)
        http_server = HttpServer(services, *http)
        ends.callback(http_server.stop)
        grpc_server = GrpcServer(services, *otlp_grpc) if otlp_grpc is not None else None
        if grpc_server is not None:
            ends.callback(grpc_server.stop)
        collector = Collector(services, http_server, grpc_server, http[0], ends.pop_all())
    _log.info("collector ready", extra={"url": collector.url, "grpc_port": collector.grpc_port, "store": str(store).rpartition("@")[2]})
    return collector
