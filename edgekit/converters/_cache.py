"""Bundles that were built before, by what they were built from.

One archive a build, in ``builds`` below `edgekit._directories.cache_directory`; its name is the digest of the model's content, the options, the device profile, the
tools and EdgeKit's own code, so nothing in there is ever out of date. An archive carries digests of all its bytes, and a damaged one is built again. The
oldest go when there are too many.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path

import msgspec

from edgekit.bundle import ARCHIVE_SUFFIX, Bundle, atomic_directory, cache_directory, pack_bundle, write_file
from edgekit.converters._digest import UnknownContentError, canonical, code_digest, model_digest, module_digest, tools_digest
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._options import WITHOUT_EFFECT, BuildOptions
from edgekit.converters._targets import Target
from edgekit.converters.sources._kinds import kind_of
from edgekit.errors import BundleError, EdgeKitError, UsageError

__all__ = ["BuildCache", "limit_bytes"]

_DEFAULT_LIMIT = 4 * 2**30
_LIMIT_VARIABLE = "EDGEKIT_BUILD_CACHE_BYTES"

_log = logging.getLogger(__name__)


def limit_bytes() -> int:
    """How large the cache may be: ``$EDGEKIT_BUILD_CACHE_BYTES``, else 4 GiB; 0 is no cache.

    Raises:
        UsageError: the variable is not a whole number.
    """
    text = os.environ.get(_LIMIT_VARIABLE, str(_DEFAULT_LIMIT))
    if not text.strip().isdecimal():
        raise UsageError(_LIMIT_VARIABLE, repr(text), "a number of bytes, 0 for no cache")
    return int(text)


class BuildCache:
    """The cache, seen from one command.

    Args:
        model: what is built; None for a model that is no file, which is not kept.
        options: all that were given.
        limit: bytes; 0 keeps and finds nothing.
    """

    def __init__(self, model: Path | None, options: BuildOptions, limit: int) -> None:
        self._model, self._options, self._limit = model, options, limit
        self._folder = cache_directory() / "builds"
        self._shared: object = None

    def entry(self, target: Target) -> Path | None:
        """Where a target's bundle is kept, or would be; None when its content cannot be told from what was given.

        Raises:
            ModelError: no model, found out before all of it is read: a folder may hold anything.
            StorageError: the model, or a file that an option names, cannot be read.
        """
        if not self._limit or self._model is None:
            return None
        kind_of(self._model)
        try:
            if self._shared is None:
                given = {
                    key: canonical(value) for key, value in sorted(self._options.items()) if key not in WITHOUT_EFFECT and value is not None
                }
                self._shared = [model_digest(self._model), self._model.name, given, tools_digest(), code_digest()]
            own = [target.profile, target.precisions, module_digest(EMITTER_MODULES[target.emitter.engine])]
        except UnknownContentError as exc:
            _log.debug("not kept: %s", exc)
            return None
        key = hashlib.sha256(msgspec.json.encode([self._shared, own], order="sorted")).hexdigest()
        return self._folder / f"{key}{ARCHIVE_SUFFIX}"

    def fetch(self, entry: Path, destination: Path) -> Bundle | None:
        """A copy of a kept bundle at ``destination``; None when there is none, or it is damaged.

        Raises:
            StorageError: the destination cannot be written.
        """
        if not entry.is_file():
            return None
        try:
            kept = Bundle.open(entry)  # checks every byte
            data = entry.read_bytes() if destination.suffix == ARCHIVE_SUFFIX else b""
            with contextlib.suppress(OSError):
                os.utime(entry)  # the oldest is the one that was not used for longest
        except (BundleError, OSError) as exc:
            _log.warning("the kept build %s is dropped: %s", entry.name, exc)
            _drop(entry)
            return None
        if data:
            write_file(destination, data)
        else:
            with atomic_directory(destination) as staging:
                shutil.copytree(kept.directory, staging, dirs_exist_ok=True)
        return Bundle.open(destination)

    def store(self, entry: Path, bundle: Bundle) -> None:
        """Keep a bundle; one that cannot be kept costs nothing but the next build of it."""
        try:
            pack_bundle(bundle, entry)
            if entry.stat().st_size > self._limit:
                _drop(entry)
            self._evict()
        except (EdgeKitError, OSError) as exc:
            _log.debug("not kept: %s", exc)

    def _evict(self) -> None:
        """Remove what was not used for longest until the rest is within the limit. Others may do the same at the same time."""
        entries = []
        for path in self._folder.glob(f"*{ARCHIVE_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                entries.append((facts.st_mtime_ns, path.name, facts.st_size))
        excess = sum(size for _, _, size in entries) - self._limit
        for _, name, size in sorted(entries):
            if excess <= 0:
                return
            _drop(self._folder / name)
            excess -= size


def _drop(entry: Path) -> None:
    with contextlib.suppress(OSError):
        entry.unlink(missing_ok=True)
