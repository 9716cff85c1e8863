"""Constant folding of our own: what stands in when a simplifier was rejected, and what follows every lowering.

Front ends need shape arithmetic to be numbers::

    x ─ Shape ─ Gather ─ Concat ─┐            x ──────────────── Reshape ─ y
    x ──────────────────────── Reshape ─ y    [1, 168] (constant) ─┘
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["evaluate_nodes", "fold_constants"]

_LARGEST_ELEMENTS = 1 << 20  # a folded value beyond this grows the file more than it saves work
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
# Quantisation is for the target to see: weights that are stored small on purpose stay small.
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CEILING, _IR_CEILING = 26, 13  # newest opset and IR version that ONNX Runtime 1.31 loads (measured)


def fold_constants(model: onnx.ModelProto, *, outputs: bool = False) -> onnx.ModelProto:
    """``common::fold_constants``: evaluate nodes whose inputs are all known, ``Shape`` and ``Size`` of static tensors included.

    Nodes are evaluated by ONNX Runtime, or by onnx's reference implementation where that cannot; a node that neither can evaluate stays.
    Works on the main graph; quantised weights stay as they are.

    Args:
        model: with shapes that are as static as they will be; changed in place and returned.
        outputs: fold nodes that produce outputs of the graph, too; these outputs become initializers.
    """
    stuck: set[str] = set()
    while _fold_once(model, outputs, stuck):  # a folded Reshape target makes more shapes static, which lets later shape arithmetic fold
        pass
    return model


def evaluate_nodes(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, np.ndarray], outputs: Iterable[str], opset: int
) -> dict[str, np.ndarray] | None:
    """Values of ``outputs`` after running nodes on constants.

    Args:
        nodes: in topological order, of ai.onnx.
        inputs: every tensor that they read and do not produce.
        outputs: tensors to return.
        opset: ai.onnx opset of the nodes.

    Returns:
        arrays by name; None when neither ONNX Runtime nor the reference implementation runs the nodes.
    """
    from onnx import helper, numpy_helper

    names = list(outputs)
    graph = helper.make_graph(
        list(nodes),
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in inputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_CEILING)
    values = (_run_runtime(model, names) if opset <= _CEILING else None) or _run_reference(model, names)
    if values is None or not all(isinstance(value, np.ndarray | np.generic) for value in values):
        return None
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _run_runtime(model: onnx.ModelProto, names: Sequence[str]) -> Sequence[np.ndarray] | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found: Sequence[np.ndarray] = session.run(list(names), {})
    except Exception:  # noqa: BLE001 - its errors have no common base; the reference implementation is asked next
        return None
    return found


def _run_reference(model: onnx.ModelProto, names: Sequence[str]) -> Sequence[np.ndarray] | None:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            found: Sequence[np.ndarray] = ReferenceEvaluator(model).run(list(names), {})
    except Exception:  # noqa: BLE001 - the reference implementation raises anything; the nodes then stay as they are
        return None
    return found


def _fold_once(model: onnx.ModelProto, outputs: bool, stuck: set[str]) -> bool:
    """One walk over the graph; True when something was folded. ``stuck`` remembers, by first output, what could not be evaluated."""
    import onnx
    from onnx import numpy_helper

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = _static_shapes(inferred)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fixed = set() if outputs else {value.name for value in model.graph.output}
    chosen: list[onnx.NodeProto] = []
    values: dict[str, np.ndarray] = {}
    empty = _empty_tensors(inferred)
    known |= empty
    available = set(known)
    for node in model.graph.node:
        if fixed & set(node.output) or node.output[0] in stuck:
            continue
        if (shape := _shape_value(node, shapes)) is not None:
            values[node.output[0]] = shape
        elif all(name in empty for name in node.output):
            values.update({name: empty[name] for name in node.output})
        elif _is_constant(node, available, shapes):
            chosen.append(node)
        else:
            continue
        available.update(name for name in node.output if name)
    found = _evaluate(chosen, known | values, _opset(model), stuck)
    values.update(found)
    if not values:
        return False
    _replace(model, values, outputs)
    return True


def _replace(model: onnx.ModelProto, values: Mapping[str, np.ndarray], outputs: bool) -> None:
    """Constants in the place of the nodes that produce them."""
    from onnx import helper, numpy_helper

    kept = [node for node in model.graph.node if not any(name in values for name in node.output)]
    used = _reads(kept) | ({value.name for value in model.graph.output} if outputs else set())
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items() if name in used)
    for output in model.graph.output:
        if output.name in values:  # shape inference does not look at initializers for the type of an output
            array = values[output.name]
            output.type.CopyFrom(helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))


def _reads(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found |= _reads(graph.node) | {value.name for value in graph.output}
    return found


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    found = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found


def _empty_tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Inputs and results without elements: their value is known whatever they are computed from."""
    from onnx import helper

    return {
        value.name: np.empty([dim.dim_value for dim in tensor.shape.dim], helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        for value in (*model.graph.input, *model.graph.value_info)
        if (tensor := value.type.tensor_type).HasField("shape")
        and tensor.elem_type
        and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
        and any(dim.dim_value == 0 for dim in tensor.shape.dim)
    }


def _shape_value(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
    """Value of ``Shape`` and ``Size`` of a tensor whose shape is known."""
    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx") or node.input[0] not in shapes:
        return None
    shape = shapes[node.input[0]]
    if node.op_type == "Size":
        return np.asarray(math.prod(shape), np.int64)
    bounds = {item.name: item.i for item in node.attribute}
    return np.asarray(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)


def _is_constant(node: onnx.NodeProto, available: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or node.op_type in _KEPT:
        return False
    if any(item.HasField("g") for item in node.attribute) or not all(name in available for name in node.input if name):
        return False
    return all(math.prod(shapes.get(name, (0,))) <= _LARGEST_ELEMENTS for name in node.output)


def _evaluate(nodes: Sequence[onnx.NodeProto], known: Mapping[str, np.ndarray], opset: int, stuck: set[str]) -> dict[str, np.ndarray]:
    """All nodes in one run; one by one when that fails, so that one bad node costs only what hangs on it."""
    if not nodes:
        return {}
    produced = [name for node in nodes for name in node.output if name]
    reads = {name for node in nodes for name in node.input if name} - set(produced)
    whole = evaluate_nodes(nodes, {name: known[name] for name in sorted(reads)}, produced, opset)
    if whole is not None:
        return whole
    found: dict[str, np.ndarray] = {}
    for node in nodes:
        inputs = {name: found[name] if name in found else known.get(name) for name in node.input if name}
        ready = {name: value for name, value in inputs.items() if value is not None}
        names = [name for name in node.output if name]
        values = evaluate_nodes([node], ready, names, opset) if len(ready) == len(inputs) else None
        if values is None:
            stuck.add(node.output[0])
        else:
            found.update(values)
    return found
