"""Brings the state of a sequence along when its next request goes to another tier than the one before.

Where a request goes is decided elsewhere (`edgekit.router._sequences.home`); this knows where states are: with the tier that answered last, or, between two tiers, in hand. The tier that
has one is asked to end its sequence and hand the state over, and the request takes it along. A state is so in one place only, and one in hand is kept until its
request was answered: after an error the next one takes it along again.

A sequence stays on the version that its first request was given, whatever others are given meanwhile: a state belongs to the weights that made it. Elsewhere it is
asked for by that version too, and the server there holds its digest against the state's.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from edgekit.errors import DeadlineError, EdgeKitError, UnavailableError
from edgekit.protocol import InferRequest, InferResponse
from edgekit.router._work import Answer, Work
from edgekit.runtime._sequence_table import SEQUENCE_END, SEQUENCE_EXPORT, SEQUENCE_ID, SEQUENCE_MOVES, SEQUENCE_START, SEQUENCE_STATE_OF

__all__ = ["Carrier", "StateLostError", "Took", "export_of", "is_sequence"]

MOST = 10_000  # sequences whose place is known, as many as the state machine knows
IN_HAND_BYTES = 64 << 20

Key = tuple[str, str, str]
"""Model, version as the client asks for it, and id."""
Took = Callable[[InferResponse | EdgeKitError], None]


class StateLostError(UnavailableError):
    """The state of a sequence is gone, or its server cannot hand it over."""


class _State(NamedTuple):
    """By input name, the digest of the bundle that made it, and that bundle's version."""

    arrays: Mapping[str, np.ndarray]
    digest: str
    version: str

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class _Home(NamedTuple):
    """Who has a state: -1 is the device, else an endpoint's index; and the version that it is asked for by there."""

    place: int
    version: str


class _Attempt(NamedTuple):
    """One attempt of a sequence: where it goes, how it begins and how it fails before that."""

    number: int
    place: int
    work: Work
    go: Callable[[Work], None]
    failed: Callable[[EdgeKitError], None]
    key: Key

    def flag(self, name: str) -> bool:
        return bool(self.work.parameters.get(name))


class Carrier:
    """See the module. Safe from several threads; no lock is held while others are called.

    Args:
        take: ask a place for the state of the sequence that a work is of; hears the answer to `export_of`.
    """

    def __init__(self, take: Callable[[int, Work, Took], None]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._at: OrderedDict[Key, _Home] = OrderedDict()
        self._in_hand: OrderedDict[Key, _State] = OrderedDict()
        self._attempts: dict[int, _Attempt] = {}  # begun, and not ended
        self._current: dict[Key, int] = {}  # of these the newest of each sequence: what others bring is of a request that was given up
        self._trips: dict[Key, _Attempt] = {}  # a state is on its way; who waits for it

    def begin(self, number: int, place: int, work: Work, go: Callable[[Work], None], failed: Callable[[EdgeKitError], None]) -> None:
        """Begin an attempt of a sequence, at once or when the state has come. One of the same sequence that has not ended was given up.

        Args:
            number: of the attempt.
            place: where it goes.
            work: of a sequence.
            go: starts it, with the work to send; called in any thread.
            failed: instead, when the state cannot be had.
        """
        key = work.model, work.named_version, str(work.parameters[SEQUENCE_ID])
        attempt = _Attempt(number, place, work, go, failed, key)
        with self._lock:
            before = self._trips.get(key)
            if before is None:
                if attempt.flag(SEQUENCE_START):  # it begins anew, and needs no state
                    self._forget(key)
                held, home = self._in_hand.get(key), self._at.get(key, _Home(place, work.version))
                work = msgspec.structs.replace(work, parameters={**work.parameters, SEQUENCE_MOVES: True})
                work = work if held is None else _with(work, held)
                if held is None and home.place == place:
                    work = msgspec.structs.replace(work, version=home.version)
                attempt = attempt._replace(work=work)
            self._attempts[number] = attempt
            self._current[key] = number
            waits = before is not None or (held is None and home.place != place)
            if waits:
                self._trips[key] = attempt
        if before is not None:
            before.failed(DeadlineError(_named(key), "a request of it was given up before its state had come"))
        elif waits:
            self._take(home.place, msgspec.structs.replace(work, version=home.version), functools.partial(self._took, key))
        else:
            go(work)

    def _took(self, key: Key, answer: InferResponse | EdgeKitError) -> None:
        """The tier that had the state has answered."""
        digest = answer.parameters.get(SEQUENCE_STATE_OF) if isinstance(answer, InferResponse) else None
        came = isinstance(answer, InferResponse) and isinstance(digest, str)
        with self._lock:
            self._at.pop(key, None)
            if isinstance(answer, InferResponse) and isinstance(digest, str):
                self._keep(key, _State({tensor.name: tensor.data for tensor in answer.outputs}, digest, answer.model_version))
            attempt = self._trips.pop(key)
        if came or attempt.flag(SEQUENCE_START):
            self.begin(*attempt[:-1])
            return
        why = str(answer) if isinstance(answer, EdgeKitError) else "its server keeps states to itself"
        attempt.failed(StateLostError(_named(key), f"its state is lost: {why}", "", "begin it again, with sequence_start"))

    def _keep(self, key: Key, state: _State) -> None:
        self._in_hand[key] = state
        while sum(each.bytes for each in self._in_hand.values()) > IN_HAND_BYTES and len(self._in_hand) > 1:
            self._in_hand.popitem(last=False)

    def _forget(self, key: Key) -> None:
        self._at.pop(key, None)
        self._in_hand.pop(key, None)

    def ended(self, number: int, result: Answer | BaseException) -> None:
        """An attempt ended. One that was not begun here, or was given up, changes nothing."""
        with self._lock:
            attempt = self._attempts.pop(number, None)
            if attempt is None or self._current.get(attempt.key) != number:
                return
            key = attempt.key
            del self._current[key]
            if not isinstance(result, Answer):
                return
            self._forget(key)
            if not attempt.flag(SEQUENCE_END):
                self._at[key] = _Home(attempt.place, attempt.work.version)
                if len(self._at) > MOST:
                    self._at.popitem(last=False)


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
    return msgspec.structs.replace(work, inputs={**work.inputs, **state.arrays}, parameters=parameters, version=state.version)


def _named(key: Key) -> str:
    return f"sequence {key[2]!r} of model {key[0]!r}"
