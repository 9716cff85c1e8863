"""Lowering: what a target refuses is expressed by simpler ONNX operators, until the target takes all of it or the rest is named.

Before a node is refused for good, it is replaced by the first of these that there is: a rewrite of our own (``_rules``), the iterations of a
loop or the branch of a condition (``_control``), and the function by which ONNX itself defines the operator (``_functions``). What a target
takes is never touched.
"""

from __future__ import annotations

from edgekit.converters._lowering._driver import Lowered, Refusal, lower_model, lower_until, lowered_graph
from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._retype import dtypes_of, retyped
from edgekit.converters._lowering._rules import Rule
from edgekit.converters._lowering._view import name_nodes

__all__ = [
    "CannotLowerError",
    "Lowered",
    "Piece",
    "Refusal",
    "Rule",
    "dtypes_of",
    "lower_model",
    "lower_until",
    "lowered_graph",
    "name_nodes",
    "retyped",
]
