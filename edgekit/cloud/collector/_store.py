"""The store: ClickHouse's SQL through clickhouse-connect, embedded (chDB) or on a server, behind one thread.

chDB runs inside this process and its connection is not for several threads, so `StoreThread` owns it: everything that touches the store runs there, in order.
"""

from __future__ import annotations

import concurrent.futures
import functools
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgekit.cloud.collector._schema import TABLES
from edgekit.errors import EnvironmentMissingError, OverloadedError, StorageError, UnavailableError, UsageError

__all__ = ["ClickHouseStore", "Store", "StoreThread", "is_url", "open_store"]

_T = TypeVar("_T")
_COLUMNS = {table.name: list(table.columns) for table in TABLES}
_TYPES = {table.name: list(table.columns.values()) for table in TABLES}

QUEUE_LIMIT = 64  # calls that may wait for the store's thread
QUERY_TIMEOUT_S = 30.0


class Store(Protocol):
    """What the collector needs of a database. Called from one thread at a time."""

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows; all of them or an error.

        Raises:
            StorageError: they could not be written.
        """
        ...

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a SELECT with ``{name:Type}`` parameters.

        Raises:
            StorageError: the store refused or failed.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class ClickHouseStore:
    """clickhouse-connect's client, with its errors turned into ours and the tables in place."""

    def __init__(self, client: Any, thing: str) -> None:
        self._client = client
        self._thing = thing
        for table in TABLES:
            self._call(functools.partial(client.command, table.ddl))

    def _call(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except Exception as exc:
            raise StorageError(self._thing, " ".join(str(exc).split())[:300], "", "check the store's disk and server") from exc

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows."""
        self._call(lambda: self._client.insert(table, rows, column_names=_COLUMNS[table], column_type_names=_TYPES[table]))

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a SELECT."""
        return self._call(lambda: list(self._client.query(sql, parameters=dict(parameters or {})).result_rows))

    def close(self) -> None:
        """Close the client."""
        self._call(self._client.close)


def is_url(store: str | Path) -> bool:
    """``store`` names a server, not a folder."""
    return isinstance(store, str) and "://" in store


def open_store(store: str | Path) -> ClickHouseStore:
    """A folder for chDB, or ``http(s)://USER:PASSWORD@HOST:PORT/DATABASE`` of a ClickHouse server. Call it on the thread that will use it.

    Raises:
        EnvironmentMissingError: clickhouse-connect or chDB is not installed.
        UsageError: a URL that is none of these.
        UnavailableError: the server does not answer.
        StorageError: the folder cannot be used, or another process uses it.
    """
    try:
        import clickhouse_connect
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("collector", "clickhouse-connect", "collector") from exc
    if is_url(store):
        return _open_server(clickhouse_connect, str(store))
    return _open_folder(clickhouse_connect, Path(store))


def _open_server(driver: Any, url: str) -> ClickHouseStore:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("--store", repr(url), "a folder, or http(s)://USER:PASSWORD@HOST:PORT/DATABASE")
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
    try:
        client = driver.get_client(
            host=parts.hostname,
            port=port or (8443 if parts.scheme == "https" else 8123),
            username=urllib.parse.unquote(parts.username or "default"),
            password=urllib.parse.unquote(parts.password or ""),
            database=parts.path.strip("/") or "default",
            secure=parts.scheme == "https",
            connect_timeout=10,
            send_receive_timeout=int(QUERY_TIMEOUT_S),
        )
    except Exception as exc:
        raise UnavailableError(
            f"store {shown}", f"does not answer ({_reason(exc)})", "a ClickHouse server", "start it or check the URL"
        ) from exc
    return ClickHouseStore(client, f"store {shown}")


def _reason(exc: BaseException) -> str:
    """The system's own word, from below what the client's layers wrapped around it; else the client's."""
    under: BaseException | None = exc
    while under is not None:
        if isinstance(under, OSError) and under.strerror:
            return under.strerror
        under = under.__cause__ or under.__context__
    return " ".join(str(exc).split())[:200]


def _open_folder(driver: Any, path: Path) -> ClickHouseStore:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as exc:
        raise StorageError(str(path), exc.strerror or str(exc), "a writable folder", "give --store another folder") from exc
    try:
        client = driver.get_client(interface="chdb", path=str(path))
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("collector", "chdb", "collector") from exc
    except Exception as exc:
        detail = " ".join(str(exc).split())[:200]
        raise StorageError(
            str(path), f"cannot be opened ({detail})", "", "stop the other collector, or give --store another folder"
        ) from exc
    return ClickHouseStore(client, f"store {path}")


class StoreThread:
    """The one thread that owns a store.

    Args:
        opener: makes the store, on that thread.

    Raises:
        EdgeKitError: whatever ``opener`` raises.
    """

    def __init__(self, opener: Callable[[], Store]) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="edgekit-store")
        self._waiting = 0
        try:
            self._store = self._pool.submit(opener).result()
        except BaseException:
            self._pool.shutdown()
            raise

    def submit(self, action: Callable[[Store], _T]) -> concurrent.futures.Future[_T]:
        """Run ``action`` with the store, after what was submitted before.

        Raises:
            OverloadedError: too many calls wait already, or the store is closed.
        """
        if self._pool._work_queue.qsize() >= QUEUE_LIMIT:
            raise OverloadedError("collector store", f"{QUEUE_LIMIT} calls wait", "", "try again in a few seconds")
        try:
            return self._pool.submit(action, self._store)
        except RuntimeError as exc:
            raise OverloadedError("collector store", "closed") from exc

    def call(self, action: Callable[[Store], _T]) -> _T:
        """`submit` and wait."""
        return self.submit(action).result()

    def close(self) -> None:
        """Finish what was submitted, close the store, end the thread."""
        self._pool.submit(self._store.close)
        self._pool.shutdown(wait=True)
