"""Shortcuts for binary requests that a client sends again and again with other numbers in them.

The JSON in front of the tensors is then the same bytes each time. A `Plan` holds what reading it said: where each tensor lies and what it is. What
fits no plan takes the full path (`edgekit.protocol._http_codec`); both give the same request and the same answer.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from edgekit.errors import RequestError
from edgekit.protocol._deadline import absolute_deadline
from edgekit.protocol._http_codec import BINARY_SIZE, HttpMessage, parse_request_json
from edgekit.protocol._tensors import (
    Limits,
    array_from_raw,
    array_within,
    check_count,
    check_unique,
    element_count,
    raw_from_array,
    tensor_thing,
    wire_dtype,
)
from edgekit.protocol._types import OIP_DTYPES, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor

__all__ = ["Plan", "SightedCache", "fixed_part", "plan_of", "raw_parts", "response_key"]

_FIXED_SIZE = {name: np.dtype(dtype) for name, dtype in OIP_DTYPES.items() if name != "BYTES"}
_MOST_JSON_BYTES = 4096
_LITTLE = sys.byteorder == "little"

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SightedCache(Generic[K, V]):
    """A bounded cache that remembers a key only when it is seen a second time: requests that are all different do not drive out the others.

    Args:
        most: entries; the oldest goes when one more comes.
    """

    def __init__(self, most: int) -> None:
        self.entries: dict[K, V] = {}
        self._most = most
        self._seen: set[int] = set()

    def offer(self, key: K, value: V) -> None:
        """Keep ``value`` if ``key`` was offered before."""
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= 8 * self._most:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self.entries) >= self._most:
            del self.entries[next(iter(self.entries))]
        self.entries[key] = value


class _Input:
    """Where one tensor lies, from the first byte of the JSON, and what it is."""

    __slots__ = ("dtype", "name", "offset", "parameters", "shape", "size")

    def __init__(self, name: str, dtype: np.dtype, shape: tuple[int, ...], offset: int, size: int, parameters: Parameters) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.offset = offset
        self.size = size
        self.parameters = parameters


class Plan:
    """A parsed JSON header. Immutable; requests that it makes share nothing with it that can be changed."""

    __slots__ = ("all_binary", "id", "inputs", "outputs", "parameters", "timed", "total")

    def __init__(self, request: InferRequest, inputs: list[_Input], total: int) -> None:
        self.id = request.id
        self.inputs = inputs
        self.outputs = request.outputs
        self.parameters = request.parameters
        self.total = total
        self.timed = bool(absolute_deadline(request.parameters, 0.0))
        default = bool(request.parameters.get("binary_data_output", False))
        self.all_binary = all(
            output.parameters.keys() <= {"binary_data"} and output.parameters.get("binary_data", default) for output in request.outputs
        ) and (default or bool(request.outputs))

    def request(self, body: bytes | memoryview, start: int, model_name: str, model_version: str) -> InferRequest:
        """The request whose JSON begins at ``start`` of ``body``; ``deadline_s`` is left to the caller. Tensors share memory with the body.

        Raises:
            RequestError: a BOOL byte that is neither 0 nor 1.
        """
        tensors = []
        for item in self.inputs:
            begin = start + item.offset
            if item.dtype.kind == "b":
                raw = memoryview(body)[begin : begin + item.size]
                array = array_from_raw(tensor_thing("input", item.name), "BOOL", item.shape, raw, _NO_LIMITS)
            else:
                array = array_within(body, item.dtype, item.shape, begin)
            tensors.append(Tensor(item.name, array, dict(item.parameters)) if item.parameters else Tensor(item.name, array))
        outputs = [RequestedOutput(output.name, dict(output.parameters)) for output in self.outputs] if self.outputs else []
        return InferRequest(model_name, tensors, model_version, self.id, outputs, dict(self.parameters))


_NO_LIMITS = Limits()


def plan_of(json_part: bytes, binary_bytes: int, limits: Limits) -> Plan | None:
    """The plan for requests with this JSON and so many bytes after it; ``None`` when they need the full path, if only for its error.

    Args:
        json_part: of a request.
        binary_bytes: what follows it in the body.
        limits: as for the full path.
    """
    if len(json_part) > _MOST_JSON_BYTES:
        return None
    try:
        request, wires = parse_request_json(json_part, limits)
        check_count("inputs", len(wires), limits)
        check_unique("input", (wire.name for wire in wires))
        inputs: list[_Input] = []
        offset = len(json_part)
        for wire in wires:
            dtype = _FIXED_SIZE.get(wire.datatype)
            size = wire.parameters.get(BINARY_SIZE)
            if dtype is None or bytes(wire.data) or isinstance(size, bool) or not isinstance(size, int):
                return None
            if size != dtype.itemsize * element_count("input", wire.shape, limits) or size == 0:
                return None
            parameters = {key: value for key, value in wire.parameters.items() if key != BINARY_SIZE}
            if any(key.startswith("shared_memory") for key in parameters):
                return None
            inputs.append(_Input(wire.name, wire_dtype(dtype), tuple(wire.shape), offset, size, parameters))
            offset += size
        if offset != len(json_part) + binary_bytes:
            return None
        return Plan(request, inputs, offset)
    except RequestError:
        return None


def response_key(plan: Plan, response: InferResponse) -> tuple[Hashable, ...] | None:
    """What the part of an answer that is not numbers depends on; ``None`` when it may depend on more."""
    if not plan.all_binary or response.parameters or response.id != plan.id:
        return None
    outputs = response.outputs
    if len(outputs) == 1 and not outputs[0].parameters:  # the usual case, in half the time
        data = outputs[0].data
        return (plan, response.model_name, response.model_version, outputs[0].name, data.dtype, data.shape)
    key: list[Hashable] = [plan, response.model_name, response.model_version]
    for tensor in outputs:
        if tensor.parameters:
            return None
        data = tensor.data
        key += (tensor.name, data.dtype, data.shape)
    return tuple(key)


def fixed_part(message: HttpMessage, response: InferResponse) -> bytes | None:
    """The fields after the date, and the JSON, of an answer that the full path made for a key; ``None`` when not all of it is fixed."""
    if not _LITTLE or message.header_length is None:
        return None
    if any(tensor.data.dtype.kind not in "biuf" or not tensor.data.dtype.isnative for tensor in response.outputs):
        return None
    if message.length - message.header_length != sum(tensor.data.nbytes for tensor in response.outputs):
        return None
    fields = "".join(f"{name}: {value}\r\n" for name, value in message.headers().items())
    head = f"{fields}Content-Length: {message.length}\r\n\r\n".encode("ascii")
    return head + message.json


def raw_parts(response: InferResponse) -> list[bytes | memoryview]:
    """The outputs' bytes, in order; for outputs that `fixed_part` took."""
    return [raw_from_array(tensor.data) for tensor in response.outputs]
