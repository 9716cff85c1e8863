"""In which order a bundle's artifacts and a device's accelerators are tried. Decides only; `Session` tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgekit.bundle import Artifact, Manifest
from edgekit.runtime.engines import EngineOptions, engine_class

__all__ = ["ACCELERATORS", "PassedOver", "Step", "fallback_line", "steps"]

ACCELERATORS = "accelerators"
"""Key of `Artifact.options`: what the device's profile lists for the engine, preferred first, with commas between (``npu,gpu,cpu``)."""


class Step(NamedTuple):
    """One way to run the bundle: an artifact on an accelerator; an empty accelerator is the engine's default."""

    artifact: Artifact
    accelerator: str

    @property
    def label(self) -> str:
        """``openvino/npu``, or ``openvino``."""
        return f"{self.artifact.engine}/{self.accelerator}" if self.accelerator else self.artifact.engine


class PassedOver(NamedTuple):
    """A step that could not be taken here, and why."""

    label: str
    reason: str


def steps(manifest: Manifest, options: EngineOptions) -> list[Step]:
    """What to try, best first: the first artifact on each accelerator of the profile, then the fallback artifact.

    An accelerator that the caller names is the only one for the first artifact; the fallback goes by its own profile.
    """
    found = [Step(manifest.artifact, name) for name in ([options.accelerator] if options.accelerator else _accelerators(manifest.artifact))]
    if manifest.fallback is not None:
        found += [Step(manifest.fallback, name) for name in _accelerators(manifest.fallback)]
    return found


def _accelerators(artifact: Artifact) -> tuple[str, ...]:
    listed = artifact.options.get(ACCELERATORS, "")
    return engine_class(artifact.engine).accelerator_steps(listed.split(",")) if listed else ("",)


def fallback_line(passed_over: Sequence[PassedOver]) -> str:
    """``openvino/npu: no device…; openvino/gpu: …``; a reason that repeats is said once."""
    labels: dict[str, list[str]] = {}
    for label, reason in passed_over:
        labels.setdefault(reason, []).append(label)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in labels.items())
