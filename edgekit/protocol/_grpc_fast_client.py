"""The client's side of `edgekit.protocol._grpc_fast`: requests written and answers read without a copy of their tensors in a protobuf message. Pure."""

from __future__ import annotations

from typing import Any

from edgekit.errors import RequestError
from edgekit.protocol._grpc_codec import decode_response, encode_outputs, encode_parameters, encode_tensor
from edgekit.protocol._grpc_fast import Part, length_at, raw_spans, varint
from edgekit.protocol._grpc_messages import message_classes
from edgekit.protocol._tensors import Limits, raw_from_array
from edgekit.protocol._types import InferRequest, InferResponse

__all__ = ["RequestWriter", "read_response"]

_RAW_INPUT_TAG = b"\x3a"  # of ModelInferRequest
_RAW_OUTPUT_TAG = 0x32  # of ModelInferResponse, whose other fields come before it where a protobuf library has written it
_MAX_CACHED = 256
_MAX_MESSAGE_BYTES = (1 << 31) - 1  # protobuf's own


class RequestWriter:
    """Encodes inference requests; keeps what says which tensors there are. For one thread."""

    def __init__(self) -> None:
        self._message = message_classes()["ModelInferRequest"]
        self._known: dict[Any, bytes] = {}

    def parts(self, request: InferRequest) -> list[Part]:
        """The bytes of a ``ModelInferRequest``, in parts, which share memory with the tensors.

        Raises:
            RequestError: a parameter that has no field, or more than protobuf's 2 GiB.
        """
        head = self._message(model_name=request.model_name, model_version=request.model_version, id=request.id)
        encode_parameters(head.parameters, request.parameters)
        parts: list[Part] = [head.SerializeToString(), self._tensors(request)]
        for tensor in request.inputs:
            raw = raw_from_array(tensor.data)
            parts += (_RAW_INPUT_TAG + varint(len(raw)), raw)
        size = sum(map(len, parts))
        if size > _MAX_MESSAGE_BYTES:
            raise RequestError("request", f"{size} bytes", f"at most {_MAX_MESSAGE_BYTES}", "send less in one request")
        return parts

    def _tensors(self, request: InferRequest) -> bytes:
        """``inputs`` and ``outputs``."""
        plain = not request.outputs and not any(tensor.parameters for tensor in request.inputs)
        key = tuple([(tensor.name, tensor.data.dtype, tensor.data.shape) for tensor in request.inputs]) if plain else None
        known = self._known.get(key)
        if known is not None:
            return known
        message = self._message()
        for tensor in request.inputs:
            encode_tensor(message.inputs, tensor, tensor.parameters)
        encode_outputs(message, request.outputs)
        made: bytes = message.SerializeToString()
        if plain:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[key] = made
        return made


def read_response(data: memoryview, limits: Limits) -> InferResponse:
    """The answer in the bytes of a ``ModelInferResponse``, its tensors sharing memory with ``data`` where they are aligned.

    Raises:
        RequestError: not such a message, or tensors that are not well formed.
    """
    end = _raw_begin(data)
    raws = raw_spans(data, end, _RAW_OUTPUT_TAG) or None
    try:
        message = message_classes()["ModelInferResponse"].FromString(bytes(data if raws is None else data[:end]))
    except Exception as exc:  # protobuf's DecodeError differs between its implementations
        raise RequestError("answer", "no ModelInferResponse") from exc
    return decode_response(message, limits, None if raws is None else [data[start:stop] for start, stop in raws])


def _raw_begin(data: memoryview) -> int:
    """Where the first of the raw contents begins; the end where there are none, or something else than fields with a length comes before."""
    position = 0
    while position < len(data) and data[position] != _RAW_OUTPUT_TAG and data[position] & 7 == 2:
        length, position = length_at(data, position + 1)
        if length < 0:
            break
        position += length
    return position if position < len(data) and data[position] == _RAW_OUTPUT_TAG else len(data)
