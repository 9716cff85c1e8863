"""What a path holds is told by its content; a kind that is not taken is refused with the reason and the next step."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgekit.converters._source import load_source
from edgekit.converters.sources._kinds import kind_of
from edgekit.errors import EnvironmentMissingError, ModelError, UsageError


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"{}")
    return path


REFUSED = {
    "pickled module": (".pt", b"\x80\x02}q\x00.", "run any code", "edgekit.build(module, example_inputs"),
    "pickle by suffix": (".pth", b"anything", "run any code", "torch.export.save"),
    "HDF5": (".h5", b"\x89HDF\r\n\x1a\n____", "Keras model in HDF5", "save it as .keras"),
    "TFLite": (".bin", b"\x1c\x00\x00\x00TFL3____", "a TFLite file", "give the .keras"),
    "OpenVINO": (".xml", b"<?xml version='1.0'?><net/>", "an OpenVINO IR", "give the ONNX"),
    "Core ML": (".mlmodel", b"\x08\x04", "a Core ML model", "give the ONNX"),
    "TensorRT": (".plan", b"ftrt____", "a TensorRT engine", "give the ONNX"),
    "GGUF": (".gguf", b"GGUF\x03\x00\x00\x00", "a GGUF file", "export the model to ONNX"),
    "weights": (".safetensors", b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "weights without a graph", "load them into their module"),
    "frozen graph": (".pb", b"\x0a\x10", "a frozen TensorFlow 1 graph", "tf.saved_model.save"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_kinds_say_why_and_what_next(tmp_path, name):
    suffix, content, reason, step = REFUSED[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_source(path)
    assert reason in str(caught.value)
    assert step in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_are_told_apart(tmp_path):
    assert kind_of(archive(tmp_path / "a.zip", "metadata.json", "config.json", "model.weights.h5")) == "keras"
    assert kind_of(archive(tmp_path / "b.zip", "m/archive_format", "m/models/model.json")) == "torch-export"
    for names, reason in (
        (("m/data.pkl", "m/data/0"), "run any code"),
        (("m/data.pkl", "m/constants.pkl"), "TorchScript"),
        (("readme.txt",), "no model of a known kind"),
    ):
        with pytest.raises(ModelError, match=reason):
            kind_of(archive(tmp_path / "c.pt2", *names))
    (tmp_path / "cut.keras").write_bytes((tmp_path / "a.zip").read_bytes()[:60])
    with pytest.raises(ModelError, match="a damaged archive"):
        kind_of(tmp_path / "cut.keras")


def test_directories(tmp_path):
    with pytest.raises(ModelError, match=r"is a directory without a saved_model\.pb"):
        kind_of(tmp_path)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(ModelError, match=r"give one of net\.onnx"):
        kind_of(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    assert kind_of(tmp_path) == "saved-model"


def test_options_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08")
    with pytest.raises(UsageError, match="takes no --signature"):
        load_source(path, signature="first")
    with pytest.raises(UsageError, match="takes no example_inputs"):
        load_source(path, example_inputs=[1])
    with pytest.raises(UsageError, match="an object of type dict"):
        load_source({})


@pytest.mark.parametrize(("package", "name", "extra"), [("tensorflow", "m.keras", "convert"), ("torch", "m.pt2", "torch")])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package, name, extra):
    for loaded in [each for each in __import__("sys").modules if each.split(".")[0] == package]:
        monkeypatch.delitem(__import__("sys").modules, loaded)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    names = ("config.json", "model.weights.h5") if package == "tensorflow" else ("m/archive_format",)
    with pytest.raises(EnvironmentMissingError, match=rf"{package}.*edgekit-ml\[{extra}\]"):
        load_source(archive(tmp_path / name, *names))
