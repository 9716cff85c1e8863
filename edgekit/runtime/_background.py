"""Work that may take its time beside requests that may not."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_behind"]

T = TypeVar("T")

_NICENESS = 10  # a tenth of the weight of a thread that serves (sched(7)); enough to finish, too little to be noticed


def run_behind(work: Callable[[], T]) -> T:
    """Run ``work`` where threads that serve go before it, and return what it returns or raise what it raises.

    On Linux niceness is a thread's own, so a thread is made for it (it could not become nice again without a privilege); elsewhere ``work`` just runs. Not for what makes
    threads that stay, an engine's pool for instance: they would inherit it.
    """
    if not sys.platform.startswith("linux"):
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def nice() -> None:
        with contextlib.suppress(OSError):  # refused by a sandbox: then it runs as it is
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
        try:
            results.append(work())
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(exc)

    thread = threading.Thread(target=nice, name="edgekit-behind", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
