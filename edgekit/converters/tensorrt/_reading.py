"""A model in the form that TensorRT parses: its dtypes, the device's opset, and operators that NVIDIA's parser takes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.converters._folding import fold_constants
from edgekit.converters._graph import Graph, Node
from edgekit.converters._lowering import dtypes_of, lower_model, lower_until, name_nodes, retyped
from edgekit.converters._opset import opset_of, to_opset
from edgekit.errors import BuildError, EnvironmentMissingError, UnsupportedOperatorsError
from edgekit.runtime._tensorrt_build import find_package, parse_model
from edgekit.runtime._tensorrt_plan import Recipe

if TYPE_CHECKING:
    import onnx

__all__ = ["RTX_LACKS", "Readable", "readable"]

RTX_LACKS = {"NonMaxSuppression": "TensorRT-RTX 1.7.1 parses it and has no implementation to build (getSupportedFormats, measured 2026-11)"}
"""Operators that TensorRT has and TensorRT-RTX only reads."""

RecipeFor = Callable[["onnx.ModelProto", bytes], Recipe]

_TARGET = "TensorRT"
_TIMEOUT_S = 600.0
_CONTROL = ("If", "Loop", "Scan")
# TensorRT has none of these (NvInfer DataType: float, half, bfloat16, int64, int32, int8, uint8, bool and narrower floats and integers).
_CARRIERS = {"float64": "float32", "int16": "int32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}
# Only moved and cast at the borders, not computed with (onnx-tensorrt docs/operators.md): carried where the parser refuses the model otherwise.
_WEAK = {"uint8": "int32", "int8": "int32"}


@dataclass(frozen=True)
class Readable:
    """What TensorRT reads.

    Attributes:
        model: at an opset that the device reads.
        carriers: dtypes of the source that others stand for, inputs and outputs included.
        expanded: operators of the source that were lowered.
    """

    model: onnx.ModelProto
    carriers: Mapping[str, str]
    expanded: tuple[str, ...]


def readable(model: onnx.ModelProto, ceiling: int, recipe_for: RecipeFor, lacking: Mapping[str, str] | None = None) -> Readable:
    """The model as the device reads it; what TensorRT-RTX's parser refuses, where that is installed, is lowered.

    Args:
        model: normalised.
        ceiling: newest opset of the device's TensorRT.
        recipe_for: the recipe of a model and its bytes.
        lacking: operators that the device's engine has not although the parser reads them, and why.

    Raises:
        UnsupportedOperatorsError: nodes of the source that stand in the way.
        BuildError: the parser refused the model as a whole.
    """
    import onnx

    named = onnx.ModelProto()
    named.CopyFrom(model)
    name_nodes(named)  # the parser's complaints are told apart by name
    kinds = dtypes_of(named)
    carriers = {old: new for old, new in _CARRIERS.items() if old in kinds}
    if "int8" in kinds and not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in named.graph.node):
        carriers["int8"] = (
            "int32"  # its builder knows int8 between Q and DQ only ("Quantized constant … is only allowed before DQ", RTX 1.7.1)
        )
    weak = {old: new for old, new in _WEAK.items() if old in kinds}
    if refused := [
        (node.name, node.op_type, opset_of(named), lacking[node.op_type])
        for node in named.graph.node
        if lacking and node.op_type in lacking
    ]:
        raise UnsupportedOperatorsError(_TARGET, refused, "build for onnxruntime")
    try:
        return _lowered(named, ceiling, recipe_for, carriers)
    except (UnsupportedOperatorsError, BuildError) as exc:
        if not weak:
            raise
        first = exc
    try:
        return _lowered(named, ceiling, recipe_for, carriers | weak)
    except (UnsupportedOperatorsError, BuildError):
        raise first from None  # about the model as it is, not as it was retried


def _lowered(model: onnx.ModelProto, ceiling: int, recipe_for: RecipeFor, carriers: Mapping[str, str]) -> Readable:
    package = _parser()
    typed, composites = retyped(model, carriers, _TARGET) if carriers else (model, ())
    first = lower_model(typed, _weak_point, static=False)
    if refused := [node for node in first.refused if node[1] not in _CONTROL]:
        raise UnsupportedOperatorsError(_TARGET, refused)

    def attempt(made: onnx.ModelProto) -> onnx.ModelProto:
        plain = to_opset(made, ceiling)
        if opset_of(made) > ceiling:
            fold_constants(plain)  # bodies of newer operators compute their axes
        if package:
            _parse(package, plain, recipe_for)
        return plain

    result, lowered = lower_until(first.model, attempt)
    return Readable(result, carriers, tuple(sorted({*composites, *first.expanded, *lowered.expanded})))


def _weak_point(node: Node, graph: Graph) -> str:
    """What TensorRT-RTX 1.7.1 refuses without saying which node it means, or parses and then gives no engine or another answer for.

    - Scatters that combine (``Unsupported reduction type``).
    - Loops and branches (``Myelin … CHECK(is_tensor())`` in ``test_linear_attention_prefill_with_past_expanded``); those that cannot be unrolled
      are left to it.
    - uint8 zero points, which it reads as int8 and only warns of, and scales that are computed (``test_dynamicquantizelinear_expanded``).
    - Pools with gaps in the window, which its builder never came to an end with (``test_MaxPool2d_stride_padding_dilation``); TensorRT's
      own list says that dilations must be ones (onnx-tensorrt docs/operators.md).
    """
    mode = node.attrs.get("reduction", "none")
    if node.op == "ScatterElements" and mode != "none":
        return f"reduction {mode}"
    if node.op == "MaxPool" and any(step != 1 for step in node.attrs.get("dilations", ())):
        return "dilations other than 1"
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return _weak_quantisation(node, graph)
    return "control flow" if node.op in _CONTROL else ""


def _weak_quantisation(node: Node, graph: Graph) -> str:
    quantised = node.outputs[0] if node.op == "QuantizeLinear" else node.input(0)
    if graph.types[quantised].dtype == "uint8":
        return "uint8 (TensorRT quantises to int8)"
    return "" if node.input(1) in graph.constants else "a computed scale"


def _parser() -> str:
    """Package of the parser that can be asked here, "" when there is none."""
    try:
        return find_package("tensorrt-rtx")
    except EnvironmentMissingError:
        return ""


def _parse(package: str, model: onnx.ModelProto, recipe_for: RecipeFor) -> None:
    data = model.SerializeToString(deterministic=True)
    recipe = recipe_for(model, data)
    with tempfile.TemporaryDirectory(prefix="edgekit-tensorrt-") as scratch:
        (Path(scratch) / recipe.onnx).write_bytes(data)
        path = Path(scratch) / "recipe.json"
        path.write_bytes(msgspec.json.encode(recipe))
        report = parse_model(package, path, timeout_s=_TIMEOUT_S)
    if report.shape_inputs:
        raise UnsupportedOperatorsError(_TARGET, list(_deciding(model, report.shape_inputs)))


def _deciding(model: onnx.ModelProto, inputs: Sequence[str]) -> Iterator[tuple[str, str, int, str]]:
    """Nodes that read an input whose values decide shapes."""
    for node in model.graph.node:
        for name in node.input:
            if name in inputs:
                reason = f"the values of input {name!r} decide shapes, for which an engine would have to know their range"
                yield node.name, node.op_type, opset_of(model), reason
