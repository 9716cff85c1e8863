"""Several devices of one command at the same time: threads here, toolchains in their own processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

from edgekit.converters._isolation import CancelledError, Guard
from edgekit.converters._targets import Target

__all__ = ["run_all"]

Result = TypeVar("Result")


def run_all(one: Callable[[Target, Guard], Result], targets: Sequence[Target], guard: Guard, jobs: int) -> list[Result]:
    """``one`` for every target, at most ``jobs`` at a time; results in the order of the targets.

    The first that fails stops the others, and its error is what is raised. So does an interrupt of the calling thread.

    Args:
        one: is given a guard whose progress names the target where there are several.
        targets: what to do.
        guard: of the whole command.
        jobs: 1 does them in the calling thread.
    """
    guards = _guards(targets, guard)
    if jobs == 1:
        return [one(target, own) for target, own in zip(targets, guards, strict=True)]
    with ThreadPoolExecutor(jobs, thread_name_prefix="edgekit-build") as pool:
        running = [pool.submit(one, target, own) for target, own in zip(targets, guards, strict=True)]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            failed = [future for future in running if future in done and future.exception() is not None]
        except BaseException:
            _stop(guard, running)
            raise
        if failed:
            _stop(guard, running)
    errors = [error for future in failed if (error := future.exception()) is not None and not isinstance(error, CancelledError)]
    if errors:
        raise errors[0]
    return [future.result() for future in running]


def _stop(guard: Guard, running: Sequence[Future[Result]]) -> None:
    guard.cancelled.set()
    for future in running:
        future.cancel()


def _guards(targets: Sequence[Target], guard: Guard) -> list[Guard]:
    if len(targets) == 1:
        return [guard]
    lock = threading.Lock()

    def telling(target: Target) -> Callable[[str], None]:
        def tell(text: str) -> None:
            with lock:
                guard.tell(f"{target.profile.id}: {text}")

        return tell

    return [replace(guard, tell=telling(target)) for target in targets]
