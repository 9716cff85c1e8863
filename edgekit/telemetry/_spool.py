"""A queue of batches that outlives a power cut, in one SQLite file with a byte cap.

WAL with ``synchronous=FULL``: a batch that `put` accepted is there after power loss (NORMAL may roll the newest transactions back, sqlite.org/wal.html).
When the cap is reached the oldest metrics go first and receipts last, counted. A damaged file is set aside (one is kept) and a fresh one begun; freed pages
are given back to the file system. Safe from several threads; one process a file (a lock file says so).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from edgekit.errors import StorageError
from edgekit.telemetry._otlp import Batch, Signal

__all__ = ["Spool", "SpooledBatch", "open_spool"]

DEFAULT_CAP_BYTES = 64 << 20
WAL_LIMIT_BYTES = 4 << 20
SLOTS = 16  # processes of one service on one device

_SCHEMA = """
PRAGMA auto_vacuum=INCREMENTAL;
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA wal_autocheckpoint=256;
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, signal TEXT NOT NULL, body BLOB NOT NULL, bytes INTEGER NOT NULL, rows INTEGER NOT NULL
);
"""
_T = TypeVar("_T")


class SpooledBatch(msgspec.Struct, frozen=True):
    """A batch and its place in the queue."""

    id: int
    batch: Batch


class Spool:
    """First in, first out, by bytes.

    Args:
        path: the SQLite file; ``None`` keeps the queue in memory.
        cap_bytes: of bodies kept; SQLite's own overhead and a WAL of up to 4 MiB come on top.
        on_drop: called with ``(rows, reason)`` for what was lost: ``spool_full``, ``spool_corrupt``.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, path: Path | None, cap_bytes: int = DEFAULT_CAP_BYTES, on_drop: Callable[[int, str], None] | None = None) -> None:
        self.path = path
        self._cap_bytes = cap_bytes
        self._on_drop = on_drop or (lambda _rows, _reason: None)
        self._lock = threading.Lock()
        self._held: IO[str] | None = None  # the lock file, see `open_spool`
        self._in_flight: int | None = None
        self.quarantined = 0
        try:
            self._open()
        except sqlite3.DatabaseError:
            self._quarantine()

    def _open(self) -> None:
        try:
            self._db = sqlite3.connect(
                str(self.path) if self.path else ":memory:", check_same_thread=False, isolation_level=None, timeout=5.0
            )
        except sqlite3.OperationalError as exc:
            raise StorageError(str(self.path), str(exc), "a writable folder", "give another spool directory") from exc
        try:
            self._db.executescript(_SCHEMA + f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES};")
            if self._db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
            self.count: int
            self.bytes: int
            self.count, self.bytes = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM batches").fetchone()
        except sqlite3.DatabaseError as exc:
            self._db.close()
            if isinstance(exc, sqlite3.OperationalError):  # unwritable or full, not damaged
                raise StorageError(str(self.path), str(exc), "a writable folder with space", "give another spool directory") from exc
            raise

    def _quarantine(self) -> None:
        """Set the damaged file aside, at most one, and begin a fresh one; a file that cannot be moved is left, and the queue goes to memory."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self.quarantined += 1
        self._in_flight = None
        if self.path is not None:
            try:
                os.replace(self.path, self.path.with_name(self.path.name + ".corrupt"))
                for suffix in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            except OSError:
                self.path = None
        self._open()

    def _guarded(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """Run ``action`` under the lock. Damage found on the way empties the queue and gives ``otherwise``.

        Raises:
            StorageError: the disk is full or the file became unwritable; nothing changed.
        """
        with self._lock:
            try:
                return action()
            except sqlite3.DatabaseError as exc:
                if type(exc) is not sqlite3.DatabaseError:  # full, locked or closed; damage has the base class itself
                    raise StorageError(str(self.path), str(exc), "space to write", "free some space on the device") from exc
                lost = self.count
                self._quarantine()
        self._on_drop(lost, "spool_corrupt")
        return otherwise

    def put(self, batch: Batch) -> None:
        """Queue a batch; on return it is on disk. Older batches give way when the cap is reached.

        Raises:
            StorageError: it could not be written.
        """
        dropped: list[int] = []

        def action() -> bool:
            with self._transaction():
                while self.count and self.bytes + len(batch.body) > self._cap_bytes:
                    if not self._evict(dropped):
                        break
                self._db.execute(
                    "INSERT INTO batches (signal, body, bytes, rows) VALUES (?, ?, ?, ?)",
                    (batch.signal, batch.body, len(batch.body), batch.rows),
                )
                self.count += 1
                self.bytes += len(batch.body)
            return True

        if len(batch.body) > self._cap_bytes:
            self._on_drop(batch.rows, "spool_full")
            return
        if not self._guarded(action, otherwise=False):
            self._guarded(action, otherwise=False)  # the fresh file takes it
        if dropped:
            self._on_drop(sum(dropped), "spool_full")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        before = self.count, self.bytes
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self.count, self.bytes = before
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _evict(self, dropped: list[int]) -> bool:
        row = self._db.execute(
            "SELECT id, bytes, rows FROM batches WHERE id IS NOT ? ORDER BY signal = 'logs', id LIMIT 1", (self._in_flight,)
        ).fetchone()
        if row is None:
            return False
        self._db.execute("DELETE FROM batches WHERE id = ?", (row[0],))
        self.count -= 1
        self.bytes -= row[1]
        dropped.append(row[2])
        return True

    def head(self) -> SpooledBatch | None:
        """The oldest batch, which stays until `remove`; ``None`` when the queue is empty."""

        def action() -> SpooledBatch | None:
            row = self._db.execute("SELECT id, signal, body, rows FROM batches ORDER BY id LIMIT 1").fetchone()
            if row is None:
                self._in_flight = None
                return None
            signal: Signal = "logs" if row[1] == "logs" else "metrics"
            self._in_flight = row[0]
            return SpooledBatch(row[0], Batch(signal, bytes(row[2]), row[3]))

        return self._guarded(action, otherwise=None)

    def remove(self, batch_id: int) -> None:
        """Delete a batch that was delivered or given up, and give its pages back."""

        def action() -> None:
            with self._transaction():
                size = self._db.execute("SELECT bytes FROM batches WHERE id = ?", (batch_id,)).fetchone()
                if size is not None:
                    self._db.execute("DELETE FROM batches WHERE id = ?", (batch_id,))
                    self.count -= 1
                    self.bytes -= size[0]
            self._in_flight = None
            if self.path is not None:
                self._db.executescript("PRAGMA incremental_vacuum")  # execute() would stop after one page

        self._guarded(action, otherwise=None)

    def close(self) -> None:
        """Close the file; what is queued stays on disk."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            if self._held is not None:
                self._held.close()
                self._held = None


def open_spool(
    directory: Path, service_name: str, cap_bytes: int = DEFAULT_CAP_BYTES, on_drop: Callable[[int, str], None] | None = None
) -> Spool:
    """The first spool of this service that no other process holds; a crashed process's file is taken over with what is in it.

    Raises:
        StorageError: the directory cannot be written, or 16 processes of this service hold one each.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for slot in range(SLOTS):
            path = directory / f"{service_name}-{slot}.sqlite"
            held = _lock_file(path.with_suffix(".lock"))
            if held is not None:
                try:
                    spool = Spool(path, cap_bytes, on_drop)
                except BaseException:
                    held.close()
                    raise
                spool._held = held
                return spool
    except OSError as exc:
        raise StorageError(str(directory), exc.strerror or str(exc), "a writable folder", "give another spool directory") from exc
    raise StorageError(
        str(directory), f"all {SLOTS} spools of {service_name} are in use", "", "stop a process or give another spool directory"
    )


def _lock_file(path: Path) -> IO[str] | None:
    """Hold ``path`` for this process, or ``None`` when another one does. Without ``fcntl`` (Windows) nothing is held."""
    handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for as long as the lock is
    try:
        import fcntl
    except ImportError:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle
