"""Opening an ``.mlpackage``: the manifest names the root model; the model's folder holds the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit._storage_errors import storage_errors
from edgekit.converters.coreml_reference._proto import model_proto
from edgekit.errors import BundleError, EngineError

__all__ = ["Package", "open_package"]

_REBUILD = "the package is incomplete or damaged; build it again"


@dataclass(frozen=True)
class Package:
    """A parsed package.

    Attributes:
        path: the ``.mlpackage`` directory.
        model_directory: what ``@model_path`` in file names means.
        spec: the ``Model`` message.
    """

    path: Path
    model_directory: Path
    spec: Any


def open_package(path: Path) -> Package:
    """Read the manifest and the specification.

    Raises:
        BundleError: no such package, or a part of it is missing or unreadable.
        EngineError: the model is not an ML Program.
        EnvironmentMissingError: coremltools is not installed.
    """
    if not path.is_dir():
        raise BundleError(str(path), "no such package" if not path.exists() else "is a file", "an .mlpackage directory", "check the path")
    model_path = _root_model(path)
    with storage_errors(model_path):
        data = model_path.read_bytes()
    module = model_proto()
    from google.protobuf.message import DecodeError

    spec = module.Model()
    try:
        spec.ParseFromString(data)
    except DecodeError as exc:
        raise BundleError(str(model_path), f"not a Core ML model specification ({exc})", "a serialized Model message", _REBUILD) from exc
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise EngineError(str(path), f"model type {kind or 'missing'}", "mlProgram", "the reference interpreter runs ML Programs only")
    return Package(path, model_path.parent, spec)


def _root_model(path: Path) -> Path:
    manifest_path = path / "Manifest.json"
    if not manifest_path.is_file():
        raise BundleError(str(path), "no Manifest.json", "an .mlpackage directory", _REBUILD)
    with storage_errors(manifest_path):
        raw = manifest_path.read_bytes()
    try:
        manifest = json.loads(raw)
        relative = PurePosixPath(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleError(
            str(manifest_path), "names no root model", "rootModelIdentifier with a path among itemInfoEntries", _REBUILD
        ) from exc
    if relative.is_absolute() or ".." in relative.parts:
        raise BundleError(str(manifest_path), f"the root model's path is {str(relative)!r}", "a path inside the package", _REBUILD)
    model_path = path / "Data" / relative
    if not model_path.is_file():
        raise BundleError(str(model_path), "no such file", "the model that Manifest.json names", _REBUILD)
    return model_path
