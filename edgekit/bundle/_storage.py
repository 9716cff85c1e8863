"""Files that are whole or not there: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit._storage_errors import storage_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["atomic_directory", "fsync_tree", "write_file"]


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
