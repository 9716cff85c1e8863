"""Tell what kind of model a path holds, by its content first and its suffix second; say why a kind is not taken, and what to do."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgekit._storage_errors import storage_errors
from edgekit.errors import ModelError

__all__ = ["kind_of"]

_HEAD_BYTES = 16
_SIGNED = (  # (offset, bytes, kind); the file identifiers stand behind the root offset of a flatbuffer
    (4, b"ORTM", "ort"),
    (4, b"TFL3", "tflite"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"GGUF", "gguf"),
    (0, b"\x80\x02", "pickle"),
    (0, b"\x80\x04", "pickle"),
    (0, b"<?xml", "openvino"),
)
_SUFFIXES = {
    ".onnx": "onnx",
    ".ort": "ort",
    ".keras": "keras",
    ".pt2": "torch-export",
    ".pt": "pickle",
    ".pth": "pickle",
    ".ckpt": "pickle",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".tflite": "tflite",
    ".safetensors": "safetensors",
    ".pb": "frozen",
    ".mlmodel": "coreml",
    ".engine": "engine",
    ".plan": "engine",
    ".gguf": "gguf",
}
# kind: what it is, why it is not taken, what to do
_REFUSED = {
    "pickle": (
        "a pickled PyTorch file: loading it can run any code that is in it",
        "a torch.export archive (.pt2), an ONNX file, or the module itself",
        "where you trust it, load it in Python and call edgekit.build(module, example_inputs=…), or torch.export.save",
    ),
    "hdf5": (
        "a Keras model in HDF5: its Lambda layers would run as code while it is loaded",
        "a .keras file or a SavedModel",
        "where you trust it, load it with keras.models.load_model and save it as .keras",
    ),
    "tflite": ("a TFLite file: what was folded and fused in it cannot be undone", "the model that it was made from", "give the .keras, SavedModel or ONNX"),
    "openvino": ("an OpenVINO IR: it is an artifact, not a source", "the model that it was made from", "give the ONNX, Keras or SavedModel"),
    "coreml": ("a Core ML model: it is an artifact, not a source", "the model that it was made from", "give the ONNX, Keras or SavedModel"),
    "engine": ("a TensorRT engine: it runs on one GPU and has no graph to read", "the model that it was made from", "give the ONNX"),
    "gguf": ("a GGUF file: weights of a language model without a graph", "a model with a graph", "export the model to ONNX"),
    "safetensors": ("weights without a graph", "a model with a graph", "load them into their module and call edgekit.build(module, example_inputs=…)"),
    "frozen": ("a frozen TensorFlow 1 graph", "a SavedModel", "wrap it in a tf.Module with a signature and write it with tf.saved_model.save"),
    "torchscript": (
        "a TorchScript archive, which torch.onnx.export reads no more",
        "a torch.export archive (.pt2), an ONNX file, or the module itself",
        "call edgekit.build(module, example_inputs=…) on the module it was made from",
    ),
}  # fmt: skip


def kind_of(path: Path) -> str:
    """``onnx``, ``ort``, ``keras``, ``saved-model`` or ``torch-export``; what cannot be told is left to the ONNX reader.

    Raises:
        ModelError: missing, empty, a directory that is no SavedModel, or a kind that is not taken, with the reason.
        StorageError: it cannot be read.
    """
    if not path.exists():
        raise ModelError(str(path), "no such file", "a model file", "check the path")
    with storage_errors(path):
        if path.is_dir():
            return _directory(path)
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    if not head:
        raise ModelError(str(path), "the file is empty", "a model", "export or download it again")
    suffix = path.suffix.lower()
    kind = next((kind for offset, magic, kind in _SIGNED if head[offset:].startswith(magic)), "")
    if not kind and head.startswith(b"PK\x03\x04"):
        kind = _archive(path)
    kind = kind or _SUFFIXES.get(suffix, "onnx")
    if kind in _REFUSED:
        found, expected, step = _REFUSED[kind]
        raise ModelError(str(path), f"is {found}", expected, step)
    return kind


def _directory(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "saved-model"
    if path.suffix in (".mlpackage", ".mlmodelc"):
        found, expected, step = _REFUSED["coreml"]
        raise ModelError(str(path), f"is {found}", expected, step)
    models = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in (".onnx", ".ort", ".keras", ".pt2"))
    step = f"give one of {', '.join(models[:5])}" if models else "give the model file itself"
    raise ModelError(str(path), "is a directory without a saved_model.pb", "a model file or a SavedModel directory", step)


def _archive(path: Path) -> str:
    """What a zip file is: Keras and PyTorch both write them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as exc:
        raise ModelError(str(path), f"a damaged archive ({exc})", "a whole ONNX, .keras or .pt2 file", "export or copy it again") from exc
    inner = {name.split("/", 1)[-1] for name in names}
    if "config.json" in names and any(name.startswith("model.weights") for name in names):
        return "keras"
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        return "torch-export"
    if "constants.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        return "pickle"
    raise ModelError(
        str(path), "an archive that holds no model of a known kind", "an ONNX, .keras or .pt2 file", "unpack it and give the model itself"
    )
