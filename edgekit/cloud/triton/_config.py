"""Triton's ``config.pbtxt`` as validated data, and its text form.

Field names and meanings: model_config.proto of the Triton Inference Server (triton-inference-server/common). A small dataclass per choice; one
function renders them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.errors import UsageError

__all__ = ["DynamicBatching", "ModelConfig", "TensorConfig", "render", "triton_type"]

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
class DynamicBatching:
    """Dynamic batching with a bounded queue whose requests do not outlive their deadline.

    Attributes:
        max_queue_delay_us: how long the first request of a batch may wait for others. 0 runs what is there.
        max_queue_size: requests that may wait; Triton's default is unbounded, which turns overload into latency.
        default_timeout_us: queue timeout of a request that carries none.
    """

    max_queue_delay_us: int = 0
    max_queue_size: int = 128
    default_timeout_us: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("max_queue_delay_us", "max_queue_size", "default_timeout_us"):
            if getattr(self, name) < 0:
                raise UsageError(f"dynamic batching {name}", str(getattr(self, name)), "0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository.

    Attributes:
        backend: ``python``, ``onnxruntime`` or ``tensorrt``.
        max_batch_size: 0 when the model's first dimension is not a batch.
        instance_kind: ``KIND_CPU`` or ``KIND_GPU``.
        instance_count: instances per device.
        batching: only with ``max_batch_size`` > 0; Triton refuses it otherwise.
        parameters: string parameters that the back end reads.
    """

    name: str
    backend: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch_size: int = 0
    instance_kind: str = "KIND_CPU"
    instance_count: int = 1
    batching: DynamicBatching | None = None
    parameters: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batching is not None and self.max_batch_size == 0:
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
    if config.batching is not None:
        policy = config.batching
        yield "dynamic_batching {"
        yield f"  max_queue_delay_microseconds: {policy.max_queue_delay_us}"
        # A request's own `timeout` parameter (what is left of its deadline) wins over the default, never extends it.
        yield "  default_queue_policy {"
        yield "    timeout_action: REJECT"
        yield f"    default_timeout_microseconds: {policy.default_timeout_us}"
        yield "    allow_timeout_override: true"
        yield f"    max_queue_size: {policy.max_queue_size}"
        yield "  }"
        yield "}"
    for key, value in sorted(config.parameters.items()):
        yield f"parameters {{ key: {_quote(key)} value: {{ string_value: {_quote(value)} }} }}"
    # Every version folder is served: the router and canaries name the one they want.
    yield "version_policy { all {} }"
