"""Rewrites of our own: operators that ONNX defines by no function, or by one that is worse than it has to be.

A rule is a function ``(piece) -> None`` that appends what stands for ``piece.node``; it raises `CannotLowerError` for a form that it does not
take. One module a family registers its rules here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from edgekit.converters._lowering._piece import Piece

__all__ = ["Rule", "lowers", "rule_for"]

Rule = Callable[[Piece], None]

_FAMILIES = (
    "_rule_index",
    "_rule_math",
    "_rule_quantised",
    "_rule_window",
    "_rule_resize",
    "_rule_recurrent",
    "_rule_sequence",
    "_rule_sampling",
    "_rule_shape",
    "_rule_text",
    "_rule_norm",
)
_RULES: dict[str, Rule] = {}


def lowers(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op} has two rules ({_RULES[op].__name__}, {rule.__name__}); keep one")
            _RULES[op] = rule
        return rule

    return register


def rule_for(op: str) -> Rule | None:
    """The rule for an operator, if there is one."""
    for family in _FAMILIES:
        importlib.import_module(f"edgekit.converters._lowering.{family}")
    return _RULES.get(op)
