"""Operators that an engine has no int8 kernel for, as several that it has; with the ranges of the tensors between, which follow from those that were measured.

- ``HardSigmoid(x)``: ``clip(6 a x + 6 b, 0, 6) / 6``, whose parts have kernels.
- ``HardSwish(x)``: ``x * (clip(x + 3, 0, 6) / 6)``, because neither the Edge TPU nor the CPU delegate has the int8 kernel that the interpreter has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._ranges import Range
from edgekit.converters.quantization._calibration import METHODS, Calibration, TensorRange
from edgekit.converters.quantization._index import ModelIndex

if TYPE_CHECKING:
    import onnx

__all__ = ["expand", "expanded_from"]

_PART = "/part"


def expand(model: onnx.ModelProto, calibration: Calibration, operators: frozenset[str]) -> tuple[onnx.ModelProto, Calibration]:
    """The model without some operators, and its calibration with the tensors that this adds; the same objects where there is nothing to do.

    Args:
        model: prepared; not changed.
        calibration: of its tensors.
        operators: among HardSigmoid and HardSwish.
    """
    import onnx

    if not any(node.op_type in operators and node.input[0] in calibration.ranges for node in model.graph.node):
        return model, calibration
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index, ranges = ModelIndex(copy), dict(calibration.ranges)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if node.op_type in operators and node.input[0] in ranges:
            nodes += _gate(node, index, ranges)
        else:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True), replace(calibration, ranges=ranges)


def expanded_from(name: str) -> str:
    """Name of the operator that a node is a part of, "" for one that `expand` did not make."""
    return name.removesuffix(_PART).rpartition("/")[0] if name.endswith(_PART) else ""


def _gate(node: onnx.NodeProto, index: ModelIndex, ranges: dict[str, TensorRange]) -> list[onnx.NodeProto]:
    from onnx import helper

    given = {each.name: each.f for each in node.attribute}
    swish = node.op_type == "HardSwish"
    slope, offset = (1.0, 3.0) if swish else (6 * given.get("alpha", 0.2), 6 * given.get("beta", 0.5))
    x, stem = node.input[0], node.name
    made: list[onnx.NodeProto] = []

    def step(op: str, inputs: list[str], label: str, limits: TensorRange | None, output: str = "") -> str:
        name = output or f"{stem}/{label}"
        made.append(helper.make_node(op, inputs, [name], f"{stem}/{label}{_PART}"))
        if limits is not None:
            ranges[name] = limits
        return name

    def constant(label: str, value: float) -> str:
        return index.add_constant(f"{stem}/{label}", np.asarray(value, np.float32))

    scaled = x if slope == 1 else step("Mul", [x, constant("slope", slope)], "scaled", _linear(ranges[x], slope, 0))
    moved = step("Add", [scaled, constant("offset", offset)], "moved", _linear(ranges[x], slope, offset))
    cut = step("Clip", [moved, constant("zero", 0.0), constant("six", 6.0)], "cut", _fixed((0.0, 6.0)))
    sixth = constant("sixth", 1 / 6)
    if not swish:
        step("Mul", [cut, sixth], "gate", _fixed((0.0, 1.0)), node.output[0])
        return made
    gate = step("Mul", [cut, sixth], "gate", _fixed((0.0, 1.0)))
    step("Mul", [x, gate], "product", None, node.output[0])
    return made


def _linear(limits: TensorRange, slope: float, offset: float) -> TensorRange:
    def moved(found: Range) -> Range:
        ends = (found[0] * slope + offset, found[1] * slope + offset)
        return min(ends), max(ends)

    return TensorRange(*(moved(limits.of(method)) for method in METHODS))


def _fixed(limits: Range) -> TensorRange:
    return TensorRange(*(limits for _ in METHODS))
