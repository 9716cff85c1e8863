"""A request of a sequence: finds its model, takes the sequence's state with it, and brings the next one back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol import InferRequest, InferResponse, RequestedOutput, Tensor
from edgekit.runtime._job import Done
from edgekit.runtime._sequence_table import SEQUENCE_STATE_OF, Control, Sequence, SequenceLimits

if TYPE_CHECKING:
    from edgekit.runtime._loaded_model import LoadedModel

__all__ = ["NO_CONTROL", "Get", "Place", "SequenceRequest"]

NO_CONTROL = Control(0, start=False, end=False)
_BEGIN_AGAIN = "send it with sequence_start: true; the state begins anew"

Get = Callable[[str, str], "LoadedModel"]


class Keeper(Protocol):
    """What keeps the sequences."""

    limits: SequenceLimits

    def withdraw(self, place: Place) -> None:
        """Drop a request that waits for an earlier one; does nothing for others."""
        ...

    def bind(self, sequence: Sequence, request: InferRequest, get: Get) -> LoadedModel:
        """Let a sequence begin on the model that its first request goes to, unless that has no states.

        Raises:
            EdgeKitError: there is no such model, or no room for its states.
        """
        ...

    def ended(self, place: Place, answer: InferResponse | Exception) -> None:
        """A request was answered: keep the state it left, and bring on the next one."""
        ...


class SequenceRequest(InferRequest):
    """A request of a sequence on its way to its model, which it finds itself."""

    place: Any = None

    def resolve(self, get: Get) -> LoadedModel:
        """The model that it runs on, its inputs completed with the sequence's state.

        Args:
            get: a model by name and version.

        Raises:
            EdgeKitError: it cannot run.
        """
        place: Place = self.place
        return place.resolve(self, get)


class Place:
    """A request and where it stands in its sequence; also its `Ticket`."""

    __slots__ = ("_core", "bound", "control", "done", "plain", "request", "sequence")

    def __init__(self, core: Keeper, request: InferRequest, control: Control, done: Done) -> None:
        self._core = core
        self.request = request
        self.control = control
        self.done = done
        self.sequence: Sequence | None = None  # None: there is none of that id
        self.bound = False  # the request has its model and state
        self.plain = False  # the model has no states

    def cancel(self) -> None:
        """See `Ticket.cancel`. One that has begun runs to its end: the next one needs its state."""
        self._core.withdraw(self)

    def unknown(self) -> RequestError:
        """There is no such sequence."""
        name, idle_s = self.request.model_name[:96], self._core.limits.idle_s
        found = f"no sequence {self.control.id!r} is open (never begun, ended, or idle for {idle_s:g} s)"
        return RequestError(f"model {name}", found, "sequence_start with the first request", _BEGIN_AGAIN)

    def resolve(self, request: SequenceRequest, get: Get) -> LoadedModel:
        """See `SequenceRequest.resolve`."""
        sequence = self.sequence
        if sequence is None:
            model = get(request.model_name, request.model_version)
            if model.states:
                raise self.unknown()
            return model
        if self.control.start and (not self.bound or sequence.model.holds.closed):
            model = self._core.bind(sequence, request, get)
            if not model.states:
                self.plain = True
                return model
            self.bound, request.inputs, request.outputs = False, self.request.inputs, self.request.outputs
        if sequence.model is None or (sequence.state is None and not self.control.start):
            raise self.unknown()
        model = cast("LoadedModel", sequence.model)
        if model.holds.closed or time.monotonic() - model.holds.retired_s >= self._core.limits.drain_s:
            raise NotFoundError(f"model {model.name} version {model.version}", "was unloaded while the sequence ran", "", _BEGIN_AGAIN)
        if not self.bound:
            self._complete(request, model, sequence.state or model.states.initial)
            self.bound = True
        return model

    def _complete(self, request: SequenceRequest, model: LoadedModel, state: Mapping[str, np.ndarray]) -> None:
        """Put the state among the inputs, and its next value among the outputs that are asked for."""
        given = {tensor.name for tensor in request.inputs if tensor.name in model.states.inputs}
        if given and not self.control.start:
            raise RequestError(f"input {min(given)!r}", "is kept by the server", "no state within a sequence", _BEGIN_AGAIN)
        made_by = request.parameters.get(SEQUENCE_STATE_OF)
        if made_by is not None and (made_by != model.bundle.digest or given != model.states.inputs):
            found = f"states {', '.join(sorted(given)) or 'none'} of a bundle with digest {str(made_by)[:64]}"
            expected = f"states {', '.join(sorted(model.states.inputs))} of {model.bundle.digest}"
            raise RequestError(f"model {model.name} version {model.version}", found, expected, _BEGIN_AGAIN)
        request.inputs = [*request.inputs, *(Tensor(name, array) for name, array in state.items() if name not in given)]
        if request.outputs:
            asked = {output.name for output in request.outputs}
            request.outputs = [*request.outputs, *(RequestedOutput(name) for name in sorted(model.states.outputs - asked))]

    def last(self) -> InferResponse | Exception:
        """The answer to a request without inputs that ends its sequence: its states by input name, if they are to go on elsewhere."""
        request, sequence = self.request, self.sequence
        model = sequence.model if sequence is not None else None
        if not self.control.export:
            return InferResponse(request.model_name, model.version if model else "", [], request.id)
        if sequence is None or model is None or sequence.state is None:
            return self.unknown()
        states = [Tensor(name, array) for name, array in sequence.state.items()]
        return InferResponse(request.model_name, model.version, states, request.id, {SEQUENCE_STATE_OF: model.bundle.digest})

    def answered(self, answer: InferResponse | Exception) -> None:
        """The core's answer, in any thread."""
        self._core.ended(self, answer)

    def taken(self, answer: InferResponse | Exception) -> dict[str, np.ndarray] | None:
        """The state that an answer leaves, which is taken out of it, unless the client asked for it; ``None`` when it leaves none."""
        if not isinstance(answer, InferResponse) or self.plain or self.control.export or not answer.outputs:
            return None
        assert self.sequence is not None
        states = self.sequence.model.states
        kept: dict[str, np.ndarray] = states.after({tensor.name: tensor.data for tensor in answer.outputs})
        hidden = states.outputs.difference(output.name for output in self.request.outputs)
        answer.outputs = [tensor for tensor in answer.outputs if tensor.name not in hidden]
        return kept
