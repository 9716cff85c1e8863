"""Between the transports and the runtime: chooses the version of each request, and loads it first where that is needed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from edgekit.errors import DeadlineError, NotFoundError, OverloadedError, UnavailableError
from edgekit.protocol import InferRequest, InferResponse, ModelMetadata, Parameters, SteppingCore, Ticket
from edgekit.runtime._control import apply_command, parse_command
from edgekit.runtime._delegating import DelegatingCore
from edgekit.runtime._job import Done
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._rollouts import Rollouts

__all__ = ["VersionedCore"]

_MAX_PARKED = 256  # requests that wait for models to load; as many as a queue or two


class VersionedCore(DelegatingCore):
    """A `SteppingCore` over another, which answers for versions as `ModelRepository.get` knows them. While no model has a rollout and nothing is loaded
    lazily, a request passes with two look-ups.

    Args:
        core: what runs requests; closed by whoever made it.
        repository: the same that ``core`` has.
        shadow: answers a shadow's copies; ``core`` itself when left out.
    """

    def __init__(
        self, core: SteppingCore, repository: ModelRepository, shadow: Callable[[InferRequest], InferResponse] | None = None
    ) -> None:
        super().__init__(core)
        self._repository = repository
        self._rollouts = Rollouts(repository, shadow or core.infer)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="edgekit-loader")
        self._parked: dict[_Parked, None] = {}  # in order of arrival

    def start(self) -> None:
        """Begin to guard rollouts and to follow what other processes change in the repository."""
        self._rollouts.start(self._expire)

    # Requests

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        """See `SubmittingCore.submit`."""
        if not request.model_version and request.model_name in self._repository.trials:
            request, done = self._on_trial(request, done)
        if self._repository.lazy and not self._repository.use(request.model_name, request.model_version):
            return self._later(request, done)
        return self._core.submit(request, done)

    def infer(self, request: InferRequest) -> InferResponse:
        """See `InferenceCore.infer`."""
        trial = None if request.model_version else self._repository.trials.get(request.model_name)
        asked = request
        if trial is not None:
            request = _with_version(request, trial.choose(request))
        if self._repository.lazy and not self._repository.use(request.model_name, request.model_version):
            self._repository.ensure(request.model_name, request.model_version)
        if trial is None:
            return self._core.infer(request)
        started_s = time.monotonic()
        answer: InferResponse | Exception
        try:
            answer = self._core.infer(request)
        except Exception as exc:  # noqa: BLE001 - counted, and raised again
            answer = exc
        self._rollouts.seen(trial, request, answer, time.monotonic() - started_s)
        if isinstance(answer, NotFoundError):
            return self._core.infer(asked)  # the version went between the choice and the queue
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _on_trial(self, request: InferRequest, done: Done) -> tuple[InferRequest, Done]:
        trial = self._repository.trials.get(request.model_name)
        if trial is None:  # it ended a moment ago
            return request, done
        chosen = _with_version(request, trial.choose(request))
        started_s = time.monotonic()

        def seen(answer: InferResponse | Exception) -> None:
            self._rollouts.seen(trial, chosen, answer, time.monotonic() - started_s)
            if isinstance(answer, NotFoundError):
                self._later(request, done)  # the version went between the choice and the queue
            else:
                done(answer)

        return chosen, seen

    def _later(self, request: InferRequest, done: Done) -> Ticket:
        parked = _Parked(request, done)
        if len(self._parked) >= _MAX_PARKED:
            parked.answer(
                OverloadedError(
                    f"model {request.model_name}", f"{len(self._parked)} requests wait for models to load", f"at most {_MAX_PARKED}"
                )
            )
            return parked
        self._parked[parked] = None
        try:
            self._loader.submit(self._load_and_submit, parked)
        except RuntimeError:  # it has ended
            self._parked.pop(parked, None)
            parked.answer(_stopping(request))
        return parked

    def _load_and_submit(self, parked: _Parked) -> None:
        """In the loader's thread: what the request asks for is loaded, once; then it queues like any other."""
        request = parked.request
        try:
            if not parked.answered:
                self._repository.ensure(request.model_name, request.model_version)
                if parked.take():
                    parked.ticket = self._core.submit(request, parked.done)
                    self._core.turn()
        except Exception as exc:  # noqa: BLE001 - the caller tells errors of ours from bugs
            parked.answer(exc)
        finally:
            self._parked.pop(parked, None)

    def _expire(self) -> None:
        """Refuse what has waited for a model until its deadline."""
        now_s = time.monotonic()
        for parked in list(self._parked):
            deadline_s = parked.request.deadline_s
            if deadline_s is not None and deadline_s < now_s:
                thing = f"model {parked.request.model_name}"
                parked.answer(
                    DeadlineError(thing, "was still being loaded when the deadline passed", "", "allow more time for a first request")
                )

    # Everything else

    def model_ready(self, name: str, version: str = "") -> bool:
        return self._core.model_ready(name, self._loaded(name, version))

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        return self._core.model_metadata(name, self._loaded(name, version))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The core's, with the parameters ``labels`` (``stable=1,canary=2``) and ``rollout`` (JSON: what is under way, what was counted, how the last ended)."""
        config = self._core.model_config(name, self._loaded(name, version))
        state = self._repository.state(name)
        parameters = config.setdefault("parameters", {})
        if state.labels:
            parameters["labels"] = {"string_value": ",".join(f"{label}={labelled}" for label, labelled in sorted(state.labels.items()))}
        if rollout := self._rollouts.describe(name, state):
            parameters["rollout"] = {"string_value": json.dumps(rollout)}
        return config

    def repository_load(self, name: str, parameters: Parameters) -> None:
        """Load, label, begin or end a rollout: see `edgekit.runtime._control.ModelCommand` for the parameters."""
        command = parse_command(parameters)
        self._repository.load(name, "" if command.rollout in ("promote", "rollback", "stop") else command.version)
        if command.changes:
            versions = self._repository.versions(name)
            before = self._repository.state(name)
            after = self._repository.update(name, lambda model: apply_command(command, name, model, versions, time.time()))
            self._rollouts.tell_end(name, before, after)

    def close(self) -> None:
        """End the rollouts' threads and the loader. The core is closed by whoever made it."""
        self._rollouts.close()
        self._loader.shutdown(wait=True, cancel_futures=True)
        for parked in list(self._parked):
            parked.answer(_stopping(parked.request))

    def _loaded(self, name: str, version: str) -> str:
        """The same version, loaded where that is done on demand."""
        if self._repository.lazy and not self._repository.use(name, version):
            self._repository.ensure(name, version)
        return version


class _Parked:
    """A request whose version is being loaded. Answered once, by whoever comes first: the runtime, the deadline, an error, or nobody after `cancel`."""

    __slots__ = ("_open", "done", "request", "ticket")

    def __init__(self, request: InferRequest, done: Done) -> None:
        self.request = request
        self.done = done
        self.ticket: Ticket | None = None
        self._open = threading.Lock()

    @property
    def answered(self) -> bool:
        return self._open.locked()

    def take(self) -> bool:
        """True for the first caller."""
        return self._open.acquire(blocking=False)

    def answer(self, answer: InferResponse | Exception) -> None:
        """Answer, unless it was answered."""
        if self.take():
            self.done(answer)

    def cancel(self) -> None:
        """See `Ticket.cancel`."""
        if not self.take() and self.ticket is not None:
            self.ticket.cancel()


def _stopping(request: InferRequest) -> UnavailableError:
    return UnavailableError(f"model {request.model_name}", "the server stops", "", "send it again later, or to another")


def _with_version(request: InferRequest, version: str) -> InferRequest:
    return msgspec.structs.replace(request, model_version=version)
