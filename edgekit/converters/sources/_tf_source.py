"""Keras files and SavedModels as source models: their ONNX form, and the original for targets that convert it themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit._storage_errors import storage_errors
from edgekit.converters.sources._judge import check, import_onnx, name_dimensions, signature_of
from edgekit.converters.sources._model import NativeModel, SourceModel
from edgekit.converters.sources._onnx_file import parse_onnx

if TYPE_CHECKING:
    from edgekit.converters._isolation import Guard

__all__ = ["read_tensorflow"]


def read_tensorflow(path: Path, kind: str, signature_key: str, guard: Guard) -> SourceModel:
    """Check a Keras file or a SavedModel.

    Args:
        path: file or directory.
        kind: ``keras`` or ``saved-model``.
        signature_key: of a SavedModel; empty for the only or default one.
        guard: TensorFlow runs in its process.

    Raises:
        See `edgekit.converters.sources._tf_export.export_tensorflow`.
    """
    onnx = import_onnx()
    exported = guard.call("tflite", str(path), "edgekit.converters.sources._tf_export:export_tensorflow", str(path), kind, signature_key)
    model = parse_onnx(path, exported.model)
    opset = check(onnx, path, model)
    name_dimensions(model)
    return SourceModel(
        path,
        model,
        kind,
        _digest(path),
        opset,
        signature_of(path, model),
        native=NativeModel(path.resolve(), kind, exported.signature_key, exported.inputs, exported.outputs),
        passes=("source::tf2onnx",),
        notes=(f"tf2onnx's ONNX form gave TensorFlow's own outputs on {exported.compared} seeded sample(s)",),
    )


def _digest(path: Path) -> str:
    """Hex digest of a file's bytes; of a directory, of the names and digests of its files in the order of their names."""
    with storage_errors(path):
        if path.is_file():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for entry in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).as_posix()):
            if entry.is_file():
                with open(entry, "rb") as file:
                    digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {entry.relative_to(path).as_posix()}\n".encode())
        return digest.hexdigest()
