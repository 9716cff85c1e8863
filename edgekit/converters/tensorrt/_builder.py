"""NVIDIA's parser and builder on the build machine: TensorRT-RTX from PyPI, which needs no GPU to build."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import BuildError, EnvironmentMissingError
from edgekit.runtime._tensorrt_build import BuiltEngine, build_engine, find_package
from edgekit.runtime._tensorrt_plan import Attempt

__all__ = ["RtxBuilder", "rtx_builder"]

_WANTED = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities of an ahead-of-time engine by default: Ampere, Ada, Blackwell (TensorRT-RTX documentation, CPU-only AOT)."""
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class RtxBuilder:
    """The installed TensorRT-RTX.

    Attributes:
        package: importable name.
        version: of the package.
        capabilities: what engines are built for.
    """

    package: str
    version: str
    capabilities: tuple[str, ...]

    def build(self, recipe: Path, engine: Path, workspace_bytes: int, level: int) -> BuiltEngine:
        """Parse and build, in a process of its own.

        Raises:
            UnsupportedOperatorsError, BuildError: what the parser or the builder refused.
        """
        attempt = Attempt(workspace_bytes, level)
        return build_engine(self.package, recipe, engine, [attempt], capabilities=self.capabilities, timeout_s=_TIMEOUT_S)

    def describe(self) -> str:
        """``TensorRT-RTX 1.7.1.116 (tensorrt_rtx_bindings)``."""
        return f"TensorRT-RTX {self.version} ({self.package})"


def rtx_builder() -> RtxBuilder:
    """The builder here; capabilities are those of `_WANTED` that the package knows by name.

    Raises:
        EnvironmentMissingError: the package is not installed, or its libraries do not load.
    """
    package = find_package("tensorrt-rtx")
    try:
        trt: Any = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as exc:
        raise EnvironmentMissingError.for_extra(f"target tensorrt-rtx: {package} does not load ({exc})", package, "tensorrt") from exc
    capabilities = known_capabilities(trt, _WANTED)
    if not capabilities:
        raise BuildError(package, "it knows none of the wanted compute capabilities", ", ".join(_WANTED), "install another version")
    return RtxBuilder(package, str(trt.__version__), capabilities)


def known_capabilities(trt: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of ``wanted`` (``8.6``) that the package has an enumerator for (``SM86``)."""
    return tuple(value for value in wanted if hasattr(getattr(trt, "ComputeCapability", None), f"SM{value.replace('.', '')}"))
