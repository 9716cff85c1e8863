"""Writing a ``.mlpackage`` whose bytes depend on nothing but the model.

A package is a directory: ``Manifest.json`` names the items, ``Data/com.apple.CoreML/model.mlmodel`` is the serialised specification and
``Data/com.apple.CoreML/weights/weight.bin`` holds large constants. coremltools draws the manifest's identifiers at random, writes the
conversion's date into the specification and serialises protobuf maps in hash order; all three are pinned here.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from edgekit.bundle import write_file

__all__ = ["DATE_KEY", "write_package"]

DATE_KEY = "com.github.apple.coremltools.conversion_date"
"""Metadata entry that is left out."""

_AUTHOR = "com.apple.CoreML"
_NAMESPACE = uuid.UUID("b3c2d0f4-5c63-5a0e-9d0c-6d1a9f2a7e11")  # of identifiers in manifests; any fixed value does


def write_package(model: Any, directory: Path) -> int:
    """Write a converted `MLModel` to ``directory`` (``….mlpackage``) and return the bytes written.

    Raises:
        StorageError: it cannot be written.
    """
    specification = model.get_spec()
    specification.description.metadata.userDefined.pop(DATE_KEY, None)
    spec_bytes = specification.SerializeToString(deterministic=True)
    weights = Path(model.weights_dir) / "weight.bin" if model.weights_dir else None
    weight_bytes = weights.read_bytes() if weights and weights.is_file() else b""
    manifest = _manifest(spec_bytes, weight_bytes)
    data = directory / "Data" / _AUTHOR
    write_file(data / "model.mlmodel", spec_bytes)
    if weight_bytes:
        write_file(data / "weights" / "weight.bin", weight_bytes)
    write_file(directory / "Manifest.json", manifest)
    return len(spec_bytes) + len(weight_bytes) + len(manifest)


def _manifest(specification: bytes, weights: bytes) -> bytes:
    """The package's table of contents. Without weights it names no folder for them: a bundle carries files, so an empty folder would be lost."""
    digest = hashlib.sha256(specification + weights).hexdigest()
    model_id, weights_id = (str(uuid.uuid5(_NAMESPACE, f"{item} {digest}")).upper() for item in ("model", "weights"))
    entries = {model_id: _entry("CoreML Model Specification", "model.mlmodel")}
    if weights:
        entries[weights_id] = _entry("CoreML Model Weights", "weights")
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": model_id}
    return json.dumps(content, indent=4, sort_keys=True).encode() + b"\n"


def _entry(description: str, name: str) -> dict[str, str]:
    return {"author": _AUTHOR, "description": description, "name": name, "path": f"{_AUTHOR}/{name}"}
