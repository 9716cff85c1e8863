"""Which bundles lie in some folders, by name and version. Reads manifests only."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgekit._storage_errors import storage_errors
from edgekit.bundle import ARCHIVE_SUFFIX
from edgekit.errors import BundleError, UsageError

__all__ = ["FoundBundle", "find_bundles", "version_key"]

_MANIFEST = "bundle.json"
_MAX_DEPTH = 8  # folders below a given path that are searched for bundles


class FoundBundle(NamedTuple):
    """A bundle that lies in the repository. ``problem`` is why it cannot be used; then ``name`` is the file's. ``digest`` is what it must have, where known."""

    name: str
    version: str
    path: Path
    problem: str = ""
    digest: str = ""


class _Identity(msgspec.Struct):
    name: str
    version: str


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_IDENTITY_DECODER = msgspec.json.Decoder(_Identity)


def version_key(version: str) -> tuple[int, tuple[int, ...], str]:
    """Sorts versions: numbers and dotted numbers by value (``2`` < ``10`` < ``10.1``), other texts before them."""
    try:
        return 1, tuple(int(part) for part in version.split(".")), ""
    except ValueError:
        return 0, (), version


def find_bundles(paths: Sequence[Path]) -> list[FoundBundle]:
    """The bundles that ``paths`` are or contain, by name and version. Reads manifests only.

    Raises:
        BundleError: a path is neither a bundle nor a folder.
        UsageError: a folder without bundles, or the same name and version twice.
        StorageError: a path that cannot be read.
    """
    found: list[FoundBundle] = []
    for path in paths:
        with storage_errors(path):
            places = list(_walk(path))
        if not places:
            raise UsageError(str(path), "no bundle in this folder", f"folders with {_MANIFEST}, or {ARCHIVE_SUFFIX} files", "edgekit build")
        found.extend(_identify(place) for place in places)
    first: dict[tuple[str, str], Path] = {}
    for bundle in found:
        other = first.setdefault((bundle.name, bundle.version), bundle.path)
        if other != bundle.path and not bundle.problem:
            what = f"model {bundle.name} version {bundle.version}"
            raise UsageError(what, f"found twice, in {other} and {bundle.path}", "one bundle for each name and version", "remove one")
    return sorted(set(found), key=lambda bundle: (bundle.name, version_key(bundle.version), bundle.path))


def _walk(path: Path, depth: int = 0) -> Iterator[Path]:
    """Bundles at or under ``path``; does not look into bundles, hidden folders (unfinished ones are hidden) or link loops."""
    if path.is_file() or (path / _MANIFEST).is_file():
        yield path
        return
    if not path.is_dir():
        raise BundleError(str(path), "no such file or directory", "a bundle or a folder of bundles", "check the path")
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            if depth < _MAX_DEPTH:
                yield from _walk(child, depth + 1)
        elif child.suffix == ARCHIVE_SUFFIX:
            yield child


def _identify(path: Path) -> FoundBundle:
    try:
        if path.is_dir():
            raw = (path / _MANIFEST).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                raw = archive.read(_MANIFEST)
        identity = _IDENTITY_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, zipfile.BadZipFile, KeyError, OSError) as exc:
        return FoundBundle(path.stem, "", path, f"not a bundle that can be read ({exc})")
    return FoundBundle(identity.name, identity.version, path, digest=hashlib.sha256(raw).hexdigest())
