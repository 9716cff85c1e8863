"""What a bundle says about its own build: the manifest and ``report.json``. Nothing in them changes between two equal builds."""

from __future__ import annotations

from importlib import metadata

import msgspec

from edgekit._version import __version__
from edgekit.bundle import FORMAT, Artifact, Manifest, Source, Verification
from edgekit.converters._delivery import Delivery
from edgekit.converters._samples import SampleSet
from edgekit.converters._source import SourceModel
from edgekit.device_profiles import EngineClaim
from edgekit.runtime._compare import thresholds_for
from edgekit.runtime._fallback import ACCELERATORS

__all__ = ["manifest_of", "report_of"]


def manifest_of(name: str, version: str, source: SourceModel, samples: SampleSet, delivery: Delivery) -> Manifest:
    """``bundle.json`` but for the files, which `write_bundle` adds.

    Args:
        name: the bundle's.
        version: the model's.
        source: as read.
        samples: those of the proof.
        delivery: the judged artifact.
    """
    emitted, normalised = delivery.emitted, delivery.job.source
    return Manifest(
        format=FORMAT,
        name=name,
        version=version,
        device=delivery.job.profile.id,
        precision=delivery.job.precision,
        signature=normalised.signature,
        artifact=_with_accelerators(emitted.artifact, delivery.job.claim),
        verification=_verification(source, samples, delivery),
        source=Source(source.path.name, source.format, source.sha256, source.opset),
        tools={"edgekit": __version__, **_versions("numpy", "onnx", "onnxruntime", "onnxslim"), **emitted.tools},
        fixed=normalised.fixed,
        fallback=emitted.fallback,
    )


def report_of(source: SourceModel, samples: SampleSet, delivery: Delivery) -> dict[str, object]:
    """``report.json``: how the artifact came about."""
    normalised, proof = delivery.job.source, delivery.proof
    return {
        "passes": normalised.passes,
        "opset": {"source": source.opset, "normalised": normalised.opset},
        "emitter": delivery.emitted.report,
        "proof": {"verified": proof.verified, "engine": proof.engine, "notes": proof.notes, "left_to_device": proof.left_to_device},
        "samples": {"source": samples.source, "count": len(samples.samples), "notes": samples.notes},
        **delivery.report,
    }


def _with_accelerators(artifact: Artifact, claim: EngineClaim) -> Artifact:
    """The artifact with its device's order of accelerators, which the runtime goes by; nothing where that is the CPU only, or TensorRT's GPU."""
    if claim.accelerators in ((), ("cpu",)) or artifact.engine != claim.name or artifact.engine.startswith("tensorrt"):
        return artifact
    return msgspec.structs.replace(artifact, options={**artifact.options, ACCELERATORS: ",".join(claim.accelerators)})


def _verification(source: SourceModel, samples: SampleSet, delivery: Delivery) -> Verification:
    proof = delivery.proof
    return Verification(
        verified=proof.verified,
        engine=proof.engine,
        samples=len(proof.outputs),
        sample_source=samples.source,
        metrics=delivery.metrics,
        thresholds=thresholds_for(delivery.job.held_to),
        notes=(*source.notes, *samples.notes, *delivery.emitted.notes, *proof.notes),
        left_to_device=tuple(proof.left_to_device),
    )


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}
