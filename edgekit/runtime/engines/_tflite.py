"""LiteRT (TFLite): one ``.tflite`` file on the CPU through XNNPACK."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgekit.bundle import TensorBinding, TensorSpec
from edgekit.errors import EngineError, EnvironmentMissingError
from edgekit.runtime.engines._base import Engine, usable_cpus

__all__ = ["ENGINES", "TfliteEngine"]


class TfliteEngine(Engine):
    """A LiteRT interpreter, driven by the names of the file's signature. An interpreter runs one request at a time.

    Reads from `Artifact.options`: ``threads``.
    """

    name: ClassVar[str] = "tflite"
    concurrent: ClassVar[bool] = False

    @classmethod
    def version(cls) -> str:
        """Version of the installed ai-edge-litert package."""
        _import()
        return importlib.metadata.version("ai-edge-litert")

    def describe(self) -> dict[str, str]:
        """Adds ``device`` and ``threads``."""
        return {**super().describe(), "device": "CPU", "threads": str(self._thread_count())}

    def _thread_count(self) -> int:
        # LiteRT's own default is one thread; every other engine's is all CPUs.
        return self.threads() or usable_cpus()

    def _load(self) -> None:
        if self.options.accelerator not in ("", "cpu"):
            raise EngineError(f"engine {self.name}", f"no accelerator {self.options.accelerator!r} in Python's LiteRT", "cpu", "choose cpu")
        interpreter = _import().Interpreter(model_path=str(self.path), num_threads=self._thread_count())
        interpreter.allocate_tensors()
        inputs, outputs = _tensor_indices(interpreter)
        self._inputs = [(binding.native_name, self._index(inputs, binding.native_name)) for binding in self.artifact.inputs]
        self._outputs = [(binding.native_name, self._index(outputs, binding.native_name)) for binding in self.artifact.outputs]
        self._empty = {
            binding.native_name: np.zeros(_native_shape(binding, spec), binding.native_dtype)
            for binding, spec in zip(self.artifact.outputs, self.signature.outputs, strict=True)
            if 0 in spec.shape
        }
        self._is_open = not all(spec.is_static for spec in self.signature.inputs)
        self._sizes: list[tuple[int, ...]] = []
        self._interpreter: Any = interpreter

    def _index(self, indices: Mapping[str, int], name: str) -> int:
        if name not in indices:
            raise self._no_tensor(name, indices)
        return indices[name]

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        interpreter = self._interpreter
        if self._is_open:
            self._resize([inputs[name].shape for name, _ in self._inputs])
        for name, index in self._inputs:
            if inputs[name].size:  # LiteRT refuses to set or get a tensor without elements
                interpreter.set_tensor(index, inputs[name])
        interpreter.invoke()
        return {name: self._empty[name].copy() if name in self._empty else interpreter.get_tensor(index) for name, index in self._outputs}

    def _resize(self, sizes: list[tuple[int, ...]]) -> None:
        """Make room for inputs of these shapes; nothing to do when the last ones were the same."""
        if sizes == self._sizes:
            return
        self._sizes = []  # should one of the next calls fail, the next request tries again
        for (_, index), shape in zip(self._inputs, sizes, strict=True):
            self._interpreter.resize_tensor_input(index, shape, strict=True)
        self._interpreter.allocate_tensors()
        self._sizes = sizes

    def _close(self) -> None:
        self._interpreter = None


def _native_shape(binding: TensorBinding, spec: TensorSpec) -> tuple[int, ...]:
    """Shape in the file of a tensor whose sizes are all known."""
    shape = tuple(int(size) for size in spec.shape)
    return shape if binding.perm is None else tuple(shape[axis] for axis in binding.perm)


def _tensor_indices(interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor indices by signature name, or by tensor name where the file has no signature."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        return (
            {name: detail["index"] for name, detail in runner.get_input_details().items()},
            {name: detail["index"] for name, detail in runner.get_output_details().items()},
        )
    return (
        {detail["name"]: detail["index"] for detail in interpreter.get_input_details()},
        {detail["name"]: detail["index"] for detail in interpreter.get_output_details()},
    )


def _import() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("engine tflite", "ai-edge-litert", "tflite") from exc
    return interpreter


ENGINES = {"tflite": TfliteEngine}
