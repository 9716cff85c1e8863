"""Reading an ONNX model with OpenVINO: what it does not take, or takes wrongly, is lowered or named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters._openvino_rules import OWN_RULES, known_bad, may_be_bad
from edgekit.errors import BuildError, UnsupportedOperatorsError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    import onnx

    from edgekit.converters._lowering import Lowered

__all__ = ["read_for_openvino"]

_TARGET = "target openvino"
_NO_RULE = re.compile(r"No conversion rule found for operations: (.*)")
_FAILED = re.compile(r"^-- (\S+) with a message:\n(.*?)(?=^-- |^Summary:|\Z)", re.MULTILINE | re.DOTALL)
_NODE = re.compile(r"ONNX node '<Node\((\w+)\): ([^>]*)>'")


def read_for_openvino(model: onnx.ModelProto) -> tuple[Any, Lowered]:
    """OpenVINO's model, and what had to be lowered for it.

    Raises:
        UnsupportedOperatorsError: nodes that neither OpenVINO takes nor we can lower.
        BuildError: OpenVINO refused the model without naming a node.
    """
    from edgekit.converters._lowering import Lowered, lower_model, lower_until

    adjusted = _adjusted(model)
    before: tuple[str, ...] = ()
    if may_be_bad(node.op_type for node in model.graph.node):
        first = lower_model(adjusted, known_bad, static=False, rules=OWN_RULES)
        if first.refused:
            raise UnsupportedOperatorsError(_TARGET, first.refused, "build for onnxruntime, or replace these nodes")
        adjusted, before = first.model, first.expanded
    read, lowered = lower_until(adjusted, _attempt)
    _keep_inputs(read, lowered.model)
    return read, Lowered(lowered.model, (), tuple(sorted({*before, *lowered.expanded})))


def _attempt(model: onnx.ModelProto) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(model.SerializeToString(deterministic=True))
    except Exception as exc:  # OpenVINO's own errors are bare RuntimeErrors
        refused = list(_refused(str(exc), model))
        if refused:
            raise UnsupportedOperatorsError(_TARGET, refused, "build for onnxruntime, or replace these nodes") from exc
        raise BuildError(_TARGET, f"OpenVINO cannot convert the model: {one_line(exc)}", "", "try onnxruntime") from exc


def _refused(message: str, model: onnx.ModelProto) -> Iterator[tuple[str, str, int, str]]:
    """Nodes of the main graph that a message is about: name, operator, opset and reason."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    missing = {part.strip().rsplit("-", 1)[0] for found in _NO_RULE.findall(message) for part in found.split(",")}
    named = {inner.name for node in model.graph.node for inner in _within(node) if inner.name}
    failed = {}
    for operator, text in _FAILED.findall(message):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        place = _NODE.search(text)
        name = place.group(2) if place and place.group(2) in named else ""
        failed[(operator.rsplit("-", 1)[0], name)] = lines[-1][:200] if lines else "OpenVINO gives no reason"
    for index, node in enumerate(model.graph.node):
        for inner in _within(node):
            where = "" if inner is node else f"it holds {inner.op_type}: "
            reason = "OpenVINO has no conversion rule for it" if inner.op_type in missing else ""
            reason = reason or failed.get((inner.op_type, inner.name), "") or failed.get((inner.op_type, ""), "")
            if reason:
                yield node.name or f"{node.op_type}_{index}", node.op_type, opset, where + reason
                break


def _within(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A node and those of its inner graphs."""
    yield node
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _within(inner)


def _keep_inputs(read: Any, model: onnx.ModelProto) -> None:
    """Give back what OpenVINO drops: the name of an input that is an output too (``Identity``), and inputs that nothing reads."""
    import openvino
    from onnx import helper

    names = {value.name for value in model.graph.input}
    nameless = [place for place in read.inputs if not names & set(place.get_names())]
    for value in model.graph.input:
        if any(value.name in place.get_names() for place in read.inputs):
            continue
        if any(value.name in node.input for node in model.graph.node) and nameless:
            place = nameless.pop(0)
        else:
            tensor = value.type.tensor_type
            sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
            added = openvino.op.Parameter(openvino.Type(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), openvino.PartialShape(sizes))
            added.set_friendly_name(value.name)
            read.add_parameters([added])
            place = added.output(0)
        place.get_tensor().add_names({value.name})


def _adjusted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Boxes that overlap by exactly the threshold stay in ONNX and go in OpenVINO 2026.4.1 (``test_nonmaxsuppression_iou_threshold_boundary``).

    So its threshold is the next larger float32.
    """
    import onnx
    from onnx import numpy_helper

    names = {node.input[3] for node in model.graph.node if node.op_type == "NonMaxSuppression" and len(node.input) > 3}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in names]
    if not tensors:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "NonMaxSuppression" and len(node.input) > 3 and node.input[3] in names:
            node.input[3] = f"{node.input[3]}/above"
    for tensor in tensors:
        above = np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf))
        copy.graph.initializer.append(numpy_helper.from_array(above, f"{tensor.name}/above"))
    return copy
