"""Where work in progress lies: one folder a process, which goes when the process does, however that ends.

A process that is killed removes nothing, so each holds a lock on its folder and the next one that needs a folder removes those whose lock nobody holds.
Toolchains leave files in the temporary folder of their own accord (coremltools its packages, TensorFlow its generated code): `use` gives them another one, which
the caller of the toolchain removes.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["scratch_folder", "use"]

_PREFIX = "edgekit-scratch-"
_LOCK = "lock"

_guard = threading.Lock()
_given: Path | None = None
_own: Path | None = None
_held = -1  # descriptor of the lock on `_own`


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder that is removed with all that is in it at the end of the block.

    Args:
        purpose: the first part of its name.

    Raises:
        OSError: there is no place for it.
    """
    with tempfile.TemporaryDirectory(prefix=f"{purpose}-", dir=_base(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def use(folder: Path) -> None:
    """Send all temporary files of this process to ``folder`` from now on, those of libraries included; the caller removes it."""
    global _given
    _given = folder
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)  # native code asks the environment


def _base() -> Path:
    """The folder of this process; made on first use, and again when somebody removed it."""
    global _own, _held
    if _given is not None:
        return _given
    with _guard:
        if _own is None or not _own.is_dir():
            parent = Path(tempfile.gettempdir())
            _sweep(parent)
            _forget()
            _own, _held = _locked(parent)
        return _own


def _locked(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process swept it before it had its lock
            descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            if _lock(descriptor) and (folder / _LOCK).exists():
                return folder, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(parent: Path) -> None:
    """Remove the folders of this user's processes that are gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # not there any more, or not ours
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                if _lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _forget() -> None:
    global _own, _held
    if _held >= 0:
        os.close(_held)
    _own, _held = None, -1


@atexit.register
def _remove() -> None:
    if _own is not None:
        shutil.rmtree(_own, ignore_errors=True)


os.register_at_fork(after_in_child=_forget)  # the folder is the parent's
