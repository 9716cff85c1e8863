"""What int8 and compressed weights take of ONNX Runtime: ranges, and a ladder of trial runs. It is done in its process, within its limits."""

from __future__ import annotations

from pathlib import Path

from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._isolation import Tell
from edgekit.converters._samples import range_inputs
from edgekit.converters.quantization import MAX_CALIBRATION, Calibrated, Compression, Quantization, Scheme, calibrate, compress, quantise

__all__ = ["compressed", "find_ranges", "quantised"]


def find_ranges(tell: Tell, normalised: NormalisedModel, calibration: Path) -> Calibrated:
    """Value ranges of a model on the user's samples; raises as `range_inputs` and `calibrate` do."""
    tell("collecting value ranges")
    samples = range_inputs(calibration, normalised.signature, MAX_CALIBRATION)
    return calibrate(normalised, samples, f"{len(samples)} samples of {calibration.name}")


def quantised(
    tell: Tell, source: NormalisedModel, calibrated: Calibrated, scheme: Scheme, method: str, min_agreement: float
) -> Quantization:
    """`quantise`."""
    return quantise(source, calibrated, scheme, method=method, min_agreement=min_agreement, progress=tell)


def compressed(tell: Tell, source: NormalisedModel, calibrated: Calibrated, wanted: Compression, min_agreement: float) -> Quantization:
    """`compress`."""
    tell(f"compressing weights: {wanted.describe()}")
    return compress(source, calibrated, wanted, min_agreement)
