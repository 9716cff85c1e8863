"""A real model that takes pictures of any size and answers with a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.runtime import verify_bundle
from examples import text_angle


@pytest.mark.slow
@pytest.mark.parametrize("device", ["generic-x86", "intel-nuc"])
def test_it_tells_which_way_up_words_are(tmp_path: Path, real_model: Callable[[str], Path], device: str) -> None:
    assert real_model("ppocr-cls").is_file()
    bundle = text_angle.build(device, tmp_path)
    assert bundle.manifest.verification.sample_source == "calibration"
    assert verify_bundle(bundle.path).ok
    with edgekit.load(bundle) as session:
        for text in ("Hello, pixels", "an order of 3 teas", "2026-11-22"):
            for turned in (False, True):
                picture = text_angle.line(text)[:: -1 if turned else 1, :: -1 if turned else 1]
                answer = session.run({"x": np.ascontiguousarray(picture)[np.newaxis]})
                assert bundle.labels()[answer["classes"][0, 0]] == text_angle.LABELS[turned]
                assert answer["scores"][0, 0] > 0.9


def test_the_example_draws_lines_of_different_sizes() -> None:
    short, long = text_angle.line("a"), text_angle.line("a much longer line")
    assert short.dtype == np.uint8
    assert short.shape[1] < long.shape[1]
    assert short.min() < 50 < 250 < short.max()
