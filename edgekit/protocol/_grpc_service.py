"""The unary RPCs other than inference: a message in, a message out, over any `InferenceCore`. They may block; the transport gives them a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._grpc_codec import decode_parameters, encode_metadata
from edgekit.protocol._grpc_messages import SERVICE, message_classes, methods
from edgekit.protocol._types import InferenceCore

__all__ = ["HEALTH_CHECK", "HEALTH_WATCH", "OPEN_METHODS", "ControlService", "health_status", "parse_message", "watched_service"]

# The standard health service, which kubelet and load balancers ask: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Its two messages
# have one field each (service: string; status: enum), so they are read and written here.
HEALTH_CHECK, HEALTH_WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"

# Health tells yes or no and nothing else; it needs no token (see `Access`).
OPEN_METHODS = frozenset({HEALTH_CHECK, HEALTH_WATCH, *(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady"))})


def parse_message(name: str, request: Any, raw: memoryview | bytes) -> Any:
    """The message in ``raw``; raises `RequestError` when it is none."""
    try:
        return request.FromString(bytes(raw))
    except Exception as exc:  # protobuf's DecodeError differs between its implementations
        raise RequestError(f"{name} request", "not a protobuf message of the protocol", "inference.GRPCInferenceService's") from exc


def watched_service(raw: bytes) -> bool:
    """Whether the bytes of a ``HealthCheckRequest`` name a service that is here: none (the whole server) or inference's."""
    # field 1, length-delimited
    service = raw[2:].decode(errors="replace") if raw[:1] == b"\x0a" and len(raw) >= 2 and raw[1] == len(raw) - 2 else ""
    return bool(service or not raw) and service in {"", SERVICE}


def health_status(*, known: bool, ready: bool) -> bytes:
    """A ``HealthCheckResponse``; of a service that is not ``known`` only a watcher gets one."""
    return (_SERVING if ready else _NOT_SERVING) if known else _SERVICE_UNKNOWN


class ControlService:
    """Answers by path; safe from several threads.

    Attributes:
        stopping: the server takes no more; it is not ready then.
    """

    def __init__(self, core: InferenceCore, extensions: Extensions) -> None:
        self._core = core
        self.stopping = False
        self._extensions = extensions
        self._classes = message_classes()
        self._methods = {method.path(name): (name, method) for name, method in methods().items() if not method.streaming}

    def knows(self, path: str) -> bool:
        """There is such an RPC, inference included."""
        return path in self._methods or path == HEALTH_CHECK

    def answer(self, path: str, raw: memoryview | bytes, *, local: bool) -> bytes:
        """The bytes of the response; ``local`` is whether the client is on this machine.

        Raises:
            EdgeKitError: the call's status and line.
        """
        if path == HEALTH_CHECK:
            return self._health(bytes(raw))
        name, method = self._methods[path]
        message = parse_message(name, method.request, raw)
        if name == "SystemSharedMemoryRegister":
            return self._register(message, local=local)
        handler: Callable[[Any], Any] = getattr(self, f"_{name}")
        answered: bytes = handler(message).SerializeToString()
        return answered

    def ready(self) -> bool:
        """Requests will be answered."""
        return not self.stopping and self._core.ready()

    def _health(self, raw: bytes) -> bytes:
        if not watched_service(raw):
            raise NotFoundError("health of a service", "no such service", f"none, or {SERVICE}")
        return health_status(known=True, ready=self.ready())

    def _ServerLive(self, message: Any) -> Any:  # noqa: N802 - named as the RPC
        del message
        return self._classes["ServerLiveResponse"](live=self._core.live())

    def _ServerReady(self, message: Any) -> Any:  # noqa: N802
        del message
        return self._classes["ServerReadyResponse"](ready=self.ready())

    def _ModelReady(self, message: Any) -> Any:  # noqa: N802
        try:
            ready = self._core.model_ready(message.name, message.version)
        except NotFoundError:
            ready = False  # as Triton answers
        return self._classes["ModelReadyResponse"](ready=ready)

    def _ServerMetadata(self, message: Any) -> Any:  # noqa: N802
        del message
        metadata = self._core.server_metadata()
        extensions = self._extensions.names(metadata.extensions)
        return self._classes["ServerMetadataResponse"](name=metadata.name, version=metadata.version, extensions=extensions)

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

    def _SystemSharedMemoryStatus(self, message: Any) -> Any:  # noqa: N802
        reply = self._classes["SystemSharedMemoryStatusResponse"]()
        for region in self._extensions.regions.status(message.name):
            entry = reply.regions[region.name]
            entry.name, entry.key, entry.offset, entry.byte_size = region.name, region.key, region.offset, region.byte_size
        return reply

    def _register(self, message: Any, *, local: bool) -> bytes:
        self._extensions.regions.register(message.name, message.key, message.offset, message.byte_size, local=local)
        return b""

    def _SystemSharedMemoryUnregister(self, message: Any) -> Any:  # noqa: N802
        self._extensions.regions.unregister(message.name)
        return self._classes["SystemSharedMemoryUnregisterResponse"]()

    def _TraceSetting(self, message: Any) -> Any:  # noqa: N802
        if message.model_name:
            self._core.model_ready(message.model_name)  # raises for a model that is not known
        wanted = {key: _trace_value(list(setting.value)) for key, setting in message.settings.items()}
        reply = self._classes["TraceSettingResponse"]()
        for key, value in self._extensions.traces.update(wanted, message.model_name).items():
            reply.settings[key].value.extend([value] if isinstance(value, str) else value)
        return reply

    def _LogSettings(self, message: Any) -> Any:  # noqa: N802
        wanted: dict[str, Any] = {}
        for key, setting in message.settings.items():
            choice = setting.WhichOneof("parameter_choice")
            wanted[key] = None if choice is None else getattr(setting, choice)
        reply = self._classes["LogSettingsResponse"]()
        for key, value in self._extensions.log.update(wanted).items():
            field = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
            setattr(reply.settings[key], field, value)
        return reply

    def _parse(self, document: Mapping[str, Any], name: str) -> Any:
        from google.protobuf import json_format

        return json_format.ParseDict(document, self._classes[name](), ignore_unknown_fields=True)


def _trace_value(values: list[str]) -> str | list[str] | None:
    """A setting as `Traces` takes it: none given clears it."""
    if not values:
        return None
    return values[0] if len(values) == 1 else values
