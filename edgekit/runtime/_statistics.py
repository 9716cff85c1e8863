"""Counters of one model version in the shape of Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["ModelStatistics"]

_STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_COMPUTE = _STEPS[3:]


class ModelStatistics:
    """Counts and nanoseconds of a model version since it was loaded. Safe from several threads.

    As in Triton, a success adds to every step, a failure (whatever was refused or went wrong after the model was found) to ``fail`` only; each request of a
    batch adds the whole batch's compute times. ``batch_stats`` counts runs by the number of requests in them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = dict.fromkeys(_STEPS, 0)
        self._seconds = dict.fromkeys(_STEPS, 0.0)
        self._batches: dict[int, list[float]] = {}  # requests -> runs, seconds of each compute step
        self._executions = 0
        self._last_s = 0.0

    def ran(self, requests: int, succeeded: int, queue_s: float, compute_s: tuple[float, float, float]) -> None:
        """Count one run of the engine.

        Args:
            requests: that ran together.
            succeeded: those among them that were answered in time; the others are told to `failed`.
            queue_s: what those waited, summed.
            compute_s: seconds for inputs, engine and outputs of the whole run.
        """
        with self._lock:
            self._executions += 1
            self._last_s = time.time()
            batch = self._batches.get(requests)
            if batch is None:
                batch = self._batches[requests] = [0, 0.0, 0.0, 0.0]
            batch[0] += 1
            count, seconds = self._count, self._seconds
            for index, step in enumerate(_COMPUTE):
                batch[index + 1] += compute_s[index]
                count[step] += succeeded
                seconds[step] += succeeded * compute_s[index]
            count["queue"] += succeeded
            seconds["queue"] += queue_s
            count["success"] += succeeded
            seconds["success"] += queue_s + succeeded * sum(compute_s)

    def failed(self, total_s: float) -> None:
        """Count one request that got an error."""
        with self._lock:
            self._count["fail"] += 1
            self._seconds["fail"] += max(0.0, total_s)

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``. ``last_inference`` is milliseconds since the Unix epoch."""
        with self._lock:
            steps = {step: {"count": self._count[step], "ns": round(self._seconds[step] * 1e9)} for step in _STEPS}
            return {
                "name": name,
                "version": version,
                "last_inference": int(self._last_s * 1e3),
                "inference_count": self._count["success"],
                "execution_count": self._executions,
                "inference_stats": steps,
                "batch_stats": [_batch(requests, sums) for requests, sums in sorted(self._batches.items())],
            }


def _batch(requests: int, sums: list[float]) -> dict[str, Any]:
    steps = {step: {"count": int(sums[0]), "ns": round(sums[index + 1] * 1e9)} for index, step in enumerate(_COMPUTE)}
    return {"batch_size": requests, **steps}
