"""The loop: ask the target, expand what it refuses, fold, ask again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from edgekit.converters._emitter import NormalisedModel
from edgekit.converters._folding import fold_constants
from edgekit.converters._graph import Graph, Node
from edgekit.converters._lowering._control import expand_control
from edgekit.converters._lowering._functions import expand_function
from edgekit.converters._lowering._names import outer_reads
from edgekit.converters._lowering._piece import CannotLowerError, Piece, Surroundings
from edgekit.converters._lowering._rules import Rule, rule_for
from edgekit.converters._lowering._view import name_nodes, view
from edgekit.converters._registry import Context, Registry
from edgekit.errors import UnsupportedOperatorsError

if TYPE_CHECKING:
    import onnx

__all__ = ["Lowered", "Refusal", "lower_model", "lower_until", "lowered_graph"]

Refusal = Callable[[Node, Graph], str]
"""Why a target does not take a node, "" when it does."""

_Refused = list[tuple[Node, str]]
# What is refused; and what cannot be judged yet, because the shapes of its inputs are not known.
_Ask = Callable[["onnx.ModelProto", Surroundings], tuple[_Refused, _Refused]]
Result = TypeVar("Result")

_IR_FLOOR = 4  # the first whose initializers need not be inputs too; shape inference does not see them otherwise
_ROUNDS = 64  # nesting of functions and loops, far beyond what models have
_LIMIT = 60_000  # nodes of a whole model
_UNKNOWN = "its shape depends on data or on a dimension that is not fixed"


@dataclass(frozen=True)
class Lowered:
    """What came out.

    Attributes:
        model: ONNX, as far as it could be lowered; the given one when nothing had to be changed.
        refused: what still stands in the way: name, operator and opset of the node of the source, and the reason.
        expanded: operators of the source that were expanded, sorted.
    """

    model: onnx.ModelProto
    refused: tuple[tuple[str, str, int, str], ...] = ()
    expanded: tuple[str, ...] = ()


def lowered_graph(normalised: NormalisedModel, registry: Registry[Context]) -> Graph:
    """The plain graph for a front end, in operators that its registry takes.

    Args:
        normalised: with static shapes.
        registry: of the target, filled.

    Raises:
        UnsupportedOperatorsError: nodes of the source that cannot be expressed so, all of them.
        ModelError: see `graph_from_onnx`.
    """
    from edgekit.converters._source import graph_from_onnx

    lowered = lower_model(normalised.model, registry.refusal, static=True)
    if lowered.refused:
        raise UnsupportedOperatorsError(registry.target, lowered.refused)
    return graph_from_onnx(lowered.model, normalised.signature)


def lower_model(model: onnx.ModelProto, refusal: Refusal, *, static: bool, rules: Mapping[str, Rule] | None = None) -> Lowered:
    """Expand the nodes that a target refuses until it takes all, or nothing can be expanded any more.

    Args:
        model: normalised; not changed.
        refusal: of the target.
        static: a tensor without a static shape is a refusal too.
        rules: of this target only, by operator; they come before the common ones.
    """

    def ask(_: onnx.ModelProto, around: Surroundings) -> tuple[_Refused, _Refused]:
        found: _Refused = []
        blind: _Refused = []
        for node in around.graph.nodes:
            if static and any(name and name not in around.graph.types for name in (*node.inputs, *node.outputs)):
                known = all(name in around.graph.types for name in node.inputs if name)
                (found if known else blind).append((node, _UNKNOWN))
            elif reason := refusal(node, around.graph):
                found.append((node, reason))
        return found, blind

    return _Lowering(model, ask, rules or {}).run()


def lower_until(model: onnx.ModelProto, attempt: Callable[[onnx.ModelProto], Result]) -> tuple[Result, Lowered]:
    """Like `lower_model` for a toolchain that says itself which nodes it does not take.

    Args:
        model: normalised; not changed. Tried as it is first.
        attempt: raises `UnsupportedOperatorsError` with names of nodes.

    Raises:
        UnsupportedOperatorsError: names the nodes of the source that stand in the way.
    """
    try:
        return attempt(model), Lowered(model)
    except UnsupportedOperatorsError as exc:
        last = exc
    results: list[Result] = []

    def ask(lowered: onnx.ModelProto, around: Surroundings) -> tuple[_Refused, _Refused]:
        nonlocal last
        try:
            results.append(attempt(lowered))
        except UnsupportedOperatorsError as exc:
            last = exc
            reasons = {name: reason for name, _, _, reason in exc.nodes}
            return [(node, reasons[node.name]) for node in around.graph.nodes if node.name in reasons], []
        return [], []

    lowered = _Lowering(model, ask, {}).run()
    if lowered.refused:
        raise UnsupportedOperatorsError(last.thing, lowered.refused, last.next_step) from last
    if not results:
        raise last  # it named nodes that are not in the graph
    return results[-1], lowered


@dataclass(frozen=True)
class _Origin:
    """The node of the source that a node stems from, and why that one was refused."""

    name: str
    op: str
    opset: int
    reason: str


class _Lowering:
    def __init__(self, model: onnx.ModelProto, ask: _Ask, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._given = model
        self._ask = ask
        self._origins: dict[str, _Origin] = {}
        self._why: dict[str, str] = {}  # node name -> why it cannot be expanded

    def run(self) -> Lowered:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._given)
        model.ir_version = max(model.ir_version, _IR_FLOOR)
        name_nodes(model)
        del model.graph.value_info[:]
        folded = False
        for _ in range(_ROUNDS):
            around = view(model)
            refused, blind = self._ask(model, around)
            if not refused and not blind:
                return Lowered(model if self._origins or folded else self._given, (), self._expanded())
            if not folded:
                _tidy(model)
                folded = True
                continue
            if len(model.graph.node) > _LIMIT or not (self._expand(model, around, refused) or self._expand(model, around, blind)):
                break
            _tidy(model)
            self._settle(model)
        return Lowered(model, self._reasons(refused or blind), self._expanded())

    def _expanded(self) -> tuple[str, ...]:
        return tuple(sorted({origin.op for origin in self._origins.values()}))

    def _expand(self, model: onnx.ModelProto, around: Surroundings, refused: Sequence[tuple[Node, str]]) -> bool:
        """Replace what can be; False when nothing can."""
        wanted = {node.name: (node, reason) for node, reason in refused}
        nodes: list[onnx.NodeProto] = []
        initializers: list[onnx.TensorProto] = []
        for proto in model.graph.node:
            piece = self._piece(proto, around, *wanted[proto.name]) if proto.name in wanted else None
            if piece is None:
                nodes.append(proto)
                continue
            nodes.extend(piece.nodes)
            initializers.extend(piece.initializers)
        if len(nodes) == len(model.graph.node) and not initializers and all(a is b for a, b in zip(nodes, model.graph.node, strict=True)):
            return False
        copies = [_copied(node) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        model.graph.initializer.extend(initializers)
        return True

    def _settle(self, model: onnx.ModelProto) -> None:
        """Expand what expansions have left behind although it can be decided: an ``If`` on a constant, a ``CastLike``."""
        for _ in range(_ROUNDS):
            around = view(model)
            known = [node for node in around.graph.nodes if node.name in self._origins and _is_settled(node, around)]
            if not self._expand(model, around, [(node, "") for node in known]):
                return
            _tidy(model)

    def _piece(self, proto: onnx.NodeProto, around: Surroundings, node: Node, reason: str) -> Piece | None:
        piece = Piece(node, around)
        try:
            done = self._fill(proto, piece)
        except CannotLowerError as exc:
            self._why[node.name] = str(exc)
            return None
        if not done:
            return None
        origin = self._origins.get(node.name) or _Origin(node.name, node.op, node.opset, reason)
        self._origins[node.name] = origin
        self._origins.update((inner.name, origin) for inner in piece.nodes)
        return piece

    def _fill(self, proto: onnx.NodeProto, piece: Piece) -> bool:
        rule = (self._rules.get(proto.op_type) or rule_for(proto.op_type)) if piece.node.domain == "" else None
        problem: CannotLowerError | None = None
        if rule is not None:
            try:
                rule(piece)
            except CannotLowerError as exc:
                problem = exc
            else:
                return True
            piece.nodes.clear()
            piece.initializers.clear()
        if expand_control(proto, piece) or expand_function(proto, piece):
            return True
        if problem is not None:
            raise problem
        return False

    def _reasons(self, refused: Sequence[tuple[Node, str]]) -> tuple[tuple[str, str, int, str], ...]:
        """One entry for each node of the source, with what stands in the way inside of it."""
        found: dict[str, tuple[str, str, int, list[str]]] = {}
        for node, reason in refused:
            why = self._why.get(node.name, "")
            origin = self._origins.get(node.name)
            op = f"{node.domain}.{node.op}" if node.domain else node.op
            if origin is None:
                found[node.name] = (node.name, op, node.opset, [f"{reason}; {why}" if why else reason])
                continue
            entry = found.setdefault(origin.name, (origin.name, origin.op, origin.opset, []))
            text = f"it needs {op}: {why or reason}"
            if text not in entry[3]:
                entry[3].append(text)
        return tuple((name, op, opset, "; ".join(reasons[:3])) for name, op, opset, reasons in found.values())


def _is_settled(node: Node, around: Surroundings) -> bool:
    return node.op == "CastLike" or (node.op == "If" and around.constant(node.inputs[0]) is not None)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _tidy(model: onnx.ModelProto) -> None:
    """Fold what has become constant, drop what nothing reads."""
    fold_constants(model, outputs=True)
    while True:
        read = outer_reads(model.graph.node) | {value.name for value in model.graph.output}
        kept = [_copied(node) for node in model.graph.node if any(name in read for name in node.output)]
        if len(kept) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    unread = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unread:
        model.graph.initializer.remove(tensor)
