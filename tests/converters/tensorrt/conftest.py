"""Jobs for the TensorRT emitters, made of tiny models as `build` makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.converters._emitter import EmitJob
from edgekit.converters._normalise import normalise
from edgekit.converters._samples import golden_samples
from edgekit.converters._source import load_source
from edgekit.device_profiles import load_profile


@pytest.fixture
def job_for(tmp_path: Path) -> Callable[..., EmitJob]:
    """``job_for(model, device, precision)``; ``shapes`` fixes sizes, ``static`` false leaves them open."""

    def make(path: Path, device: str = "jetson-orin", precision: str = "fp16", *, shapes=None, static: bool = True) -> EmitJob:
        source = load_source(path)
        model = normalise(source, shapes or {}, static=static)
        samples = golden_samples(source, model.signature, None).samples
        profile = load_profile(device)
        directory = tmp_path / f"{device}-{precision}-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        return EmitJob(path.stem, model, profile, profile.engine, precision, directory, samples)

    return make
