"""Work that may take its time beside requests that may not."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["may_rise", "run_behind"]

T = TypeVar("T")

_PATIENCE_S = 2.0  # then idle work goes on beside the others: on a full machine it would hardly come to an end
_NICENESS = 10  # a tenth of the weight of a thread that serves (sched(7)); enough to finish, too little to be noticed
_TASKS = Path("/proc/self/task")


def run_behind(work: Callable[[], T], *, idle: bool = True, starts_threads: bool = False) -> T:
    """Run ``work`` where threads that serve go before it, and return what it returns or raise what it raises.

    On Linux a thread is made for it under the idle policy (sched(7)): it gets the processor when nobody else wants it, and gives it up at once when somebody does. A thread
    that serves waited for one that loads under niceness 10 until its slice was over. (20 MB of weights, two cores with others at work, a request's p99
    from 12.4 ms without a load: 14.2 ms, 19.5 under niceness 10, 26.1 with neither.) On a full machine an idle thread hardly gets on, so it is taken back after two seconds; a process that may not do
    that (`may_rise`) gets niceness 10 instead. On other systems ``work`` just runs.

    Keep Python code in ``work`` short: whoever holds the interpreter's lock and waits for a processor holds up all threads that serve.

    Args:
        work: called once.
        idle: under the idle policy where that can be; otherwise nice.
        starts_threads: it makes threads that stay, an engine's pool for instance, which inherit the policy. They are raised when it is done; where the system
            does not allow that, ``work`` just runs.
    """
    if not sys.platform.startswith("linux") or (starts_threads and not (idle and may_rise())):
        return work()
    idle = idle and may_rise()
    job = _Job(work, _idle if idle else _nice)
    before = _tasks() if starts_threads else set()
    thread = threading.Thread(target=job.run, name="edgekit-behind", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S if idle else None)
    if thread.is_alive():
        for task in _tasks() - before if starts_threads else {job.task}:
            _rise(task)
    thread.join()
    if starts_threads:
        for task in _tasks() - before:
            _rise(task)
    return job.result()


class _Job(Generic[T]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], T], sink: Callable[[int], None]) -> None:
        self.task = 0
        self._work = work
        self._sink = sink
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        self.task = threading.get_native_id()
        self._sink(self.task)
        try:
            self._results.append(self._work())
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
            self._error = exc

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._results[0]


@functools.cache
def may_rise() -> bool:
    """A thread that went behind may come back: the process has CAP_SYS_NICE, or an RLIMIT_NICE of 20."""
    if not hasattr(os, "SCHED_IDLE"):
        return False
    answers: list[bool] = []

    def attempt() -> None:
        task = threading.get_native_id()
        try:
            _idle(task)
        except OSError:  # no such policy here (musl), or a sandbox refuses it
            answers.append(False)
        else:
            answers.append(_rise(task))

    thread = threading.Thread(target=attempt, name="edgekit-behind")
    thread.start()
    thread.join()
    return answers[0]


def _idle(task: int) -> None:
    os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))


def _nice(task: int) -> None:
    with contextlib.suppress(OSError):  # refused by a sandbox: then it runs as it is
        os.setpriority(os.PRIO_PROCESS, task, os.getpriority(os.PRIO_PROCESS, task) + _NICENESS)


def _rise(task: int) -> bool:
    """Put a thread back under the usual policy; false when it is refused. For one that is there already nothing changes."""
    try:
        if os.sched_getscheduler(task) == os.SCHED_IDLE:
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))
        return os.sched_getscheduler(task) != os.SCHED_IDLE
    except ProcessLookupError:  # it has ended
        return True
    except OSError:
        return False


def _tasks() -> set[int]:
    """The threads of this process."""
    return {int(task.name) for task in _TASKS.iterdir()}
