"""A folder of installed bundles: what `edgekit models` writes and `edgekit serve --repository` follows.

``models.json`` says which versions there are and what they are called (`edgekit.runtime._versions`); each bundle has a folder of its own beside it,
named by its content. The one step that changes anything for a reader is the replacement of ``models.json``, a rename. What comes before it (the copy of
a bundle) and after it (the deletion of one) touches only folders that ``models.json`` does not name, so a process that dies at any point leaves
the state before or the state after; leftovers go with the next change. Writers take turns by a lock on ``.lock``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgekit._storage_errors import storage_errors
from edgekit.bundle import Bundle, fsync_tree, write_file
from edgekit.errors import EnvironmentMissingError, UsageError
from edgekit.runtime._background import run_behind
from edgekit.runtime._found import FoundBundle, find_bundles
from edgekit.runtime._versions import (
    InstalledVersion,
    RepositoryState,
    choose_removals,
    decode_state,
    encode_state,
    with_installed,
    without_version,
)

__all__ = ["FolderStore", "PathStore", "VersionStore"]

STATE = "models.json"
_LOCK = ".lock"
_INCOMING = ".incoming-"
_OURS = re.compile(r".*@[0-9a-f]{16}")  # folders that this module made

Change = Callable[[RepositoryState], RepositoryState]


class VersionStore(Protocol):
    """Where a repository's bundles and labels come from."""

    def found(self) -> list[FoundBundle]:
        """The bundles that are there now."""
        ...

    def state(self) -> RepositoryState:
        """Labels and rollouts as they are now."""
        ...

    def update(self, change: Change) -> RepositoryState:
        """Replace the state by ``change`` of it, at once; what ``change`` raises leaves the old one."""
        ...

    def stamp(self) -> object:
        """Differs when the state was changed by another process."""
        ...


class PathStore:
    """Bundles that are served from where they lie. Labels are kept in memory: they end with the process.

    Args:
        paths: bundles, or folders that contain them at any depth.

    Raises:
        BundleError, UsageError, StorageError: as `find_bundles`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths]
        self._state = RepositoryState()
        self._lock = threading.Lock()
        self.found()

    def found(self) -> list[FoundBundle]:
        """See `VersionStore`."""
        return find_bundles(self._paths)

    def state(self) -> RepositoryState:
        """See `VersionStore`."""
        return self._state

    def update(self, change: Change) -> RepositoryState:
        """See `VersionStore`."""
        with self._lock:
            self._state = change(self._state)
            return self._state

    def stamp(self) -> object:
        """Nobody else changes it."""
        return None


class FolderStore:
    """The folder of the module's description. Safe from several threads and processes.

    Args:
        folder: made when it is not there.

    Raises:
        StorageError: it cannot be read or written.
        BundleError: its ``models.json`` cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.state()

    def state(self) -> RepositoryState:
        """See `VersionStore`."""
        path = self.folder / STATE
        with storage_errors(path):
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                return RepositoryState()
        return decode_state(raw, str(path))

    def stamp(self) -> object:
        """See `VersionStore`. A replaced file is another inode."""
        try:
            found = os.stat(self.folder / STATE)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def found(self) -> list[FoundBundle]:
        """See `VersionStore`."""
        return [
            FoundBundle(name, version, self.folder / installed.folder, digest=installed.digest)
            for name, model in sorted(self.state().models.items())
            for version, installed in model.versions.items()
        ]

    def update(self, change: Change) -> RepositoryState:
        """See `VersionStore`."""
        with self._writing():
            return self._commit(change(self.state()))

    def install(self, source: str | os.PathLike[str], labels: Collection[str] = (), *, make_room: bool = False) -> tuple[str, str]:
        """Copy a bundle into the folder. Its labels move at the moment it appears.

        Args:
            source: a bundle, as a directory or one file.
            labels: to put on it.
            make_room: remove the oldest versions that nothing needs, if the quota asks for it.

        Returns:
            name and version.

        Raises:
            BundleError, IntegrityError: the source is no bundle, or was changed.
            UsageError: it does not fit the quota; a label that cannot be one; the version is in use with another content.
            StorageError: the folder cannot be written.
        """
        # A server may be at work beside this process.
        return run_behind(lambda: self._install(source, labels, make_room=make_room), idle=False)

    def _install(self, source: str | os.PathLike[str], labels: Collection[str], *, make_room: bool) -> tuple[str, str]:
        bundle = Bundle.open(source, to_copy=True)
        name, version = bundle.manifest.name, bundle.manifest.version
        _, _, missing = self._plan(bundle, labels, make_room=make_room)  # refuses before anything is copied
        if not missing:
            bundle.check()
        with self._staged(bundle) if missing else contextlib.nullcontext() as staged, self._writing():
            state, folder, missing = self._plan(bundle, labels, make_room=make_room)
            if missing and staged is not None:
                self._sweep(self.state())  # what a killed process may have left where this goes
                os.replace(staged, self.folder / folder)
            if not missing or staged is not None:
                self._commit(state)
                return name, version
        return self._install(source, labels, make_room=make_room)  # it was there, and was removed just now

    def _plan(self, bundle: Bundle, labels: Collection[str], *, make_room: bool) -> tuple[RepositoryState, str, bool]:
        """The state after an installation, the bundle's folder, and whether it has to be copied there first."""
        name, version = bundle.manifest.name, bundle.manifest.version
        state = self.state()
        order = 1 + max((one.order for model in state.models.values() for one in model.versions.values()), default=0)
        present = state.models[name].versions.get(version) if name in state.models else None
        if present is not None and present.digest == bundle.digest:
            entry = msgspec.structs.replace(present, order=order)
            return with_installed(state, name, version, entry, labels), entry.folder, False
        size = sum(path.stat().st_size for path in bundle.directory.rglob("*") if path.is_file())
        entry = InstalledVersion(_folder_name(name, version, bundle.digest), bundle.digest, size, order)
        with_installed(state, name, version, entry, labels)
        state = _with_room(state, size, (name, version), make_room=make_room)
        return with_installed(state, name, version, entry, labels), entry.folder, True

    def remove(self, name: str, version: str) -> None:
        """Remove a version. Servers that have it loaded finish what they have.

        Raises:
            NotFoundError: it is not installed.
            UsageError: a label or a rollout needs it.
            StorageError: the folder cannot be written.
        """
        run_behind(lambda: self.update(lambda state: without_version(state, name, version)), idle=False)

    def set_quota(self, quota_bytes: int) -> None:
        """How many bytes the bundles may take from now on, 0 for no limit; what is installed stays.

        Raises:
            UsageError: a negative number. StorageError: the folder cannot be written.
        """
        if quota_bytes < 0:
            raise UsageError("disk quota", str(quota_bytes), "0 bytes or more")
        self.update(lambda state: msgspec.structs.replace(state, quota_bytes=quota_bytes))

    def _commit(self, state: RepositoryState) -> RepositoryState:
        """The one step that readers see; then what nobody names any more goes."""
        raw = encode_state(state)
        write_file(self.folder / STATE, raw)
        self._sweep(state)
        return state

    @contextlib.contextmanager
    def _staged(self, bundle: Bundle) -> Iterator[Path]:
        """A copy of the bundle beside the others: whole, checked and on disk. A lock on its folder keeps other processes from sweeping it away, so that they
        need not wait while it is written.
        """
        with storage_errors(self.folder):
            with self._writing():
                staging = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.folder))
                held = os.open(staging, os.O_RDONLY)
                _lock(held)
            try:
                copy = staging / "bundle"
                bundle.copy(copy)
                fsync_tree(copy)
                yield copy
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                os.close(held)

    def _sweep(self, state: RepositoryState) -> None:
        """Delete what an interrupted change or a removal left: only what this module made, and only what the state does not name. The writers' lock is held."""
        named = {installed.folder for model in state.models.values() for installed in model.versions.values()}
        with storage_errors(self.folder):
            for path in self.folder.iterdir():
                if path.name.startswith(f".{STATE}.") and path.is_file():
                    path.unlink(missing_ok=True)
                elif path.name.startswith(_INCOMING):
                    _delete_unlocked(path)
                elif path.is_dir() and path.name not in named and _OURS.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with storage_errors(self.folder), open(self.folder / _LOCK, "ab") as handle:
            _lock(handle.fileno())
            yield


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Hold an open file or folder until it is closed or the process ends; false when another process does and ``wait`` is false."""
    try:
        import fcntl
    except ImportError as exc:
        raise EnvironmentMissingError(
            "a repository folder", "this system has no flock", "Linux or macOS", "serve bundles by their paths"
        ) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _delete_unlocked(staging: Path) -> None:
    """Delete an unfinished copy, unless the process that makes it lives."""
    try:
        held = os.open(staging, os.O_RDONLY)
    except FileNotFoundError:
        return  # it was finished or given up just now
    try:
        if _lock(held, wait=False):
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(held)


def _with_room(state: RepositoryState, size: int, coming: tuple[str, str], *, make_room: bool) -> RepositoryState:
    removals = choose_removals(state, size, [coming])
    if removals and not make_room:
        listed = ", ".join(f"{name} {version}" for name, version in removals)
        raise UsageError(
            "disk quota", f"{size} bytes more do not fit", f"{state.quota_bytes} bytes in all", f"remove {listed}, or give --make-room"
        )
    for name, version in removals:
        state = without_version(state, name, version)
    return state


def _folder_name(name: str, version: str, digest: str) -> str:
    """Readable, safe as one path segment, never hidden, and different for different content."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{name}-{version}").lstrip(".")[:64]
    return f"{readable}@{digest[:16]}"
