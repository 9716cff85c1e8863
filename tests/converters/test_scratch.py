"""Nothing is left in the temporary folder: not by toolchains, not by processes that are killed, and what others use is not touched."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgekit.converters import _scratch
from edgekit.converters._isolation import Guard, Limits, ProcessEndedError, close_workers
from edgekit.converters._scratch import scratch_folder

pytestmark = pytest.mark.slow

UNTIDY = """
import os, tempfile, time

def leave(tell):
    made = [tempfile.mkdtemp(suffix=".mlpackage"), tempfile.NamedTemporaryFile(prefix="__autograph", delete=False).name]
    return made, os.environ["TMPDIR"]

def use_onnx_runtime(tell):
    import onnxruntime
    onnxruntime.get_available_providers()
    return sorted(os.listdir(os.environ["TMPDIR"]))

def hang(tell):
    tempfile.mkdtemp(suffix=".mlpackage")
    tell("hanging")
    time.sleep(600)
"""
HOLDING = """
import sys, time
from edgekit.converters._scratch import scratch_folder
with scratch_folder("build") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, and no scratch folder in this process yet."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(_scratch, "_own", None)
    monkeypatch.setattr(_scratch, "_held", -1)
    return folder


@pytest.fixture
def untidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "untidy_toolchain.py").write_text(UNTIDY)
    monkeypatch.syspath_prepend(tmp_path)
    close_workers()
    return "untidy_toolchain"


def _left(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name != "lock" and not path.name.startswith("edgekit-scratch-"))


def test_what_a_toolchain_leaves_goes_with_its_call(temporary: Path, untidy: str) -> None:
    (made, folder) = Guard().call("untidy", "target x", f"{untidy}:leave")
    close_workers()
    assert {Path(path).parent for path in made} == {Path(folder)}
    assert Path(folder).is_relative_to(temporary)
    assert _left(temporary) == []


def test_each_call_of_one_process_has_a_folder_of_its_own(temporary: Path, untidy: str) -> None:
    folders = {Guard().call("untidy", "target x", f"{untidy}:leave")[1] for _ in range(2)}
    close_workers()
    assert len(folders) == 2


def test_what_a_killed_toolchain_leaves_goes_too(temporary: Path, untidy: str) -> None:
    with pytest.raises(ProcessEndedError, match="did not end within"):
        Guard(limits=Limits(2.0, 2**40)).call("untidy", "target x", f"{untidy}:hang")
    assert _left(temporary) == []


def test_onnx_runtime_keeps_no_telemetry_session(temporary: Path, untidy: str) -> None:
    """Its telemetry would write ``.ses`` into the temporary folder, and send events to Microsoft."""
    assert Guard().call("untidy", "target x", f"{untidy}:use_onnx_runtime") == []
    close_workers()


def test_a_folder_goes_at_the_end_of_its_block_also_after_an_error(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_folder("build") as folder:
        assert folder.name.startswith("build-")
        (folder / "deep").mkdir()
        raise ZeroDivisionError
    assert _left(temporary) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    killed, living = processes
    try:
        gone, kept = (Path(process.stdout.readline().strip()) for process in processes if process.stdout is not None)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (gone / "file").is_file()
        with scratch_folder("build") as mine:
            assert mine.parent.parent == gone.parent.parent
            assert not gone.parent.exists()
            assert (kept / "file").is_file()
    finally:
        for process in processes:
            process.communicate("")
    assert living.returncode == 0
    assert not kept.parent.exists(), "a process that ends well removes its own"


def test_what_is_not_a_scratch_folder_is_not_touched(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (temporary / "edgekit-scratch-link").symlink_to(precious)
    (temporary / "edgekit-scratch-young").mkdir()  # made, its lock not yet
    with scratch_folder("build"):
        assert (precious / "lock").exists()
        assert (temporary / "edgekit-scratch-young").is_dir()


def test_a_folder_that_somebody_removed_is_made_again(temporary: Path) -> None:
    with scratch_folder("build") as first:
        pass
    (first.parent / "lock").unlink()
    first.parent.rmdir()
    with scratch_folder("build") as second:
        assert second.is_dir()
    assert [path.name for path in second.parent.iterdir()] == ["lock"]
