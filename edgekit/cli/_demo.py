"""``edgekit demo``: all of it, on real input."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("demo")(demo)


def demo(
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Where bundles, pictures and the report go.")] = "out/demo",
    keep: Annotated[bool, typer.Option("--keep", help="Leave collector, Triton, edge server and router running until Ctrl-C.")] = False,
) -> None:
    """Build, prove, serve, route and watch a text recogniser on this machine."""
    raise NotImplementedError
