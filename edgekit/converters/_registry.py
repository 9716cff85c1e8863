"""One registry of operator handlers per target. A new operator is a handler, its test and a regenerated table; nothing else.

A handler is registered for an operator from an opset on::

    @ops.handler("Softmax", since=13)
    def softmax(node: Node, ctx: Context) -> None: ...

A constraint is a function ``(node, graph) -> str`` whose docstring is the rule; it returns what was found when the rule is broken, else
``""``. The docstrings make the support table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.converters._graph import Graph, Node
from edgekit.errors import UnsupportedOperatorsError

__all__ = ["Constraint", "Registration", "Registry"]

Context = TypeVar("Context")
Constraint = Callable[[Node, Graph], str]


@dataclass(frozen=True)
class Registration(Generic[Context]):
    """A handler, the opset it holds from, and what it asks of a node."""

    op: str
    since: int
    handler: Callable[[Node, Context], None]
    constraints: tuple[Constraint, ...]


_DATA, _CHANCE = "how many values it gives depends on data", "it draws random numbers, so that nothing could be proven"
_NEVER = {
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Range"), _DATA),
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _CHANCE),
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"), "it works on text"),
}
"""Why a front end of ours, whose shapes are fixed, has no handler; with constant inputs most of these are folded before."""


class Registry(Generic[Context]):
    """Handlers of one target by operator and opset."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._handlers: dict[str, dict[int, Registration[Context]]] = {}

    def handler(
        self, *ops: str, since: int = 1, constraints: tuple[Constraint, ...] = ()
    ) -> Callable[[Callable[[Node, Context], None]], Callable[[Node, Context], None]]:
        """Register a function for operators from opset ``since`` on, until a later registration takes over."""

        def register(function: Callable[[Node, Context], None]) -> Callable[[Node, Context], None]:
            for op in ops:
                versions = self._handlers.setdefault(op, {})
                if since in versions:
                    raise ValueError(
                        f"{self.target}: {op} since opset {since} has two handlers "
                        f"({versions[since].handler.__name__}, {function.__name__}); keep one or change `since`"
                    )
                versions[since] = Registration(op, since, function, constraints)
            return function

        return register

    def find(self, op: str, opset: int) -> Registration[Context] | None:
        """The registration that holds for an operator at an opset, or None."""
        versions = self._handlers.get(op, {})
        known = [since for since in versions if since <= opset]
        return versions[max(known)] if known else None

    def check(self, graph: Graph) -> None:
        """Refuse a graph at once with every node that stands in the way.

        Raises:
            UnsupportedOperatorsError: lists node names, operators, opsets and reasons.
        """
        refused = [
            (node.name, f"{node.domain}.{node.op}" if node.domain else node.op, node.opset, reason)
            for node in graph.nodes
            if (reason := self.refusal(node, graph))
        ]
        if refused:
            raise UnsupportedOperatorsError(self.target, refused)

    def emit(self, graph: Graph, context: Context) -> None:
        """Check the graph, then run every node's handler in order."""
        self.check(graph)
        for node in graph.nodes:
            found = self.find(node.op, node.opset)
            assert found is not None  # `check` passed
            found.handler(node, context)

    def registrations(self) -> Iterator[Registration[Context]]:
        """All handlers, sorted by operator and opset; the support table is made from this."""
        for op in sorted(self._handlers):
            for since in sorted(self._handlers[op]):
                yield self._handlers[op][since]

    def refusal(self, node: Node, graph: Graph) -> str:
        """Why a node is not taken, "" when it is."""
        if node.domain not in ("", "ai.onnx"):
            return f"domain {node.domain} is not supported"
        found = self.find(node.op, node.opset)
        if found is None:
            return _NEVER.get(node.op, "no handler")
        return next((reason for rule in found.constraints if (reason := rule(node, graph))), "")
