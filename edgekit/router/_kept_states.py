"""The states of sequences of a bundle that runs in the router's own process; a server keeps its own.

The state machine lets one request of a sequence run at a time. One that was given up may still run when the next one begins: its client was told an error, so the
state stays what it was before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from edgekit.errors import RequestError
from edgekit.protocol import InferResponse, Parameters, Tensor
from edgekit.router._work import Answer, Work
from edgekit.runtime import Session
from edgekit.runtime._sequence_table import SEQUENCE_STATE_OF, Control, Key, Sequence, SequenceLimits, SequenceTable, read_control
from edgekit.runtime._states import States, size_bytes

__all__ = ["KeptStates"]

_BEGIN_AGAIN = "send it with sequence_start: true; the state begins anew"


class KeptStates:
    """See the module. Safe from several threads. False when the model has no states.

    Args:
        session: of the bundle.
        limits: as those of a server.
        clock: monotonic seconds.

    Attributes:
        states: of the signature.
    """

    def __init__(self, session: Session, limits: SequenceLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.states = States(session.signature)
        self._session = session
        self._manifest = session.bundle.manifest
        self._table = SequenceTable(limits or SequenceLimits())
        self._clock = clock
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self.states)

    def run(self, work: Work, control: Control) -> Answer:
        """Answer a request of a sequence.

        Raises:
            RequestError: the sequence is not open, or what it brings does not fit.
            OverloadedError: too many sequences are open, or their states take too much.
            EngineError: as `Session.run`; the state is what it was before.
        """
        key = self._key(work, control)
        if control.end and not work.inputs:
            with self._lock:
                self._table.end(self._open(key))
            return Answer({}, self._manifest.version)
        inputs = self._completed(work, control, key)
        token = object()
        with self._lock:
            sequence = self._table.get(key) if not control.start else self._begun(key)
            if sequence is not None:
                self._table.busy(sequence)
                sequence.current = token
        try:
            outputs = self._session.run(inputs)
        except BaseException:
            self._settle(sequence, token, None, over=control.start)
            raise
        self._settle(sequence, token, self.states.after(outputs), over=control.end)
        return Answer({name: array for name, array in outputs.items() if name not in self.states.outputs}, self._manifest.version)

    def take(self, work: Work) -> InferResponse:
        """End the work's sequence, and hand over its states, as a server does when it is asked with ``sequence_export``."""
        control = read_control(work.parameters)
        assert control is not None
        with self._lock:
            sequence = self._open(self._key(work, control))
            states = [Tensor(name, array) for name, array in (sequence.state or {}).items()]
            self._table.end(sequence)
        parameters: Parameters = {SEQUENCE_STATE_OF: self._session.bundle.digest}
        return InferResponse(work.model, self._manifest.version, states, parameters=parameters)

    def check(self, work: Work) -> None:
        """Raise `RequestError` for inputs that do not fit the signature, states left out."""
        if work.inputs:
            self._session.signature.check({**self.states.initial, **work.inputs})

    def _key(self, work: Work, control: Control) -> Key:
        return work.model, self._manifest.version, control.id

    def _completed(self, work: Work, control: Control, key: Key) -> dict[str, np.ndarray]:
        """The request's inputs with its states."""
        given = self.states.inputs.intersection(work.inputs)
        made_by = work.parameters.get(SEQUENCE_STATE_OF)
        if made_by is not None and (made_by != self._session.bundle.digest or given != self.states.inputs):
            found = f"states {', '.join(sorted(given)) or 'none'} of a bundle with digest {str(made_by)[:64]}"
            expected = f"states {', '.join(sorted(self.states.inputs))} of {self._session.bundle.digest}"
            raise RequestError(f"model {work.model}", found, expected, _BEGIN_AGAIN)
        if control.start:
            return {**self.states.initial, **work.inputs}
        if given:
            raise RequestError(f"input {min(given)!r}", "is kept by the router", "no state within a sequence", _BEGIN_AGAIN)
        with self._lock:
            return {**work.inputs, **(self._open(key).state or {})}

    def _open(self, key: Key) -> Sequence:
        """With the lock held: the sequence."""
        self._table.expire(self._clock())
        sequence = self._table.get(key)
        if sequence is None or sequence.state is None:
            found = f"no sequence {key[2]!r} is open (never begun, ended, or idle for {self._table.limits.idle_s:g} s)"
            raise RequestError(f"model {key[0]}", found, "sequence_start with the first request", _BEGIN_AGAIN)
        return sequence

    def _begun(self, key: Key) -> Sequence:
        """With the lock held: a new sequence; one of that id that is open ends."""
        self._table.expire(self._clock())
        before = self._table.get(key)
        if before is not None:
            self._table.end(before)
        sequence = self._table.begin(key)
        sequence.model = self._session
        return sequence

    def _settle(self, sequence: Sequence | None, token: object, after: dict[str, np.ndarray] | None, *, over: bool) -> None:
        """A request has run: keep the state that it leaves, unless it was given up meanwhile; ``over``: its sequence ends by it."""
        with self._lock:
            if sequence is None or sequence.current is not token or self._table.get(sequence.key) is not sequence:
                return
            sequence.current = None
            if over:
                self._table.end(sequence)
                return
            try:
                if after is not None:
                    self._table.resize(sequence, size_bytes(after))
                    sequence.state = after
            except BaseException:
                self._table.end(sequence)
                raise
            self._table.idle(sequence, self._clock())
