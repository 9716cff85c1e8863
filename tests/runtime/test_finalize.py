"""Finalize on an engine that runs here, and the receipts that it leaves."""

import re

import msgspec
import numpy as np
import pytest

from edgekit.bundle import (
    FORMAT,
    Artifact,
    GoldenSample,
    Manifest,
    Signature,
    Source,
    TensorBinding,
    TensorSpec,
    Verification,
    write_bundle,
)
from edgekit.errors import EnvironmentMissingError, StorageError, VerificationError
from edgekit.runtime import Receipt, finalize, list_receipts, write_receipt
from edgekit.runtime._receipts import receipts_directory


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "receipts"


@pytest.fixture
def by_hand(tiny_conv, tmp_path):
    """``by_hand(engine, wrong, device)``: a bundle of the tiny convolution, written without `build`."""
    import onnxruntime

    def make(engine="onnxruntime", wrong=0.0, device="generic-x86"):
        session = onnxruntime.InferenceSession(str(tiny_conv), providers=["CPUExecutionProvider"])
        random = np.random.default_rng(5)
        golden = []
        for _ in range(3):
            inputs = {"image": random.normal(size=(1, 3, 16, 16)).astype(np.float32)}
            outputs = dict(zip(["features", "scores"], session.run(["features", "scores"], inputs), strict=True))
            outputs["scores"] = outputs["scores"] + np.float32(wrong)
            golden.append(GoldenSample(inputs, outputs))
        signature = Signature(
            (TensorSpec("image", "float32", (1, 3, 16, 16)),),
            (TensorSpec("features", "float32", (1, 4, 8, 8)), TensorSpec("scores", "float32", (1, 5))),
        )
        bindings = [tuple(TensorBinding(s.name, s.name, s.dtype) for s in specs) for specs in (signature.inputs, signature.outputs)]
        folder = tmp_path / "artifacts"
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(tiny_conv.read_bytes())
        manifest = Manifest(
            format=FORMAT,
            name="tiny",
            version="1",
            device=device,
            precision="fp32",
            signature=signature,
            artifact=Artifact(engine, "model.onnx", "fp32", *bindings),
            verification=Verification("deferred", "none", 0, "synthetic", {}, {}),
            source=Source("tiny_conv.onnx", "onnx", "0" * 64, 17),
            tools={},
        )
        return write_bundle(tmp_path / "tiny.edgekit", manifest, folder, golden, {})

    return make


def test_loads_proves_and_leaves_a_receipt(by_hand, state):
    bundle = by_hand()
    receipt = finalize(bundle)
    assert list_receipts() == [receipt]
    assert (receipt.bundle, receipt.digest, receipt.profile) == ("tiny", bundle.digest, "generic-x86")
    assert receipt.verified == "host"
    assert receipt.samples == 3
    assert not receipt.built
    assert receipt.metrics["scores"].max_rel <= receipt.thresholds["max_rel"]
    assert receipt.engine["engine"] == "onnxruntime"
    assert receipt.probe["cpu"]["cores"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", receipt.created_at)
    assert 0 < receipt.seconds < 60
    (path,) = state.iterdir()
    assert path.name.endswith(f"-{bundle.digest[:12]}.json")


def test_a_path_will_do(by_hand, state):
    assert finalize(str(by_hand().path)).verified == "host"


def test_contradictions_are_the_probes(by_hand, state):
    receipt = finalize(by_hand(device="raspberry-pi-5"))
    assert any("the profile says aarch64" in sentence for sentence in receipt.contradictions)


def test_a_device_without_a_profile_is_no_failure(by_hand, state):
    (sentence,) = finalize(by_hand(device="home-made-board")).contradictions
    assert "home-made-board" in sentence


def test_wrong_numbers_are_refused_and_recorded(by_hand, state):
    with pytest.raises(VerificationError, match=r"tiny on onnxruntime: output 'scores': .*do not serve it"):
        finalize(by_hand(wrong=0.5))
    (receipt,) = list_receipts()
    assert receipt.verified == "deferred"
    assert "scores" in receipt.misses[0]


def test_an_engine_that_is_not_here_is_named(by_hand, state):
    with pytest.raises(EnvironmentMissingError, match="engine tensorrt: the package tensorrt is not installed") as caught:
        finalize(by_hand(engine="tensorrt"))
    assert "fallback" not in str(caught.value)  # this bundle has none
    assert list_receipts() == []


def test_receipts_sort_by_time_and_read_back(by_hand, tmp_path, state):
    receipt = finalize(by_hand())
    days = [f"2026-11-{day:02}T10:00:00.000001+00:00" for day in (22, 3, 14)]
    for day in days:
        write_receipt(msgspec.structs.replace(receipt, created_at=day), tmp_path / "other")
    assert [found.created_at for found in list_receipts(tmp_path / "other")] == sorted(days)


def test_a_damaged_receipt_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"bundle": 1}')
    with pytest.raises(StorageError, match=r"x\.json: is no receipt"):
        list_receipts(tmp_path)
    assert list_receipts(tmp_path / "missing") == []


def test_where_receipts_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path))
    assert receipts_directory() == tmp_path / "receipts"
    monkeypatch.delenv("EDGEKIT_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert receipts_directory() == tmp_path / "xdg" / "edgekit" / "receipts"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert receipts_directory() == tmp_path / "home" / ".local" / "state" / "edgekit" / "receipts"


def test_a_receipt_is_json_able(by_hand, state):
    receipt = finalize(by_hand())
    assert msgspec.json.decode(msgspec.json.encode(receipt), type=Receipt) == receipt
