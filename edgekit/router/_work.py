"""What travels between the router's parts: one request's work, and one tier's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgekit.errors import EdgeKitError, UnavailableError
from edgekit.protocol import InferRequest, InferResponse, InFlight, Parameters, Tensor

__all__ = ["Answer", "OnDone", "Work", "answer_from_response", "answer_of", "payload_bytes", "request_from_work"]

_OWN_PARAMETERS = ("timeout",)  # set anew for each attempt, from what remains


class Work(msgspec.Struct, frozen=True):
    """One request as every attempt sees it. Arrays are read only.

    Attributes:
        payload_bytes: size of all inputs.
        deadline_s: absolute; see `RequestFacts`.
        limit_s: absolute; see `RequestFacts`.
    """

    model: str
    version: str
    inputs: Mapping[str, np.ndarray]
    payload_bytes: int
    deadline_s: float
    limit_s: float
    id: str = ""
    parameters: Parameters = {}


class Answer(msgspec.Struct, frozen=True):
    """Outputs by name, in the model's order, and the version that made them."""

    outputs: dict[str, np.ndarray]
    version: str


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
    return Answer({tensor.name: tensor.data for tensor in response.outputs}, response.model_version)


def answer_of(ended: InFlight) -> Answer | BaseException:
    """What a remote attempt that has ended brought."""
    try:
        return answer_from_response(ended.result(0))
    except EdgeKitError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - a client's thread must not die of what a transport raises
        failure = UnavailableError(ended.target, f"failed with {type(exc).__name__}: {exc}")
        failure.__cause__ = exc
        return failure
