"""Who may talk to a server, and what a client shows for it: TLS and a bearer token, the same for HTTP and gRPC."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import StorageError, UsageError

if TYPE_CHECKING:
    import asyncio
    import ssl

__all__ = ["Access", "Credentials", "is_local"]

_BEARER = "bearer "
_PAIR = "a PEM certificate and its unencrypted private key"


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a transport asks of its clients; the default asks nothing.

    Health endpoints answer without the token: they tell probes yes or no, and nothing else.

    Attributes:
        certificate: PEM file, the server's certificate and its chain; TLS is off without it.
        key: PEM file of its private key; the certificate's file when empty.
        client_ca: PEM file; clients must show a certificate that one of these has signed (mutual TLS).
        token: every request must carry ``Authorization: Bearer <token>``; off when empty.

    Raises:
        UsageError: parts that do not go together, or a token that no header can carry.
    """

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        if (self.key or self.client_ca) and not self.certificate:
            raise UsageError("TLS", "a key or a client CA without a certificate", "the server's certificate", "give the certificate too")
        _check_token(self.token)
        if self.token:
            import hmac  # noqa: F401 - 16 ms, which the first request need not wait for

    @property
    def tls(self) -> bool:
        """TLS is on."""
        return bool(self.certificate)

    def tls_context(self, alpn: Sequence[str]) -> ssl.SSLContext | None:
        """The server's TLS context with these application protocols (``http/1.1``, ``h2``); ``None`` when TLS is off.

        Raises:
            StorageError: a file that cannot be read or is not what it should be.
        """
        if not self.certificate:
            return None
        import ssl  # 9 ms, which only servers with TLS need

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(list(alpn))
        try:
            context.load_cert_chain(self.certificate, self.key or None, password=_no_password)
        except (OSError, ValueError) as exc:
            raise _unreadable(f"certificate {self.certificate}", exc, _PAIR) from exc
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as exc:
                raise _unreadable(f"client CA {self.client_ca}", exc, "PEM certificates") from exc
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def allows(self, authorization: str | None) -> bool:
        """Whether the value of the ``Authorization`` header carries the token. Takes the same time for every wrong one."""
        if not self.token:
            return True
        import hmac

        text = authorization or ""
        given = text[len(_BEARER) :].strip() if text[: len(_BEARER)].lower() == _BEARER else ""
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client checks of a server with TLS, and what it shows of itself; the default trusts the system's CAs and shows nothing.

    Attributes:
        ca: PEM file of the CAs that may have signed the server's certificate, instead of the system's.
        certificate: PEM file, the client's own certificate and its chain (mutual TLS).
        key: PEM file of its private key; the certificate's file when empty.
        token: sent with every request as ``Authorization: Bearer <token>``. Who listens on the way can read it where there is no TLS.

    Raises:
        UsageError: a key without a certificate, or a token that no header can carry.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        if self.key and not self.certificate:
            raise UsageError("TLS", "a client's key without its certificate", "both", "give the certificate too")
        _check_token(self.token)

    def __bool__(self) -> bool:
        return self != Credentials()

    def require_tls(self, url: str, *, tls: bool) -> None:
        """Raise `UsageError` for certificates that a URL without TLS has no use for."""
        if not tls and (self.ca or self.certificate):
            raise UsageError(f"URL {url!r}", "no TLS, and a CA or a certificate for it", "https:// or grpcs://")

    def authorization(self) -> dict[str, str]:
        """The header with the token; empty without one."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def tls_context(self) -> ssl.SSLContext:
        """For a client of HTTP.

        Raises:
            StorageError: a file that cannot be read or is not what it should be.
        """
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except (OSError, ValueError) as exc:
            raise _unreadable(f"CA {self.ca}", exc, "PEM certificates") from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key or None, password=_no_password)
            except (OSError, ValueError) as exc:
                raise _unreadable(f"certificate {self.certificate}", exc, _PAIR) from exc
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """CA, key and certificate as gRPC takes them.

        Raises:
            StorageError: a file that cannot be read, or that no TLS could use.
        """
        import ssl

        self.tls_context()  # gRPC says nothing about what is wrong with a file
        files = (self.ca or ssl.get_default_verify_paths().cafile, self.key or self.certificate, self.certificate)
        ca, key, certificate = (Path(file).read_bytes() if file else None for file in files)
        return ca, key, certificate


def _check_token(token: str) -> None:
    if any(not "!" <= char <= "~" for char in token):
        raise UsageError("token", "spaces, control characters or characters beyond ASCII", "printable ASCII without spaces")


def _no_password() -> str:
    """Instead of OpenSSL's prompt on the terminal."""
    raise ValueError("the private key is encrypted")


def _unreadable(thing: str, exc: BaseException, expected: str) -> StorageError:
    return StorageError(thing, getattr(exc, "strerror", None) or str(exc) or type(exc).__name__, expected)


def is_local(transport: asyncio.BaseTransport) -> bool:
    """The client is on this machine: loopback or a unix socket."""
    connected = transport.get_extra_info("socket")
    if connected is not None and connected.family == socket.AF_UNIX:
        return True
    peer = transport.get_extra_info("peername")
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (IndexError, TypeError, ValueError):
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
