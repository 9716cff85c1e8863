"""Emitters by engine name; each toolchain is imported in the call that needs it."""

from __future__ import annotations

import importlib

from edgekit.converters._emitter import Emitter
from edgekit.errors import UnknownNameError

__all__ = ["EMITTER_MODULES", "emitter_for", "process_of"]

# engine -> module that defines `EMITTERS[engine]`. A new target is its module and one line here.
EMITTER_MODULES = {
    "onnxruntime": "edgekit.converters._onnxruntime",
    "openvino": "edgekit.converters._openvino",
    "tflite": "edgekit.converters.tflite",
    "coreml": "edgekit.converters.coreml",
    "tensorrt": "edgekit.converters.tensorrt",
    "tensorrt-rtx": "edgekit.converters.tensorrt",
}

# Engines whose work is done in the worker process of another: what they need beside ONNX Runtime is light, or has its own child.
_SHARED_PROCESSES = {"tensorrt": "onnxruntime", "tensorrt-rtx": "onnxruntime"}


def process_of(engine: str) -> str:
    """Name of the worker process that an engine's toolchain runs in."""
    return _SHARED_PROCESSES.get(engine, engine)


def emitter_for(engine: str) -> Emitter:
    """The emitter of an engine.

    Raises:
        UnknownNameError: no target of that name.
    """
    module = EMITTER_MODULES.get(engine)
    if module is None:
        raise UnknownNameError("engine", engine, EMITTER_MODULES)
    found: Emitter = importlib.import_module(module).EMITTERS[engine]
    return found
