"""The interface of every engine, and what all of them share: checks, layout, lifecycle, locking.

An engine is one module with one subclass of `Engine`, registered by name in ``edgekit.runtime.engines``. The base class owns the public
methods; a subclass fills ``_load``, ``_infer`` and ``_close`` only, and may let its package's exceptions pass: the base class makes
one `EngineError` line of them.
"""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from edgekit.bundle import Artifact, Signature, TensorBinding, TensorSpec
from edgekit.errors import EdgeKitError, EngineError

__all__ = ["Engine", "EngineOptions"]


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller or the profile decides about one engine instance.

    Attributes:
        threads: CPU threads for one run; 0 lets the engine choose.
        cache_dir: where the engine may keep compiled forms; empty for none.
        accelerator: name from the profile (``cpu``, ``gpu``, ``npu``); empty for the engine's default.
    """

    threads: int = 0
    cache_dir: str = ""
    accelerator: str = ""


class Engine(abc.ABC):
    """A loaded artifact that answers requests.

    Inputs and outputs are the bundle's signature: logical names, dtypes and axis order. Arrays given to `run` are read
    only; arrays returned belong to the caller. Safe to call from several threads: an engine whose ``concurrent`` is false runs one request
    at a time behind a lock.

    Args:
        path: the artifact's file or directory.
        artifact: how it maps to the signature.
        signature: what callers see.
        options: threads, cache and accelerator.

    Raises:
        EnvironmentMissingError: the engine's package is not installed.
        EngineError: the engine refuses the artifact.
    """

    name: ClassVar[str]
    concurrent: ClassVar[bool] = False

    def __init__(self, path: Path, artifact: Artifact, signature: Signature, options: EngineOptions | None = None) -> None:
        self.path = path
        self.artifact = artifact
        self.signature = signature
        self.options = options or EngineOptions()
        self._guard: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if self.concurrent else threading.Lock()
        self._closed = False
        self._plain_inputs = _is_plain(artifact.inputs, signature.inputs)
        self._plain_outputs = _is_plain(artifact.outputs, signature.outputs)
        try:
            self._load()
        except EdgeKitError:
            raise
        except Exception as exc:
            raise EngineError(f"engine {self.name}", f"cannot load {path.name}: {one_line(exc)}", "", "build the bundle again") from exc

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request. ``inputs`` must already fit the signature (see `Signature.check`).

        Returns:
            one array per signature output, in its logical axis order.

        Raises:
            EngineError: the engine failed, or was closed.
        """
        try:
            native = inputs if self._plain_inputs else self._to_native(inputs)
            with self._guard:
                if self._closed:
                    raise self._closed_error()
                outputs = self._infer(native)
        except EdgeKitError:
            raise
        except Exception as exc:
            raise self._failed(exc) from exc
        return outputs if self._plain_outputs else self._to_logical(outputs)

    def close(self) -> None:
        """Release the engine's memory. May be called twice, and while another thread runs: that run ends first or finds it closed."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._close()

    def describe(self) -> dict[str, str]:
        """What really runs: engine, version, device, threads. For logs, metadata and receipts."""
        return {"engine": self.name, "version": self.version()}

    def threads(self) -> int:
        """CPU threads for one run, 0 for the engine's choice.

        The caller's wish counts as it is; what the artifact recorded for its device is capped by the CPUs that this process may use.
        """
        if self.options.threads:
            return self.options.threads
        return min(int(self.artifact.options.get("threads", "0")), usable_cpus())

    def _no_tensor(self, name: str, known: Iterable[str]) -> EngineError:
        """The manifest binds a tensor that the artifact does not have."""
        found = ", ".join(sorted(known))
        return EngineError(f"engine {self.name}", f"{self.path.name} has no tensor {name!r}", f"one of {found}", "build the bundle again")

    def _closed_error(self) -> EngineError:
        return EngineError(f"engine {self.name}", "was closed", "", "load the bundle again")

    def _failed(self, exc: Exception) -> EngineError:
        """What an engine's exception in a run means; one raised because `close` won a race is told as such."""
        if self._closed:
            return self._closed_error()
        return EngineError(f"engine {self.name}", f"failed: {one_line(exc)}", "", f"check the inputs against {self.signature_line()}")

    def signature_line(self) -> str:
        """The inputs, for messages: ``x float32[1,3,48,192]``."""
        return ", ".join(f"{spec.name} {spec.describe()}" for spec in self.signature.inputs)

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """Version of the installed engine package.

        Raises:
            EnvironmentMissingError: it is not installed.
        """

    @abc.abstractmethod
    def _load(self) -> None:
        """Open ``self.path``.

        Raises:
            EnvironmentMissingError: the package is not installed; anything else that is raised becomes `EngineError`.
        """

    @abc.abstractmethod
    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on tensors under their native names, dtypes and layout; return outputs the same way."""

    def _close(self) -> None:
        """Drop references to native objects."""
        return

    def _to_native(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        native = {}
        for binding in self.artifact.inputs:
            array = inputs[binding.name]
            if binding.perm is not None:
                array = array.transpose(binding.perm)
            if binding.scale:
                array = _quantised(array, binding)
            native[binding.native_name] = np.asarray(array, dtype=np.dtype(binding.native_dtype), order="C")  # keeps rank 0
        return native

    def _to_logical(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        logical = {}
        for binding, spec in zip(self.artifact.outputs, self.signature.outputs, strict=True):
            array = outputs[binding.native_name]
            if binding.perm is not None:
                array = array.transpose(np.argsort(binding.perm))
            if binding.scale:
                array = (array.astype(np.float32) - binding.zero_point) * np.float32(binding.scale)
            logical[binding.name] = array.astype(np.dtype(spec.dtype), copy=False)
        return logical


def _quantised(array: np.ndarray, binding: TensorBinding) -> np.ndarray:
    """A float tensor as an artifact with an integer interface wants it: rounded half to even, saturated."""
    limits = np.iinfo(binding.native_dtype)
    steps = np.rint(array / np.float32(binding.scale)) + binding.zero_point
    return np.asarray(np.clip(steps, limits.min, limits.max))


def _is_plain(bindings: tuple[TensorBinding, ...], specs: tuple[TensorSpec, ...]) -> bool:
    """True when native tensors are the logical ones, so that nothing must be copied or renamed."""
    return all(
        binding.name == binding.native_name and binding.perm is None and binding.native_dtype == spec.dtype
        for binding, spec in zip(bindings, specs, strict=True)
    )


def one_line(exc: BaseException) -> str:
    """The message of another package's exception without line breaks, at most 300 characters."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
