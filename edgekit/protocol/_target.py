"""Where a server is, as clients write it. Pure.

``http://host:port``, ``https://host:port``, ``grpc://host:port`` and ``grpcs://host:port``; ``unix:/path`` (or ``http+unix:/path``) and ``grpc+unix:/path`` for a unix
socket, which servers call ``unix:/path`` for either transport.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from edgekit.errors import UsageError

__all__ = ["Target", "is_server_url", "parse_target"]

_PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
_SOCKETS = {"unix:": "http", "http+unix:": "http", "grpc+unix:": "grpc"}
_FORMS = "http://, https://, grpc:// or grpcs:// and host:port, or unix:/path or grpc+unix:/path"


class Target(msgspec.Struct, frozen=True):
    """One server.

    Attributes:
        url: for error lines.
        grpc: speaks gRPC, otherwise HTTP.
        tls: encrypted.
        host, port: of TCP; empty and 0 for a unix socket.
        path: of a unix socket; empty for TCP.
        prefix: path in front of ``/v2`` (a reverse proxy's); HTTP only.
    """

    url: str
    grpc: bool
    tls: bool = False
    host: str = ""
    port: int = 0
    path: str = ""
    prefix: str = ""

    @property
    def address(self) -> str:
        """``host:port``, brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_server_url(text: str) -> bool:
    """Whether ``text`` begins as the URL of a server does, and not as a path."""
    return text.startswith((*(f"{scheme}://" for scheme in _PORTS), *_SOCKETS))


def parse_target(url: str) -> Target:
    """The server that ``url`` names.

    Raises:
        UsageError: not one of the forms above.
    """
    for scheme, transport in _SOCKETS.items():
        if url.startswith(scheme):
            path = url[len(scheme) :]
            path = path.removeprefix("//")  # unix:///run/x, as gRPC writes it too
            if not path:
                raise UsageError(f"URL {url!r}", "no path", f"{scheme}/path", f"for example {scheme}/run/edgekit/http.sock")
            return Target(f"{scheme}{path}", transport == "grpc", path=path)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"URL {url!r}", f"a bad port ({exc})", "a number from 1 to 65535") from exc
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UsageError(f"URL {url!r}", "not a server's address", _FORMS)
    if parts.username is not None:
        raise UsageError(f"URL of {parts.hostname}", "a user name or password in it", "none", "give a token by its own option")
    grpc = parts.scheme.startswith("grpc")
    target = Target(
        "", grpc, parts.scheme.endswith("s"), parts.hostname, port or _PORTS[parts.scheme], prefix="" if grpc else parts.path.rstrip("/")
    )
    return msgspec.structs.replace(target, url=f"{parts.scheme}://{target.address}{target.prefix}")
