"""The device runtime behind the Open Inference Protocol: answers requests from a model repository."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit._version import __version__
from edgekit.bundle import TensorSpec
from edgekit.errors import NotFoundError, RequestError
from edgekit.protocol import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameters,
    RepositoryEntry,
    ServerMetadata,
    TensorMetadata,
    Ticket,
    oip_datatype,
)
from edgekit.runtime._dispatch import Dispatcher, ResultObserver
from edgekit.runtime._job import Done
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._sequence_place import SequenceRequest

__all__ = ["ResultObserver", "RuntimeCore"]

_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics"]
_RUNNING = ("engine", "version", "accelerator", "device", "delegate", "threads", "artifact", "passed_over")  # keys of `Session.describe`
_IGNORED_LOAD_PARAMETERS = {"unload_dependents"}  # there are no ensembles


class RuntimeCore:
    """An `InferenceCore` over a `ModelRepository`.

    Args:
        repository: what is served; the core closes it.
        on_result: told about every request, for telemetry. What it raises is logged and goes no further.
        name: of the server, in its metadata.
    """

    def __init__(self, repository: ModelRepository, on_result: ResultObserver | None = None, name: str = "edgekit") -> None:
        self._repository = repository
        self._name = name
        self._dispatcher = Dispatcher(self._model_of, on_result)

    def _model_of(self, request: InferRequest) -> LoadedModel:
        """The model that answers a request."""
        if type(request) is SequenceRequest:
            return request.resolve(self._repository.get)
        return self._repository.get(request.model_name, request.model_version)

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
        batching = {"max_batch": str(model.plan.max_rows if model.plan.together else 1), "batching": model.plan.describe()}
        facts = {**batching, "device": manifest.device, "precision": manifest.precision, "digest": model.bundle.digest}
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

    def class_labels(self, name: str, version: str = "") -> Sequence[str]:
        try:
            return self._repository.get(name, version).class_labels
        except NotFoundError:  # it was unloaded since it answered
            return ()

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer; see `InferenceCore.infer`.

        Raises:
            NotFoundError: no such model or version, or not loaded.
            RequestError: inputs that do not fit the signature, or an unknown output.
            OverloadedError: the model's queue is full.
            DeadlineError: refused because it cannot be in time, or it ended too late.
            EngineError: the engine failed.
        """
        return self._dispatcher.infer(request)

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        """See `SubmittingCore.submit`."""
        return self._dispatcher.submit(request, done)

    def turn(self) -> None:
        """See `SubmittingCore.turn`."""
        self._dispatcher.turn()

    def step(self) -> bool:
        """See `SteppingCore.step`."""
        return self._dispatcher.step()

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
        self._repository.close()
        self._dispatcher.close()


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
