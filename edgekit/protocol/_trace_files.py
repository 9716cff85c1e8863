"""Files of traces in a folder that the operator gave: whole or not there, never in place of another, and not without end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from edgekit._storage_errors import storage_errors
from edgekit.errors import EdgeKitError, OverloadedError, StorageError
from edgekit.protocol._trace import MOST_TRACES, Trace

__all__ = ["MOST_BYTES", "MOST_FILES", "TraceFolder"]

_log = logging.getLogger(__name__)
MOST_FILES = 1000
"""In the folder, whoever wrote them."""
MOST_BYTES = 256 << 20
"""Of them all."""
_MOST_WAITING = 4 * MOST_TRACES  # traces that a slow disk has not taken; more are dropped
_PART = ".edgekit-traces."
_STALE_S = 600.0  # a part of a file that is older was left by a server that was killed


class TraceFolder:
    """Writes traces from a thread of its own.

    Args:
        path: is made where it is missing.

    Attributes:
        on_failure: called, in that thread, when the folder takes no more.

    Raises:
        StorageError: no folder, or one that cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.on_failure: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._writer: ThreadPoolExecutor | None = None
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise StorageError(str(self.path), "cannot be written", "a folder for traces that the server may write", "give another one")
            self._remove_stale()

    def check_room(self) -> None:
        """Raises `OverloadedError` where the folder takes no more files, `StorageError` where it cannot be read."""
        self._check_room(0)

    def submit(self, name: str, traces: Sequence[Trace], *, numbered: bool) -> None:
        """Write traces, soon. Returns at once.

        Args:
            name: of the file; a file that is there is never touched.
            traces: in order.
            numbered: as ``name.0``, ``name.1`` and so on, the first that is free; otherwise only where ``name`` is taken.
        """
        with self._lock:
            if self._closed or self._waiting + len(traces) > _MOST_WAITING:
                _log.warning("%d traces are dropped: %d wait to be written already", len(traces), self._waiting)
                return
            self._waiting += len(traces)
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="edgekit-traces")
            self._writer.submit(self._work, name, traces, numbered=numbered)

    def close(self) -> None:
        """Return once all is written."""
        with self._lock:
            self._closed = True
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _work(self, name: str, traces: Sequence[Trace], *, numbered: bool) -> None:
        try:
            with storage_errors(self.path):
                self._write(name, traces, numbered=numbered)
        except Exception as exc:  # noqa: BLE001 - the thread's boundary
            _log.warning("%d traces are lost, and traces are off: %s", len(traces), exc, exc_info=not isinstance(exc, EdgeKitError))
            self.on_failure()
        finally:
            with self._lock:
                self._waiting -= len(traces)

    def _write(self, name: str, traces: Sequence[Trace], *, numbered: bool) -> None:
        lines = [msgspec.json.encode(entry) for trace in traces for entry in trace.entries()]
        data = b"[\n" + b",\n".join(lines) + b"\n]\n"
        self._check_room(len(data))
        part = self.path / f"{_PART}{os.getpid()}.{id(self):x}"
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._place(part, name, numbered=numbered)
        finally:
            part.unlink(missing_ok=True)

    def _place(self, part: Path, name: str, *, numbered: bool) -> None:
        """Give a file that is complete its name: a link fails where a file is."""
        names = [] if numbered else [name]
        for candidate in [*names, *(f"{name}.{index}" for index in range(MOST_FILES + 1))]:
            try:
                os.link(part, self.path / candidate)
            except FileExistsError:
                continue
            return
        raise OverloadedError(
            str(self.path), f"{name}.0 to {name}.{MOST_FILES} are taken", "a free one", "remove some, or name another file"
        )

    def _check_room(self, more_bytes: int) -> None:
        files = total = 0
        with storage_errors(self.path), os.scandir(self.path) as entries:
            for entry in entries:
                files += 1
                total += entry.stat(follow_symlinks=False).st_size
                if files >= MOST_FILES or total + more_bytes > MOST_BYTES:
                    found = f"{files} files of {total >> 20} MiB or more"
                    raise OverloadedError(
                        f"traces in {self.path}", found, f"less than {MOST_FILES} and {MOST_BYTES >> 20} MiB", "remove some"
                    )

    def _remove_stale(self) -> None:
        now_s = time.time()
        for part in self.path.glob(f"{_PART}*"):
            if now_s - part.stat().st_mtime > _STALE_S:
                part.unlink(missing_ok=True)
