"""`build`: from a model file and a device name to a bundle that was proven, or an error that says why not."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from msgspec import structs

from edgekit.bundle import LABELS, Bundle, write_bundle
from edgekit.converters import processing
from edgekit.converters._delivery import deliver
from edgekit.converters._emitter import EmitJob, NormalisedModel
from edgekit.converters._isolation import Guard, default_limits
from edgekit.converters._normalise import normalise, resolve_shapes
from edgekit.converters._options import BuildOptions, Progress, check_names, silent
from edgekit.converters._record import manifest_of, report_of
from edgekit.converters._samples import SampleSet, golden_samples, require_sizes
from edgekit.converters._source import SourceModel, load_source
from edgekit.converters._targets import Target, choose_precision, resolve_targets

__all__ = ["BuildResult", "build", "build_many", "build_result", "choose_precision"]


@dataclass(frozen=True)
class BuildResult:
    """A bundle and what it cost.

    Attributes:
        bundle: as written, opened again.
        seconds: wall time of the whole build.
        bytes: size of the artifact's files, the fallback's not counted.
        bundle_bytes: size of all files, golden samples included.
    """

    bundle: Bundle
    seconds: float
    bytes: int
    bundle_bytes: int


def build(model: str | os.PathLike[str], *, device: str, **options: Unpack[BuildOptions]) -> Bundle:
    """Build a model for a device, prove it, and write the bundle.

    Args:
        model: an ONNX file.
        device: id or alias of a device profile, or the path of one.
        options: see `BuildOptions`.

    Raises:
        UsageError: an option, device, precision, shape, sample or output that cannot be.
        ModelError: the source model cannot be read, needs shapes, or has operators that the target does not take.
        BuildError: the toolchain failed. VerificationError: the artifact's numbers are wrong; nothing is written.
        EnvironmentMissingError: a toolchain is not installed.
        StorageError: the bundle cannot be written.
    """
    return build_result(model, device=device, **options).bundle


def build_result(model: str | os.PathLike[str], *, device: str, **options: Unpack[BuildOptions]) -> BuildResult:
    """`build`, with its time and sizes."""
    return build_many(model, devices=[device], **options)[0]


def build_many(model: str | os.PathLike[str], *, devices: Sequence[str], **options: Unpack[BuildOptions]) -> list[BuildResult]:
    """`build_result` for several devices; reads, normalises and samples the model once. Stops at the first error.

    Args:
        model: as for `build`.
        devices: ids, each gets its bundle.
        options: as for `build`; ``output`` is a folder for ``<model>-<device>.edgekit`` where there are several devices.

    Raises:
        UsageError: also when ``output`` names one ``.edgekit`` file for several devices.
    """
    check_names(options)
    path = Path(model)
    targets = resolve_targets(path.stem, devices, options)
    wanted = processing.requested(options)
    progress = options.get("progress") or silent
    started = time.perf_counter()
    progress("reading the model")
    source = processing.apply(load_source(path), wanted)
    shared = _Model(source, options)
    results = []
    for target in targets:
        bundle = _build_one(shared, target, options)
        ended = time.perf_counter()
        results.append(_result(bundle, ended - started))
        started = ended
    return results


# --- one build -----------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Model:
    """A source model and what was made of it, so that several devices share the work."""

    source: SourceModel
    options: BuildOptions
    forms: dict[bool, tuple[NormalisedModel, SampleSet]] = field(default_factory=dict)

    def form(self, static: bool, progress: Progress) -> tuple[NormalisedModel, SampleSet]:
        """The normalised model and its samples, with every size fixed or with dynamic ones left in."""
        shapes, given = self.options.get("shapes") or {}, self.options.get("calibration")
        calibration = Path(given) if given is not None else None
        resolved = resolve_shapes(self.source.signature, shapes, static)
        if calibration is None:  # found out here, not after a long normalisation
            inputs = tuple(structs.replace(spec, shape=resolved[spec.name]) for spec in self.source.signature.inputs)
            require_sizes(structs.replace(self.source.signature, inputs=inputs))
        static = all(isinstance(dim, int) for shape in resolved.values() for dim in shape)
        if static not in self.forms:
            progress("normalising")
            normalised = normalise(self.source, shapes, static=static)
            progress("running the source model on samples")
            self.forms[static] = (normalised, golden_samples(self.source, normalised.signature, calibration))
        return self.forms[static]


def _build_one(model: _Model, target: Target, options: BuildOptions) -> Bundle:
    progress = options.get("progress") or silent
    guard = _guard(options)
    normalised, samples = model.form(target.emitter.static_only or target.profile.engine.static_shapes, progress)
    name = options.get("name") or model.source.path.stem
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        job = EmitJob(name, normalised, target.profile, target.profile.engine, target.precision, Path(folder), samples.samples)
        # The precision ladder goes here: it calls `deliver` for each of its jobs (each with a directory of its own) and returns the one it keeps.
        delivery = deliver(target.emitter, job, guard)
        manifest = manifest_of(name, options.get("model_version", "1"), model.source, samples, delivery)
        processing.write_labels(model.source, delivery.job.directory)
        progress(f"writing {target.destination}")
        return write_bundle(
            target.destination, manifest, delivery.job.directory, samples.samples, report_of(model.source, samples, delivery)
        )


def _guard(options: BuildOptions) -> Guard:
    limits = default_limits(options.get("time_limit_s"), options.get("memory_limit_bytes"))
    return Guard(options.get("isolate", True), limits, options.get("progress") or silent)


def _result(bundle: Bundle, seconds: float) -> BuildResult:
    files = bundle.manifest.files
    artifact = bundle.manifest.artifact
    fallback = bundle.manifest.fallback
    kept_out = {"golden.npz", "report.json", LABELS} | ({fallback.path} if fallback and fallback.path != artifact.path else set())
    size = sum(entry.bytes for path, entry in files.items() if path not in kept_out)
    total = sum(entry.bytes for entry in files.values()) + (bundle.directory / "bundle.json").stat().st_size
    return BuildResult(bundle, seconds, size, total)
