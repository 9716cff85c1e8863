"""Group commit over a store in memory: bounded, nothing acknowledged early, one bad request alone."""

import threading

import pytest

from edgekit.cloud.collector._ingest import Ingest, merge_rows
from edgekit.cloud.collector._rows import Decoded
from edgekit.cloud.collector._store import QUEUE_LIMIT, StoreThread, open_store
from edgekit.errors import OverloadedError, RequestError, StorageError, UnavailableError, UsageError


class MemoryStore:
    """The store's interface over lists; ``gate`` holds inserts, rows equal to ``poison`` are refused."""

    def __init__(self):
        self.tables = {}
        self.inserts = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = False
        self.closed_by = None

    def insert(self, table, rows):
        self.entered.set()
        self.gate.wait(10)
        if self.broken or ("poison",) in rows:
            raise StorageError("store", "refused")
        self.inserts.append(len(rows))
        self.tables.setdefault(table, []).extend(rows)

    def query(self, sql, parameters=None):
        return [(sql,)]

    def close(self):
        self.closed_by = threading.current_thread().name


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def thread(store):
    thread = StoreThread(lambda: store)
    yield thread
    thread.close()
    assert store.closed_by.startswith("edgekit-store")


@pytest.fixture
def ingest(thread):
    ingest = Ingest(thread, interval_s=0.0, limit_rows=10)
    yield ingest
    ingest.stop()


def rows(*values):
    return Decoded({"t": [(value,) for value in values]})


def test_acknowledged_only_when_stored_and_grouped_while_the_store_is_busy(store, ingest):
    store.gate.clear()
    first = ingest.submit(rows(1))
    assert store.entered.wait(10)
    later = [ingest.submit(rows(k)) for k in (2, 3, 4)]
    assert not first.done()
    assert ingest.queued_rows == 4
    store.gate.set()
    for future in [first, *later]:
        future.result(10)
    assert store.inserts == [1, 3]
    assert store.tables["t"] == [(1,), (2,), (3,), (4,)]
    assert (ingest.inserted_rows, ingest.inserts) == (4, 2)


def test_a_full_queue_refuses(store, ingest):
    store.gate.clear()
    waiting = [ingest.submit(rows(*range(6)))]
    with pytest.raises(OverloadedError, match="6 rows wait to be stored"):
        ingest.submit(rows(*range(5)))
    waiting.append(ingest.submit(rows(*range(4))))
    store.gate.set()
    for future in waiting:
        future.result(10)


def test_one_bad_request_does_not_keep_the_others_out(store, ingest):
    store.gate.clear()
    held = ingest.submit(rows(0))
    assert store.entered.wait(10)
    good, bad, last = ingest.submit(rows(1)), ingest.submit(rows("poison")), ingest.submit(rows(2))
    store.gate.set()
    for future in (held, good, last):
        future.result(10)
    with pytest.raises(RequestError):  # told not to send it again
        bad.result(10)
    assert sorted(store.tables["t"]) == [(0,), (1,), (2,)]


def test_a_broken_store_is_a_reason_to_send_again(store, ingest):
    store.broken = True
    with pytest.raises(StorageError, match="refused"):
        ingest.submit(rows(1)).result(10)
    store.broken = False
    ingest.submit(rows(1)).result(10)
    assert store.tables["t"] == [(1,)]


def test_stop_writes_what_waits_and_refuses_the_rest(store, thread):
    ingest = Ingest(thread, interval_s=3600.0)
    ingest.submit(rows(1)).result(10)
    waiting = ingest.submit(rows(2))
    assert not waiting.done(), "the interval holds it back"
    ingest.stop()
    waiting.result(0)
    assert store.tables["t"] == [(1,), (2,)]
    with pytest.raises(OverloadedError, match="stopping"):
        ingest.submit(rows(3))


def test_many_rows_do_not_wait_for_the_interval(store, thread):
    ingest = Ingest(thread, interval_s=3600.0)
    ingest.submit(rows(1)).result(10)
    ingest.submit(rows(*range(5000))).result(10)
    ingest.stop()
    assert store.inserts == [1, 5000]


def test_merge_keeps_every_row_in_order():
    merged = merge_rows([Decoded({"a": [(1,)], "b": [(2,)]}), Decoded({"a": [(3,)]}), Decoded({})])
    assert merged == {"a": [(1,), (3,)], "b": [(2,)]}


def test_the_stores_thread_is_one_and_its_queue_is_bounded(store, thread):
    names = {thread.call(lambda _: threading.current_thread().name) for _ in range(5)}
    assert len(names) == 1
    hold = threading.Event()
    held = [thread.submit(lambda _: hold.wait(10))]
    with pytest.raises(OverloadedError, match="calls wait"):
        held.extend(thread.submit(lambda _: None) for _ in range(QUEUE_LIMIT + 2))
    hold.set()
    for future in held:
        future.result(10)


def test_a_store_that_does_not_open_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(UsageError, match="--store"):
        StoreThread(lambda: open_store("ftp://x/y"))
    assert threading.active_count() == before


def test_an_unreachable_server_is_one_clear_line_without_the_password():
    with pytest.raises(UnavailableError, match=r"does not answer \(Connection refused\)") as caught:
        open_store("http://user:secret@127.0.0.1:9/db")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give --store another folder"):
        open_store(tmp_path / "file" / "store")
