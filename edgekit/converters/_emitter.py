"""The seam between `build` and the targets: what an emitter is given, what it gives back, and how it proves it.

A target is one module with one `Emitter`, registered by engine name in ``edgekit.converters._emitters``. A second Apple target (Core AI) would be a second
module beside Core ML's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekit.bundle import Artifact, GoldenSample, Signature, Verified
from edgekit.converters._open_sizes import Settings
from edgekit.device_profiles import DeviceProfile, EngineClaim

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._graph import Graph
    from edgekit.converters.quantization import Quantization
    from edgekit.converters.sources._model import NativeModel

__all__ = ["EmitJob", "Emitted", "Emitter", "NormalisedModel", "Proof"]


@dataclass(frozen=True)
class NormalisedModel:
    """The source model after normalisation, already compared with the original.

    Attributes:
        model: ONNX, primitive operators, shapes inferred, constants folded; dynamic dimensions only where ``static`` is false.
        signature: the source's names, dtypes and order; ``fixed`` dimensions are numbers here.
        opset: ai.onnx opset of ``model``.
        fixed: symbolic dimensions that were given a size.
        passes: ids of the passes that ran, in order (``common::onnxslim``).
        static: every tensor shape is known.
        native: the TensorFlow original with these shapes, where ``model`` still is the same model.
        weights: the folder that large tensors of ``model`` lie in, for a model beyond protobuf's 2 GB.
        probes: the model at the sizes of ``settings.probes``, where the user leaves dimensions open and the target makes them open itself
            (`Emitter.batch_probes`).
        settings: of dimensions that the user leaves open.
    """

    model: onnx.ModelProto
    signature: Signature
    opset: int
    fixed: dict[str, int]
    passes: tuple[str, ...]
    static: bool
    native: NativeModel | None = None
    weights: Path | None = None
    probes: tuple[NormalisedModel, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def graph(self) -> Graph:
        """The plain graph for front ends of our own; needs ``static``."""
        from edgekit.converters._source import graph_from_onnx

        return graph_from_onnx(self.model, self.signature)


@dataclass(frozen=True)
class EmitJob:
    """One artifact to make.

    Attributes:
        name: the bundle's name; a good stem for file names.
        source: the normalised model in float32.
        profile: the device.
        claim: the profile's entry for this engine.
        precision: ``fp32``, ``fp16`` or ``int8``.
        directory: empty; artifact files go here, and their relative paths into `Artifact.path`.
        samples: sample inputs with float32 reference outputs, for range scans.
        quantization: the int8 form of ``source`` for this engine, or the one with compressed weights; None where it is written as it is.
    """

    name: str
    source: NormalisedModel
    profile: DeviceProfile
    claim: EngineClaim
    precision: str
    directory: Path
    samples: Sequence[GoldenSample] = ()
    quantization: Quantization | None = None

    @property
    def written(self) -> NormalisedModel:
        """What goes into the artifact: the int8 form where there is one, else the float32 model."""
        return self.source if self.quantization is None else self.quantization.model

    @property
    def held_to(self) -> str:
        """Precision whose limits the artifact must keep: int8's also where float weights were compressed."""
        return self.precision if self.quantization is None else "int8"


@dataclass(frozen=True)
class Emitted:
    """What an emitter made.

    Attributes:
        artifact: the deployable form; its path lies under the job's directory.
        fallback: what to load where the first cannot be.
        tools: versions of the tools that shaped the bytes.
        report: JSON-able facts for ``report.json`` (coverage, kept-in-fp32 nodes, recipe, …); nothing that changes between equal builds.
        notes: plain sentences for the user.
    """

    artifact: Artifact
    fallback: Artifact | None = None
    tools: dict[str, str] = field(default_factory=dict)
    report: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proof:
    """What ran, and what it answered.

    Attributes:
        verified: how far it went.
        engine: name and version of what ran or parsed.
        outputs: per sample, the artifact's outputs by logical name; empty when nothing ran.
        notes: plain sentences, exact about what did and did not run.
        left_to_device: what only the device can prove.
    """

    verified: Verified
    engine: str
    outputs: Sequence[dict[str, np.ndarray]] = ()
    notes: tuple[str, ...] = ()
    left_to_device: tuple[str, ...] = ()


class Emitter(Protocol):
    """One target.

    Attributes:
        engine: engine name in manifests and profiles.
        static_only: needs every shape fixed.
        batch_probes: batches at which it wants the model when the user leaves sizes open, see `edgekit.converters._open_sizes`; empty: it wants
            them fixed, or takes them open.
        precisions: what it can write.
    """

    engine: str
    static_only: bool
    batch_probes: tuple[int, ...]
    precisions: tuple[str, ...]

    def emit(self, job: EmitJob) -> Emitted:
        """Write the artifact files.

        Raises:
            EnvironmentMissingError: the toolchain is not installed.
            UnsupportedOperatorsError: all nodes that it cannot take.
            BuildError: the toolchain failed.
        """
        ...

    def prove(self, job: EmitJob, emitted: Emitted) -> Proof:
        """Run the written files on ``job.samples``, as far as this machine can."""
        ...
