"""Counters, histograms and gauges that a hot path can afford, collected as deltas.

Attribute sets are bounded: past ``series_limit`` sets of one instrument, further ones share the series ``otel.metric.overflow=true`` (the OpenTelemetry
SDK's rule) and are counted in `Meter.overflowed`. Nothing here raises into the caller for a bad value or attribute: it is dropped and counted.
"""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Generic, Literal, TypeVar

import msgspec

from edgekit.errors import UsageError
from edgekit.telemetry._histogram import DEFAULT_SCALE, LogHistogram

__all__ = ["AttributeValue", "Attributes", "Counter", "Gauge", "Histogram", "Meter", "MetricPoint", "NoopMeter"]

AttributeValue = str | bool | int | float
Attributes = Mapping[str, AttributeValue]
_Key = tuple[tuple[str, AttributeValue], ...]

SERIES_LIMIT = 200
ATTRIBUTE_LENGTH_LIMIT = 256  # characters of a value; a device must not be able to fill the store with one attribute
OVERFLOW_KEY: _Key = (("otel.metric.overflow", True),)

PointKind = Literal["sum", "gauge", "histogram"]


class MetricPoint(msgspec.Struct, frozen=True):
    """One series over one interval. ``value`` is the delta of a sum or the gauge's last value; histograms have ``histogram`` instead.

    Times are nanoseconds since the Unix epoch.
    """

    name: str
    kind: PointKind
    unit: str
    description: str
    attributes: dict[str, AttributeValue]
    start_ns: int
    time_ns: int
    value: float = 0.0
    histogram: LogHistogram | None = None


class _CounterSeries:
    __slots__ = ("attributes", "touched", "value")

    def __init__(self, attributes: dict[str, AttributeValue]) -> None:
        self.attributes = attributes
        self.value = 0.0
        self.touched = False

    def take(self) -> float | None:
        if not self.touched:
            return None
        value, self.value, self.touched = self.value, 0.0, False
        return value


class _GaugeSeries:
    __slots__ = ("attributes", "value")

    def __init__(self, attributes: dict[str, AttributeValue]) -> None:
        self.attributes = attributes
        self.value: float | None = None

    def take(self) -> float | None:
        return self.value  # a gauge keeps its last value from one interval to the next


class _HistogramSeries:
    __slots__ = ("attributes", "value")

    def __init__(self, attributes: dict[str, AttributeValue]) -> None:
        self.attributes = attributes
        self.value = LogHistogram(DEFAULT_SCALE)

    def take(self) -> LogHistogram | None:
        if not self.value.count:
            return None
        value, self.value = self.value, LogHistogram(DEFAULT_SCALE)
        return value


_S = TypeVar("_S", _CounterSeries, _GaugeSeries, _HistogramSeries)


def _clean(value: object) -> AttributeValue:
    if isinstance(value, str):
        return value[:ATTRIBUTE_LENGTH_LIMIT]
    return value if isinstance(value, bool | int | float) else str(value)[:ATTRIBUTE_LENGTH_LIMIT]


class _Instrument(Generic[_S]):
    """Series by attribute set. The lock is the instrument's own, so two instruments never wait for each other."""

    kind: PointKind

    def __init__(self, name: str, unit: str, description: str, series_limit: int) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.overflowed = 0  # records that went to the overflow series
        self.rejected = 0  # records that were no finite number, or a negative increment
        self._limit = series_limit
        self._lock = threading.Lock()
        self._by_key: dict[_Key, _S] = {}
        # The same attributes arrive in one or two orders of keys and are looked up as they come: no sorting on the hot path.
        self._by_items: dict[tuple[tuple[str, object], ...], _S] = {}

    def _new_series(self, attributes: dict[str, AttributeValue]) -> _S:
        raise NotImplementedError

    def _series(self, attributes: Attributes | None) -> _S:
        """The series of these attributes; the lock is held."""
        items = tuple(attributes.items()) if attributes else ()
        try:
            found = self._by_items.get(items)
        except TypeError:  # an unhashable value; made a string below
            found = None
        return found if found is not None else self._resolve(items)

    def _resolve(self, items: tuple[tuple[str, object], ...]) -> _S:
        key: _Key = tuple(sorted(((str(name), _clean(value)) for name, value in items), key=operator.itemgetter(0)))
        series = self._by_key.get(key)
        if series is None:
            if len(self._by_key) >= self._limit:
                self.overflowed += 1
                key = OVERFLOW_KEY
            series = self._by_key.get(key)
            if series is None:
                series = self._by_key[key] = self._new_series(dict(key))
        if key != OVERFLOW_KEY and len(self._by_items) < 4 * self._limit:
            with contextlib.suppress(TypeError):
                self._by_items[items] = series
        return series

    def _collect(self, start_ns: int, now_ns: int) -> list[MetricPoint]:
        points = []
        with self._lock:
            for series in self._by_key.values():
                value = series.take()
                if value is None:
                    continue
                scalar, histogram = (0.0, value) if isinstance(value, LogHistogram) else (value, None)
                points.append(
                    MetricPoint(
                        self.name, self.kind, self.unit, self.description, dict(series.attributes), start_ns, now_ns, scalar, histogram
                    )
                )
        return points


class Counter(_Instrument[_CounterSeries]):
    """A sum that only grows, sent as the increase since the last collection."""

    kind: PointKind = "sum"

    def _new_series(self, attributes: dict[str, AttributeValue]) -> _CounterSeries:
        return _CounterSeries(attributes)

    def add(self, n: float = 1, attributes: Attributes | None = None) -> None:
        """Increase by ``n`` (>= 0, finite; anything else is counted in ``rejected`` and dropped)."""
        with self._lock:
            if not 0 <= n < math.inf:
                self.rejected += 1
                return
            series = self._series(attributes)
            series.value += n
            series.touched = True


class Histogram(_Instrument[_HistogramSeries]):
    """A distribution, as an exponential histogram of the values since the last collection."""

    kind: PointKind = "histogram"

    def _new_series(self, attributes: dict[str, AttributeValue]) -> _HistogramSeries:
        return _HistogramSeries(attributes)

    def record(self, value: float, attributes: Attributes | None = None) -> None:
        """Count one value, in the instrument's unit."""
        with self._lock:
            if not -math.inf < value < math.inf:
                self.rejected += 1
                return
            self._series(attributes).value.record(value)

    def record_all(self, values: Sequence[float], attributes: Attributes | None = None) -> None:
        """Count several values of one series; as so many `record`, with one look-up."""
        with self._lock:
            record = self._series(attributes).value.record
            if len(values) > 1 and values.count(values[0]) == len(values):  # requests that arrived together waited equally long
                values, count = values[:1], len(values)
            else:
                count = 1
            for value in values:
                if -math.inf < value < math.inf:
                    record(value, count)
                else:
                    self.rejected += count


class Gauge(_Instrument[_GaugeSeries]):
    """A value that goes up and down; the last one set is sent."""

    kind: PointKind = "gauge"

    def _new_series(self, attributes: dict[str, AttributeValue]) -> _GaugeSeries:
        return _GaugeSeries(attributes)

    def set(self, value: float, attributes: Attributes | None = None) -> None:
        """Remember ``value`` as the newest."""
        with self._lock:
            if not -math.inf < value < math.inf:
                self.rejected += 1
                return
            self._series(attributes).value = value


_I = TypeVar("_I", Counter, Histogram, Gauge)


class Meter:
    """Makes instruments and collects them. Safe from several threads; asking for a name twice gives the same instrument.

    Args:
        series_limit: attribute sets an instrument may have before they overflow into one.
        start_ns: start of the first interval, nanoseconds since the Unix epoch; now when left out.
    """

    def __init__(self, series_limit: int = SERIES_LIMIT, start_ns: int | None = None) -> None:
        self._limit = series_limit
        self._lock = threading.Lock()
        self._instruments: dict[str, Counter | Histogram | Gauge] = {}
        self._start_ns = time.time_ns() if start_ns is None else start_ns

    def counter(self, name: str, unit: str = "1", description: str = "") -> Counter:
        """A monotonic sum."""
        return self._instrument(Counter, name, unit, description)

    def histogram(self, name: str, unit: str = "s", description: str = "") -> Histogram:
        """A distribution; durations are in seconds."""
        return self._instrument(Histogram, name, unit, description)

    def gauge(self, name: str, unit: str = "1", description: str = "") -> Gauge:
        """A value that goes up and down."""
        return self._instrument(Gauge, name, unit, description)

    def _instrument(self, kind: type[_I], name: str, unit: str, description: str) -> _I:
        with self._lock:
            found = self._instruments.get(name)
            if found is None:
                found = self._instruments[name] = kind(name, unit, description, self._limit)
            if not isinstance(found, kind):
                raise UsageError(
                    f"instrument {name!r}", f"already a {found.kind}", f"a {kind.kind}", "give the new instrument another name"
                )
            return found

    @property
    def overflowed(self) -> int:
        """Records that did not get a series of their own."""
        return sum(instrument.overflowed for instrument in list(self._instruments.values()))

    @property
    def rejected(self) -> int:
        """Records dropped because they were no usable number."""
        return sum(instrument.rejected for instrument in list(self._instruments.values()))

    def collect(self, now_ns: int) -> list[MetricPoint]:
        """What changed since the last call, and the gauges' last values. Every count is in exactly one collection."""
        with self._lock:
            instruments = list(self._instruments.values())
            start_ns, self._start_ns = self._start_ns, max(now_ns, self._start_ns)
        return [point for instrument in instruments for point in instrument._collect(start_ns, max(now_ns, start_ns))]


class _NoopCounter(Counter):
    def add(self, n: float = 1, attributes: Attributes | None = None) -> None:
        """Nothing."""


class _NoopHistogram(Histogram):
    def record(self, value: float, attributes: Attributes | None = None) -> None:
        """Nothing."""

    def record_all(self, values: Sequence[float], attributes: Attributes | None = None) -> None:
        """Nothing."""


class _NoopGauge(Gauge):
    def set(self, value: float, attributes: Attributes | None = None) -> None:
        """Nothing."""


class NoopMeter(Meter):
    """A meter whose instruments do nothing; for code that was given none."""

    def counter(self, name: str, unit: str = "1", description: str = "") -> Counter:
        """A counter that stays at zero."""
        return _NoopCounter(name, unit, description, 0)

    def histogram(self, name: str, unit: str = "s", description: str = "") -> Histogram:
        """A histogram that stays empty."""
        return _NoopHistogram(name, unit, description, 0)

    def gauge(self, name: str, unit: str = "1", description: str = "") -> Gauge:
        """A gauge without a value."""
        return _NoopGauge(name, unit, description, 0)
