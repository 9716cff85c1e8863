"""Emitters by engine name; each toolchain is imported in the call that needs it."""

from __future__ import annotations

import importlib

from edgekit.converters._emitter import Emitter
from edgekit.errors import UnknownNameError

__all__ = ["EMITTER_MODULES", "ISOLATED", "emitter_for"]

# engine -> module that defines `EMITTERS[engine]`. A new target is its module and one line here.
EMITTER_MODULES = {
    "onnxruntime": "edgekit.converters._onnxruntime",
    "openvino": "edgekit.converters._openvino",
    "tflite": "edgekit.converters.tflite",
    "coreml": "edgekit.converters.coreml",
    "tensorrt": "edgekit.converters.tensorrt",
    "tensorrt-rtx": "edgekit.converters.tensorrt",
}

# Engines whose toolchain and interpreter run in a process of their own. ONNX Runtime runs the source model here anyway; NVIDIA's builder has its own child.
ISOLATED = frozenset({"openvino", "tflite", "coreml"})


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
