"""Engines by name. Importing this package imports no engine: each is loaded in the call that needs it."""

from __future__ import annotations

import importlib
import os

from edgekit.bundle import Artifact, Signature
from edgekit.errors import UnknownNameError
from edgekit.runtime.engines._base import Engine, EngineOptions, one_line, usable_cpus

__all__ = ["ENGINE_MODULES", "Engine", "EngineOptions", "engine_class", "one_line", "open_engine", "usable_cpus"]

# name in a manifest -> module that defines it in `ENGINES`. A new engine is its module and one line here.
ENGINE_MODULES = {
    "onnxruntime": "edgekit.runtime.engines._onnxruntime",
    "openvino": "edgekit.runtime.engines._openvino",
    "tflite": "edgekit.runtime.engines._tflite",
    "coreml": "edgekit.runtime.engines._coreml",
    "tensorrt": "edgekit.runtime.engines._tensorrt",
    "tensorrt-rtx": "edgekit.runtime.engines._tensorrt",
    "null": "edgekit.runtime.engines._null",
}


def engine_class(name: str) -> type[Engine]:
    """The engine class registered as ``name``; its package need not be installed.

    Raises:
        UnknownNameError: no such engine.
    """
    module = ENGINE_MODULES.get(name)
    if module is None:
        raise UnknownNameError("engine", name, ENGINE_MODULES)
    found: type[Engine] = importlib.import_module(module).ENGINES[name]
    return found


def open_engine(
    path: str | os.PathLike[str], artifact: Artifact, signature: Signature, options: EngineOptions | None = None, content: str = ""
) -> Engine:
    """Load one artifact with the engine it names. Arguments and errors are those of `Engine`."""
    return engine_class(artifact.engine)(path, artifact, signature, options, content)
