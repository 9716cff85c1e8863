"""Constant folding of our own: what stands in when a simplifier was rejected.

Front ends need shape arithmetic to be numbers::

    x ─ Shape ─ Gather ─ Concat ─┐            x ──────────────── Reshape ─ y
    x ──────────────────────── Reshape ─ y    [1, 168] (constant) ─┘
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_constants"]

_LARGEST_ELEMENTS = 1 << 20  # a folded value beyond this grows the file more than it saves work
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """``common::fold_constants``: evaluate nodes whose inputs are all known, ``Shape`` and ``Size`` of static tensors included.

    Nodes are evaluated by onnx's reference implementation; one that it cannot evaluate stays. Works on the main graph.

    Args:
        model: with shapes that are as static as they will be; changed in place and returned.
    """
    while _fold_once(model):  # a folded Reshape target makes more shapes static, which lets later shape arithmetic fold
        pass
    return model


def _fold_once(model: onnx.ModelProto) -> bool:
    """One walk over the graph; True when something was folded."""
    import onnx
    from onnx import numpy_helper

    shapes = _static_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    kept, folded = [], {}
    for node in model.graph.node:
        values = None if outputs & set(node.output) else _evaluate(node, known, shapes, model)
        if values is None:
            kept.append(node)
            continue
        known.update(values)
        folded.update(values)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in folded.items() if name in used)
    return bool(folded)


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    found = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found


def _evaluate(
    node: onnx.NodeProto, known: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], model: onnx.ModelProto
) -> dict[str, np.ndarray] | None:
    """Outputs of a node by name; None when it is not constant or cannot be evaluated here."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or any(item.HasField("g") for item in node.attribute):
        return None
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        shape = shapes[node.input[0]]
        if node.op_type == "Size":
            return {node.output[0]: np.asarray(math.prod(shape), np.int64)}
        bounds = {item.name: item.i for item in node.attribute}
        return {node.output[0]: np.asarray(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)}
    if not all(name in known for name in node.input if name):
        return None
    if any(math.prod(shapes.get(name, (0,))) > _LARGEST_ELEMENTS for name in node.output):
        return None
    return _reference(node, known, model)


def _reference(node: onnx.NodeProto, known: dict[str, np.ndarray], model: onnx.ModelProto) -> dict[str, np.ndarray] | None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    inputs = {name: known[name] for name in node.input if name}
    names = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
    )
    try:
        single = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        values = ReferenceEvaluator(single).run(None, inputs)
    except Exception:  # noqa: BLE001 - the reference implementation raises anything; the node then stays as it is
        return None
    if not all(isinstance(value, np.ndarray | np.generic) for value in values):
        return None
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
