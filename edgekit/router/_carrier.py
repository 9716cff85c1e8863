"""Brings the state of a sequence along when its next request goes to another tier than the one before.

Where a request goes is decided elsewhere (`edgekit.router._sequences.home`); this knows where states are: with the tier that answered last, or, between two tiers, in hand. The tier that
has one is asked to end its sequence and hand the state over; the request takes it along, and what comes after it waits until it was answered. A state is so in one
place only, and one in hand is kept until its request was answered: after an error the next one takes it along again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from edgekit.errors import EdgeKitError, UnavailableError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.router._work import Answer, Work
from edgekit.runtime._sequence_table import SEQUENCE_END, SEQUENCE_EXPORT, SEQUENCE_ID, SEQUENCE_START, SEQUENCE_STATE_OF

__all__ = ["Carrier", "StateLostError", "Took", "export_of", "is_sequence"]

MOST = 10_000  # sequences whose place is known, as many as the state machine knows
IN_HAND_BYTES = 64 << 20

Key = tuple[str, str]
"""Model and id."""
Took = Callable[[InferResponse | EdgeKitError], None]


class StateLostError(UnavailableError):
    """The state of a sequence is gone, or its server cannot hand it over."""


class _State(NamedTuple):
    """By input name, and the digest of the bundle that made it."""

    arrays: Mapping[str, np.ndarray]
    digest: str

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class _Attempt(NamedTuple):
    """One attempt of a sequence: where it goes, how it begins and how it fails before that."""

    number: int
    place: int
    work: Work
    go: Callable[[Work], None]
    failed: Callable[[EdgeKitError], None]

    @property
    def key(self) -> Key:
        return self.work.model, str(self.work.parameters[SEQUENCE_ID])

    def flag(self, name: str) -> bool:
        return bool(self.work.parameters.get(name))


class Carrier:
    """See the module. Safe from several threads; no lock is held while others are called.

    Args:
        take: ask a place (-1 is the device, else an endpoint's index) for the state of the sequence that a work is of; hears the answer to `export_of`.
    """

    def __init__(self, take: Callable[[int, Work, Took], None]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._at: OrderedDict[Key, int] = OrderedDict()
        self._in_hand: OrderedDict[Key, _State] = OrderedDict()
        self._attempts: dict[int, tuple[_Attempt, bool]] = {}  # under way; True for one that takes the state along
        self._trips: dict[Key, list[_Attempt]] = {}  # a state is on its way; who waits for it

    def begin(self, number: int, place: int, work: Work, go: Callable[[Work], None], failed: Callable[[EdgeKitError], None]) -> None:
        """Begin an attempt of a sequence, at once or when the state has come.

        Args:
            number: of the attempt.
            place: where it goes.
            work: of a sequence.
            go: starts it, with the work to send; called in any thread.
            failed: instead, when the state cannot be had.
        """
        attempt = _Attempt(number, place, work, go, failed)
        key = attempt.key
        with self._lock:
            waiting = self._trips.get(key)
            if waiting is not None:
                waiting.append(attempt)
                return
            if attempt.flag(SEQUENCE_START):  # it begins anew, and needs no state
                self._at.pop(key, None)
                self._in_hand.pop(key, None)
            held, at = self._in_hand.get(key), self._at.get(key, place)
            brings = held is not None or at != place
            self._attempts[number] = (attempt, brings)
            if brings:
                self._trips[key] = []
        if held is not None:
            go(_with(work, held))
        elif brings:
            self._take(at, work, lambda answer: self._took(attempt, answer))
        else:
            go(work)

    def _took(self, attempt: _Attempt, answer: InferResponse | EdgeKitError) -> None:
        """The tier that had the state has answered."""
        key = attempt.key
        digest = answer.parameters.get(SEQUENCE_STATE_OF) if isinstance(answer, InferResponse) else None
        with self._lock:
            self._at.pop(key, None)
            if isinstance(answer, InferResponse) and isinstance(digest, str):
                state = _State({tensor.name: tensor.data for tensor in answer.outputs}, digest)
                self._keep(key, state)
        if digest is not None:
            attempt.go(_with(attempt.work, state))
            return
        why = str(answer) if isinstance(answer, EdgeKitError) else "its server keeps states to itself"
        thing = f"sequence {key[1]!r} of model {key[0]!r}"
        attempt.failed(StateLostError(thing, f"its state is lost: {why}", "", "begin it again, with sequence_start"))

    def _keep(self, key: Key, state: _State) -> None:
        self._in_hand[key] = state
        while sum(each.bytes for each in self._in_hand.values()) > IN_HAND_BYTES and len(self._in_hand) > 1:
            self._in_hand.popitem(last=False)

    def ended(self, number: int, result: Answer | BaseException) -> None:
        """An attempt that was begun here has ended."""
        with self._lock:
            attempt, brings = self._attempts.pop(number, (None, False))
            if attempt is None:
                return
            key = attempt.key
            if isinstance(result, Answer):
                self._in_hand.pop(key, None)
                self._at.pop(key, None)
                if not attempt.flag(SEQUENCE_END):
                    self._at[key] = attempt.place
                    if len(self._at) > MOST:
                        self._at.popitem(last=False)
            waiting = self._trips.pop(key, []) if brings else []
        for each in waiting:
            self.begin(*each)


def is_sequence(work: Work) -> bool:
    """The work is a request of a sequence."""
    return bool(work.parameters) and bool(work.parameters.get(SEQUENCE_ID))


def export_of(work: Work) -> InferRequest:
    """Asks for the state of the work's sequence, and ends it there."""
    parameters = {SEQUENCE_ID: work.parameters[SEQUENCE_ID], SEQUENCE_EXPORT: True, SEQUENCE_END: True}
    return InferRequest(work.model, [], work.version, parameters=parameters, deadline_s=work.limit_s)


def _with(work: Work, state: _State) -> Work:
    """The work as the first of its sequence, with the state that it goes on from."""
    parameters = {**work.parameters, SEQUENCE_START: True, SEQUENCE_STATE_OF: state.digest}
    return msgspec.structs.replace(work, inputs={**work.inputs, **state.arrays}, parameters=parameters)
