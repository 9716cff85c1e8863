"""A client's socket to a server."""

from __future__ import annotations

import socket

from edgekit.protocol._target import Target

__all__ = ["connected_socket", "reason_of"]


def connected_socket(target: Target, timeout_s: float) -> socket.socket:
    """A connected socket, TCP or unix; blocks for ``timeout_s`` at most. Raises `OSError`."""
    if not target.path:
        sock = socket.create_connection((target.host, target.port), timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout_s)
        sock.connect(target.path)
    except BaseException:
        sock.close()
        raise
    return sock


def reason_of(exc: BaseException) -> str:
    """What went wrong with a connection, in a few words."""
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
