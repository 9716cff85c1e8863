"""`verify_bundle`: does a bundle answer here what its source model answered where it was built?"""

from __future__ import annotations

import os

import msgspec

from edgekit.bundle import Bundle, OutputMetrics
from edgekit.errors import VerificationError
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for
from edgekit.runtime._session import Session
from edgekit.runtime.engines import EngineOptions

__all__ = ["VerifyResult", "verify_bundle"]


class VerifyResult(msgspec.Struct, frozen=True):
    """What was run here and how near it came.

    Attributes:
        bundle: the path that was given.
        digest: SHA-256 of the manifest; the digests of all files were right, or there would be no result.
        ok: every output of what ran keeps its thresholds. Says nothing about the first artifact when ``artifact`` is ``fallback``.
        artifact: ``primary`` or ``fallback``: which one ran.
        fallback_reason: why the first artifact did not; empty otherwise.
        engine: what ran: engine, version, device, threads.
        precision: of the artifact that ran.
        samples: golden samples that were run.
        metrics: per output.
        thresholds: the limits that applied.
        misses: what is beyond its limit, worst first.
    """

    bundle: str
    digest: str
    ok: bool
    artifact: str
    fallback_reason: str
    engine: dict[str, str]
    precision: str
    samples: int
    metrics: dict[str, OutputMetrics]
    thresholds: dict[str, float]
    misses: tuple[str, ...]


def verify_bundle(path: str | os.PathLike[str], options: EngineOptions | None = None) -> VerifyResult:
    """Check a bundle's digests, run its golden samples through the engine here, and compare.

    The first artifact is held to the limits in the manifest, the fallback to those of its precision.

    Raises:
        BundleError, IntegrityError: as `Bundle.open`.
        EnvironmentMissingError, EngineError: nothing in the bundle can be loaded here.
    """
    bundle = Bundle.open(path)
    samples = bundle.golden()
    with Session(bundle, options) as session:
        first = not session.fallback_reason
        thresholds = bundle.manifest.verification.thresholds if first else {}
        thresholds = thresholds or thresholds_for(session.artifact.precision)
        metrics: dict[str, OutputMetrics] = {}
        try:
            metrics = compare_outputs([sample.outputs for sample in samples], [session.run(s.inputs) for s in samples], bundle.signature)
            misses = check_metrics(metrics, thresholds)
        except VerificationError as exc:
            misses = [str(exc)]
        return VerifyResult(
            bundle=str(path),
            digest=bundle.digest,
            ok=not misses,
            artifact="primary" if first else "fallback",
            fallback_reason=session.fallback_reason,
            engine=session.engine.describe(),
            precision=session.artifact.precision,
            samples=len(samples),
            metrics=metrics,
            thresholds=thresholds,
            misses=tuple(misses),
        )
