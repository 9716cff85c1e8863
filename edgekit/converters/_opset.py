"""Write a model at an older opset: the newest one that a device's engine reads.

ONNX's own version converter upgrades well and downgrades poorly, so it only lifts models to the floor here. Downgrades are made of three
steps: functions that the older opset does not know are replaced by their bodies, nodes whose form changed are rewritten by the lowerings of
``_opset_lowerings``, and every node is then checked against the older schema: operator, attributes, number of inputs and element types. What does not
fit is refused with its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit.converters._opset_lowerings import LOWERINGS, Scope
from edgekit.errors import BuildError, ModelError, UnsupportedOperatorsError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET_FLOOR", "ir_version_for", "to_opset"]

OPSET_FLOOR = 13
"""Older opsets lack float16 and per-channel Q/DQ; every supported engine reads 13."""

_DEFAULT = ("", "ai.onnx")
# Functions whose meaning changed with a version, not their form: the body of the newer one says what is meant.
_CHANGED_MEANING = {"GroupNormalization"}


def ir_version_for(opset: int) -> int:
    """IR version of the ONNX release that brought an ai.onnx opset; engines of that era read it."""
    from onnx import helper

    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def to_opset(model: onnx.ModelProto, ceiling: int) -> onnx.ModelProto:
    """Write ``model`` at an ai.onnx opset between `OPSET_FLOOR` and ``ceiling``; its own opset where that fits.

    Args:
        model: ONNX with known tensor types; not changed.
        ceiling: newest opset that the engine reads (17, 20 and 25 for TensorRT 8.5/8.6, 10.x and 11.5).

    Returns:
        a checked model with the IR version of its opset's era, without model-local functions and unused opset imports.

    Raises:
        UsageError: ``ceiling`` is below the floor.
        ModelError: the model cannot be lifted to the floor.
        UnsupportedOperatorsError: nodes that the older opset cannot express, all of them.
    """
    import onnx
    import onnx.inliner

    if ceiling < OPSET_FLOOR:
        raise UsageError("opset ceiling", str(ceiling), f"{OPSET_FLOOR} or newer", "choose an engine version that reads it")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if result.functions:
        result = onnx.inliner.inline_local_functions(result)
    current = opset_of(result)
    if current < OPSET_FLOOR:
        result = _lifted(result, current)
    elif current > ceiling:
        result = _lowered(result, current, ceiling)
    return _finished(result)


def opset_of(model: onnx.ModelProto) -> int:
    """The ai.onnx opset that a model imports."""
    return next((entry.version for entry in model.opset_import if entry.domain in _DEFAULT), 1)


def _lifted(model: onnx.ModelProto, current: int) -> onnx.ModelProto:
    import onnx
    import onnx.version_converter

    try:
        return onnx.version_converter.convert_version(model, OPSET_FLOOR)
    except Exception as exc:  # the converter raises bare RuntimeError beside errors of its own
        raise ModelError(
            "opset", f"{current} cannot be lifted to {OPSET_FLOOR}: {exc}", "", f"export the model at opset {OPSET_FLOOR} or newer"
        ) from exc


def _lowered(model: onnx.ModelProto, current: int, ceiling: int) -> onnx.ModelProto:
    import onnx

    model = _inlined(model, current, ceiling)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    refused: list[tuple[str, str, int, str]] = []
    _lower_graph(model.graph, None, current, ceiling, refused)
    if refused:
        raise UnsupportedOperatorsError(
            f"opset {ceiling}", refused, f"export the model at opset {ceiling} or older, or build for an engine that reads opset {current}"
        )
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", ceiling)])
    return model


def _inlined(model: onnx.ModelProto, current: int, ceiling: int) -> onnx.ModelProto:
    """Replace operators that the ceiling does not know, or understands differently, by their function bodies."""
    import onnx
    import onnx.inliner

    stuck: set[str] = set()
    while True:  # a body may use functions itself
        names = {node.op_type for node in _all_nodes(model.graph) if node.domain in _DEFAULT}
        name = next((name for name in sorted(names - stuck) if _needs_body(name, current, ceiling)), None)
        if name is None:
            return model
        try:
            spelled = _spelled_out(model, name, current)
            model = onnx.inliner.inline_selected_functions(spelled, [("", name)], inline_schema_functions=True)
        except RuntimeError:
            stuck.add(name)  # no body for this form of the node; the schema check refuses it by name
            continue
        if any(node.op_type == name for node in _all_nodes(model.graph)):
            stuck.add(name)


def _spelled_out(model: onnx.ModelProto, name: str, current: int) -> onnx.ModelProto:
    """What onnx's inliner does not find itself: default attributes of the nodes to replace, and the types of initializers."""
    import onnx

    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    declared = onnx.defs.get_schema(name, current, "").attributes
    for graph in _all_graphs(model.graph):
        typed = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
        graph.value_info.extend(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in graph.initializer
            if tensor.name not in typed
        )
        for node in graph.node:
            if node.op_type == name and node.domain in _DEFAULT:
                given = {attribute.name for attribute in node.attribute}
                defaults = (a.default_value for a in declared.values() if a.name not in given and a.default_value.name)
                node.attribute.extend(defaults)
    return model


def _needs_body(name: str, current: int, ceiling: int) -> bool:
    import onnx

    try:
        new = onnx.defs.get_schema(name, current, "")
    except onnx.defs.SchemaError:
        return False
    if not (new.has_function or new.has_context_dependent_function):
        return False
    return _since(name, ceiling) == 0 or (name in _CHANGED_MEANING and _since(name, ceiling) != new.since_version)


def _since(name: str, opset: int) -> int:
    """Version of an operator's definition at an opset, 0 when there is none or it is withdrawn."""
    import onnx

    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return 0
    return 0 if schema.deprecated else int(schema.since_version)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in _all_graphs(graph):
        yield from each.node


def _all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_graphs(inner)


def _lower_graph(
    graph: onnx.GraphProto,
    parent: Scope | None,
    current: int,
    ceiling: int,
    refused: list[tuple[str, str, int, str]],
) -> None:
    """Rewrite the nodes of a graph and of its subgraphs in place; collect what cannot be."""
    import onnx

    scope = Scope(graph, parent, current, ceiling)
    for original in list(graph.node):
        node = onnx.NodeProto.FromString(original.SerializeToString())
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _lower_graph(inner, scope, current, ceiling, refused)
        reason = _lower_node(node, scope, current, ceiling)
        if reason:
            refused.append((node.name or next(iter(node.output), ""), node.op_type, current, reason))
    scope.write_back()


def _lower_node(node: onnx.NodeProto, scope: Scope, current: int, ceiling: int) -> str:
    """Put a node, or what stands for it, into the scope. Returns why it cannot be, "" when it was done."""
    if node.domain not in _DEFAULT or _since(node.op_type, current) == _since(node.op_type, ceiling):
        scope.add(node)
        return ""
    for below, lowering in LOWERINGS.get(node.op_type, ()):
        if ceiling < below <= current and (reason := lowering(node, scope)):
            return reason
    reason = _misfit(node, scope, ceiling)
    if not reason:
        scope.add(node)
    return reason


def _misfit(node: onnx.NodeProto, scope: Scope, ceiling: int) -> str:
    """What of a node the schema at ``ceiling`` does not take, "" when it fits. Attributes at their default are dropped."""
    import onnx

    if _since(node.op_type, ceiling) == 0:
        return f"not in opset {ceiling}"
    schema = onnx.defs.get_schema(node.op_type, ceiling, "")
    newest = onnx.defs.get_schema(node.op_type, scope.current, "")
    for attribute in list(node.attribute):
        if attribute.name in schema.attributes:
            continue
        declared = newest.attributes.get(attribute.name)
        default = declared.default_value if declared is not None else None
        if default is None or onnx.helper.get_attribute_value(attribute) != onnx.helper.get_attribute_value(default):
            return f"attribute {attribute.name} is not in opset {ceiling}"
        node.attribute.remove(attribute)
    present = {attribute.name for attribute in node.attribute}
    if absent := [name for name, declared in schema.attributes.items() if declared.required and name not in present]:
        return f"attribute {absent[0]} is missing, and opset {ceiling} requires it"
    if len(node.input) > schema.max_input or len(node.output) > schema.max_output:
        return f"{len(node.input)} inputs and {len(node.output)} outputs are more than opset {ceiling} takes"
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    given = [*node.input, *[""] * schema.min_input]
    missing = [formal.name for formal, name in zip(schema.inputs, given, strict=False) if formal.option == single and not name]
    if missing:
        return f"input {missing[0]} may not be left out in opset {ceiling}"
    return _type_misfit(node, schema, scope)


def _type_misfit(node: onnx.NodeProto, schema: onnx.defs.OpSchema, scope: Scope) -> str:
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}
    bound: dict[str, str] = {}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            formal = formals[min(index, len(formals) - 1)]
            kind = scope.type_of(name)
            if not kind:
                continue
            if kind not in allowed.get(formal.type_str, {formal.type_str}):
                return f"{kind} of {name!r} is not among its types there"
            one_type = formal.type_str in allowed and formal.is_homogeneous
            if one_type and bound.setdefault(formal.type_str, kind) != kind:
                return f"{bound[formal.type_str]} and {kind} cannot be mixed there"
    return ""


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes whose outputs nothing reads: what computed the axes that are attributes now."""
    while True:
        read = {name for node in _all_nodes(graph) for name in node.input}
        read |= {output.name for each in _all_graphs(graph) for output in each.output}
        dead = [node for node in graph.node if not any(name in read for name in node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    _drop_unused(model.graph)
    used = {"" if node.domain in _DEFAULT else node.domain for node in _all_nodes(model.graph)} | {""}
    imports = [onnx.helper.make_opsetid("", opset_of(model))]
    imports += [entry for entry in model.opset_import if entry.domain not in _DEFAULT and entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.ir_version = ir_version_for(opset_of(model))
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BuildError("opset", f"the model written at opset {opset_of(model)} is not valid: {exc}", "", "report this model") from exc
    return model
