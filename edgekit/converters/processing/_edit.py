"""Writing operators around a graph: unique names, constants, renamed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["NODE_PREFIX", "POST_PREFIX", "Edit", "rename", "vacate"]

NODE_PREFIX = "edgekit_"
"""Names of the operators that are added begin so."""
POST_PREFIX = f"{NODE_PREFIX}post_"
"""Those behind the model: they rank and compare, and stay in float32 whatever the model's precision is. Scores that float16 rounds to one value
have no order any more, and areas of boxes in pixels pass its 65504."""


class Edit:
    """Operators to put before or after those of a model.

    Args:
        model: changed by `commit` only.
        stage: ``pre`` or ``post``: part of every name that is made up.
    """

    def __init__(self, model: onnx.ModelProto, stage: str) -> None:
        self.model = model
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._stage = stage
        self._taken = _names(model.graph)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []

    def fresh(self, stem: str) -> str:
        """A name that nothing else has."""
        name, count = f"{NODE_PREFIX}{self._stage}_{stem}", 1
        while name in self._taken:
            count += 1
            name = f"{NODE_PREFIX}{self._stage}_{stem}_{count}"
        self._taken.add(name)
        return name

    def constant(self, values: Any, dtype: str) -> str:
        """An initializer, made once per value."""
        from onnx import numpy_helper

        array = np.asarray(values, np.dtype(dtype))
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._tensors:
            self._tensors[key] = self.fresh("constant")
            self._initializers.append(numpy_helper.from_array(array, self._tensors[key]))
        return self._tensors[key]

    def add(self, op: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Append an operator; returns the name of its output, or a list of names."""
        from onnx import helper

        name = self.fresh(op)
        results = [output or name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), results, name, **attributes))
        return results[0] if outputs == 1 else results

    def cast(self, x: str, dtype: str, output: str = "") -> str:
        """Convert to a dtype by its NumPy name."""
        from onnx import helper

        return str(self.add("Cast", x, output=output, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """A reduction; its axes are an attribute before opset 18 (13 for ReduceSum), an input from then on."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return str(self.add(op, x, self.constant(axes, "int64"), keepdims=keepdims))
        return str(self.add(op, x, axes=list(axes), keepdims=keepdims))

    def cut(self, x: str, axis: int, start: int, end: int) -> str:
        """Slice one axis."""
        bounds = (self.constant([value], "int64") for value in (start, end, axis))
        return str(self.add("Slice", x, *bounds))

    def reshape(self, x: str, shape: Sequence[int], output: str = "") -> str:
        """Reshape to known sizes; 0 keeps one, -1 infers one."""
        return str(self.add("Reshape", x, self.constant(list(shape), "int64"), output=output))

    def commit(self) -> None:
        """Put the operators in their place: ``pre`` before, ``post`` after the model's own."""
        graph = self.model.graph
        graph.initializer.extend(self._initializers)
        if self._stage == "post":
            graph.node.extend(self._nodes)
            return
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*self._nodes, *rest])


def vacate(model: onnx.ModelProto, names: Iterable[str], edit: Edit) -> dict[str, str]:
    """Make names free for new outputs: tensors of these names get others. Returns old to new for all ``names``; those not in use keep theirs."""
    graph = model.graph
    produced = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    moved = {}
    for name in dict.fromkeys(names):
        moved[name] = edit.fresh("moved") if name in produced else name
        if name not in produced:
            continue
        rename(graph, name, moved[name])
        for node in graph.node:
            for index, output in enumerate(node.output):
                if output == name:
                    node.output[index] = moved[name]
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.name = moved[name]
        for value in graph.output:  # the graph's own outputs keep their names until they are replaced
            if value.name == moved[name]:
                value.name = name
    return moved


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every reader of a tensor read another one, inner graphs included."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                if old not in {value.name for value in inner.input}:
                    rename(inner, old, new)
    for value in graph.output:
        if value.name == old:  # an inner graph may hand a tensor of the outer one through
            value.name = new


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                names |= _names(inner)
    return names
