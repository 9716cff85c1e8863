"""Histograms that grow with their data, and the ranges that are chosen from them. Pure NumPy."""

from __future__ import annotations

import math

import numpy as np

from edgekit.converters._ranges import Range

__all__ = ["BINS", "PERCENTILE", "GrowingHistogram", "entropy_range", "error_range", "percentile_range"]

BINS = 4096
"""Bins over ``[-limit, limit)``; the limit is a power of two and at most twice the largest value, so 1,024 bins or more lie on each used side."""

PERCENTILE = 0.9999
"""Share of values within a percentile range. One value in ten thousand is cut: NVIDIA's and ONNX Runtime's calibrators use 0.9999 and 0.99999."""

_CANDIDATES = 64  # thresholds tried by the entropy method; neighbouring ones differ by 1/64 of the range, below the noise of a sample set
_LEVELS_SIGNED, _LEVELS_UNSIGNED = 128, 255


class GrowingHistogram:
    """Counts of values in equal bins around zero; when a value lies outside, the limit doubles and neighbouring bins are merged, so one pass over the data suffices."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray, magnitude: float) -> None:
        """Count finite values.

        Args:
            values: any shape, float.
            magnitude: their largest absolute value.
        """
        if magnitude >= self.limit:
            self._grow(magnitude)
        if not self.limit:
            self.counts[BINS // 2] += values.size
            return
        positions = ((values.ravel() + self.limit) * (BINS / (2 * self.limit))).astype(np.int64)
        self.counts += np.bincount(np.clip(positions, 0, BINS - 1), minlength=BINS)

    def _grow(self, magnitude: float) -> None:
        if magnitude == 0:
            return
        wanted = 2.0 ** (math.floor(math.log2(magnitude)) + 1)
        if not self.limit:
            self.limit = wanted
            return
        while self.limit < wanted:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.limit *= 2


def percentile_range(histogram: GrowingHistogram, low: float, high: float) -> Range:
    """The range that holds `PERCENTILE` of all values, both tails cut alike, within the measured ``low`` and ``high``."""
    total = int(histogram.counts.sum())
    if not total or not histogram.limit:
        return low, high
    tail = (1 - PERCENTILE) / 2
    shares = np.cumsum(histogram.counts) / total
    width = 2 * histogram.limit / BINS
    first = int(np.searchsorted(shares, tail, side="right"))
    last = int(np.searchsorted(shares, 1 - tail, side="left"))
    return max(low, first * width - histogram.limit), min(high, (last + 1) * width - histogram.limit)


def entropy_range(histogram: GrowingHistogram, low: float, high: float) -> Range:
    """The range whose 8-bit form loses least information: the threshold with the smallest Kullback-Leibler divergence between the values, clipped to it, and their
    quantised distribution (S. Migacz, "8-bit Inference with TensorRT", GTC 2017). The threshold is on magnitudes and cuts both sides.
    """
    half = BINS // 2
    counts = (histogram.counts[half:] + histogram.counts[:half][::-1]).astype(np.float64)
    used = int(np.max(np.nonzero(counts)[0], initial=0)) + 1
    levels = _LEVELS_UNSIGNED if low >= 0 or high <= 0 else _LEVELS_SIGNED
    if used <= levels or not histogram.limit:
        return low, high
    counts = counts[:used]
    counts[0] = counts[1]  # zeros are exact at every scale; their spike (half of a ReLU's output) would decide alone
    candidates = np.unique(np.linspace(levels, used, _CANDIDATES).astype(int))
    best = min(candidates, key=lambda size: (_divergence(counts, int(size), levels), -size))
    threshold = float(best) * histogram.limit / half
    return max(low, -threshold), min(high, threshold)


def error_range(histogram: GrowingHistogram, low: float, high: float) -> Range:
    """The range with the smallest mean squared error of 8-bit values: rounding inside (step squared over twelve), clipping outside. Both ends shrink alike."""
    if not histogram.limit:
        return low, high
    width = 2 * histogram.limit / BINS
    centres = (np.arange(BINS) + 0.5) * width - histogram.limit
    there = histogram.counts > 0
    centres, counts = centres[there], histogram.counts[there].astype(np.float64)

    def error(share: float) -> float:
        bottom, top = min(low * share, 0.0), max(high * share, 0.0)
        outside = np.maximum(bottom - centres, 0) + np.maximum(centres - top, 0)
        outside[outside < width] = 0  # the ends themselves lie half a bin beyond a centre
        inside = float(counts[outside == 0].sum())
        return inside * ((top - bottom) / 255) ** 2 / 12 + float(np.sum(counts * outside**2))

    share = min(np.linspace(1.0, 0.1, _CANDIDATES), key=error)
    return low * float(share), high * float(share)


def _divergence(counts: np.ndarray, size: int, levels: int) -> float:
    """KL divergence of the first ``size`` bins, with all beyond counted in the last, from their form in ``levels`` steps."""
    clipped = counts[:size].copy()
    shape = clipped.copy()
    clipped[-1] += counts[size:].sum()
    edges = np.arange(levels) * size // levels
    sums = np.add.reduceat(shape, edges)
    filled = np.add.reduceat((shape > 0).astype(np.float64), edges)
    lengths = np.diff(np.append(edges, size))
    coarse = np.repeat(np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0), lengths) * (shape > 0)
    p, q = clipped / clipped.sum(), coarse / (coarse.sum() or 1.0)
    there = p > 0
    # A value where the quantised form has none costs as if it had one part in a million there.
    return float(np.sum(p[there] * np.log(p[there] / np.maximum(q[there], 1e-6))))
