"""When bytes leave a bad network. Pure: time and chance are arguments.

The faults are those of Toxiproxy (latency, bandwidth, slow close, timeout, reset, slicer, limit, down), and stalls for lost segments: TCP hides a loss
from its user, who sees the stream stand still until the segment came again.
"""

from __future__ import annotations

import enum
import math
import random

import msgspec

from edgekit.errors import UsageError

__all__ = ["CHUNK_BYTES", "DOWN", "Direction", "Faults", "Shaper", "State", "crossing_s"]

SEGMENT_BYTES = 1448  # Ethernet's 1500 less IPv4's and TCP's headers with timestamps (RFC 7323)
CHUNK_BYTES = 65536  # that the proxy reads at a time; a chunk stalls once, however many of its segments are lost
RETRANSMIT_S = 0.2  # Linux's least retransmission timeout, TCP_RTO_MIN


class State(enum.Enum):
    """What the link does at all."""

    UP = "up"
    SILENT = "silent"
    """No byte passes and nothing is reset, as with a pulled cable; what was held back passes when it is up again."""
    DOWN = "down"
    """New connections are refused, existing ones reset."""


class Direction(msgspec.Struct, frozen=True):
    """Faults of one direction.

    Attributes:
        delay_s: added to every chunk.
        jitter_s: added as well, uniform between 0 and this; order is kept.
        bytes_per_s: of all connections together; infinite for no limit.
        loss: share of segments that are lost and stall their connection.
        stall_s: for how long, each.
        slice_bytes: largest piece in which bytes are handed on; 0 for as they come.
        slice_delay_s: pause after each piece.
        close_delay_s: how long an end of stream is held back.
        silent: this direction alone carries nothing: a half-open connection.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = math.inf
    loss: float = 0.0
    stall_s: float = RETRANSMIT_S
    slice_bytes: int = 0
    slice_delay_s: float = 0.0
    close_delay_s: float = 0.0
    silent: bool = False

    def __post_init__(self) -> None:
        times = (self.delay_s, self.jitter_s, self.stall_s, self.slice_delay_s, self.close_delay_s)
        if not all(0 <= value < math.inf for value in times) or not self.bytes_per_s > 0 or not 0 <= self.loss < 1 or self.slice_bytes < 0:
            raise UsageError("faults", str(self), "times of 0 or more, a bandwidth above 0, a loss in [0, 1)")


class Faults(msgspec.Struct, frozen=True):
    """What is wrong with a link.

    Attributes:
        up: from the client to the server.
        down: from the server to the client.
        state: up, silent or down.
        reset_after_bytes: a connection is reset once it has carried this many bytes in both directions together; 0 for never.
    """

    up: Direction = Direction()
    down: Direction = Direction()
    state: State = State.UP
    reset_after_bytes: int = 0

    @classmethod
    def both(cls, direction: Direction) -> Faults:
        """The same in both directions."""
        return cls(direction, direction)


DOWN = Faults(state=State.DOWN)


class Shaper:
    """One direction of one link: a queue for its bandwidth that all connections share.

    Args:
        random_source: draws jitter and losses.
    """

    def __init__(self, random_source: random.Random) -> None:
        self._random = random_source
        self._free_s = 0.0
        self.stalls = 0

    def due(self, direction: Direction, size_bytes: int, now: float, previous_s: float) -> float:
        """Absolute time at which a chunk that came ``now`` leaves.

        Args:
            direction: the faults at present.
            size_bytes: of the chunk.
            now: the time.
            previous_s: when the connection's chunk before it leaves: order is kept.
        """
        self._free_s = max(self._free_s, now) + size_bytes / direction.bytes_per_s
        at = self._free_s + direction.delay_s + direction.jitter_s * self._random.random()
        at = max(at, previous_s)
        if direction.loss and self._lost(direction.loss, size_bytes):
            self.stalls += 1
            at += direction.stall_s
        return at

    def _lost(self, loss: float, size_bytes: int) -> bool:
        """At least one of the chunk's segments is lost; several at once are one stall."""
        segments = max(1, math.ceil(size_bytes / SEGMENT_BYTES))
        return self._random.random() >= (1.0 - loss) ** segments


def crossing_s(direction: Direction, size_bytes: int, random_source: random.Random) -> float:
    """How long a message that is there as a whole takes over an otherwise idle link, one draw; as `FaultProxy` carries it, slices left out.

    Args:
        direction: the faults.
        size_bytes: of the message.
        random_source: draws jitter and losses.
    """
    shaper, at = Shaper(random_source), 0.0
    for start in range(0, size_bytes, CHUNK_BYTES):
        at = shaper.due(direction, min(CHUNK_BYTES, size_bytes - start), 0.0, at)
    return at
