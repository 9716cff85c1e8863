"""Open Inference Protocol v2 over HTTP, as bytes: JSON bodies and the binary tensor data extension. Pure, both directions.

A body is JSON; with the binary extension the JSON is followed by the raw bytes of the tensors that carry ``binary_data_size``, in order, and the HTTP
header ``Inference-Header-Content-Length`` says how long the JSON is. A client asks for binary outputs with the request parameter
``binary_data_output`` or per output with ``binary_data``. Tensors in shared memory are in neither part; the parameters say where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgekit.errors import RequestError
from edgekit.protocol._classification import LabelsOf, class_count, classify_response
from edgekit.protocol._shared_memory import REGION, SharedMemoryRegions, is_shared
from edgekit.protocol._tensors import (
    Limits,
    array_from_json,
    array_from_raw,
    check_count,
    check_unique,
    json_from_array,
    raw_from_array,
    shorten,
    tensor_thing,
)
from edgekit.protocol._types import InferRequest, InferResponse, Parameters, RequestedOutput, Tensor

__all__ = [
    "BINARY_SIZE",
    "HEADER_LENGTH",
    "HttpMessage",
    "WireTensor",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "parse_request_json",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
_ALIGNMENT_BYTES = 64  # JSON is padded to this, so that the receiver can use the first tensor in place
BINARY_SIZE = "binary_data_size"
_MANY_OBJECTS_BYTES = 1 << 20  # up to here JSON may hold what it likes
_OBJECTS_OF_TENSOR = 8


class HttpMessage(msgspec.Struct, frozen=True):
    """One encoded body.

    Attributes:
        json: its first part, padded when there are others.
        raws: the bytes of tensors that follow it, which may share memory with them.
        header_length: goes into `HEADER_LENGTH`; ``None`` means the body is JSON alone.
    """

    json: bytes
    raws: Sequence[bytes | memoryview] = ()
    header_length: int | None = None

    @property
    def body(self) -> bytes:
        """All of it, copied."""
        return b"".join([self.json, *self.raws]) if self.raws else self.json

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.json) + sum(map(len, self.raws))

    def headers(self) -> dict[str, str]:
        """The HTTP headers that describe the body."""
        if self.header_length is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(self.header_length)}


class WireTensor(msgspec.Struct):
    """One tensor as the JSON has it."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class _WireOutput(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _WireRequest(msgspec.Struct):
    inputs: list[WireTensor]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[_WireOutput] = []


class _WireResponse(msgspec.Struct):
    model_name: str
    outputs: list[WireTensor]
    model_version: str = ""
    id: str = ""
    parameters: Parameters = {}


_REQUEST = msgspec.json.Decoder(_WireRequest)
_RESPONSE = msgspec.json.Decoder(_WireResponse)


def decode_request(
    body: bytes | bytearray | memoryview,
    header_length: str | None,
    model_name: str,
    model_version: str = "",
    limits: Limits | None = None,
    regions: SharedMemoryRegions | None = None,
) -> InferRequest:
    """An inference request from an HTTP body; ``header_length`` is the value of `HEADER_LENGTH`, if it was sent.

    Tensors share memory with ``body``; those in shared memory are copied from ``regions``. ``deadline_s`` is left for the transport to set.

    Raises:
        RequestError: anything that is not a well-formed request, naming the tensor; shared memory when there are no ``regions``.
    """
    limits = limits or Limits()
    head, tail = _split("request", body, header_length, limits)
    request, wires = parse_request_json(head, limits)
    if regions is None:
        for output in request.outputs:
            _refuse_shared(tensor_thing("output", output.name), output.parameters)
    request.model_name, request.model_version = model_name, model_version
    request.inputs = _tensors("input", wires, tail, limits, regions)
    return request


def parse_request_json(head: bytes | memoryview, limits: Limits) -> tuple[InferRequest, list[WireTensor]]:
    """The JSON part of a request: all but its model and the tensors, and the tensors as the JSON has them.

    Raises:
        RequestError: not a request.
    """
    wire: _WireRequest = _parse("request", _REQUEST, head)
    check_count("outputs", len(wire.outputs), limits)
    check_unique("output", (output.name for output in wire.outputs))
    for output in wire.outputs:
        class_count(tensor_thing("output", output.name), output.parameters)  # raises for what is no count
    outputs = [RequestedOutput(output.name, output.parameters) for output in wire.outputs]
    return InferRequest("", [], id=wire.id, outputs=outputs, parameters=wire.parameters), wire.inputs


def decode_response(body: bytes | bytearray, header_length: str | None, limits: Limits | None = None) -> InferResponse:
    """An inference response from an HTTP body; as `decode_request`."""
    limits = limits or Limits()
    head, tail = _split("response", body, header_length, limits)
    wire: _WireResponse = _parse("response", _RESPONSE, head)
    return InferResponse(
        model_name=wire.model_name,
        model_version=wire.model_version,
        id=wire.id,
        outputs=_tensors("output", wire.outputs, tail, limits),
        parameters=wire.parameters,
    )


def encode_request(request: InferRequest, *, binary: bool = True) -> HttpMessage:
    """The HTTP body of a request; ``binary`` sends and asks for tensors in raw form.

    Raises:
        RequestError: a tensor that the chosen form cannot carry.
    """
    document: dict[str, Any] = {"parameters": {**request.parameters, "binary_data_output": binary}}
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {**output.parameters, "binary_data": binary}} for output in request.outputs
        ]
    return _message(document, "inputs", request.inputs, [binary] * len(request.inputs))


def encode_response(
    response: InferResponse, request: InferRequest, regions: SharedMemoryRegions | None = None, labels_of: LabelsOf | None = None
) -> HttpMessage:
    """The HTTP body of an answer, each output in the form that ``request`` asked for: classes, shared memory, binary or JSON.

    Raises:
        RequestError: an output that was asked for as JSON and holds what JSON cannot carry, that has no classes, or that does not fit into its
            shared memory.
    """
    response = classify_response(response, request, labels_of)
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    default = bool(request.parameters.get("binary_data_output", False))
    asked: dict[str, bool | Parameters] = {}
    for output in request.outputs:
        shared = regions is not None and is_shared(output.parameters)
        asked[output.name] = output.parameters if shared else bool(output.parameters.get("binary_data", default))
    forms = [asked.get(tensor.name, default) for tensor in response.outputs]
    return _message(document, "outputs", response.outputs, forms, regions)


def _split(what: str, body: bytes | bytearray | memoryview, header_length: str | None, limits: Limits) -> tuple[memoryview, memoryview]:
    """The JSON part and the binary part of a body."""
    if len(body) > limits.body_bytes:
        raise RequestError(f"{what} body", f"{len(body)} bytes", f"at most {limits.body_bytes}")
    view = memoryview(body)
    if header_length is None:
        return _bounded(what, view, limits), view[len(view) :]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise RequestError(f"header {HEADER_LENGTH}", repr(shorten(header_length)), "the length of the JSON part in bytes")
    length = int(header_length)
    if not 0 < length <= len(view):
        raise RequestError(f"header {HEADER_LENGTH}", str(length), f"1 to {len(view)}, the size of the body")
    return _bounded(what, view[:length], limits), view[length:]


def _bounded(what: str, head: memoryview, limits: Limits) -> memoryview:
    if len(head) > limits.json_bytes:
        raise RequestError(f"JSON of the {what}", f"{len(head)} bytes", f"at most {limits.json_bytes}", "send the tensors in binary form")
    if len(head) > _MANY_OBJECTS_BYTES and (objects := bytes(head).count(b"{")) > _OBJECTS_OF_TENSOR * (limits.tensors + 1):
        # A tensor and its parameters are an object each: this is no message of so few tensors, and reading it would stop all else for seconds.
        raise RequestError(
            f"JSON of the {what}", f"{objects} objects in {len(head)} bytes", "tensors and little else", "send text in binary form"
        )
    return head


def _parse(what: str, decoder: Any, head: bytes | memoryview) -> Any:
    try:
        return decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        found = f"not a valid inference {what}: {shorten(str(exc), 200)}"
        raise RequestError(f"{what} body", found, "JSON as the Open Inference Protocol v2 has it") from exc


def _tensors(
    side: str, wires: Sequence[WireTensor], tail: memoryview, limits: Limits, regions: SharedMemoryRegions | None = None
) -> list[Tensor]:
    """Tensors of one message, the binary ones cut from ``tail``, which must be used up."""
    check_count(f"{side}s", len(wires), limits)
    check_unique(side, (wire.name for wire in wires))
    tensors: list[Tensor] = []
    offset = 0
    for wire in wires:
        thing = tensor_thing(side, wire.name)
        data = bytes(wire.data)
        if is_shared(wire.parameters):
            tensors.append(_shared(thing, wire, data, regions))
            continue
        if BINARY_SIZE not in wire.parameters:
            if not data:
                raise RequestError(thing, "no data", f"a list in 'data', or raw bytes after the JSON and their number in {BINARY_SIZE!r}")
            array = array_from_json(thing, wire.datatype, wire.shape, data, limits)
        else:
            size = _binary_size(thing, wire.parameters, len(tail) - offset)
            if data:
                raise RequestError(thing, f"both 'data' and {BINARY_SIZE!r}", "one of them")
            array = array_from_raw(thing, wire.datatype, wire.shape, tail[offset : offset + size], limits)
            offset += size
        tensors.append(Tensor(wire.name, array, {key: value for key, value in wire.parameters.items() if key != BINARY_SIZE}))
    if offset != len(tail):
        raise RequestError(f"{side}s", f"{len(tail) - offset} bytes after the last tensor", f"{offset} bytes of binary data in all")
    return tensors


def _shared(thing: str, wire: WireTensor, data: bytes, regions: SharedMemoryRegions | None) -> Tensor:
    """An input that lives in shared memory."""
    if regions is None:
        raise _no_shared_memory(thing)
    if data or BINARY_SIZE in wire.parameters:
        raise RequestError(thing, "data beside a shared memory region", "one of them")
    return Tensor(wire.name, regions.read(thing, wire.parameters, wire.datatype, wire.shape), wire.parameters)


def _refuse_shared(thing: str, parameters: Parameters) -> None:
    if is_shared(parameters):
        raise _no_shared_memory(thing)


def _no_shared_memory(thing: str) -> RequestError:
    return RequestError(thing, f"parameter {REGION!r}", "no such parameter", "only a server takes it, from clients on its own machine")


def _binary_size(thing: str, parameters: Mapping[str, Any], left: int) -> int:
    size = parameters[BINARY_SIZE]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RequestError(thing, f"{BINARY_SIZE} {shorten(str(size))!r}", "a whole number of bytes")
    if size > left:
        raise RequestError(thing, f"{BINARY_SIZE} {size}, and {left} bytes are left in the body", "a body that holds all tensors")
    return size


def _message(
    document: dict[str, Any],
    key: str,
    tensors: Sequence[Tensor],
    forms: Sequence[bool | Parameters],
    regions: SharedMemoryRegions | None = None,
) -> HttpMessage:
    """Encode ``tensors`` into ``document[key]``: in the form ``True`` behind the JSON, ``False`` in it, parameters in their shared memory."""
    raws: list[bytes | memoryview] = []
    entries: list[dict[str, Any]] = []
    for tensor, form in zip(tensors, forms, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.data.shape}
        if not isinstance(form, bool):
            assert regions is not None
            entry["parameters"] = regions.write(tensor_thing(key[:-1], tensor.name), form, tensor)
        elif form:
            raw = raw_from_array(tensor.data)
            entry["parameters"] = {**tensor.parameters, BINARY_SIZE: len(raw)}
            raws.append(raw)
        else:
            if tensor.parameters:
                entry["parameters"] = tensor.parameters
            entry["data"] = json_from_array(tensor_thing(key[:-1], tensor.name), tensor.data)
        entries.append(entry)
    document[key] = entries
    head = msgspec.json.encode(document)
    if not raws:
        return HttpMessage(head)
    head = head.ljust(-(-len(head) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
    return HttpMessage(head, raws, len(head))
