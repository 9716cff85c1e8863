"""Open Inference Protocol v2 over gRPC: protobuf messages to our types and back. Pure, both directions.

Tensors travel raw (``raw_input_contents``, ``raw_output_contents``: what we write) or as typed ``contents`` (read only). A message holds one
form or the other, never both. This is the full path; `_grpc_fast` has a short one for what most clients send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.errors import RequestError
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._shared_memory import SharedMemoryRegions, is_shared
from edgekit.protocol._tensors import (
    Limits,
    array_from_raw,
    array_from_values,
    check_count,
    check_unique,
    check_values,
    element_count,
    raw_from_array,
    refuse_unsupported,
    shorten,
    tensor_thing,
)
from edgekit.protocol._types import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameters,
    RequestedOutput,
    Tensor,
    TensorMetadata,
    numpy_dtype,
)

__all__ = [
    "decode_metadata",
    "decode_parameters",
    "decode_request",
    "decode_response",
    "decode_statistics",
    "encode_metadata",
    "encode_outputs",
    "encode_parameters",
    "encode_request",
    "encode_response",
    "encode_tensor",
]

# Datatype -> field of InferTensorContents. FP16 has none.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode_request(message: Any, limits: Limits | None = None, regions: SharedMemoryRegions | None = None) -> InferRequest:
    """An inference request from a ``ModelInferRequest``. ``deadline_s`` is left for the transport to set.

    Tensors in shared memory are copied from ``regions`` and have no entry among the raw contents.

    Raises:
        RequestError: tensors that are not well formed, naming the tensor; shared memory when there are no ``regions``.
    """
    limits = limits or Limits()
    check_count("outputs", len(message.outputs), limits)
    check_unique("output", (output.name for output in message.outputs))
    outputs = [RequestedOutput(output.name, decode_parameters(output.parameters)) for output in message.outputs]
    if regions is None:
        for output in outputs:
            refuse_unsupported(tensor_thing("output", output.name), output.parameters)
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_tensors("input", message.inputs, message.raw_input_contents, limits, regions),
        outputs=outputs,
        parameters=decode_parameters(message.parameters),
    )


def decode_response(message: Any, limits: Limits | None = None, raws: Sequence[memoryview] | None = None) -> InferResponse:
    """An inference response from a ``ModelInferResponse``; as `decode_request`. ``raws`` are its raw contents, where they lie elsewhere."""
    return InferResponse(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        outputs=_tensors("output", message.outputs, message.raw_output_contents if raws is None else raws, limits or Limits()),
        parameters=decode_parameters(message.parameters),
    )


def encode_request(request: InferRequest) -> Any:
    """The ``ModelInferRequest`` of a request, tensors raw."""
    message = message_classes()["ModelInferRequest"](model_name=request.model_name, model_version=request.model_version, id=request.id)
    encode_parameters(message.parameters, request.parameters)
    encode_outputs(message, request.outputs)
    _encode_tensors(message.inputs, message.raw_input_contents, request.inputs)
    return message


def encode_response(response: InferResponse) -> Any:
    """The ``ModelInferResponse`` of an answer, tensors raw."""
    message = message_classes()["ModelInferResponse"](model_name=response.model_name, model_version=response.model_version, id=response.id)
    encode_parameters(message.parameters, response.parameters)
    _encode_tensors(message.outputs, message.raw_output_contents, response.outputs)
    return message


def encode_metadata(metadata: ModelMetadata) -> Any:
    """The ``ModelMetadataResponse`` of a model."""
    message = message_classes()["ModelMetadataResponse"](name=metadata.name, versions=metadata.versions, platform=metadata.platform)
    for field, tensors in ((message.inputs, metadata.inputs), (message.outputs, metadata.outputs)):
        for tensor in tensors:
            field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message


def decode_metadata(message: Any) -> ModelMetadata:
    """A model's metadata from a ``ModelMetadataResponse``."""

    def tensors(field: Any) -> list[TensorMetadata]:
        return [TensorMetadata(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in field]

    return ModelMetadata(message.name, list(message.versions), message.platform, tensors(message.inputs), tensors(message.outputs))


def decode_statistics(message: Any) -> list[dict[str, Any]]:
    """The JSON form of a ``ModelStatisticsResponse``, integers as integers (protobuf's own JSON writes 64-bit ones as strings)."""
    found: list[dict[str, Any]] = _plain(message)["model_stats"]
    return found


def decode_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """Python values of a ``map<string, InferParameter>`` (or ``ModelRepositoryParameter``)."""
    found: Parameters = {}
    for key, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise RequestError(f"parameter {shorten(key)!r}", "no value", "one of bool, int64, uint64, double, string")
        if choice == "bytes_param":
            raise RequestError(f"parameter {shorten(key)!r}", "bytes", "bool, int64 or string", "put the files into the model repository")
        found[key] = getattr(value, choice)
    return found


def _plain(message: Any) -> dict[str, Any]:
    """All fields of a message as plain values, defaults included."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            plain[field.name] = value
        elif isinstance(value, Sequence) or hasattr(value, "add"):
            plain[field.name] = [_plain(item) for item in value]
        else:
            plain[field.name] = _plain(value)
    return plain


def encode_parameters(target: Any, parameters: Parameters) -> None:
    """Write parameters into a ``map<string, InferParameter>``; raises `RequestError` for an integer that has no field."""
    for key, value in parameters.items():
        slot = target[key]
        if isinstance(value, bool):
            slot.bool_param = value
        elif isinstance(value, int):
            _encode_integer(key, slot, value)
        elif isinstance(value, float):
            slot.double_param = value
        else:
            slot.string_param = value


def _encode_integer(key: str, slot: Any, value: int) -> None:
    if -(1 << 63) <= value < 1 << 63:
        slot.int64_param = value
    elif 0 <= value < 1 << 64:
        slot.uint64_param = value
    else:
        raise RequestError(f"parameter {shorten(key)!r}", "an integer of more than 64 bits", "a 64-bit integer")


def encode_outputs(message: Any, outputs: Sequence[RequestedOutput]) -> None:
    """Write into a ``ModelInferRequest`` what it asks for."""
    for output in outputs:
        encode_parameters(message.outputs.add(name=output.name).parameters, output.parameters)


def encode_tensor(field: Any, tensor: Tensor, parameters: Parameters) -> None:
    """Add a tensor to the ``inputs`` or ``outputs`` of a message, without its data."""
    entry = field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
    encode_parameters(entry.parameters, parameters)


def _encode_tensors(field: Any, raws: Any, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        encode_tensor(field, tensor, tensor.parameters)
        raws.append(bytes(raw_from_array(tensor.data)))


def _tensors(side: str, entries: Any, raws: Any, limits: Limits, regions: SharedMemoryRegions | None = None) -> list[Tensor]:
    check_count(f"{side}s", len(entries), limits)
    check_unique(side, (entry.name for entry in entries))
    parameters_of = [decode_parameters(entry.parameters) for entry in entries]
    inside = [not (regions is not None and is_shared(parameters)) for parameters in parameters_of]
    if len(raws) not in {0, sum(inside)}:
        raise RequestError(f"raw_{side}_contents", f"{len(raws)} entries", f"{sum(inside)}, one for each {side}, or none")
    tensors: list[Tensor] = []
    left = iter(raws)
    for entry, parameters, here in zip(entries, parameters_of, inside, strict=True):
        thing = tensor_thing(side, entry.name)
        shape = list(entry.shape)
        if not here:
            if entry.contents.ListFields():  # MLServer's client sends empty ones beside raw bytes
                raise RequestError(thing, "contents beside a shared memory region", "one of them")
            assert regions is not None
            array = regions.read(thing, parameters, entry.datatype, shape)
            tensors.append(Tensor(entry.name, array, parameters))
            continue
        refuse_unsupported(thing, parameters)
        if len(raws):
            if entry.contents.ListFields():  # MLServer's client sends empty ones beside raw bytes
                raise RequestError(thing, f"both contents and raw_{side}_contents", "one of them")
            array = array_from_raw(thing, entry.datatype, shape, next(left), limits)
        else:
            array = _from_contents(thing, entry, shape, limits)
        tensors.append(Tensor(entry.name, array, parameters))
    return tensors


def _from_contents(thing: str, entry: Any, shape: list[int], limits: Limits) -> Any:
    numpy_dtype(shorten(entry.datatype), thing)
    count = element_count(thing, shape, limits)
    wanted = _CONTENTS.get(entry.datatype)
    if wanted is None:
        raise RequestError(thing, f"{entry.datatype} without raw contents", "raw contents", "send the tensor's bytes")
    others = [field.name for field, _ in entry.contents.ListFields() if field.name != wanted]
    if others:
        raise RequestError(thing, f"values in {others[0]}", f"{wanted} for {entry.datatype}")
    values = getattr(entry.contents, wanted)
    check_values(thing, len(values), limits)
    if len(values) != count:
        raise RequestError(thing, f"{len(values)} values in {wanted}", f"{count} for shape {shorten(str(shape))}")
    return array_from_values(thing, entry.datatype, shape, values)
