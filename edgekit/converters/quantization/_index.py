"""Who makes and who reads each tensor of an ONNX graph, and what its constants are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["ModelIndex", "static_shapes"]


class ModelIndex:
    """A view of a model as it stands; made anew after each rewrite.

    Attributes:
        model: what is looked at.
        constants: initializers that no caller can replace.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.model = model
        given = {value.name for value in model.graph.input}
        self.constants: dict[str, np.ndarray] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name not in given
        }
        self.outputs = {value.name for value in model.graph.output}
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in self.reads(node):
                self._readers[name].append(node)

    @staticmethod
    def reads(node: onnx.NodeProto) -> Iterator[str]:
        """Inputs of a node, and what its subgraphs take from outside (and a few names of their own: harmless where only use counts)."""
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                for inner in graph.node:
                    yield from ModelIndex.reads(inner)
                yield from (value.name for value in graph.output)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for inputs and constants."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that read a tensor, once per input that does."""
        return self._readers.get(name, [])

    def only_reader(self, name: str) -> bool:
        """One node reads it once, and it is no output of the graph."""
        return len(self.readers(name)) == 1 and name not in self.outputs

    def add_constant(self, stem: str, value: np.ndarray) -> str:
        """Add an initializer and return its name, which is ``stem`` or one like it."""
        from onnx import numpy_helper

        name, count = stem, 1
        while name in self.constants or name in self._producers or name in self._readers:
            count += 1
            name = f"{stem}_{count}"
        self.constants[name] = value
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def split_scalar(self, node: onnx.NodeProto) -> tuple[str, float | None]:
        """The computed operand of a binary node and its scalar constant; ``("", None)`` when it has none."""
        for side in (0, 1):
            value = self.constants.get(node.input[1 - side])
            if value is not None and value.size == 1 and node.input[side] not in self.constants:
                return node.input[side], float(value.reshape(-1)[0])
        return "", None

    def clip_bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """Constant bounds of a Clip; None when one is computed."""
        bounds = [-np.inf, np.inf]
        for index in (1, 2):
            if len(node.input) > index and node.input[index]:
                value = self.constants.get(node.input[index])
                if value is None:
                    return None
                bounds[index - 1] = float(value.reshape(-1)[0])
        for attribute in node.attribute:
            if attribute.name in ("min", "max"):
                bounds[attribute.name == "max"] = attribute.f
        return bounds[0], bounds[1]


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes; a tensor with an open dimension is missing."""
    found = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in shape.dim)
    return found
