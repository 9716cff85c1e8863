"""Paths of the Open Inference Protocol v2 over HTTP, and everything behind them but inference. Runs in threads; no transport in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol._byte_budget import Charge
from edgekit.protocol._compression import WINDOW_BITS, inflate
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._http_parse import HttpError
from edgekit.protocol._http_reply import Reply, json_reply
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, Parameters

__all__ = ["ControlRequest", "Controls", "Route", "decompress", "route_of"]

_CONTROL_BYTES = 4 << 20  # of what is no inference; names and settings are short
_REGION_VERBS = {"status": "GET", "register": "POST", "unregister": "POST"}


class Route(msgspec.Struct, frozen=True):
    """What a path names.

    Attributes:
        parts: segments after ``/v2``, percent-decoded one by one (a model's name may hold a slash); of a model's path without those in ``model``.
        model, version: of a path under ``/v2/models/NAME[/versions/VERSION]``; the model is ``None`` for other paths.
    """

    parts: tuple[str, ...]
    model: str | None = None
    version: str = ""

    @property
    def infers(self) -> bool:
        """The path is a model's ``infer``."""
        return self.model is not None and self.parts == ("infer",)

    @property
    def streams(self) -> bool:
        """The path is a model's ``generate_stream``."""
        return self.model is not None and self.parts == ("generate_stream",)

    @property
    def is_health(self) -> bool:
        """Liveness or readiness of the server, which need no token."""
        return self.parts in {("health", "live"), ("health", "ready")}

    def text(self) -> str:
        """For error lines."""
        front = () if self.model is None else ("models", self.model, *(("versions", self.version) if self.version else ()))
        return f"/v2/{'/'.join((*front, *self.parts))[:200]}"


class ControlRequest(msgspec.Struct, frozen=True):
    """A request that is no inference. ``local`` says that the client is on this machine."""

    method: str
    route: Route
    body: bytes | bytearray | memoryview
    encoding: str | None
    local: bool


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: Parameters = {}


class _RegisterRequest(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_INDEX_REQUEST = msgspec.json.Decoder(_IndexRequest)
_LOAD_REQUEST = msgspec.json.Decoder(_LoadRequest)
_REGISTER_REQUEST = msgspec.json.Decoder(_RegisterRequest)
_SETTINGS_REQUEST = msgspec.json.Decoder(dict[str, Any])


def route_of(path: str) -> Route:
    """The route of a path (percent-encoded, without query).

    Raises:
        HttpError: 404 for a path that is not below ``/v2``.
    """
    parts = [unquote(part) for part in path.split("/") if part]
    if not parts or parts[0] != "v2":
        raise HttpError(404, f"path /{'/'.join(parts)[:200]}", "no such endpoint", "one of the Open Inference Protocol v2, below /v2")
    parts = parts[1:]
    if len(parts) < 2 or parts[0] != "models" or parts == ["models", "stats"]:
        return Route(tuple(parts))
    if len(parts) >= 4 and parts[2] == "versions":
        return Route(tuple(parts[4:]), parts[1], parts[3])
    return Route(tuple(parts[2:]), parts[1])


def decompress(
    body: bytes | bytearray | memoryview, encoding: str | None, limits: Limits, charge: Charge | None = None
) -> bytes | bytearray | memoryview:
    """The body without its Content-Encoding; ``charge`` as for `inflate`.

    Raises:
        HttpError: 415 for a coding other than gzip and deflate.
        InflatedSizeError, RequestError: as `inflate`.
    """
    coding = (encoding or "identity").strip().lower()
    if coding == "identity":
        return body
    if coding not in WINDOW_BITS:
        raise HttpError(415, "header Content-Encoding", repr(coding[:40]), "identity, gzip or deflate")
    return inflate("request body", body, WINDOW_BITS[coding], limits.body_bytes, charge)


class Controls:
    """Answers everything but inference.

    Args:
        core: what is asked.
        limits: of a body after decompression.
        extensions: of the server.
        draining: true once the server is stopping; it is not ready then.
    """

    def __init__(self, core: InferenceCore, limits: Limits, extensions: Extensions, draining: Callable[[], bool]) -> None:
        self._core = core
        self._limits = msgspec.structs.replace(limits, body_bytes=min(limits.body_bytes, _CONTROL_BYTES))
        self._extensions = extensions
        self._draining = draining

    def answer(self, request: ControlRequest) -> Reply:
        """The answer; raises `EdgeKitError`."""
        route = request.route
        if route.model is not None:
            return self._model(request, route.model, route.version)
        match route.parts:
            case ():
                _check(request, "GET")
                metadata = self._core.server_metadata()
                return json_reply(msgspec.structs.replace(metadata, extensions=self._extensions.names(metadata.extensions)))
            case ("health", ("live" | "ready") as what):
                _check(request, "GET")
                well = self._core.live() if what == "live" else self._core.ready() and not self._draining()
                return json_reply({what: well}, 200 if well else 503)
            case ("models", "stats"):
                _check(request, "GET")
                return json_reply({"model_stats": self._core.statistics()})
            case ("repository", *rest):
                return self._repository(request, rest)
            case ("logging",):
                return self._settings(request, self._extensions.log)
            case ("trace", "setting"):
                return self._settings(request, self._extensions.traces)
            case ("systemsharedmemory", *rest):
                return self._shared_memory(request, rest)
            case ("cudasharedmemory", *rest):
                return _cuda_shared_memory(request, rest)
        raise _unknown(route)

    def _model(self, request: ControlRequest, name: str, version: str) -> Reply:
        core = self._core
        match request.route.parts:
            case ():
                _check(request, "GET")
                return json_reply(core.model_metadata(name, version))
            case ("ready",):
                _check(request, "GET")
                ready = core.model_ready(name, version) and not self._draining()
                return json_reply({"name": name, "ready": ready}, 200 if ready else 400)  # 400: as Triton answers
            case ("config",):
                _check(request, "GET")
                return json_reply(core.model_config(name, version))
            case ("stats",):
                _check(request, "GET")
                return json_reply({"model_stats": core.statistics(name, version)})
            case ("trace", "setting"):
                core.model_ready(name, version)  # raises for an unknown model
                return self._settings(request, self._extensions.traces, name)
        raise _unknown(request.route)

    def _repository(self, request: ControlRequest, rest: list[str]) -> Reply:
        match rest:
            case ["index"]:
                _check(request, "POST")
                return json_reply(self._core.repository_index(self._parse(request, _INDEX_REQUEST).ready))
            case ["models", name, ("load" | "unload") as verb]:
                _check(request, "POST")
                parameters = self._parse(request, _LOAD_REQUEST).parameters
                (self._core.repository_load if verb == "load" else self._core.repository_unload)(name, parameters)
                return json_reply({})
        raise _unknown(request.route)

    def _settings(self, request: ControlRequest, settings: Any, *model: str) -> Reply:
        if request.method == "GET":
            return json_reply(settings.read(*model))
        if request.method != "POST":
            raise _wrong_method(request, "GET, POST")
        return json_reply(settings.update(self._parse(request, _SETTINGS_REQUEST), *model))

    def _shared_memory(self, request: ControlRequest, rest: list[str]) -> Reply:
        name, verb = _region(request, rest)
        regions = self._extensions.regions
        regions.require_local("system shared memory", local=request.local)
        if verb == "status":
            return json_reply(regions.status(name))
        if verb == "unregister":
            regions.unregister(name)
        else:
            asked = self._parse(request, _REGISTER_REQUEST)
            regions.register(name, asked.key, asked.offset, asked.byte_size, local=request.local)
        return json_reply({})

    def _parse(self, request: ControlRequest, decoder: msgspec.json.Decoder[Any]) -> Any:
        body = decompress(request.body, request.encoding, self._limits)
        if len(body) > self._limits.body_bytes:
            raise HttpError(413, "request body", f"{len(body)} bytes", f"at most {self._limits.body_bytes} for what is no inference")
        try:
            return decoder.decode(body if len(body) else b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise RequestError("request body", f"cannot be read: {str(exc)[:200]}", "a JSON object") from exc


def _region(request: ControlRequest, rest: list[str]) -> tuple[str, str]:
    """Region name (empty for all) and verb of a shared memory path, the method checked."""
    match rest:
        case [("status" | "unregister") as verb]:
            name = ""
        case ["region", name, ("status" | "register" | "unregister") as verb]:
            pass
        case _:
            raise _unknown(request.route)
    _check(request, _REGION_VERBS[verb])
    return name, verb


def _cuda_shared_memory(request: ControlRequest, rest: list[str]) -> Reply:
    """There is none: nothing is registered, and nothing can be."""
    name, verb = _region(request, rest)
    if verb == "register":
        raise RequestError(
            "CUDA shared memory", "not supported", "system shared memory", "register a POSIX region, or send the tensor itself"
        )
    if verb == "status" and name:
        raise NotFoundError(f"CUDA shared memory region {name[:96]!r}", "not registered")
    return json_reply([] if verb == "status" else {})


def _unknown(route: Route) -> HttpError:
    return HttpError(404, f"path {route.text()}", "no such endpoint", "one of the Open Inference Protocol v2")


def _check(request: ControlRequest, expected: str) -> None:
    if request.method != expected:
        raise _wrong_method(request, expected)


def _wrong_method(request: ControlRequest, expected: str) -> HttpError:
    return HttpError(405, request.route.text(), f"method {request.method[:40]}", expected)
