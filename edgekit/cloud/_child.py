"""What a child process does between fork and exec, so that it cannot outlive us. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

__all__ = ["following_parent"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def following_parent(cpus: set[int] | None = None) -> Callable[[], None]:
    """A ``preexec_fn``: the child is killed when the thread that starts it ends (so start it from one that lives as long as the process).

    Args:
        cpus: cores that the child may use; all when not given.
    """
    parent = os.getpid()

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare
