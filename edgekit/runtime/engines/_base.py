"""The interface of every engine, and what all of them share: checks, layout, lifecycle, locking.

An engine is one module with one subclass of `Engine`, registered by name in ``edgekit.runtime.engines``. The base class owns the public
methods; a subclass fills ``_load``, ``_infer`` and ``_close`` only, and may let its package's exceptions pass: the base class makes
one `EngineError` line of them.
"""

from __future__ import annotations

import abc
import contextlib
import os
from _thread import allocate_lock  # `threading.Lock`, without the rest of that module
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import msgspec
import numpy as np

from edgekit.bundle import Artifact, Signature, TensorBinding, TensorSpec
from edgekit.errors import EdgeKitError, EngineError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HINTS", "NO_TARGETS", "Engine", "EngineOptions", "threads_for"]

HINTS = ("latency", "throughput")
NO_TARGETS: Mapping[str, np.ndarray] = MappingProxyType({})
"""Nothing to write to directly: the engine makes all of its outputs."""


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller or the profile decides about one engine instance.

    Attributes:
        threads: CPU threads for one run; 0 lets the engine choose.
        cache_dir: where the engine may keep compiled forms; empty for none.
        accelerator: name from the profile (``cpu``, ``gpu``, ``npu``, ``tpu``); empty for the profile's order, see `Session`.
        hint: ``latency``: one request as fast as it goes. ``throughput``: many at once; a run takes one thread unless ``threads`` says more.
        side_by_side: runs that the caller will have under way at once, for engines that must know when they load. The CPUs bound it.
        cuda_graphs: TensorRT only: record a run and replay it while the shapes stay; for networks whose launch takes longer than their kernels.
    """

    threads: int = 0
    cache_dir: str = ""
    accelerator: str = ""
    hint: str = "latency"
    side_by_side: int = 1
    cuda_graphs: bool = False


class Engine(abc.ABC):
    """A loaded artifact that answers requests.

    Inputs and outputs are the bundle's signature: logical names, dtypes and axis order; or, when the caller asks for the native layout, the same names in the
    artifact's own dtypes and axis order (`native_inputs`, `native_outputs`). Arrays given to `run` are read only; arrays returned belong to the caller.
    Safe to call from several threads: an engine whose ``concurrent`` is false runs one request at a time behind a lock.

    Args:
        path: the artifact's file or directory.
        artifact: how it maps to the signature.
        signature: what callers see.
        options: threads, cache, accelerator and hint.
        content: identifies what lies at ``path``, for caches; empty when the caller does not know.

    Raises:
        EnvironmentMissingError: the engine's package is not installed.
        EngineError: the engine refuses the artifact.
    """

    name: ClassVar[str]
    concurrent: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    """On one CPU thread it loads and runs in the caller's, and starts none of its own (the conformance suite counts them)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: Artifact,
        signature: Signature,
        options: EngineOptions | None = None,
        content: str = "",
    ) -> None:
        self.file = os.fspath(path)
        self.artifact = artifact
        self.signature = signature
        self.content = content
        self.options = options or EngineOptions()
        if self.options.hint not in HINTS:
            raise UnknownNameError("hint", self.options.hint, HINTS)
        self._guard: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if self.concurrent else allocate_lock()
        self._closed = False
        self._plain_inputs = _is_plain(artifact.inputs, signature.inputs)
        self._plain_outputs = _is_plain(artifact.outputs, signature.outputs)
        try:
            self._load()
        except EdgeKitError:
            raise
        except Exception as exc:
            raise EngineError(
                f"engine {self.name}", f"cannot load {self.path.name}: {one_line(exc)}", "", "build the bundle again"
            ) from exc

    @cached_property
    def path(self) -> Path:
        """The artifact's file or directory; ``file`` is the same as text, for those who load without the 5 ms that `pathlib` takes to import."""
        from pathlib import Path

        return Path(self.file)

    def run(
        self, inputs: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray] | None = None, *, native: bool = False
    ) -> dict[str, np.ndarray]:
        """Answer one request. ``inputs`` must already fit the signature, or `native_inputs` (see `Signature.check`).

        Args:
            inputs: by the signature's names.
            out: arrays of the caller that outputs are written to, by the signature's names; outputs that are not in it are made anew. The engine
                writes to them itself where it can (C-ordered in the artifact's axis order), else the result is copied; it keeps none of them. After
                an error their content is undefined. They must not overlap the inputs.
            native: inputs and outputs are in the artifact's dtypes and axis order; no transpose, no conversion.

        Returns:
            one array per signature output; those of ``out`` are the caller's own.

        Raises:
            RequestError: an array in ``out`` that is no output, cannot be written, or has the wrong dtype or shape.
            EngineError: the engine failed, or was closed.
        """
        try:
            targets = NO_TARGETS if out is None else self._targets(inputs, out, native=native)
            if native:
                tensors: Mapping[str, np.ndarray] = self._as_named(inputs)
            else:
                tensors = inputs if self._plain_inputs else self._to_native(inputs)
            with self._guard:
                if self._closed:
                    raise self._closed_error()
                outputs = self._infer(tensors, targets)
        except EdgeKitError:
            raise
        except Exception as exc:
            raise self._failed(exc) from exc
        if native:
            answer = {binding.name: outputs[binding.native_name] for binding in self.artifact.outputs}
        else:
            answer = outputs if self._plain_outputs else self._to_logical(outputs)
        if out is None:
            return answer
        from edgekit.runtime.engines._outputs import deliver

        names = {binding.native_name: binding.name for binding in self.artifact.outputs}
        return deliver(out, answer, {names[name] for name, array in targets.items() if outputs[name] is array})

    @property
    def native_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as `run` takes them with ``native=True``: the signature's names, the artifact's dtypes and axis order."""
        return tuple(self._native_spec(*pair) for pair in zip(self.artifact.inputs, self.signature.inputs, strict=True))

    @property
    def native_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs as `run` gives them with ``native=True``."""
        return tuple(self._native_spec(*pair) for pair in zip(self.artifact.outputs, self.signature.outputs, strict=True))

    def close(self) -> None:
        """Release the engine's memory. May be called twice, and while another thread runs: that run ends first or finds it closed."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._close()

    def describe(self) -> dict[str, str]:
        """What really runs, for logs, metadata and receipts: ``engine``, ``version``, ``hint``, ``concurrent`` (``yes``, or ``no``: one run at a time).

        Engines add ``device``, ``threads``, and what else tells one way of running from another.
        """
        concurrent = "yes" if self.concurrent else "no"
        return {"engine": self.name, "version": self.version(), "hint": self.options.hint, "concurrent": concurrent}

    @classmethod
    def accelerator_steps(cls, accelerators: Sequence[str]) -> tuple[str, ...]:
        """In which order to try a device's accelerators, preferred first; each is a value for `EngineOptions.accelerator`."""
        return tuple(accelerators)

    def threads(self) -> int:
        """CPU threads for one run; see `threads_for`."""
        return threads_for(self.artifact, self.options)

    @classmethod
    def starts_threads(cls, artifact: Artifact, options: EngineOptions) -> bool:
        """Loading or running an artifact with these options starts threads that stay, or may do so: nobody has looked at what an accelerator's driver does."""
        return not cls.alone or threads_for(artifact, options) != 1 or options.accelerator not in ("", "cpu")

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
        """Open ``self.file``.

        Raises:
            EnvironmentMissingError: the package is not installed; anything else that is raised becomes `EngineError`.
        """

    @abc.abstractmethod
    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        """Run on tensors under their native names, dtypes and layout; return outputs the same way.

        Args:
            inputs: only read; may be of any memory order.
            targets: C-ordered arrays of the right shape that outputs may be written to. Who writes to one returns that very object, and forgets
                it; who does not returns an array of its own.
        """

    def _close(self) -> None:
        """Drop references to native objects."""
        return

    def _targets(self, inputs: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray], *, native: bool) -> Mapping[str, np.ndarray]:
        """What of ``out`` the engine may write to itself."""
        from edgekit.runtime.engines._outputs import check_out, direct_targets, known_shapes  # most callers leave the outputs to the engine

        specs = self.native_outputs if native else self.signature.outputs
        check_out(out, specs)
        shapes = known_shapes(inputs, self.native_inputs if native else self.signature.inputs, specs)
        return direct_targets(out, self.artifact.outputs, specs, shapes, native=native)

    def _native_spec(self, binding: TensorBinding, spec: TensorSpec) -> TensorSpec:
        shape = spec.shape if binding.perm is None else tuple(spec.shape[axis] for axis in binding.perm)
        return TensorSpec(spec.name, binding.native_dtype, shape)

    def _as_named(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Native inputs under the artifact's names."""
        return {binding.native_name: inputs[binding.name] for binding in self.artifact.inputs}

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


def threads_for(artifact: Artifact, options: EngineOptions) -> int:
    """CPU threads for one run, 0 for the engine's choice.

    The caller's wish counts as it is; what the artifact recorded for its device is capped by the CPUs that this process may use.
    """
    if options.threads:
        return options.threads
    if options.hint == "throughput":
        return 1
    return min(int(artifact.options.get("threads", "0")), usable_cpus())


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
