"""The same work for many samples on all cores: each sample's own run stays on one thread, so its numbers do not depend on how many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from edgekit.runtime.engines._base import usable_cpus

__all__ = ["in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in the order of the items, computed by as many threads as there are cores. No more results than that wait, so memory is bounded.

    Args:
        function: releases the interpreter lock for most of its time, as an engine's run does.
        items: taken one after the other.
    """
    workers = usable_cpus()
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, "edgekit-sample") as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
