"""Open Inference Protocol v2 over gRPC for any `InferenceCore`, on grpcio's synchronous server."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgekit.errors import BindError, EdgeKitError, NotFoundError, RequestError
from edgekit.protocol._deadline import absolute_deadline
from edgekit.protocol._grpc_codec import decode_parameters, decode_request, encode_metadata, encode_response
from edgekit.protocol._grpc_messages import SERVICE, grpc_module, message_classes, methods
from edgekit.protocol._listening import bind_error, listening_socket
from edgekit.protocol._tensors import Limits, shorten
from edgekit.protocol._types import InferenceCore

__all__ = ["GrpcTransport"]

_log = logging.getLogger(__name__)
_CONTROL_THREADS = 4  # health and repository calls that still get through while inference takes all its threads
_MESSAGE_SLACK_BYTES = 1 << 20  # names, shapes and parameters beside the tensors
_FINAL_ASKED = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


class GrpcTransport:
    """A listening gRPC server; see `edgekit.protocol.serve` for the arguments.

    Raises:
        BindError: the address cannot be listened on.
        EnvironmentMissingError: grpcio is not installed.
    """

    def __init__(self, core: InferenceCore, host: str, port: int, limits: Limits, max_in_flight: int, flag: str = "--grpc") -> None:
        grpc = grpc_module("the gRPC server")
        self._workers = ThreadPoolExecutor(max_in_flight + _CONTROL_THREADS, thread_name_prefix="edgekit-grpc")
        self._server = grpc.server(
            self._workers,
            maximum_concurrent_rpcs=max_in_flight + _CONTROL_THREADS,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", min(limits.body_bytes + _MESSAGE_SLACK_BYTES, (1 << 31) - 1)),
                ("grpc.max_send_message_length", -1),
            ],
        )
        service = _Service(core, limits)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(grpc, service)),))
        try:
            self.port = self._bind(host, port, flag)
        except BindError:
            self._server.stop(None)
            self._workers.shutdown()
            raise
        self._server.start()

    def stop(self, deadline_s: float) -> None:
        """See `Transport.stop`."""
        self._server.stop(max(0.0, deadline_s - time.monotonic())).wait()
        self._workers.shutdown(wait=True)

    def _bind(self, host: str, port: int, flag: str) -> int:
        # grpc's own error does not say why; a plain bind first does, and resolves port 0 and names the same way.
        listening_socket(host, port, flag).close()
        try:
            bound: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as exc:
            raise bind_error(host, port, flag, exc) from exc
        return bound


class _Service:
    """The RPCs: each takes a decoded message and a deadline and returns a message."""

    def __init__(self, core: InferenceCore, limits: Limits) -> None:
        self._core = core
        self._limits = limits
        self._classes = message_classes()

    def answer(self, name: str, message: Any, remaining_s: float | None) -> Any:
        """Answer one unary RPC; raises `EdgeKitError`."""
        if name == "ModelInfer":
            return self.infer(message, remaining_s)
        handler: Callable[[Any], Any] = getattr(self, f"_{name}")
        return handler(message)

    def infer(self, message: Any, remaining_s: float | None) -> Any:
        now_s = time.monotonic()
        request = decode_request(message, self._limits)
        request.deadline_s = absolute_deadline(request.parameters, now_s, remaining_s)
        return encode_response(self._core.infer(request))

    def stream(self, message: Any, remaining_s: float | None) -> Any:
        """One element of ModelStreamInfer: the error goes into the response, the stream stays open."""
        reply = self._classes["ModelStreamInferResponse"]()
        try:
            reply.infer_response.CopyFrom(self.infer(message, remaining_s))
        except EdgeKitError as exc:
            reply.error_message = str(exc)
            reply.infer_response.id = message.id
        if message.parameters[_FINAL_ASKED].bool_param if _FINAL_ASKED in message.parameters else False:
            reply.infer_response.parameters[_FINAL].bool_param = True
        return reply

    def _ServerLive(self, message: Any) -> Any:  # noqa: N802 - named as the RPC
        del message
        return self._classes["ServerLiveResponse"](live=self._core.live())

    def _ServerReady(self, message: Any) -> Any:  # noqa: N802
        del message
        return self._classes["ServerReadyResponse"](ready=self._core.ready())

    def _ModelReady(self, message: Any) -> Any:  # noqa: N802
        try:
            ready = self._core.model_ready(message.name, message.version)
        except NotFoundError:
            ready = False  # as Triton answers
        return self._classes["ModelReadyResponse"](ready=ready)

    def _ServerMetadata(self, message: Any) -> Any:  # noqa: N802
        del message
        metadata = self._core.server_metadata()
        return self._classes["ServerMetadataResponse"](name=metadata.name, version=metadata.version, extensions=metadata.extensions)

    def _ModelMetadata(self, message: Any) -> Any:  # noqa: N802
        return encode_metadata(self._core.model_metadata(message.name, message.version))

    def _ModelConfig(self, message: Any) -> Any:  # noqa: N802
        return self._parse({"config": self._core.model_config(message.name, message.version)}, "ModelConfigResponse")

    def _ModelStatistics(self, message: Any) -> Any:  # noqa: N802
        return self._parse({"model_stats": self._core.statistics(message.name, message.version)}, "ModelStatisticsResponse")

    def _RepositoryIndex(self, message: Any) -> Any:  # noqa: N802
        reply = self._classes["RepositoryIndexResponse"]()
        for entry in self._core.repository_index(message.ready):
            reply.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return reply

    def _RepositoryModelLoad(self, message: Any) -> Any:  # noqa: N802
        self._core.repository_load(message.model_name, decode_parameters(message.parameters))
        return self._classes["RepositoryModelLoadResponse"]()

    def _RepositoryModelUnload(self, message: Any) -> Any:  # noqa: N802
        self._core.repository_unload(message.model_name, decode_parameters(message.parameters))
        return self._classes["RepositoryModelUnloadResponse"]()

    def _parse(self, document: dict[str, Any], name: str) -> Any:
        from google.protobuf import json_format

        return json_format.ParseDict(document, self._classes[name](), ignore_unknown_fields=True)


def _handlers(grpc: Any, service: _Service) -> dict[str, Any]:
    """Grpcio's handler of each RPC. Requests arrive as bytes, so that those that are no protobuf get INVALID_ARGUMENT and a line."""

    def unary(name: str, request: Any) -> Callable[[bytes, Any], Any]:
        def handle(raw: bytes, context: Any) -> Any:
            return _guarded(grpc, context, lambda: service.answer(name, _message(name, request, raw), _remaining(context)))

        return handle

    def stream(name: str, request: Any) -> Callable[[Iterator[bytes], Any], Iterator[Any]]:
        def handle(raws: Iterator[bytes], context: Any) -> Iterator[Any]:
            for raw in raws:
                message = _guarded(grpc, context, lambda raw=raw: _message(name, request, raw))  # type: ignore[misc]
                yield _guarded(grpc, context, lambda message=message: service.stream(message, _remaining(context)))  # type: ignore[misc]

        return handle

    handlers = {}
    for name, method in methods().items():
        if method.streaming:
            handlers[name] = grpc.stream_stream_rpc_method_handler(stream(name, method.request), None, method.response.SerializeToString)
        else:
            handlers[name] = grpc.unary_unary_rpc_method_handler(unary(name, method.request), None, method.response.SerializeToString)
    return handlers


def _message(name: str, request: Any, raw: bytes) -> Any:
    try:
        return request.FromString(raw)
    except Exception as exc:  # protobuf's DecodeError differs between its implementations
        raise RequestError(f"{name} request", "not a protobuf message of the protocol", "inference.GRPCInferenceService's") from exc


def _guarded(grpc: Any, context: Any, work: Callable[[], Any]) -> Any:
    """Run ``work``; end the RPC with the error's status and line, or INTERNAL and an id when it is our bug."""
    try:
        return work()
    except EdgeKitError as exc:
        status, line = getattr(grpc.StatusCode, exc.grpc_status), shorten(str(exc), 2000)
    except Exception:  # noqa: BLE001 - the request's boundary: logged with an id
        error_id = uuid.uuid4().hex[:12]
        _log.exception("unexpected error %s while answering gRPC", error_id)
        status, line = grpc.StatusCode.INTERNAL, f"internal error {error_id}; the server's log has the details"
    context.abort(status, line)  # raises
    raise AssertionError(line)


def _remaining(context: Any) -> float | None:
    """Seconds that the client's own gRPC deadline leaves; ``None`` without one (grpcio then says so many that they overflow)."""
    remaining = context.time_remaining()
    return None if remaining is None or not math.isfinite(remaining) or remaining > 1e9 else max(0.0, float(remaining))
