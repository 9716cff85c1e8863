"""What one server keeps for the protocol's extensions, shared by its transports: a region registered over HTTP is there for gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.protocol._settings import LogSettings, TraceSettings
from edgekit.protocol._shared_memory import SharedMemoryRegions
from edgekit.protocol._tensors import Limits

__all__ = ["Extensions"]

_NAMES = ("classification", "system_shared_memory", "logging")  # trace settings can be read, but no trace is collected: not claimed


class Extensions:
    """State of the extensions that need no core.

    Attributes:
        regions: system shared memory.
        log, trace: settings.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.regions = SharedMemoryRegions(limits)
        self.log = LogSettings()
        self.trace = TraceSettings()

    def names(self, core: Sequence[str]) -> list[str]:
        """The extensions of server metadata: the core's own and these."""
        return [*core, *(name for name in _NAMES if name not in core)]

    def close(self) -> None:
        """Let go of what clients registered."""
        self.regions.close()
