"""The budgets' ledger as a file: replaced whole, held by one process."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import IO

import msgspec

from edgekit._directories import state_directory
from edgekit._storage_errors import storage_errors
from edgekit.bundle import write_file
from edgekit.errors import StorageError
from edgekit.router._budgets import Amount, BookState, Budgets, Saved, resumed

__all__ = ["FileLedger", "default_ledger_path", "keep_budgets"]

FORMAT = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5); elsewhere the wall clock alone bridges a restart


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    saved: Saved


# Made at import: msgspec resolves a type at its first use, and two threads that do so at once can crash the process.
_DECODER = msgspec.json.Decoder(_File)


class FileLedger:
    """See `Ledger`.

    Args:
        path: the file; its folder is made.

    Raises:
        StorageError: another process holds it, or it cannot be read or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = _hold(path.with_name(path.name + ".lock"))
        try:
            self.saved = _read(path)
        except BaseException:
            self.close()
            raise

    def save(self, book: BookState, lease: Amount) -> None:
        """Replace the file."""
        saved = Saved(book, lease, _boot(), time.monotonic(), time.time())
        write_file(self._path, msgspec.json.encode(_File(FORMAT, saved)))

    def close(self) -> None:
        """Let another process have the file."""
        self._held.close()


def keep_budgets(budgets: Budgets, path: Path) -> None:
    """Let budgets on `time.monotonic` go on from the file at ``path``, and be kept there.

    Raises:
        StorageError: as `FileLedger`.
    """
    ledger = FileLedger(path)
    now = time.monotonic()
    book, ahead_s = resumed(ledger.saved, budgets.limits, _boot(), now, time.time())
    budgets.keep(book, ledger, ahead_s, now)


def default_ledger_path(policy: Path) -> Path:
    """In EdgeKit's state folder, beside the telemetry spool: one ledger a policy file."""
    name = hashlib.sha256(os.fsencode(policy.absolute())).hexdigest()[:16]
    return state_directory() / "budgets" / f"{name}.json"


def _read(path: Path) -> Saved | None:
    try:
        with storage_errors(path):
            data = path.read_bytes()
    except StorageError:
        if not path.exists():
            return None
        raise
    step = "restore it; deleting it means that nothing was spent"
    try:
        file = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise StorageError(str(path), f"not a ledger of budgets: {exc}", "", step) from exc
    if file.format != FORMAT:
        raise StorageError(str(path), f"ledger format {file.format}", f"format {FORMAT}", "use the EdgeKit that wrote it")
    amounts = [file.saved.lease, *(amount for side in (file.saved.book.hour, file.saved.book.day) for _, amount in side)]
    if any(value < 0 for amount in amounts for value in amount):
        raise StorageError(str(path), "a negative amount", "amounts of 0 or more", step)
    return file.saved


def _hold(path: Path) -> IO[str]:
    """Hold ``path`` for this process. Without ``fcntl`` (Windows) nothing is held."""
    handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for as long as the lock is
    try:
        import fcntl
    except ImportError:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        handle.close()
        raise StorageError(
            str(path), "another process keeps its budgets here", "", "stop it, or give this one a ledger of its own with --budget-state"
        ) from exc
    return handle


def _boot() -> str:
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
