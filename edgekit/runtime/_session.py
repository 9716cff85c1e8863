"""A bundle, loaded: checks requests against the signature and hands them to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from edgekit.bundle import Artifact, Bundle, Signature
from edgekit.errors import EngineError, EnvironmentMissingError, RequestError
from edgekit.runtime._fallback import PassedOver, Step, fallback_line, steps
from edgekit.runtime.engines import Engine, EngineOptions, open_engine

if TYPE_CHECKING:
    from edgekit.runtime._states import Stream

__all__ = ["Session"]


class Session:
    """One loaded model. Safe to call from several threads, as the engine is.

    Tries the accelerators that the device's profile lists, preferred first, then the bundle's fallback artifact, and takes the first that loads; the log,
    `describe`, `passed_over` and `fallback_reason` say what was wanted before it and why it did not go.

    Args:
        bundle: opened, so its digests were checked.
        options: threads, cache directory, accelerator, hint. An accelerator is meant for the first artifact, and then the only one that is tried for it.

    Attributes:
        bundle: what was loaded.
        artifact: the one in use.
        engine: the engine that runs it.
        accelerator: the one in use; empty for the engine's default.
        passed_over: what was tried before, with the reasons; empty when the first choice runs.
        fallback_reason: why the fallback artifact is in use; empty when it is not.

    Raises:
        EnvironmentMissingError: the engine is not installed, and there is nothing else that can be loaded.
        EngineError: the engine refuses the artifact, and there is nothing else that can be loaded.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or EngineOptions()
        self.passed_over: tuple[PassedOver, ...] = ()
        self.artifact, self.accelerator, self.engine = self._open()
        self.fallback_reason = "" if self.artifact is bundle.manifest.artifact else fallback_line(self.passed_over)
        self._static = _static_specs(bundle.signature)
        self._run = self.engine.run

    @property
    def signature(self) -> Signature:
        """Inputs and outputs: the source model's names, dtypes, order and logical shapes."""
        return self.bundle.signature

    def run(
        self, inputs: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray] | None = None, *, native: bool = False
    ) -> dict[str, np.ndarray]:
        """Answer one request.

        Args:
            inputs: every input of the signature by name; only read.
            out: arrays to write outputs to, by name; see `Engine.run`.
            native: inputs and outputs are in the artifact's own axis order and dtypes (`native_signature`): nothing is transposed or converted.

        Returns:
            every output by name, owned by the caller.

        Raises:
            RequestError: a wrong name, dtype or shape.
            EngineError: the engine failed, or the session was closed.
        """
        try:
            if native:
                self.native_signature.check(inputs)
            elif not self._fits(inputs):
                self.bundle.signature.check(inputs)
        except (AttributeError, TypeError) as exc:
            raise _not_arrays(inputs) from exc
        return self._run(inputs) if out is None and not native else self._run(inputs, out, native=native)

    @property
    def native_signature(self) -> Signature:
        """The signature as `run` takes it with ``native=True``: the same names in the artifact's axis order and dtypes."""
        return Signature(self.engine.native_inputs, self.engine.native_outputs)

    async def arun(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`run` in a worker thread, so that the event loop goes on."""
        import asyncio  # who waits here has it already; who never does is spared a third of the import time

        return await asyncio.to_thread(self.run, inputs)

    def stream(self, state: Mapping[str, np.ndarray] | None = None) -> Stream:
        """A sequence of requests, for a model with states (`Signature.states`): each begins with the state that the one before it left.

        Args:
            state: what it begins with, by input name, as `Stream.state` of another one gave it; the model's own when left out.

        Raises:
            RequestError: the model has no states, or ``state`` names an input that is none.
        """
        from edgekit.runtime._states import States, Stream  # most models have none

        return Stream(self.run, States(self.signature), state)

    def describe(self) -> dict[str, str]:
        """What is loaded and what really runs: bundle, artifact, engine, version, device, threads, what was ``wanted`` first where that is something else, and why not (``passed_over``)."""
        manifest = self.bundle.manifest
        return {
            "name": manifest.name,
            "version_of_model": manifest.version,
            "device_profile": manifest.device,
            "digest": self.bundle.digest,
            "precision": self.artifact.precision,
            "artifact": "fallback" if self.fallback_reason else "primary",
            "fallback_reason": self.fallback_reason,
            "accelerator": self.accelerator,
            "runs_on": Step(self.artifact, self.accelerator).label,
            "wanted": self.passed_over[0].label if self.passed_over else "",
            "passed_over": fallback_line(self.passed_over),
            **self.engine.describe(),
        }

    def close(self) -> None:
        """Release the engine. May be called twice."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _fits(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """The quick yes for inputs of fixed shape (0.7 us where the full check takes 7.5 us); a no means: ask the full check."""
        if not self._static or len(inputs) != len(self._static):
            return False
        for name, dtype, shape in self._static:
            array = inputs.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                return False
        return True

    def _open(self) -> tuple[Artifact, str, Engine]:
        """The first step that loads."""
        chain = steps(self.bundle.manifest, self.options)
        for step in chain:
            try:
                engine = self._engine(step)
            except (EnvironmentMissingError, EngineError) as exc:
                self.passed_over = (*self.passed_over, PassedOver(step.label, str(exc)))
                if step is chain[-1]:
                    raise
            else:
                self._tell(step)
                return step.artifact, step.accelerator, engine
        raise AssertionError("a chain has a step")

    def _engine(self, step: Step) -> Engine:
        options = msgspec.structs.replace(self.options, accelerator=step.accelerator)
        # The digest stands for every file of the bundle, so with the path for this artifact's content.
        content = f"{self.bundle.digest}:{step.artifact.path}"
        return open_engine(self.bundle.artifact_file(step.artifact), step.artifact, self.bundle.signature, options, content)

    def _tell(self, step: Step) -> None:
        if not self.passed_over:
            return
        import logging  # most loads have nothing to say, and start sooner without it

        wanted, reasons = self.passed_over[0].label, fallback_line(self.passed_over)
        fields = {"model": self.bundle.manifest.name, "engine": step.label, "wanted": wanted}
        logging.getLogger(__name__).warning(
            "%s: runs on %s instead of %s: %s", self.bundle.manifest.name, step.label, wanted, reasons, extra=fields
        )


def _static_specs(signature: Signature) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
    """Name, dtype and shape of every input; empty, so that nothing fits, when one has no fixed shape or no NumPy dtype."""
    specs = signature.inputs
    if not all(spec.is_static and spec.dtype not in ("string", "bfloat16") for spec in specs):
        return ()
    return tuple((spec.name, np.dtype(spec.dtype), tuple(int(dim) for dim in spec.shape)) for spec in specs)


def _not_arrays(inputs: object) -> RequestError:
    """Only reached when the signature's check met something that is no array."""
    if not isinstance(inputs, Mapping):
        return RequestError("inputs", f"a {type(inputs).__name__}", "a mapping of input names to NumPy arrays")
    name, value = next(((name, value) for name, value in inputs.items() if not isinstance(value, np.ndarray)), ("?", None))
    return RequestError(f"input {name!r}", f"a {type(value).__name__}", "a NumPy array", "wrap it with numpy.asarray")
