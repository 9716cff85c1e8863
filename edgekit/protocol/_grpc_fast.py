"""The two messages of inference without a protobuf library in the way of their tensors. Pure.

A request's tensors are taken where they lie (``raw_input_contents``), and what comes before them is the same in request after request of one client, so it is
decoded once and found again by its bytes. Whatever does not look like what clients write takes the full path (`decode_request`), and both give the same
request: `RequestScanner.scan` answers ``None`` rather than guess. Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgekit.errors import EdgeKitError, RequestError
from edgekit.protocol._classification import LabelsOf, classify_response
from edgekit.protocol._grpc_codec import decode_parameters, encode_parameters, encode_tensor
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._shared_memory import SharedMemoryRegions, is_shared
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
from edgekit.protocol._types import InferRequest, InferResponse, Parameters, RequestedOutput, Tensor, numpy_dtype

__all__ = ["Part", "RequestScanner", "ResponseWriter", "length_at", "raw_spans", "stream_parts", "varint"]

Part = bytes | memoryview

# Tags of ModelInferRequest: model_name, model_version, id, parameters; inputs, outputs; raw_input_contents.
_LAST_HEAD_TAG = 0x22
_LAST_TENSOR_TAG = 0x32
_RAW_INPUT_TAG = 0x3A
_REQUEST_TAGS = frozenset(range(0x0A, _RAW_INPUT_TAG + 1, 8))
# Tags of ModelInferResponse.
_ID_TAG = b"\x1a"
_RAW_OUTPUT_TAG = b"\x32"
# Tag of infer_response in ModelStreamInferResponse.
_INFER_RESPONSE_TAG = b"\x12"
_GENERIC = ("BOOL", "BYTES")  # their bytes are looked at one by one...
_MAX_GENERIC_BYTES = 64 << 10  # ...and many of them are left to the full path, which may run elsewhere
_MAX_CACHED = 256  # entries of a cache; it starts again when it is full
_MAX_KEY_BYTES = 4096  # strangers choose the keys
_MAX_LENGTHS = 4  # lengths of prefixes that are tried
_MAX_MESSAGE_BYTES = (1 << 31) - 1  # protobuf's own


class _Input(msgspec.Struct):
    """An input without its bytes. ``size_bytes`` is -1 for those that `array_from_raw` checks."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters
    dtype: np.dtype
    size_bytes: int


class _Plan(msgspec.Struct):
    """The ``inputs`` and ``outputs`` of a request."""

    inputs: list[_Input]
    outputs: list[tuple[str, Parameters]]


class _Prefix(msgspec.Struct):
    """All of a request before its tensors' bytes, for those without an id and parameters.

    Attributes:
        model_name, model_version, plan: what it says.
        spans: where the tensors' bytes were, when it was seen first.
        places, frames: where tag and length of each of them begin and end, and those bytes: a request that has the same has the same spans.
    """

    model_name: str
    model_version: str
    plan: _Plan
    spans: list[tuple[int, int]]
    places: list[tuple[int, int]]
    frames: list[bytes]

    def fits(self, data: memoryview) -> bool:
        """The tensors' bytes are where they were."""
        spans = self.spans
        return bool(spans) and len(data) == spans[-1][1] and [data[start:end] for start, end in self.places] == self.frames


class RequestScanner:
    """Decodes inference requests; keeps what it has seen. For one thread.

    Args:
        limits: as for `decode_request`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._message = message_classes()["ModelInferRequest"]
        self._plans: dict[bytes, _Plan] = {}
        self._prefixes: dict[bytes, _Prefix] = {}
        self._lengths: list[int] = []  # of the prefixes, latest first

    def scan(self, data: memoryview) -> InferRequest | None:
        """The request in the bytes of a ``ModelInferRequest``, its tensors sharing memory with ``data`` where they are aligned.

        ``None`` when this is not the place to tell what it is: shared memory, typed contents, fields in another order, anything wrong.
        """
        for length in self._lengths:
            known = self._prefixes.get(bytes(data[:length]))
            if known is not None:
                spans = known.spans if known.fits(data) else raw_spans(data, length, _RAW_INPUT_TAG)
                if spans is not None:
                    return self._request(data, spans, known.plan, known.model_name, known.model_version, "", {})
        ends = _split(data)
        if ends is None:
            return None
        head_end, tensors_end = ends
        spans = raw_spans(data, tensors_end, _RAW_INPUT_TAG)
        plan = self._plan(bytes(data[head_end:tensors_end]))
        if spans is None or plan is None:
            return None
        try:
            head = self._message.FromString(bytes(data[:head_end]))
            parameters = decode_parameters(head.parameters) if len(head.parameters) else {}
        except Exception:  # noqa: BLE001 - protobuf's DecodeError differs between its implementations; the full path says what is wrong
            return None
        if not head.id and not parameters:
            starts = [tensors_end, *(end for _, end in spans)]
            places = [(start, end) for start, (end, _) in zip(starts, spans, strict=False)]
            frames = [bytes(data[start:end]) for start, end in places]
            self._remember(bytes(data[:tensors_end]), _Prefix(head.model_name, head.model_version, plan, spans, places, frames))
        return self._request(data, spans, plan, head.model_name, head.model_version, head.id, parameters)

    def _request(
        self, data: memoryview, spans: list[tuple[int, int]], plan: _Plan, name: str, version: str, identity: str, parameters: Parameters
    ) -> InferRequest | None:
        if len(spans) != len(plan.inputs):
            return None
        tensors = []
        for item, (start, end) in zip(plan.inputs, spans, strict=True):
            if item.size_bytes < 0:
                if end - start > _MAX_GENERIC_BYTES:
                    return None
                try:
                    array = array_from_raw("", item.datatype, item.shape, data[start:end], self._limits)
                except EdgeKitError:
                    return None
            elif item.size_bytes != end - start:
                return None
            else:
                array = array_within(data, item.dtype, item.shape, start)
            tensors.append(Tensor(item.name, array, dict(item.parameters)))
        outputs = [RequestedOutput(output, dict(asked)) for output, asked in plan.outputs]
        return InferRequest(name, tensors, version, identity, outputs, parameters)

    def _plan(self, key: bytes) -> _Plan | None:
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = self._make_plan(key)
            except Exception:  # noqa: BLE001 - as in `scan`
                return None
            if plan is not None and len(key) <= _MAX_KEY_BYTES:
                if len(self._plans) >= _MAX_CACHED:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _make_plan(self, key: bytes) -> _Plan | None:
        message = self._message.FromString(key)
        check_count("inputs", len(message.inputs), self._limits)
        check_count("outputs", len(message.outputs), self._limits)
        check_unique("input", (entry.name for entry in message.inputs))
        check_unique("output", (output.name for output in message.outputs))
        inputs = []
        for entry in message.inputs:
            parameters = decode_parameters(entry.parameters)
            if entry.HasField("contents") or is_shared(parameters) or parameters.get("classification"):
                return None
            dtype = wire_dtype(numpy_dtype(entry.datatype, ""))
            shape = tuple(entry.shape)
            count = element_count("", shape, self._limits)
            size = -1 if entry.datatype in _GENERIC or not count else count * dtype.itemsize
            inputs.append(_Input(entry.name, entry.datatype, shape, parameters, dtype, size))
        return _Plan(inputs, [(output.name, decode_parameters(output.parameters)) for output in message.outputs])

    def _remember(self, key: bytes, prefix: _Prefix) -> None:
        if len(key) > _MAX_KEY_BYTES:
            return
        if len(self._prefixes) >= _MAX_CACHED:
            self._prefixes.clear()
        self._prefixes[key] = prefix
        if len(key) not in self._lengths:
            self._lengths = [len(key), *self._lengths[: _MAX_LENGTHS - 1]]


class ResponseWriter:
    """Encodes answers; keeps what comes before the tensors' bytes. For one thread."""

    def __init__(self) -> None:
        self._message = message_classes()["ModelInferResponse"]
        self._known: dict[Any, tuple[bytes, bytes]] = {}

    def parts(
        self,
        response: InferResponse,
        request: InferRequest | None = None,
        regions: SharedMemoryRegions | None = None,
        labels_of: LabelsOf | None = None,
    ) -> list[Part]:
        """The bytes of a ``ModelInferResponse``, in parts, which share memory with the tensors.

        Args:
            response: the answer, tensors raw.
            request: what it answers; outputs that it asked for as classes or in shared memory are given so.
            regions: where shared memory is; an output in one carries no bytes.
            labels_of: names of classes.

        Raises:
            RequestError: classes of what has none, an output that does not fit into its region, or an answer beyond protobuf's 2 GiB.
        """
        shared: dict[str, Parameters] = {}
        if request is not None and request.outputs:
            response = classify_response(response, request, labels_of)
            if regions is not None:
                shared = {output.name: output.parameters for output in request.outputs if is_shared(output.parameters)}
        before, after = self._frame(response, shared, regions)
        parts: list[Part] = [before]
        if response.id:
            identity = response.id.encode()
            parts.append(_ID_TAG + varint(len(identity)) + identity)
        if response.parameters:
            message = self._message()
            encode_parameters(message.parameters, response.parameters)
            parts.append(message.SerializeToString())
        parts.append(after)
        size = len(before) + len(after)
        for tensor in response.outputs:
            raw = b"" if tensor.name in shared else raw_from_array(tensor.data)
            size += len(raw)
            parts += (_RAW_OUTPUT_TAG + varint(len(raw)), raw)
        if size > _MAX_MESSAGE_BYTES - _MAX_KEY_BYTES:
            raise RequestError("answer", f"{size} bytes", f"at most {_MAX_MESSAGE_BYTES}", "ask for fewer outputs or a smaller batch")
        return parts

    def _frame(self, response: InferResponse, shared: dict[str, Parameters], regions: SharedMemoryRegions | None) -> tuple[bytes, bytes]:
        """What comes before ``id`` and ``parameters``, and what comes after them and before the raw contents."""
        plain = not shared
        parts: list[Any] = [response.model_name, response.model_version]
        for tensor in response.outputs:
            plain = plain and not tensor.parameters
            data = tensor.data
            parts += (tensor.name, data.dtype, data.shape)
        key = tuple(parts)
        known = self._known.get(key) if plain else None
        if known is not None:
            return known
        before = self._message(model_name=response.model_name, model_version=response.model_version)
        after = self._message()
        for tensor in response.outputs:
            parameters = tensor.parameters
            if tensor.name in shared:
                assert regions is not None
                parameters = regions.write(tensor_thing("output", tensor.name), shared[tensor.name], tensor)
            encode_tensor(after.outputs, tensor, parameters)
        made: tuple[bytes, bytes] = before.SerializeToString(), after.SerializeToString()
        if plain and len(made[1]) <= _MAX_KEY_BYTES:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[key] = made
        return made


def stream_parts(parts: list[Part]) -> list[Part]:
    """The bytes of a ``ModelStreamInferResponse`` around those of its ``infer_response``."""
    return [_INFER_RESPONSE_TAG + varint(sum(map(len, parts))), *parts]


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def length_at(data: memoryview, position: int) -> tuple[int, int]:
    """A varint of at most five bytes and the position after it; a negative number for anything else."""
    number = shift = 0
    for index in range(position, min(position + 5, len(data))):
        octet = data[index]
        number |= (octet & 0x7F) << shift
        if octet < 0x80:
            return number, index + 1
        shift += 7
    return -1, position


def _split(data: memoryview) -> tuple[int, int] | None:
    """Where the ``inputs`` begin and where the raw contents begin, when all fields are known and in the order of their numbers."""
    position, last = 0, 0
    head_end = tensors_end = -1
    while position < len(data):
        tag = data[position]
        if tag not in _REQUEST_TAGS or tag < last:
            return None
        if tag > _LAST_HEAD_TAG and head_end < 0:
            head_end = position
        if tag > _LAST_TENSOR_TAG:
            tensors_end = position
            break
        last = tag
        length, position = length_at(data, position + 1)
        if length < 0:
            return None
        position += length
    if position > len(data):
        return None
    tensors_end = position if tensors_end < 0 else tensors_end
    return (tensors_end if head_end < 0 else head_end), tensors_end


def raw_spans(data: memoryview, position: int, tag: int) -> list[tuple[int, int]] | None:
    """Start and end of each of the raw contents, whose tag is ``tag``, when nothing else is left of the message."""
    spans = []
    size = len(data)
    while position < size:
        if data[position] != tag:
            return None
        length, position = length_at(data, position + 1)
        if length < 0 or position + length > size:
            return None
        spans.append((position, position + length))
        position += length
    return spans
