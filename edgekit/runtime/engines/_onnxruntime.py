"""ONNX Runtime: one ``.onnx`` file, on the CPU or on the execution provider of a named accelerator."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.bundle import TensorSpec
from edgekit.errors import EngineError, EnvironmentMissingError
from edgekit.runtime.engines._base import NO_TARGETS, Engine

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BINDING_BYTES", "ENGINES", "OnnxRuntimeEngine", "plans_memory"]

# Name in a profile -> execution providers that serve it, best first. The CPU provider is always added behind.
PROVIDERS = {
    "": (),
    "cpu": (),
    "gpu": ("CUDAExecutionProvider", "MIGraphXExecutionProvider", "DmlExecutionProvider", "CoreMLExecutionProvider"),
    "ane": ("CoreMLExecutionProvider",),
    "npu": ("QNNExecutionProvider", "VitisAIExecutionProvider", "OpenVINOExecutionProvider"),
}
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3  # log severity: 0 verbose .. 4 fatal
_LARGEST_KEPT_BYTES = 2**30  # protobuf ends at 2 GiB, and an optimised graph may be larger than its source
_PLANNED_BYTES = 2**20

BINDING_BYTES = 2**18
"""From this many bytes on, outputs that the caller owns are bound instead of copied.

Measured on ONNX Runtime 1.31.1, one thread, a Relu of n floats, `run` and a copy against I/O binding: 16 bytes 5.9 / 9.7 us, 1 MiB 56 / 39 us,
16 MiB 3.4 / 1.4 ms. Without outputs of the caller's own `run` was never slower than binding (angle classifier 0.97 / 1.03 ms).
"""


class OnnxRuntimeEngine(Engine):
    """An ``InferenceSession`` with every graph optimisation on. Runs of several threads go side by side: a session is re-entrant.

    Reads from `Artifact.options`: ``threads``. With a cache folder the optimised graph is kept there, and later loads skip the optimisation.

    Memory: the arena stays on, without it the text detector takes 1.26 times as long; the memory pattern goes by `plans_memory`.
    """

    name: ClassVar[str] = "onnxruntime"
    concurrent: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    @classmethod
    def version(cls) -> str:
        """Version of the installed package, whichever of its builds it is."""
        return str(_import().__version__)

    def describe(self) -> dict[str, str]:
        """Adds ``device`` (the execution providers in use), ``threads`` (0: the engine's choice) and ``cache`` (``off``, ``hit`` or ``stored``)."""
        facts = {"device": ",".join(self._providers), "threads": str(self.threads()), "cache": self._cache}
        return {**super().describe(), **facts}

    def _load(self) -> None:
        self._ort = _import()
        self._providers = self._choose(self._ort.get_available_providers())
        self._session, self._cache = self._open_session()
        if self._session.get_providers()[0] != self._providers[0]:
            # ONNX Runtime falls back to the CPU by itself when a provider does not start; the profile's chain decides here, and says so.
            raise EngineError(f"engine {self.name}", f"{self._providers[0]} does not start", "", "check the driver, or choose cpu")
        for bindings, values in (
            (self.artifact.inputs, self._session.get_inputs()),
            (self.artifact.outputs, self._session.get_outputs()),
        ):
            known = {value.name for value in values}
            for binding in bindings:
                if binding.native_name not in known:
                    raise self._no_tensor(binding.native_name, known)
        self._output_names = [binding.native_name for binding in self.artifact.outputs]

    def _open_session(self) -> tuple[Any, str]:
        # What other providers compile cannot be written as a graph.
        if not self.options.cache_dir or self._providers != [_CPU] or not _can_be_kept(self.path):
            return self._new_session(self.file), "off"
        from pathlib import Path

        from edgekit.runtime.engines._kept import cpu_features, entry_key, load_kept

        key = entry_key(self.path, self.content, self.version(), cpu_features())
        return load_kept(
            Path(self.options.cache_dir) / "onnxruntime" / key,
            "model.onnx",
            lambda written: self._new_session(self.file, written=written),
            lambda path: self._new_session(path, ready=True),
        )

    def _new_session(self, path: str | os.PathLike[str], *, written: Path | None = None, ready: bool = False) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads()
        options.inter_op_num_threads = 1  # execution is sequential; more would only idle
        options.log_severity_level = _ERRORS_ONLY
        options.enable_mem_pattern = plans_memory(self.signature.inputs)
        if written is not None:
            options.optimized_model_filepath = str(written)
        if ready:
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._ort.InferenceSession(os.fspath(path), options, providers=self._providers)

    def _choose(self, available: list[str]) -> list[str]:
        wanted = PROVIDERS.get(self.options.accelerator)
        found = [provider for provider in wanted or () if provider in available][:1]
        if wanted is None or (wanted and not found):
            raise EngineError(
                f"engine {self.name}",
                f"no execution provider here for accelerator {self.options.accelerator!r}",
                f"one of {', '.join(available)}",
                "choose cpu, or install the onnxruntime package of that accelerator",
            )
        return [*found, _CPU]

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        if targets and _gain_by_binding(inputs, targets):
            return self._infer_bound(inputs, targets)
        return dict(zip(self._output_names, self._session.run(self._output_names, inputs), strict=True))

    def _infer_bound(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run with the caller's arrays as outputs. The binding is made anew each time: threads share nothing, and nothing is kept."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array if array.flags.c_contiguous else array.copy(order="C"))
        for name in self._output_names:
            if name in targets:
                target = targets[name]
                binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs() if len(targets) < len(self._output_names) else ()
        found = {name: values[index].numpy() for index, name in enumerate(self._output_names) if name not in targets}
        return {name: targets[name] if name in targets else found[name] for name in self._output_names}

    def _close(self) -> None:
        self._session = None


def plans_memory(inputs: tuple[TensorSpec, ...]) -> bool:
    """Whether ONNX Runtime plans one block for all intermediate tensors (its memory pattern): for small inputs of fixed shape only.

    The first run's memory stays beside the planned block: the text detector (3.7 MB of input) takes 163 MB with a plan and 118 without, and is no faster for it (1.00).
    For the angle classifier (0.1 MB) memory is the same and the fastest runs are 2 % faster with a plan (ONNX Runtime 1.31.1, one thread, ten processes
    each). With open shapes there would be a plan for every shape that ever came.
    """
    if not all(spec.is_static and spec.dtype not in ("string", "bfloat16") for spec in inputs):
        return False
    return sum(np.dtype(spec.dtype).itemsize * math.prod(int(dim) for dim in spec.shape) for spec in inputs) < _PLANNED_BYTES


def _can_be_kept(model: Path) -> bool:
    """Small enough for one file, and all of it in this one: values beside it are ``<name>.data`` in a bundle."""
    return model.stat().st_size < _LARGEST_KEPT_BYTES and not model.with_name(f"{model.name}.data").exists()


def _gain_by_binding(inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> bool:
    """Outputs large enough, and no text among the inputs, which cannot be bound."""
    return sum(array.nbytes for array in targets.values()) >= BINDING_BYTES and all(array.dtype.kind in "biuf" for array in inputs.values())


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("engine onnxruntime", "onnxruntime", "onnxruntime") from exc
    return onnxruntime


ENGINES = {"onnxruntime": OnnxRuntimeEngine}
