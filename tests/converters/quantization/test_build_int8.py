"""`edgekit.build` with int8: the report, auto's choice, equal bytes for equal builds."""

import json

import numpy as np
import onnx
import pytest

import edgekit
from edgekit.errors import UnknownNameError, UsageError

from .models import cnn, samples

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path):
    """A model file and a folder of samples."""
    proto = cnn(classes=4)
    onnx.save(proto, tmp_path / "cnn.onnx")
    (tmp_path / "samples").mkdir()
    for index, inputs in enumerate(samples(proto, 40)):
        np.save(tmp_path / f"samples/{index:02}.npy", inputs["x"])
    return tmp_path / "cnn.onnx", tmp_path / "samples"


def build(source, output, device="intel-nuc", **options):
    path, folder = source
    return edgekit.build(path, device=device, calibration=folder, output=output, cache=False, isolate=False, reproducer=False, **options)


def test_auto_takes_int8_where_it_is_fast_and_holds(source, tmp_path):
    bundle = build(source, tmp_path / "b", min_agreement=0.9)
    assert bundle.manifest.precision == bundle.manifest.artifact.precision == "int8"
    report = json.loads((bundle.directory / "report.json").read_text())["int8"]
    assert report["calibration"]["samples"] == 40
    assert set(report["calibration"]["tensors"]["x"]) == {"minmax", "percentile", "entropy", "error"}
    assert report["ladder"][0]["kept"] == []
    assert report["agreement"] >= 0.9
    assert any(note.startswith("int8: ") for note in bundle.manifest.verification.notes)


def test_auto_falls_back_when_int8_does_not_hold(source, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.converters._precision_choice._WORTH_IT", 1.1)
    bundle = build(source, tmp_path / "b", min_agreement=0.9)
    assert bundle.manifest.precision == "fp32"
    assert any("int8 was not taken" in note for note in bundle.manifest.verification.notes)
    assert {"model.bin", "model.xml"} <= {path.name for path in bundle.directory.iterdir()}
    assert not [path for path in bundle.directory.iterdir() if path.is_dir()]


@pytest.mark.parametrize("device", ["intel-nuc", "generic-x86"])
def test_equal_builds_are_equal_bytes(source, tmp_path, device):
    first, second = (build(source, tmp_path / name, device, precision="int8", min_agreement=0.9) for name in "ab")
    assert first.digest == second.digest


def test_a_coral_bundle_takes_and_gives_float(source, tmp_path):
    bundle = build(source, tmp_path / "b", "coral", min_agreement=0.8)
    assert bundle.manifest.artifact.inputs[0].native_dtype == "int8"
    with edgekit.load(bundle) as session:
        golden = bundle.golden()[0]
        answer = session.run(golden.inputs)["y"]
    assert answer.dtype == np.float32
    assert np.abs(answer - golden.outputs["y"]).max() < 0.2 * np.abs(golden.outputs["y"]).max()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration_method": "median"}, UnknownNameError, "calibration-method"),
        ({"min_agreement": 2.0}, UsageError, "--min-agreement"),
        ({"compress": "zip"}, UsageError, "--compress"),
    ],
)
def test_settings_are_refused_before_the_model_is_read(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        edgekit.build(tmp_path / "nothing.onnx", device="intel-nuc", **options)
