"""What of a file the Edge TPU would run, told before its compiler is at hand.

The rules are those of the Coral documentation ("TensorFlow models on the Edge TPU", supported operations): 8-bit tensors only, constant shapes, at most three
innermost dimensions above 1, and one partition: from the first operator that cannot be mapped on, everything runs on the host. The compiler (a closed x86-64 binary)
has the last word.
"""

from __future__ import annotations

from edgekit.converters.tflite._integer import Operation, operations

__all__ = ["CACHE_BYTES", "SUPPORTED", "check_edgetpu", "edgetpu_notes"]

CACHE_BYTES = 8 * 2**20
"""On-chip memory for parameters, about 8 MB less what the executable takes; what does not fit is fetched over USB or PCIe at every run."""

SUPPORTED = frozenset(
    {
        *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED", "L2_NORMALIZATION"),
        *("LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN"),
        *("RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX"),
        *("SPACE_TO_DEPTH", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SQUARED_DIFFERENCE", "TANH", "TRANSPOSE", "TRANSPOSE_CONV"),
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
    }
)

_INNER_AXES = 3
_SOFTMAX_ELEMENTS = 16_000
_LISTED = 20


def check_edgetpu(data: bytes) -> dict[str, object]:
    """JSON-able: ``mapped`` and ``operators`` (how many of how many), ``first_on_host`` and ``on_host`` with reasons, ``parameter_bytes``, ``fits``.

    Args:
        data: a ``.tflite`` file.
    """
    off: list[dict[str, str]] = []
    total = mapped = parameters = 0
    for operation in operations(data):
        total += 1
        reason = refusal(operation)
        if reason:
            off.append({"operator": operation.name, "output": operation.output, "reason": reason})
        elif not off:
            mapped += 1
            parameters += operation.constant_bytes
    return {
        "mapped": mapped,
        "operators": total,
        "first_on_host": off[0] if off else None,
        "on_host": off[:_LISTED],
        "on_host_more": max(0, len(off) - _LISTED),
        "parameter_bytes": parameters,
        "cache_bytes": CACHE_BYTES,
        "fits": parameters <= CACHE_BYTES,
    }


def refusal(operation: Operation) -> str:
    """Why an operator stays on the host, "" when it can be mapped."""
    if operation.name not in SUPPORTED:
        return "the Edge TPU has no such operator"
    for dtype, shape, constant in (*operation.inputs, *operation.outputs):
        if dtype not in ("INT8", "UINT8") and not (constant and dtype == "INT32"):
            return f"a tensor is {dtype.lower()}"
        if not constant and any(size > 1 for size in shape[:-_INNER_AXES]):
            return f"shape {list(shape)} has a size above 1 beside the {_INNER_AXES} innermost"
    if operation.name == "SOFTMAX" and operation.inputs[0][1] and operation.inputs[0][1][-1] > _SOFTMAX_ELEMENTS:
        return f"softmax over more than {_SOFTMAX_ELEMENTS} elements"
    return ""


def edgetpu_notes(data: bytes) -> tuple[str, ...]:
    """The same for people: one sentence on operators, one on memory."""
    found = check_edgetpu(data)
    first = found["first_on_host"]
    where = (
        f"from {first['operator']} on ({first['output']}: {first['reason']}) the host computes" if isinstance(first, dict) else "all of it"
    )
    megabytes = int(str(found["parameter_bytes"])) / 2**20
    room = "fit" if found["fits"] else "do not fit"
    return (
        f"Edge TPU: {found['mapped']} of {found['operators']} operators can be mapped, {where}; run edgetpu_compiler on model.tflite",
        f"Edge TPU: {megabytes:.1f} MB of parameters, which {room} into its {CACHE_BYTES >> 20} MB",
    )
