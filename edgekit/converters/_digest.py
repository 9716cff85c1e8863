"""Digests of everything that a build's result depends on: the model with its external data, files that options name, tools, and EdgeKit itself."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit._storage_errors import storage_errors
from edgekit._version import __version__

__all__ = ["UnknownContentError", "canonical", "code_digest", "content_digest", "model_digest", "module_digest", "tools_digest"]

_LOCATION = b"location"  # the key under which a tensor names its file; an ONNX file without it has no external data


class UnknownContentError(Exception):
    """A value whose content cannot be told; what depends on it is not kept."""


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(path):
        if not path.is_dir():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            digest.update(entry.relative_to(path).as_posix().encode() + b"\0")
            digest.update(content_digest(entry).encode())
    return digest.hexdigest()


def model_digest(path: Path) -> str:
    """`content_digest` of a model, and of the files that hold an ONNX file's external data."""
    own = content_digest(path)
    if path.is_dir() or _LOCATION not in path.read_bytes():
        return own
    return _joined([own, *(f"{name} {content_digest(path.parent / name)}" for name in _external_names(path))])


def _external_names(path: Path) -> list[str]:
    """Files that an ONNX file's tensors lie in; none where it is no ONNX file, or names files that are not there (reading it says so)."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return []
    from edgekit.converters.sources._onnx_file import tensors

    named = {entry.value for tensor in tensors(model) for entry in tensor.external_data if entry.key == "location"}
    return sorted(name for name in named if (path.parent / name).is_file())


def canonical(value: object) -> Any:
    """A JSON-able form of an option in which equal values, and only those, are equal; a path that exists stands for its content.

    Raises:
        UnknownContentError: a value of another kind.
        StorageError: a path that cannot be read.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        text = os.fspath(value)
        return [str(text), content_digest(path)] if text and path.exists() else str(text)
    if isinstance(value, Mapping):
        return {"mapping": [[str(key), canonical(entry)] for key, entry in sorted(value.items())]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, Sequence):
        return [canonical(entry) for entry in value]
    raise UnknownContentError(type(value).__name__)


@cache
def tools_digest() -> str:
    """Of Python, the machine's kind, and every installed distribution with its version, by the names of their metadata folders.

    More than what builds use, so that nothing they use is forgotten: an unrelated installation costs one build.
    """
    found = {
        entry.name
        for folder in map(Path, sys.path)
        if folder.is_dir()
        for entry in os.scandir(folder)
        if entry.name.endswith((".dist-info", ".egg-info"))
    }
    return _joined([sys.version, platform.system(), platform.machine(), *sorted(found)])


@cache
def code_digest() -> str:
    """Of EdgeKit's version, its modules and its device profiles."""
    root = Path(edgekit.__file__).parent
    files = sorted(path for suffix in ("*.py", "*.toml") for path in root.rglob(suffix))
    return _joined([__version__, *(f"{path.relative_to(root).as_posix()} {content_digest(path)}" for path in files)])


def module_digest(name: str) -> str:
    """Of the module that defines an emitter; EdgeKit's own are part of `code_digest`.

    Raises:
        UnknownContentError: it has no file.
    """
    if name.startswith("edgekit."):
        return name
    file = getattr(importlib.import_module(name), "__file__", None)
    if file is None:
        raise UnknownContentError(f"module {name}")
    return f"{name} {content_digest(Path(file))}"


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
