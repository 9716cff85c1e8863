"""int8 in Core ML: activations as MIL's ``quantize`` and ``dequantize`` (iOS 17, macOS 14), weights as compressed constants (iOS 16); neither needs a Mac.

In an int8 build the graph holds pairs QuantizeLinear, DequantizeLinear (see `edgekit.converters.quantization`), which become the two operators. In any other build a
model that came with such nodes is written as arithmetic: integers are carried as int32 here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.coreml._context import MilContext, op
from edgekit.converters.quantization import Compression, Quantization
from edgekit.errors import BuildError

__all__ = ["compress_float_weights", "compress_integer_weights", "compressed", "tiny_scale"]

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
_SMALLEST_SCALE = 2.0**-14
"""float16's smallest normal number: below it a scale loses bits."""
_OFF_GRID = 0.15
"""Weights of an int8 layer lie within this share of a step of their grid: float16 rounds 127 steps by up to 127 / 2^11 = 0.06. Others do not, all of them, by chance."""
_FEWEST = 32
_SPARSE = 0.25
"""Share of zeros from which a mask of one bit a weight saves space, with room to spare: it costs a sixteenth of float16."""
_ZERO = 1e-12


def _integers(node: Node, graph: Graph) -> str:
    """Quantised values are int8, uint8, int16 or uint16 (int32 where they are restored)"""
    tensor = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    dtype = graph.types[tensor].dtype
    allowed = (*_LIMITS, "int32") if node.op == "DequantizeLinear" else tuple(_LIMITS)
    return "" if dtype in allowed else f"tensor {tensor!r} is {dtype}"


def _float_side(node: Node, graph: Graph) -> str:
    """The other side is float32"""
    tensor = node.inputs[0] if node.op == "QuantizeLinear" else node.outputs[0]
    dtype = graph.types[tensor].dtype
    return "" if dtype == "float32" else f"tensor {tensor!r} is {dtype}"


def _pair(quantize: Node, graph: Graph) -> Node | None:
    """The DequantizeLinear that alone restores a quantised tensor with the same 8-bit scale; None when it is no such pair."""
    consumers = graph.consumers(quantize.outputs[0])
    if len(consumers) != 1 or consumers[0].op != "DequantizeLinear" or graph.types[quantize.outputs[0]].dtype not in ("int8", "uint8"):
        return None
    other = consumers[0]
    same = all(np.array_equal(graph.constants[a], graph.constants[b]) for a, b in zip(quantize.inputs[1:], other.inputs[1:], strict=True))
    return other if same and graph.constants[quantize.inputs[1]].size == 1 else None


@op("QuantizeLinear", parameters=(1, 2), constraints=(_integers, _float_side))
def quantize(node: Node, ctx: MilContext) -> None:
    """Divide, round half to even, add the zero point, saturate; one operator in an int8 build."""
    if ctx.int8 and _pair(node, ctx.graph) is not None:
        scale, zero = _scalars(node, ctx)
        dtype = ctx.dtype(node.outputs[0])
        ctx.put(node, "quantize", input=ctx.read(node.inputs[0]), scale=scale, zero_point=zero, output_dtype=dtype)
        return
    low, high = _LIMITS[ctx.dtype(node.outputs[0])]
    steps = ctx.mid(node, "round", x=ctx.mid(node, "real_div", x=ctx.tensor(node.inputs[0]), y=_parameter(node, ctx, 1)))
    moved = ctx.mid(node, "add", x=steps, y=_parameter(node, ctx, 2))
    bounded = ctx.mid(node, "clip", x=moved, alpha=np.float32(low), beta=np.float32(high))
    ctx.put(node, "cast", x=bounded, dtype="int32")


@op("DequantizeLinear", parameters=(1, 2), constraints=(_integers, _float_side))
def dequantize(node: Node, ctx: MilContext) -> None:
    """Subtract the zero point, multiply by the scale; one operator in an int8 build."""
    before = next((other for other in ctx.graph.nodes if node.inputs[0] in other.outputs), None)
    if ctx.int8 and before is not None and before.op == "QuantizeLinear" and _pair(before, ctx.graph) is not None:
        scale, zero = _scalars(node, ctx)
        ctx.put(node, "dequantize", input=ctx.values[node.inputs[0]], scale=scale, zero_point=zero)
        return
    levels = ctx.mid(node, "cast", x=ctx.tensor(node.inputs[0]), dtype="fp32")
    centred = ctx.mid(node, "sub", x=levels, y=_parameter(node, ctx, 2))
    ctx.put(node, "mul", x=centred, y=_parameter(node, ctx, 1))


def _scalars(node: Node, ctx: MilContext) -> tuple[np.generic, np.generic]:
    """Scale and zero point of a pair as MIL takes them."""
    tensor = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    zero = ctx.constant(node.input(2)) if node.input(2) else None
    scale = ctx.constant(node.inputs[1])
    assert scale is not None  # the constraint says so
    levels = np.zeros((), ctx.dtype(tensor)) if zero is None else zero
    return np.float32(scale.reshape(-1)[0]), levels.reshape(-1)[0]


def _parameter(node: Node, ctx: MilContext, index: int) -> np.ndarray | np.generic:
    """Scale or zero point in float32, shaped to meet the tensor."""
    value = ctx.constant(node.input(index)) if node.input(index) else None
    if value is None or value.size == 1:
        return np.float32(0.0 if value is None else value.reshape(-1)[0])
    shape = ctx.graph.types[node.inputs[0]].shape
    axis = node.attrs.get("axis", 1) % len(shape)
    block = node.attrs.get("block_size", 0)
    if block:
        return np.repeat(value, block, axis)[tuple(slice(size) for size in shape)].astype(np.float32)
    return value.reshape([-1 if each == axis else 1 for each in range(len(shape))]).astype(np.float32)


def tiny_scale(operation: Any) -> bool:
    """True for a MIL ``quantize`` or ``dequantize`` whose scale float16 would round away; such a pair stays in float32."""
    return operation.op_type in ("quantize", "dequantize") and bool(np.any(np.abs(operation.scale.val) < _SMALLEST_SCALE))


# --- weights -------------------------------------------------------------------------------------------------------------------------------


def compressed(
    ct: Any, model: Any, quantization: Quantization | None, quiet: Callable[[], contextlib.AbstractContextManager[None]]
) -> tuple[Any, dict[str, object]]:
    """The converted model with its weights stored as the job asks, and what to report; unchanged where nothing was asked.

    Args:
        ct: coremltools.
        model: as converted.
        quantization: of the job.
        quiet: keeps coremltools' progress bars off stderr.

    Raises:
        BuildError: coremltools cannot store them.
    """
    if quantization is None:
        return model, {}
    with quiet():
        try:
            if quantization.compression is not None:
                model, stored = compress_float_weights(ct, model, quantization.compression)
                return model, {"compressed_weights": stored}
            model, stored = compress_integer_weights(ct, model)
        except Exception as exc:
            raise BuildError(
                "Core ML", f"coremltools cannot store the weights: {exc}", "", "build with --precision fp16 and without --compress"
            ) from exc
    return model, {"int8_weights": stored, "int8_activations": quantization.scheme.activations}


def compress_integer_weights(ct: Any, model: Any) -> tuple[Any, int]:
    """Store weights that lie on an int8 grid as int8 with a scale per channel; all others stay.

    coremltools finds the scales itself, from the largest weight of each channel, which is 127 steps: the same that the graph was quantised with.

    Returns:
        the model and how many constants were stored.
    """
    optimize = ct.optimize.coreml
    metadata = optimize.get_weights_metadata(model, weight_threshold=_FEWEST)
    settings = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0)
    chosen = {name: settings for name, entry in metadata.items() if _on_grid(np.asarray(entry.val), _channel_axis(entry))}
    if not chosen:
        return model, 0
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=None, op_name_configs=chosen)), len(chosen)


def compress_float_weights(ct: Any, model: Any, wanted: Compression) -> tuple[Any, int]:
    """Store weights that were palettised as a table and indices, or pruned ones as a mask and values; all others stay.

    Returns:
        the model and how many constants were stored.
    """
    optimize = ct.optimize.coreml
    metadata = optimize.get_weights_metadata(model, weight_threshold=_FEWEST)
    values = {name: np.asarray(entry.val) for name, entry in metadata.items() if np.asarray(entry.val).ndim > 1}
    if wanted.kind == "palette":
        chosen = [name for name, array in values.items() if np.unique(array).size <= 2**wanted.bits and array.size > 2 * 2**wanted.bits]
        settings = optimize.OpPalettizerConfig(mode="unique", weight_threshold=0)
        write = optimize.palettize_weights
    else:
        chosen = [name for name, array in values.items() if np.count_nonzero(array == 0) >= _SPARSE * array.size]
        settings = optimize.OpThresholdPrunerConfig(threshold=_ZERO, minimum_sparsity_percentile=_SPARSE, weight_threshold=0)
        write = optimize.prune_weights
    if not chosen:
        return model, 0
    return write(model, optimize.OptimizationConfig(global_config=None, op_name_configs=dict.fromkeys(chosen, settings))), len(chosen)


def _channel_axis(entry: Any) -> int:
    """Axis of the output channels, as coremltools chooses it."""
    kinds = {child.op_type for child in entry.child_ops}
    return 1 if "conv_transpose" in kinds else -1 if "matmul" in kinds else 0


def _on_grid(values: np.ndarray, axis: int) -> bool:
    if values.ndim < 2 or values.dtype.kind != "f" or math.prod(values.shape) < _FEWEST:
        return False
    wide = np.moveaxis(values.astype(np.float64), axis, 0).reshape(values.shape[axis], -1)
    scale = np.abs(wide).max(axis=1, keepdims=True) / 127
    steps = wide / np.where(scale > 0, scale, 1.0)
    return bool(np.all(np.abs(steps - np.rint(steps)) < _OFF_GRID))
