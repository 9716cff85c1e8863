"""Open Inference Protocol v2 client over gRPC: on grpcio, and in a server's own event loop on ngh2 (`edgekit.protocol._grpc_client_loop`) where that is installed."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeadlineError, EdgeKitError, RequestError, UnavailableError
from edgekit.protocol._access import Credentials
from edgekit.protocol._client import InFlight
from edgekit.protocol._connecting import reason_of
from edgekit.protocol._deadline import call_deadline, with_timeout
from edgekit.protocol._event_loop import Host, host_here
from edgekit.protocol._grpc_codec import decode_metadata, decode_response, decode_statistics, encode_request
from edgekit.protocol._grpc_messages import grpc_module, message_classes, methods
from edgekit.protocol._grpc_wire import PUSHBACK, Message, RefusedError, inflate, message_limit_bytes, pushback_s
from edgekit.protocol._remote_errors import bad_answer, error_from_grpc
from edgekit.protocol._target import Target
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferRequest, InferResponse, ModelMetadata

if TYPE_CHECKING:
    from edgekit.protocol._grpc_client_loop import LoopChannel
    from edgekit.protocol._grpc_fast_client import RequestWriter

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
        self._target = target
        self._fields = credentials.authorization()
        self._metadata = list(self._fields.items())
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
        self._takes_loops = not target.tls and importlib.util.find_spec("ngh2") is not None
        self._lock = threading.Lock()
        self._closed = False
        self._in_loops: dict[Host, tuple[LoopChannel, RequestWriter]] = {}  # the newest of each
        self._open: set[LoopChannel] = set()

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        timed, remaining_s = self._timed(request, call_deadline(request, timeout_s, time.monotonic()))
        return self._decode(self._call("ModelInfer", encode_request(timed), remaining_s))

    def start(self, request: InferRequest, timeout_s: float) -> InFlight:
        deadline_s = call_deadline(request, timeout_s, time.monotonic())
        cancels: list[Callable[[], object]] = []
        handle = InFlight(self.url, lambda: [cancel() for cancel in cancels])
        host = host_here() if self._takes_loops else None
        try:
            taken = self._channel_at(host) if host is not None else None
            if taken is None:
                self._by_grpcio(handle, cancels, request, deadline_s)
            else:
                self._by_loop(*taken, handle, cancels, request, deadline_s)
        except EdgeKitError as exc:
            handle.reject(exc)
        return handle

    def _by_grpcio(self, handle: InFlight, cancels: list[Callable[[], object]], request: InferRequest, deadline_s: float) -> None:
        timed, remaining_s = self._timed(request, deadline_s)
        try:
            future = self._calls["ModelInfer"].future(encode_request(timed), timeout=remaining_s, metadata=self._metadata)
        except ValueError as exc:
            raise self._closed_error() from exc
        cancels.append(future.cancel)
        if handle.done():  # cancelled meanwhile
            future.cancel()
        future.add_done_callback(lambda done: self._finish(handle, done))

    def _by_loop(
        self,
        channel: LoopChannel,
        writer: RequestWriter,
        handle: InFlight,
        cancels: list[Callable[[], object]],
        request: InferRequest,
        deadline_s: float,
    ) -> None:
        from edgekit.protocol._grpc_client_loop import UnseenError
        from edgekit.protocol._grpc_fast_client import read_response

        def ended(outcome: Message | Exception) -> None:
            try:
                if isinstance(outcome, Message):
                    data = memoryview(inflate(outcome, message_limit_bytes(self._limits)))
                    handle.resolve(read_response(data, self._limits))
                elif not isinstance(outcome, UnseenError):
                    handle.reject(self._loop_error(outcome))
                elif not handle.done():
                    self._by_grpcio(handle, cancels, request, deadline_s)
            except RequestError as exc:
                handle.reject(bad_answer(self.url, exc))
            except Exception as exc:  # noqa: BLE001 - the loop's boundary: whoever waits gets it
                handle.reject(exc)

        timed, remaining_s = self._timed(request, deadline_s)
        call = channel.start(writer.parts(timed), remaining_s, ended)
        if call is not None:
            cancels.append(lambda: channel.cancel(call))

    def _channel_at(self, host: Host) -> tuple[LoopChannel, RequestWriter] | None:
        """The connection of this loop, if it is open; begins to open one where there is none."""
        if self._closed:
            return None
        taken = self._in_loops.get(host)
        if taken is not None and not taken[0].done:
            return taken if taken[0].ready else None
        if taken is not None and time.monotonic() < taken[0].again_s:
            return None
        from edgekit.protocol._grpc_client_loop import LoopChannel
        from edgekit.protocol._grpc_fast_client import RequestWriter

        with self._lock:
            if not self._closed:
                path, limit_bytes = methods()["ModelInfer"].path("ModelInfer"), message_limit_bytes(self._limits)
                channel = LoopChannel(host, self._target, path, self._fields, limit_bytes, self._open.discard)
                self._open.add(channel)
                self._in_loops[host] = channel, taken[1] if taken else RequestWriter()
        return None

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
        with self._lock:
            self._closed = True
            channels = list(self._open)
        for channel in channels:
            channel.close()
        self._channel.close()

    def _timed(self, request: InferRequest, deadline_s: float) -> tuple[InferRequest, float]:
        """The request that tells what is left of its time, and that."""
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineError(self.url, "the request's time ran out before it was sent")
        return with_timeout(request, remaining_s), remaining_s

    def _call(self, name: str, message: Any, timeout_s: float) -> Any:
        try:
            return self._calls[name](message, timeout=timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as exc:
            raise self._error(exc) from exc
        except ValueError as exc:
            raise self._closed_error() from exc

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
        trailers = dict(exc.trailing_metadata() or ())
        return self._refused(RefusedError(exc.code().name, exc.details() or "", pushback_s(trailers.get(PUSHBACK.decode()))))

    def _refused(self, refused: RefusedError) -> EdgeKitError:
        error = error_from_grpc(self.url, refused.status, refused.text)
        error.retry_after_s = refused.pushback_s
        return error

    def _loop_error(self, outcome: Exception) -> EdgeKitError:
        """The error for what a call in a loop ended with."""
        if isinstance(outcome, TimeoutError):
            return DeadlineError(self.url, "no answer in time")
        if isinstance(outcome, RefusedError):
            return self._refused(outcome)
        if isinstance(outcome, EdgeKitError):
            return bad_answer(self.url, outcome)
        return UnavailableError(self.url, f"the connection broke ({reason_of(outcome)})")

    def _closed_error(self) -> EdgeKitError:
        return UnavailableError(self.url, "the client was closed", "", "make a new one with connect()")
