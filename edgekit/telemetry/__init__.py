"""Instruments, log-bucket histograms, OTLP export with a durable spool, structured logs. Stdlib, NumPy and msgspec only. See ``docs/telemetry.md``."""

from edgekit.telemetry._histogram import LogHistogram, RotatingHistogram
from edgekit.telemetry._meter import Attributes, Counter, Gauge, Histogram, Meter, MetricPoint, NoopMeter

__all__ = [
    "Attributes",
    "Counter",
    "Gauge",
    "Histogram",
    "LogHistogram",
    "Meter",
    "MetricPoint",
    "NoopMeter",
    "RotatingHistogram",
]
