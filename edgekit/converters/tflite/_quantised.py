"""QuantizeLinear and DequantizeLinear: as arithmetic, or, in an int8 build, as the fake quantisation from which TensorFlow's converter makes int8 kernels.

In an int8 build the graph holds pairs QuantizeLinear, DequantizeLinear with one scale (see `edgekit.converters.quantization`). Such a pair becomes
``fake_quant_with_min_max_args`` with exactly the scale's range. The converter takes ranges from there, so it needs no calibration of its own; weights lie on their
int8 grid already, and it finds their scales again to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters._graph import Graph, Node
from edgekit.converters.tflite._context import Context
from edgekit.converters.tflite._rules import constant_inputs, operator

__all__ = ["fake_quantised", "paired"]

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def _stored(node: Node, graph: Graph) -> str:
    """Quantised values are int8, uint8, int16 or uint16 (int32 where they are restored)."""
    tensor = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    dtype = graph.types[tensor].dtype
    allowed = (*_LIMITS, "int32") if node.op == "DequantizeLinear" else tuple(_LIMITS)
    return "" if dtype in allowed else f"tensor {tensor!r} is {dtype}"


def _float_side(node: Node, graph: Graph) -> str:
    """The other side is float32."""
    tensor = node.inputs[0] if node.op == "QuantizeLinear" else node.outputs[0]
    dtype = graph.types[tensor].dtype
    return "" if dtype == "float32" else f"tensor {tensor!r} is {dtype}"


def paired(node: Node, graph: Graph) -> Node | None:
    """The QuantizeLinear whose result a DequantizeLinear alone restores with the same 8-bit scale; None when it is no such pair."""
    before = next((other for other in graph.nodes if node.inputs[0] in other.outputs), None)
    if before is None or before.op != "QuantizeLinear" or len(graph.consumers(node.inputs[0])) != 1:
        return None
    if any(spec.name == node.inputs[0] for spec in graph.outputs) or graph.types[node.inputs[0]].dtype not in ("int8", "uint8"):
        return None
    same = all(np.array_equal(graph.constants[a], graph.constants[b]) for a, b in zip(before.inputs[1:], node.inputs[1:], strict=True))
    return before if same and graph.constants[node.inputs[1]].size == 1 else None


def fake_quantised(ctx: Context, x: Any, scale: np.ndarray, zero: np.ndarray) -> Any:
    """``x`` rounded to a scale's 256 steps, in float."""
    low, high = _LIMITS[zero.dtype.name]
    step, centre = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    return ctx.tf.quantization.fake_quant_with_min_max_args(x, (low - centre) * step, (high - centre) * step, 8, narrow_range=False)


@operator("QuantizeLinear", rules=(_stored, _float_side, constant_inputs(1, 2)))
def quantize(node: Node, ctx: Context) -> None:
    """Divide, round half to even, add the zero point, saturate; in an int8 build the pair is written where it is restored."""
    consumers = ctx.graph.consumers(node.outputs[0])
    if ctx.int8 and len(consumers) == 1 and consumers[0].op == "DequantizeLinear" and paired(consumers[0], ctx.graph) is not None:
        return
    tf, logical = ctx.tf, ctx.logical(node.outputs[0])
    order = ctx.order(node.inputs[0])
    low, high = _LIMITS[logical]
    steps = tf.round(ctx.get(node.inputs[0], order) / _parameter(node, ctx, 1, order)) + _parameter(node, ctx, 2, order)
    bounded = tf.clip_by_value(steps, np.float32(low), np.float32(high))
    wide = tf.cast(bounded, "int32")
    ctx.put(node.outputs[0], wide if ctx.dtype(node.outputs[0]) == "int32" else tf.cast(wide, logical), order)


@operator("DequantizeLinear", rules=(_stored, _float_side, constant_inputs(1, 2)))
def dequantize(node: Node, ctx: Context) -> None:
    """Subtract the zero point, multiply by the scale; in an int8 build a pair becomes fake quantisation."""
    before = paired(node, ctx.graph) if ctx.int8 else None
    if before is not None:
        order = ctx.order(before.inputs[0])
        scale, zero = (ctx.constant(name) for name in (*before.inputs[1:], "")[:2])
        assert scale is not None
        ctx.put(node.outputs[0], fake_quantised(ctx, ctx.get(before.inputs[0], order), scale, _zero(zero, ctx, before)), order)
        return
    order = ctx.order(node.inputs[0])
    levels = ctx.tf.cast(ctx.get(node.inputs[0], order), "float32")
    ctx.put(node.outputs[0], (levels - _parameter(node, ctx, 2, order)) * _parameter(node, ctx, 1, order), order)


def _zero(zero: np.ndarray | None, ctx: Context, node: Node) -> np.ndarray:
    return np.zeros((), ctx.logical(node.outputs[0])) if zero is None else zero


def _parameter(node: Node, ctx: Context, index: int, order: tuple[int, ...]) -> Any:
    """Scale or zero point in float32, shaped to meet the tensor in ``order``: one value, one per position of an axis, or one per block along it."""
    value = ctx.constant(node.input(index))
    if value is None or value.size == 1:
        return np.float32(0.0 if value is None else value.reshape(-1)[0])
    shape = ctx.shape(node.inputs[0])
    axis = node.attrs.get("axis", 1) % len(shape)
    block = node.attrs.get("block_size", 0)
    if block:
        wide = np.repeat(value, block, axis)[tuple(slice(size) for size in shape)]
    else:
        wide = value.reshape([-1 if each == axis else 1 for each in range(len(shape))])
    return ctx.literal(wide.astype(np.float32).transpose(order))
