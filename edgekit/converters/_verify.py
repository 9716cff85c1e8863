"""The proof: run an artifact on the samples, judge the numbers, and find where they first went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Artifact, GoldenSample, OutputMetrics, Signature
from edgekit.converters._emitter import EmitJob, Emitted, Proof
from edgekit.errors import VerificationError
from edgekit.runtime import Engine
from edgekit.runtime._compare import check_metrics, compare_outputs, describe_metrics, thresholds_for, worst_output
from edgekit.runtime.engines import EngineOptions, open_engine

if TYPE_CHECKING:
    import onnx

__all__ = ["first_divergence", "judge", "prove_on_host", "run_artifact"]

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
        step = "build with --precision fp32" if precision != "fp32" else "report this model"
        more = f"; {len(misses) - 1} more limit(s) missed" if len(misses) > 1 else ""
        raise VerificationError(
            thing,
            f"its numbers are not the source model's: {misses[0]} (worst output {worst!r}: {describe_metrics(metrics[worst])}){more}",
            "",
            step,
        )
    return metrics


def first_divergence(reference: onnx.ModelProto, artifact: Path, inputs: Mapping[str, np.ndarray], precision: str) -> str:
    """Where an ONNX artifact leaves its float32 form: the first tensor, in the order of execution, that misses the limits.

    Tensors are matched by name, so only those that the artifact kept are looked at (a lowered one as ``<name>_fp16``).

    Args:
        reference: the normalised float32 model.
        artifact: the ONNX file that was judged.
        inputs: the sample that shows the difference.
        precision: decides the limits.

    Returns:
        ``tensor 'x' (Conv at 'conv1')``, or "" when no inner tensor misses them.
    """
    import onnx

    built = onnx.load(artifact)
    there = {name for node in built.graph.node for name in node.output if name}
    wanted = [
        (name, actual, node)
        for node in reference.graph.node
        for name in node.output
        if (actual := next((form for form in (name, f"{name}_fp16") if name and form in there), ""))
    ]
    expected = _inner(reference, [name for name, _, _ in wanted], inputs)
    found = _inner(built, [actual for _, actual, _ in wanted], inputs)
    for name, actual, node in wanted:
        if name in expected and actual in found and _diverged(expected[name], found[actual], precision):
            return f"tensor {name!r} ({node.op_type} at {node.name or node.output[0]!r})"
    return ""


def _diverged(want: np.ndarray, got: np.ndarray, precision: str) -> bool:
    if want.shape != got.shape or want.dtype.kind != got.dtype.kind:
        return True
    if want.dtype.kind not in "fiub" or not want.size:
        return False
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return True
    error = np.max(np.abs(want[finite].astype(np.float64) - got[finite].astype(np.float64)), initial=0.0)
    scale = np.max(np.abs(want[finite].astype(np.float64)), initial=0.0)
    return bool(error > thresholds_for(precision)["max_rel"] * (scale or 1.0))


def _inner(model: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of inner tensors, unoptimised so that none is fused away."""
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    have = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session: Any = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(inputs)), strict=True))
