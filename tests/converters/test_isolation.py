"""Calls in a process of their own: what really crashes, hangs and floods memory comes back as one error of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgekit.converters._isolation import CancelledError, Guard, Limits, ProcessEndedError, close_workers, default_limits
from edgekit.converters._isolation_process import available_memory
from edgekit.errors import BuildError, ModelError, UnsupportedOperatorsError

pytestmark = pytest.mark.slow

MODULE = """
import ctypes, os, sys, time
import numpy as np
from edgekit.errors import UnsupportedOperatorsError

def add(tell, a, b):
    tell("adding\\nthings")
    return a + b

def pid(tell):
    return os.getpid()

def crash(tell):
    tell("crashing")
    print("the toolchain's last line", file=sys.stderr)
    sys.stderr.flush()
    ctypes.string_at(0)

def leave(tell):
    os._exit(3)

def hang(tell):
    tell("hanging")
    time.sleep(600)

def hang_with_the_lock(tell):
    ctypes.PyDLL(None).sleep(600)

def eat(tell):
    tell("eating")
    held = []
    while True:
        held.append(np.ones(2 << 20))

def meet(tell, own, folder):
    open(own, "w").close()
    while len([name for name in os.listdir(folder) if name.endswith(".here")]) < 2:
        time.sleep(0.01)
    return os.getpid()

def refuse(tell):
    raise UnsupportedOperatorsError("target x", [("n", "Foo", 13, "unknown")])

def fail(tell):
    raise ZeroDivisionError("inside\\nthe toolchain")

def unreadable(tell):
    return lambda: None

def missing_file(tell):
    open("/nowhere/at/all")
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toolchain_of_this_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    close_workers()
    sys.modules.pop("toolchain_of_this_test", None)


def call(name: str, *arguments: object, **options: object) -> object:
    return Guard(**options).call("test", "target test", f"toolchain_of_this_test:{name}", *arguments)  # type: ignore[arg-type]


def test_values_travel_and_the_process_stays() -> None:
    said: list[str] = []
    array = np.arange(5.0)
    np.testing.assert_array_equal(call("add", array, 1.0, tell=said.append), array + 1)
    assert said == ["adding things"]
    first, second = call("pid"), call("pid")
    assert first == second != os.getpid()


def test_in_this_process_when_asked() -> None:
    said: list[str] = []
    assert call("add", 1, 2, isolate=False, tell=said.append) == 3
    assert said == ["adding\nthings"]
    assert call("pid", isolate=False) == os.getpid()


def test_a_crash_is_one_line_and_the_next_call_works() -> None:
    before = call("pid")
    with pytest.raises(ProcessEndedError) as caught:
        call("crash")
    assert str(caught.value) == (
        "target test: its toolchain's process was ended by SIGSEGV while crashing; its last words: the toolchain's last line; "
        "build for another engine, or report this model"
    )
    assert caught.value.cause == "SIGSEGV"
    assert "toolchain_of_this_test.py" in caught.value.__notes__[0]  # where in Python it was
    assert call("pid") != before


def test_an_exit_is_told_with_its_status() -> None:
    with pytest.raises(BuildError, match="process ended with exit status 3 while starting"):
        call("leave")


@pytest.mark.parametrize("name", ["hang", "hang_with_the_lock"])
def test_a_hang_ends_at_the_limit(name: str) -> None:
    with pytest.raises(ProcessEndedError, match=r"did not end within 1.5 s while .*; give it more with --time-limit") as caught:
        call(name, limits=Limits(1.5, 2**33))
    assert caught.value.cause == "time"


def test_a_flood_of_memory_ends_at_the_limit() -> None:
    with pytest.raises(ProcessEndedError, match=r"took 0\.\d+ GiB of memory, more than the limit of 0.50 GiB, while eating") as caught:
        call("eat", limits=Limits(60, 2**29))
    assert caught.value.cause == "memory"


def test_a_worker_that_holds_much_of_the_limit_is_not_used_again() -> None:
    small = Limits(60, 60_000_000)  # the interpreter with NumPy holds more than a quarter of it
    assert call("pid", limits=small) != call("pid", limits=small)


def test_our_errors_come_back_with_all_fields() -> None:
    with pytest.raises(UnsupportedOperatorsError) as caught:
        call("refuse")
    assert caught.value.nodes == (("n", "Foo", 13, "unknown"),)
    assert caught.value.thing == "target x"
    assert "in refuse" in caught.value.__notes__[0]


def test_foreign_errors_become_ours_and_those_of_files_stay() -> None:
    with pytest.raises(BuildError, match="ZeroDivisionError: inside the toolchain"):
        call("fail")
    with pytest.raises(BuildError, match="pickle"):
        call("unreadable")
    with pytest.raises(FileNotFoundError):
        call("missing_file")
    with pytest.raises(BuildError, match="AttributeError"):
        call("no_such_function")


def test_a_call_is_cancelled_from_another_thread() -> None:
    cancelled, started = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call("hang", cancelled=cancelled, tell=lambda _: started.set())
        except CancelledError as exc:
            caught.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(60)
    cancelled.set()
    thread.join(60)
    assert len(caught) == 1


def test_two_calls_at_once_have_two_processes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        pids = list(threads.map(lambda own: call("meet", str(tmp_path / own), str(tmp_path)), ["one.here", "two.here"]))
    assert len(set(pids)) == 2


PARENT = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from edgekit.converters._isolation import Guard
guard = Guard(tell=lambda text: (print(text, flush=True)))
print(guard.call("test", "t", "toolchain_of_this_test:pid"), flush=True)
guard.call("test", "t", "toolchain_of_this_test:hang_with_the_lock")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal for a worker that holds the interpreter's lock")
def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()  # gone, or not yet reaped


def test_limits_by_default_are_the_machine_s() -> None:
    assert 0 < default_limits().memory_bytes < available_memory()
    assert default_limits(7, 9) == Limits(7, 9)


def test_errors_cross_processes_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ModelError("a", "b", "c", "d")))
    assert (type(error), error.thing, error.found, error.expected, error.next_step) == (ModelError, "a", "b", "c", "d")
