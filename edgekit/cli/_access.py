"""Options that say who may talk to a server, and what the router shows to the servers that it asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import StorageError, UsageError
from edgekit.protocol import Access, Credentials, InferenceClient, connect, is_server_url

__all__ = [
    "Certificate",
    "ClientCa",
    "CloudCa",
    "CloudCertificate",
    "CloudKey",
    "CloudTokenFile",
    "EdgeCa",
    "EdgeCertificate",
    "EdgeKey",
    "EdgeTokenFile",
    "Key",
    "TokenFile",
    "access_of",
    "credentials_of",
    "servers",
]

Certificate = Annotated[
    str, typer.Option("--tls-certificate", metavar="FILE", help="PEM certificate (and chain) of the server: turns TLS on.")
]
Key = Annotated[str, typer.Option("--tls-key", metavar="FILE", help="PEM private key; in the certificate's file when not given.")]
ClientCa = Annotated[
    str, typer.Option("--tls-client-ca", metavar="FILE", help="Clients must show a certificate that one of these has signed.")
]
TokenFile = Annotated[
    str, typer.Option(metavar="FILE", help="Holds the bearer token that every request must carry; health answers without it.")
]

_CA = "PEM CAs that may have signed the certificate of the {} server, instead of the system's."
_CERTIFICATE = "PEM certificate that the {} server asks its clients for."
_KEY = "PEM private key of that certificate; in the same file when not given."
_TOKEN_HELP = "Holds the bearer token of the {0} server; or put the token into EDGEKIT_{1}_TOKEN."  # noqa: S105 - a help text
EdgeCa = Annotated[str, typer.Option("--edge-ca", metavar="FILE", help=_CA.format("edge"))]
EdgeCertificate = Annotated[str, typer.Option("--edge-certificate", metavar="FILE", help=_CERTIFICATE.format("edge"))]
EdgeKey = Annotated[str, typer.Option("--edge-key", metavar="FILE", help=_KEY)]
EdgeTokenFile = Annotated[str, typer.Option("--edge-token-file", metavar="FILE", help=_TOKEN_HELP.format("edge", "EDGE"))]
CloudCa = Annotated[str, typer.Option("--cloud-ca", metavar="FILE", help=_CA.format("cloud"))]
CloudCertificate = Annotated[str, typer.Option("--cloud-certificate", metavar="FILE", help=_CERTIFICATE.format("cloud"))]
CloudKey = Annotated[str, typer.Option("--cloud-key", metavar="FILE", help=_KEY)]
CloudTokenFile = Annotated[str, typer.Option("--cloud-token-file", metavar="FILE", help=_TOKEN_HELP.format("cloud", "CLOUD"))]


def access_of(certificate: str, key: str, client_ca: str, token_file: str) -> Access:
    """What the options ask of clients; nothing when none was given.

    Raises:
        StorageError: the token's file cannot be read.
        UsageError: it is empty, or options that do not go together.
    """
    return Access(certificate, key, client_ca, _token("--token-file", token_file))


def credentials_of(tier: str, ca: str, certificate: str, key: str, token_file: str) -> Credentials:
    """What the router shows to the servers of a tier (``edge``, ``cloud``): options ``--TIER-...``, and the token in ``EDGEKIT_TIER_TOKEN``.

    Raises:
        StorageError: the token's file cannot be read.
        UsageError: it is empty, two tokens, or options that do not go together.
    """
    flag, variable = f"--{tier}-token-file", f"EDGEKIT_{tier.upper()}_TOKEN"
    token = os.environ.get(variable, "").strip()
    if token and token_file:
        raise UsageError(flag, f"given, and {variable} is set", "one of them", f"unset {variable}")
    return Credentials(ca, certificate, key, token or _token(flag, token_file))


@contextlib.contextmanager
def servers(urls: Iterable[str], tier: str, credentials: Credentials) -> Iterator[list[str | InferenceClient]]:
    """The servers of a tier that want credentials as clients, which are closed at the end; everything else as it is.

    Raises:
        UsageError: credentials, and nothing to show them to.
    """
    with contextlib.ExitStack() as opened:
        targets: list[str | InferenceClient] = []
        for url in urls:
            if not (credentials and is_server_url(url)):
                targets.append(url)
                continue
            client = connect(url, credentials)
            opened.callback(client.close)
            targets.append(client)
        if credentials and all(isinstance(target, str) for target in targets):
            raise UsageError(f"--{tier}-*", "credentials, and no server to show them to", f"--{tier} with a server's URL")
        yield targets


def _token(flag: str, path: str) -> str:
    """The token in a file; empty without one."""
    if not path:
        return ""
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        found = f"cannot be read ({getattr(exc, 'strerror', None) or exc})"
        raise StorageError(f"{flag} {path}", found, "a text file with the token") from exc
    if not token:
        raise UsageError(f"{flag} {path}", "empty", "a token, for example of `openssl rand -hex 32`")
    return token
