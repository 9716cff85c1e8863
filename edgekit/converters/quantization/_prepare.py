"""Rewrites of the float model before it is calibrated, so that fewer tensors need a range: they are exact but for float32 rounding.

In this order:

- ``quantization::name_nodes``: every node gets a unique name, so that a layer can be spoken of;
- ``quantization::multiply_by_reciprocal``: ``x / c`` to ``x * (1 / c)``, because no engine divides in int8;
- ``quantization::fold_affine``: ``Conv(x) * a + b`` with constants per channel becomes the convolution's own weights and bias;
- ``quantization::add_bias``: a convolution without a bias gets one of zeros, so that `corrected_bias` has where to go;
- ``quantization::fuse_hard_swish``: ``x * clip(x + 3, 0, 6) * (1 / 6)`` and ``x * HardSigmoid(x)`` to ``HardSwish(x)`` (from opset 14 on).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters.quantization._index import ModelIndex

if TYPE_CHECKING:
    import onnx

__all__ = ["prepare"]

_HARD_SWISH_OPSET = 14
_SIXTH = 1 / 6
_NEAR = 1e-6  # a sixth in float32 is within 5e-9 of the real one


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The rewritten copy; shapes inferred again.

    Args:
        model: a normalised float32 model; not changed.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _constants_to_initializers(copy)
    _name_nodes(copy)
    if any(_opset(copy) < _HARD_SWISH_OPSET and node.op_type in ("HardSigmoid", "Clip") for node in copy.graph.node):
        copy = _to_hard_swish_opset(copy)
    for step in (_reciprocals, _fold_affine, _add_bias, _fuse_hard_swish):
        while step(copy):
            pass
    _drop_unused(copy)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _to_hard_swish_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """13 to 14 is exact for every operator without training; an older model, or one that ONNX's own converter refuses, stays as it is."""
    import onnx

    if _opset(model) != _HARD_SWISH_OPSET - 1:
        return model
    try:
        return onnx.version_converter.convert_version(model, _HARD_SWISH_OPSET)
    except (onnx.version_converter.ConvertError, RuntimeError):
        return model


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    import onnx

    kept = []
    for node in model.graph.node:
        value = next((each.t for each in node.attribute if each.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _name_nodes(model: onnx.ModelProto) -> None:
    taken: set[str] = set()
    for node in model.graph.node:
        base = node.name or next((name for name in node.output if name), node.op_type)
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name


def _reciprocals(model: onnx.ModelProto) -> bool:
    index = ModelIndex(model)
    for node in model.graph.node:
        if node.op_type != "Div" or node.input[0] in index.constants:
            continue
        value = index.constants.get(node.input[1])
        if value is None or value.dtype != np.float32 or not np.all(value):
            continue
        with np.errstate(over="ignore"):
            inverse = np.asarray(1 / value.astype(np.float64)).astype(np.float32)
        if np.all(np.isfinite(inverse)):
            node.op_type = "Mul"
            node.input[1] = index.add_constant(f"{node.input[1]}_reciprocal", inverse)
            return True
    return False


def _fold_affine(model: onnx.ModelProto) -> bool:
    """``Conv -> Mul(constant)`` and ``Conv -> Add(constant)`` where nothing else reads between, one at a time."""
    index = ModelIndex(model)
    for node in model.graph.node:
        if node.op_type not in ("Mul", "Add"):
            continue
        for side in (0, 1):
            conv, value = index.producer(node.input[side]), index.constants.get(node.input[1 - side])
            if (
                conv is None
                or value is None
                or conv.op_type != "Conv"
                or value.dtype != np.float32
                or not index.only_reader(node.input[side])
            ):
                continue
            factors = _per_channel(value, index, conv)
            if factors is not None and _fold_into(index, conv, node.op_type, factors):
                conv.output[0] = node.output[0]
                model.graph.node.remove(node)
                return True
    return False


def _per_channel(value: np.ndarray, index: ModelIndex, conv: onnx.NodeProto) -> np.ndarray | None:
    """A constant as one number per output channel of a convolution; None when it is none."""
    weights = index.constants.get(conv.input[1])
    if weights is None:
        return None
    channels, rank = weights.shape[0], weights.ndim
    if value.size == 1 and value.ndim <= rank:
        return np.full(channels, value.reshape(-1)[0], np.float32)
    shape = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1) if len(shape) == rank and shape == (1, channels) + (1,) * (rank - 2) else None


def _fold_into(index: ModelIndex, conv: onnx.NodeProto, op: str, values: np.ndarray) -> bool:
    weights = index.constants[conv.input[1]]
    has_bias = len(conv.input) > 2 and bool(conv.input[2])
    bias = index.constants.get(conv.input[2]) if has_bias else np.zeros(weights.shape[0], np.float32)
    if bias is None:
        return False
    if op == "Mul":
        scaled = (weights.astype(np.float64) * values.reshape((-1,) + (1,) * (weights.ndim - 1))).astype(np.float32)
        conv.input[1] = index.add_constant(f"{conv.name}/weights", scaled)
        bias = bias * values
    else:
        bias = bias + values
    name = index.add_constant(f"{conv.name}/bias", bias.astype(np.float32))
    if has_bias:
        conv.input[2] = name
    else:
        conv.input.append(name)
    return True


def _add_bias(model: onnx.ModelProto) -> bool:
    index = ModelIndex(model)
    for node in model.graph.node:
        weights = index.constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weights is not None and weights.dtype == np.float32 and (len(node.input) < 3 or not node.input[2]):
            name = index.add_constant(f"{node.name}/bias", np.zeros(weights.shape[0], np.float32))
            del node.input[2:]
            node.input.append(name)
    return False


def _fuse_hard_swish(model: onnx.ModelProto) -> bool:
    import onnx

    if _opset(model) < _HARD_SWISH_OPSET:
        return False
    index = ModelIndex(model)
    for position, node in enumerate(model.graph.node):
        found = _hard_swish(node, index)
        if found is not None:
            source, inner = found
            fused = onnx.helper.make_node("HardSwish", [source], list(node.output), name=node.name)
            model.graph.node.remove(node)
            model.graph.node.insert(position, fused)
            for other in inner:
                model.graph.node.remove(other)
            return True
    return False


def _hard_swish(last: onnx.NodeProto, index: ModelIndex) -> tuple[str, list[onnx.NodeProto]] | None:
    """Input and inner nodes of a hard-swish that ends at a Mul, or None."""
    if last.op_type != "Mul":
        return None
    product, scale = index.split_scalar(last)
    if scale is None:  # x * HardSigmoid(x)
        for x, gate in ((last.input[0], last.input[1]), (last.input[1], last.input[0])):
            node = index.producer(gate)
            if (
                node is not None
                and node.op_type == "HardSigmoid"
                and node.input[0] == x
                and index.only_reader(gate)
                and _default_gate(node)
            ):
                return x, [node]
        return None
    inner = index.producer(product)
    if abs(scale - _SIXTH) > _NEAR or inner is None or inner.op_type != "Mul" or not index.only_reader(product):
        return None
    for x, gate in ((inner.input[0], inner.input[1]), (inner.input[1], inner.input[0])):
        clip = index.producer(gate)
        if clip is None or clip.op_type != "Clip" or not index.only_reader(gate) or index.clip_bounds(clip) != (0.0, 6.0):
            continue
        add = index.producer(clip.input[0])
        if add is None or add.op_type != "Add" or not index.only_reader(clip.input[0]):
            continue
        before, offset = index.split_scalar(add)
        if before == x and offset == 3.0:
            return x, [add, clip, inner]
    return None


def _default_gate(node: onnx.NodeProto) -> bool:
    """HardSigmoid with alpha 1/6 and beta 1/2, as HardSwish is defined."""
    values = {each.name: each.f for each in node.attribute}
    return bool(abs(values.get("alpha", 0.2) - _SIXTH) < _NEAR and values.get("beta", 0.5) == 0.5)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in ModelIndex.reads(node)} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
