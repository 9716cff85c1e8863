"""Sending one OTLP request over HTTP, and what its answer means (OTLP specification 1.x, "OTLP/HTTP Response")."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import random
import socket
import threading
import urllib.parse
from typing import Literal, Protocol

import msgspec

from edgekit._retry_after import retry_after_s
from edgekit._version import __version__
from edgekit.errors import UsageError
from edgekit.telemetry._otlp import Batch

__all__ = ["HttpTransport", "Response", "Transport", "Verdict", "backoff_s", "judge"]

RETRYABLE = frozenset({429, 502, 503, 504})  # the specification's list; every other error status means "do not send this again"
BACKOFF_BASE_S, BACKOFF_CAP_S = 1.0, 60.0
RESPONSE_LIMIT_BYTES = 64 << 10


class Response(msgspec.Struct, frozen=True):
    """What came back; ``status`` 0 stands for no answer, with the reason in ``error``."""

    status: int
    body: bytes = b""
    retry_after: str = ""
    error: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What to do with the batch.

    ``dropped_rows`` with ``reason`` says what the receiver refused for good; ``retry_after_s`` is its own wish, if it gave one.
    """

    action: Literal["delivered", "retry", "drop"]
    reason: str = ""
    dropped_rows: int = 0
    retry_after_s: float | None = None


class Transport(Protocol):
    """Sends a batch and reports; never raises for what the network or the receiver does."""

    def send(self, batch: Batch, timeout_s: float) -> Response:
        """One attempt, at most about ``timeout_s``."""
        ...

    def abort(self) -> None:
        """Break off an attempt that another thread is in, for good."""
        ...

    def close(self) -> None:
        """Let connections go; nothing is sent any more."""
        ...


def judge(batch: Batch, response: Response, now_s: float) -> Verdict:
    """Meaning of an answer. ``now_s`` is wall-clock time since the Unix epoch, for a Retry-After that is a date."""
    if response.status == 0:
        return Verdict("retry", "unreachable")
    if 200 <= response.status < 300:
        rejected = min(_rejected_rows(response.body), batch.rows)
        # The receiver took the rest; sending again would double it, so the specification forbids a retry.
        return Verdict("delivered", "partial_success" if rejected else "", rejected)
    reason = f"http_{response.status}"
    if response.status in RETRYABLE:
        return Verdict("retry", reason, retry_after_s=retry_after_s(response.retry_after, now_s))
    return Verdict("drop", reason, batch.rows)


def _rejected_rows(body: bytes) -> int:
    try:
        partial = msgspec.json.decode(body).get("partialSuccess", {})
        return max(0, int(partial.get("rejectedDataPoints", 0)) + int(partial.get("rejectedLogRecords", 0)))
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return 0  # an empty or foreign body on a 2xx: accepted


def backoff_s(attempt: int, rng: random.Random) -> float:
    """Pause after failure number ``attempt`` (1, 2, …): doubling from 1 s to 60 s, with jitter over the upper half.

    Half is kept as a floor so that a fleet never hammers a collector that comes back; the random half spreads it.
    """
    ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt - 1, 16))
    return ceiling * (0.5 + 0.5 * rng.random())


class HttpTransport:
    """OTLP/HTTP with JSON bodies, gzip, and one kept-alive connection.

    Args:
        url: the collector's base URL (``http://host:4318``); ``/v1/metrics`` and ``/v1/logs`` are appended.

    Raises:
        UsageError: not an http(s) URL.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urllib.parse.urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError("collector URL", repr(url), "http://HOST:PORT or https://HOST:PORT", "for example http://127.0.0.1:4318")
        self._https = parts.scheme == "https"
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = threading.Event()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        self._connection = kind(self._host, self._port, timeout=timeout_s)
        return self._connection

    def send(self, batch: Batch, timeout_s: float) -> Response:
        """One attempt, on the kept connection if it still stands, else on a new one."""
        reused = self._connection
        if reused is not None and reused.sock is not None:
            reused.sock.settimeout(timeout_s)
            try:
                return self._exchange(reused, batch)
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()  # the receiver closed an idle connection; that says nothing about the batch
            except (OSError, http.client.HTTPException) as exc:
                return self._failed(exc)
        if self._aborted.is_set():
            return Response(0, error="closed")
        try:
            return self._exchange(self._connect(timeout_s), batch)
        except (OSError, http.client.HTTPException) as exc:
            return self._failed(exc)

    def _failed(self, exc: Exception) -> Response:
        self.close()
        return Response(0, error=str(exc) or type(exc).__name__)

    def _exchange(self, connection: http.client.HTTPConnection, batch: Batch) -> Response:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "User-Agent": f"edgekit/{__version__}"}
        connection.request("POST", f"{self._path}/v1/{batch.signal}", gzip.compress(batch.body, 6, mtime=0), headers)
        answer = connection.getresponse()
        body = answer.read(RESPONSE_LIMIT_BYTES)
        if not answer.isclosed():  # longer than any OTLP response: do not read on
            self.close()
        return Response(answer.status, body, answer.getheader("Retry-After") or "")

    def close(self) -> None:
        """Close the kept connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Break off the attempt in progress; later ones fail at once."""
        self._aborted.set()
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
