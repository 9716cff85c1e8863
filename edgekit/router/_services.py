"""How long the device's work takes, by model and input size, and when an idle device should be measured again. Pure; time is an argument."""

from __future__ import annotations

import math

from edgekit.router._window import ServiceWindow

__all__ = ["Calibration", "ProbePlan", "ServiceBook", "size_class"]

PROBE_EVERY_S = 1.0
PROBE_DUTY = 0.1  # largest share of the device's time that probes may take
PROBE_AT_LEAST_EVERY_S = 30.0  # all the same: a device that hung must be found again
PROBE_CHAIN = 6  # probes back to back once one was fast enough after one that was not; enough to restart the window


def size_class(payload_bytes: int) -> int:
    """Input sizes within a factor of two are one class."""
    return payload_bytes.bit_length()


class ServiceBook:
    """A window of service times per model and input size class."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[str, dict[int, ServiceWindow]] = {}

    def add(self, model: str, payload_bytes: int, service_s: float, now: float) -> None:
        """Count one run that ended at ``now``."""
        classes = self._windows.get(model)
        if classes is None:
            classes = self._windows[model] = {}
        size = size_class(payload_bytes)
        window = classes.get(size)
        if window is None:
            window = classes[size] = ServiceWindow()
        window.add(service_s, now)

    def window(self, model: str, payload_bytes: int) -> tuple[ServiceWindow | None, float]:
        """The window of this size, or of the nearest known one with a factor: twice the time for twice the size, never less for a smaller one."""
        classes = self._windows.get(model)
        if not classes:
            return None, 1.0
        wanted = payload_bytes.bit_length()
        found = classes.get(wanted)
        if found is not None:
            return found, 1.0
        nearest = min(classes, key=lambda known: (abs(known - wanted), known < wanted))
        return classes[nearest], 2.0 ** max(0, wanted - nearest)

    def drifts(self) -> dict[str, float]:
        """Largest present drift factor of each model."""
        return {model: max(window.drift for window in classes.values()) for model, classes in self._windows.items()}


class ProbePlan:
    """When the device should run a shadow of a request that went to the cloud, so that a recovery is seen.

    Probes take 10 % of the device's time (but come every 30 s at least), and come once a second at most while they are too slow. The first that is fast
    enough is followed at once by a few more: a recovery is then known within one probe interval.
    """

    __slots__ = ("_budget_s", "_chain", "_last_offload_s", "_last_sample_s", "_last_service_s")

    def __init__(self) -> None:
        self._last_sample_s = -math.inf
        self._last_service_s = 0.0
        self._last_offload_s = -math.inf
        self._budget_s = math.inf  # of the last offloaded request
        self._chain = 0  # samples in a row within that budget

    def sampled(self, service_s: float, now: float) -> None:
        """A run ended at ``now``."""
        self._chain = self._chain + 1 if service_s <= self._budget_s else 0
        self._last_sample_s = now
        self._last_service_s = service_s

    def offloaded(self, budget_s: float, now: float) -> None:
        """A request that might have run here within ``budget_s`` went to the cloud."""
        self._last_offload_s = now
        self._budget_s = budget_s
        if self._last_service_s > budget_s:
            self._chain = 0

    @property
    def next_s(self) -> float:
        """Earliest time of the next probe; infinite while the traffic itself brings samples."""
        if 0 < self._chain < PROBE_CHAIN and self._last_offload_s > self._last_sample_s - PROBE_EVERY_S:
            return self._last_sample_s
        if self._last_offload_s <= self._last_sample_s:
            return math.inf
        rest_s = min(self._last_service_s / PROBE_DUTY, PROBE_AT_LEAST_EVERY_S)
        return self._last_sample_s + max(0.0 if self._chain else PROBE_EVERY_S, rest_s)


class Calibration:
    """A factor on predicted 95th percentiles that keeps their coverage at 95 %, whatever the predictions are made of.

    Adaptive conformal inference (Gibbs and Candès, 2021) on a logarithmic scale: every miss widens by 19 parts, every hit narrows by one, so that over any
    long run one in twenty misses.

    Attributes:
        factor: what a predicted 95th percentile is multiplied by.
    """

    __slots__ = ("_log", "factor")

    SHARE = 0.05
    STEP = 0.06  # our choice: one miss widens by 6 %, twenty hits take that back
    LEAST, MOST = math.log(0.6), math.log(4.0)

    def __init__(self) -> None:
        self._log = 0.0
        self.factor = 1.0

    def observe(self, within: bool) -> None:
        """A prediction came true, or did not."""
        step = self.STEP * (self.SHARE if within else self.SHARE - 1.0)
        self._log = min(self.MOST, max(self.LEAST, self._log - step))
        self.factor = math.exp(self._log)
