"""The command ``edgekit``. Each command parses, calls one public function and prints."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    if importlib.util.find_spec("typer") is None:
        sys.stderr.write("edgekit: the command line needs the package 'typer'; pip install 'edgekit-ml[cli]'\n")
        sys.exit(1)
    from edgekit.cli._app import run

    sys.exit(run(sys.argv[1:], own_process=True))
