"""EdgeKit: build a model for an edge device, prove it, run it, and route requests between device and cloud.

The names below are loaded when they are first used: importing `edgekit` costs nothing, and no engine or toolchain is imported before a
call needs it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from edgekit._version import __version__

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.converters import build
    from edgekit.errors import EdgeKitError
    from edgekit.router import Router
    from edgekit.runtime import Session, load

# ONNX Runtime reports its use to its maker unless told otherwise before it is imported (Privacy.md of its package). What a device sends is its
# operator's choice: set the variable to 0 to allow it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Bundle", "EdgeKitError", "Router", "Session", "__version__", "build", "load"]

_HOMES = {
    "Bundle": "edgekit.bundle",
    "EdgeKitError": "edgekit.errors",
    "Router": "edgekit.router",
    "Session": "edgekit.runtime",
    "build": "edgekit.converters",
    "load": "edgekit.runtime",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
