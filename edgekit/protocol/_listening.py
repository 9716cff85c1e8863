"""Binding an address, TCP or a unix socket, with errors that name the flag.

A unix socket is written ``unix:/path`` where a host would stand; its port means nothing and is 0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from edgekit.errors import BindError

__all__ = ["bind_error", "forget_socket", "listening_socket", "unix_path"]

_UNIX = "unix:"
_BACKLOG = 1024  # the kernel takes the smaller of this and net.core.somaxconn


def unix_path(host: str) -> str:
    """Path of a unix socket address; empty for a TCP host."""
    return host[len(_UNIX) :] if host.startswith(_UNIX) else ""


def listening_socket(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket: TCP, or a unix socket for ``unix:/path``. A socket file that nobody listens on any more is replaced.

    Raises:
        BindError: the port is in use or may not be bound, or the host is unknown; names ``flag``.
    """
    path = unix_path(host)
    try:
        if path:
            family, kind, protocol, address = socket.AF_UNIX, socket.SOCK_STREAM, 0, path
            _clear_stale(path)
        else:
            family, kind, protocol, _, address = socket.getaddrinfo(  # type: ignore[assignment]
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, ValueError) as exc:
        raise bind_error(host, port, flag, exc) from exc
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except (OSError, OverflowError, ValueError) as exc:
        bound.close()
        raise bind_error(host, port, flag, exc) from exc
    return bound


def forget_socket(host: str) -> None:
    """Remove the file of a unix socket that is not listened on any more; nothing for TCP."""
    path = unix_path(host)
    if path:
        with contextlib.suppress(OSError):
            _clear_stale(path)


def bind_error(host: str, port: int, flag: str, exc: BaseException) -> BindError:
    """The `BindError` for what ``bind`` said."""
    path = unix_path(host)
    thing = f"unix socket {path}" if path else f"address {host}:{port}"
    number = getattr(exc, "errno", None)
    if number == errno.EADDRINUSE:
        if path:
            return BindError(thing, "the path is in use", "a path that is free", f"stop the other server or give {flag}")
        return BindError.in_use(thing, host, port, flag)
    if number in {errno.EACCES, errno.EPERM}:
        expected = "a folder that can be written" if path else "a port above 1023"
        return BindError(thing, "permission denied", expected, f"give {flag} another one")
    found = getattr(exc, "strerror", None) or str(exc)
    expected = "a path in an existing folder, up to 107 bytes" if path else "an address of this machine"
    return BindError(thing, f"cannot be listened on ({found})", expected, f"give {flag} {'unix:/path' if path else 'HOST:PORT'}")


def _clear_stale(path: str) -> None:
    """Remove the socket file of a server that is gone; leaves every other file alone, so that ``bind`` says that it is in use."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
