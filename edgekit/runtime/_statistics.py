"""Counters of one model version in the shape of Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["ModelStatistics"]

_STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class ModelStatistics:
    """Counts and nanoseconds of a model version since it was loaded. Safe from several threads.

    As in Triton, a success adds to every step, a failure (whatever was refused or went wrong after the model was found) to ``fail`` only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = dict.fromkeys(_STEPS, 0)
        self._ns = dict.fromkeys(_STEPS, 0)
        self._executions = 0
        self._last_ms = 0

    def succeeded(self, queue_s: float, input_s: float, infer_s: float, output_s: float) -> None:
        """Count one answered request, by where its time went."""
        steps_s = (queue_s, input_s, infer_s, output_s)
        with self._lock:
            for step, seconds in zip(_STEPS[2:], steps_s, strict=True):
                self._add(step, seconds)
            self._add("success", sum(steps_s))
            self._executions += 1
            self._last_ms = time.time_ns() // 1_000_000

    def failed(self, total_s: float) -> None:
        """Count one request that got an error."""
        with self._lock:
            self._add("fail", total_s)

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``. ``last_inference`` is milliseconds since the Unix epoch."""
        with self._lock:
            return {
                "name": name,
                "version": version,
                "last_inference": self._last_ms,
                "inference_count": self._count["success"],
                "execution_count": self._executions,
                "inference_stats": {step: {"count": self._count[step], "ns": self._ns[step]} for step in _STEPS},
                "batch_stats": [],
            }

    def _add(self, step: str, seconds: float) -> None:
        self._count[step] += 1
        self._ns[step] += max(0, round(seconds * 1e9))
