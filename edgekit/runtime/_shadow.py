"""Copies of requests for a version on trial: run beside the real ones, compared with their answers, thrown away."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np

from edgekit.bundle import OutputMetrics, Signature
from edgekit.errors import EdgeKitError, VerificationError
from edgekit.protocol import InferRequest, InferResponse, Tensor
from edgekit.runtime._compare import check_metrics, compare_outputs

__all__ = ["Agreement", "Shadow"]

_log = logging.getLogger(__name__)
_MAX_WAITING = 32  # copies; more are dropped and counted, so that a slow candidate costs memory and time within bounds
_MAX_BYTES = 64 << 20


class Agreement(msgspec.Struct, frozen=True):
    """How a candidate's answers compare with those that clients got.

    Attributes:
        compared: pairs of answers.
        agreed: pairs within the thresholds that a build holds an artifact to.
        dropped: copies that were not run, because others waited.
        failed: copies that the candidate could not answer.
        cosine: smallest, of any output. max_rel: largest, of any output.
        top1_agreement: mean of the pairs that have class scores; ``None`` without any.
        worst: what missed its threshold first, as one line.
    """

    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    failed: int = 0
    cosine: float = 1.0
    max_rel: float = 0.0
    top1_agreement: float | None = None
    worst: str = ""


class Shadow:
    """Runs copies in one thread of its own, one after the other.

    Args:
        candidate: version.
        signature: of the model.
        thresholds: as `edgekit.runtime._compare.thresholds_for` gives them.
        run: answers a request; the copies name the candidate as their version.
        record: told the version, the answer and its seconds.
    """

    def __init__(
        self,
        candidate: str,
        signature: Signature,
        thresholds: dict[str, float],
        run: Callable[[InferRequest], InferResponse],
        record: Callable[[str, InferResponse | Exception, float], None],
    ) -> None:
        self._candidate = candidate
        self._signature = signature
        self._thresholds = thresholds
        self._run = run
        self._record = record
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[InferRequest, InferResponse, int] | None] = queue.Queue()  # None ends the thread
        self._bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._agreement = Agreement()
        self._top1: list[float] = [0.0, 0.0]  # sum and count

    @property
    def agreement(self) -> Agreement:
        """What was measured so far."""
        return self._agreement

    def offer(self, request: InferRequest, response: InferResponse) -> None:
        """Take a copy of a request and its answer; both stay the caller's. Never blocks for a run."""
        size = sum(tensor.data.nbytes for tensor in (*request.inputs, *response.outputs))
        with self._lock:
            if self._closed or self._waiting.qsize() >= _MAX_WAITING or self._bytes + size > _MAX_BYTES:
                self._agreement = msgspec.structs.replace(self._agreement, dropped=self._agreement.dropped + 1)
                return
            self._bytes += size
        # Copied: a transport may read inputs from shared memory, and an engine may write its next outputs over these.
        copy = msgspec.structs.replace(
            request, model_version=self._candidate, inputs=_copies(request.inputs), deadline_s=None, parameters={}, trace=None
        )
        answer = msgspec.structs.replace(response, outputs=_copies(response.outputs))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="edgekit-shadow", daemon=True)
                self._thread.start()
        self._waiting.put((copy, answer, size))

    def close(self) -> None:
        """Drop what waits, let the present copy finish, end the thread."""
        with self._lock:
            self._closed = True
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (copy := self._waiting.get()) is not None and not self._closed:
            request, answer, size = copy
            with self._lock:
                self._bytes -= size
            try:
                self._compare(request, answer)
            except Exception:  # noqa: BLE001 - the thread's boundary: a trial must not end the server
                _log.exception("a shadow copy could not be compared")
            self._waiting.task_done()

    def _compare(self, request: InferRequest, answer: InferResponse) -> None:
        started_s = time.monotonic()
        got: InferResponse | Exception
        try:
            got = self._run(request)
        except EdgeKitError as exc:
            got = exc
        self._record(self._candidate, got, time.monotonic() - started_s)
        if isinstance(got, Exception):
            with self._lock:  # `offer` counts what it drops meanwhile
                before = self._agreement
                self._agreement = msgspec.structs.replace(before, failed=before.failed + 1, worst=before.worst or str(got))
            return
        metrics, problem = compare_answers(answer, got, self._signature)
        misses = [problem] if problem else check_metrics(metrics, self._thresholds)
        self._add(metrics, misses)

    def _add(self, metrics: dict[str, OutputMetrics], misses: list[str]) -> None:
        for found in metrics.values():
            if found.top1_agreement is not None:
                self._top1[0] += found.top1_agreement
                self._top1[1] += 1
        with self._lock:
            before = self._agreement
            self._agreement = Agreement(
                before.compared + 1,
                before.agreed + (not misses),
                before.dropped,
                before.failed,
                min([before.cosine, *(found.cosine for found in metrics.values())]),
                max([before.max_rel, *(found.max_rel for found in metrics.values())]),
                self._top1[0] / self._top1[1] if self._top1[1] else None,
                before.worst or (misses[0] if misses else ""),
            )


def compare_answers(want: InferResponse, got: InferResponse, signature: Signature) -> tuple[dict[str, OutputMetrics], str]:
    """Metrics of the numeric outputs that both answers have, and what cannot be measured but differs; empty when nothing does."""
    wanted, found = ({tensor.name: tensor.data for tensor in one.outputs} for one in (want, got))
    numeric = []
    for spec in signature.outputs:
        if spec.name not in wanted:
            continue
        if wanted[spec.name].dtype.kind in "fiub" and spec.name in found:
            numeric.append(spec)
        elif spec.name not in found or not np.array_equal(wanted[spec.name], found[spec.name]):
            return {}, f"output {spec.name!r}: another text"
    if not numeric:
        return {}, ""
    try:
        whole = len(numeric) == len(signature.outputs)  # ranked outputs are compared together or not at all
        asked = Signature(signature.inputs, tuple(numeric), postprocess=signature.postprocess if whole else None)
        return compare_outputs([wanted], [found], asked), ""
    except VerificationError as exc:
        return {}, str(exc)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [msgspec.structs.replace(tensor, data=tensor.data.copy()) for tensor in tensors]
