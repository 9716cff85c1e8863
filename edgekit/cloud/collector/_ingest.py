"""Group commit: requests wait in a bounded queue, one insert a second takes them all, and only then are they acknowledged.

So an acknowledged row is in the store, whatever happens to the collector afterwards; and ClickHouse sees few, large inserts.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time

from edgekit.cloud.collector._rows import Decoded
from edgekit.cloud.collector._store import Store, StoreThread
from edgekit.errors import EdgeKitError, OverloadedError, RequestError, StorageError

__all__ = ["Ingest", "merge_rows"]

_log = logging.getLogger("edgekit.collector")

QUEUE_LIMIT_ROWS = 200_000
LARGE_INSERT_ROWS = 5_000  # enough for an insert before the second is over

_Waiting = tuple[Decoded, "concurrent.futures.Future[None]"]


def merge_rows(group: list[Decoded]) -> dict[str, list[tuple[object, ...]]]:
    """Rows of several requests, by table."""
    merged: dict[str, list[tuple[object, ...]]] = {}
    for decoded in group:
        for table, rows in decoded.rows.items():
            merged.setdefault(table, []).extend(rows)
    return merged


class Ingest:
    """The queue and its thread.

    Attributes:
        inserted_rows: rows written since the start (repeats included).
        inserts: group commits since the start.

    Args:
        store: where rows go.
        interval_s: least time between two inserts, unless `LARGE_INSERT_ROWS` wait.
        limit_rows: rows that may wait; beyond it requests are refused.
    """

    def __init__(self, store: StoreThread, interval_s: float = 1.0, limit_rows: int = QUEUE_LIMIT_ROWS) -> None:
        self._store = store
        self._interval_s = interval_s
        self._limit_rows = limit_rows
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._rows = 0
        self._stopping = False
        self.inserted_rows = 0
        self.inserts = 0
        self._thread = threading.Thread(target=self._run, name="edgekit-ingest", daemon=True)
        self._thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait or are being inserted."""
        return self._rows

    def submit(self, decoded: Decoded) -> concurrent.futures.Future[None]:
        """Queue the rows of one request; the future ends when they are in the store, or with the error that kept them out.

        Raises:
            OverloadedError: the queue is full, or the collector is stopping.
        """
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        done.set_running_or_notify_cancel()  # a client that goes away cannot cancel what others wait for
        with self._changed:
            if self._stopping:
                raise OverloadedError("collector", "is stopping", "", "send again later")
            if self._rows + decoded.count > self._limit_rows and self._rows:
                raise OverloadedError(
                    "collector", f"{self._rows} rows wait to be stored", f"at most {self._limit_rows}", "send again later"
                )
            self._waiting.append((decoded, done))
            self._rows += decoded.count
            self._changed.notify_all()
        return done

    def _take(self, earliest_s: float) -> list[_Waiting]:
        """What waits, once it is time; empty only when stopping."""
        with self._changed:
            while not self._stopping:
                pause_s = earliest_s - time.monotonic()
                if self._waiting and (pause_s <= 0 or self._rows >= LARGE_INSERT_ROWS):
                    break
                self._changed.wait(pause_s if self._waiting else None)
            group, self._waiting = self._waiting, []
            return group

    def _run(self) -> None:
        earliest_s = 0.0
        while group := self._take(earliest_s):
            earliest_s = time.monotonic() + self._interval_s
            self._commit(group)
            with self._changed:
                self._rows -= sum(decoded.count for decoded, _ in group)

    def _insert(self, group: list[Decoded]) -> EdgeKitError | None:
        def write(store: Store) -> None:
            for table, rows in merge_rows(group).items():
                store.insert(table, rows)

        try:
            self._store.call(write)
        except EdgeKitError as exc:
            return exc
        except Exception as exc:  # noqa: BLE001 - thread boundary: senders get an answer, the thread goes on
            _log.exception("insert failed")
            return StorageError("store", str(exc))
        self.inserts += 1
        self.inserted_rows += sum(decoded.count for decoded in group)
        return None

    def _commit(self, group: list[_Waiting]) -> None:
        error = self._insert([decoded for decoded, _ in group])
        if error is None:
            for _, done in group:
                done.set_result(None)
            return
        _log.warning("insert failed, trying each request alone", extra={"requests": len(group), "error": str(error)})
        # One request that the store cannot take must not keep the others out. Rows that did get in are the same rows when sent again.
        alone = [self._insert([decoded]) for decoded, _ in group] if len(group) > 1 else [error]
        some_good = any(failure is None for failure in alone)
        for (_, done), failure in zip(group, alone, strict=True):
            if failure is None:
                done.set_result(None)
            elif some_good:  # the store works, so it is these rows: the sender must not send them for ever
                done.set_exception(RequestError("rows", str(failure)))
            else:
                done.set_exception(failure)

    def stop(self) -> None:
        """Insert what waits, refuse the rest, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
