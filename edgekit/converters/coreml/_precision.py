"""Which operators stay in float32 when the rest becomes float16.

float16 ends at 65504. An operator that reads, writes or passes through a larger value stays in float32, so that neither its operands nor its
result are ever stored in float16. The decision is made after coremltools' fusions: an operator there may stand for several nodes, whose inner
tensors count too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.converters._graph import Graph, Node
from edgekit.converters._ranges import FLOAT16_MAX, Range, largest_magnitude
from edgekit.converters.coreml._context import MilContext
from edgekit.converters.coreml._quantised import tiny_scale
from edgekit.converters.processing import POST_PREFIX

__all__ = ["Float16Selector"]

# Source operators that square or exponentiate inside, where no range was measured: the largest value that survives.
_INNER_LIMITS = {
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "ReduceL2"), math.sqrt(FLOAT16_MAX)),
    "ReduceLogSumExp": math.log(FLOAT16_MAX),
}
_FUSION_LIMIT = 64  # nodes to look back for the inner tensors of one fused operator; the largest fusion (layer norm, GELU) has about ten


class Float16Selector:
    """The ``op_selector`` of coremltools' `FP16ComputePrecision`: true for operators that become float16.

    Args:
        context: the conversion, with the origin of each operator.
        ranges: values seen on samples, see `activation_ranges`.

    Attributes:
        kept: per MIL operator that stays in float32, ``(operator type, tensor that is too large, its magnitude)``.
    """

    def __init__(self, context: MilContext, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges
        self._origin = context.origin
        self._producers = {name: node for node in context.graph.nodes for name in node.outputs if name}
        self._tensors = {context.names.of(name): name for name in _tensor_names(context.graph)}
        self.kept: dict[str, tuple[str, str, float]] = {}

    def __call__(self, operation: Any) -> bool:
        """True when nothing that the operator touches is beyond float16."""
        if tiny_scale(operation):
            self.kept[operation.name] = (operation.op_type, operation.name, float(operation.scale.val))
            return False
        if self._is_added(operation):
            return False
        limit = self._limit(operation)
        for tensor in sorted(self._touched(operation)):
            magnitude = largest_magnitude(self._ranges[tensor]) if tensor in self._ranges else 0.0
            if magnitude > limit:
                self.kept[operation.name] = (operation.op_type, tensor, magnitude)
                return False
        return True

    def _is_added(self, operation: Any) -> bool:
        """Whether it stands behind the model, for ranking or suppression: those stay in float32 and are not reported."""
        # An operator with several outputs is known by its own name only.
        nodes = [self._origin.get(operation.name), *(self._node_of(variable.name) for variable in operation.outputs)]
        return any(node is not None and node.name.startswith(POST_PREFIX) for node in nodes)

    def _limit(self, operation: Any) -> float:
        """Largest value that the operator's own arithmetic keeps within float16."""
        nodes = [self._node_of(variable.name) for variable in operation.outputs]
        return min([FLOAT16_MAX, *(_INNER_LIMITS[node.op] for node in nodes if node is not None and node.op in _INNER_LIMITS)])

    def _touched(self, operation: Any) -> set[str]:
        """Source tensors that an operator reads, writes or hides."""
        reads = {name for variable in _inputs(operation) if (name := self._tensor_of(variable.name))}
        found = set(reads)
        for variable in operation.outputs:
            node = self._node_of(variable.name)
            if node is not None:
                found |= self._between(node, reads)
        return found

    def _node_of(self, name: str) -> Node | None:
        tensor = self._tensor_of(name)
        return self._producers.get(tensor) if tensor in self._producers else self._origin.get(name)

    def _tensor_of(self, name: str) -> str:
        """Source tensor behind a MIL variable; casts that the pass itself made carry the name with a suffix."""
        return self._tensors.get(name) or self._tensors.get(name.removesuffix("_cast_fp16_to_fp32"), "")

    def _between(self, last: Node, reads: set[str]) -> set[str]:
        """Tensors from ``last`` back to ``reads``: what a fusion swallowed, or the node's own."""
        own = {name for name in (*last.inputs, *last.outputs) if name}
        if reads.isdisjoint(self._ancestors_of(last)):
            return own
        found: set[str] = set()
        waiting, seen = [last], 0
        while waiting and seen < _FUSION_LIMIT:
            node, seen = waiting.pop(), seen + 1
            found |= {name for name in (*node.inputs, *node.outputs) if name}
            waiting += [self._producers[name] for name in node.inputs if name in self._producers and name not in reads]
        return found if not waiting else own

    def _ancestors_of(self, node: Node) -> set[str]:
        """Inputs of a node and of the nodes behind it, as far as a fusion reaches."""
        found: set[str] = set()
        waiting, seen = [node], 0
        while waiting and seen < _FUSION_LIMIT:
            current, seen = waiting.pop(0), seen + 1
            found |= {name for name in current.inputs if name}
            waiting += [self._producers[name] for name in current.inputs if name in self._producers]
        return found


def _tensor_names(graph: Graph) -> Iterator[str]:
    yield from (spec.name for spec in graph.inputs)
    yield from (name for node in graph.nodes for name in node.outputs if name)


def _inputs(operation: Any) -> Iterator[Any]:
    for value in operation.inputs.values():
        yield from value if isinstance(value, (list, tuple)) else (value,)
