"""The normalised graph that the front ends of our own (TFLite, Core ML) read: plain data, no ONNX protobuf.

Every tensor has a known dtype and a static shape; constants are NumPy arrays; attributes are Python values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.bundle import TensorSpec

__all__ = ["Graph", "Node", "TensorType"]


@dataclass(frozen=True)
class TensorType:
    """dtype (NumPy name) and static logical shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        op: operator type (``Conv``).
        name: unique within the graph; made up where the source had none.
        inputs: tensor names, ``""`` for an omitted optional input.
        outputs: tensor names, ``""`` for an unused optional output.
        attrs: Python values: int, float, str, lists of them, ``np.ndarray`` for tensors.
        opset: opset version of its domain.
        domain: ``""`` for ai.onnx.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 0
    domain: str = ""

    def input(self, index: int) -> str:
        """Name of an input, ``""`` when it was omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True)
class Graph:
    """A whole model in topological order.

    Attributes:
        inputs: graph inputs, constants excluded, in source order.
        outputs: graph outputs in source order.
        nodes: operators, each after the producers of its inputs.
        constants: initializers and folded constants.
        types: dtype and shape of every tensor, constants included.
        sample_of_open: heights and widths are examples: nothing may be chosen because it holds at just these.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    types: dict[str, TensorType]
    sample_of_open: bool = False

    def consumers(self, tensor: str) -> list[Node]:
        """Nodes that read a tensor."""
        return [node for node in self.nodes if tensor in node.inputs]
