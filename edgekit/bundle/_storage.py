"""Files that are whole or not there: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit.errors import EdgeKitError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["atomic_directory", "fsync_tree", "storage_errors", "write_file"]

_REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the command again"),
    errno.EACCES: ("permission denied", "choose another path or change its permissions"),
    errno.EPERM: ("operation not permitted", "choose another path or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose another path"),
    errno.ENOENT: ("no such file or directory", "check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another path"),
    errno.EISDIR: ("is a directory", "give a file"),
}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` about ``path`` into one `StorageError` line; other errors pass."""
    try:
        yield
    except EdgeKitError:
        raise
    except OSError as exc:
        found, step = _REASONS.get(exc.errno or 0, (exc.strerror or str(exc), "check the path"))
        raise StorageError(str(path), found, "", step) from exc


def _fsync_directory(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Bring all files and folders below ``root`` to the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            with open(f"{folder}/{name}", "rb") as handle:
                os.fsync(handle.fileno())
        _fsync_directory(folder)


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once; a crash leaves the old file or the new one.

    Raises:
        StorageError: the folder is missing, unwritable or full.
    """
    import tempfile
    from pathlib import Path

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _fsync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``path`` that takes its place when the block ends well.

    What stood at ``path`` is kept until the new directory is complete and on disk, then removed.

    Raises:
        StorageError: the parent is missing, unwritable or full.
    """
    import shutil
    import tempfile
    from pathlib import Path

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield staging
            fsync_tree(staging)
            staging.chmod(0o755)
            retired = staging.with_name(staging.name + ".old")
            if path.exists():
                os.replace(path, retired)
            os.replace(staging, path)
            shutil.rmtree(retired, ignore_errors=True)
            _fsync_directory(path.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
