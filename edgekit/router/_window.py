"""How long one thing takes lately: a rotating sketch with a drift factor, small-sample caution, and a restart when the regime changes.

Three things move a device's service time: noise (the sketch holds it), drift (heat, a neighbour's load: the last few against the window) and steps
(throttling by a factor, recovery from it). A 30 s window alone would believe in a recovered device only half a minute later, so a run of samples that all lie
outside the window's quartiles restarts the window from that run.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate

from edgekit.telemetry import RotatingHistogram

__all__ = ["ServiceWindow"]

WINDOW_S = 30.0
# Clip of the drift factor; above it the restart takes over, below 1 it would be optimism.
MAX_DRIFT = 4.0
SHORT = 3  # samples in the short average; a median, so that one outlier does not send the traffic away and the second one does
# A sample speaks for a new regime when it is this factor outside the quartiles. By chance a run of k does so with at most 4 ** -k.
STEP = 1.2
RUN_UP, RUN_DOWN = 8, 5
RUN_FAR = 3  # samples in a row beyond the clip are no drift any more
ALIKE = (
    2.0  # what the restarted window takes of the run: samples within this factor of its end, so that a spike does not outlive its regime
)
KEPT = 16  # newest samples that survive an idle window
STALE_WEIGHT = 4  # how many samples those are worth
CAUTION = 0.25  # every duration is believed to be longer by this over the root of the number of samples
REFRESH_EVERY = 16  # quantiles are recomputed after this many samples, or a slice of the window


class ServiceWindow:
    """Durations of one kind of work, in seconds. Time is an argument. Not safe from several threads.

    Args:
        short: samples in the short average, whose median over the window's is the drift.
    """

    __slots__ = (
        "_caution",
        "_count",
        "_drift",
        "_far",
        "_histogram",
        "_kept",
        "_mean",
        "_outside",
        "_p50",
        "_p95",
        "_p99",
        "_q1",
        "_q3",
        "_ranks",
        "_reference",
        "_refresh_at",
        "_short",
        "_since",
        "_sums",
        "_values",
    )

    def __init__(self, short: int = SHORT) -> None:
        self._short = short
        self._histogram = RotatingHistogram(WINDOW_S)
        self._kept: deque[float] = deque(maxlen=KEPT)
        self._outside = 0  # length of the run: positive above the quartiles, negative below
        self._far = 0  # length of the run beyond the clip
        self._since = 0  # samples since the last refresh
        self._refresh_at = -math.inf
        self._drift = 1.0
        self._caution = 1.0 + CAUTION
        self._count = 0
        # What the last refresh saw: distinct values, ascending, and how many samples are at most each. A decision only bisects.
        self._values: list[float] = []
        self._ranks: list[int] = [0]
        self._sums: list[float] = [0.0]
        self._q1 = self._p50 = self._q3 = self._p95 = self._p99 = self._mean = math.nan
        self._reference = (math.nan, math.nan, math.nan)

    def add(self, value_s: float, now: float) -> None:
        """Count one duration that ended at ``now``."""
        self._histogram.record(value_s, now)
        self._kept.append(value_s)
        self._since += 1
        if self._stepped(value_s):
            self._restart(now)
        if self._since >= REFRESH_EVERY or self._count < REFRESH_EVERY or now >= self._refresh_at:
            self._refresh(now)
        short = sorted(list(self._kept)[-self._short :])
        middle = short[len(short) // 2]
        # Up to the 95th percentile it is noise: of three samples two are beyond it by chance in 0.7 % of all cases (beyond the upper quartile in 16 %).
        self._drift = min(MAX_DRIFT, middle / max(self._p50, 1e-9)) if middle > self._p95 else 1.0

    def probability(self, budget_s: float, now: float) -> float:
        """Share of the work that ends within ``budget_s``, at the present drift; cautious while samples are few. NaN when empty."""
        if not self._kept:
            return math.nan
        if now >= self._refresh_at:
            self._refresh(now)
        if budget_s <= 0.0:
            return 0.0
        within = self._ranks[bisect_right(self._values, budget_s / (self._drift * self._caution))]
        return within / self._ranks[-1]

    def quantiles(self, now: float) -> tuple[float, float]:
        """``(p50, p95)`` at the present drift; NaN when empty."""
        if now >= self._refresh_at:
            self._refresh(now)
        return self._p50 * self._drift, self._p95 * self._drift

    def mean_s(self, now: float) -> float:
        """Mean at the present drift; NaN when empty."""
        if now >= self._refresh_at:
            self._refresh(now)
        return self._mean * self._drift

    def promise(self, budget_s: float, now: float) -> tuple[float, float, float, float]:
        """``(probability of budget_s, p50, p95, p99)`` at the present drift, in one call, since a decision asks for all; NaN when empty."""
        return self.probability(budget_s, now), self._p50 * self._drift, self._p95 * self._drift, self._p99 * self._drift

    def remaining_s(self, elapsed_s: float, now: float) -> float:
        """Mean of what is left of work that has taken ``elapsed_s`` and has not ended.

        Slower than all that the window holds, it is expected to take as long again: a hung one never ends.
        """
        if now >= self._refresh_at:
            self._refresh(now)
        at = elapsed_s / self._drift
        below = bisect_right(self._values, at)
        left = self._ranks[-1] - self._ranks[below]
        if not left:
            return elapsed_s
        return ((self._sums[-1] - self._sums[below]) / left - at) * self._drift

    def still(self, until_s: float, elapsed_s: float, now: float) -> float:
        """Probability that work which has taken ``elapsed_s`` and has not ended takes no more than ``until_s`` in all.

        Slower than all that the window holds, it is as likely as not to take as long again: ``1 - elapsed / until``. That neither gives up a run of a
        fraction of a millisecond for a hiccup of the machine, nor trusts one that hangs.
        """
        if until_s <= elapsed_s:
            return 0.0
        ended = self.probability(elapsed_s, now)
        if ended >= 1.0:
            return 1.0 - elapsed_s / until_s
        return (self.probability(until_s, now) - ended) / (1.0 - ended)

    @property
    def samples(self) -> int:
        """How many samples the estimate rests on; an idle window's survivors count little."""
        return self._count or min(len(self._kept), STALE_WEIGHT)

    @property
    def drift(self) -> float:
        """Short over long average, 1 to 4."""
        return self._drift

    def _stepped(self, value_s: float) -> bool:
        if not self._outside:
            self._reference = (self._q1, self._p50, self._q3)  # as they were before a run, which must not move what it is measured by
        low, middle, high = self._reference
        self._far = self._far + 1 if value_s > middle * MAX_DRIFT else 0
        if value_s > high * STEP:
            self._outside = max(0, self._outside) + 1
        elif value_s < low / STEP:
            self._outside = min(0, self._outside) - 1
        else:
            self._outside = 0
        return self._outside >= RUN_UP or self._outside <= -RUN_DOWN or (self._far >= RUN_FAR and self._outside >= RUN_FAR)

    def _restart(self, now: float) -> None:
        run = list(self._kept)[-abs(self._outside) :]
        tail = sorted(run[-SHORT:])
        centre = tail[len(tail) // 2]
        self._histogram = RotatingHistogram(WINDOW_S)
        for value_s in run:
            if centre / ALIKE <= value_s <= centre * ALIKE:
                self._histogram.record(value_s, now)
        self._outside = self._far = 0
        self._refresh(now)

    def _refresh(self, now: float) -> None:
        self._since = 0
        window = self._histogram.snapshot(now)
        self._count = window.count
        self._refresh_at = (
            now + WINDOW_S / 6 if window.count else math.inf
        )  # a slice of the histogram; nothing changes by itself once all is forgotten
        # For what few samples cannot tell, our choice: 1.25 after one sample, 1.025 after a hundred.
        self._caution = 1.0 + CAUTION / math.sqrt(max(1, self.samples))
        if window.count:
            base = 2.0 ** (2.0**-window.scale)
            buckets = sorted(window.buckets.items())
            # A bucket counts as its harmonic mean, which halves the worst error of either bound.
            self._values = [0.0, *(2.0 * base ** (index + 1) / (1.0 + base) for index, _ in buckets)]
            counts = [window.zero_count, *(count for _, count in buckets)]
        else:
            self._values = sorted(self._kept)
            counts = [1] * len(self._values)
            self._drift = 1.0
        if self._values:
            self._ranks = [0, *accumulate(counts)]
            self._sums = [0.0, *accumulate(value * count for value, count in zip(self._values, counts, strict=True))]
            self._mean = self._sums[-1] / self._ranks[-1]
            self._q1, self._p50, self._q3, self._p95, self._p99 = (self._quantile(q) for q in (0.25, 0.5, 0.75, 0.95, 0.99))

    def _quantile(self, q: float) -> float:
        rank = max(1, math.ceil(q * self._ranks[-1]))
        return self._values[bisect_left(self._ranks, rank) - 1]
