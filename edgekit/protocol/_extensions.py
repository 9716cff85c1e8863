"""What one server keeps for the protocol's extensions, shared by its transports: a region registered over HTTP is there for gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.protocol._settings import LogSettings
from edgekit.protocol._shared_memory import SharedMemoryRegions
from edgekit.protocol._tensors import Limits
from edgekit.protocol._trace import Traces

if TYPE_CHECKING:
    from edgekit.protocol._trace_files import TraceFolder

__all__ = ["Extensions"]

_NAMES = ("classification", "system_shared_memory", "logging")


class Extensions:
    """State of the extensions that need no core.

    Attributes:
        regions: system shared memory.
        log: settings.
        traces: settings and traces.

    Args:
        limits: of shared memory.
        traces: where files of traces may be written; traces cannot be turned on without.
    """

    def __init__(self, limits: Limits | None = None, traces: TraceFolder | None = None) -> None:
        self.regions = SharedMemoryRegions(limits)
        self.log = LogSettings()
        self.traces = Traces(traces)

    def names(self, core: Sequence[str]) -> list[str]:
        """The extensions of server metadata: the core's own and these."""
        ours = (*_NAMES, "trace") if self.traces.possible else _NAMES
        return [*core, *(name for name in ours if name not in core)]

    def close(self) -> None:
        """Let go of what clients registered, and write what traces are left."""
        self.regions.close()
        self.traces.close()
