"""Counting n-grams."""

from __future__ import annotations

import numpy as np

from edgekit.converters._lowering._piece import CannotLowerError, Piece
from edgekit.converters._lowering._rules import lowers

__all__: list[str] = []


@lowers("TfIdfVectorizer")
def tf_idf_vectorizer(piece: Piece) -> None:
    """Compare every stretch of the input with every n-gram of the pool, and add up what matches."""
    node, attrs = piece.node, piece.node.attrs
    if "pool_strings" in attrs:
        raise CannotLowerError("a pool of strings")
    shape = piece.around.shape(node.inputs[0])
    tokens = piece.op("Cast", node.inputs[0], to=7)
    if len(shape) == 1:
        tokens = piece.unsqueeze(tokens, [0])
    length = shape[-1]
    indexes = [int(index) for index in attrs["ngram_indexes"]]
    width = max(indexes) + 1
    total = ""
    for size, grams, places in _pool(attrs, indexes):
        for skip in range(int(attrs["max_skip_count"]) + 1 if size > 1 else 1):
            count = length - (size - 1) * (skip + 1)
            if count > 0 and len(grams):
                part = _matches(piece, tokens, grams, skip + 1, count)
                spread = np.zeros((len(grams), width), np.float32)
                spread[np.arange(len(grams)), places] = 1
                part = piece.op("MatMul", part, spread)
                total = piece.op("Add", total, part) if total else part
    if not total:
        rows = 1 if len(shape) == 1 else shape[0]
        total = piece.constant(np.zeros((rows, width), np.float32))
    total = _weighted(piece, total, indexes, width)
    piece.op("Reshape", total, np.array([width] if len(shape) == 1 else [shape[0], width], np.int64), into=node.outputs[0])


def _pool(attrs: dict[str, object], indexes: list[int]) -> list[tuple[int, np.ndarray, list[int]]]:
    """Per length of n-grams that is wanted: the length, the n-grams ``[count, length]`` and their places in the output."""
    pool = np.array(attrs["pool_int64s"], np.int64)
    starts = [int(start) for start in attrs["ngram_counts"]]  # type: ignore[attr-defined]
    low, high = int(attrs["min_gram_length"]), int(attrs["max_gram_length"])  # type: ignore[call-overload]
    found, done = [], 0
    for size, start in enumerate(starts, 1):
        end = starts[size] if size < len(starts) else len(pool)
        grams = pool[start:end].reshape(-1, size)
        if low <= size <= high:
            found.append((size, grams, indexes[done : done + len(grams)]))
        done += len(grams)
    return found


def _matches(piece: Piece, tokens: str, grams: np.ndarray, step: int, count: int) -> str:
    """How often each n-gram stands in each row, its tokens ``step`` apart: ``[rows, n-grams]``, float32."""
    same = ""
    for place in range(grams.shape[1]):
        start = place * step
        part = piece.op("Slice", tokens, piece.ints(start), piece.ints(start + count), piece.ints(1))
        equal = piece.op("Equal", piece.unsqueeze(part, [2]), grams[:, place].reshape(1, 1, -1))
        same = piece.op("And", same, equal) if same else equal
    return piece.reduce("ReduceSum", piece.op("Cast", same, to=1), [1])


def _weighted(piece: Piece, counts: str, indexes: list[int], width: int) -> str:
    """Counts, weights of what occurs, or their product."""
    mode = str(piece.node.attrs["mode"])
    if mode == "TF":
        return counts
    weights = np.ones(width, np.float32)
    if "weights" in piece.node.attrs:
        weights[indexes] = np.array(piece.node.attrs["weights"], np.float32)
    if mode == "IDF":
        counts = piece.op("Cast", piece.op("Greater", counts, np.float32(0)), to=1)
    return piece.op("Mul", counts, weights)
