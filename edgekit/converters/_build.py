"""`build`: from a model file and a device name to a bundle that was proven, or an error that says why not."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from msgspec import structs

from edgekit._version import __version__
from edgekit.bundle import (
    ARCHIVE_SUFFIX,
    FORMAT,
    Artifact,
    Bundle,
    Dim,
    Manifest,
    OutputMetrics,
    Signature,
    Source,
    Verification,
    check_destination,
    storage_errors,
    write_bundle,
)
from edgekit.converters._emitter import EmitJob, Emitted, Emitter, NormalisedModel, Proof
from edgekit.converters._emitters import emitter_for
from edgekit.converters._normalise import normalise, resolve_shapes
from edgekit.converters._samples import SampleSet, golden_samples, require_sizes
from edgekit.converters._source import SourceModel, load_source
from edgekit.converters._verify import first_divergence, judge, run_artifact
from edgekit.device_profiles import DeviceProfile, load_profile
from edgekit.errors import BuildError, EdgeKitError, UsageError, VerificationError
from edgekit.runtime._compare import thresholds_for
from edgekit.runtime.engines import one_line

__all__ = ["BuildResult", "build", "build_many", "build_result", "choose_precision"]

PRECISIONS = ("auto", "fp32", "fp16", "int8")

Progress = Callable[[str], None]
Shapes = Mapping[str, Sequence[Dim]]


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


@dataclass
class _Model:
    """A source model and what was made of it, so that several devices share the work."""

    source: SourceModel
    shapes: Shapes
    calibration: Path | None
    forms: dict[bool, tuple[NormalisedModel, SampleSet]] = field(default_factory=dict)

    def form(self, static: bool, progress: Progress) -> tuple[NormalisedModel, SampleSet]:
        """The normalised model and its samples, with every size fixed or with dynamic ones left in."""
        resolved = resolve_shapes(self.source.signature, self.shapes, static)
        if self.calibration is None:  # found out here, not after a long normalisation
            require_sizes(Signature(tuple(structs.replace(spec, shape=resolved[spec.name]) for spec in self.source.signature.inputs), ()))
        static = all(isinstance(dim, int) for shape in resolved.values() for dim in shape)
        if static not in self.forms:
            progress("normalising")
            normalised = normalise(self.source, self.shapes, static=static)
            progress("running the source model on samples")
            self.forms[static] = (normalised, golden_samples(self.source, normalised.signature, self.calibration))
        return self.forms[static]


def build(
    model: str | os.PathLike[str],
    *,
    device: str,
    precision: str = "auto",
    calibration: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    model_version: str = "1",
    progress: Progress | None = None,
) -> Bundle:
    """Build a model for a device, prove it, and write the bundle.

    Args:
        model: an ONNX file.
        device: id or alias of a device profile, or the path of one.
        precision: ``auto`` (fp16 where the profile calls it fast, else fp32), ``fp32`` or ``fp16``.
        calibration: file or folder of samples for the proof (`edgekit.converters._samples`); synthetic ones without it.
        shapes: input name to sizes, for inputs with open dimensions.
        output: a directory, or a file that ends in ``.edgekit``; ``<model>-<device>.edgekit`` in the current folder without it.
        name: the bundle's name; the model's file name without its suffix by default.
        model_version: what a model repository serves it as.
        progress: called with a few words at each step.

    Raises:
        UsageError: a device, precision, shape, sample or output that cannot be.
        ModelError: the source model cannot be read, needs shapes, or has operators that the target does not take.
        BuildError: the toolchain failed. VerificationError: the artifact's numbers are wrong; nothing is written.
        EnvironmentMissingError: a toolchain is not installed.
        StorageError: the bundle cannot be written.
    """
    return build_result(
        model,
        device=device,
        precision=precision,
        calibration=calibration,
        shapes=shapes,
        output=output,
        name=name,
        model_version=model_version,
        progress=progress,
    ).bundle


def build_result(
    model: str | os.PathLike[str],
    *,
    device: str,
    precision: str = "auto",
    calibration: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    model_version: str = "1",
    progress: Progress | None = None,
) -> BuildResult:
    """`build`, with its time and sizes."""
    return build_many(
        model,
        devices=[device],
        precision=precision,
        calibration=calibration,
        shapes=shapes,
        output=output,
        name=name,
        model_version=model_version,
        progress=progress,
    )[0]


def build_many(
    model: str | os.PathLike[str],
    *,
    devices: Sequence[str],
    precision: str = "auto",
    calibration: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    model_version: str = "1",
    progress: Progress | None = None,
) -> list[BuildResult]:
    """`build_result` for several devices; reads, normalises and samples the model once. Stops at the first error.

    Args:
        devices: ids, each gets its bundle.
        output: for one device as for `build`; for several a folder for ``<model>-<device>.edgekit``, the current one by default.

    Raises:
        UsageError: also when ``output`` names one ``.edgekit`` file for several devices.
    """
    profiles = {profile.id: profile for profile in map(load_profile, devices)}
    if len(profiles) == 1 and output is not None:
        destinations = [Path(output)]
    else:
        folder = Path(output) if output is not None else Path()
        destinations = [_default_output(folder, Path(model), device) for device in profiles]
        _check_folder(folder, len(profiles))
    targets = [_target(*pair, precision) for pair in zip(profiles.values(), destinations, strict=True)]
    request = _Request(name or Path(model).stem, model_version, precision, progress or _silent)
    return _build_all(model, targets, calibration, shapes, request)


def choose_precision(profile: DeviceProfile, wanted: str, emitted: Sequence[str]) -> str:
    """The precision to build in. Pure.

    Args:
        profile: what the device takes.
        wanted: one of ``auto``, ``fp32``, ``fp16``, ``int8``.
        emitted: what the target's emitter writes.

    Raises:
        UsageError: the device or the emitter does not take it.
    """
    if wanted not in PRECISIONS:
        raise UsageError("--precision", f"unknown value {wanted!r}", f"one of {', '.join(PRECISIONS)}")
    taken = [name for name in emitted if profile.precisions.get(name, "no") != "no"]
    if not taken:
        runs = ", ".join(name for name, status in profile.precisions.items() if status != "no") or "nothing"
        raise UsageError(
            f"device {profile.id}", f"runs {runs} only", "", f"this version builds {' and '.join(emitted)}; choose another device"
        )
    if wanted == "auto":
        return "fp16" if "fp16" in taken and profile.precisions["fp16"] == "fast" else taken[0]
    if wanted == "int8":
        raise UsageError("--precision int8", "not in this version", f"one of auto, {', '.join(taken)}", "leave the flag out")
    if wanted not in taken:
        raise UsageError(
            f"--precision {wanted}", f"{profile.id} does not take it", f"one of auto, {', '.join(taken)}", "leave the flag out"
        )
    return wanted


# --- one build -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """What is the same for every device of a command."""

    name: str
    version: str
    precision: str
    progress: Progress


@dataclass(frozen=True)
class _Target:
    """One device of a command."""

    profile: DeviceProfile
    emitter: Emitter
    precision: str
    destination: Path


def _silent(_: str) -> None:
    return


def _default_output(folder: Path, model: Path, device: str) -> Path:
    return folder / f"{model.stem}-{device}{ARCHIVE_SUFFIX}"


def _check_folder(folder: Path, devices: int) -> None:
    if folder.suffix == ARCHIVE_SUFFIX:
        raise UsageError(f"--output {folder}", f"one file for {devices} devices", "a folder", "give a folder")


def _target(profile: DeviceProfile, destination: Path, precision: str) -> _Target:
    """Everything that can be refused before the model is read."""
    emitter = emitter_for(profile.engine.name)
    chosen = choose_precision(profile, precision, emitter.precisions)
    check_destination(destination)
    return _Target(profile, emitter, chosen, destination)


def _build_all(
    path: str | os.PathLike[str],
    targets: Sequence[_Target],
    calibration: str | os.PathLike[str] | None,
    shapes: Shapes | None,
    request: _Request,
) -> list[BuildResult]:
    started = time.perf_counter()
    request.progress("reading the model")
    model = _Model(load_source(path), shapes or {}, Path(calibration) if calibration is not None else None)
    results = []
    for target in targets:
        bundle = _build_one(model, target, request)
        ended = time.perf_counter()
        results.append(_result(bundle, ended - started))
        started = ended
    return results


def _build_one(model: _Model, target: _Target, request: _Request) -> Bundle:
    profile, emitter = target.profile, target.emitter
    normalised, samples = model.form(emitter.static_only or profile.engine.static_shapes, request.progress)
    with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
        directory = Path(folder)
        job = EmitJob(request.name, normalised, profile, profile.engine, target.precision, directory, samples.samples)
        request.progress(f"writing {emitter.engine} {target.precision} for {profile.id}")
        with storage_errors(directory), _toolchain_errors(emitter.engine):
            emitted = emitter.emit(job)
        request.progress("proving it")
        with storage_errors(directory), _toolchain_errors(emitter.engine):
            proof = emitter.prove(job, emitted)
        metrics = _judge(job, emitted, proof)
        report = _report(model, normalised, emitted, proof, samples)
        if emitted.fallback is not None:
            report["fallback"] = _judge_fallback(job, emitted.fallback)
        manifest = _manifest(model, target, request, normalised, emitted, _verification(target, samples, emitted, proof, metrics))
        request.progress(f"writing {target.destination}")
        return write_bundle(target.destination, manifest, directory, samples.samples, report)


class _toolchain_errors:  # noqa: N801 - used as a statement, like contextlib's own
    """Turn what a third-party toolchain raises into one `BuildError` line; our own errors and those of the file system pass."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (EdgeKitError, OSError)):
            raise BuildError(
                f"target {self.engine}", f"its toolchain failed: {one_line(error)}", "", "build for another engine, or report this model"
            ) from error


def _judge(job: EmitJob, emitted: Emitted, proof: Proof) -> dict[str, OutputMetrics]:
    """Metrics of what ran; empty when nothing ran."""
    if not proof.outputs:
        return {}
    artifact = emitted.artifact
    thing = f"{artifact.path} for {job.profile.id} ({artifact.precision}, {proof.engine})"
    try:
        return judge(thing, job.samples, proof.outputs, job.source.signature, artifact.precision)
    except VerificationError as exc:
        raise VerificationError(exc.thing, f"{exc.found}; {_where(job, artifact)}", exc.expected, exc.next_step) from exc


def _where(job: EmitJob, artifact: Artifact) -> str:
    """Where the artifact left the source model, as far as that can be told."""
    if artifact.engine != "onnxruntime":
        return f"where it diverged first is not located for {artifact.engine}"
    for sample in job.samples:
        try:
            if place := first_divergence(job.source.model, job.directory / artifact.path, sample.inputs, artifact.precision):
                return f"it diverged first at {place}"
        except Exception as exc:  # noqa: BLE001 - the search is a help; the verification error itself must come through
            return f"where it diverged first is not located: {one_line(exc)}"
    return "no inner tensor that both have diverges before it"


def _judge_fallback(job: EmitJob, fallback: Artifact) -> dict[str, object]:
    """Prove a fallback on this machine as well: it is what runs until the first artifact can."""
    outputs, engine = run_artifact(job.directory, fallback, job.source.signature, job.samples)
    thing = f"fallback {fallback.path} for {job.profile.id} ({fallback.precision}, {engine})"
    metrics = judge(thing, job.samples, outputs, job.source.signature, fallback.precision)
    return {"engine": engine, "verified": "host", "metrics": metrics, "thresholds": thresholds_for(fallback.precision)}


def _verification(target: _Target, samples: SampleSet, emitted: Emitted, proof: Proof, metrics: dict[str, OutputMetrics]) -> Verification:
    return Verification(
        verified=proof.verified,
        engine=proof.engine,
        samples=len(proof.outputs),
        sample_source=samples.source,
        metrics=metrics,
        thresholds=thresholds_for(target.precision),
        notes=(*samples.notes, *emitted.notes, *proof.notes),
        left_to_device=tuple(proof.left_to_device),
    )


def _manifest(
    model: _Model, target: _Target, request: _Request, normalised: NormalisedModel, emitted: Emitted, verification: Verification
) -> Manifest:
    source = model.source
    return Manifest(
        format=FORMAT,
        name=request.name,
        version=request.version,
        device=target.profile.id,
        precision=target.precision,
        signature=normalised.signature,
        artifact=emitted.artifact,
        verification=verification,
        source=Source(source.path.name, source.format, source.sha256, source.opset),
        tools={"edgekit": __version__, **_versions("numpy", "onnx", "onnxruntime", "onnxslim"), **emitted.tools},
        fixed=normalised.fixed,
        fallback=emitted.fallback,
    )


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def _report(model: _Model, normalised: NormalisedModel, emitted: Emitted, proof: Proof, samples: SampleSet) -> dict[str, object]:
    """``report.json``: how the artifact came about. Nothing here changes between two equal builds."""
    return {
        "passes": normalised.passes,
        "opset": {"source": model.source.opset, "normalised": normalised.opset},
        "emitter": emitted.report,
        "proof": {"verified": proof.verified, "engine": proof.engine, "notes": proof.notes, "left_to_device": proof.left_to_device},
        "samples": {"source": samples.source, "count": len(samples.samples), "notes": samples.notes},
    }


def _result(bundle: Bundle, seconds: float) -> BuildResult:
    files = bundle.manifest.files
    artifact = bundle.manifest.artifact
    fallback = bundle.manifest.fallback
    kept_out = {"golden.npz", "report.json"} | ({fallback.path} if fallback and fallback.path != artifact.path else set())
    size = sum(entry.bytes for path, entry in files.items() if path not in kept_out)
    total = sum(entry.bytes for entry in files.values()) + (bundle.directory / "bundle.json").stat().st_size
    return BuildResult(bundle, seconds, size, total)
