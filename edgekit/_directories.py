"""Where EdgeKit keeps its own files. Nothing is made by asking."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache_directory", "state_directory"]


def cache_directory() -> Path:
    """What can be made again: ``$EDGEKIT_CACHE``, else ``$XDG_CACHE_HOME/edgekit``, else ``~/.cache/edgekit``."""
    from pathlib import Path  # a start that asks for neither is spared 5 ms

    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def state_directory() -> Path:
    """What cannot be made again: ``$EDGEKIT_STATE``, else ``$XDG_STATE_HOME/edgekit``, else ``~/.local/state/edgekit``."""
    from pathlib import Path  # a start that asks for neither is spared 5 ms

    if chosen := os.environ.get("EDGEKIT_STATE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgekit"
