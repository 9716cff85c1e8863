"""One line for what the file system refused."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from edgekit.errors import EdgeKitError, StorageError

__all__ = ["storage_errors"]

_REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the command again"),
    errno.EACCES: ("permission denied", "choose another path or change its permissions"),
    errno.EPERM: ("operation not permitted", "choose another path or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose another path"),
    errno.ENOENT: ("no such file or directory", "check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another path"),
    errno.EEXIST: ("is there already, as a file", "choose another path"),
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
