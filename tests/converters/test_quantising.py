"""Ranges and the int8 ladder run in a toolchain's process: within its limits, and with the same result as without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.converters import _isolation
from edgekit.converters._isolation import Guard, Limits, ProcessEndedError, close_workers
from edgekit.converters._shared_model import SharedModel

pytestmark = pytest.mark.slow


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    random = np.random.default_rng(5)
    folder = tmp_path / "samples"
    folder.mkdir()
    for index in range(8):
        np.save(folder / f"{index}.npy", random.standard_normal((1, 3, 16, 16)).astype(np.float32))
    return folder


def test_an_int8_build_is_the_same_with_and_without_a_process(tiny_conv: Path, samples: Path, tmp_path: Path) -> None:
    folders = {isolate: tmp_path / str(isolate) for isolate in (True, False)}
    for isolate, output in folders.items():
        edgekit.build(
            tiny_conv,
            device="generic-x86",
            precision="int8",
            calibration=samples,
            min_agreement=0.5,
            output=output,
            cache=False,
            isolate=isolate,
            reproducer=False,
        )
    close_workers()
    written = [{path.name: path.read_bytes() for path in output.iterdir()} for output in folders.values()]
    assert written[0] == written[1]


def test_finding_ranges_is_held_to_the_limits(tiny_conv: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SharedModel(tiny_conv, {"calibration": samples}, Guard())
    normalised, _ = model.form(static=True)
    model._guard = Guard(limits=Limits(1e-9, 2**40))
    monkeypatch.setattr(_isolation, "_TICK_S", 0)  # look before a quick worker can have answered
    with pytest.raises(ProcessEndedError, match=r"model tiny_conv\.onnx: its toolchain's process did not end within"):
        model.calibrated(normalised)
    close_workers()
