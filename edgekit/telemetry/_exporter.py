"""From meter to collector: collect, write to the spool, send, and give up only what the receiver refuses.

`ExportCycle` holds the rules and takes the time as an argument; `Exporter` is the thread that calls it. Neither lets anything out into the program that it
observes: what goes wrong is counted by reason and logged once per kind.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import EdgeKitError, StorageError
from edgekit.telemetry._http import Transport, backoff_s, judge
from edgekit.telemetry._meter import Meter
from edgekit.telemetry._otlp import BATCH_LIMIT_BYTES, Batch, Resource, encode_metrics, encode_receipt
from edgekit.telemetry._spool import Spool

__all__ = ["DropCounts", "ExportCycle", "Exporter"]

_log = logging.getLogger("edgekit.telemetry")

REQUEST_TIMEOUT_S = 10.0
SEND_SLICE_S = 20.0  # a long backlog is sent in slices, with collections between them
MEMORY_CAP_BYTES = 4 << 20  # of the queue that stands in while the disk cannot be written


class DropCounts:
    """Rows lost, by reason; also a counter of the meter, so that the operator sees the loss."""

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.Lock()
        self._by_reason: Tally[str] = Tally()
        self._counter = meter.counter("edgekit.telemetry.dropped", "1", "telemetry rows that were lost on the device")

    def add(self, rows: int, reason: str) -> None:
        """Count ``rows`` lost for ``reason``."""
        if rows <= 0:
            return
        with self._lock:
            first = reason not in self._by_reason
            self._by_reason[reason] += rows
        self._counter.add(rows, {"edgekit.reason": reason})
        if first:
            _log.warning("telemetry dropped", extra={"rows": rows, "reason": reason})

    def by_reason(self) -> dict[str, int]:
        """A copy of the counts."""
        with self._lock:
            return dict(self._by_reason)


class ExportCycle:
    """The rules of export. `collect` and `send` are for one thread; `queue_receipt` for any.

    Args:
        meter: what to collect.
        resource: attributes and sequence of the batches.
        spool: where batches wait.
        transport: how they travel.
        drops: where losses are counted.
        rng: jitter.
    """

    def __init__(self, meter: Meter, resource: Resource, spool: Spool, transport: Transport, drops: DropCounts, rng: random.Random) -> None:
        self._meter = meter
        self._resource = resource
        self._spool = spool
        self._memory = Spool(None, MEMORY_CAP_BYTES, drops.add)
        self._transport = transport
        self._drops = drops
        self._rng = rng
        self._encode_lock = threading.Lock()  # a sequence number and its place in the queue go together
        self._failures = 0
        self.retry_at_s = 0.0  # monotonic; nothing is sent before

    def collect(self, now_ns: int) -> None:
        """Take the meter's deltas into the spool. ``now_ns`` is wall-clock time since the Unix epoch."""
        with self._encode_lock:
            for batch in encode_metrics(self._meter.collect(now_ns), self._resource):
                self._put(batch)

    def queue_receipt(self, receipt: Mapping[str, Any], now_ns: int) -> bool:
        """Write a receipt to the spool; false when it cannot be encoded or is too large."""
        with self._encode_lock:
            try:
                batch = encode_receipt(receipt, self._resource, now_ns)
            except (TypeError, ValueError, RecursionError) as exc:
                _log.warning("receipt cannot be encoded", extra={"error": str(exc)})
                self._drops.add(1, "not_encodable")
                return False
            if len(batch.body) > BATCH_LIMIT_BYTES:
                self._drops.add(1, "too_large")
                return False
            return self._put(batch)

    def set_resource(self, attributes: Mapping[str, str]) -> None:
        """Change resource attributes for the batches to come."""
        with self._encode_lock:
            self._resource.attributes.update(attributes)

    def _put(self, batch: Batch) -> bool:
        try:
            self._spool.put(batch)
        except StorageError as exc:
            _log.warning("telemetry spool cannot be written, keeping to memory", extra={"error": str(exc)})
            self._memory.put(batch)
        return True

    @property
    def backlog(self) -> int:
        """Batches that wait."""
        return int(self._spool.count + self._memory.count)

    def send(self, clock_s: Callable[[], float], deadline_s: float) -> bool:
        """Send what waits until nothing does (true), the receiver fails, or ``deadline_s`` (monotonic) has passed (false)."""
        for queue in (self._spool, self._memory):
            while (head := queue.head()) is not None:
                now_s = clock_s()
                if now_s >= deadline_s or now_s < self.retry_at_s:
                    return False
                response = self._transport.send(head.batch, min(REQUEST_TIMEOUT_S, deadline_s - now_s))
                verdict = judge(head.batch, response, time.time())
                if verdict.action == "retry":
                    self._failed(clock_s(), verdict.reason, verdict.retry_after_s, response.error)
                    return False
                self._failures = 0
                self._drops.add(verdict.dropped_rows, verdict.reason)
                queue.remove(head.id)
        return True

    def _failed(self, now_s: float, reason: str, retry_after_s: float | None, error: str) -> None:
        self._failures += 1
        pause_s = backoff_s(self._failures, self._rng)
        self.retry_at_s = now_s + max(pause_s, retry_after_s or 0.0)
        if self._failures == 1:
            _log.warning("collector does not take telemetry, will retry", extra={"reason": reason, "error": error})

    def close(self) -> None:
        """Close the queues; batches that are in memory only are lost and counted."""
        for queue in (self._spool, self._memory):
            while queue.path is None and (head := queue.head()) is not None:
                self._drops.add(head.batch.rows, "memory_only")
                queue.remove(head.id)
            queue.close()


class Exporter:
    """The thread: collects every ``interval_s``, sends, backs off, flushes on request."""

    def __init__(self, cycle: ExportCycle, transport: Transport, interval_s: float) -> None:
        self._cycle = cycle
        self._transport = transport
        self._interval_s = interval_s
        self._wake = threading.Condition()
        self._flush_asked = 0
        self._flush_done = 0
        self._flush_complete = False
        self._flush_deadline_s = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="edgekit-telemetry", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        next_collect_s = time.monotonic() + self._interval_s
        while True:
            with self._wake:
                due_s = max(self._cycle.retry_at_s, time.monotonic()) if self._cycle.backlog else next_collect_s
                pause_s = min(due_s, next_collect_s) - time.monotonic()
                if not self._stopping and self._flush_asked == self._flush_done and pause_s > 0:
                    self._wake.wait(pause_s)
                    continue
                flush, stopping, deadline_s = self._flush_asked, self._stopping, self._flush_deadline_s
            wanted = stopping or flush > self._flush_done
            now_s = time.monotonic()
            if wanted or now_s >= next_collect_s:
                next_collect_s = now_s + self._interval_s
                self._step(lambda: self._cycle.collect(time.time_ns()))
            if wanted:
                self._cycle.retry_at_s = 0.0  # who asks for a flush wants an attempt now
            send_until_s = deadline_s if wanted else now_s + SEND_SLICE_S
            complete = self._step(functools.partial(self._cycle.send, time.monotonic, send_until_s))
            with self._wake:
                self._flush_done, self._flush_complete = flush, bool(complete)
                self._wake.notify_all()
            if stopping:
                self._step(self._cycle.close)
                self._step(self._transport.close)
                return

    def _step(self, action: Callable[[], bool | None]) -> bool:
        """Thread boundary: whatever goes wrong in one step is logged, and the next step comes."""
        try:
            return bool(action())
        except EdgeKitError as exc:
            _log.warning("telemetry export failed", extra={"error": str(exc)})
        except Exception:  # noqa: BLE001 - the thread outlives any one step
            _log.exception("telemetry export failed")
        self._cycle.retry_at_s = time.monotonic() + self._interval_s  # no busy loop on an error that stays
        return False

    def flush(self, timeout_s: float) -> bool:
        """Collect and send now; true when everything was delivered in time."""
        deadline_s = time.monotonic() + timeout_s
        with self._wake:
            if self._stopping:
                return False
            self._flush_asked += 1
            ticket = self._flush_asked
            self._flush_deadline_s = deadline_s
            self._wake.notify_all()
            while self._flush_done < ticket:
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0 or not self._thread.is_alive():
                    return False
                self._wake.wait(remaining_s)
            return self._flush_complete

    def stop(self, timeout_s: float) -> bool:
        """Flush, then end the thread; what was not delivered stays in the spool. False when the thread had to be broken off and still runs."""
        with self._wake:
            self._stopping = True
            self._flush_deadline_s = time.monotonic() + timeout_s
            self._wake.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._transport.abort()
            self._thread.join(1.0)
        return not self._thread.is_alive()
