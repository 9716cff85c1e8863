"""The proof: run an artifact on the samples and judge the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle import Artifact, GoldenSample, OutputMetrics, Signature
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.errors import VerificationError
from edgekit.runtime import Engine
from edgekit.runtime._compare import check_metrics, compare_outputs, describe_metrics, thresholds_for, worst_output
from edgekit.runtime.engines import EngineOptions, open_engine

__all__ = ["judge", "prove_on_host", "run_artifact"]

_ONE_THREAD = EngineOptions(threads=1)
"""Sums in one order: the metrics in a manifest do not depend on the build machine's cores."""


def run_artifact(
    directory: Path, artifact: Artifact, signature: Signature, samples: Sequence[GoldenSample]
) -> tuple[list[dict[str, np.ndarray]], str]:
    """Outputs of an artifact for every sample, and name and version of the engine that ran.

    Raises:
        EnvironmentMissingError: the engine is not installed.
        EngineError: it refuses the artifact or fails.
    """
    engine: Engine = open_engine(directory / artifact.path, artifact, signature, _ONE_THREAD)
    try:
        return [engine.run(sample.inputs) for sample in samples], f"{engine.name} {engine.version()}"
    finally:
        engine.close()


def prove_on_host(job: EmitJob, emitted: Emitted) -> Proof:
    """The proof of an emitter whose engine runs on the build machine."""
    outputs, engine = run_artifact(job.directory, emitted.artifact, job.source.signature, job.samples)
    return Proof("host", engine, outputs)


def judge(
    thing: str, samples: Sequence[GoldenSample], outputs: Sequence[Mapping[str, np.ndarray]], signature: Signature, precision: str
) -> dict[str, OutputMetrics]:
    """Metrics of outputs that are near enough to the source model's.

    Args:
        thing: what ran, for the message.
        samples: with reference outputs.
        outputs: per sample, what the artifact answered.
        signature: names the outputs.
        precision: decides the limits.

    Raises:
        VerificationError: an output misses a limit; names the worst one with all its metrics.
    """
    thresholds = thresholds_for(precision)
    try:
        metrics = compare_outputs([sample.outputs for sample in samples], outputs, signature)
    except VerificationError as exc:
        raise VerificationError(f"{thing}, {exc.thing}", exc.found, exc.expected, exc.next_step) from exc
    if misses := check_metrics(metrics, thresholds):
        worst = worst_output(metrics, thresholds)
        step = _next_step(precision, len(samples))
        more = f"; {len(misses) - 1} more limit(s) missed" if len(misses) > 1 else ""
        raise VerificationError(
            thing,
            f"its numbers are not the source model's: {misses[0]} (worst output {worst!r}: {describe_metrics(metrics[worst])}){more}",
            "",
            step,
        )
    return metrics


def _next_step(precision: str, samples: int) -> str:
    """What helps most often: int8 is as good as the samples that its ranges come from."""
    if precision == "int8":
        return f"give more real samples with --calibration (this proof had {samples}), or build with --precision fp16 or fp32"
    return "build with --precision fp32" if precision != "fp32" else "report this model"
