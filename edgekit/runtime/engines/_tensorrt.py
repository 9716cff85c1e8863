"""TensorRT (8.5 to 11) and TensorRT-RTX: tensor-address API on one CUDA stream, memory by the driver API.

An ONNX artifact is built for the GPU here at load and kept in the cache; a ready engine is loaded as it is. Written to NVIDIA's documented API
(``num_io_tensors``, ``get_tensor_mode``, ``set_input_shape``, ``set_tensor_address``, ``execute_async_v3``, all there since 8.5).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import BuildError, EngineError, EnvironmentMissingError, UnsupportedOperatorsError
from edgekit.runtime._cuda import Cuda, DeviceBuffer, HostBuffer
from edgekit.runtime._tensorrt_build import BuiltEngine, cached_engine, find_package, forget_engine
from edgekit.runtime.engines._base import NO_TARGETS, Engine

__all__ = ["ENGINES", "TensorRTEngine", "TensorRTRTXEngine"]

_log = logging.getLogger(__name__)

# TensorRT's `DataType` by name. Its own `nptype` needs NumPy names that newer NumPy dropped.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class TensorRTEngine(Engine):
    """A deserialised engine with one execution context; requests go one at a time.

    Tensors go through page-locked buffers of the engine's own. With `EngineOptions.cuda_graphs`, copies and kernels of a run are recorded once the same
    shapes came before, and replayed while the shapes stay; a network that cannot be recorded runs as without.
    Reads from `Artifact.options`: ``recipe`` (file beside an ONNX artifact). TensorRT 8 has no 64-bit integers at its borders: they are
    narrowed to 32 bits, and a value that does not fit is an error.
    """

    name: ClassVar[str] = "tensorrt"

    @classmethod
    def version(cls) -> str:
        """Version of the installed package."""
        return str(_import(cls.name).__version__)

    def describe(self) -> dict[str, str]:
        """Adds ``device`` (the GPU), ``compute_capability``, ``cuda``, ``engine_key``, ``built`` (``now``, ``cache`` or ``ahead``), ``pinned`` and ``cuda_graph``."""
        built = "ahead" if self._built is None else "now" if self._built.built else "cache"
        return {
            **super().describe(),
            "device": self._cuda.device.name,
            "compute_capability": self._cuda.device.compute_capability,
            "cuda": self._cuda.device.cuda,
            "engine_key": self._built.key if self._built is not None else "",
            "generation": self._built.report.generation if self._built is not None else "",
            "built": built,
            "pinned": "yes" if all(buffer.pinned for buffer in self._staging.values()) else "no",
            "cuda_graph": self._graph_state,
        }

    def _load(self) -> None:
        self._trt = _import(self.name)
        self._cuda = self._open_cuda()
        self._built: BuiltEngine | None = None
        try:
            self._engine = self._deserialise(self._engine_file())
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"engine {self.name}", "no execution context", "", "close other processes that use the GPU's memory")
            self._bind()
        except BaseException:
            self._cuda.close()
            raise

    def _open_cuda(self) -> Cuda:
        return Cuda()

    def _engine_file(self) -> Path:
        """The engine to load: the artifact, or what its ONNX is built to here."""
        if self.path.suffix != ".onnx":
            return self.path
        recipe = self.path.parent / self.artifact.options.get("recipe", "recipe.json")
        cache = Path(self.options.cache_dir) if self.options.cache_dir else None
        try:
            self._built = cached_engine(self.name, recipe, self._cuda, cache)
        except (BuildError, UnsupportedOperatorsError) as exc:
            # A session falls back on an engine's error, not on a build's.
            raise EngineError(exc.thing, exc.found, exc.expected, exc.next_step) from exc
        return Path(self._built.path)

    def _deserialise(self, path: Path) -> Any:
        logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(logger)
        # There is no preflight check for engine compatibility: deserialise and see (TensorRT documentation, Engine Compatibility).
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is not None:
            return engine
        if self._built is not None:
            forget_engine(path)
        raise EngineError(
            f"engine {self.name}",
            f"{path.name} is not for TensorRT {self._trt.__version__} on {self._cuda.device.name} ({self._cuda.device.compute_capability})",
            "an engine that was built for them",
            "run edgekit finalize again" if self._built is not None else "build the bundle again with this version",
        )

    def _bind(self) -> None:
        self._types: dict[str, np.dtype[Any]] = {}
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
            if kind not in _DTYPES:
                raise EngineError(f"tensor {name!r}", f"type {kind}", f"one of {', '.join(_DTYPES)}", "cast it inside the model")
            self._types[name] = np.dtype(_DTYPES[kind])
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs).append(name)
        wanted = ({b.native_name for b in self.artifact.inputs}, {b.native_name for b in self.artifact.outputs})
        if (set(self._inputs), set(self._outputs)) != wanted:
            found = f"inputs {', '.join(self._inputs)} and outputs {', '.join(self._outputs)}"
            raise EngineError(f"engine {self.name}", found, "those of the manifest", "build the bundle again")
        self._buffers = {name: DeviceBuffer(self._cuda) for name in self._types}
        self._staging = {name: HostBuffer(self._cuda) for name in self._types}
        self._staged: dict[str, np.ndarray] = {}
        self._arranged: dict[str, tuple[int, ...]] | None = None
        self._graph = 0
        self._graph_state = "waiting" if self.options.cuda_graphs else "off"  # then "recorded" or "refused"

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        self._cuda.enter()
        sent = {name: self._native(name, inputs[name]) for name in self._inputs}
        again = self._arrange({name: array.shape for name, array in sent.items()})
        for name, array in sent.items():
            np.copyto(self._staged[name], array)
        if self._graph:
            self._cuda.replay(self._graph)
        else:
            self._enqueue()
        self._cuda.wait()
        if again and self._graph_state == "waiting":
            self._record()  # after a run with these shapes, as TensorRT asks for; recording runs nothing
        # The signature's dtype again, where TensorRT 8 narrowed it.
        results = {}
        for binding in self.artifact.outputs:
            name = binding.native_name
            results[name] = targets[name] if name in targets else np.empty(self._staged[name].shape, np.dtype(binding.native_dtype))
            np.copyto(results[name], self._staged[name])
        return results

    def _arrange(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Tell the context shapes and addresses. True, and nothing to do, when the shapes are those of the last run."""
        if shapes == self._arranged:
            return True
        self._drop_graph()
        self._arranged = None  # should one of the next calls fail, the next request tries again
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise EngineError(
                    f"input {name!r}", f"shape {list(shape)}", "a shape that the engine was built for", "give it another --shape"
                )
            self._place(name, shape)
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise EngineError(
                    f"output {name!r}", f"shape {list(shape)} depends on the data", "sizes that inputs decide", "run the fallback"
                )
            self._place(name, shape)
        self._arranged = shapes
        return False

    def _place(self, name: str, shape: tuple[int, ...]) -> None:
        self._staged[name] = self._staging[name].array(shape, self._types[name])
        self._context.set_tensor_address(name, self._buffers[name].reserve(self._staged[name].nbytes))

    def _enqueue(self) -> None:
        """Queue copies in, the run, and copies out."""
        for name in self._inputs:
            self._cuda.copy_in(self._buffers[name], self._staged[name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"engine {self.name}", "the run was refused", "", "check the log of TensorRT")
        for name in self._outputs:
            self._cuda.copy_out(self._staged[name], self._buffers[name])

    def _record(self) -> None:
        try:
            self._graph = self._cuda.record(self._enqueue)
            self._graph_state = "recorded"
        except EngineError as exc:
            self._graph_state = "refused"
            _log.warning("%s: runs without a CUDA graph: %s", self.path.name, exc)

    def _drop_graph(self) -> None:
        if self._graph:
            self._cuda.forget(self._graph)
            self._graph, self._graph_state = 0, "waiting"

    def _native(self, name: str, array: np.ndarray) -> np.ndarray:
        wanted = self._types[name]
        if array.dtype == np.int64 and wanted == np.int32 and array.size:
            limits = np.iinfo(np.int32)
            if array.min() < limits.min or array.max() > limits.max:
                raise EngineError(f"input {name!r}", "values beyond 32 bits", "int32, all that this TensorRT takes", "run the fallback")
        return np.ascontiguousarray(array, dtype=wanted).reshape(array.shape)

    def _close(self) -> None:
        self._cuda.enter()
        self._drop_graph()
        self._staged = {}
        for buffer in self._buffers.values():
            buffer.release()
        for staged in self._staging.values():
            staged.release()
        self._context = self._engine = self._runtime = None
        self._cuda.close()


class TensorRTRTXEngine(TensorRTEngine):
    """The same API on TensorRT-RTX; the engine is specialised for the GPU when its context is created."""

    name: ClassVar[str] = "tensorrt-rtx"


def _import(engine: str) -> Any:
    package = find_package(engine)
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as exc:
        raise EnvironmentMissingError(
            f"engine {engine}", f"{package} does not load: {exc}", "", "install the libraries that it needs"
        ) from exc


ENGINES = {"tensorrt": TensorRTEngine, "tensorrt-rtx": TensorRTRTXEngine}
