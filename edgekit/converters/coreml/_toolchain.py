"""coremltools, imported once, quietly, and without the frameworks that it would pull in.

coremltools imports TensorFlow and PyTorch when they are installed, to offer front ends that this package does not use; that alone takes longer
than most conversions. So they are hidden while it is imported, unless they are loaded already. A later emitter that wants coremltools' own
TensorFlow front end must import TensorFlow before this module's `load`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from edgekit.errors import EnvironmentMissingError, UnknownNameError

__all__ = ["DEFAULT_TARGET", "Toolchain", "load"]

DEFAULT_TARGET = "iOS16"
"""Oldest deployment target that is written: the first with float16 inputs and outputs and compressed weights (specification version 7)."""

_FRAMEWORKS = ("tensorflow", "torch", "torchvision", "torchaudio", "sklearn", "xgboost")


@dataclass(frozen=True)
class Toolchain:
    """The parts of coremltools that the emitter uses, untyped as it is.

    Attributes:
        ct: the package.
        mb: MIL's builder: one function per operator.
        types: MIL's types (``fp32``, ``int32``, …).
        mil: module with `Function` and `Program`.
    """

    ct: Any
    mb: Any
    types: Any
    mil: Any

    @property
    def version(self) -> str:
        """Version of coremltools."""
        return str(self.ct.__version__)

    def target(self, name: str) -> Any:
        """Deployment target (``iOS17``, ``macOS14``); the empty name is `DEFAULT_TARGET`.

        Raises:
            UnknownNameError: coremltools knows no such target, or it is older than `DEFAULT_TARGET`.
        """
        oldest = self.ct.target[DEFAULT_TARGET]
        known = {entry: value for entry, value in self.ct.target.__members__.items() if value >= oldest}
        if name and name not in known:
            raise UnknownNameError("Core ML deployment target", name, known, "correct deployment_target in the device profile")
        return known[name or DEFAULT_TARGET]


@functools.cache
def load() -> Toolchain:
    """Import coremltools.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    # It warns about every optional library that is missing or newer than it was tested with; on Linux that is always.
    logger.setLevel(logging.ERROR)
    try:
        with _hidden(_FRAMEWORKS):
            ct = importlib.import_module("coremltools")
            mil = importlib.import_module("coremltools.converters.mil.mil")
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("Core ML", exc.name or "coremltools", "coreml") from exc
    finally:
        logger.setLevel(level)
    return Toolchain(ct, mil.Builder, mil.types, mil)


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make these packages look absent to imports in the block; what is loaded already stays. Not for several threads at once."""
    absent = [name for name in names if name not in sys.modules]
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment] # None is the documented way to block an import
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            modules.pop(name, None)
