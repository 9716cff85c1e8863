"""The device runtime behind the Open Inference Protocol: answers requests from a model repository."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from edgekit._version import __version__
from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import DeadlineError, EdgeKitError, EngineError, RequestError
from edgekit.protocol import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameters,
    RepositoryEntry,
    ServerMetadata,
    Tensor,
    TensorMetadata,
    Ticket,
    oip_datatype,
)
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._scheduler import QueueClosedError

__all__ = ["ResultObserver", "RuntimeCore"]

_log = logging.getLogger(__name__)
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
_INLINE_S = 1e-3
_WORKERS = 64
_RUNNING = ("engine", "version", "accelerator", "device", "delegate", "threads", "artifact", "passed_over")  # keys of `Session.describe`
_IGNORED_LOAD_PARAMETERS = {"unload_dependents"}  # there are no ensembles


class ResultObserver(Protocol):
    """Called once for every request whose model was found; must be quick and safe from several threads.

    ``outcome`` is ``ok``; ``late`` (ran, and ended after its deadline); ``rejected`` (refused before it ran); or ``error`` (the engine failed).
    """

    def __call__(self, model: str, version: str, engine: str, queue_s: float, compute_s: float, outcome: str) -> None: ...


class RuntimeCore:
    """An `InferenceCore` over a `ModelRepository`.

    Args:
        repository: what is served; the core closes it.
        on_result: told about every request, for telemetry. What it raises is logged and goes no further.
        name: of the server, in its metadata.
    """

    def __init__(self, repository: ModelRepository, on_result: ResultObserver | None = None, name: str = "edgekit") -> None:
        self._repository = repository
        self._on_result = on_result
        self._name = name
        self._inbox: deque[_Submitted] = deque()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="edgekit-worker")

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self._repository.complete()

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata(self._name, __version__, list(_EXTENSIONS))

    def model_ready(self, name: str, version: str = "") -> bool:
        return bool(self._repository.get(name, version))

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        model = self._repository.get(name, version)
        versions = [version] if version else [other.version for other in self._repository.loaded(name)]
        return ModelMetadata(
            name=model.name,
            versions=versions,
            platform=f"edgekit_{model.engine}",
            inputs=[TensorMetadata(spec.name, _datatype(spec), _dims(spec)) for spec in model.signature.inputs],
            outputs=[TensorMetadata(spec.name, _datatype(spec), _dims(spec)) for spec in model.signature.outputs],
        )

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        model = self._repository.get(name, version)
        manifest = model.bundle.manifest
        facts = {"device": manifest.device, "precision": manifest.precision, "digest": model.bundle.digest}
        facts |= {f"running.{key}": model.running[key] for key in _RUNNING if model.running.get(key)}
        return {
            "name": model.name,
            "platform": f"edgekit_{model.engine}",
            "backend": "edgekit",
            "max_batch_size": 0,  # shapes are the signature's own, batch axis included
            "input": [_config_tensor(spec) for spec in model.signature.inputs],
            "output": [_config_tensor(spec) for spec in model.signature.outputs],
            "instance_group": [{"name": f"{model.name}_0", "kind": "KIND_AUTO", "count": model.queue.instances}],
            "parameters": {key: {"string_value": value} for key, value in facts.items()},
        }

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer; see `InferenceCore.infer`.

        Raises:
            NotFoundError: no such model or version, or not loaded.
            RequestError: inputs that do not fit the signature, or an unknown output.
            OverloadedError: the model's queue is full.
            DeadlineError: refused because it cannot be in time, or it ended too late.
            EngineError: the engine failed.
        """
        while True:
            model = self._repository.get(request.model_name, request.model_version)
            try:
                return self._infer(model, request)
            except QueueClosedError:
                continue  # replaced or unloaded between those two lines; look again

    def submit(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> Ticket:
        """See `SubmittingCore.submit`."""
        submitted = _Submitted(request, done)
        self._inbox.append(submitted)
        return submitted

    def turn(self) -> None:
        """See `SubmittingCore.turn`."""
        inbox = self._inbox
        while inbox:
            try:
                submitted = inbox.popleft()
            except IndexError:  # another thread's turn took it
                return
            if self._is_quick(submitted.request):
                self._answer(submitted)
            else:
                self._workers.submit(self._answer, submitted)

    def repository_index(self, ready_only: bool = False) -> list[RepositoryEntry]:
        return [entry for entry in self._repository.index() if not ready_only or entry.state == "READY"]

    def repository_load(self, name: str, parameters: Parameters) -> None:
        _refuse_parameters(parameters)
        self._repository.load(name)

    def repository_unload(self, name: str, parameters: Parameters) -> None:
        _refuse_parameters(parameters)
        self._repository.unload(name)

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        if name:
            one = self._repository.get(name, version)
            models = [one] if version else self._repository.loaded(name)
        else:
            models = self._repository.loaded()
        return [model.statistics.describe(model.name, model.version) for model in models]

    def queue_depth(self, name: str) -> int:
        """Requests that wait for an instance of this model, all versions; 0 for one that is not loaded."""
        return sum(model.queue.queued for model in self._repository.loaded(name)) if name else 0

    def in_flight(self, name: str) -> int:
        """Requests that run on this model, all versions; 0 for one that is not loaded."""
        return sum(model.queue.running for model in self._repository.loaded(name)) if name else 0

    def estimated_latency_s(self, name: str, version: str = "") -> float:
        """What a request that arrives now would take here, queue included; 0 while nothing was measured. Raises `NotFoundError`."""
        return self._repository.get(name, version).queue.estimated_latency_s()

    def close(self) -> None:
        """Unload all models; requests under way finish."""
        self._workers.shutdown(wait=True)
        self._repository.close()

    def _is_quick(self, request: InferRequest) -> bool:
        """An instance is free and a run is so short that handing it to another thread costs more than it gives."""
        try:
            queue = self._repository.get(request.model_name, request.model_version).queue
        except EdgeKitError:
            return True  # a refusal is quick
        return queue.running < queue.instances and 0 < queue.estimated_latency_s() < _INLINE_S

    def _answer(self, submitted: _Submitted) -> None:
        if submitted.cancelled:
            return
        answer: InferResponse | Exception
        try:
            answer = self.infer(submitted.request)
        except Exception as exc:  # noqa: BLE001 - the caller tells errors of ours from bugs
            answer = exc
        submitted.done(answer)

    def _infer(self, model: LoadedModel, request: InferRequest) -> InferResponse:
        accepted_s = time.monotonic()
        clock = _StepClock(accepted_s)
        outcome = "rejected"
        try:
            inputs = _inputs(model.signature, request)
            wanted = _wanted(model.signature, request)
            clock.prepared()
            with model.queue.lease(request.deadline_s) as lease:
                clock.granted(lease.queue_s)
                outcome = "error"
                outputs = _run(model, lease.instance.engine.run, inputs)
                clock.ran()
            response = _response(model, request, outputs, wanted)
            clock.done()
            if request.deadline_s is not None and clock.now_s > request.deadline_s:
                outcome = "late"
                late_ms = (clock.now_s - request.deadline_s) * 1e3
                raise DeadlineError(f"model {model.name}", f"the answer came {late_ms:.1f} ms after the deadline", "", "allow more time")
        except QueueClosedError:
            outcome = ""
            raise
        except EdgeKitError:
            if outcome == "rejected":
                clock.refused()
            model.statistics.failed(time.monotonic() - accepted_s)
            raise
        else:
            outcome = "ok"
            model.statistics.succeeded(clock.queue_s, clock.input_s, clock.infer_s, clock.output_s)
            return response
        finally:
            if outcome and self._on_result is not None:
                self._tell(model, clock, outcome)

    def _tell(self, model: LoadedModel, clock: _StepClock, outcome: str) -> None:
        assert self._on_result is not None
        try:
            compute_s = clock.input_s + clock.infer_s + clock.output_s
            self._on_result(model.name, model.version, model.engine, clock.queue_s, compute_s, outcome)
        except Exception:  # noqa: BLE001 - telemetry must not cost an answer
            _log.exception("the result observer failed")


class _Submitted:
    """A request that waits for its turn."""

    __slots__ = ("cancelled", "done", "request")

    def __init__(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> None:
        self.request = request
        self.done = done
        self.cancelled = False

    def cancel(self) -> None:
        """See `Ticket.cancel`."""
        self.cancelled = True


class _StepClock:
    """Where one request's time goes."""

    __slots__ = ("infer_s", "input_s", "now_s", "output_s", "queue_s")

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self.queue_s = self.input_s = self.infer_s = self.output_s = 0.0

    def _lap(self) -> float:
        before, self.now_s = self.now_s, time.monotonic()
        return self.now_s - before

    def prepared(self) -> None:
        self.input_s = self._lap()

    def granted(self, queue_s: float) -> None:
        self._lap()
        self.queue_s = queue_s

    def refused(self) -> None:
        self.queue_s = self._lap()

    def ran(self) -> None:
        self.infer_s = self._lap()

    def done(self) -> None:
        self.output_s = self._lap()


def _run(model: LoadedModel, run: Any, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    try:
        outputs: Mapping[str, np.ndarray] = run(inputs)
    except EdgeKitError:
        raise
    except Exception as exc:  # engines raise types of their own
        raise EngineError(f"model {model.name}", f"{model.engine} failed: {str(exc)[:500]}") from exc
    return outputs


def _inputs(signature: Signature, request: InferRequest) -> dict[str, np.ndarray]:
    """The request's tensors by name, checked; BYTES as text, which is what engines take for string tensors."""
    inputs = {tensor.name: tensor.data for tensor in request.inputs}
    signature.check(inputs)
    for spec in signature.inputs:
        if spec.dtype == "string":
            inputs[spec.name] = _as_text(spec.name, inputs[spec.name])
    return inputs


def _as_text(name: str, array: np.ndarray) -> np.ndarray:
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError as exc:
        raise RequestError(f"input {name!r}", f"an element that is not UTF-8 ({exc.reason})", "text") from exc
    return text.reshape(array.shape)


def _wanted(signature: Signature, request: InferRequest) -> list[str]:
    """Names of the outputs to answer with: those asked for, in that order, or all."""
    known = [spec.name for spec in signature.outputs]
    if not request.outputs:
        return known
    for output in request.outputs:
        if output.name not in known:
            raise RequestError(f"output {output.name[:96]!r}", "no such output", f"outputs {', '.join(known)}")
    return [output.name for output in request.outputs]


def _response(model: LoadedModel, request: InferRequest, outputs: Mapping[str, np.ndarray], wanted: list[str]) -> InferResponse:
    tensors = [Tensor(name, outputs[name]) for name in wanted]
    return InferResponse(model.name, model.version, tensors, id=request.id)


def _refuse_parameters(parameters: Parameters) -> None:
    for key in parameters:
        if key not in _IGNORED_LOAD_PARAMETERS:
            raise RequestError(f"parameter {key[:96]!r}", "not supported", "none", "put the bundle into the repository and load it by name")


def _datatype(spec: TensorSpec) -> str:
    return "BF16" if spec.dtype == "bfloat16" else oip_datatype(spec.dtype)


def _dims(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = _datatype(spec)
    return {"name": spec.name, "data_type": "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}", "dims": _dims(spec)}
