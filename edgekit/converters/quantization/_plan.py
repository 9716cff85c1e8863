"""What of a graph is quantised when a set of layers stays in float. Pure: reads the model, decides, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekit.converters._ranges import Range
from edgekit.converters.quantization._bias import CorrectedBias, corrected_bias
from edgekit.converters.quantization._calibration import Calibration
from edgekit.converters.quantization._expand import expanded_from
from edgekit.converters.quantization._index import ModelIndex, static_shapes
from edgekit.converters.quantization._scheme import Scheme

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ConstantForm",
    "Layer",
    "Plan",
    "Quantiser",
    "WeightUse",
    "activation_quantiser",
    "channel_axis",
    "make_plan",
    "weight_quantiser",
]

_PER_VALUE = 16
"""Multiplications that cost as much as one value that is read and written by an operator without any: rough, it decides only what is kept in float first."""

_TINY_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Quantiser:
    """``q = clip(round(x / scale) + zero_point)``; scale and zero point are scalars, or vectors along ``axis``.

    Attributes:
        scale: float32.
        zero_point: in the stored dtype.
        axis: of the channels; None for one scale.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Quantised values of a constant."""
        limits = np.iinfo(self.zero_point.dtype)
        levels = np.rint(values.astype(np.float64) / self._along(self.scale, values.ndim)) + self._along(self.zero_point, values.ndim)
        return np.asarray(np.clip(levels, limits.min, limits.max).astype(self.zero_point.dtype))

    def restore(self, levels: np.ndarray) -> np.ndarray:
        """What quantised values stand for, float32."""
        centred = levels.astype(np.int32) - self._along(self.zero_point.astype(np.int32), levels.ndim)
        return np.asarray(centred.astype(np.float32) * self._along(self.scale, levels.ndim))

    def _along(self, vector: np.ndarray, rank: int) -> np.ndarray:
        return vector if self.axis is None else vector.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])


class ConstantForm(Protocol):
    """How a constant is stored and what that stands for."""

    def apply(self, values: np.ndarray, /) -> np.ndarray:
        """Stored values."""
        ...

    def restore(self, levels: np.ndarray, /) -> np.ndarray:
        """What they stand for, float32."""
        ...


@dataclass(frozen=True)
class WeightUse:
    """A constant that one node reads and that is another one when its layer is quantised: in 8 bits, or a corrected bias."""

    node: str
    position: int
    quantiser: ConstantForm


@dataclass(frozen=True)
class Layer:
    """What is quantised or kept in float together: an operator, its fused activation, and what only moves its result.

    Attributes:
        name: of the first node.
        op: its operator.
        nodes: names of all.
        products: multiplications with weights of one run; 0 where the shapes are open or nothing is multiplied.
        values: numbers that its nodes write; 0 where the shapes are open.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    products: int = 0
    values: int = 0

    @property
    def work(self) -> float:
        """A rough measure of what int8 saves here, never zero."""
        return self.products + _PER_VALUE * self.values + 1.0


@dataclass
class Plan:
    """Everything that could be quantised, before any layer is kept in float.

    Attributes:
        scheme: for whom.
        layers: in the order of the graph.
        layer_of: index of a node's layer.
        quantisers: per activation tensor.
        weights: constants to quantise, by layer index.
        biases: ``(node, position, activation tensor, weights' position)`` of biases that get the product of both scales, by layer index.
        hidden: tensors between an operator and its fused activation; never quantised.
        skipped: per weighted node that cannot be quantised, why.
    """

    scheme: Scheme
    layers: list[Layer] = field(default_factory=list)
    layer_of: dict[str, int] = field(default_factory=dict)
    quantisers: dict[str, Quantiser] = field(default_factory=dict)
    weights: dict[int, list[WeightUse]] = field(default_factory=dict)
    biases: dict[int, list[tuple[str, int, str, int]]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)

    def reads_quantised(self, tensor: str, producer: str | None, reader: str | None) -> tuple[int, ...]:
        """Layers of which any one, when quantised, makes ``reader`` (None: the graph's output) see the quantised form of a tensor."""
        if tensor in self.hidden or tensor not in self.quantisers:
            return ()
        found = []
        if reader is not None and reader in self.layer_of:
            found.append(self.layer_of[reader])
        if self.scheme.everything and producer is not None and producer in self.layer_of:
            found.append(self.layer_of[producer])
        return tuple(dict.fromkeys(found))


def make_plan(model: onnx.ModelProto, calibration: Calibration, scheme: Scheme, method: str) -> Plan:
    """Decide what is quantised and with which scales.

    Args:
        model: a prepared float32 model, see `prepare`.
        calibration: ranges of its tensors; may be empty where the scheme quantises weights only.
        scheme: the engine's form.
        method: one of `METHODS`.
    """
    index = ModelIndex(model)
    plan = Plan(scheme)
    sizes = static_shapes(model)
    for node in model.graph.node:
        _assign(node, index, plan, calibration, sizes)
    if scheme.activations:
        _choose_ranges(model, index, plan, calibration, method)
    for node in model.graph.node:
        if node.name in plan.layer_of:
            _constants_of(node, index, plan, calibration)
    return plan


# --- layers --------------------------------------------------------------------------------------------------------------------------------


def _assign(node: onnx.NodeProto, index: ModelIndex, plan: Plan, calibration: Calibration, sizes: dict[str, tuple[int, ...]]) -> None:
    """Give a node its layer: one of its own, that of the operator it is fused into, that of what it moves, or none."""
    scheme = plan.scheme
    source = index.producer(node.input[0]) if node.input and node.input[0] else None
    before = plan.layer_of.get(source.name) if source is not None else None
    if node.domain not in ("", "ai.onnx"):
        return
    fusable = source is not None and (source.op_type in scheme.weighted or source.op_type == "Add")
    if scheme.everything and node.op_type in scheme.fused and before is not None and fusable and index.only_reader(node.input[0]):
        plan.hidden.add(node.input[0])
        _join(node, before, plan, sizes)
    elif node.op_type in scheme.weighted:
        if reason := _weighted_refusal(node, index, scheme, calibration):
            plan.skipped[node.name] = reason
        else:
            _start(node, plan, sizes, _products(node, index, sizes))
    elif scheme.everything and node.op_type in scheme.passing:
        if before is not None:
            _join(node, before, plan, sizes)
    elif (
        node.op_type in scheme.others
        and all(_takes(name, index, calibration) for name in _data(node))
        and _ranged(node.output[0], calibration)
    ):
        same = _gate_layer(node, index, plan)
        if same is None:
            _start(node, plan, sizes)
        else:
            _join(node, same, plan, sizes)


def _start(node: onnx.NodeProto, plan: Plan, sizes: dict[str, tuple[int, ...]], products: int = 0) -> None:
    plan.layer_of[node.name] = len(plan.layers)
    plan.layers.append(Layer(node.name, node.op_type, (node.name,), products, _values(node, sizes)))


def _join(node: onnx.NodeProto, layer: int, plan: Plan, sizes: dict[str, tuple[int, ...]]) -> None:
    plan.layer_of[node.name] = layer
    old = plan.layers[layer]
    plan.layers[layer] = replace(old, nodes=(*old.nodes, node.name), values=old.values + _values(node, sizes))


def _values(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> int:
    return math.prod(sizes.get(node.output[0], (0,)))


def _gate_layer(node: onnx.NodeProto, index: ModelIndex, plan: Plan) -> int | None:
    """The layer of a part of the same gate that comes before: what `expand` makes of one operator is one layer."""
    stem = expanded_from(node.name)
    for name in node.input:
        source = index.producer(name)
        if stem and source is not None and source.name in plan.layer_of and expanded_from(source.name) == stem:
            return plan.layer_of[source.name]
    return None


def _data(node: onnx.NodeProto) -> list[str]:
    """Inputs that carry values; axes, shapes, bounds and factors of a resize are not among them."""
    if node.op_type in ("Add", "Sub", "Mul", "Concat", "Max", "Min", "PRelu", "MatMul"):
        return [name for name in node.input if name]
    return [name for name in node.input[:1] if name]


def _ranged(tensor: str, calibration: Calibration) -> bool:
    return tensor in calibration.ranges


def _takes(tensor: str, index: ModelIndex, calibration: Calibration) -> bool:
    value = index.constants.get(tensor)
    return (value.dtype == np.float32 and bool(np.all(np.isfinite(value)))) if value is not None else _ranged(tensor, calibration)


def _weighted_refusal(node: onnx.NodeProto, index: ModelIndex, scheme: Scheme, calibration: Calibration) -> str:
    """Why a product stays in float whatever the ladder says, "" when it need not."""
    operands = list(node.input[:2])
    for name in operands:
        value = index.constants.get(name)
        if value is not None and (value.dtype != np.float32 or not np.all(np.isfinite(value))):
            return f"constant {name!r} is {value.dtype} or not finite"
        if value is None and scheme.activations and not _ranged(name, calibration):
            return f"no range for {name!r}"
    if not any(name in index.constants for name in operands) and (not scheme.activations or node.op_type != "MatMul"):
        return "its weights are computed"
    if scheme.activations and operands[0] in index.constants and node.op_type != "MatMul":
        return "its data is constant"
    if node.op_type == "Gemm" and any(each.name in ("alpha", "beta") and each.f != 1 for each in node.attribute):
        return "alpha or beta is not 1"
    if scheme.everything and not _ranged(node.output[0], calibration):
        return f"no range for its output {node.output[0]!r}"
    return ""


def _products(node: onnx.NodeProto, index: ModelIndex, sizes: dict[str, tuple[int, ...]]) -> int:
    weights = index.constants.get(node.input[1])
    shape = sizes.get(node.output[0]) if node.op_type != "ConvTranspose" else sizes.get(node.input[0])
    if weights is None or shape is None or not shape:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(np.prod(shape) * np.prod(weights.shape[1:]))
    return int(np.prod(shape) * weights.shape[0 if node.op_type == "MatMul" or not _flag(node, "transB") else 1])


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(each.name == name and each.i for each in node.attribute)


# --- scales --------------------------------------------------------------------------------------------------------------------------------


def _choose_ranges(model: onnx.ModelProto, index: ModelIndex, plan: Plan, calibration: Calibration, method: str) -> None:
    """One quantiser per activation that a quantised layer touches; tensors that share a scale share a range."""
    ranges: dict[str, Range] = {}
    for tensor in _touched(model, index, plan):
        if tensor not in ranges and _ranged(tensor, calibration):
            ranges[tensor] = calibration.ranges[tensor].of(method)
    groups = _Groups()
    given: dict[str, Range] = {}
    for node in model.graph.node:
        if node.name not in plan.layer_of:
            continue
        fixed = plan.scheme.fixed_range(node.op_type)
        if fixed is not None:
            ranges[node.output[0]] = given[node.output[0]] = fixed
        if node.op_type in plan.scheme.passing:
            groups.join([name for name in (node.input[0], *node.output) if name in ranges])
    merged: dict[str, Range] = {}
    for tensor, (low, high) in ranges.items():
        root = groups.root(tensor)
        known = merged.get(root, (low, high))
        merged[root] = (min(low, known[0]), max(high, known[1]))
    merged |= {groups.root(tensor): fixed for tensor, fixed in given.items()}
    for tensor in ranges:
        plan.quantisers[tensor] = activation_quantiser(merged[groups.root(tensor)], plan.scheme)


def _touched(model: onnx.ModelProto, index: ModelIndex, plan: Plan) -> Iterator[str]:
    for node in model.graph.node:
        if node.name not in plan.layer_of:
            continue
        names = _data(node) if node.op_type not in plan.scheme.weighted else list(node.input[:2])
        yield from (name for name in names if name not in index.constants and name not in plan.hidden)
        if plan.scheme.everything:
            yield from (name for name in node.output if name and name not in plan.hidden)


class _Groups:
    """Union-find over tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, names: list[str]) -> None:
        for other in names[1:]:
            self._parent[self.root(other)] = self.root(names[0])


def activation_quantiser(limits: Range, scheme: Scheme) -> Quantiser:
    """Scale and zero point of an activation; zero is always exact, and the scale is never zero."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    dtype = np.dtype(scheme.activation)
    if scheme.symmetric:
        scale = np.float32(max(max(-low, high) / 127, _TINY_SCALE))
        return Quantiser(np.asarray(scale), np.asarray(0, dtype))
    scale = np.float32(max((high - low) / 255, _TINY_SCALE))
    start = np.iinfo(dtype).min
    return Quantiser(np.asarray(scale), np.asarray(np.clip(round(start - low / float(scale)), start, start + 255), dtype))


def weight_quantiser(weights: np.ndarray, axis: int | None, bits: int = 8) -> Quantiser:
    """Symmetric int8, per channel where ``axis`` is given; a channel of zeros gets the scale 1."""
    others = tuple(each for each in range(weights.ndim) if each != axis)
    largest = np.abs(weights.astype(np.float64)).max(axis=others if axis is not None else None, initial=0.0)
    scale = np.where(largest > 0, np.maximum(largest / (2 ** (bits - 1) - 1), _TINY_SCALE), 1.0).astype(np.float32)
    return Quantiser(np.asarray(scale), np.zeros(np.shape(scale), np.int8), axis)


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Axis of the output channels in a product's weights (input 1)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return rank - 2 if node.op_type == "Gemm" and _flag(node, "transB") else rank - 1


def _corrections(node: onnx.NodeProto, index: ModelIndex, uses: list[WeightUse], calibration: Calibration) -> list[WeightUse]:
    """The bias that makes up for rounded weights, where the means are known."""
    means = calibration.means.get(node.name)
    weights = next((use.quantiser for use in uses if use.node == node.name and use.position == 1), None)
    if means is None or weights is None:
        return []
    value = index.constants[node.input[1]]
    error = weights.restore(weights.apply(value)).astype(np.float64) - value
    return [WeightUse(node.name, 2, CorrectedBias(corrected_bias(node, error, index.constants[node.input[2]], means)))]


def _constants_of(node: onnx.NodeProto, index: ModelIndex, plan: Plan, calibration: Calibration) -> None:
    """The constants of a quantised node: weights, constant operands, bias."""
    scheme, layer = plan.scheme, plan.layer_of[node.name]
    uses = plan.weights.setdefault(layer, [])
    if node.op_type in scheme.weighted:
        for position in (1, 0):
            value = index.constants.get(node.input[position])
            if value is None:
                continue
            per_channel = (
                position == 1
                and value.ndim > 1
                and node.op_type not in scheme.per_tensor
                and not (node.op_type == "MatMul" and value.ndim > 2)
            )
            axis = channel_axis(node, value.ndim) if per_channel else None
            uses.append(WeightUse(node.name, position, weight_quantiser(value, axis, scheme.weight_bits)))
        uses += _corrections(node, index, uses, calibration)
        if scheme.bias == "int32" and len(node.input) > 2 and node.input[2] in index.constants and node.op_type in ("Conv", "Gemm"):
            plan.biases.setdefault(layer, []).append((node.name, 2, node.input[0], 1))
    elif node.op_type in scheme.others:
        for position, name in enumerate(node.input):
            value = index.constants.get(name)
            if value is not None and value.dtype == np.float32 and name in _data(node):
                low, high = float(value.min(initial=0)), float(value.max(initial=0))
                uses.append(WeightUse(node.name, position, activation_quantiser((low, high), scheme)))
