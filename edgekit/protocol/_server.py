"""Serving an `InferenceCore` over HTTP and gRPC at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from edgekit.protocol._access import Access
from edgekit.protocol._extensions import Extensions
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import InferenceCore

if TYPE_CHECKING:
    from edgekit.protocol._trace_files import TraceFolder

__all__ = ["Server", "Transport", "serve"]


class Transport(Protocol):
    """One listening address."""

    port: int

    def stop(self, deadline_s: float) -> None:
        """Stop accepting, let requests under way finish until ``deadline_s`` (`time.monotonic`), close. May be called twice."""
        ...


class Server:
    """Listening transports and what to close after them. A context manager: leaving it stops the server.

    Attributes:
        http_port, grpc_port: the ports that are listened on (``0`` in the request chose one); ``None`` when that transport is off, 0 on a
            unix socket.
    """

    def __init__(
        self,
        http: Transport | None,
        grpc: Transport | None,
        on_stop: Sequence[Callable[[], object]] = (),
        before_stop: Sequence[Callable[[float], object]] = (),
    ) -> None:
        self.http_port = http.port if http is not None else None
        self.grpc_port = grpc.port if grpc is not None else None
        self._transports = [transport for transport in (http, grpc) if transport is not None]
        self._on_stop = tuple(on_stop)
        self._before_stop = tuple(before_stop)
        self._stopping = threading.Lock()
        self._stopped = threading.Event()

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop: no new requests, those under way have ``grace_s`` to finish, then all is closed and its threads have ended.

        What others may fetch before (see `serve`) has half of that time.
        """
        with self._stopping:
            if self._stopped.is_set():
                return
            deadline_s = time.monotonic() + grace_s
            for leave in self._before_stop:
                leave(deadline_s - grace_s / 2)
            for transport in self._transports:
                transport.stop(deadline_s)
            for close in self._on_stop:
                close()
            self._stopped.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until `stop` is done (in another thread or a signal handler); true when it is."""
        return self._stopped.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _trace_folder(path: str | os.PathLike[str] | None) -> TraceFolder | None:
    if path is None:
        return None
    from edgekit.protocol._trace_files import TraceFolder

    return TraceFolder(path)


def serve(
    core: InferenceCore,
    http: tuple[str, int] | None = ("127.0.0.1", 8000),
    grpc: tuple[str, int] | None = ("127.0.0.1", 8001),
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    max_in_flight: int = 64,
    trace_folder: str | os.PathLike[str] | None = None,
    on_stop: Sequence[Callable[[], object]] = (),
    before_stop: Sequence[Callable[[float], object]] = (),
) -> Server:
    """Start to answer for ``core``; returns once both transports listen.

    Args:
        core: what answers. It is not closed by the server, unless ``on_stop`` says so.
        http: address of the HTTP transport, port 0 for any; ``None`` for none. The host ``unix:/path`` is a unix socket (its port is 0).
        grpc: the same for gRPC.
        limits: what one message may hold.
        access: TLS and bearer token, for both transports; neither when not given.
        max_in_flight: most requests a transport works on at once when each takes a thread (a core without ``submit``); more are refused with
            `OverloadedError`. A `SubmittingCore` bounds its queue itself.
        trace_folder: where clients may have traces written; made where it is missing. Without one they may not.
        on_stop: called in order after the transports have stopped.
        before_stop: called in order while they still answer, with the time (`time.monotonic`) by which each returns.

    Raises:
        BindError: an address that cannot be listened on.
        EnvironmentMissingError: what a transport needs is not installed.
        StorageError: a certificate or key that cannot be read, a folder for traces that cannot be written.
    """
    limits = limits or Limits()
    access = access or Access()
    extensions = Extensions(limits, _trace_folder(trace_folder))
    started: list[Transport] = []
    http_transport: Transport | None = None
    grpc_transport: Transport | None = None
    try:
        if http is not None:
            from edgekit.protocol._http_server import HttpTransport

            http_transport = HttpTransport(core, http[0], http[1], limits, max_in_flight, access=access, extensions=extensions)
            started.append(http_transport)
        if grpc is not None:
            from edgekit.protocol._grpc_server import GrpcTransport

            grpc_transport = GrpcTransport(core, grpc[0], grpc[1], limits, max_in_flight, access=access, extensions=extensions)
            started.append(grpc_transport)
    except BaseException:
        for transport in started:
            transport.stop(time.monotonic())
        raise
    return Server(http_transport, grpc_transport, [*on_stop, extensions.close], before_stop)
