"""Binding an address, with errors that name the flag."""

from __future__ import annotations

import errno
import socket

from edgekit.errors import BindError

__all__ = ["bind_error", "listening_socket"]


def listening_socket(host: str, port: int, flag: str) -> socket.socket:
    """A bound TCP socket (not listening yet).

    Raises:
        BindError: the port is in use or may not be bound, or the host is unknown; names ``flag``.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as exc:
        raise bind_error(host, port, flag, exc) from exc
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except (OSError, OverflowError) as exc:
        bound.close()
        raise bind_error(host, port, flag, exc) from exc
    return bound


def bind_error(host: str, port: int, flag: str, exc: BaseException) -> BindError:
    """The `BindError` for what ``bind`` said."""
    thing = f"address {host}:{port}"
    number = getattr(exc, "errno", None)
    if number == errno.EADDRINUSE:
        return BindError.in_use(thing, host, port, flag)
    if number in {errno.EACCES, errno.EPERM}:
        return BindError(thing, "permission denied", "a port above 1023", f"give {flag} another one")
    found = getattr(exc, "strerror", None) or str(exc)
    return BindError(thing, f"cannot be listened on ({found})", "an address of this machine", f"give {flag} HOST:PORT")
