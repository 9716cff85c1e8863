"""Dimensions that the user leaves open (``--shape x=-1,3,-1,-1``): which they are, and at what sizes a model is looked at to keep them open.

Targets that want fixed sizes are given the model at two or three settings of its open dimensions and make one artifact of what differs (`Emitter.batch_probes`);
what they made is proven at other settings. A height or width is tried at any number, then at multiples of 2, 4, … 64: the smallest step that the model itself takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from edgekit.bundle import Dim, Signature
from edgekit.errors import ModelError

__all__ = ["Settings", "at_sizes", "batch_symbols", "bounds", "find_settings", "open_symbols", "sized"]

Sizes = dict[str, int]

_STEPS = (1, 2, 4, 8, 16, 32, 64)
# Rounded up to a step. One row is one setting, its places are open dimensions in order. Odd and even, so that what rounds shows; far apart, so that what is a
# thirty-second of them differs as well.
_PROBES = ((37, 59, 83), (74, 106, 45), (131, 45, 150))
_PROOFS = ((60, 83, 37), (91, 50, 70), (48, 121, 99))

_LEAST, _MOST = 32, 1024
"""Sizes that an artifact admits for an open dimension beside the batch, where its format wants bounds; and all that the samples have."""


@dataclass(frozen=True)
class Settings:
    """Sizes of open dimensions, by symbol.

    Attributes:
        probes: at which targets get the model.
        proofs: at which artifacts are proven, the batch apart; none of them is a probe.
        step: of which all sizes beside the batch are multiples.
    """

    probes: tuple[Sizes, ...] = ()
    proofs: tuple[Sizes, ...] = ()
    step: int = 1


def open_symbols(signature: Signature, shapes: Mapping[str, Sequence[Dim]]) -> tuple[str, ...]:
    """Symbols for which a ``--shape`` says -1, or the symbol itself, in order. One that nobody speaks of does not count."""
    found: dict[str, None] = {}
    for spec in signature.inputs:
        for size, dim in zip(shapes.get(spec.name, ()), spec.shape, strict=False):
            if isinstance(dim, str) and size in (-1, dim):
                found[dim] = None
    return tuple(found)


def batch_symbols(signature: Signature) -> frozenset[str]:
    """Symbols of first dimensions."""
    return frozenset(spec.shape[0] for spec in signature.inputs if spec.shape and isinstance(spec.shape[0], str))


def at_sizes(signature: Signature, shapes: Mapping[str, Sequence[Dim]], sizes: Mapping[str, int]) -> dict[str, tuple[Dim, ...]]:
    """The same shapes with sizes in the place of what is open."""
    dims = {spec.name: spec.shape for spec in signature.inputs}

    def sized_dim(size: Dim, dim: Dim) -> Dim:
        return sizes.get(dim, size) if isinstance(dim, str) and size in (-1, dim) else size

    return {
        name: tuple(map(sized_dim, shape, dims[name])) if name in dims and len(dims[name]) == len(shape) else tuple(shape)
        for name, shape in shapes.items()
    }


def sized(signature: Signature, sizes: Mapping[str, int]) -> Signature:
    """A signature whose inputs have sizes in the place of symbols."""
    inputs = (
        structs.replace(spec, shape=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape))
        for spec in signature.inputs
    )
    return structs.replace(signature, inputs=tuple(inputs))


def find_settings(signature: Signature, opened: Sequence[str], batches: Sequence[int], takes: Callable[[Signature], bool]) -> Settings:
    """Settings that the model takes.

    Args:
        signature: of the model, with all else fixed but the batch.
        opened: symbols.
        batches: sizes for symbols of first dimensions in probes; at least as many as there are probes.
        takes: whether the model runs with inputs of a signature.

    Raises:
        ModelError: no step will do.
    """
    batch = [symbol for symbol in opened if symbol in batch_symbols(signature)]
    others = [symbol for symbol in opened if symbol not in batch]
    if not others:
        return Settings(tuple(dict.fromkeys(batch, size) for size in batches[:2]))
    for step in _STEPS:
        probes, proofs = (tuple(_rounded(row, others, step) for row in rows) for rows in (_PROBES, _PROOFS))
        if all(takes(sized(signature, sizes)) for sizes in (*probes, *proofs)):
            with_batch = zip(probes, batches, strict=False) if batch else ((sizes, 1) for sizes in probes)
            return Settings(tuple({**sizes, **dict.fromkeys(batch, size)} for sizes, size in with_batch), proofs, step)
    raise ModelError(
        "the model",
        f"runs at none of the sizes tried for {', '.join(others)} (multiples of 1, 2, … {_STEPS[-1]} around {_PROBES[0][0]} to {max(map(max, _PROBES))})",
        "",
        "give --shape with numbers",
    )


def bounds(settings: Settings, symbol: str, seen: Sequence[int]) -> tuple[int, int]:
    """Shortest and longest length to admit of an open dimension beside the batch, given those of the samples."""
    step = settings.step
    sizes = [size[symbol] for size in (*settings.probes, *settings.proofs)]
    return min(*seen, *sizes, math.ceil(_LEAST / step) * step), max(*seen, *sizes, _MOST)


def _rounded(row: Sequence[int], symbols: Sequence[str], step: int) -> Sizes:
    return {symbol: math.ceil(length / step) * step for symbol, length in zip(symbols, _lengths(row), strict=False)}


def _lengths(row: Sequence[int]) -> Iterator[int]:
    """The row, and again with more added each time, for models with more open dimensions than it has."""
    more = 0
    while True:
        yield from (length + more for length in row)
        more += 29
