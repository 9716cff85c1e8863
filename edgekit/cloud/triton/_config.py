"""Triton's ``config.pbtxt`` as validated data, and its text form.

Field names and meanings: model_config.proto of the Triton Inference Server (triton-inference-server/common). A small dataclass per choice; one
function renders them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.errors import UsageError

__all__ = ["ModelConfig", "TensorConfig", "render", "triton_type"]

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}


def triton_type(dtype: str) -> str:
    """``TYPE_FP32`` for ``float32``.

    Raises:
        UsageError: Triton has no such type.
    """
    if dtype not in _TYPES:
        raise UsageError("Triton repository", f"dtype {dtype}", f"one of {', '.join(_TYPES)}")
    return _TYPES[dtype]


@dataclass(frozen=True)
class TensorConfig:
    """One input or output; ``dims`` without the batch dimension when ``max_batch_size`` > 0, -1 for a dynamic one."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository.

    Attributes:
        backend: ``python``, ``onnxruntime`` or ``tensorrt``.
        max_batch_size: 0 when the model's first dimension is not a batch.
        instance_kind: ``KIND_CPU`` or ``KIND_GPU``.
        instance_count: instances per device.
        dynamic_batching: what waits together runs together; only with ``max_batch_size`` > 0, Triton refuses it otherwise.
        parameters: string parameters that the back end reads.
    """

    name: str
    backend: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch_size: int = 0
    instance_kind: str = "KIND_CPU"
    instance_count: int = 1
    dynamic_batching: bool = False
    parameters: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dynamic_batching and self.max_batch_size == 0:
            raise UsageError(f"model {self.name}", "dynamic batching without a batch dimension", "max_batch_size > 0")
        if self.instance_count < 1:
            raise UsageError(f"model {self.name}: instances", str(self.instance_count), "1 or more")


def render(config: ModelConfig) -> str:
    """``config.pbtxt`` in protobuf's text format."""
    return "\n".join(_lines(config)) + "\n"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _tensors(key: str, tensors: Sequence[TensorConfig]) -> Iterator[str]:
    for tensor in tensors:
        dims = ", ".join(str(dim) for dim in tensor.dims)
        yield f"{key} {{ name: {_quote(tensor.name)} data_type: {tensor.data_type} dims: [{dims}] }}"


def _lines(config: ModelConfig) -> Iterator[str]:
    yield f"name: {_quote(config.name)}"
    yield f"backend: {_quote(config.backend)}"
    yield f"max_batch_size: {config.max_batch_size}"
    yield from _tensors("input", config.inputs)
    yield from _tensors("output", config.outputs)
    yield f"instance_group {{ kind: {config.instance_kind} count: {config.instance_count} }}"
    if config.dynamic_batching:
        # No queue policy: with any of its bounds Triton loses wake-ups and polls its queue every half second instead (ADR 0030).
        yield "dynamic_batching { }"
    for key, value in sorted(config.parameters.items()):
        yield f"parameters {{ key: {_quote(key)} value: {{ string_value: {_quote(value)} }} }}"
    # Every version folder is served: the router and canaries name the one they want.
    yield "version_policy { all {} }"
