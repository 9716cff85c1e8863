"""Open Inference Protocol v2 over HTTP/1.1 for any `InferenceCore`: a server of our own in a thread of its own, on uvloop where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from concurrent.futures import Future

import msgspec

from edgekit.protocol._access import Access
from edgekit.protocol._event_loop import hosting, new_event_loop
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._http_application import Application
from edgekit.protocol._http_connection import Connection
from edgekit.protocol._http_exchange import ConnectionLimits
from edgekit.protocol._listening import forget_socket, listening_socket, unix_path
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore

__all__ = ["HttpTransport"]

_log = logging.getLogger(__name__)
_TLS_HANDSHAKE_S = 10.0
_OTHER_DESCRIPTORS = 384


class HttpTransport:
    """A listening HTTP server; see `edgekit.protocol.serve` for the arguments.

    Args:
        connections: what clients may take up.
        uvloop: false stays with asyncio's own loop where uvloop is installed.

    Raises:
        BindError: the address cannot be listened on.
        StorageError: a certificate or key that cannot be read.
    """

    def __init__(
        self,
        core: InferenceCore,
        host: str,
        port: int,
        limits: Limits,
        max_in_flight: int,
        flag: str = "--http",
        *,
        access: Access | None = None,
        extensions: Extensions | None = None,
        connections: ConnectionLimits | None = None,
        uvloop: bool = True,
    ) -> None:
        self._host = host
        self._limits = _within_descriptors(connections or ConnectionLimits())
        self._tls = (access or Access()).tls_context(["http/1.1"])
        self._socket = listening_socket(host, port, flag)
        self.port: int = 0 if unix_path(host) else self._socket.getsockname()[1]
        self._application = Application(core, limits, self._limits, max_in_flight, access or Access(), extensions or Extensions(limits))
        self._loop = new_event_loop(uvloop=uvloop)
        self._stop_at: asyncio.Future[float] = self._loop.create_future()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="edgekit-http-loop", daemon=True)
        self._thread.start()
        started.result()

    def stop(self, deadline_s: float) -> None:
        """See `Transport.stop`."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # another stop has just ended the loop
                self._loop.call_soon_threadsafe(self._begin_stop, deadline_s)
        self._thread.join()
        self._application.shut_down()

    def _begin_stop(self, deadline_s: float) -> None:
        if not self._stop_at.done():
            self._stop_at.set_result(deadline_s)

    def _serve(self, started: Future[None]) -> None:
        try:
            with hosting(self._loop):
                self._loop.run_until_complete(self._run(started))
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)
        finally:
            self._loop.close()
            self._socket.close()
            forget_socket(self._host)

    async def _run(self, started: Future[None]) -> None:
        application = self._application
        application.start(self._loop)
        server = await self._listen()
        ticker = asyncio.ensure_future(self._tick())
        started.set_result(None)
        deadline_s = await self._stop_at
        application.draining = True
        server.close()
        await self._drain(deadline_s)
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)

    async def _listen(self) -> asyncio.AbstractServer:
        application = self._application

        def connection() -> Connection:
            return Connection(application)

        handshake_s = _TLS_HANDSHAKE_S if self._tls is not None else None
        if self._socket.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(connection, sock=self._socket, ssl=self._tls, ssl_handshake_timeout=handshake_s)
        return await self._loop.create_server(connection, sock=self._socket, ssl=self._tls, ssl_handshake_timeout=handshake_s)

    async def _tick(self) -> None:
        limits = self._limits
        shortest_s = min(limits.head_s, limits.body_s, limits.idle_s, limits.write_s, limits.linger_s)
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 2))
            self._application.tick()

    async def _drain(self, deadline_s: float) -> None:
        """Idle connections close now, busy ones after their answers, all at ``deadline_s``."""
        application = self._application
        for connection in list(application.connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(application.empty.wait(), max(0.0, deadline_s - time.monotonic()))
        busy = sum(connection.busy for connection in application.connections)
        if busy:
            _log.warning("closing with HTTP requests under way on %d connections: the grace period is over", busy)
        for connection in list(application.connections):
            connection.abort()
        await application.empty.wait()


def _within_descriptors(limits: ConnectionLimits) -> ConnectionLimits:
    """The limits with no more connections than there are file descriptors, less some for models, shared memory and whatever else is open."""
    if sys.platform == "win32":
        return limits
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    return msgspec.structs.replace(limits, connections=min(limits.connections, soft - min(_OTHER_DESCRIPTORS, soft // 2)))
