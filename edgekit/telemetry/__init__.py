"""Instruments, log-bucket histograms, OTLP export with a durable spool, structured logs. Standard library, NumPy and msgspec only."""

from edgekit.telemetry._histogram import LogHistogram, RotatingHistogram, quantile_of_buckets
from edgekit.telemetry._logs import JsonFormatter, configure_logging
from edgekit.telemetry._memory import MemoryTransport
from edgekit.telemetry._meter import Attributes, AttributeValue, Counter, Gauge, Histogram, Meter, MetricPoint, NoopMeter
from edgekit.telemetry._otlp import RECEIPT_EVENT
from edgekit.telemetry._telemetry import Telemetry, default_device_id, default_spool_directory, start_telemetry

__all__ = [
    "RECEIPT_EVENT",
    "AttributeValue",
    "Attributes",
    "Counter",
    "Gauge",
    "Histogram",
    "JsonFormatter",
    "LogHistogram",
    "MemoryTransport",
    "Meter",
    "MetricPoint",
    "NoopMeter",
    "RotatingHistogram",
    "Telemetry",
    "configure_logging",
    "default_device_id",
    "default_spool_directory",
    "quantile_of_buckets",
    "start_telemetry",
]
