"""What a remote server's refusal means here: status and message in, one of our exceptions out. Pure."""

from __future__ import annotations

import edgekit.errors
from edgekit.errors import (
    DeadlineError,
    EdgeKitError,
    EngineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from edgekit.protocol._tensors import shorten

__all__ = ["ERROR_HEADER", "bad_answer", "error_from_grpc", "error_from_http"]

ERROR_HEADER = "x-edgekit-error"  # class name of the error, where the status alone is ambiguous (503)

_BY_HTTP_STATUS: dict[int, type[EdgeKitError]] = {
    401: UnavailableError,  # to a router, a server that does not know its token is one that does not answer
    403: UnavailableError,
    404: NotFoundError,
    408: DeadlineError,
    429: OverloadedError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineError,
}
_BY_GRPC_STATUS: dict[str, type[EdgeKitError]] = {
    "INVALID_ARGUMENT": RequestError,
    "OUT_OF_RANGE": RequestError,
    "UNIMPLEMENTED": RequestError,
    "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": UnavailableError,
    "UNAUTHENTICATED": UnavailableError,  # as 401
    "PERMISSION_DENIED": UnavailableError,
}


def error_from_http(url: str, status: int, kind: str | None, message: str) -> EdgeKitError:
    """The error for an HTTP answer that is not 200; ``kind`` is the value of `ERROR_HEADER` when a server of ours sent it."""
    found = shorten(message, 1000) or f"HTTP {status}"
    named = getattr(edgekit.errors, kind, None) if kind in edgekit.errors.__all__ else None
    if isinstance(named, type) and issubclass(named, (RequestError, OverloadedError, DeadlineError, UnavailableError)):
        return named(url, found)
    fallback = RequestError if 400 <= status < 500 else EngineError
    return _BY_HTTP_STATUS.get(status, fallback)(url, found)


def error_from_grpc(url: str, status: str, message: str) -> EdgeKitError:
    """The error for a gRPC status by name (``UNAVAILABLE``)."""
    return _BY_GRPC_STATUS.get(status, EngineError)(url, shorten(message, 1000) or status)


def bad_answer(url: str, exc: Exception) -> EngineError:
    """The error for an answer that cannot be decoded: the server's fault, not the request's."""
    return EngineError(url, f"an answer that is not Open Inference Protocol v2 ({shorten(str(exc), 500)})")
