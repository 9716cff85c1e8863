"""Open Inference Protocol v2 over gRPC for any `InferenceCore`: an event loop in a thread of its own.

HTTP/2 is nghttp2's (by ngh2), the messages of inference are read and written in `_grpc_fast`, all others by protobuf.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from edgekit.errors import EnvironmentMissingError
from edgekit.protocol._access import Access
from edgekit.protocol._event_loop import hosting, new_event_loop
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._listening import forget_socket, listening_socket, unix_path
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore

if TYPE_CHECKING:
    from edgekit.protocol._grpc_dispatch import Dispatcher
    from edgekit.protocol._grpc_owner import ConnectionOwner

__all__ = ["GrpcTransport"]

_MAX_CONNECTIONS = 1000  # each is a file descriptor, of which most systems give a process 1,024
_HANDSHAKE_S = 10.0
_SWEEP_S = 1.0
_NOTICE_S = 0.25  # for clients to answer that they know of the stop
_DRAIN_STEP_S = 0.01
_ALPN = ("h2",)


class GrpcTransport:
    """A listening gRPC server; see `edgekit.protocol.serve` for the arguments.

    Raises:
        BindError: the address cannot be listened on.
        EnvironmentMissingError: ngh2 or protobuf is not installed.
        StorageError: a certificate or key that cannot be read.
    """

    def __init__(
        self,
        core: InferenceCore,
        host: str,
        port: int,
        limits: Limits,
        max_in_flight: int,
        access: Access | None = None,
        extensions: Extensions | None = None,
        flag: str = "--grpc",
    ) -> None:
        _require()
        from edgekit.protocol._grpc_dispatch import Dispatcher
        from edgekit.protocol._grpc_owner import ConnectionOwner

        access = access or Access()
        tls = access.tls_context(_ALPN)
        self._host = host
        self._socket = listening_socket(host, port, flag)
        self.port: int = 0 if unix_path(host) else self._socket.getsockname()[1]
        self._loop = new_event_loop()
        self._dispatcher: Dispatcher = Dispatcher(self._loop, core, limits, max_in_flight, extensions or Extensions(limits))
        self._owner: ConnectionOwner = ConnectionOwner(self._dispatcher, access, _MAX_CONNECTIONS)
        self._stopping = threading.Lock()
        self._drained = threading.Event()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(tls, started), name="edgekit-grpc-loop", daemon=True)
        self._thread.start()
        started.result()

    def stop(self, deadline_s: float) -> None:
        """See `Transport.stop`."""
        with self._stopping:
            if not self._thread.is_alive():
                return
            self._loop.call_soon_threadsafe(self._begin_drain, deadline_s)
            self._drained.wait()
            # Requests that outlive the deadline lose their client; their threads end with them.
            self._dispatcher.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            forget_socket(self._host)

    def _run(self, tls: Any, started: Future[None]) -> None:
        from edgekit.protocol._grpc_connection import GrpcConnection

        loop, owner = self._loop, self._owner
        self._dispatcher.run_in(threading.get_ident())
        options: dict[str, Any] = {"sock": self._socket, "backlog": 1024}
        if tls is not None:
            options |= {"ssl": tls, "ssl_handshake_timeout": _HANDSHAKE_S}
        create = loop.create_unix_server if unix_path(self._host) else loop.create_server
        try:
            self._server = loop.run_until_complete(create(lambda: GrpcConnection(owner), **options))
            loop.call_later(_SWEEP_S, self._sweep)
            started.set_result(None)
            with hosting(loop):
                loop.run_forever()
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            self._socket.close()

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for connection in list(self._owner.connections):
            connection.sweep(now_s)
        self._dispatcher.health.check()
        self._loop.call_later(_SWEEP_S, self._sweep)

    def _begin_drain(self, deadline_s: float) -> None:
        self._owner.draining = self._dispatcher.control.stopping = True
        self._server.close()
        self._dispatcher.health.tell(ready=False)
        for connection in list(self._owner.connections):
            connection.begin_drain()
            self._loop.call_later(_NOTICE_S, connection.end_drain)
        self._await_drain(deadline_s)

    def _await_drain(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if self._owner.connections and left_s > 0:
            self._loop.call_later(min(_DRAIN_STEP_S, left_s), self._await_drain, deadline_s)
            return
        for connection in list(self._owner.connections):
            connection.abort()
        self._drained.set()


def _require() -> None:
    for name in ("ngh2", "google.protobuf"):
        try:
            __import__(name)
        except ImportError as exc:
            package = "protobuf" if name == "google.protobuf" else name
            raise EnvironmentMissingError.for_extra("the gRPC server", package, "server") from exc
