"""OTLP collector of the fleet: ingest over HTTP and gRPC, a ClickHouse or chDB store, the fleet page. Needs the extra ``collector``."""

from edgekit.cloud.collector._collector import Collector, start_collector

__all__ = ["Collector", "start_collector"]
