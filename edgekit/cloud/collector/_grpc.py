"""OTLP over gRPC: the same queue and rows as over HTTP."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from edgekit.cloud.collector._http import Services
from edgekit.cloud.collector._wire import UNPACKED_LIMIT_BYTES, Signal, response_message
from edgekit.errors import BindError, EdgeKitError, EnvironmentMissingError, RequestError

__all__ = ["GrpcServer"]

WORKERS = 32  # each waits for its commit, so this is also how many requests share an insert
COMMIT_TIMEOUT_S = 30.0
CONCURRENT_LIMIT = 128


class GrpcServer:
    """Metrics and logs services on one port.

    Raises:
        BindError: the port is in use.
        EnvironmentMissingError: grpcio or opentelemetry-proto is not installed.
    """

    def __init__(self, services: Services, host: str, port: int) -> None:
        try:
            import grpc
            from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
            from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("collector", exc.name or "grpcio", "collector") from exc
        self._pool = concurrent.futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="edgekit-collector-grpc")
        options = [
            ("grpc.max_receive_message_length", UNPACKED_LIMIT_BYTES),
            ("grpc.so_reuseport", 0),  # or two collectors would share the port and each see half
        ]
        self._server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=CONCURRENT_LIMIT)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Servicer(services, "metrics", grpc), self._server)
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Servicer(services, "logs", grpc), self._server)
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self.port = 0
        if not self.port:
            self._pool.shutdown()
            raise BindError.in_use("collector", host, port, "--otlp-grpc")
        self._server.start()

    def stop(self) -> None:
        """Finish the calls in progress (two seconds at most) and close the port."""
        self._server.stop(2.0).wait()
        self._pool.shutdown()


class _Servicer:
    def __init__(self, services: Services, signal: Signal, grpc: Any) -> None:
        self._services = services
        self._signal = signal
        self._grpc = grpc

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name for it
        """Store one request; answers when it is in the store."""
        codes = self._grpc.StatusCode
        try:
            done, rejected, reason = self._services.accept_message(self._signal, request)
            done.result(COMMIT_TIMEOUT_S)
        except RequestError as exc:
            context.abort(codes.INVALID_ARGUMENT, str(exc))
        except (EdgeKitError, TimeoutError) as exc:
            context.abort(
                codes.UNAVAILABLE, str(exc) or "the store is slow; send again later"
            )  # retryable without further details in OTLP/gRPC
        return response_message(self._signal, rejected, reason)
