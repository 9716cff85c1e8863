"""What a client of an inference server can do, the same over HTTP and gRPC."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol

from edgekit.errors import DeadlineError, UnavailableError
from edgekit.protocol._access import Credentials
from edgekit.protocol._target import parse_target
from edgekit.protocol._types import InferRequest, InferResponse, ModelMetadata

__all__ = ["InFlight", "InferenceClient", "connect"]


class InFlight:
    """A request that was sent and may still be cancelled. Safe to use from several threads.

    Transports make it, and finish it once with `resolve` or `reject`; whoever comes later changes nothing.

    Args:
        target: URL of the server, for error lines.
        abort: stops the transport's work (closes the socket, cancels the call); called at most once, by `cancel`.
    """

    def __init__(self, target: str, abort: Callable[[], object] | None = None) -> None:
        self.target = target
        self._abort = abort
        self._future: concurrent.futures.Future[InferResponse] = concurrent.futures.Future()

    def result(self, timeout_s: float | None = None) -> InferResponse:
        """The answer; waits ``timeout_s`` at most and leaves the request running when that has passed.

        Raises:
            DeadlineError: no answer within ``timeout_s``, or within the request's own time.
            UnavailableError: the server does not answer, or the request was cancelled.
            EdgeKitError: what the server refused it with.
        """
        try:
            return self._future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self._future.done():  # the answer came in that instant
                return self._future.result()
            raise DeadlineError(self.target, "no answer yet", f"one within {timeout_s} s") from None

    def cancel(self) -> None:
        """Give up: free the connection and make `result` raise `UnavailableError`. Does nothing once finished."""
        if self.reject(UnavailableError(self.target, "the request was cancelled")) and self._abort is not None:
            self._abort()

    def done(self) -> bool:
        """An answer or an error is there, or the request was cancelled."""
        return self._future.done()

    def add_done_callback(self, callback: Callable[[InFlight], object]) -> None:
        """Call ``callback(self)`` once finished (at once if it is), in the thread that finishes it; it must not block."""
        self._future.add_done_callback(lambda _: callback(self))

    def resolve(self, response: InferResponse) -> bool:
        """For transports: finish with an answer; false when it was finished before."""
        try:
            self._future.set_result(response)
        except concurrent.futures.InvalidStateError:
            return False
        return True

    def reject(self, error: BaseException) -> bool:
        """For transports: finish with an error; false when it was finished before."""
        try:
            self._future.set_exception(error)
        except concurrent.futures.InvalidStateError:
            return False
        return True


class InferenceClient(Protocol):
    """A client of one server. Safe to use from several threads; keeps connections open between requests.

    ``timeout_s`` bounds the whole call, connecting included. `infer` and `start` also obey ``request.deadline_s`` (whichever is earlier) and tell the
    server what is left (request parameter ``timeout``, microseconds). A server that cannot be reached, or hangs up, is `UnavailableError`; time that has
    run out is `DeadlineError`; what the server refuses is the same error type that its core raised, where the transport tells.
    """

    url: str

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        """Send and wait for the answer. Output arrays may share memory with the received message and are read-only."""
        ...

    def start(self, request: InferRequest, timeout_s: float) -> InFlight:
        """Send and return at once; never raises for what the server or the network does, the `InFlight` holds it."""
        ...

    def ready(self, timeout_s: float = 1.0) -> bool:
        """The server answers and says that it is ready; false when it cannot be reached in time."""
        ...

    def model_ready(self, name: str, version: str = "", timeout_s: float = 1.0) -> bool:
        """As `ready`, for one model."""
        ...

    def model_metadata(self, name: str, version: str = "", timeout_s: float = 5.0) -> ModelMetadata:
        """Signature and versions of a model."""
        ...

    def statistics(self, name: str = "", version: str = "", timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Triton's statistics extension: one object a model version, integers as integers."""
        ...

    def close(self) -> None:
        """Close all connections; requests under way fail with `UnavailableError`."""
        ...


def connect(url: str, credentials: Credentials | None = None) -> InferenceClient:
    """A client for a server's URL (see `edgekit.protocol._target` for the forms). Does not connect yet.

    Args:
        url: for example ``https://host:port``, ``grpc://host:port`` or ``unix:/path``.
        credentials: CA, client certificate and token; the system's CAs and nothing else when not given.

    Raises:
        UsageError: no such scheme, no host, or certificates for a URL without TLS.
        StorageError: a certificate, key or CA that cannot be read.
        EnvironmentMissingError: grpcio is not installed (gRPC only).
    """
    target = parse_target(url)
    credentials = credentials or Credentials()
    credentials.require_tls(url, tls=target.tls)
    if target.grpc:
        from edgekit.protocol._grpc_client import GrpcClient

        return GrpcClient(target, credentials)
    from edgekit.protocol._http_client import HttpClient

    return HttpClient(target, credentials)
