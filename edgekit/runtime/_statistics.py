"""Counters of one model version in the shape of Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["ModelStatistics"]


class _Batch:
    """Runs of the same number of requests. ``input_s`` and so on count each run once, ``inputs_s`` once for each request that was answered."""

    __slots__ = ("infer_s", "infers_s", "input_s", "inputs_s", "output_s", "outputs_s", "queue_s", "runs", "succeeded")

    def __init__(self) -> None:
        self.runs = self.succeeded = 0
        self.queue_s = 0.0
        self.input_s = self.infer_s = self.output_s = 0.0
        self.inputs_s = self.infers_s = self.outputs_s = 0.0


class ModelStatistics:
    """Counts and nanoseconds of a model version since it was loaded. Safe from several threads.

    As in Triton, a success adds to every step, a failure (whatever was refused or went wrong after the model was found) to ``fail`` only; each request of a
    batch adds the whole batch's compute times. ``batch_stats`` counts runs by the number of requests in them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[int, _Batch] = {}
        self._failed = 0
        self._failed_s = 0.0
        self._last_s = 0.0

    def ran(self, requests: int, succeeded: int, queue_s: float, compute_s: tuple[float, float, float], runs: int = 1) -> None:
        """Count a run of the engine, or several of as many requests each.

        Args:
            requests: that ran together.
            succeeded: those of all runs that were answered in time; the others are told to `failed`.
            queue_s: what those waited, summed.
            compute_s: seconds for inputs, engine and outputs of all runs.
            runs: of the engine.
        """
        input_s, infer_s, output_s = compute_s
        with self._lock:
            self._last_s = time.time()
            batch = self._batches.get(requests)
            if batch is None:
                batch = self._batches[requests] = _Batch()
            batch.runs += runs
            batch.succeeded += succeeded
            batch.queue_s += queue_s
            batch.input_s += input_s
            batch.infer_s += infer_s
            batch.output_s += output_s
            each = succeeded / runs
            batch.inputs_s += each * input_s
            batch.infers_s += each * infer_s
            batch.outputs_s += each * output_s

    def failed(self, total_s: float) -> None:
        """Count one request that got an error."""
        with self._lock:
            self._failed += 1
            self._failed_s += max(0.0, total_s)

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``. ``last_inference`` is milliseconds since the Unix epoch."""
        with self._lock:
            batches = list(self._batches.values())
            succeeded = sum(batch.succeeded for batch in batches)
            steps_s = {
                "queue": sum(batch.queue_s for batch in batches),
                "compute_input": sum(batch.inputs_s for batch in batches),
                "compute_infer": sum(batch.infers_s for batch in batches),
                "compute_output": sum(batch.outputs_s for batch in batches),
            }
            return {
                "name": name,
                "version": version,
                "last_inference": int(self._last_s * 1e3),
                "inference_count": succeeded,
                "execution_count": sum(batch.runs for batch in batches),
                "inference_stats": {
                    "success": _step(succeeded, sum(steps_s.values())),
                    "fail": _step(self._failed, self._failed_s),
                    **{step: _step(succeeded, seconds) for step, seconds in steps_s.items()},
                },
                "batch_stats": [_batch(requests, batch) for requests, batch in sorted(self._batches.items())],
            }


def _step(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def _batch(requests: int, batch: _Batch) -> dict[str, Any]:
    return {
        "batch_size": requests,
        "compute_input": _step(batch.runs, batch.input_s),
        "compute_infer": _step(batch.runs, batch.infer_s),
        "compute_output": _step(batch.runs, batch.output_s),
    }
