"""`finalize`: on the device, make a bundle ready, prove it, and leave a receipt."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from pathlib import Path

from edgekit.bundle import Bundle, GoldenSample, OutputMetrics
from edgekit.device_profiles import contradictions, load_profile, probe
from edgekit.errors import EdgeKitError, EnvironmentMissingError, UnknownNameError, VerificationError
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for
from edgekit.runtime._receipts import Receipt, write_receipt
from edgekit.runtime._tensorrt_plan import BuildPlan, plan_build
from edgekit.runtime.engines import Engine, EngineOptions, open_engine

__all__ = ["BuildPlan", "finalize", "plan_build"]


def finalize(bundle: Bundle | str | os.PathLike[str], *, cache_dir: Path | None = None) -> Receipt:
    """Load a bundle's artifact with its own engine (for TensorRT: build it first, or take it from the cache), run the golden samples, compare,
    and write the receipt. The fallback is never used: it would prove something else.

    Args:
        bundle: opened, or where it is.
        cache_dir: where built engines are kept, instead of the user's cache.

    Raises:
        BundleError, IntegrityError: the bundle cannot be read.
        EnvironmentMissingError: the engine or its GPU is not here; says what is missing, and what the fallback can do.
        EngineError: the engine refused the artifact, or could not be built.
        VerificationError: it ran, and its numbers are not the source model's; the receipt is written and says so.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    artifact = opened.manifest.artifact
    started = time.monotonic()
    try:
        options = EngineOptions(cache_dir=str(cache_dir) if cache_dir is not None else "")
        engine = open_engine(opened.artifact_path(artifact), artifact, opened.signature, options)
    except EnvironmentMissingError as exc:
        raise _with_fallback(opened, exc) from exc
    try:
        seconds = time.monotonic() - started
        samples = opened.golden()
        metrics, thresholds, misses = _prove(opened, engine, samples)
        receipt = _receipt(opened, engine, seconds, len(samples), metrics, thresholds, misses)
    finally:
        engine.close()
    path = write_receipt(receipt)
    if misses:
        step = f"do not serve it; the receipt is {path}"
        raise VerificationError(f"{opened.manifest.name} on {engine.name}", misses[0], "the source model's numbers", step)
    return receipt


def _prove(
    bundle: Bundle, engine: Engine, samples: Sequence[GoldenSample]
) -> tuple[dict[str, OutputMetrics], dict[str, float], tuple[str, ...]]:
    """Metrics of the golden samples, the limits, and what misses them."""
    thresholds = bundle.manifest.verification.thresholds or thresholds_for(bundle.manifest.artifact.precision)
    answers = [engine.run(sample.inputs) for sample in samples]
    try:
        metrics = compare_outputs([sample.outputs for sample in samples], answers, bundle.signature)
    except VerificationError as exc:  # NaN, a missing output: nothing to measure, and certainly wrong
        return {}, thresholds, (str(exc),)
    return metrics, thresholds, tuple(check_metrics(metrics, thresholds))


def _receipt(
    bundle: Bundle,
    engine: Engine,
    seconds: float,
    samples: int,
    metrics: dict[str, OutputMetrics],
    thresholds: dict[str, float],
    misses: tuple[str, ...],
) -> Receipt:
    manifest, found, running = bundle.manifest, probe(), engine.describe()
    try:
        denied = contradictions(load_profile(manifest.device), found)
    except UnknownNameError as exc:
        denied = [str(exc)]
    return Receipt(
        bundle=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        profile=manifest.device,
        probe=found,
        power_mode=str(found.get("power_mode", "")),
        engine=running,
        precision=manifest.artifact.precision,
        built=running.get("built") == "now",
        seconds=seconds,
        verified="deferred" if misses else "host",
        samples=samples,
        metrics=metrics,
        thresholds=thresholds,
        misses=misses,
        contradictions=tuple(denied),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
    )


def _with_fallback(bundle: Bundle, error: EdgeKitError) -> EnvironmentMissingError:
    """The same error; where the bundle has a fallback, with how to run that instead."""
    fallback = bundle.manifest.fallback
    step = error.next_step or "run it on the device that it was built for"
    if fallback is not None:
        step += f"; until then `edgekit run {bundle.path}` uses its fallback for {fallback.engine} ({fallback.precision})"
    return EnvironmentMissingError(error.thing, error.found, error.expected, step)
