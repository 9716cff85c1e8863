"""Open Inference Protocol v2 over HTTP for any `InferenceCore`, on aiohttp in a thread of its own.

The event loop reads and writes only. Decoding, the core and encoding run in bounded thread pools: one for inference, a small one for the
rest, so that health answers while inference takes all its threads.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
import uuid
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import msgspec

from edgekit.errors import EdgeKitError, EnvironmentMissingError, OverloadedError, RequestError
from edgekit.protocol._deadline import DEADLINE_HEADER, absolute_deadline, timeout_from_header
from edgekit.protocol._http_codec import HEADER_LENGTH, decode_request, encode_response
from edgekit.protocol._listening import listening_socket
from edgekit.protocol._remote_errors import ERROR_HEADER
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore, Parameters

__all__ = ["HttpTransport"]

_log = logging.getLogger(__name__)
_CONTROL_THREADS = 4
_BODY_TIMEOUT_S = 30.0  # for the whole body, so that slow senders do not hold all the places
_DECISION = "edgekit_decision"
_DECISION_HEADER = "x-edgekit-decision"
_ZLIB_FORMATS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class _HttpError(EdgeKitError):
    """A request that HTTP itself has a status for (404 unknown path, 405, 413, 415)."""

    def __init__(self, status: int, thing: str, found: str, expected: str = "") -> None:
        super().__init__(thing, found, expected)
        self.http_status = status


class _Reply(msgspec.Struct, frozen=True):
    """One HTTP answer, before aiohttp."""

    body: bytes = b""
    headers: dict[str, str] = {}
    status: int = 200


class HttpTransport:
    """A listening HTTP server; see `edgekit.protocol.serve` for the arguments.

    Raises:
        BindError: the address cannot be listened on.
        EnvironmentMissingError: aiohttp is not installed.
    """

    def __init__(self, core: InferenceCore, host: str, port: int, limits: Limits, max_in_flight: int, flag: str = "--http") -> None:
        try:
            from aiohttp import web
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("the HTTP server", "aiohttp", "server") from exc
        self._socket = listening_socket(host, port, flag)
        self.port: int = self._socket.getsockname()[1]
        self._inference = ThreadPoolExecutor(max_in_flight, thread_name_prefix="edgekit-http")
        self._control = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="edgekit-http-control")
        self._loop = asyncio.new_event_loop()
        self._app = _Application(web, core, limits, max_in_flight, self._inference, self._control)
        self._stop_at: asyncio.Future[float] = self._loop.create_future()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(web, started), name="edgekit-http-loop", daemon=True)
        self._thread.start()
        started.result()

    def stop(self, deadline_s: float) -> None:
        """See `Transport.stop`."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._begin_stop, deadline_s)
        self._thread.join()
        self._inference.shutdown(wait=True, cancel_futures=True)
        self._control.shutdown(wait=True, cancel_futures=True)

    def _begin_stop(self, deadline_s: float) -> None:
        if not self._stop_at.done():
            self._stop_at.set_result(deadline_s)

    def _serve(self, web: ModuleType, started: Future[None]) -> None:
        try:
            self._loop.run_until_complete(self._run(web, started))
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)
        finally:
            self._loop.run_until_complete(_cancel_the_rest())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._socket.close()

    async def _run(self, web: Any, started: Future[None]) -> None:
        # auto_decompress is off: decompression is ours, so that it has a limit and unknown codings get 415.
        runner = web.ServerRunner(
            web.Server(self._app.handle, access_log=None, auto_decompress=False, keepalive_timeout=75.0),
            handle_signals=False,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        site = web.SockSite(runner, self._socket, backlog=128)
        await site.start()
        started.set_result(None)
        deadline_s = await self._stop_at
        await site.stop()
        runner.server.pre_shutdown()  # idle connections close now, busy ones after their answer
        await self._app.drained(deadline_s)
        await runner.cleanup()


class _Application:
    """Routes and runs requests. Lives in the event loop; ``_run_*`` methods run in the pools."""

    def __init__(
        self, web: Any, core: InferenceCore, limits: Limits, max_in_flight: int, inference: ThreadPoolExecutor, control: ThreadPoolExecutor
    ) -> None:
        self._web = web
        self._core = core
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._inference = inference
        self._control = control
        self._inferring = 0
        self._open = 0
        self._body_timeout_s = _BODY_TIMEOUT_S
        self._idle = asyncio.Event()
        self._idle.set()

    async def drained(self, deadline_s: float) -> None:
        """Wait until no request is under way, or ``deadline_s``."""
        try:
            await asyncio.wait_for(self._idle.wait(), max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            _log.warning("closing with %d HTTP requests under way: the grace period is over", self._open)

    async def handle(self, request: Any) -> Any:
        """Aiohttp's handler for every request."""
        self._open += 1
        self._idle.clear()
        try:
            reply = await self._answer(request)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
        return self._web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    async def _answer(self, request: Any) -> _Reply:
        try:
            parts = _route(request.rel_url)
            if parts[-1:] == ["infer"] and _is_model(parts):
                return await self._infer(request, parts)
            body = await self._read(request) if request.method == "POST" else b""
            work = functools.partial(self._run_control, request.method, parts, body, request.headers.get("Content-Encoding"))
            return await asyncio.get_running_loop().run_in_executor(self._control, work)
        except EdgeKitError as exc:
            return _error(exc.http_status, str(exc), type(exc).__name__)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 - the request's boundary: logged with an id
            if isinstance(exc, self._web.HTTPException):  # aiohttp's own refusals (a body it cannot parse)
                return _error(exc.status, exc.reason)
            if isinstance(exc, (ConnectionError, self._web.RequestPayloadError)):
                return _error(400, "request body: ended early or is not valid HTTP")
            error_id = uuid.uuid4().hex[:12]
            _log.exception("unexpected error %s while answering %s %s", error_id, request.method, request.path)
            return _error(500, f"internal error {error_id}; the server's log has the details")

    async def _infer(self, request: Any, parts: list[str]) -> _Reply:
        _check_method(request.method, "POST", parts)
        accepted_s = time.monotonic()
        if self._inferring >= self._max_in_flight:
            raise OverloadedError(
                "server", f"{self._inferring} requests are under way", f"at most {self._max_in_flight}", "try again later"
            )
        self._inferring += 1
        try:
            timeout_s = timeout_from_header(request.headers.get(DEADLINE_HEADER))
            body = await self._read(request)
            work = functools.partial(self._run_infer, request.headers, body, parts, accepted_s, timeout_s)
            return await asyncio.get_running_loop().run_in_executor(self._inference, work)
        finally:
            self._inferring -= 1

    async def _read(self, request: Any) -> bytes:
        """The body as it was sent, within the limit."""
        limit = self._limits.body_bytes
        if (request.content_length or 0) > limit:
            raise _HttpError(413, "request body", f"{request.content_length} bytes", f"at most {limit}")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        pieces = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for piece in request.content.iter_any():
                    size += len(piece)
                    if size > limit:
                        raise _HttpError(413, "request body", f"more than {limit} bytes", f"at most {limit}")
                    pieces.append(piece)
        except TimeoutError as exc:
            raise _HttpError(408, "request body", f"{size} bytes after {self._body_timeout_s:g} s", "the whole body") from exc
        return b"".join(pieces)

    def _run_infer(self, headers: Any, body: bytes, parts: list[str], accepted_s: float, timeout_s: float | None) -> _Reply:
        name, version, _ = _model(parts)
        plain = _decompress(body, headers.get("Content-Encoding"), self._limits)
        request = decode_request(plain, headers.get(HEADER_LENGTH), name, version, self._limits)
        request.deadline_s = absolute_deadline(request.parameters, accepted_s, timeout_s)
        response = self._core.infer(request)
        message = encode_response(response, request)
        reply_headers = message.headers()
        if decision := response.parameters.get(_DECISION):
            reply_headers[_DECISION_HEADER] = str(decision).replace("\r", " ").replace("\n", " ")
        return _Reply(message.body, reply_headers)

    def _run_control(self, method: str, parts: list[str], body: bytes, encoding: str | None) -> _Reply:
        """Everything but inference; ``parts`` are the path's segments after ``/v2``."""
        core = self._core
        match parts:
            case []:
                _check_method(method, "GET", parts)
                return _json(core.server_metadata())
            case ["health", ("live" | "ready") as what]:
                _check_method(method, "GET", parts)
                return _Reply(status=200 if (core.live() if what == "live" else core.ready()) else 503)
            case ["models", "stats"]:
                _check_method(method, "GET", parts)
                return _json({"model_stats": core.statistics()})
            case ["repository", "index"]:
                _check_method(method, "POST", parts)
                wanted = _parse_control(_decompress(body, encoding, self._limits), _INDEX_REQUEST)
                return _json(core.repository_index(wanted.ready))
            case ["repository", "models", name, ("load" | "unload") as verb]:
                _check_method(method, "POST", parts)
                asked = _parse_control(_decompress(body, encoding, self._limits), _LOAD_REQUEST)
                (core.repository_load if verb == "load" else core.repository_unload)(name, asked.parameters)
                return _json({})
        if not _is_model(parts):
            raise _unknown_path(parts)
        _check_method(method, "GET", parts)
        return self._run_model(parts)

    def _run_model(self, parts: list[str]) -> _Reply:
        core = self._core
        name, version, rest = _model(parts)
        match rest:
            case []:
                return _json(core.model_metadata(name, version))
            case ["ready"]:
                return _Reply(status=200 if core.model_ready(name, version) else 400)  # 400: as Triton answers
            case ["config"]:
                return _json(core.model_config(name, version))
            case ["stats"]:
                return _json({"model_stats": core.statistics(name, version)})
        raise _unknown_path(parts)


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: Parameters = {}


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_INDEX_REQUEST = msgspec.json.Decoder(_IndexRequest)
_LOAD_REQUEST = msgspec.json.Decoder(_LoadRequest)


async def _cancel_the_rest() -> None:
    """End the tasks of connections that aiohttp still lingers on."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _route(url: Any) -> list[str]:
    """Path segments after ``/v2``, percent-decoded one by one (a model's name may hold a slash)."""
    parts = [part for part in url.raw_path.split("/") if part]
    if not parts or parts[0] != "v2":
        raise _unknown_path(["..", *parts])
    from urllib.parse import unquote

    return [unquote(part) for part in parts[1:]]


def _is_model(parts: list[str]) -> bool:
    return len(parts) >= 2 and parts[0] == "models" and (len(parts) < 3 or parts[2] != "versions" or len(parts) >= 4)


def _model(parts: list[str]) -> tuple[str, str, list[str]]:
    """Model name, version and the segments after them."""
    if len(parts) >= 4 and parts[2] == "versions":
        return parts[1], parts[3], parts[4:]
    return parts[1], "", parts[2:]


def _unknown_path(parts: list[str]) -> _HttpError:
    return _HttpError(404, f"path /v2/{'/'.join(parts)[:200]}", "no such endpoint", "one of the Open Inference Protocol v2")


def _check_method(found: str, expected: str, parts: list[str]) -> None:
    if found != expected:
        raise _HttpError(405, f"/v2/{'/'.join(parts)[:200]}", f"method {found}", expected)


def _parse_control(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError("request body", f"cannot be read: {str(exc)[:200]}", "a JSON object") from exc


def _decompress(body: bytes, encoding: str | None, limits: Limits) -> bytes:
    """The body without its Content-Encoding.

    Raises:
        _HttpError: 415 for a coding other than gzip and deflate, 413 when more than the limit comes out.
        RequestError: damaged data.
    """
    coding = (encoding or "identity").strip().lower()
    if coding == "identity":
        return body
    if coding not in _ZLIB_FORMATS:
        raise _HttpError(415, "header Content-Encoding", repr(coding[:40]), "identity, gzip or deflate")
    decoder = zlib.decompressobj(_ZLIB_FORMATS[coding])
    try:
        plain = decoder.decompress(body, limits.body_bytes + 1)
    except zlib.error as exc:
        raise RequestError("request body", f"damaged {coding} data ({exc})", "what Content-Encoding says") from exc
    if len(plain) > limits.body_bytes:
        raise _HttpError(413, "request body", f"more than {limits.body_bytes} bytes after {coding}", f"at most {limits.body_bytes}")
    if not decoder.eof:
        raise RequestError("request body", f"truncated {coding} data", "what Content-Encoding says")
    return plain


def _json(document: Any) -> _Reply:
    return _Reply(msgspec.json.encode(document), {"Content-Type": "application/json"})


def _error(status: int, message: str, kind: str = "") -> _Reply:
    headers = {"Content-Type": "application/json"}
    if kind and not kind.startswith("_"):
        headers[ERROR_HEADER] = kind
    return _Reply(msgspec.json.encode({"error": message}), headers, status)
