"""What a child process does between fork and exec, so that it cannot outlive us. Linux only."""

from __future__ import annotations

import os
from collections.abc import Callable

from edgekit.runtime._parent import end_with_parent

__all__ = ["following_parent"]


def following_parent(cpus: set[int] | None = None) -> Callable[[], None]:
    """A ``preexec_fn``: the child is killed when the thread that starts it ends (so start it from one that lives as long as the process).

    Args:
        cpus: cores that the child may use; all when not given.
    """
    parent = os.getpid()

    def prepare() -> None:
        end_with_parent(parent)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare
