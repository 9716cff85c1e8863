"""The states of a model: what a sequence of requests begins with, and what one request hands on to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekit.bundle import Signature
from edgekit.errors import RequestError

__all__ = ["States", "Stream"]

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]


class States:
    """Which inputs of a model are taken from which outputs. False when it has none.

    Args:
        signature: of the model.

    Attributes:
        inputs: names of the state inputs.
        outputs: names of the state outputs.
        initial: the first request's states by input name, zeros, read-only: they are shared by all sequences.
        initial_bytes: of them.
    """

    def __init__(self, signature: Signature) -> None:
        self.pairs = signature.states
        specs = {spec.name: spec for spec in signature.inputs}
        self.inputs = frozenset(pair.input for pair in self.pairs)
        self.outputs = frozenset(pair.output for pair in self.pairs)
        self.initial = {pair.input: _zeros(specs[pair.input].dtype, pair.shape) for pair in self.pairs}
        self.initial_bytes = size_bytes(self.initial)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def after(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """The next request's states, by input name. Copies: an engine may hand out views of a whole batch."""
        return {pair.input: outputs[pair.output].copy() for pair in self.pairs}


def size_bytes(state: Arrays) -> int:
    """What states take."""
    return sum(array.nbytes for array in state.values())


class Stream:
    """One sequence of requests to a model in this process; the state goes from each to the next. Safe from several threads, which take turns.

    Args:
        run: answers one request with all inputs.
        states: of the model.
        state: to begin with, by input name; the model's own when left out.

    Raises:
        RequestError: the model has no states, or ``state`` names an input that is none.
    """

    def __init__(self, run: Run, states: States, state: Arrays | None = None) -> None:
        if not states:
            raise RequestError(
                "the model", "has no states", "a bundle built with --state", "use run, or build it again and name its states"
            )
        for name in state or ():
            if name not in states.inputs:
                raise RequestError(f"state {name!r}", "no such state", f"states {', '.join(sorted(states.inputs))}")
        self._run = run
        self._states = states
        self._state: dict[str, np.ndarray] = {**states.initial, **(state or {})}
        self._turn = threading.Lock()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What the next request begins with, by input name: a copy, from which another stream can go on, here or elsewhere."""
        with self._turn:
            return {name: array.copy() for name, array in self._state.items()}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Answer the next request of the sequence.

        Args:
            inputs: all inputs of the signature but the states.

        Returns:
            all outputs but the states. After an error the state is what it was before.

        Raises:
            RequestError: a wrong name, dtype or shape, or a state among the inputs.
            EngineError: the engine failed, or the session was closed.
        """
        with self._turn:
            for name in self._states.inputs.intersection(inputs):
                raise RequestError(f"input {name!r}", "is kept by the stream", "the other inputs", "give it to stream(state=…) instead")
            outputs = self._run({**inputs, **self._state})
            self._state = self._states.after(outputs)
        return {name: array for name, array in outputs.items() if name not in self._states.outputs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing has to be released: the session stays open."""


def _zeros(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind: np.dtype[Any]
    if dtype == "bfloat16":
        from edgekit.protocol import numpy_dtype

        kind = numpy_dtype("BF16", "state")
    else:
        kind = np.dtype(dtype)
    zeros = np.zeros(shape, kind)
    zeros.flags.writeable = False
    return zeros
