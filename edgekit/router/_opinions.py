"""Both tiers' answers to one request, brought together and compared where nobody waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from edgekit.router._cascade import ConfidenceRule, confidence_of
from edgekit.router._policy_agreement import agree
from edgekit.router._policy_metrics import Compared, PolicyMetrics

__all__ = ["Opinions"]

Outputs = Mapping[str, np.ndarray]
MOST = 64  # pairs that wait, and audits that are under way; more are not compared
MOST_BYTES = 64 << 20  # of both answers of the pairs that wait


class Opinions:
    """Safe from several threads.

    Args:
        metrics: told what came out.
        rule_of: the present policy's rule for a model.
    """

    def __init__(self, metrics: PolicyMetrics, rule_of: Callable[[str], ConfidenceRule | None]) -> None:
        self._metrics = metrics
        self._rule_of = rule_of
        self._lock = threading.Lock()
        self._audited: dict[int, tuple[str, Compared, Outputs]] = {}
        self._waiting: deque[tuple[str, Compared, Outputs, Outputs]] = deque()
        self._bytes = 0

    def confidence(self, model: str, outputs: Outputs, rule: ConfidenceRule) -> float | None:
        """How sure the device is; counted when it does not say."""
        found = confidence_of(outputs, rule)
        if found is None:
            self._metrics.no_confidence(model)
        return found

    def audit(self, attempt: int, model: str, why: Compared, device: Outputs) -> None:
        """The cloud is asked about an answer; copied, since it is the client's from now on."""
        with self._lock:
            if len(self._audited) < MOST:
                self._audited[attempt] = (model, why, _copied(device))

    def audited(self, attempt: int, cloud: Outputs | None) -> None:
        """An audit ended, with an answer or without; any other attempt changes nothing."""
        if not self._audited:
            return
        with self._lock:
            found = self._audited.pop(attempt, None)
        if found is not None and cloud is not None:
            self._wait(*found, cloud)

    def escalated(self, model: str, device: Outputs, cloud: Outputs | None) -> None:
        """The client gets the cloud's answer in place of the device's; or the device's after all, when there is none."""
        self._metrics.escalated(model, "edge" if cloud is None else "cloud")
        if cloud is not None:
            self._wait(model, "escalation", device, _copied(cloud))

    def compare(self) -> None:
        """Compare what waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                model, why, device, cloud = self._waiting.popleft()
                self._bytes -= _bytes(device) + _bytes(cloud)
            self._metrics.compared(model, why, agree(device, cloud, self._rule_of(model)))

    def _wait(self, model: str, why: Compared, device: Outputs, cloud: Outputs) -> None:
        size = _bytes(device) + _bytes(cloud)
        with self._lock:
            if len(self._waiting) < MOST and self._bytes + size <= MOST_BYTES:
                self._waiting.append((model, why, device, cloud))
                self._bytes += size


def _copied(outputs: Outputs) -> Outputs:
    return {name: array.copy() for name, array in outputs.items()}


def _bytes(outputs: Outputs) -> int:
    return sum(array.nbytes for array in outputs.values())
