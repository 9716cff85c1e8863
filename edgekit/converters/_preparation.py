"""What is done to a source model before any target sees it. ONNX Runtime and the simplifiers do it, in a process of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.bundle import Dim
from edgekit.converters import processing
from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._isolation import Tell
from edgekit.converters._normalise import normalise
from edgekit.converters._open_sizes import at_sizes, find_settings, open_symbols
from edgekit.converters._samples import SampleSet, golden_samples, trial
from edgekit.converters._source import SourceModel

__all__ = ["prepare", "put_around"]

_BATCHES = (1, 2, 3)  # of settings that only samples are made from


def prepare(
    tell: Tell,
    source: SourceModel,
    shapes: Mapping[str, Sequence[Dim]],
    static: bool,
    calibration: Path | None,
    batches: Sequence[int] = (),
) -> tuple[NormalisedModel, SampleSet]:
    """The normal form of a model, and samples with the source's own answers; raises as `normalise` and `golden_samples` do."""
    tell("normalising")
    normalised = normalise(source, shapes, static=static)
    opened = open_symbols(source.signature, shapes)
    if opened and (batches or calibration is None):
        tell("trying sizes for what is open")
        settings = find_settings(normalised.signature, opened, batches or _BATCHES, trial(source, normalised.signature))
        fixed = tuple(normalise(source, at_sizes(source.signature, shapes, sizes), static=True) for sizes in settings.probes if batches)
        normalised = dataclasses.replace(normalised, probes=fixed, settings=settings)
    tell("running the source model on samples")
    return normalised, golden_samples(source, normalised.signature, calibration, normalised.settings.proofs)


def put_around(tell: Tell, source: SourceModel, request: processing.Request) -> SourceModel:
    """The source with pre- and post-processing in its graph; raises as `processing.apply` does."""
    tell("writing the processing into the graph")
    return processing.apply(source, request)
