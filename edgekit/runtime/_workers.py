"""The device's own threads: one bounded set for all models, which takes batches in a fair order.

A batch uses as many cores as its engine has threads; batches run side by side while there are cores. One thread more than there are cores, so that
somebody is always left to tell requests that their time has run out in the queue.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from edgekit.runtime._fairness import Share, whose_turn
from edgekit.runtime._scheduler import Batch, InstanceQueue, Refused

__all__ = ["Workers"]

_GRACE_S = 5e-3  # to go on with a queue that was lent: about a turn of an event loop
_log = logging.getLogger(__name__)
Queue = InstanceQueue[Any]


class Workers:
    """Threads that run what could not run where it arrived. Safe from several threads; threads start when they are needed.

    Args:
        cores: for all batches together.
        cost: cores that a batch of this queue uses.
        run: runs a batch and answers it.
        refuse: answers requests that ran out of time.
        lend: told what has just run while more waits; true when the thread that brought the requests goes on with them. If nobody has after `_GRACE_S`,
            a worker does.
    """

    def __init__(
        self,
        cores: int,
        cost: Callable[[Queue], int],
        run: Callable[[Queue, Batch[Any]], object],
        refuse: Callable[[Refused], None],
        lend: Callable[[Queue, Batch[Any]], bool] = lambda _queue, _batch: False,
    ) -> None:
        self._cores = cores
        self._cost = cost
        self._run = run
        self._refuse = refuse
        self._lend = lend
        self._wake = threading.Condition(threading.Lock())
        self._ready: list[Queue] = []
        self._watched: dict[Queue, float] = {}  # queue -> when its first deadline passes
        self._lent: dict[Queue, float] = {}  # queue -> when to take it back
        self._used = 0
        self._core_lent_until_s = 0.0
        self._virtual_s = 0.0
        self._served: list[Share] = []  # of the batches that run
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._closing = False

    def wake(self, queue: Queue) -> None:
        """Something waits in ``queue``: run it when it can, and watch its deadlines."""
        deadline_s = queue.first_deadline_s()
        with self._wake:
            if queue.ready and queue not in self._ready:
                queue.share.begins(self._virtual_s)
                self._ready.append(queue)
            elif deadline_s >= min(self._watched.values(), default=math.inf):
                self._watch(queue, deadline_s)
                return
            self._watch(queue, deadline_s)
            if not self._idle and len(self._threads) <= self._cores:
                self._begin_thread()
            else:
                self._wake.notify()

    def lend_core(self, seconds: float) -> None:
        """The calling thread runs batches on a core of ours. It says so each time; when it has not for ``seconds`` and a moment, the core is ours again."""
        self._core_lent_until_s = time.monotonic() + seconds + _GRACE_S

    def spare(self) -> int:
        """Cores on which a worker could begin a batch if one were lent."""
        return self._cores - 1 - self._used

    def close(self) -> None:
        """End the threads once nothing is left to run."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._loop, name=f"edgekit-worker-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self, queue: Queue, deadline_s: float) -> None:
        if deadline_s != math.inf:
            self._watched[queue] = deadline_s
        else:
            self._watched.pop(queue, None)

    def _loop(self) -> None:
        while True:
            queue: Queue | None = None
            batch: Batch[Any] | None = None
            refused: Refused = []
            cost = 0
            with self._wake:
                queue, batch, cost = self._pick(refused)
                if batch is None and not refused:
                    refused = self._expired()
                if batch is None and not refused:
                    if self._closing:
                        return
                    self._idle += 1
                    self._wake.wait(self._patience_s())
                    self._idle -= 1
                    continue
                if batch is not None and self._ready and (self._watched or self._used < self._room(time.monotonic())):
                    self._pass_on()
            self._work(queue, batch, refused)
            if batch is not None and queue is not None:
                with self._wake:
                    self._used -= cost
                    self._served.remove(queue.share)

    def _pass_on(self) -> None:
        """More is ready than this thread can run."""
        if self._idle:
            self._wake.notify()
        elif len(self._threads) <= self._cores:
            self._begin_thread()

    def _work(self, queue: Queue | None, batch: Batch[Any] | None, refused: Refused) -> None:
        try:
            if refused:
                self._refuse(refused)
            if queue is not None and batch is not None:
                self._run(queue, batch)
                if queue.queued and self._lend(queue, batch):
                    with self._wake:
                        self._lent[queue] = time.monotonic() + _GRACE_S
                elif queue.queued:
                    self.wake(queue)
        except Exception:  # noqa: BLE001 - a bug in a callback must not cost the device a thread
            _log.exception("a worker's batch ended in an unexpected error")

    def _pick(self, refused: Refused) -> tuple[Queue | None, Batch[Any] | None, int]:
        """The next batch in fair order that fits the cores that are free. The lock is held."""
        now_s = time.monotonic()
        for queue in [queue for queue, until_s in self._lent.items() if until_s <= now_s]:
            del self._lent[queue]
            if queue.ready and queue not in self._ready:
                queue.share.begins(self._virtual_s)
                self._ready.append(queue)
        while self._ready:
            fitting = [queue for queue in self._ready if not self._used or self._used + self._cost(queue) <= self._room(now_s)]
            if not fitting:
                break
            for queue in fitting:
                queue.plan_share()
            shares = [queue.share for queue in fitting]
            queue = fitting[whose_turn(shares, now_s)]
            batch, gone = queue.take()
            refused += gone
            if not queue.ready:
                self._ready.remove(queue)
                self._watch(queue, queue.first_deadline_s())
            if batch is not None:
                cost = self._cost(queue)
                self._used += cost
                self._virtual_s = max(self._virtual_s, min(share.virtual_s for share in (*shares, *self._served)))
                self._served.append(queue.share)
                return queue, batch, cost
        return None, None, 0

    def _room(self, now_s: float) -> int:
        """Cores for our batches."""
        return self._cores - (now_s < self._core_lent_until_s)

    def _expired(self) -> Refused:
        now_s = time.monotonic()
        refused: Refused = []
        for queue in [queue for queue, deadline_s in self._watched.items() if deadline_s <= now_s]:
            refused += queue.expire()
            self._watch(queue, queue.first_deadline_s())
        return refused

    def _patience_s(self) -> float | None:
        now_s = time.monotonic()
        first_s = min([*self._watched.values(), *self._lent.values()], default=math.inf)
        if self._ready and now_s < self._core_lent_until_s:
            first_s = min(first_s, self._core_lent_until_s)
        return None if first_s == math.inf else min(max(0.0, first_s - now_s), threading.TIMEOUT_MAX)
