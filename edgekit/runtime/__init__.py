"""Bundles at work: engines, sessions and the proof that they answer right here.

The names below are loaded when they are first used, as those of `edgekit` are: who only loads a bundle and runs it waits for no server, meter or probe.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.runtime._bench import BenchResult, Timing, bench
    from edgekit.runtime._control import change_model
    from edgekit.runtime._core import ResultObserver, RuntimeCore
    from edgekit.runtime._finalize import finalize
    from edgekit.runtime._found import version_key
    from edgekit.runtime._load import load
    from edgekit.runtime._loaded_model import LoadedModel
    from edgekit.runtime._receipts import Receipt, list_receipts, receipts_directory, write_receipt
    from edgekit.runtime._repository import ModelRepository
    from edgekit.runtime._repository_options import RepositoryOptions
    from edgekit.runtime._result_cache import CacheOptions
    from edgekit.runtime._sequence_table import SequenceLimits
    from edgekit.runtime._serve import RuntimeMetrics, serve_bundles
    from edgekit.runtime._session import Session
    from edgekit.runtime._states import Stream
    from edgekit.runtime._store import FolderStore
    from edgekit.runtime._verify import VerifyResult, verify_bundle
    from edgekit.runtime._versions import default_version
    from edgekit.runtime.engines import Engine, EngineOptions

__all__ = [
    "BenchResult",
    "CacheOptions",
    "Engine",
    "EngineOptions",
    "FolderStore",
    "LoadedModel",
    "ModelRepository",
    "Receipt",
    "RepositoryOptions",
    "ResultObserver",
    "RuntimeCore",
    "RuntimeMetrics",
    "SequenceLimits",
    "Session",
    "Stream",
    "Timing",
    "VerifyResult",
    "bench",
    "change_model",
    "default_version",
    "finalize",
    "list_receipts",
    "load",
    "receipts_directory",
    "serve_bundles",
    "verify_bundle",
    "version_key",
    "write_receipt",
]

# module -> the public names that it defines
_HOMES = {
    "_bench": ("BenchResult", "Timing", "bench"),
    "_control": ("change_model",),
    "_core": ("ResultObserver", "RuntimeCore"),
    "_finalize": ("finalize",),
    "_found": ("version_key",),
    "_load": ("load",),
    "_loaded_model": ("LoadedModel",),
    "_receipts": ("Receipt", "list_receipts", "receipts_directory", "write_receipt"),
    "_repository": ("ModelRepository",),
    "_repository_options": ("RepositoryOptions",),
    "_result_cache": ("CacheOptions",),
    "_sequence_table": ("SequenceLimits",),
    "_serve": ("RuntimeMetrics", "serve_bundles"),
    "_session": ("Session",),
    "_states": ("Stream",),
    "_store": ("FolderStore",),
    "_verify": ("VerifyResult", "verify_bundle"),
    "_versions": ("default_version",),
    "engines": ("Engine", "EngineOptions"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
