"""Which sequences are open, and what they may take up. Decides; does nothing. Not safe from several threads: whoever owns it has a lock.

A sequence is a client's requests to one model that share a state: the first says ``sequence_start``, the last ``sequence_end``, all say ``sequence_id``
(Triton's parameters: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_sequence.md).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgekit.errors import OverloadedError, RequestError, UsageError
from edgekit.protocol import Parameters

__all__ = [
    "SEQUENCE_END",
    "SEQUENCE_EXPORT",
    "SEQUENCE_ID",
    "SEQUENCE_MOVES",
    "SEQUENCE_START",
    "SEQUENCE_STATE_OF",
    "SEQUENCE_STOPPING",
    "Control",
    "Key",
    "Sequence",
    "SequenceLimits",
    "SequenceTable",
    "read_control",
]

SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = "sequence_id", "sequence_start", "sequence_end"
SEQUENCE_EXPORT = "sequence_export"  # ours: end the sequence, and answer with its states, by input name
SEQUENCE_STATE_OF = (
    "sequence_state_of"  # ours: the digest of the bundle that made the states; in that answer, and with the first request elsewhere
)
SEQUENCE_MOVES = "sequence_moves"  # ours: who sends the sequence's requests will fetch its states when the server says that it stops
SEQUENCE_STOPPING = "sequence_stopping"  # ours: in an answer to such a request
_MAX_ID_CHARACTERS = 128  # Triton's limit for ids that are text
_SEQUENCE_BYTES = 1 << 10  # a sequence without its arrays: the object, its key, places in two dictionaries

Key = tuple[str, str, int | str]
"""Model, version as asked for (empty for the default), and id."""


class SequenceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What sequences may take up on one server, all models together.

    Attributes:
        sequences: that are open. More are refused; none is ended to make room, since who speaks now must not be cut off by who comes later.
        state_bytes: of all states.
        idle_s: without a request before a sequence is ended. Triton's default is one second. A minute outlasts what a mobile network takes to come back,
            and costs 3 kB of memory for a speech detector's state.
        drain_s: how long sequences may go on with a version that was replaced.
        waiting: requests of one sequence that wait for an earlier one.
    """

    sequences: int = 1024
    state_bytes: int = 256 << 20
    idle_s: float = 60.0
    drain_s: float = 600.0
    waiting: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name, found in (("sequences", self.sequences), ("state bytes", self.state_bytes), ("waiting requests", self.waiting)):
            if found < 1:
                raise UsageError(f"limit of {name}", str(found), "1 or more")
        for name, seconds in (("idle time of sequences", self.idle_s), ("drain time of sequences", self.drain_s)):
            if not 0.0 < seconds < float("inf"):
                raise UsageError(name, f"{seconds:g} s", "more than 0 seconds")


class Control(NamedTuple):
    """What a request says about its sequence."""

    id: int | str
    start: bool
    end: bool
    export: bool = False
    moves: bool = False


def read_control(parameters: Parameters) -> Control | None:
    """The sequence of a request; ``None`` for the id 0 or "", which Triton's clients take for none.

    Raises:
        RequestError: an id or a flag of another type.
    """
    found = parameters[SEQUENCE_ID]
    whole = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 64
    if not (whole or (isinstance(found, str) and len(found) <= _MAX_ID_CHARACTERS)):
        expected = f"a whole number below 2^64, or text of at most {_MAX_ID_CHARACTERS} characters"
        raise RequestError(f"parameter {SEQUENCE_ID!r}", repr(found)[:160], expected)
    flags = []
    for name in (SEQUENCE_START, SEQUENCE_END, SEQUENCE_EXPORT, SEQUENCE_MOVES):
        flag = parameters.get(name, False)
        if not isinstance(flag, bool):
            raise RequestError(f"parameter {name!r}", repr(flag)[:40], "true or false")
        flags.append(flag)
    assert isinstance(found, int | str)
    start, end, export, moves = flags
    if start and export:
        raise RequestError(f"parameter {SEQUENCE_EXPORT!r}", f"given with {SEQUENCE_START}", "one of them")
    return Control(found, start, end or export, export, moves) if found else None


class Sequence:
    """One open sequence.

    Attributes:
        key: of the table.
        model: the `LoadedModel` that it began on, and stays on; ``None`` before its first request was brought to one.
        state: of the next request, by input name; ``None`` before the first was answered.
        bytes: that it counts for.
        current: its request under way; ``None`` when it is idle.
        waiting: requests that go after it, in order.
        idle_since_s: since when nothing is under way.
        moves: its states will be fetched when its client hears that the server stops.
    """

    __slots__ = ("bytes", "current", "idle_since_s", "key", "model", "moves", "state", "waiting")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.model: Any = None
        self.state: dict[str, np.ndarray] | None = None
        self.bytes = _SEQUENCE_BYTES
        self.current: Any = None
        self.waiting: deque[Any] = deque()
        self.idle_since_s = 0.0
        self.moves = False


class SequenceTable:
    """The open sequences by key, within limits.

    Attributes:
        bytes: of all states, and what a sequence takes beside them.
    """

    def __init__(self, limits: SequenceLimits) -> None:
        self.limits = limits
        self.bytes = 0
        self._open: dict[Key, Sequence] = {}
        self._idle: OrderedDict[Key, Sequence] = OrderedDict()  # longest idle first

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: Key) -> Sequence | None:
        """An open sequence. Call `expire` first: it may have ended by now."""
        return self._open.get(key)

    def all(self) -> list[Sequence]:
        """All open sequences."""
        return list(self._open.values())

    def begin(self, key: Key) -> Sequence:
        """Open a sequence; it is busy.

        Raises:
            OverloadedError: too many are open.
        """
        if len(self._open) >= self.limits.sequences:
            raise OverloadedError(
                "sequences", f"{len(self._open)} are open", f"at most {self.limits.sequences}", "end one, or try again later"
            )
        self.bytes += _SEQUENCE_BYTES
        sequence = self._open[key] = Sequence(key)
        return sequence

    def resize(self, sequence: Sequence, state_bytes: int) -> None:
        """Its states take so much now.

        Raises:
            OverloadedError: there is no room for them; it counts for what it did before.
        """
        after = self.bytes - sequence.bytes + _SEQUENCE_BYTES + state_bytes
        if after > self.limits.state_bytes and state_bytes + _SEQUENCE_BYTES > sequence.bytes:
            raise OverloadedError(
                "states of sequences",
                f"{after} bytes with this one",
                f"at most {self.limits.state_bytes}",
                "end a sequence, or try again later",
            )
        self.bytes = after
        sequence.bytes = _SEQUENCE_BYTES + state_bytes

    def busy(self, sequence: Sequence) -> None:
        """A request of it is under way."""
        self._idle.pop(sequence.key, None)

    def idle(self, sequence: Sequence, now_s: float) -> None:
        """Nothing of it is under way any more."""
        sequence.idle_since_s = now_s
        self._idle[sequence.key] = sequence

    def end(self, sequence: Sequence) -> None:
        """Close it and give back what it took."""
        if self._open.pop(sequence.key, None) is not None:
            self._idle.pop(sequence.key, None)
            self.bytes -= sequence.bytes

    def expire(self, now_s: float) -> list[Sequence]:
        """End those that were idle for too long; returns them."""
        expired = []
        while self._idle:
            sequence = next(iter(self._idle.values()))
            if now_s - sequence.idle_since_s < self.limits.idle_s:
                break
            self.end(sequence)
            expired.append(sequence)
        return expired

    def drain(self, now_s: float) -> list[Sequence]:
        """End those that are idle and have been on a replaced version for too long; returns them."""
        late = [
            sequence
            for sequence in self._idle.values()
            if sequence.model is not None and now_s - sequence.model.holds.retired_s >= self.limits.drain_s
        ]
        for sequence in late:
            self.end(sequence)
        return late

    def next_expiry_s(self) -> float | None:
        """When `expire` has something to do; ``None`` while nothing is idle."""
        return next((sequence.idle_since_s + self.limits.idle_s for sequence in self._idle.values()), None)
