"""Quantised constants back to float, for front ends whose toolchain stores them itself: the values lie on the int8 grid, so it finds the same scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization._index import ModelIndex

if TYPE_CHECKING:
    import onnx

__all__ = ["with_float_constants"]


def with_float_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each DequantizeLinear of a constant (one scale, or one along an axis) is the constant that it gives.

    Shapes are inferred again.
    """
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = ModelIndex(copy)
    kept = []
    for node in copy.graph.node:
        value = _restored(node, index)
        if value is None:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            copy.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    used = {name for node in kept for name in ModelIndex.reads(node)} | index.outputs
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensors)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _restored(node: onnx.NodeProto, index: ModelIndex) -> np.ndarray | None:
    if node.op_type != "DequantizeLinear" or any(each.name == "block_size" and each.i for each in node.attribute):
        return None
    levels, scale = index.constants.get(node.input[0]), index.constants.get(node.input[1])
    if levels is None or scale is None or node.output[0] in index.outputs:
        return None
    zero = index.constants.get(node.input[2]) if len(node.input) > 2 else np.zeros((), levels.dtype)
    if zero is None:
        return None
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    shape = [-1 if each == axis % max(levels.ndim, 1) else 1 for each in range(levels.ndim)] if scale.ndim else []
    centred = (levels.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.ndim else [])).astype(np.float32)
    return np.asarray(centred * scale.reshape(shape), np.float32)
