"""What a node is replaced by, and what is known about the tensors around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters._graph import Graph, Node

if TYPE_CHECKING:
    import onnx

__all__ = ["CannotLowerError", "Piece", "Surroundings"]


class CannotLowerError(Exception):
    """Why a node cannot be expressed by simpler ones; the text goes into the refusal."""


@dataclass(frozen=True)
class Surroundings:
    """The graph that a node stands in.

    Attributes:
        graph: nodes, constants and the types that are known.
        types: ONNX types by tensor name, also those without a static shape.
        opset: ai.onnx opset.
    """

    graph: Graph
    types: dict[str, onnx.TypeProto]
    opset: int

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant tensor, else None."""
        return self.graph.constants.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a tensor.

        Raises:
            CannotLowerError: it is not known.
        """
        found = self.graph.types.get(name)
        if found is None:
            raise CannotLowerError(f"the shape of {name!r} is not known")
        return found.shape

    def dtype(self, name: str) -> str:
        """NumPy name of a tensor's dtype.

        Raises:
            CannotLowerError: it is not known.
        """
        from onnx import helper

        found = self.graph.types.get(name)
        if found is not None:
            return found.dtype
        kind = self.types.get(name)
        if kind is None or not kind.tensor_type.elem_type:
            raise CannotLowerError(f"the dtype of {name!r} is not known")
        return str(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).name)


@dataclass
class Piece:
    """Nodes and constants that stand for one node; values get names under that node's.

    Attributes:
        node: what is replaced.
        around: the graph it stands in.
        nodes: in topological order; together they produce the node's outputs.
        initializers: constants that they read.
    """

    node: Node
    around: Surroundings
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def fresh(self, hint: str) -> str:
        """A name that nothing else in the model has: node names are unique, and so are places within a piece."""
        return f"{self.node.name}/{hint}_{len(self.nodes) + len(self.initializers)}"

    def constant(self, value: np.ndarray | np.generic, hint: str = "constant") -> str:
        """Name of a new constant."""
        from onnx import numpy_helper

        name = self.fresh(hint)
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """Name of a new int64 vector."""
        return self.constant(np.array(values, np.int64), "ints")

    def op(self, op: str, *inputs: str | np.ndarray | np.generic, into: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its first output; arrays among the inputs become constants."""
        return self.ops(op, *inputs, into=[into or self.fresh(op.lower())], **attributes)[0]

    def ops(self, op: str, *inputs: str | np.ndarray | np.generic, into: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Append a node with given output names."""
        from onnx import helper

        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(op, names, list(into), name=self.fresh(op), **attributes))
        return into

    def add(self, node: onnx.NodeProto) -> None:
        """Append a node as it is."""
        self.nodes.append(node)

    # --- operators whose form depends on the opset ------------------------------------------------------------------------------------

    def unsqueeze(self, tensor: str, axes: Sequence[int], into: str = "") -> str:
        """``Unsqueeze``; axes are an input from opset 13 on."""
        if self.around.opset >= 13:
            return self.op("Unsqueeze", tensor, self.ints(*axes), into=into)
        return self.op("Unsqueeze", tensor, axes=list(axes), into=into)

    def squeeze(self, tensor: str, axes: Sequence[int], into: str = "") -> str:
        """``Squeeze``; axes are an input from opset 13 on."""
        if self.around.opset >= 13:
            return self.op("Squeeze", tensor, self.ints(*axes), into=into)
        return self.op("Squeeze", tensor, axes=list(axes), into=into)

    def reduce(self, op: str, tensor: str, axes: Sequence[int], keepdims: bool = False, into: str = "") -> str:
        """``ReduceSum`` and its kind; axes are an input from opset 13 (sum) or 18 on."""
        if self.around.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, tensor, self.ints(*axes), keepdims=int(keepdims), into=into)
        return self.op(op, tensor, axes=list(axes), keepdims=int(keepdims), into=into)
