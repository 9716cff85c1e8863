"""Triton's ``generate_stream`` for any model: one request becomes several, and each answer an event. Pure.

A body is either a flat JSON object, as Triton's generate extension has it (``{"input": [...], "parameters": {...}}``; every key but ``id`` and ``parameters``
names an input), or an inference request, in JSON or with binary tensors. One input may be longer than the model takes; it is cut along an axis into chunks, and
these parameters say how:

- ``chunk``: length of a chunk; the model's own size when left out, which must be fixed then.
- ``hop``: from the beginning of a chunk to that of the next; ``chunk`` when left out, less for windows that overlap.
- ``axis``: that is cut; the last when left out.
- ``stream_input``: name of the input that is cut; needed where the model has several.

What is left at the end and fills no chunk is not run, and the last event says how much it was. A model with states gets the chunks as one sequence. The events are
those of the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from edgekit.errors import RequestError
from edgekit.protocol._http_codec import decode_request
from edgekit.protocol._tensors import Limits, array_from_json, json_from_array, shorten, tensor_thing
from edgekit.protocol._types import InferRequest, InferResponse, ModelMetadata, Parameters, RequestedOutput, Tensor, TensorMetadata

__all__ = ["Chunks", "chunks_of", "end_event", "error_event", "read_body", "result_event"]

_OWN = ("chunk", "hop", "axis", "stream_input")
_MAX_COLONS = 1 << 16  # more than any request has keys
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PARAMETERS = msgspec.json.Decoder(Parameters)


class Chunks(msgspec.Struct, frozen=True):
    """A request cut into several.

    Attributes:
        request: as it came, without the parameters that say how to cut.
        name: of the input that is cut.
        axis: of it, 0 or more.
        chunk, hop: lengths along it.
        count: how many chunks there are.
        left_over: what fills no chunk, along the axis.
    """

    request: InferRequest
    name: str
    axis: int
    chunk: int
    hop: int
    count: int
    left_over: int

    def requests(self) -> Iterator[InferRequest]:
        """The requests, in order; their tensors share memory with the whole."""
        for index in range(self.count):
            start = index * self.hop
            cut = (slice(None),) * self.axis + (slice(start, start + self.chunk),)
            inputs = [
                Tensor(tensor.name, tensor.data[cut] if tensor.name == self.name else tensor.data, tensor.parameters)
                for tensor in self.request.inputs
            ]
            yield msgspec.structs.replace(self.request, inputs=inputs, parameters=dict(self.request.parameters))


def read_body(body: Any, header_length: str | None, metadata: ModelMetadata, version: str, limits: Limits) -> InferRequest:
    """The request in a body of either form; its inputs as the client sent them.

    Args:
        body: bytes, not compressed.
        header_length: the header that says how long the JSON of a binary body is, if it was sent.
        metadata: of the model.
        version: as the path has it.
        limits: of a message.

    Raises:
        RequestError: anything that is no such request, naming the key or tensor.
    """
    if header_length is not None:
        return decode_request(body, header_length, metadata.name, version, limits)
    _check_json(body, limits)
    try:
        document = _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        expected = "a JSON object with an input's name and its values"
        raise RequestError("request body", f"cannot be read: {shorten(str(exc), 160)}", expected) from exc
    known = {tensor.name: tensor for tensor in metadata.inputs}
    if "inputs" in document and "inputs" not in known:
        return decode_request(body, None, metadata.name, version, limits)
    parameters = _parameters(document.pop("parameters", None))
    identity = _text(document.pop("id", None))
    streamed, axis = str(parameters.get("stream_input", "")), parameters.get("axis", -1)
    tensors = []
    for key, raw in document.items():
        tensor = known.get(key)
        if tensor is None:
            raise RequestError(f"key {shorten(key)!r}", "no such input", f"inputs {', '.join(known)}, or id, or parameters")
        cut = axis if isinstance(axis, int) and (key == streamed or len(known) == 1) else None
        tensors.append(Tensor(key, _array(tensor, bytes(raw), cut, limits)))
    return InferRequest(metadata.name, tensors, version, identity, [], parameters)


def chunks_of(request: InferRequest, metadata: ModelMetadata) -> Chunks:
    """How a request is cut.

    Raises:
        RequestError: a parameter that cannot be, no input of that name, not one whole chunk.
    """
    parameters = request.parameters
    arrays = {tensor.name: tensor.data for tensor in request.inputs}
    specs = {tensor.name: tensor for tensor in metadata.inputs}
    name = parameters.get("stream_input") or (next(iter(specs)) if len(specs) == 1 else "")
    if name not in specs or name not in arrays:
        found = repr(name) if name else "not given, and the model has several inputs"
        raise RequestError("parameter 'stream_input'", found, f"one of the inputs that were sent: {', '.join(arrays) or 'none'}")
    array = arrays[str(name)]
    axis = _whole(parameters, "axis", -1, -array.ndim, array.ndim - 1)
    axis += array.ndim if axis < 0 else 0
    shape = specs[str(name)].shape
    own = shape[axis] if axis < len(shape) and shape[axis] > 0 else 0
    if not own and "chunk" not in parameters:
        raise RequestError("parameter 'chunk'", f"not given, and axis {axis} of {name!r} has no fixed size", "the length of a chunk")
    chunk = _whole(parameters, "chunk", own, 1, 1 << 31)
    hop = _whole(parameters, "hop", chunk, 1, chunk)
    length = array.shape[axis]
    count = (length - chunk) // hop + 1 if length >= chunk else 0
    if not count:
        raise RequestError(f"input {name!r}", f"{length} along axis {axis}", f"at least one chunk of {chunk}")
    plain = msgspec.structs.replace(request, parameters={key: value for key, value in parameters.items() if key not in _OWN})
    return Chunks(plain, str(name), axis, chunk, hop, count, length - (count - 1) * hop - chunk)


def result_event(response: InferResponse, index: int, asked: list[RequestedOutput]) -> bytes:
    """The event of an answer: outputs as numbers where they hold one, else as flat lists in row-major order.

    Raises:
        RequestError: values that JSON cannot carry.
    """
    names = {output.name for output in asked}
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version, "chunk": index}
    if response.id:
        document["id"] = response.id
    for tensor in response.outputs:
        if not names or tensor.name in names:
            values = json_from_array(tensor_thing("output", tensor.name), tensor.data)
            document[tensor.name] = values[0] if len(values) == 1 else values
    return _event(document)


def error_event(answer: bytes) -> bytes:
    """The event that ends a stream whose chunk failed, in the form that Triton's has: the JSON that would be the answer to that chunk alone."""
    return b"data: " + answer + b"\n\n"


def end_event(chunks: Chunks) -> bytes:
    """The last event of a stream that went well."""
    return b"event: end\n" + _event({"chunks": chunks.count, "left_over": chunks.left_over})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _check_json(body: Any, limits: Limits) -> None:
    """Refuse what would take long to read: other requests wait meanwhile."""
    if len(body) > limits.json_bytes:
        raise RequestError("request body", f"{len(body)} bytes of JSON", f"at most {limits.json_bytes}", "send the tensors in binary form")
    if (keys := bytes(body).count(b":")) > _MAX_COLONS:
        raise RequestError("request body", f"{keys} colons", "inputs and their values, and little else", "send text in binary form")


def _parameters(raw: msgspec.Raw | None) -> Parameters:
    if raw is None:
        return {}
    try:
        found: Parameters = _PARAMETERS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError("key 'parameters'", shorten(str(exc), 160), "an object of numbers, texts and flags") from exc
    return found


def _text(raw: msgspec.Raw | None) -> str:
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError("key 'id'", shorten(str(exc), 160), "a text") from exc


def _whole(parameters: Parameters, name: str, default: int, least: int, most: int) -> int:
    found = parameters.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
        raise RequestError(f"parameter {name!r}", shorten(repr(found)), f"a whole number from {least} to {most}")
    return found


def _parsed(thing: str, raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError(thing, f"cannot be read: {shorten(str(exc), 160)}", "a value, or a list of them") from exc


def _array(tensor: TensorMetadata, raw: bytes, cut: int | None, limits: Limits) -> np.ndarray:
    """A tensor from JSON: one value, a flat list, or nested lists, which have their shape themselves.

    Args:
        tensor: as the model declares it.
        raw: its JSON.
        cut: the axis that may be longer than declared; ``None`` for none.
        limits: of a message.
    """
    thing = tensor_thing("input", tensor.name)
    values = _parsed(thing, raw)
    if not isinstance(values, list):
        return array_from_json(thing, tensor.datatype, [1] * len(tensor.shape), b"[" + raw + b"]", limits)
    if values and isinstance(values[0], list):
        shape = []
        while isinstance(values, list):
            shape.append(len(values))
            values = values[0] if values else None
        return array_from_json(thing, tensor.datatype, shape, raw, limits)
    shape = [max(size, 1) if size else 0 for size in tensor.shape] or [len(values)]
    free = [axis for axis, size in enumerate(tensor.shape) if size < 0]
    long = cut if cut is not None and -len(shape) <= cut < len(shape) else free[-1] if free else None
    if long is not None:
        shape[long] = 1
        shape[long] = len(values) // max(1, math.prod(shape))
    return array_from_json(thing, tensor.datatype, shape, raw, limits)
