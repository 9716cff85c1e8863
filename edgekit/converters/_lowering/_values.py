"""Values of tensors that constants decide, asked for one by one while a node is being expanded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.converters._folding import evaluate_nodes
from edgekit.converters._lowering._names import inner_graphs
from edgekit.converters._lowering._piece import Piece

if TYPE_CHECKING:
    import onnx

__all__ = ["Values"]


class Values:
    """Evaluates the part of a piece that leads to a tensor, when all of it is constant.

    Args:
        piece: its nodes and constants may grow between questions.
    """

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._known: dict[str, np.ndarray] = {}
        self._computed: set[str] = set()
        self._producers: dict[str, onnx.NodeProto] = {}
        self._nodes_seen = 0
        self._constants_seen = 0

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a tensor; None when it depends on an input."""
        self._look()
        found = self._lookup(name)
        if found is not None or name in self._computed:
            return found
        needed = self._needed(name)
        if needed is None:
            return None
        reads = {each for node in needed for each in node.input if each}
        inputs = {each: value for each in reads if (value := self._lookup(each)) is not None}
        values = evaluate_nodes(needed, inputs, [name], self._piece.around.opset)
        if values is None:
            self._computed.add(name)
            return None
        self._known.update(values)
        return self._known[name]

    def _lookup(self, name: str) -> np.ndarray | None:
        found = self._known.get(name)
        return found if found is not None else self._piece.around.constant(name)

    def _look(self) -> None:
        """Take in what was added since the last question."""
        from onnx import numpy_helper

        for node in self._piece.nodes[self._nodes_seen :]:
            self._producers.update(dict.fromkeys(node.output, node))
        for tensor in self._piece.initializers[self._constants_seen :]:
            self._known[tensor.name] = numpy_helper.to_array(tensor)
        self._nodes_seen, self._constants_seen = len(self._piece.nodes), len(self._piece.initializers)

    def _needed(self, name: str) -> list[onnx.NodeProto] | None:
        """Nodes that compute a tensor from constants, in order; None when an input takes part."""
        order: list[onnx.NodeProto] = []
        seen: set[int] = set()
        stack: list[tuple[str, bool]] = [(name, False)]
        while stack:
            tensor, ready = stack.pop()
            node = self._producers.get(tensor)
            if self._lookup(tensor) is not None or (node is not None and id(node) in seen):
                continue
            if node is None or tensor in self._computed or any(True for _ in inner_graphs(node)):
                self._computed.add(name)
                return None
            if ready:
                seen.add(id(node))
                order.append(node)
            else:
                stack.append((tensor, True))
                stack.extend((each, False) for each in node.input if each)
        return order
