"""LiteRT (TFLite): one ``.tflite`` file, on the CPU through XNNPACK, or on the accelerator of a delegate that takes its graph."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.bundle import TensorBinding, TensorSpec
from edgekit.errors import EngineError, EnvironmentMissingError
from edgekit.runtime.engines._base import NO_TARGETS, Engine, one_line, usable_cpus
from edgekit.runtime.engines._tflite_runners import COMPILED_DTYPES, CompiledRunner, InterpreterRunner, Runner

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ENGINES", "TfliteEngine"]

# Name in a profile -> the delegate's library (libedgetpu is Coral's).
DELEGATES = {"tpu": "libedgetpu.so.1"}
# Name in a profile -> LiteRT's name of what compiles the whole graph for it.
COMPILED = {"gpu": "GPU", "npu": "NPU"}


KEPT_FROM_BYTES = 32 * 2**20
"""Packed weights are kept for files of at least this size, because only LiteRT's compiled model can keep them, and it is the heavier of the two ways.

Measured on ai-edge-litert 2.3.0, one thread, start to first answer and resident memory of the whole process, kept weights against the interpreter: 67 MB file
262 / 271 ms of CPU, 121 / 180 MB; 4.7 MB file 346 / 291 ms, 119 / 113 MB; 0.5 MB file 180 / 149 ms, 56 / 48 MB. Runs themselves take the same time.
"""


class TfliteEngine(Engine):
    """A LiteRT file, driven by the names of its signature; one request at a time.

    `EngineOptions.accelerator`: ``cpu``; ``gpu`` and ``npu`` by LiteRT's compiled model; ``tpu``, or the path of a shared library that ends in
    ``.so``, by an external delegate. An accelerator that takes nothing of the graph (compiled: not all of it) is refused, so that whoever asked goes on
    to the next one and says so. With a cache folder, fixed shapes and a large file (`KEPT_FROM_BYTES`), weights are packed once for this CPU's kernels
    and kept.

    Reads from `Artifact.options`: ``threads``; ``signature`` for a file with several.
    """

    name: ClassVar[str] = "tflite"
    concurrent: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    @classmethod
    def version(cls) -> str:
        """Version of the installed ai-edge-litert package."""
        _import("interpreter")
        if found := getattr(importlib.import_module("ai_edge_litert"), "__version__", ""):
            return str(found)
        from importlib import metadata  # takes 30 ms to import, which a load with a cache folder would feel

        return metadata.version("ai-edge-litert")

    def describe(self) -> dict[str, str]:
        """Adds ``device``, ``threads``, ``cache``, ``runner``, ``delegate`` and ``delegated`` (how much of the graph the delegate took)."""
        facts = {**super().describe(), "device": self._device, "threads": str(self._thread_count()), "cache": self._cache}
        with self._guard:
            return facts if self._closed else {**facts, **self._runner.facts()}

    def _thread_count(self) -> int:
        # LiteRT's own default is one thread; every other engine's is all CPUs.
        return self.threads() or usable_cpus()

    def _load(self) -> None:
        self._runner: Runner
        self._runner, self._cache = self._open()
        self._device = "CPU" if self.options.accelerator in {"", "cpu"} else self.options.accelerator.upper()
        for bindings, known in ((self.artifact.inputs, self._runner.inputs), (self.artifact.outputs, self._runner.outputs)):
            for binding in bindings:
                if binding.native_name not in known:
                    raise self._no_tensor(binding.native_name, known)
        self._empty = {
            binding.native_name: np.zeros(_native_shape(binding, spec), binding.native_dtype)
            for binding, spec in zip(self.artifact.outputs, self.signature.outputs, strict=True)
            if 0 in spec.shape
        }
        self._is_open = not all(spec.is_static for spec in self.signature.inputs)
        self._sizes: dict[str, tuple[int, ...]] = {}

    def _open(self) -> tuple[Runner, str]:
        accelerator, signature = self.options.accelerator, self.artifact.options.get("signature", "")
        library = DELEGATES.get(accelerator, accelerator if accelerator.endswith(".so") else "")
        if library:
            return InterpreterRunner(_import("interpreter"), self.file, self._thread_count(), signature, library), "off"
        if accelerator in COMPILED:
            if not self._can_be_compiled():
                found = f"{self.path.name} has open or empty shapes, or dtypes that a compiled model does not take"
                raise EngineError(
                    f"engine {self.name}", found, f"fixed shapes for {accelerator}", "give --shape when building, or choose cpu"
                )
            try:
                return self._compiled(COMPILED[accelerator]), "off"
            except RuntimeError as exc:
                found = f"{accelerator} does not start, or does not take the graph: {one_line(exc)}"
                raise EngineError(f"engine {self.name}", found, "", "check the accelerator's driver, or choose cpu") from exc
        if accelerator not in ("", "cpu"):
            expected = f"one of cpu, {', '.join((*COMPILED, *DELEGATES))}, or the path of a delegate's library"
            raise EngineError(f"engine {self.name}", f"no accelerator {accelerator!r}", expected, "choose cpu")
        if self.options.cache_dir and self.path.stat().st_size >= KEPT_FROM_BYTES and self._can_be_compiled():
            from pathlib import Path

            from edgekit.runtime.engines._kept import cpu_features, entry_key, load_kept

            key = entry_key(self.path, self.content, self.version(), cpu_features())
            target = Path(self.options.cache_dir) / self.name / key
            return load_kept(
                target,
                "weights.xnnpack",
                make=lambda path: self._compiled("CPU", path),
                take=lambda path: self._compiled("CPU", path),
                worth=lambda _load_s, _check_s: True,  # the gain is memory
            )
        return InterpreterRunner(_import("interpreter"), self.file, self._thread_count(), signature), "off"

    def _compiled(self, accelerator: str, weights: Path | None = None) -> Runner:
        package = _import("compiled_model")
        return CompiledRunner(package, self.file, self._thread_count(), self.artifact.options.get("signature", ""), accelerator, weights)

    def _can_be_compiled(self) -> bool:
        specs = (*self.native_inputs, *self.native_outputs)
        return all(spec.is_static and 0 not in spec.shape and spec.dtype in COMPILED_DTYPES for spec in specs)

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        if self._is_open:
            self._resize({binding.native_name: inputs[binding.native_name].shape for binding in self.artifact.inputs})
        found = self._runner.run(inputs, targets, frozenset(self._empty))
        names = [binding.native_name for binding in self.artifact.outputs]
        return {name: self._empty[name].copy() if name in self._empty else found[name] for name in names}

    def _resize(self, sizes: dict[str, tuple[int, ...]]) -> None:
        """Make room for inputs of these shapes; nothing to do when the last ones were the same."""
        if sizes == self._sizes:
            return
        self._sizes = {}  # should one of the next calls fail, the next request tries again
        assert isinstance(self._runner, InterpreterRunner)  # nothing else is opened with open shapes
        self._runner.resize(sizes)
        self._sizes = sizes

    def _close(self) -> None:
        del self._runner


def _native_shape(binding: TensorBinding, spec: TensorSpec) -> tuple[int, ...]:
    """Shape in the file of a tensor whose sizes are all known."""
    shape = tuple(int(size) for size in spec.shape)
    return shape if binding.perm is None else tuple(shape[axis] for axis in binding.perm)


def _import(module: str) -> Any:
    try:
        importlib.import_module("ai_edge_litert")
        return importlib.import_module(f"ai_edge_litert.{module}")
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("engine tflite", "ai-edge-litert", "tflite") from exc


ENGINES = {"tflite": TfliteEngine}
