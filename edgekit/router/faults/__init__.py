"""A bad network on loopback: a TCP proxy that delays, narrows, stalls, resets and cuts, for tests, benchmarks and the demo."""

from edgekit.router.faults._proxy import Counts, FaultProxy
from edgekit.router.faults._shape import DOWN, Direction, Faults, Shaper, State, crossing_s

__all__ = ["DOWN", "Counts", "Direction", "FaultProxy", "Faults", "Shaper", "State", "crossing_s"]
