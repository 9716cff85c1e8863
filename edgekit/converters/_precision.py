"""float16 as part of the graph: weights and compute in float16, Casts at the borders, float32 where float16 would be wrong.

Precision that is written in the graph is the only form that ONNX Runtime, TensorRT 8.5 to 11 and TensorRT-RTX all take. What stays in
float32, and why, is decided node by node by `_reason_to_keep` and reported.

IEEE 754-2008 binary16: largest finite value 65504, smallest normal value 2**-14, smallest subnormal value 2**-24.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import GoldenSample
from edgekit.converters._ranges import FLOAT16_FLAG, FLOAT16_MAX, Range, activation_ranges, largest_magnitude
from edgekit.converters.processing import POST_PREFIX
from edgekit.errors import BuildError

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT16_SCALES", "FLOAT16_TINY", "KEPT_OPERATORS", "lower_to_fp16"]

FLOAT16_TINY = 2.0**-14
"""Below this magnitude float16 loses bits with every halving; a constant down there (an epsilon) would change or vanish."""

FLOAT16_SCALES = 19
"""First opset whose QuantizeLinear and DequantizeLinear take float16 scales."""

_COORDINATES = "coordinates and sizes need float32"
_RANDOM = "its element type is an attribute"
_SQUARES = "sums squares or exponentials inside"
_SUBGRAPH = "has subgraphs"
# Operators that stay in float32 whatever their values are.
KEPT_OPERATORS = {
    **dict.fromkeys(("Range", "NonMaxSuppression", "RoiAlign", "MaxRoiPool", "GridSample", "AffineGrid", "Upsample"), _COORDINATES),
    **dict.fromkeys(("CumSum", "CumProd"), "adds up along an axis"),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Multinomial", "Bernoulli", "EyeLike", "ConstantOfShape", "Constant"), _RANDOM),
    **dict.fromkeys(("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "LpNormalization", "LpPool"), _SQUARES),
    **dict.fromkeys(("GlobalLpPool", "LRN", "MeanVarianceNormalization", "DFT", "STFT", "Det"), _SQUARES),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _SUBGRAPH),
    "DynamicQuantizeLinear": "its scale is float32",
}
# Inputs that stay float32 although their operator is lowered: Resize's roi (scales are float32 by the schema), Dropout's ratio.
_KEPT_PARAMETERS = {("Resize", "T2"), ("Dropout", "T1")}
_SCALED = {"QuantizeLinear", "DequantizeLinear"}
# What comes after "value + epsilon": small values are still small here, and a float16 zero would become infinity.
_CARRIES_SMALL = {"Sqrt", "Log", "Reciprocal", "Div", "Pow"}
# Integers above this are not all representable in float16 (11 significant bits).
_EXACT_INTEGER = 2048.0


@dataclass
class _Lowering:
    """State of one pass over a graph. Tensors keep their names in float32; the float16 twin of ``x`` is ``x_fp16``."""

    dtypes: dict[str, int]
    constants: dict[str, np.ndarray]
    ranges: Mapping[str, Range]
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    lowered: dict[str, str] = field(default_factory=dict)
    only_lowered: set[str] = field(default_factory=set)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    casts: int = 0

    def twin(self, name: str) -> str:
        """A new name for the float16 form of a tensor."""
        candidate = f"{name}_fp16"
        while candidate in self.taken:
            candidate += "_"
        self.taken.add(candidate)
        return candidate


def lower_to_fp16(model: onnx.ModelProto, samples: Sequence[GoldenSample]) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Write a float32 model in float16; graph inputs and outputs keep their dtypes.

    Kept in float32: operators of `KEPT_OPERATORS`, nodes that touch a value or weight above 65504, nodes with a scalar constant below
    `FLOAT16_TINY` and what divides by or takes the root of their result, nodes whose schema does not allow float16. Bounds of Clip
    beyond 65504 are cut to it, which changes nothing for values that fit. What was put behind the model stays in float32 too, and is not listed.

    Args:
        model: float32 ONNX with known tensor types; not changed.
        samples: inputs for the range scan; without them only weights are judged, and the report says so.

    Returns:
        the lowered model, equal for equal arguments, and a JSON-able report: ``nodes``, ``lowered``, ``kept`` (name, operator, reason),
        ``flagged`` (tensors whose magnitude passed 512, where float16 steps by 0.5 or more), ``casts``, ``weights_to_zero``,
        ``scan_samples``.

    Raises:
        BuildError: the result is not a valid model.
    """
    import onnx

    source = _prepared(model)
    ranges = activation_ranges(source, samples)
    state = _Lowering(_dtypes(source), _constants(source), ranges, _names(source))
    kept: list[dict[str, str]] = []
    lowered = 0
    for node in source.graph.node:
        if node.name.startswith(POST_PREFIX):
            _emit_kept(node, state)
            continue
        slots = _slots(node, state, _opset(source, node.domain))
        reason = _reason_to_keep(node, slots, state)
        if slots and not reason:
            lowered += 1
            _emit_lowered(node, slots, state)
        else:
            if reason:
                kept.append({"name": node.name, "operator": node.op_type, "reason": reason})
            _emit_kept(node, state)
    for output in source.graph.output:
        _need_float32(output.name, state)
    result = _assemble(source, state)
    try:
        result = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True)
        onnx.checker.check_model(result)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BuildError("lowering to float16", f"the result is not valid: {exc}", "", "build with --precision fp32") from exc
    return result, _report(source, state, lowered, kept, len(samples))


def _report(source: onnx.ModelProto, state: _Lowering, lowered: int, kept: list[dict[str, str]], samples: int) -> dict[str, object]:
    flagged = [
        {"tensor": name, "max_abs": round(largest_magnitude(limits), 3)}
        for name, limits in state.ranges.items()
        if largest_magnitude(limits) > FLOAT16_FLAG and np.isfinite(largest_magnitude(limits))
    ]
    vanished = sum(int(np.count_nonzero((state.constants[name] != 0) & (low == 0))) for name, low in state.weights.items())
    return {
        "nodes": len(source.graph.node),
        "lowered": lowered,
        "kept": kept,
        "kept_by_operator": dict(sorted(Counter(entry["operator"] for entry in kept).items())),
        "flagged": flagged,
        "casts": state.casts,
        "weights_to_zero": vanished,
        "scan_samples": samples,
    }


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with inferred types, and with Constant nodes moved to initializers so that weights are found in one place."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in copy.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        copy.graph.initializer.append(tensor)
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in rest:  # so that the report and a device's recipe can point at every node
        node.name = node.name or next(iter(node.output), "")
    del copy.graph.node[:]
    copy.graph.node.extend(rest)
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every top-level tensor (``onnx.TensorProto.FLOAT`` …); other kinds of value are left out."""
    graph = model.graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.HasField("tensor_type"):
            found[value.name] = value.type.tensor_type.elem_type
    return found


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers that no caller can replace."""
    from onnx import numpy_helper

    inputs = {value.name for value in model.graph.input}
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name not in inputs}


def _names(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}


def _opset(model: onnx.ModelProto, domain: str) -> int:
    same = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in same), 1)


@dataclass(frozen=True)
class _Slots:
    """Positions of a node's float32 inputs and outputs that its schema lets be float16."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _slots(node: onnx.NodeProto, state: _Lowering, opset: int) -> _Slots | None:
    """What can be lowered of a node; None when the node has no float32 tensor at all. Empty slots: the schema forbids float16."""
    import onnx

    floats = [name for name in (*node.input, *node.output) if state.dtypes.get(name) == onnx.TensorProto.FLOAT]
    if not floats:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
    except onnx.defs.SchemaError:
        return _Slots((), ())
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if "tensor(float16)" in constraint.allowed_type_strs and (node.op_type, constraint.type_param_str) not in _KEPT_PARAMETERS
    }

    def positions(names: Sequence[str], formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> Iterator[int]:
        for index, name in enumerate(names):
            formal = formals[min(index, len(formals) - 1)]  # a variadic parameter is the last one
            if state.dtypes.get(name) == onnx.TensorProto.FLOAT and formal.type_str in allowed:
                yield index

    if node.op_type == "Cast":
        # A cast from float32 reads what there is; only one to float32 has a choice.
        to_float = any(a.name == "to" and a.i == onnx.TensorProto.FLOAT for a in node.attribute)
        return _Slots((), (0,)) if to_float else None
    return _Slots(tuple(positions(node.input, schema.inputs)), tuple(positions(node.output, schema.outputs)))


def _reason_to_keep(node: onnx.NodeProto, slots: _Slots | None, state: _Lowering) -> str:
    """Why a node stays in float32, "" when it need not."""
    if slots is None:
        return ""
    if node.op_type in KEPT_OPERATORS:
        return KEPT_OPERATORS[node.op_type]
    if not slots.inputs and not slots.outputs:
        return "float16 is not among its types"
    touched = [node.input[i] for i in slots.inputs] + [node.output[i] for i in slots.outputs]
    for name in touched:
        if name in state.constants:
            if reason := _constant_reason(node, name, state):
                return reason
        elif reason := _range_reason(node, name, state):
            return reason
    if node.op_type in _CARRIES_SMALL and any(name in state.small for name in node.input):
        state.small.update(node.output)
        return "works on a value that an epsilon keeps from zero"
    return ""


def _constant_reason(node: onnx.NodeProto, name: str, state: _Lowering) -> str:
    magnitudes = np.abs(state.constants[name])
    finite = magnitudes[np.isfinite(magnitudes)]
    if finite.size and finite.max() > FLOAT16_MAX and node.op_type != "Clip":
        return f"the constant {name!r} reaches {finite.max():.4g}, above {FLOAT16_MAX:g}"
    if node.op_type in _SCALED and finite.size and finite.min() < FLOAT16_TINY:
        return f"its scale {name!r} goes down to {finite.min():.4g}, below float16's normal range"
    if finite.size == 1 and 0 < finite.max() < FLOAT16_TINY and not _crosses_zero(node, state):
        state.small.update(node.output)
        return f"the constant {name!r} is {finite.max():.4g}, below float16's normal range"
    return ""


def _crosses_zero(node: onnx.NodeProto, state: _Lowering) -> bool:
    """A sum that takes both signs is not kept from zero by its constant; there it is a small bias, not an epsilon."""
    low, high = state.ranges.get(node.output[0], (0.0, 0.0))
    return node.op_type in ("Add", "Sub") and low < 0 < high


def _range_reason(node: onnx.NodeProto, name: str, state: _Lowering) -> str:
    if name not in state.ranges:
        return ""
    magnitude = largest_magnitude(state.ranges[name])
    if magnitude > FLOAT16_MAX:
        return f"{name!r} reached {magnitude:.4g}, above {FLOAT16_MAX:g}"
    if 0 < magnitude < FLOAT16_TINY:
        return f"{name!r} never passed {magnitude:.4g}, below float16's normal range"
    if node.op_type == "Cast" and magnitude > _EXACT_INTEGER:
        return f"{name!r} reached {magnitude:.4g}; float16 holds every integer only up to {_EXACT_INTEGER:g}"
    return ""


def _emit_lowered(node: onnx.NodeProto, slots: _Slots, state: _Lowering) -> None:
    import onnx

    copy = onnx.NodeProto.FromString(node.SerializeToString())
    for index, name in enumerate(node.input):
        if index in slots.inputs:
            copy.input[index] = _need_float16(name, node.op_type == "Clip", state)
        elif name:
            _need_float32(name, state)
    for index in slots.outputs:
        name = node.output[index]
        copy.output[index] = state.lowered[name] = state.twin(name)
        state.only_lowered.add(name)
    if node.op_type == "Cast":
        next(a for a in copy.attribute if a.name == "to").i = onnx.TensorProto.FLOAT16
    state.nodes.append(copy)


def _emit_kept(node: onnx.NodeProto, state: _Lowering) -> None:
    for name in (*node.input, *_captured(node)):
        _need_float32(name, state)
    state.nodes.append(node)


def _need_float16(name: str, cut: bool, state: _Lowering) -> str:
    """The float16 twin of a float32 tensor; made on first use."""
    import onnx

    if name in state.lowered:
        return state.lowered[name]
    twin = state.lowered[name] = state.twin(name)
    if name in state.constants:
        values = state.constants[name]
        if cut:
            values = np.where(np.isfinite(values), np.clip(values, -FLOAT16_MAX, FLOAT16_MAX), values)
        state.weights[name] = np.asarray(values).astype(np.float16)
    else:
        state.nodes.append(onnx.helper.make_node("Cast", [name], [twin], name=f"{twin}/cast", to=onnx.TensorProto.FLOAT16))
        state.casts += 1
    return twin


def _need_float32(name: str, state: _Lowering) -> None:
    """Make sure that a tensor exists in float32 under its own name."""
    import onnx

    if name in state.only_lowered:
        state.only_lowered.discard(name)
        cast = onnx.helper.make_node("Cast", [state.lowered[name]], [name], name=f"{name}/cast", to=onnx.TensorProto.FLOAT)
        state.nodes.append(cast)
        state.casts += 1


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's subgraphs may take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (output.name for output in graph.output)


def _assemble(source: onnx.ModelProto, state: _Lowering) -> onnx.ModelProto:
    from onnx import ModelProto, numpy_helper

    result = ModelProto()
    result.CopyFrom(source)
    graph = result.graph
    del graph.node[:]
    graph.node.extend(state.nodes)
    used = {name for node in state.nodes for name in (*node.input, *_captured(node))}
    used |= {value.name for value in (*graph.input, *graph.output)}
    kept = [tensor for tensor in source.graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(low, state.lowered[name]) for name, low in state.weights.items())
    del graph.value_info[:]
    return result
