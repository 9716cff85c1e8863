"""Run heavy toolchains in processes of their own, within a time and a memory limit.

One process serves one toolchain for the life of this one, so TensorFlow is imported once and not for every build. A crash, a hang and a flood of memory
become one `BuildError` line each; errors that the toolchain's code raises come back as they are.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit._storage_errors import storage_errors
from edgekit.converters._isolation_process import Worker, available_memory
from edgekit.converters._isolation_worker import IDLE_S, REQUEST, RESPONSE, TEMPORARY, resolve
from edgekit.converters._scratch import scratch_folder
from edgekit.errors import BuildError

__all__ = ["DEFAULT_TIME_S", "CancelledError", "Guard", "Limits", "ProcessEndedError", "close_workers", "default_limits"]

DEFAULT_TIME_S = 1800.0
"""The slowest real conversion measured takes 40 s (see benchmarks/builds.py); half an hour leaves room for a model 40 times as large."""
_MEMORY_SHARE = 0.75  # of what the machine or its container has
_TICK_S = 0.05
_HEARTBEAT_S = 10.0
_WORN = 4  # a worker that idles with more than this part of the limit is not used again: later calls would pay for what it leaked

Tell = Callable[[str], None]


class CancelledError(Exception):
    """Another part of the same command failed; this one was stopped."""


class ProcessEndedError(BuildError):
    """A toolchain's process ended before it answered.

    Attributes:
        cause: ``time``, ``memory``, a signal's name, or ``exit``.
    """

    cause = ""


@dataclass(frozen=True)
class Limits:
    """What one call may take.

    Attributes:
        time_s: wall time.
        memory_bytes: memory of the process that cannot be given back (anonymous, shared and swapped pages; files mapped to read do not count).
    """

    time_s: float
    memory_bytes: int


def default_limits(time_s: float | None = None, memory_bytes: int | None = None) -> Limits:
    """Limits as given, else half an hour and three quarters of this machine's memory."""
    return Limits(time_s or DEFAULT_TIME_S, memory_bytes or int(available_memory() * _MEMORY_SHARE))


@dataclass(frozen=True)
class Guard:
    """How toolchains are called in one build.

    Attributes:
        isolate: in a process of their own; else in this one, without limits.
        limits: of each call.
        tell: progress, in words.
        cancelled: set from another thread to stop what runs.
    """

    isolate: bool = True
    limits: Limits = field(default_factory=default_limits)
    tell: Tell = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def call(self, toolchain: str, thing: str, function: str, *arguments: object) -> Any:
        """``function(tell, *arguments)``.

        Args:
            toolchain: calls of one toolchain share a process.
            thing: what messages are about (``target tflite``).
            function: ``module:function``; what it takes and gives can be pickled.

        Raises:
            ProcessEndedError: it crashed, or took more than a limit.
            CancelledError: `cancelled` was set.
            StorageError: there is no place for what is handed over.
            EdgeKitError, OSError: as the function raised it; anything else as a `BuildError`.
        """
        if not self.isolate:
            return resolve(function)(self.tell, *arguments)  # type: ignore[operator]
        with storage_errors(tempfile.gettempdir()), scratch_folder("call") as folder, _borrowed(toolchain) as worker:
            (folder / TEMPORARY).mkdir()
            with open(folder / REQUEST, "wb") as file:
                pickle.dump(list(sys.path), file, pickle.HIGHEST_PROTOCOL)
                pickle.dump((function, arguments), file, pickle.HIGHEST_PROTOCOL)
            _Call(self, thing, worker).run(folder)
            worked, result = pickle.loads((folder / RESPONSE).read_bytes())  # noqa: S301 - in a folder that only this user can write
            worker.reusable = worker.memory_bytes() * _WORN < self.limits.memory_bytes
        if not worked:
            raise result
        return result


class _Call:
    """One call under way."""

    def __init__(self, guard: Guard, thing: str, worker: Worker) -> None:
        self.guard, self.thing, self.worker = guard, thing, worker
        self.doing = "starting"
        self.started_s = self.told_s = time.monotonic()

    def run(self, folder: Path) -> None:
        """Return when the response is there; the worker is gone after any error."""
        poll = select.poll()
        poll.register(self.worker.answers, select.POLLIN)
        buffer = b""
        self.worker.send(b"call " + os.fsencode(folder) + b"\n")
        while True:
            if poll.poll(_TICK_S * 1000):
                data = os.read(self.worker.answers, 1 << 16)
                if not data:
                    raise self._crashed()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    if line == b"done":
                        return
                    self.doing = line.removeprefix(b"tell ").decode(errors="replace")
                    self.guard.tell(self.doing)
            self._check()

    def _check(self) -> None:
        """Kill what was cancelled or took too much."""
        if self.guard.cancelled.is_set():
            raise CancelledError
        limits, now_s = self.guard.limits, time.monotonic()
        if now_s - self.started_s > limits.time_s:
            raise self._ended("time", f"did not end within {limits.time_s:g} s", "give it more with --time-limit")
        used = self.worker.memory_bytes()
        if used > limits.memory_bytes:
            found = f"took {_gib(used)} of memory, more than the limit of {_gib(limits.memory_bytes)},"
            raise self._ended("memory", found, "give it more with --memory-limit, or build on a machine with more memory")
        if now_s - self.told_s > _HEARTBEAT_S:
            self.told_s = now_s
            self.guard.tell(f"still {self.doing} ({now_s - self.started_s:.0f} s, {_gib(used)})")

    def _crashed(self) -> ProcessEndedError:
        how = self.worker.wait()
        found = f"ended with {how}" if how.startswith("exit") else f"was ended by {how}"
        if how == "SIGKILL":
            found += " (as the system does when memory runs out)"
        return self._ended(how.partition(" ")[0], found, "build for another engine, or report this model")

    def _ended(self, cause: str, found: str, step: str) -> ProcessEndedError:
        self.worker.close()
        words = self.worker.last_words()
        said = f"; its last words: {words}" if words else ""
        error = ProcessEndedError(self.thing, f"its toolchain's process {found} while {self.doing}{said}", "", step)
        error.cause = cause
        error.add_note(f"output of the toolchain's process:\n{self.worker.output()}")
        return error


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


# --- workers that wait for the next call -----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_idle: dict[str, list[Worker]] = {}


@contextlib.contextmanager
def _borrowed(toolchain: str) -> Iterator[Worker]:
    """A worker that no other call uses: one that waits, or a new one. It is closed when the call ends badly."""
    worker = _waiting(toolchain) or Worker.start()
    worker.reusable = False
    try:
        yield worker
    finally:
        if worker.reusable:
            worker.idle_since_s = time.monotonic()
            with _lock:
                _idle.setdefault(toolchain, []).append(worker)
        else:
            worker.close()


def _waiting(toolchain: str) -> Worker | None:
    """One that waits and will not end by itself in the next moment."""
    while True:
        with _lock:
            waiting = _idle.get(toolchain)
            if not waiting:
                return None
            worker = waiting.pop()
        if worker.alive() and time.monotonic() - worker.idle_since_s < IDLE_S / 2:
            return worker
        worker.close()


def close_workers() -> None:
    """End all workers that wait."""
    with _lock:
        workers = [worker for waiting in _idle.values() for worker in waiting]
        _idle.clear()
    for worker in workers:
        worker.close()


os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's
