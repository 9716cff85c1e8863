"""Options of servers that say who may talk to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import StorageError, UsageError
from edgekit.protocol import Access

__all__ = ["Certificate", "ClientCa", "Key", "TokenFile", "access_of"]

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


def access_of(certificate: str, key: str, client_ca: str, token_file: str) -> Access:
    """What the options ask of clients; nothing when none was given.

    Raises:
        StorageError: the token's file cannot be read.
        UsageError: it is empty, or options that do not go together.
    """
    token = ""
    if token_file:
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            found = f"cannot be read ({getattr(exc, 'strerror', None) or exc})"
            raise StorageError(f"--token-file {token_file}", found, "a text file with the token") from exc
        if not token:
            raise UsageError(f"--token-file {token_file}", "empty", "a token, for example of `openssl rand -hex 32`")
    return Access(certificate, key, client_ca, token)
