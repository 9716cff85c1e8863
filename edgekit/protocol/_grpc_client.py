"""Open Inference Protocol v2 client over gRPC, on grpcio."""

from __future__ import annotations

import time
from typing import Any

from edgekit.errors import DeadlineError, EdgeKitError, RequestError, UnavailableError
from edgekit.protocol._access import Credentials
from edgekit.protocol._client import InFlight
from edgekit.protocol._deadline import call_deadline, with_timeout
from edgekit.protocol._grpc_codec import decode_metadata, decode_response, decode_statistics, encode_request
from edgekit.protocol._grpc_messages import grpc_module, message_classes, methods
from edgekit.protocol._remote_errors import bad_answer, error_from_grpc
from edgekit.protocol._target import Target
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferRequest, InferResponse, ModelMetadata

__all__ = ["GrpcClient"]

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is used within a second; grpc's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),  # retries are the router's business: it knows the deadline
]


class GrpcClient:
    """See `InferenceClient`.

    Raises:
        EnvironmentMissingError: grpcio is not installed.
        StorageError: a certificate, key or CA that cannot be read.
    """

    def __init__(self, target: Target, credentials: Credentials, *, limits: Limits | None = None) -> None:
        self._grpc = grpc_module(f"URL {target.url}")
        self.url = target.url
        self._metadata = list(credentials.authorization().items())
        self._limits = limits or Limits()
        address = f"unix:{target.path}" if target.path else target.address
        if target.tls:
            self._channel = self._grpc.secure_channel(address, self._grpc.ssl_channel_credentials(*credentials.pem()), options=_OPTIONS)
        else:
            self._channel = self._grpc.insecure_channel(address, options=_OPTIONS)
        self._calls = {
            name: self._channel.unary_unary(method.path(name), method.request.SerializeToString, method.response.FromString)
            for name, method in methods().items()
            if not method.streaming
        }

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        message, remaining_s = self._prepare(request, timeout_s)
        return self._decode(self._call("ModelInfer", message, remaining_s))

    def start(self, request: InferRequest, timeout_s: float) -> InFlight:
        call: list[Any] = []
        handle = InFlight(self.url, lambda: [item.cancel() for item in call])
        try:
            message, remaining_s = self._prepare(request, timeout_s)
            future = self._calls["ModelInfer"].future(message, timeout=remaining_s, metadata=self._metadata)
        except EdgeKitError as exc:
            handle.reject(exc)
            return handle
        except ValueError:
            handle.reject(self._closed())
            return handle
        call.append(future)
        future.add_done_callback(lambda done: self._finish(handle, done))
        return handle

    def ready(self, timeout_s: float = 1.0) -> bool:
        return self._healthy("ServerReady", {}, timeout_s)

    def model_ready(self, name: str, version: str = "", timeout_s: float = 1.0) -> bool:
        return self._healthy("ModelReady", {"name": name, "version": version}, timeout_s)

    def model_metadata(self, name: str, version: str = "", timeout_s: float = 5.0) -> ModelMetadata:
        message = message_classes()["ModelMetadataRequest"](name=name, version=version)
        return decode_metadata(self._call("ModelMetadata", message, timeout_s))

    def statistics(self, name: str = "", version: str = "", timeout_s: float = 5.0) -> list[dict[str, Any]]:
        message = message_classes()["ModelStatisticsRequest"](name=name, version=version)
        return decode_statistics(self._call("ModelStatistics", message, timeout_s))

    def close(self) -> None:
        self._channel.close()

    def _prepare(self, request: InferRequest, timeout_s: float) -> tuple[Any, float]:
        now_s = time.monotonic()
        remaining_s = call_deadline(request, timeout_s, now_s) - now_s
        if remaining_s <= 0:
            raise DeadlineError(self.url, "the request's time ran out before it was sent")
        return encode_request(with_timeout(request, remaining_s)), remaining_s

    def _call(self, name: str, message: Any, timeout_s: float) -> Any:
        try:
            return self._calls[name](message, timeout=timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as exc:
            raise self._error(exc) from exc
        except ValueError as exc:
            raise self._closed() from exc

    def _healthy(self, name: str, fields: dict[str, str], timeout_s: float) -> bool:
        request = methods()[name].request(**fields)
        try:
            return bool(self._call(name, request, timeout_s).ready)
        except (UnavailableError, DeadlineError):
            return False

    def _finish(self, handle: InFlight, done: Any) -> None:
        """Runs in grpc's thread once the call is over."""
        try:
            handle.resolve(self._decode(done.result()))
        except self._grpc.RpcError as exc:
            handle.reject(self._error(exc))
        except self._grpc.FutureCancelledError:
            handle.reject(UnavailableError(self.url, "the request was cancelled"))
        except EdgeKitError as exc:
            handle.reject(exc)

    def _decode(self, message: Any) -> InferResponse:
        try:
            return decode_response(message, self._limits)
        except RequestError as exc:
            raise bad_answer(self.url, exc) from exc

    def _error(self, exc: Any) -> EdgeKitError:
        return error_from_grpc(self.url, exc.code().name, exc.details() or "")

    def _closed(self) -> EdgeKitError:
        return UnavailableError(self.url, "the client was closed", "", "make a new one with connect()")
