"""Start, watch and end one worker process."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from edgekit.errors import BuildError

__all__ = ["Worker", "available_memory"]

_START = "from edgekit.converters._isolation_worker import main; main()"
_OUTPUT_KEPT = 20_000  # characters, from the end
_FATAL = ("Fatal Python error", "Current thread", "Thread 0x", "  File ", "Extension modules:")  # how faulthandler's lines begin
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_COUNTED = (b"RssAnon:", b"RssShmem:", b"VmSwap:")


class Worker:
    """A process that serves calls (`edgekit.converters._isolation_worker`).

    Attributes:
        answers: descriptor that its lines come from.
        reusable: it may serve another call.
        idle_since_s: when its last call ended, by the monotonic clock.
    """

    def __init__(self, process: subprocess.Popen[bytes], requests: int, answers: int, output: IO[bytes]) -> None:
        self._process, self._requests, self.answers, self._output = process, requests, answers, output
        self.reusable = False
        self.idle_since_s = 0.0
        self._text = ""

    @classmethod
    def start(cls) -> Worker:
        """A new process. It ends with this one, however this one ends.

        Raises:
            BuildError: the system gave none.
        """
        try:
            worker = _starter().submit(cls._start).result()
        except OSError as exc:
            raise BuildError("toolchain process", f"cannot be started: {exc}", "", "free memory or processes, and try again") from exc
        with _lock:
            _running.add(worker)
        return worker

    @classmethod
    def _start(cls) -> Worker:
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        theirs_in, requests = os.pipe()
        answers, theirs_out = os.pipe()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs_in, theirs_out),
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the build, which ends its workers itself
            )
        except OSError:
            os.close(requests)
            os.close(answers)
            output.close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return cls(process, requests, answers, output)

    def send(self, line: bytes) -> None:
        """Give it a line to read; one that has gone is noticed when its answer is read."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, line)

    def alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def memory_bytes(self) -> int:
        """Anonymous, shared and swapped memory, that of processes it started included; 0 where the system has no ``/proc``."""
        return _memory_bytes(str(self._process.pid))

    def wait(self) -> str:
        """How it ended: a signal's name, or ``exit status 1``."""
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def close(self) -> None:
        """Kill it with all that it started, and free what belongs to it. More than once is the same as once."""
        with _lock:
            if self not in _running:
                return
            _running.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        os.close(self.answers)
        with self._output:
            size = self._output.seek(0, os.SEEK_END)
            self._output.seek(max(size - _OUTPUT_KEPT, 0))
            self._text = self._output.read().decode(errors="replace")

    def output(self) -> str:
        """The end of what it wrote to stdout and stderr; "" until it was closed."""
        return self._text

    def last_words(self) -> str:
        """The last line that is not Python's own account of a crash."""
        lines = [line for line in self._text.splitlines() if line.strip() and not line.startswith(_FATAL)]
        return " ".join(lines[-1].split())[:300] if lines else ""


def _memory_bytes(pid: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(_COUNTED))
    return own + sum(map(_memory_bytes, started))


def available_memory() -> int:
    """Bytes that this machine has, or its container may use."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(file).read_text()))
    return min(found)


_lock = threading.Lock()
_running: set[Worker] = set()
_threads: list[ThreadPoolExecutor] = []


def _starter() -> ThreadPoolExecutor:
    """The thread that starts workers: the system ends them with the thread that started them, so it must live as long as this process."""
    with _lock:
        if not _threads:
            _threads.append(ThreadPoolExecutor(1, thread_name_prefix="edgekit-workers"))
        return _threads[0]


@atexit.register
def _close_all() -> None:
    for worker in list(_running):
        worker.close()


def _forget() -> None:
    """In a forked child: these processes and that thread are the parent's."""
    _running.clear()
    _threads.clear()


os.register_at_fork(after_in_child=_forget)
