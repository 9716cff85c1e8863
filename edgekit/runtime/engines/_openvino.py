"""OpenVINO: an IR (``.xml`` with its ``.bin``) or an ONNX file, on CPU, GPU or NPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple

import numpy as np

from edgekit.errors import EngineError, EnvironmentMissingError
from edgekit.runtime.engines._base import NO_TARGETS, Engine, usable_cpus

__all__ = ["ENGINES", "OpenVinoEngine", "inference_precision"]

DEVICES = {"": "CPU", "cpu": "CPU", "gpu": "GPU", "npu": "NPU", "auto": "AUTO"}


class _Slot(NamedTuple):
    """One infer request and the output tensors that it was made with, by index; none for an output whose shape is open."""

    request: Any
    own_outputs: dict[int, Any]


class OpenVinoEngine(Engine):
    """A compiled model with a pool of infer requests: one request is not re-entrant, several run side by side.

    The pool has as many requests as the device calls optimal for the hint; a thread that finds it empty waits. Threads that each run a request of the pool
    answered 2,100-2,700 requests a second where `AsyncInferQueue` answered 1,500-1,700 (angle classifier, throughput hint, two cores, OpenVINO
    2026.4.1), so there is no queue beside the pool. With a cache folder the compiled model is kept there.

    Under the latency hint OpenVINO makes one stream, and a second run waits for the first. `EngineOptions.side_by_side` asks for more, as many as there are CPUs for; they are
    not pinned, since a pinned run waits for whatever else its CPU does. (The same model and machine, one thread a run: two callers together 1,490 runs a second on one stream and
    2,700 on two; one caller alone 1,460 and 1,340, for the hand-over to the stream's thread.)
    Reads from `Artifact.options`: ``threads``.
    """

    name: ClassVar[str] = "openvino"
    concurrent: ClassVar[bool] = True  # the pool is the lock

    @classmethod
    def version(cls) -> str:
        """Version of the installed package."""
        from importlib import metadata  # not worth its 30 ms of import before somebody asks

        _import()
        return metadata.version("openvino")

    def describe(self) -> dict[str, str]:
        """Adds ``device`` (what really executes), ``threads``, ``arithmetic`` (the precision that it computes in), ``requests`` (size of the pool) and ``cache``."""
        return {**super().describe(), **self._facts}

    def _load(self) -> None:
        openvino = _import()
        self._tensor = openvino.Tensor
        core = openvino.Core()
        device = self._device(core)
        # Compiled from the path: a model that comes from the cache is then not even read (measured: 156 against 284 ms).
        compiled = core.compile_model(self.file, device, self._properties(core, device))
        self._inputs = [self._index(compiled.inputs, binding.native_name) for binding in self.artifact.inputs]
        self._outputs = [self._index(compiled.outputs, binding.native_name) for binding in self.artifact.outputs]
        self._input_names = [binding.native_name for binding in self.artifact.inputs]
        self._output_names = [binding.native_name for binding in self.artifact.outputs]
        self._compiled: Any = compiled
        self._pool: SimpleQueue[_Slot | None] = SimpleQueue()  # None once closed
        requests = max(int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")), 1)
        fixed = [index for index in self._outputs if compiled.outputs[index].get_partial_shape().is_static]
        for _ in range(requests):
            request = compiled.create_infer_request()
            self._pool.put(_Slot(request, {index: request.get_output_tensor(index) for index in fixed}))
        self._facts = {
            "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "threads": str(self.threads() if self.options.hint == "latency" else self.options.threads),
            "arithmetic": str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
            "requests": str(requests),
            "cache": self._cache_state(compiled),
        }

    def _cache_state(self, compiled: Any) -> str:
        if not self.options.cache_dir:
            return "off"
        return "hit" if compiled.get_property("LOADED_FROM_CACHE") else "stored"

    def _total_threads(self) -> int:
        """CPU threads of all requests together, which is what OpenVINO is told; 0 for its own choice."""
        return self.threads() * self._streams() if self.options.hint == "latency" else self.options.threads

    def _streams(self) -> int:
        """Runs side by side under the latency hint."""
        threads = self.threads()
        return max(1, min(self.options.side_by_side, usable_cpus() // threads)) if threads else 1

    def _index(self, ports: Sequence[Any], name: str) -> int:
        for index, port in enumerate(ports):
            if name in port.get_names():
                return index
        raise self._no_tensor(name, [alias for port in ports for alias in port.get_names()])

    def _device(self, core: Any) -> str:
        device = DEVICES.get(self.options.accelerator)
        if device in {"CPU", "AUTO"}:
            return device  # always there; asking loads the other devices' plugins (26 ms)
        if device is None or not any(name.split(".")[0] == device for name in core.available_devices):
            raise EngineError(
                f"engine {self.name}",
                f"no device here for accelerator {self.options.accelerator!r}",
                f"one of {', '.join(core.available_devices)}",
                "choose cpu, or install the device's driver",
            )
        return device

    def _properties(self, core: Any, device: str) -> dict[str, Any]:
        properties: dict[str, Any] = {"PERFORMANCE_HINT": self.options.hint.upper()}
        if device != "AUTO":
            capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
            properties["INFERENCE_PRECISION_HINT"] = inference_precision(self.artifact.precision, capabilities)
        if self._total_threads() and device == "CPU":
            properties["INFERENCE_NUM_THREADS"] = self._total_threads()
            if self.options.hint == "latency" and self._streams() > 1:
                properties |= {"NUM_STREAMS": self._streams(), "ENABLE_CPU_PINNING": False}
        if self.options.cache_dir:
            properties["CACHE_DIR"] = os.path.join(self.options.cache_dir, "openvino")
        return properties

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        pool = self._pool
        slot = pool.get()
        if slot is None:  # closed meanwhile; the next one who waits must learn it too
            pool.put(None)
            raise self._closed_error()
        request, own_outputs = slot
        bound = [
            (index, targets[name])
            for name, index in zip(self._output_names, self._outputs, strict=True)
            if name in targets and index in own_outputs
        ]
        try:
            held = []  # keeps converted copies alive until the run is over: the request reads their memory
            for name, index in zip(self._input_names, self._inputs, strict=True):
                array = inputs[name]
                # A tensor can share only writable, C-ordered memory; sharing saves a copy (measured: 0.67 against 0.80 ms a run).
                shared = array.flags.c_contiguous and array.flags.writeable
                array = array if shared else np.ascontiguousarray(array)
                held.append(self._tensor(array, shared_memory=shared))
                request.set_input_tensor(index, held[-1])
            for index, array in bound:
                request.set_output_tensor(index, self._tensor(array, shared_memory=True))
            request.infer()
            return {
                name: targets[name] if name in targets and index in own_outputs else np.array(request.get_output_tensor(index).data)
                for name, index in zip(self._output_names, self._outputs, strict=True)
            }
        finally:
            for index, _ in bound:  # the caller's memory is not ours after the run
                request.set_output_tensor(index, own_outputs[index])
            pool.put(slot)

    def _close(self) -> None:
        # Idle requests go now, one that runs when its thread puts it back and the pool is dropped with the engine.
        while not self._pool.empty():
            self._pool.get_nowait()
        self._pool.put(None)
        self._compiled = None


def inference_precision(precision: str, capabilities: Sequence[str]) -> str:
    """The arithmetic to ask a device for.

    An fp32 artifact is computed in f32: left alone, a CPU with AMX or AVX512-BF16 takes bfloat16, which has 8 significant bits. An fp16
    artifact is computed in f16 where the device has it, else in f32; asked for f16, a CPU without it takes bfloat16 (measured,
    OpenVINO 2026.4.1).
    """
    return "f16" if precision == "fp16" and "FP16" in capabilities else "f32"


def _import() -> Any:
    try:
        import openvino
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("engine openvino", "openvino", "openvino") from exc
    return openvino


ENGINES = {"openvino": OpenVinoEngine}
