from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit.errors import UnavailableError, UnknownNameError
from examples import models


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="ppocr-rec"):
        models.fetch("ppocr-reg")


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    # A port of this machine that nothing listens on; and no other place where pip could find the wheel.
    for key, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UnavailableError) as caught:
        models.fetch("magika")
    assert "magika==1.0.3" in str(caught.value)
    assert str(tmp_path / "models") in str(caught.value)
    assert models.main(["magika"]) == 1
    assert capsys.readouterr().err.startswith("error: model 'magika'")


@pytest.mark.slow
def test_every_model_is_the_pinned_file() -> None:
    for name, model in models.MODELS.items():
        assert hashlib.sha256(models.fetch(name).read_bytes()).hexdigest() == model.sha256


@pytest.mark.slow
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    path = models.fetch("silero-vad")
    good = path.read_bytes()
    path.write_bytes(b"cut")
    assert models.fetch("silero-vad").read_bytes() == good


@pytest.mark.slow
def test_the_recogniser_s_characters_are_its_classes() -> None:
    import onnx

    classes = models.characters()
    output = onnx.load(models.fetch("ppocr-rec")).graph.output[0]
    assert len(classes) == output.type.tensor_type.shape.dim[2].dim_value == 6625
    assert (classes[0], classes[-1]) == ("", " ")
    assert {"a", "Z", "9"} <= set(classes)
