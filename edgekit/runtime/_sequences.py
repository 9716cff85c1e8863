"""A core that keeps states: requests of one sequence run one after the other, each with the state that the one before it left.

Sequences of different clients run side by side, together where the model's requests may (`edgekit.runtime._request_plan`): a state is an input like any other
by the time a request is queued. A sequence stays on the model version that it began on, also when that is replaced meanwhile, until it ends. An error
leaves the state as it was before the request.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.bundle import StatePair
from edgekit.errors import EdgeKitError, NotFoundError, OverloadedError, UnavailableError
from edgekit.protocol import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ServerMetadata,
    SteppingCore,
    Ticket,
)
from edgekit.runtime._delegating import DelegatingCore
from edgekit.runtime._job import Done
from edgekit.runtime._sequence_counts import SequenceCounts
from edgekit.runtime._sequence_place import NO_CONTROL, Get, Place, SequenceRequest
from edgekit.runtime._sequence_table import SEQUENCE_ID, SEQUENCE_STOPPING, Sequence, SequenceLimits, SequenceTable, read_control
from edgekit.runtime._states import size_bytes
from edgekit.telemetry import Meter

if TYPE_CHECKING:
    from edgekit.runtime._loaded_model import LoadedModel
    from edgekit.runtime._repository import ModelRepository

__all__ = ["SequenceCore"]

_log = logging.getLogger(__name__)
_LOOK_S = 5.0  # how often sequences on replaced versions are looked at
_ROUNDS = 4  # of requests that a turn brings on in the transport's own thread; then our thread goes on


class SequenceCore(DelegatingCore):
    """A `SteppingCore` over another.

    Args:
        core: what a request without a sequence, and the first one of each, goes to; closed by whoever made it.
        direct: what the others go to: their version is known. It must ask a `SequenceRequest` for its model.
        repository: the same that both have.
        limits: of sequences.
        meter: counts in ``edgekit.sequence.changes`` (by model, version, tier and ``edgekit.change``: begin, end, expire, drain, refuse) and shows
            ``edgekit.sequence.open`` and ``edgekit.sequence.bytes``.

    Attributes:
        limits: as given.
    """

    def __init__(
        self,
        core: SteppingCore,
        direct: SteppingCore,
        repository: ModelRepository,
        limits: SequenceLimits | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(core)
        self.limits = limits or SequenceLimits()
        self._direct = direct
        self._repository = repository
        self._table = SequenceTable(self.limits)
        self._counts = SequenceCounts(meter)
        self._wake = threading.Condition(threading.Lock())
        self._ready: deque[Place] = deque()  # their turn has come
        self._retired: list[LoadedModel] = []  # nobody is on them any more
        self._local = threading.local()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._leaving = False

    # Requests

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        """See `SubmittingCore.submit`."""
        parameters = request.parameters
        if not parameters or SEQUENCE_ID not in parameters or self._is_plain(request):
            return self._core.submit(request, done)
        place = Place(self, request, NO_CONTROL, done)
        try:
            control = read_control(parameters)
            if control is None:
                return self._core.submit(request, done)
            place.control = control
            now = self._enter(place)
        except EdgeKitError as exc:
            self._count_refusal(request, exc)
            done(exc)
        else:
            if now:
                self._go(place)
        return place

    def turn(self) -> None:
        """See `SubmittingCore.turn`."""
        if self._thread is None:  # there never was a sequence
            self._core.turn()
            return
        self._local.turning = True
        try:
            self._core.turn()
            for _ in range(_ROUNDS):
                if not self._go_on():
                    return
        finally:
            self._local.turning = False
        if self._ready:
            with self._wake:
                self._wake.notify_all()

    def step(self) -> bool:
        """See `SteppingCore.step`."""
        if self._thread is None:
            return self._core.step()
        self._local.turning = True
        try:
            more = self._core.step()
        finally:
            self._local.turning = False
        return self._bring_on() or more

    def infer(self, request: InferRequest) -> InferResponse:
        """See `InferenceCore.infer`."""
        if SEQUENCE_ID not in request.parameters:
            return self._core.infer(request)
        return self._submit_and_wait(request)

    def _count_refusal(self, request: InferRequest, error: EdgeKitError) -> None:
        """Of models that are there only: strangers choose the names."""
        if isinstance(error, OverloadedError):
            with contextlib.suppress(NotFoundError):
                model = self._repository.get(request.model_name, request.model_version)
                self._counts.add("refuse", model.name, model.version)

    def _is_plain(self, request: InferRequest) -> bool:
        """The model is loaded and has no states: the parameters are for somebody else."""
        try:
            return not self._repository.get(request.model_name, request.model_version).states
        except NotFoundError:
            return False

    def _enter(self, place: Place) -> bool:
        """Find the request's place; true when its turn is now.

        Raises:
            OverloadedError: too many sequences, or too many requests of this one wait.
        """
        request, control = place.request, place.control
        key = (request.model_name, request.model_version, control.id)
        with self._wake:
            if self._closing or (self._leaving and control.start):
                raise _stopping(request)
            self._tell_gone("expire", self._table.expire(time.monotonic()))
            sequence = self._table.get(key)
            if sequence is None:
                if control.start:
                    sequence = place.sequence = self._table.begin(key)
                    sequence.moves = control.moves
                    sequence.current = place
                    self._begin_thread()
                return True
            place.sequence = sequence
            if sequence.current is None:
                self._table.busy(sequence)
                sequence.current = place
                return True
            if len(sequence.waiting) >= self.limits.waiting:
                found = f"{len(sequence.waiting)} requests wait for an earlier one"
                raise OverloadedError(f"sequence {control.id!r}", found, f"at most {self.limits.waiting}", "wait for answers")
            sequence.waiting.append(place)
            return False

    def _go(self, place: Place) -> None:
        """Its turn has come."""
        request, control = place.request, place.control
        if control.end and not request.inputs and place.sequence is not None:
            place.answered(place.last())
            return
        fields = {name: getattr(request, name) for name in InferRequest.__struct_fields__}
        (self._core if control.start or place.sequence is None else self._direct).submit(
            SequenceRequest(**fields, place=place), place.answered
        )

    def _bring_on(self) -> bool:
        """Submit what became ready; false when nothing did."""
        went = False
        while self._ready:
            try:
                place = self._ready.popleft()
            except IndexError:  # another thread took it
                break
            self._go(place)
            went = True
        return went

    def _go_on(self) -> bool:
        """`_bring_on`, and a turn for it."""
        went = self._bring_on()
        if went:
            self._core.turn()
        return went

    def bind(self, sequence: Sequence, request: InferRequest, get: Get) -> LoadedModel:
        """See `Place.resolve`."""
        while True:
            model = get(request.model_name, request.model_version)
            if not model.states:
                return model
            if model.holds.add():
                break
        with self._wake:
            try:
                self._table.resize(sequence, model.states.initial_bytes)
            except OverloadedError:
                self._release(model)
                raise
            if sequence.model is not None:
                self._release(sequence.model)
            sequence.model, sequence.state = model, None
            self._counts.show(len(self._table), self._table.bytes)
        self._counts.add("begin", model.name, model.version)
        return model

    def ended(self, place: Place, answer: InferResponse | Exception) -> None:
        """A request was answered: keep the state it left, and bring on the next one."""
        sequence = place.sequence
        if sequence is None:
            place.done(answer)
            return
        if self._leaving and place.control.moves and isinstance(answer, InferResponse):
            answer.parameters = {**answer.parameters, SEQUENCE_STOPPING: True}
        told, kept = answer, None
        try:
            kept = place.taken(answer)
        except Exception as exc:  # noqa: BLE001 - the sequence must not stand still, whatever an engine answers
            told = exc
        with self._wake:
            if kept is not None:
                try:
                    self._table.resize(sequence, size_bytes(kept))
                    sequence.state = kept
                except OverloadedError as exc:
                    told, kept = exc, None
                    sequence.state = None
            elif place.control.start or isinstance(answer, NotFoundError):
                sequence.state = None  # it did not begin, or its model is gone
            self._next(place, sequence)
        place.done(told)

    def _next(self, place: Place, sequence: Sequence) -> None:
        """With the lock held: end the sequence or let its next request begin."""
        if place.control.end or sequence.state is None:
            if sequence.model is not None:
                self._counts.add("end", sequence.model.name, sequence.model.version)
                self._release(sequence.model)
            sequence.model = sequence.state = None
            self._table.resize(sequence, 0)
        if sequence.waiting:
            sequence.current = sequence.waiting.popleft()
            self._ready.append(sequence.current)
            if not getattr(self._local, "turning", False):
                self._wake.notify_all()
        else:
            sequence.current = None
            if sequence.model is None:
                self._table.end(sequence)
                self._counts.show(len(self._table), self._table.bytes)
                if self._leaving:
                    self._wake.notify_all()
            else:
                self._table.idle(sequence, time.monotonic())

    def withdraw(self, place: Place) -> None:
        """Drop a request that waits for an earlier one; does nothing for others."""
        with self._wake:
            if place.sequence is not None and place in place.sequence.waiting:
                place.sequence.waiting.remove(place)

    # Time

    def _begin_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="edgekit-sequences", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._wake:
                now_s = time.monotonic()
                self._tell_gone("expire", self._table.expire(now_s))
                self._tell_gone("drain", self._table.drain(now_s))
                if not (self._ready or self._retired or self._closing):
                    until_s = self._table.next_expiry_s()
                    self._wake.wait(None if not len(self._table) else min(_LOOK_S, max(0.0, (until_s or now_s + _LOOK_S) - now_s)))
                retired, self._retired = self._retired, []
                closing = self._closing
            while retired:
                retired.pop().close()
            if closing:
                return
            try:
                self._go_on()
            except Exception:  # noqa: BLE001 - the thread's boundary: other sequences go on
                _log.exception("a request of a sequence could not be brought on")

    def _tell_gone(self, kind: str, gone: list[Sequence]) -> None:
        """With the lock held: these were ended because of the time."""
        for sequence in gone:
            self._counts.add(kind, sequence.model.name, sequence.model.version)
            self._release(sequence.model)
        if gone:
            self._counts.show(len(self._table), self._table.bytes)

    def _release(self, model: LoadedModel) -> None:
        """With the lock held: a sequence is no longer on a model. Our thread closes it: that waits for other requests."""
        if model.holds.remove():
            self._retired.append(model)
            self._wake.notify_all()

    # Everything else: states are no client's business

    def server_metadata(self) -> ServerMetadata:
        metadata = self._core.server_metadata()
        return msgspec.structs.replace(metadata, extensions=[*metadata.extensions, "sequence"])

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The core's, without the states."""
        metadata = self._core.model_metadata(name, version)
        states = self._repository.get(name, version).states
        return msgspec.structs.replace(
            metadata,
            inputs=[tensor for tensor in metadata.inputs if tensor.name not in states.inputs],
            outputs=[tensor for tensor in metadata.outputs if tensor.name not in states.outputs],
        )

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The core's, with states among ``sequence_batching`` and not among inputs and outputs."""
        config = self._core.model_config(name, version)
        states = self._repository.get(name, version).states
        if not states:
            return config
        types = {tensor["name"]: tensor["data_type"] for tensor in config["input"]}
        config["input"] = [tensor for tensor in config["input"] if tensor["name"] not in states.inputs]
        config["output"] = [tensor for tensor in config["output"] if tensor["name"] not in states.outputs]
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": round(self.limits.idle_s * 1e6),
            "oldest": {"max_candidate_sequences": self.limits.sequences},
            "state": [_config_state(pair, types[pair.input]) for pair in states.pairs],
        }
        return config

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """The core's, with ``sequence_stats``: how many sequences of a model with states began, ended, expired and were drained."""
        rows = self._core.statistics(name, version)
        for row in rows:
            counts = self._counts.describe(row["name"], row["version"])
            if any(counts.values()):
                row["sequence_stats"] = counts
        return rows

    def ready(self) -> bool:
        """The core's; false once the server is to stop."""
        return not self._leaving and self._core.ready()

    def leave(self, until_s: float) -> None:
        """The server is to stop: let nothing begin, and wait until the sequences that can go on elsewhere were fetched or ended, at most until then."""
        with self._wake:
            self._leaving = True
            self._wake.wait_for(lambda: not any(sequence.moves for sequence in self._table.all()), max(0.0, until_s - time.monotonic()))

    def close(self) -> None:
        """End all sequences and our thread; what waits is refused. The core is closed by whoever made it."""
        with self._wake:
            self._closing = True
            waiting = [place for sequence in self._table.all() for place in sequence.waiting]
            idle = [sequence for sequence in self._table.all() if sequence.current is None]
            for sequence in self._table.all():
                sequence.waiting.clear()
            for sequence in idle:
                self._table.end(sequence)
                self._release(sequence.model)
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        for place in waiting:
            place.done(_stopping(place.request))


def _config_state(pair: StatePair, data_type: str) -> dict[str, Any]:
    """A state as Triton's ``ModelSequenceBatching.State`` has it."""
    dims = list(pair.shape)
    return {
        "input_name": pair.input,
        "output_name": pair.output,
        "data_type": data_type,
        "dims": dims,
        "initial_state": [{"name": f"zero {pair.input}", "data_type": data_type, "dims": dims, "zero_data": True}],
    }


def _stopping(request: InferRequest) -> UnavailableError:
    return UnavailableError(f"model {request.model_name[:96]}", "the server stops", "", "send it again later, or to another")
