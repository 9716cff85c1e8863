"""From the plain graph to a MIL program: inputs, nodes, outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgekit.bundle import TensorBinding, TensorSpec
from edgekit.converters._graph import Graph
from edgekit.converters.coreml._context import INT32, MilContext, mil_dtype, ops
from edgekit.converters.coreml._high_rank import flattened
from edgekit.converters.coreml._toolchain import Toolchain
from edgekit.errors import ModelError

__all__ = ["MilProgram", "build_program"]

# Core ML's array types are float32, float16, float64 and int32 (Core ML specification, ArrayFeatureType).
_NATIVE = {"fp32": "float32", "int32": "int32", "bool": "int32"}
_MIL_OF_NATIVE = {"float32": "fp32", "float16": "fp16", "int32": "int32"}


@dataclass(frozen=True)
class MilProgram:
    """A program before coremltools' passes.

    Attributes:
        program: `coremltools.converters.mil.mil.Program`.
        context: where its operators came from.
        inputs: how the signature's inputs appear in it.
        outputs: the same for outputs.
        open_axes: by native name of an input, its axes whose length is left open: shortest and longest.
    """

    program: Any
    context: MilContext
    inputs: tuple[TensorBinding, ...]
    outputs: tuple[TensorBinding, ...]
    open_axes: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)

    @property
    def function(self) -> Any:
        """The main function."""
        return self.program.functions["main"]

    def shape_of(self, bound: TensorBinding) -> tuple[Any, ...]:
        """Lengths of an input as the program has them; a symbol where one is open."""
        return tuple(self.function.inputs[bound.native_name].shape)


def build_program(graph: Graph, tools: Toolchain, target: Any, *, int8: bool = False) -> MilProgram:
    """Convert every node.

    Args:
        graph: static shapes.
        tools: coremltools.
        target: deployment target; it decides the version of each MIL operator.
        int8: write pairs of quantisation as MIL's operators for it.

    Raises:
        UnsupportedOperatorsError: every node that cannot be taken, with its reason.
        ModelError: inputs or outputs that Core ML cannot have.
        BuildError: coremltools refuses an operator.
    """
    graph = _without_empty(graph)
    ops.check(graph)
    _check_interface(graph)
    graph = flattened(graph)
    ctx = MilContext(graph, tools, int8=int8)
    inputs = tuple(_binding(ctx, spec) for spec in graph.inputs)
    reserved = tuple(_binding(ctx, spec) for spec in graph.outputs)
    placeholders = {
        bound.native_name: tools.mb.placeholder(
            shape=spec.shape or (1,), dtype=getattr(tools.types, _MIL_OF_NATIVE[bound.native_dtype]), name=bound.native_name
        )
        for bound, spec in zip(inputs, graph.inputs, strict=True)
    }
    with tools.mil.Function(placeholders, opset_version=target) as function:
        for bound, spec in zip(inputs, graph.inputs, strict=True):
            ctx.values[spec.name] = _from_input(ctx, spec, function.inputs[bound.native_name])
        ops.emit(graph, ctx)
        results, outputs = [], []
        for bound, spec in zip(reserved, graph.outputs, strict=True):
            result, name = _to_output(ctx, graph, spec, bound)
            results.append(result)
            outputs.append(TensorBinding(spec.name, name, bound.native_dtype))
        function.set_outputs(results)
    program = tools.mil.Program()
    program.add_function("main", function)
    return MilProgram(program, ctx, inputs, tuple(outputs))


def _without_empty(graph: Graph) -> Graph:
    """Tensors without elements have no value to compute: they become constants, and what makes nothing else goes."""
    given = {spec.name for spec in graph.inputs}
    empty = {name: kind for name, kind in graph.types.items() if 0 in kind.shape and name not in given and mil_dtype(kind.dtype)}
    constants = {name: np.empty(kind.shape, np.dtype(kind.dtype)) for name, kind in empty.items()}
    nodes = tuple(node for node in graph.nodes if any(name and name not in empty for name in node.outputs))
    return replace(graph, nodes=nodes, constants={**constants, **graph.constants}) if empty else graph


def _check_interface(graph: Graph) -> None:
    faults = []
    for role, specs in (("input", graph.inputs), ("output", graph.outputs)):
        for spec in specs:
            if not mil_dtype(spec.dtype):
                faults.append(f"{role} {spec.name!r} is {spec.dtype}")
            if 0 in spec.shape:
                faults.append(f"{role} {spec.name!r} has no elements")
    for spec in graph.outputs:
        value = graph.constants.get(spec.name)
        if value is not None and value.size and value.dtype.kind in "iu" and (int(value.min()) < INT32.min or int(value.max()) > INT32.max):
            faults.append(f"output {spec.name!r} is a constant outside int32")
    if not graph.inputs:
        faults.append("the model has no inputs")
    if faults:
        raise ModelError(
            "Core ML",
            "; ".join(faults),
            "float, bool or integer tensors with elements",
            "change the model, or build for an engine that takes it (onnxruntime, openvino)",
        )


def _binding(ctx: MilContext, spec: TensorSpec) -> TensorBinding:
    native = "float16" if spec.dtype == "float16" else _NATIVE[mil_dtype(spec.dtype)]
    return TensorBinding(spec.name, ctx.names.of(spec.name), native)


def _from_input(ctx: MilContext, spec: TensorSpec, value: Any) -> Any:
    """The tensor as handlers expect it: Core ML has no boolean arrays, and computing is in float32."""
    stem = ctx.names.of(spec.name)
    if spec.dtype == "float16":
        return ctx.call("cast", ctx.names.fresh(f"{stem}_as_fp32"), {"x": value, "dtype": "fp32"})
    if mil_dtype(spec.dtype) == "bool":
        return ctx.call("not_equal", ctx.names.fresh(f"{stem}_as_bool"), {"x": value, "y": np.int32(0)})
    return value


def _to_output(ctx: MilContext, graph: Graph, spec: TensorSpec, bound: TensorBinding) -> tuple[Any, str]:
    """The variable of an output, with a name of its own.

    A node's result has the name already; an input or a constant that is an output, and a boolean or float16 result, get one more operator.
    """
    if mil_dtype(spec.dtype) == "bool" or spec.dtype == "float16":
        kind = "fp16" if spec.dtype == "float16" else "int32"
        name = ctx.names.fresh(f"{bound.native_name}_as_{kind}")
        return ctx.call("cast", name, {"x": ctx.tensor(spec.name), "dtype": kind}), name
    if spec.name in graph.constants or any(spec.name == given.name for given in graph.inputs):
        name = ctx.names.fresh(f"{bound.native_name}_out")
        return ctx.call("identity", name, {"x": ctx.tensor(spec.name)}), name
    return ctx.values[spec.name], bound.native_name
