"""The repository's folder: installing, removing, quotas, and what a process that is killed leaves."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, IntegrityError, NotFoundError, StorageError, UsageError
from edgekit.runtime import _store
from edgekit.runtime._store import STATE, FolderStore
from tests.runtime.serving_bundles import write_scale

CHILD = Path(__file__).with_name("crash_child.py")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """``scale`` in versions 1, 2 and 3, and another content of version 2."""
    root = tmp_path_factory.mktemp("bundles")
    for version in ("1", "2", "3"):
        write_scale(root / version, version=version, scale=float(version))
    write_scale(root / "2b", version="2", scale=20.0)
    write_scale(root / "3.edgekit", version="3", scale=3.0)
    return root


@pytest.fixture
def store(tmp_path, bundles):
    opened = FolderStore(tmp_path / "repository")
    opened.install(bundles / "1", ["stable"])
    opened.install(bundles / "2")
    return opened


def folders(store):
    return sorted(path.name for path in store.folder.iterdir() if path.is_dir())


def test_install(store, bundles):
    assert [(found.name, found.version) for found in store.found()] == [("scale", "1"), ("scale", "2")]
    assert store.install(bundles / "3.edgekit", ["canary"]) == ("scale", "3")
    for found in store.found():
        assert Bundle.open(found.path).digest == found.digest
    assert store.state().models["scale"].labels == {"stable": "1", "canary": "3"}
    assert folders(store) == sorted(one.folder for one in store.state().models["scale"].versions.values())
    assert store.state().models["scale"].versions["3"].bytes == sum(
        path.stat().st_size for path in (bundles / "3").rglob("*") if path.is_file()
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness is a thread's own on Linux only")
def test_a_change_is_nice_to_a_server_beside_it(store, bundles, monkeypatch):
    seen = []
    for name in ("write_file", "fsync_tree"):
        work = getattr(_store, name)
        monkeypatch.setattr(
            _store,
            name,
            lambda *given, work=work: (seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())), work(*given))[1],
        )
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    store.install(bundles / "3")
    store.remove("scale", "3")
    assert seen == [min(19, before + 10)] * 3  # the copy, and the two states
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_installing_the_same_again_only_moves_labels(store, bundles):
    before = folders(store)
    store.install(bundles / "2", ["canary"])
    assert folders(store) == before
    assert store.state().models["scale"].labels["canary"] == "2"


def test_a_damaged_bundle_is_refused_also_where_the_same_is_installed(store, bundles, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles / "2", damaged)
    (damaged / "report.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"report\.json"):
        store.install(damaged, ["canary"])
    assert "canary" not in store.state().models["scale"].labels


def test_another_content_of_a_version_takes_its_place(store, bundles):
    before = store.state().models["scale"].versions["2"]
    store.install(bundles / "2b")
    after = store.state().models["scale"].versions["2"]
    assert after.digest == Bundle.open(bundles / "2b").digest != before.digest
    assert before.folder not in folders(store)


def test_a_damaged_bundle_changes_nothing(store, bundles, tmp_path):
    shutil.copytree(bundles / "3", tmp_path / "damaged")
    with open(tmp_path / "damaged" / "model.onnx", "ab") as handle:
        handle.write(b"x")
    before = store.state()
    with pytest.raises(IntegrityError):
        store.install(tmp_path / "damaged")
    with pytest.raises(BundleError, match="no such file"):
        store.install(tmp_path / "missing")
    with pytest.raises(UsageError, match="not a label"):
        store.install(bundles / "3", ["1 2"])
    assert store.state() == before
    assert len(folders(store)) == 2


def test_the_quota(store, bundles):
    size = sum(one.bytes for one in store.state().models["scale"].versions.values())
    store.set_quota(size + 10)
    with pytest.raises(UsageError, match=r"disk quota: \d+ bytes more do not fit; .*remove scale 2, or give --make-room"):
        store.install(bundles / "3")
    store.install(bundles / "2", ["stable"])  # what is there takes no room
    store.install(bundles / "3", make_room=True)
    assert sorted(store.state().models["scale"].versions) == ["2", "3"]
    with pytest.raises(UsageError, match="0 bytes or more"):
        store.set_quota(-1)


def test_what_is_not_ours_stays(store):
    mine = store.folder / "notes"
    mine.mkdir()
    (mine / "why.txt").write_text("keep")
    leftovers = [store.folder / ".incoming-x", store.folder / "old-1@0123456789abcdef"]
    for path in leftovers:
        path.mkdir()
    store.remove("scale", "2")
    assert (mine / "why.txt").exists()
    assert not any(path.exists() for path in leftovers)
    with pytest.raises(NotFoundError):
        store.remove("scale", "2")


def test_a_copy_under_way_holds_nobody_up_and_is_not_swept(store, bundles):
    """A bundle may be large: while one process copies it, others label, remove and clean up."""
    with store._staged(Bundle.open(bundles / "3")) as copy:
        other = FolderStore(store.folder)
        other.remove("scale", "2")
        other.install(bundles / "1", ["other"])
        assert Bundle.open(copy).manifest.version == "3"
    assert not copy.exists()
    assert sorted(store.state().models["scale"].labels) == ["other", "stable"]


def test_two_writers_take_turns(store, bundles):
    """Each adds labels of its own; none is lost."""

    def work(who):
        own = FolderStore(store.folder)
        for turn in range(10):
            own.install(bundles / "1", [f"{who}{turn}"])

    threads = [threading.Thread(target=work, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(store.state().models["scale"].labels) == {"stable"} | {f"{who}{turn}" for who in "abc" for turn in range(10)}


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        FolderStore(tmp_path / "file")
    (tmp_path / STATE).write_text("{")
    with pytest.raises(BundleError, match=r"models\.json"):
        FolderStore(tmp_path)


OPERATIONS = {
    "install": ["install", "3", "stable", "tuned"],
    "install again": ["install", "1", "tuned"],
    "replace": ["install", "2b", "tuned"],
    "make room": ["make-room", "3", "stable"],
    "label": ["label", "=scale", "=stable", "=2"],
    "remove": ["remove", "=scale", "=2"],
    "progress": ["progress", "=scale", "=1", "=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_step(operation, store, bundles, tmp_path):
    """Before each step on the file system a process of its own is killed: what it leaves is the state before or the state after, whole."""
    if operation == "make room":
        store.set_quota(1 + sum(one.bytes for one in store.state().models["scale"].versions.values()))
    verb, *rest = OPERATIONS[operation]
    first, *labels = rest
    arguments = [first[1:], *(label.lstrip("=") for label in labels)] if first.startswith("=") else [str(bundles / first), *labels]
    work = tmp_path / "work"
    child = subprocess.run(
        [sys.executable, str(CHILD), str(store.folder), str(work), verb, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    steps = json.loads(child.stdout)
    assert steps[-1] == ""  # the last copy lived
    assert {"open", "os.rename"} <= set(steps)
    before, after = store.state(), FolderStore(work / str(len(steps))).state()
    assert before != after
    seen = []
    for index in range(1, len(steps) + 1):
        folder = work / str(index)
        left = FolderStore(folder)
        seen.append(left.state() == after)
        assert left.state() in (before, after), f"killed before step {index}, {steps[index - 1]}"
        for found in left.found():
            assert Bundle.open(found.path).digest == found.digest
        left.set_quota(0)  # the next change cleans up
        names = {path.name for path in folder.iterdir()}
        assert names == {".lock", STATE, *(one.folder for one in left.state().models["scale"].versions.values())}
    assert seen == sorted(seen)  # one point of no return
    assert not seen[0]


def test_what_is_half_read_is_never_seen(store, bundles):
    """A reader beside a writer: every state that it sees is whole, and all its bundles are there until the writer removes them."""
    stop = threading.Event()
    problems = []

    def read():
        while not stop.is_set():
            try:
                state = store.state()
                assert set(state.models["scale"].versions) <= {"1", "2", "3"}
                assert state.models["scale"].labels["stable"] in state.models["scale"].versions
            except Exception as exc:  # noqa: BLE001 - asserted below
                problems.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        store.install(bundles / "3", ["stable"])
        store.install(bundles / "1", ["stable"])
        store.remove("scale", "3")
    stop.set()
    reader.join(10)
    assert not problems
    assert msgspec.to_builtins(store.state())["models"]["scale"]["previous"] in ("1", "")
