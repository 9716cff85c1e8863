"""The queue on disk: order, cap, damage, power cut."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import StorageError
from edgekit.telemetry._otlp import Batch
from edgekit.telemetry._spool import Spool, open_spool


def drain(spool):
    bodies = []
    while (head := spool.head()) is not None:
        bodies.append(head.batch.body)
        spool.remove(head.id)
    return bodies


@pytest.fixture
def drops():
    return []


def test_first_in_first_out_over_a_restart(tmp_path):
    spool = Spool(tmp_path / "s.sqlite")
    batches = [Batch("metrics", b"a" * 10, 2), Batch("logs", b"b", 1), Batch("metrics", b"c", 3)]
    for batch in batches:
        spool.put(batch)
    spool.close()
    again = Spool(tmp_path / "s.sqlite")
    assert (again.count, again.bytes) == (3, 12)
    assert again.head().batch == batches[0]
    assert again.head().batch == batches[0], "stays until removed"
    assert drain(again) == [batch.body for batch in batches]
    assert (again.count, again.bytes, again.head()) == (0, 0, None)
    again.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["metrics", "logs"]), st.integers(min_value=1, max_value=60), st.integers(min_value=1, max_value=9)),
        max_size=40,
    )
)
def test_cap_holds_and_every_row_is_kept_or_counted(steps):
    drops = []
    spool = Spool(None, 100, lambda rows, reason: drops.append((rows, reason)))
    for kind, size, rows in steps:
        spool.put(Batch(kind, b"x" * size, rows))
        assert spool.bytes <= 100
    kept = 0
    while (head := spool.head()) is not None:
        kept += head.batch.rows
        spool.remove(head.id)
    assert kept + sum(rows for rows, _ in drops) == sum(rows for _, _, rows in steps)
    assert {reason for _, reason in drops} <= {"spool_full"}
    spool.close()


def test_oldest_metrics_go_first_receipts_last_and_what_is_in_flight_stays(drops):
    spool = Spool(None, 5, lambda rows, reason: drops.append((rows, reason)))
    for kind, body in (("logs", b"R"), ("metrics", b"1"), ("metrics", b"2"), ("metrics", b"3")):
        spool.put(Batch(kind, body, 1))
    assert spool.head().batch.body == b"R"
    spool.put(Batch("metrics", b"456", 1))
    assert drops == [(2, "spool_full")]
    spool.put(Batch("metrics", b"4567", 1))
    assert drain(spool) == [b"R", b"4567"]
    spool.put(Batch("metrics", b"too large", 7))
    assert drops[-1] == (7, "spool_full")
    spool.close()


@pytest.mark.parametrize("damage", ["header", "middle", "empty of sense"])
def test_damaged_file_is_set_aside_and_a_fresh_one_begun(tmp_path, damage):
    path = tmp_path / "s.sqlite"
    spool = Spool(path)
    for k in range(200):
        spool.put(Batch("metrics", bytes([k]) * 2000, 1))
    spool.close()
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:64] = b"\0" * 64
    elif damage == "middle":
        data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    else:
        data = bytearray(b"this is no database at all" * 100)
    path.write_bytes(data)
    for _ in range(2):  # a second damage replaces the first file set aside: the disk does not fill with them
        again = Spool(path)
        assert (again.quarantined, again.count) == (1, 0)
        again.put(Batch("metrics", b"fresh", 1))
        assert drain(again) == [b"fresh"]
        again.close()
        path.write_bytes(data)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.sqlite", "s.sqlite.corrupt"]


def test_damage_while_running_is_counted_and_the_new_batch_kept(tmp_path, drops):
    path = tmp_path / "s.sqlite"
    spool = Spool(path, on_drop=lambda rows, reason: drops.append((rows, reason)))
    for k in range(300):
        spool.put(Batch("metrics", bytes([k % 256]) * 3000, 2))
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    spool._db.execute("PRAGMA cache_size=0")
    with open(path, "r+b") as file:
        file.seek(0)
        file.write(os.urandom(path.stat().st_size))
    spool.put(Batch("logs", b"new", 1))
    assert drain(spool) == [b"new"]
    assert drops == [(300, "spool_corrupt")]
    spool.close()


def test_disk_space_is_given_back(tmp_path):
    path = tmp_path / "s.sqlite"
    spool = Spool(path)
    for _ in range(50):
        spool.put(Batch("metrics", b"x" * 100_000, 1))
    full = sum(file.stat().st_size for file in tmp_path.iterdir())
    drain(spool)
    spool.close()
    assert full > 5_000_000
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 100_000


def test_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give another spool directory"):
        open_spool(tmp_path / "file" / "spool", "svc")


def test_closed_spool_refuses_instead_of_starting_anew(tmp_path):
    spool = Spool(tmp_path / "s.sqlite")
    spool.close()
    with pytest.raises(StorageError):
        spool.put(Batch("metrics", b"x", 1))
    assert spool.quarantined == 0


def test_full_disk_is_a_storage_error_and_changes_nothing(tmp_path):
    spool = Spool(tmp_path / "s.sqlite")
    spool.put(Batch("metrics", b"x", 1))
    spool._db.execute("PRAGMA max_page_count=8")  # SQLite's own way to be full: the same SQLITE_FULL as a full disk
    with pytest.raises(StorageError, match="full"):
        spool.put(Batch("metrics", b"y" * 100_000, 1))
    assert (spool.count, spool.bytes) == (1, 1)
    assert drain(spool) == [b"x"]
    spool.close()


def test_each_process_has_its_own_file_and_takes_over_a_dead_ones(tmp_path):
    first, second = open_spool(tmp_path, "svc"), open_spool(tmp_path, "svc")
    assert first.path != second.path
    first.put(Batch("metrics", b"left behind", 1))
    first.close()
    heir = open_spool(tmp_path, "svc")
    assert drain(heir) == [b"left behind"]
    heir.close()
    second.close()


CHILD = """
import sys
from pathlib import Path
from edgekit.telemetry._otlp import Batch
from edgekit.telemetry._spool import open_spool
spool = open_spool(Path(sys.argv[1]), "svc")
k = 0
while True:
    spool.put(Batch("metrics", b"%d" % k, 1))
    print(k, flush=True)
    k += 1
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        acknowledged = [int(child.stdout.readline()) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout.read().split("\n")[:-1]]
        child.wait()
    spool = open_spool(tmp_path, "svc")
    kept = [int(body) for body in drain(spool)]
    spool.close()
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) - len(acknowledged) <= 1
