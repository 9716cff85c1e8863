"""A first dimension that the user leaves open, for targets that make its size open themselves from models of fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.bundle import Dim, Signature

__all__ = ["at_batch", "leaves_batch_open"]


def leaves_batch_open(signature: Signature, shapes: Mapping[str, Sequence[Dim]]) -> bool:
    """True when a ``--shape`` says -1, or the symbol itself, for a symbolic first dimension. One that nobody speaks of does not count."""
    return bool(_open_inputs(signature, shapes))


def at_batch(signature: Signature, shapes: Mapping[str, Sequence[Dim]], size: int) -> dict[str, tuple[Dim, ...]]:
    """The same shapes with ``size`` where the first dimension was left open."""
    opened = _open_inputs(signature, shapes)
    return {name: (size, *shape[1:]) if name in opened else tuple(shape) for name, shape in shapes.items()}


def _open_inputs(signature: Signature, shapes: Mapping[str, Sequence[Dim]]) -> list[str]:
    symbols = {spec.name: spec.shape[0] for spec in signature.inputs if spec.shape and isinstance(spec.shape[0], str)}
    return [name for name, shape in shapes.items() if shape and name in symbols and shape[0] in (-1, symbols[name])]
