"""The cloud side: the Triton tier (`edgekit.cloud.triton`), its telemetry, and the collector (`edgekit.cloud.collector`)."""

from edgekit.cloud._report import report_triton

__all__ = ["report_triton"]
