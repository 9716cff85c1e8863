"""One artifact: written by its emitter, run, and judged against the source model."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Artifact, OutputMetrics
from edgekit.converters._direct import emit, is_direct
from edgekit.converters._divergence import Place, locate
from edgekit.converters._emitter import EmitJob, Emitted, Emitter, Proof
from edgekit.converters._emitters import EMITTER_MODULES, process_of
from edgekit.converters._isolation import CancelledError, Guard, Tell
from edgekit.converters._verify import judge, run_artifact
from edgekit.errors import BuildError, EdgeKitError, EngineError, VerificationError
from edgekit.runtime._compare import thresholds_for
from edgekit.runtime.engines import one_line

__all__ = ["Delivery", "deliver", "judge_fallback", "make"]


@dataclass(frozen=True)
class Delivery:
    """An artifact that was judged good.

    Attributes:
        job: what it was made from; its directory holds the files.
        emitted: what the emitter wrote.
        proof: how it was proven.
        metrics: by output; empty when nothing ran.
        report: more for ``report.json``: how the fallback was proven, and what else led to this artifact.
    """

    job: EmitJob
    emitted: Emitted
    proof: Proof
    metrics: dict[str, OutputMetrics]
    report: dict[str, object] = field(default_factory=dict)


class WrongNumbersError(VerificationError):
    """The artifact's numbers are wrong.

    Attributes:
        place: where they first are, as far as that could be told.
    """

    def __init__(self, error: VerificationError, where: str, place: Place) -> None:
        super().__init__(error.thing, f"{error.found}; {where}", error.expected, error.next_step)
        self.place = place


def deliver(emitter: Emitter, job: EmitJob, guard: Guard) -> Delivery:
    """Write, run and judge one artifact and its fallback; heavy toolchains run in a process of their own.

    Raises:
        UnsupportedOperatorsError, EnvironmentMissingError: from the emitter.
        BuildError: the toolchain failed. VerificationError: the numbers are wrong.
        CancelledError: another part of the same command failed.
    """
    if guard.cancelled.is_set():
        raise CancelledError
    try:
        return _delivered(emitter, job, guard)
    except BuildError as exc:
        exc.precision = job.precision
        raise


def _delivered(emitter: Emitter, job: EmitJob, guard: Guard) -> Delivery:
    engine = emitter.engine
    with storage_errors(job.directory):
        if guard.isolate:
            # coremltools offers its TensorFlow front end only in a process that had TensorFlow before it.
            toolchain = f"{engine}, tensorflow" if is_direct(engine, job) else process_of(engine)
            emitted, proof = guard.call(toolchain, f"target {engine}", f"{__name__}:make", EMITTER_MODULES[engine], engine, job)
        else:
            emitted, proof = _make(guard.tell, emitter, job)
    metrics = _judge(job, emitted, proof, guard)
    report: dict[str, object] = {}
    if emitted.fallback is not None:
        fallback = emitted.fallback
        report["fallback"] = guard.call(process_of(fallback.engine), f"fallback for {engine}", f"{__name__}:judge_fallback", job, fallback)
    return Delivery(job, emitted, proof, metrics, report)


def make(tell: Tell, module: str, engine: str, job: EmitJob) -> tuple[Emitted, Proof]:
    """In the toolchain's process: write and run one artifact with the emitter that ``module`` registers for ``engine``."""
    return _make(tell, importlib.import_module(module).EMITTERS[engine], job)


def _make(tell: Tell, emitter: Emitter, job: EmitJob) -> tuple[Emitted, Proof]:
    with _toolchain_errors(emitter.engine):
        tell(f"writing {emitter.engine} {job.precision}")
        emitted = emit(emitter, job)
        tell("proving it")
        return emitted, emitter.prove(job, emitted)


class _toolchain_errors:  # noqa: N801 - used as a statement, like contextlib's own
    """Turn what a third-party toolchain raises, and an engine that refuses what it wrote, into one `BuildError` line.

    Other errors of ours and those of the file system pass.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EngineError):
            raise BuildError(
                f"target {self.engine}",
                f"the artifact that was written does not run: {error.thing}: {error.found}",
                error.expected,
                "build for another engine, or report this model",
            ) from error
        if isinstance(error, Exception) and not isinstance(error, (EdgeKitError, OSError)):
            raise BuildError(
                f"target {self.engine}", f"its toolchain failed: {one_line(error)}", "", "build for another engine, or report this model"
            ) from error


def _judge(job: EmitJob, emitted: Emitted, proof: Proof, guard: Guard) -> dict[str, OutputMetrics]:
    """Metrics of what ran; empty when nothing ran."""
    if not proof.outputs:
        return {}
    artifact = emitted.artifact
    thing = f"{artifact.path} for {job.profile.id} ({artifact.precision}, {proof.engine})"
    try:
        return judge(thing, job.samples, proof.outputs, job.source.signature, job.held_to)
    except VerificationError as exc:
        raise WrongNumbersError(exc, *_where(job, artifact, guard)) from exc


def _where(job: EmitJob, artifact: Artifact, guard: Guard) -> tuple[str, Place]:
    """Where the artifact left the source model, as far as that can be told: in words, and as a place."""
    try:
        place: Place = guard.call(
            process_of(artifact.engine), f"target {artifact.engine}", f"{locate.__module__}:{locate.__name__}", job, artifact
        )
    except CancelledError:
        raise
    except Exception as exc:  # noqa: BLE001 - the search is a help; the verification error itself must come through
        return f"where it diverged first is not located: {one_line(exc)}", Place()
    return str(place), place


def judge_fallback(tell: Tell, job: EmitJob, fallback: Artifact) -> dict[str, object]:
    """Prove a fallback on this machine as well: it is what runs until the first artifact can.

    Raises:
        VerificationError: its numbers are wrong. EngineError: it does not run.
    """
    tell("proving the fallback")
    outputs, engine = run_artifact(job.directory, fallback, job.source.signature, job.samples)
    thing = f"fallback {fallback.path} for {job.profile.id} ({fallback.precision}, {engine})"
    metrics = judge(thing, job.samples, outputs, job.source.signature, fallback.precision)
    return {"engine": engine, "verified": "host", "metrics": metrics, "thresholds": thresholds_for(fallback.precision)}
