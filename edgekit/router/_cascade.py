"""How sure a model is of its own answer, and how often the cloud may be asked for a second one. Pure; time is an argument.

A small model on the device is right most of the time and tends to know when it is not: the margin between its best and its second-best class. Below a threshold
the answer is escalated to the larger model of the cloud (Groundlight's edge endpoint does so; at most every 2 s, and 0.1 % of the sure answers are audited).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

__all__ = ["ConfidenceRule", "EscalationThrottle", "confidence_of"]

ConfidenceKind = Literal["probabilities", "logits", "score"]


class ConfidenceRule(msgspec.Struct, frozen=True):
    """Which output tells how sure the answer is, and how.

    Attributes:
        output: its name; empty for the only output that fits.
        kind: ``probabilities``: the largest value along the last axis less the second largest; ``logits``: the same after a softmax; ``score``: the value
            itself.
    """

    output: str = ""
    kind: ConfidenceKind = "probabilities"


def confidence_of(outputs: Mapping[str, np.ndarray], rule: ConfidenceRule) -> float | None:
    """The confidence of the least certain row of an answer; ``None`` when it has no such output, or one that tells nothing (text, no classes, NaN).

    An answer without a confidence is never escalated: that would send every request of a model whose policy names a wrong output. `Router` counts them.
    """
    array = outputs.get(rule.output) if rule.output else _only(outputs)
    if array is None or array.dtype.kind not in "fiu" or not array.size:
        return None
    if rule.kind == "score":
        return _number(array.min())
    if not array.ndim or array.shape[-1] < 2:
        return None
    rows = array.reshape(-1, array.shape[-1])
    if rule.kind == "logits":
        rows = _softmax(rows)
    # The two largest of each row; a full sort of a thousand classes would cost six times as much.
    top = np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2:]
    return _number((top[:, 1].astype(np.float64) - top[:, 0]).min())


class EscalationThrottle:
    """At most one escalation a model in ``every_s``. Not safe from several threads."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def try_take(self, model: str, every_s: float, now: float) -> bool:
        """Take the model's turn; False while the last one is too fresh. A clock that steps back gives no turn."""
        last = self._last.get(model)
        if last is not None and now - last < every_s:
            return False
        self._last[model] = now
        return True


def _only(outputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    numeric = [array for array in outputs.values() if array.dtype.kind in "fiu"]
    return numeric[0] if len(numeric) == 1 else None


def _softmax(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))  # less the largest: no exponential overflows
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _number(value: np.generic) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
