"""Open Inference Protocol v2, as data: requests, responses, metadata, and what a server must be able to answer.

Reference: https://github.com/open-inference/open-inference-protocol (v2 HTTP and gRPC), with Triton's extensions "binary tensor data",
"model repository" and "statistics" (https://github.com/triton-inference-server/server/tree/main/docs/protocol). No I/O here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from edgekit.errors import EnvironmentMissingError, RequestError

if TYPE_CHECKING:
    from edgekit.protocol._trace import Trace

__all__ = [
    "OIP_DTYPES",
    "InferRequest",
    "InferResponse",
    "InferenceCore",
    "ModelMetadata",
    "Parameters",
    "RepositoryEntry",
    "RequestedOutput",
    "ServerMetadata",
    "SteppingCore",
    "SubmittingCore",
    "Tensor",
    "TensorMetadata",
    "Ticket",
    "numpy_dtype",
    "oip_datatype",
]

Parameters = dict[str, bool | int | float | str]

# Protocol datatype -> NumPy dtype name, in the protocol's own order. BYTES is NumPy object/bytes. BF16 is not NumPy's own: see `numpy_dtype`.
OIP_DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "string",
}
_FROM_NUMPY = {dtype: name for name, dtype in OIP_DTYPES.items()}
_FROM_DTYPE = {np.dtype(dtype): name for name, dtype in OIP_DTYPES.items() if name != "BYTES"}  # a dtype's name takes microseconds to make


def numpy_dtype(datatype: str, thing: str) -> np.dtype:
    """NumPy dtype of a protocol datatype (``FP32``); ``thing`` names the tensor in the error.

    Raises:
        RequestError: no such datatype.
        EnvironmentMissingError: BF16 without the package ml_dtypes, which has that type for NumPy.
    """
    name = OIP_DTYPES.get(datatype)
    if name is None:
        if datatype == "BF16":
            return _bfloat16()
        raise RequestError(thing, f"datatype {datatype!r}", f"one of {', '.join(OIP_DTYPES)}, BF16")
    return np.dtype(object) if name == "string" else np.dtype(name)


def oip_datatype(dtype: str) -> str:
    """Protocol datatype of a NumPy dtype name; ``object``, ``string`` and NumPy's ``str32``/``bytes8`` are ``BYTES``.

    Raises:
        RequestError: the protocol has no such datatype (``complex64``).
    """
    if dtype == "object" or dtype.startswith(("str", "bytes")):
        return "BYTES"
    if dtype == "bfloat16":
        return "BF16"
    name = _FROM_NUMPY.get(dtype)
    if name is None:
        raise RequestError("tensor", f"dtype {dtype}", f"one of {', '.join(_FROM_NUMPY)}, bfloat16")
    return name


@functools.cache
def _bfloat16() -> np.dtype:
    try:
        import ml_dtypes
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("tensors of BF16", "ml_dtypes", "bf16") from exc
    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


class Tensor(msgspec.Struct):
    """One named tensor. ``data`` has its final dtype and shape; BYTES tensors hold ``bytes`` objects."""

    name: str
    data: np.ndarray
    parameters: Parameters = {}

    @property
    def datatype(self) -> str:
        """Protocol datatype, from the array."""
        return _FROM_DTYPE.get(self.data.dtype) or oip_datatype(self.data.dtype.name)


class RequestedOutput(msgspec.Struct):
    """An output that the client asked for by name."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    """One inference request, decoded.

    ``deadline_s`` is absolute on `time.monotonic`, set where the request is accepted; ``None`` for no deadline. Clients ask for one with the
    request parameter ``timeout`` (microseconds, as Triton has it). ``trace`` is told when the request ran, in the few that are traced.
    """

    model_name: str
    inputs: list[Tensor]
    model_version: str = ""
    id: str = ""
    outputs: list[RequestedOutput] = []
    parameters: Parameters = {}
    deadline_s: float | None = None
    trace: Trace | None = None


class InferResponse(msgspec.Struct):
    """One answer; ``parameters`` may explain it (``edgekit_tier``, ``edgekit_decision``)."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str = ""
    parameters: Parameters = {}


class TensorMetadata(msgspec.Struct):
    """Name, protocol datatype and shape (-1 for a dynamic dimension)."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """What the model metadata endpoint answers. ``platform`` is ``edgekit_<engine>``."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """What the server metadata endpoint answers."""

    name: str
    version: str
    extensions: list[str]


class RepositoryEntry(msgspec.Struct):
    """One row of the repository index; ``state`` is ``READY`` or ``UNAVAILABLE``."""

    name: str
    version: str
    state: str
    reason: str = ""


class InferenceCore(Protocol):
    """What stands behind the HTTP and gRPC transports: the device runtime, or the router.

    All methods block, are safe from several threads, and raise `EdgeKitError` subclasses whose ``http_status`` and ``grpc_status``
    the transports use as they are. ``version`` is ``""`` for the newest.
    """

    def live(self) -> bool:
        """The process works."""
        ...

    def ready(self) -> bool:
        """Requests will be answered: models are loaded and warm."""
        ...

    def server_metadata(self) -> ServerMetadata:
        """Name, version and extensions of this server."""
        ...

    def model_ready(self, name: str, version: str = "") -> bool:
        """This model (version) takes requests; unknown names raise `NotFoundError`."""
        ...

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Signature and versions of a model."""
        ...

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration extension, as its JSON form (name, platform, max_batch_size, input, output)."""
        ...

    def class_labels(self, name: str, version: str = "") -> Sequence[str]:
        """Names of a model's classes in the order of their numbers; empty when there are none, or no such model (any more)."""
        ...

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer, or raise (`RequestError`, `DeadlineError`, `OverloadedError`, …)."""
        ...

    def repository_index(self, ready_only: bool = False) -> list[RepositoryEntry]:
        """All models and versions that the repository knows."""
        ...

    def repository_load(self, name: str, parameters: Parameters) -> None:
        """Load or reload a model from the repository."""
        ...

    def repository_unload(self, name: str, parameters: Parameters) -> None:
        """Unload a model; in-flight requests finish."""
        ...

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Triton's statistics extension: one JSON object a model version (``inference_stats`` with count and ns)."""
        ...


class Ticket(Protocol):
    """A request that was submitted."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more: what has not begun is dropped. ``done`` may still be called; does nothing after that."""
        ...


class SubmittingCore(InferenceCore, Protocol):
    """A core that takes requests without a thread for each.

    A transport calls `submit` for every request that one turn of its event loop brought, then `turn` once. A core may so run together what
    arrived together, without a wait.
    """

    def submit(self, request: InferRequest, done: Callable[[InferResponse | Exception], None]) -> Ticket:
        """Take a request; returns at once and never raises for what is wrong with the request.

        Args:
            request: as for `infer`.
            done: called exactly once (at most once after `Ticket.cancel`), in any thread, maybe before this returns. Must be quick and must not raise.
        """
        ...

    def turn(self) -> None:
        """All requests of this turn were submitted: what can run now runs, here (when that is quick) or in the core's own threads."""
        ...


class SteppingCore(SubmittingCore, Protocol):
    """A core that leaves what is short to the transport's own thread, piece by piece."""

    def step(self) -> bool:
        """Instead of `turn`, by a transport that comes back.

        True: more is to run here; call again as soon as what else has come in was submitted. Also called after answers that came from other threads were sent.
        A transport that ends calls `turn` once more.
        """
        ...
