"""``HOST:PORT`` on the command line, and waiting for the end."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from edgekit.errors import UsageError

__all__ = ["address", "optional_address", "serving_addresses", "stop_on_signals", "wait_for_stop"]


def address(text: str, flag: str) -> tuple[str, int]:
    """``127.0.0.1:8000`` or ``:8000`` (loopback) to host and port; port 0 picks a free one.

    Raises:
        UsageError: not of that form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(flag, repr(text), "HOST:PORT with a port from 0 to 65535", f"for example {flag} 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def optional_address(text: str, flag: str) -> tuple[str, int] | None:
    """`address`, or None for ``off``."""
    return None if text == "off" else address(text, flag)


def serving_addresses(http: str, grpc: str) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """The values of ``--http`` and ``--grpc``, as `edgekit.protocol.serve` takes them.

    Raises:
        UsageError: not addresses, or both ``off``.
    """
    if http == grpc == "off":
        raise UsageError("--http and --grpc", "both off", "one of them on", "leave one flag out for its default address")
    return _serving_address(http, "--http"), _serving_address(grpc, "--grpc")


def _serving_address(text: str, flag: str) -> tuple[str, int] | None:
    """`optional_address`, or ``unix:/path`` for a unix socket (its port is 0)."""
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise UsageError(flag, repr(text), "unix:/path", f"for example {flag} unix:/run/edgekit/http.sock")
        return text, 0
    return optional_address(text, flag)


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set from now on."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def wait_for_stop() -> None:
    """Block until SIGINT or SIGTERM."""
    stop = stop_on_signals()
    # A plain wait() would hold signals back on some platforms until it returns.
    while not stop.wait(1.0):
        pass
