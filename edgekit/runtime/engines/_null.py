"""The null engine: answers without a model, so that what lies around an engine can be tested and measured by itself. No profile names it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from edgekit._version import __version__
from edgekit.bundle import TensorSpec
from edgekit.errors import EngineError
from edgekit.runtime.engines._base import NO_TARGETS, Engine

__all__ = ["ENGINES", "NullEngine"]

_ANSWERS = ("zeros", "echo")


class NullEngine(Engine):
    """Outputs of the signature's dtypes and shapes; a symbolic size is that of the input that names it, or 1. The artifact's file is not read.

    Reads from `Artifact.options`: ``answer`` (``zeros``, the default, or ``echo``: output i holds the elements of input i, repeated or cut to its
    size) and ``delays_ms`` (how long each run takes, e.g. ``2,2,50``, over and over; runs of several threads take the next each).

    Attributes:
        sleep: waits the given seconds. A test puts its own clock's in here; by default the thread sleeps.
    """

    name: ClassVar[str] = "null"
    concurrent: ClassVar[bool] = True
    alone: ClassVar[bool] = True
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    @classmethod
    def version(cls) -> str:
        """EdgeKit's own."""
        return __version__

    def describe(self) -> dict[str, str]:
        """Adds ``device``, ``threads`` and ``answer``."""
        return {**super().describe(), "device": "none (CPU)", "threads": str(self.threads()), "answer": self._answer}

    def _load(self) -> None:
        if self.options.accelerator not in ("", "cpu"):
            raise EngineError("engine null", f"no accelerator {self.options.accelerator!r}", "cpu", "choose cpu")
        self._answer = self.artifact.options.get("answer", "zeros")
        if self._answer not in _ANSWERS:
            raise EngineError("engine null", f"answer {self._answer!r}", f"one of {', '.join(_ANSWERS)}")
        self._delays_s = _delays_s(self.artifact.options.get("delays_ms", ""))

    def _infer(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray] = NO_TARGETS) -> dict[str, np.ndarray]:
        delay_s = next(self._delays_s)
        if delay_s:
            self.sleep(delay_s)
        sizes = _sizes(self.native_inputs, [inputs[binding.native_name] for binding in self.artifact.inputs])
        outputs = {}
        for index, (binding, spec) in enumerate(zip(self.artifact.outputs, self.native_outputs, strict=True)):
            array = targets.get(binding.native_name)
            if array is None:
                shape = [dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in spec.shape]
                array = np.empty(shape, object if spec.dtype == "string" else spec.dtype)
            source = list(inputs.values())[index % len(inputs)] if self._answer == "echo" and inputs else None
            _fill(array, source)
            outputs[binding.native_name] = array
        return outputs


def _fill(array: np.ndarray, source: np.ndarray | None) -> None:
    if source is None or not source.size:
        array[...] = "" if array.dtype == object else 0
    else:
        array[...] = np.resize(source, array.shape).astype(array.dtype)


def _sizes(specs: tuple[TensorSpec, ...], arrays: list[np.ndarray]) -> dict[str, int]:
    return {
        dim: size
        for spec, array in zip(specs, arrays, strict=True)
        for dim, size in zip(spec.shape, array.shape, strict=True)
        if isinstance(dim, str)
    }


def _delays_s(text: str) -> Iterator[float]:
    """Endless; ``next`` of an `itertools.cycle` is one step even where threads share it."""
    try:
        delays = [float(part) / 1e3 for part in text.split(",")] if text else [0.0]
    except ValueError as exc:
        raise EngineError("engine null", f"delays_ms {text!r}", "numbers of milliseconds with commas between") from exc
    return itertools.cycle(delays)


ENGINES = {"null": NullEngine}
