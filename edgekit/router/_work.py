"""What travels between the router's parts: one request's work, and one tier's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgekit.errors import EdgeKitError, RequestError, UnavailableError
from edgekit.protocol import InferRequest, InferResponse, InFlight, Parameters, Tensor
from edgekit.router._decide import Tier
from edgekit.runtime._admission import DEFAULT_LEVEL
from edgekit.runtime._job import PRIORITY_PARAMETER
from edgekit.runtime._sequence_table import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START, SEQUENCE_STOPPING
from edgekit.runtime._trial import SPLIT_KEY

__all__ = [
    "Answer",
    "Asked",
    "OnDone",
    "Work",
    "answer_from_response",
    "answer_of",
    "payload_bytes",
    "read_asked",
    "request_from_work",
    "response_of",
]

_OWN_PARAMETERS = ("timeout",)  # set anew for each attempt, from what remains


class Work(msgspec.Struct, frozen=True):
    """One request as every attempt sees it. Arrays are read only.

    Attributes:
        payload_bytes: size of all inputs.
        deadline_s: absolute; see `RequestFacts`.
        limit_s: absolute; see `RequestFacts`.
        edge_version, cloud_version: of the operator's canaries, for a request that names no version; empty for none.
    """

    model: str
    version: str
    inputs: Mapping[str, np.ndarray]
    payload_bytes: int
    deadline_s: float
    limit_s: float
    id: str = ""
    parameters: Parameters = {}
    edge_version: str = ""
    cloud_version: str = ""

    @property
    def named_version(self) -> str:
        """The version that the client asked for."""
        return "" if self.edge_version or self.cloud_version else self.version

    def at(self, tier: Tier) -> Work:
        """As that tier sees it: a canary's version is asked for by name."""
        version = self.edge_version if tier is Tier.EDGE else self.cloud_version
        return msgspec.structs.replace(self, version=version) if version else self


class Asked(msgspec.Struct, frozen=True):
    """What a request's parameters ask of the router.

    Attributes:
        priority: 1 is the most urgent, 2 the default, more is less urgent.
        sequence: id of its sequence; empty for none.
        sequence_end: the last of its sequence.
        sequence_start: the first of it.
        split_key: requests of one key get one version.
        plain: nothing but the inputs can change its answer.
    """

    priority: int = DEFAULT_LEVEL
    sequence: str = ""
    sequence_end: bool = False
    split_key: str = ""
    plain: bool = True
    sequence_start: bool = False

    @property
    def urgency(self) -> int:
        """0 for real time, larger for what is less urgent than the default."""
        return max(0, self.priority - DEFAULT_LEVEL)


_NOTHING_ASKED = Asked()


def read_asked(parameters: Parameters | None) -> Asked:
    """What the parameters ask.

    Raises:
        RequestError: a priority that is none.
    """
    if not parameters:
        return _NOTHING_ASKED
    priority = parameters.get(PRIORITY_PARAMETER, 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority < 1 << 64:
        raise RequestError(f"parameter {PRIORITY_PARAMETER!r}", str(priority)[:40], "0 (default), 1 (highest) or a larger whole number")
    sequence = parameters.get(SEQUENCE_ID) or ""
    return Asked(
        priority or DEFAULT_LEVEL,
        str(sequence),
        bool(parameters.get(SEQUENCE_END)),
        str(parameters.get(SPLIT_KEY) or ""),
        all(name in (*_OWN_PARAMETERS, PRIORITY_PARAMETER) for name in parameters),
        bool(parameters.get(SEQUENCE_START)),
    )


class Answer(msgspec.Struct, frozen=True):
    """Outputs by name, in the model's order, and the version that made them.

    Attributes:
        stopping: its server is about to stop, and hands states over until it has.
    """

    outputs: dict[str, np.ndarray]
    version: str
    stopping: bool = False


OnDone = Callable[[Answer | BaseException], None]
"""Called once when an attempt ends, from the thread that ends it; must not block."""


def payload_bytes(inputs: Mapping[str, np.ndarray]) -> int:
    """Bytes of all inputs on the wire. Elements of BYTES tensors count with their length."""
    total = 0
    for array in inputs.values():
        total += sum(len(item) for item in array.ravel().tolist()) if array.dtype.hasobject else array.nbytes
    return total


def request_from_work(work: Work) -> InferRequest:
    """The protocol's request of one attempt; its deadline is the last moment at which an answer is worth something."""
    return InferRequest(
        model_name=work.model,
        inputs=[Tensor(name, array) for name, array in work.inputs.items()],
        model_version=work.version,
        id=work.id,
        parameters={key: value for key, value in work.parameters.items() if key not in _OWN_PARAMETERS},
        deadline_s=work.limit_s,
    )


def answer_from_response(response: InferResponse) -> Answer:
    """A remote tier's answer."""
    stopping = bool(response.parameters) and response.parameters.get(SEQUENCE_STOPPING) is True
    return Answer({tensor.name: tensor.data for tensor in response.outputs}, response.model_version, stopping)


def answer_of(ended: InFlight) -> Answer | EdgeKitError:
    """What a remote attempt that has ended brought."""
    response = response_of(ended)
    return response if isinstance(response, EdgeKitError) else answer_from_response(response)


def response_of(ended: InFlight) -> InferResponse | EdgeKitError:
    """What a remote server answered in the end."""
    try:
        return ended.result(0)
    except EdgeKitError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - a client's thread must not die of what a transport raises
        failure = UnavailableError(ended.target, f"failed with {type(exc).__name__}: {exc}")
        failure.__cause__ = exc
        return failure
