"""Core ML through coremltools. It runs on macOS only; on iOS an app loads the same ``.mlpackage`` with Apple's own framework.

Core ML has neither 64-bit integers, booleans, nor tensors of rank 0 or above 5: `native_inputs` and `logical_outputs` map them by what the artifact's bindings
record, and everyone who runs the package (this engine, the proof at build time) goes through these two.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from edgekit.bundle import Artifact, Signature, TensorBinding, TensorSpec
from edgekit.errors import EngineError, EnvironmentMissingError, UnknownNameError
from edgekit.runtime.engines._base import NO_TARGETS, Engine

__all__ = ["COMPUTE_UNITS", "ENGINES", "CoreMLEngine", "logical_outputs", "native_inputs"]

_MAX_RANK = 5
"""Core ML's limit for tensors (coremltools, MIL operator definitions)."""

COMPUTE_UNITS = {
    "": "ALL",
    "all": "ALL",
    "cpu": "CPU_ONLY",
    "gpu": "CPU_AND_GPU",
    "cpu_and_gpu": "CPU_AND_GPU",
    "npu": "CPU_AND_NE",
    "ane": "CPU_AND_NE",
    "cpu_and_ne": "CPU_AND_NE",
}
"""`EngineOptions.accelerator` -> Core ML's compute units. Every choice includes the CPU, which takes what the others cannot."""


def native_inputs(artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs by logical name as the package takes them: native names and dtypes, rank 0 as shape ``(1,)``, more than five axes as one.

    Raises:
        EngineError: an integer that Core ML's int32 cannot hold.
    """
    native = {}
    for binding in artifact.inputs:
        array = np.asarray(inputs[binding.name])
        if binding.native_dtype == "int32" and not np.can_cast(array.dtype, np.int32) and array.size and not _fits_int32(array):
            raise EngineError(f"input {binding.name!r}", "holds integers beyond 32 bits", "values that fit int32, Core ML's widest integer")
        native[binding.native_name] = np.ascontiguousarray(array, dtype=np.dtype(binding.native_dtype)).reshape(_native_shape(array.shape))
    return native


def logical_outputs(artifact: Artifact, signature: Signature, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The package's outputs under logical names, dtypes and shapes."""
    logical = {}
    for binding, spec in zip(artifact.outputs, signature.outputs, strict=True):
        array = np.asarray(outputs[binding.native_name])
        shape = spec.shape if _native_shape(spec.shape) != spec.shape else array.shape
        logical[binding.name] = array.reshape([dim if isinstance(dim, int) else -1 for dim in shape]).astype(
            np.dtype(spec.dtype), copy=False
        )
    return logical


def _native_shape(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shape of a tensor in the package; Core ML has one to five axes."""
    if not shape:
        return (1,)
    return (-1,) if len(shape) > _MAX_RANK else shape


def _fits_int32(array: np.ndarray) -> bool:
    limits = np.iinfo(np.int32)
    return int(array.min()) >= limits.min and int(array.max()) <= limits.max


class CoreMLEngine(Engine):
    """A Core ML model. Predictions are serialised: coremltools does not promise that one model may be called from several threads."""

    name = "coreml"
    _model: Any = None

    @classmethod
    def version(cls) -> str:
        """Version of coremltools; Core ML itself is part of the operating system, see `describe`."""
        try:
            return metadata.version("coremltools")
        except metadata.PackageNotFoundError as exc:
            raise EnvironmentMissingError.for_extra("engine coreml", "coremltools", "coreml") from exc

    def describe(self) -> dict[str, str]:
        """Engine, coremltools' version, operating system and compute units."""
        return {**super().describe(), "os": f"macOS {platform.mac_ver()[0]}", "device": self._units()}

    def _units(self) -> str:
        accelerator = self.options.accelerator
        if accelerator not in COMPUTE_UNITS:
            raise UnknownNameError("accelerator of engine coreml", accelerator, [name for name in COMPUTE_UNITS if name])
        return COMPUTE_UNITS[accelerator]

    def _load(self) -> None:
        units = self._units()
        self._plain_inputs = self._plain_outputs = False  # dtypes and ranks differ even where the names do not
        if platform.system() != "Darwin":
            raise EnvironmentMissingError(
                "engine coreml",
                f"Core ML runs on Apple systems only, this is {platform.system()}",
                "macOS here, or iOS in an app",
                "copy the bundle to a Mac, or its model.mlpackage into an app",
            )
        try:
            import coremltools
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("engine coreml", "coremltools", "coreml") from exc
        self._model = coremltools.models.MLModel(str(self.path), compute_units=coremltools.ComputeUnit[units])

    @classmethod
    def accelerator_steps(cls, accelerators: Sequence[str]) -> tuple[str, ...]:
        """One step: Core ML divides a graph among the units that it may use, and always has the CPU to fall back on."""
        units = {COMPUTE_UNITS.get(name, "") for name in accelerators} - {"CPU_ONLY", ""}
        if not units:
            return tuple(accelerators[:1])
        return ("all",) if len(units) > 1 else tuple(name for name in accelerators if COMPUTE_UNITS.get(name) in units)[:1]

    def _native_spec(self, binding: TensorBinding, spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, binding.native_dtype, tuple("n" if dim == -1 else dim for dim in _native_shape(spec.shape)))

    def _to_native(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return native_inputs(self.artifact, inputs)

    def _to_logical(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return logical_outputs(self.artifact, self.signature, outputs)

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        del targets  # coremltools makes its outputs itself; the caller copies
        found: dict[str, np.ndarray] = self._model.predict(dict(inputs))
        return found

    def _close(self) -> None:
        self._model = None


ENGINES = {"coreml": CoreMLEngine}
