"""Log-bucket histograms: quantiles with a bounded relative error, in constant memory, that merge without loss.

Buckets are those of OpenTelemetry's ExponentialHistogram (opentelemetry-specification, metrics/data-model.md): at scale ``s`` the base is
``2 ** 2 ** -s`` and bucket ``i`` holds the values in ``(base ** i, base ** (i + 1)]``. So a histogram can be sent, stored and merged bucket by bucket, and a
percentile over a fleet is as exact as one on a device. At scale 5 the base is 1.0219 and the relative error of a quantile is at most
``(base - 1) / (base + 1)`` = 1.083 %; the estimate is the bucket's harmonic mean, for which that bound holds (DDSketch, Masson et al., VLDB 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["LogHistogram", "RotatingHistogram", "quantile_of_buckets"]

DEFAULT_SCALE = 5
SCALE_MIN, SCALE_MAX = -10, 20  # the range that OTLP names
# Values outside 2**-40 .. 2**40 (a picosecond to 30,000 years, as seconds) go to the zero bucket or the topmost one, so memory stays bounded.
EXPONENT_LIMIT = 40


def quantile_of_buckets(q: float, zero_count: int, buckets: Mapping[int, int], scale: int) -> float:
    """Smallest value ``x`` with at least a share ``q`` of all counts at or below it, to the bucket's precision; NaN when there are no counts.

    Args:
        q: 0 to 1.
        zero_count: counts of values that are zero.
        buckets: counts by bucket index.
        scale: of the indexes.
    """
    total = zero_count + sum(buckets.values())
    if total <= 0:
        return math.nan
    rank = min(total, max(1, math.ceil(q * total)))
    if rank <= zero_count:
        return 0.0
    above = total - rank  # counts that may be left out from the top; a tail quantile is near there
    index = 0
    for index in sorted(buckets, reverse=True):
        above -= buckets[index]
        if above < 0:
            break
    return bucket_value(index, scale)


def bucket_value(index: int, scale: int) -> float:
    """The value that stands for a bucket: the harmonic mean of its bounds, with the same relative error at both."""
    base: float = 2.0 ** (2.0**-scale)
    upper: float = 2.0 ** ((index + 1) * 2.0**-scale)
    return 2.0 * upper / (1.0 + base)


class LogHistogram:
    """Counts of values in base-2 exponential buckets, with exact count, sum, minimum and maximum.

    Zero and negative values (a clock that stepped back) count as zero; NaN and infinity are dropped. Not safe from several threads: a `Meter` locks.

    Args:
        scale: OTLP scale, -10 to 20; each step up halves the relative error.
    """

    __slots__ = ("_buckets", "_factor", "_high", "_low", "_max", "_min", "count", "scale", "sum", "zero_count")

    def __init__(self, scale: int = DEFAULT_SCALE) -> None:
        if not SCALE_MIN <= scale <= SCALE_MAX:
            raise ValueError(f"scale {scale}: expected {SCALE_MIN} to {SCALE_MAX}")
        self.scale = scale
        self._set_range()
        self.reset()

    def _set_range(self) -> None:
        self._factor = 2.0**self.scale
        self._low = math.floor(-EXPONENT_LIMIT * self._factor)
        self._high = math.ceil(EXPONENT_LIMIT * self._factor) - 1

    def reset(self) -> None:
        """Forget everything."""
        self._buckets: dict[int, int] = {}
        self.zero_count = 0
        self.count = 0
        self.sum = 0.0
        self._min = math.inf
        self._max = -math.inf

    def record(self, value: float, count: int = 1) -> None:
        """Count ``value`` (``count`` times)."""
        try:
            index = math.ceil(math.log2(value) * self._factor) - 1
        except (ValueError, OverflowError):  # zero, negative, NaN or infinite
            self._record_special(value, count)
            return
        buckets = self._buckets
        if index in buckets:
            buckets[index] += count
        elif self._low <= index <= self._high:
            buckets[index] = count
        elif index > self._high:
            buckets[self._high] = buckets.get(self._high, 0) + count
        else:
            self.zero_count += count
        self.count += count
        self.sum += value * count
        if value < self._min:  # noqa: PLR1730 - a call to min() costs more than the rest of this method
            self._min = value
        if value > self._max:  # noqa: PLR1730
            self._max = value

    def _record_special(self, value: float, count: int) -> None:
        if not math.isfinite(value):
            return
        self.zero_count += count
        self.count += count
        self._min = min(self._min, 0.0)
        self._max = max(self._max, 0.0)

    @property
    def min(self) -> float:
        """Smallest value recorded, NaN when there is none."""
        return self._min if self.count else math.nan

    @property
    def max(self) -> float:
        """Largest value recorded, NaN when there is none."""
        return self._max if self.count else math.nan

    @property
    def mean(self) -> float:
        """Mean of the values, NaN when there is none."""
        return self.sum / self.count if self.count else math.nan

    @property
    def buckets(self) -> Mapping[int, int]:
        """Counts by bucket index, zero bucket left out. A view: do not keep it over a `record`."""
        return self._buckets

    def quantile(self, q: float) -> float:
        """Value at rank ``ceil(q * count)``, within 1.09 % at scale 5; NaN when nothing was recorded."""
        if not self.count:
            return math.nan
        estimate = quantile_of_buckets(q, self.zero_count, self._buckets, self.scale)
        return min(max(estimate, self._min), self._max)

    def share_at_most(self, value: float) -> float:
        """Share (0 to 1) of the values at or below ``value``, to the bucket's precision (the bucket of ``value`` counts whole); NaN when empty."""
        if not self.count:
            return math.nan
        if value < 0:
            return 0.0
        if value == 0:
            return self.zero_count / self.count
        limit = math.ceil(math.log2(value) * self._factor) - 1 if math.isfinite(value) else self._high
        return (self.zero_count + sum(count for index, count in self._buckets.items() if index <= limit)) / self.count

    def merge(self, other: LogHistogram) -> None:
        """Add the counts of ``other``; of two scales the coarser remains (OTLP's rule, without loss beyond it)."""
        if other.scale < self.scale:
            self._downscale(self.scale - other.scale)
        shift = other.scale - self.scale
        buckets = self._buckets
        for index, count in other._buckets.items():
            coarse = index >> shift
            buckets[coarse] = buckets.get(coarse, 0) + count
        self.zero_count += other.zero_count
        self.count += other.count
        self.sum += other.sum
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)

    def _downscale(self, steps: int) -> None:
        merged: dict[int, int] = {}
        for index, count in self._buckets.items():
            merged[index >> steps] = merged.get(index >> steps, 0) + count
        self._buckets = merged
        self.scale -= steps
        self._set_range()

    def copy(self) -> LogHistogram:
        """An independent histogram with the same content."""
        twin = LogHistogram(self.scale)
        twin.merge(self)
        return twin

    def dense(self) -> tuple[int, list[int]]:
        """``(offset, counts)`` as OTLP's ``Buckets`` message wants them: ``counts[k]`` belongs to index ``offset + k``."""
        if not self._buckets:
            return 0, []
        first, last = min(self._buckets), max(self._buckets)
        counts = [0] * (last - first + 1)
        for index, count in self._buckets.items():
            counts[index - first] = count
        return first, counts


class RotatingHistogram:
    """A histogram of the last ``window_s`` seconds, forgotten a slice at a time. Time is an argument (any clock that does not run backwards, in seconds).

    A value stays for at least ``window_s * (1 - 1 / slices)`` and at most ``window_s``. Not safe from several threads.
    """

    __slots__ = ("_newest", "_ring", "_slice_s", "_total")

    def __init__(self, window_s: float, slices: int = 6, scale: int = DEFAULT_SCALE) -> None:
        if not window_s > 0 or slices < 1:
            raise ValueError(f"window_s {window_s}, slices {slices}: expected a positive window and at least one slice")
        self._slice_s = window_s / slices
        self._ring = [LogHistogram(scale) for _ in range(slices)]
        self._total = LogHistogram(scale)
        self._newest: int | None = None

    def _rotate(self, now_s: float) -> LogHistogram:
        epoch = math.floor(now_s / self._slice_s)
        newest = self._newest
        if newest is None or epoch > newest:
            expired = range(epoch, epoch - 1, -1) if newest is None else range(max(newest + 1, epoch - len(self._ring) + 1), epoch + 1)
            dirty = False
            for slot in expired:
                part = self._ring[slot % len(self._ring)]
                dirty = dirty or bool(part.count)
                part.reset()
            self._newest = epoch
            if dirty:  # minimum and maximum cannot be taken back, so the total is built anew; once a slice
                self._total.reset()
                for part in self._ring:
                    self._total.merge(part)
        else:
            epoch = newest  # a late caller: its value belongs to the newest slice
        return self._ring[epoch % len(self._ring)]

    def record(self, value: float, now_s: float, count: int = 1) -> None:
        """Count ``value`` at the time ``now_s``."""
        self._rotate(now_s).record(value, count)
        self._total.record(value, count)

    def count(self, now_s: float) -> int:
        """How many values the window holds."""
        self._rotate(now_s)
        return self._total.count

    def quantile(self, q: float, now_s: float) -> float:
        """Quantile of the window's values, NaN when it is empty."""
        self._rotate(now_s)
        return self._total.quantile(q)

    def share_at_most(self, value: float, now_s: float) -> float:
        """Share of the window's values at or below ``value``, NaN when it is empty."""
        self._rotate(now_s)
        return self._total.share_at_most(value)

    def mean(self, now_s: float) -> float:
        """Mean of the window's values, NaN when it is empty."""
        self._rotate(now_s)
        return self._total.mean

    def snapshot(self, now_s: float) -> LogHistogram:
        """An independent histogram of the window."""
        self._rotate(now_s)
        return self._total.copy()
