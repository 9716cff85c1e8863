"""HTTP: OTLP in, the fleet page and its JSON out. One event loop in one thread; decoding and the store have threads of their own."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.cloud.collector._fleet import fleet_view, series_view
from edgekit.cloud.collector._ingest import Ingest
from edgekit.cloud.collector._queries import fleet_rows, series_rows
from edgekit.cloud.collector._rows import log_rows, metric_rows
from edgekit.cloud.collector._store import StoreThread
from edgekit.cloud.collector._wire import BODY_LIMIT_BYTES, Encoding, Signal, answer, error_body, inflate, parse
from edgekit.errors import BindError, EdgeKitError, EnvironmentMissingError, OverloadedError, RequestError, StorageError

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["HttpServer", "Services", "window_parameters"]

_log = logging.getLogger("edgekit.collector")

READING_LIMIT_BYTES = 64 << 20  # of bodies that are being read or wait for a decoder
READ_TIMEOUT_S = 30.0
RETRY_AFTER_S = 5
CACHE_S = 1.0  # several open pages cost one query a second
DEFAULT_STEP_S = 5.0  # the export interval
SERIES_POINT_LIMIT = 1000
WINDOW_LIMIT_S = 7 * 86_400

Clock = Callable[[], int]


class Services(msgspec.Struct):
    """What the transports share. ``wall_ms`` gives milliseconds since the Unix epoch."""

    store: StoreThread
    ingest: Ingest
    decoders: concurrent.futures.ThreadPoolExecutor
    wall_ms: Clock = lambda: time.time_ns() // 1_000_000

    def accept(self, signal: Signal, body: bytes, encoding: Encoding) -> tuple[concurrent.futures.Future[None], int, str]:
        """Decode one OTLP body and queue its rows: the commit's future, how many points were refused and why. Blocks for the decoding only.

        Raises:
            RequestError: the body is not what it says.
            OverloadedError: the queue is full.
        """
        return self.accept_message(signal, parse(signal, body, encoding))

    def accept_message(self, signal: Signal, message: Any) -> tuple[concurrent.futures.Future[None], int, str]:
        """`accept` for a body that is parsed already."""
        decoded = (metric_rows if signal == "metrics" else log_rows)(message, self.wall_ms())
        return self.ingest.submit(decoded), decoded.rejected, decoded.reason


def window_parameters(query: dict[str, str]) -> tuple[float, float]:
    """``(window_s, step_s)`` of a request, with their defaults 300 and a sixtieth of the window, at least 5 s.

    Raises:
        RequestError: no numbers, out of range, or more bins than a page can show.
    """

    def number(name: str, default: float, least: float, most: float) -> float:
        text = query.get(name, "")
        try:
            value = float(text) if text else default
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise RequestError(name, repr(text[:40]), f"{least:g} to {most:g} seconds")
        return value

    window_s = number("window_s", 300.0, 1.0, WINDOW_LIMIT_S)
    step_s = number("step_s", max(DEFAULT_STEP_S, window_s / 60), 1.0, WINDOW_LIMIT_S)
    if window_s / step_s > SERIES_POINT_LIMIT:
        raise RequestError("step_s", f"{window_s / step_s:.0f} bins", f"at most {SERIES_POINT_LIMIT}", "give a larger step_s")
    return window_s, step_s


def load_page() -> tuple[bytes, str]:
    """The fleet page and its Content-Security-Policy, which lets in only the page's own script and style, by hash."""
    text = resources.files("edgekit.cloud.collector").joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


class _Cache:
    """Answers of the last second, one computation at a time for each key."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[float, asyncio.Task[bytes]]] = {}

    async def get(self, key: str, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        now_s = time.monotonic()
        for old in [old for old, (made_s, task) in self._entries.items() if now_s - made_s > CACHE_S and task.done()]:
            del self._entries[old]
        if key not in self._entries:
            self._entries[key] = (now_s, asyncio.ensure_future(compute()))
        return await asyncio.shield(self._entries[key][1])


class HttpServer:
    """Runs the HTTP side in a thread of its own.

    Args:
        services: queue, store and decoders.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        BindError: the port is in use.
        EnvironmentMissingError: aiohttp is not installed.
    """

    def __init__(self, services: Services, host: str, port: int) -> None:
        try:
            from aiohttp import web
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("collector", "aiohttp", "collector") from exc
        self._web = web
        self._services = services
        self._cache = _Cache()
        self._reading_bytes = 0
        self._page, self._policy = load_page()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edgekit-collector-http", daemon=True)
        self._thread.start()
        try:
            self.port: int = asyncio.run_coroutine_threadsafe(self._start(host, port), self._loop).result()
        except BaseException as exc:
            self._end_loop()
            if isinstance(exc, OSError):
                raise BindError.in_use("collector", host, port, "--http") from exc
            raise

    async def _start(self, host: str, port: int) -> int:
        web = self._web
        app = web.Application(client_max_size=BODY_LIMIT_BYTES)
        app.router.add_post("/v1/metrics", functools.partial(self._otlp, "metrics"))
        app.router.add_post("/v1/logs", functools.partial(self._otlp, "logs"))
        app.router.add_get("/", self._get_page)
        app.router.add_get("/api/fleet", self._get_fleet)
        app.router.add_get("/api/series", self._get_series)
        app.router.add_get("/healthz", self._get_health)
        # Unpacking is ours, with a limit of its own.
        self._runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=2.0, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        return int(self._runner.addresses[0][1])

    async def _otlp(self, signal: Signal, request: web.Request) -> web.Response:
        encoding: Encoding = "json" if request.content_type == "application/json" else "protobuf"
        if request.content_type not in ("application/json", "application/x-protobuf"):
            return self._refuse(
                RequestError("Content-Type", repr(request.content_type), "application/json or application/x-protobuf"), encoding, 415
            )
        size = min(request.content_length or BODY_LIMIT_BYTES, BODY_LIMIT_BYTES)  # chunked bodies count as the largest
        if self._reading_bytes + size > READING_LIMIT_BYTES:
            waiting = OverloadedError("collector", f"{READING_LIMIT_BYTES >> 20} MiB of requests wait", "", "send again later")
            return self._refuse(waiting, encoding, 503)
        try:
            done, rejected, reason = await self._read(signal, request, encoding, size)
            await asyncio.wrap_future(done)
            payload = answer(signal, rejected, reason, encoding)
        except self._web.HTTPRequestEntityTooLarge:
            limit = f"{BODY_LIMIT_BYTES >> 20} MiB"
            return self._refuse(
                RequestError("request body", f"more than {limit}", f"at most {limit}", "send smaller batches"), encoding, 413
            )
        except TimeoutError:
            return self._refuse(RequestError("request body", f"not complete after {READ_TIMEOUT_S:.0f} s"), encoding, 408)
        except RequestError as exc:
            return self._refuse(exc, encoding, 400)
        except (OverloadedError, StorageError) as exc:
            return self._refuse(exc, encoding, 503)
        return self._web.Response(body=payload, content_type=_CONTENT_TYPE[encoding])

    async def _read(
        self, signal: Signal, request: web.Request, encoding: Encoding, size: int
    ) -> tuple[concurrent.futures.Future[None], int, str]:
        """Read and decode one body of at most ``size`` bytes, which are counted meanwhile. What then waits for its commit is bounded by the ingest queue, in rows."""
        self._reading_bytes += size
        try:
            body = await asyncio.wait_for(request.read(), READ_TIMEOUT_S)
            content_encoding = request.headers.get("Content-Encoding", "").lower()
            return await asyncio.get_running_loop().run_in_executor(
                self._services.decoders, lambda: self._services.accept(signal, inflate(body, content_encoding), encoding)
            )
        finally:
            self._reading_bytes -= size

    def _refuse(self, error: EdgeKitError, encoding: Encoding, status: int) -> web.Response:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
        return self._web.Response(
            status=status, body=error_body(status, str(error), encoding), content_type=_CONTENT_TYPE[encoding], headers=headers
        )

    async def _get_page(self, _request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": self._policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        return self._web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)

    async def _get_fleet(self, request: web.Request) -> web.Response:
        def view(window_s: float, _step_s: float) -> Callable[[StoreThread], dict[str, Any]]:
            now_ms = self._services.wall_ms()
            return lambda store: fleet_view(store.call(lambda db: fleet_rows(db, now_ms, int(window_s * 1e3))), now_ms, window_s)

        return await self._json(request, view)

    async def _get_series(self, request: web.Request) -> web.Response:
        def view(window_s: float, step_s: float) -> Callable[[StoreThread], dict[str, Any]]:
            now_ms, step_ms = self._services.wall_ms(), int(step_s * 1e3)
            from_ms = (now_ms - int(window_s * 1e3)) // step_ms * step_ms
            return lambda store: series_view(
                *store.call(lambda db: series_rows(db, from_ms - 1, now_ms, step_ms)), from_ms, now_ms, step_ms
            )

        return await self._json(request, view)

    async def _json(self, request: web.Request, view: Callable[[float, float], Callable[[StoreThread], dict[str, Any]]]) -> web.Response:
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        try:
            window_s, step_s = window_parameters(dict(request.query))

            async def compute() -> bytes:
                work = view(window_s, step_s)
                return await asyncio.get_running_loop().run_in_executor(None, lambda: msgspec.json.encode(work(self._services.store)))

            body = await self._cache.get(f"{request.path}:{window_s}:{step_s}", compute)
        except EdgeKitError as exc:
            return self._web.json_response({"error": str(exc)}, status=exc.http_status, headers=headers)
        except Exception:  # noqa: BLE001 - request boundary
            _log.exception("query failed", extra={"path": request.path})
            return self._web.json_response({"error": "internal error; see the collector's log"}, status=500, headers=headers)
        return self._web.Response(body=body, content_type="application/json", headers=headers)

    async def _get_health(self, _request: web.Request) -> web.Response:
        ingest = self._services.ingest
        text = json.dumps({"queued_rows": ingest.queued_rows, "inserted_rows": ingest.inserted_rows, "inserts": ingest.inserts})
        return self._web.Response(text=text, content_type="application/json")

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def stop(self) -> None:
        """Finish the requests in progress (two seconds at most), close the port, end the thread."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._end_loop()


_CONTENT_TYPE: dict[Encoding, str] = {"json": "application/json", "protobuf": "application/x-protobuf"}
