"""How far quantised outputs agree with the float model's. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from edgekit.bundle import Signature
from edgekit.runtime._compare import QUIET, are_distributions, top1_agreement

__all__ = ["agreement", "class_rows", "decibel", "divergence", "noise"]

_LEAST = 1e-9  # below, a probability is rounding: float32 softmax rows sum to 1 within 1e-7

Outputs = Sequence[Mapping[str, np.ndarray]]


def agreement(reference: Outputs, actual: Outputs, signature: Signature) -> float:
    """The worst output's agreement, 1.0 at best.

    An output with a class axis (`edgekit.runtime`'s rule): the share of rows whose best class is the same. Any other float output: the cosine of the worst sample
    (`compare_outputs`), and of all samples laid end to end, so that also an output of one number a sample says something. Integer and boolean outputs: the
    share of equal values.
    """
    found = [1.0]
    for spec in signature.outputs:
        pairs = [(want[spec.name], got[spec.name]) for want, got in zip(reference, actual, strict=True)]
        if any(want.shape != got.shape for want, got in pairs):
            return 0.0
        if pairs[0][0].dtype.kind != "f":
            total = sum(want.size for want, _ in pairs)
            found.append(sum(int(np.count_nonzero(want == got)) for want, got in pairs) / total if total else 1.0)
            continue
        top1 = top1_agreement(pairs)
        found.append(min(_cosine(pairs), _worst_sample(pairs)) if top1 is None else top1)
    return min(found)


def class_rows(reference: Outputs, signature: Signature) -> int:
    """How many answers the output with the fewest classified rows gives over all samples; 0 when none has a class axis."""
    counts = []
    for spec in signature.outputs:
        arrays = [sample[spec.name] for sample in reference]
        if top1_agreement([(array, array) for array in arrays]) is not None:
            counts.append(sum(array.size // array.shape[-1] for array in arrays))
    return min(counts, default=0)


def noise(reference: Outputs, actual: Outputs, signature: Signature) -> float:
    """Power of the error over power of the signal, of the worst float output; 0 when all are equal, infinity when an output is not finite."""
    worst = 0.0
    for spec in signature.outputs:
        signal = error = 0.0
        for want, got in zip(reference, actual, strict=True):
            wide, other = want[spec.name], got[spec.name]
            if wide.dtype.kind != "f":
                continue
            if wide.shape != other.shape or not np.all(np.isfinite(other)):
                return math.inf
            wide = wide.astype(np.float64)
            signal += float(np.sum(wide * wide))
            error += float(np.sum((wide - other) ** 2))
        worst = max(worst, error / signal if signal else (math.inf if error else 0.0))
    return worst


def divergence(reference: Outputs, actual: Outputs, signature: Signature) -> float:
    """How much answers are spoilt, of the worst float output: a smooth measure to order layers by, where shares of equal answers are too coarse.

    For probability distributions the mean Kullback-Leibler divergence from the float model's; `noise` else. The power of an error says little about
    distributions: it is made by the few rows that are undecided.
    """
    worst = 0.0
    for spec in signature.outputs:
        wanted, found = [each[spec.name] for each in reference], [each[spec.name] for each in actual]
        if not all(are_distributions(array) for array in wanted):
            worst = max(worst, noise(reference, actual, replace(signature, outputs=(spec,))))
        elif all(np.all(np.isfinite(array)) for array in found):
            worst = max(worst, float(np.mean([_kullback_leibler(*pair) for pair in zip(wanted, found, strict=True)])))
        else:
            return math.inf
    return worst


def decibel(ratio: float) -> float:
    """Signal-to-noise in dB of a noise ratio; 999.0 for none, so that it stays a JSON number."""
    if ratio <= 0:
        return 999.0
    return -999.0 if math.isinf(ratio) else round(-10 * math.log10(ratio), 2)


def _kullback_leibler(want: np.ndarray, got: np.ndarray) -> float:
    """Mean over rows, in nats; a probability below `_LEAST` counts as that."""
    p, q = want.astype(np.float64), np.maximum(got.astype(np.float64), _LEAST)
    return float(np.mean(np.sum(p * (np.log(np.maximum(p, _LEAST)) - np.log(q)), axis=-1)))


def _worst_sample(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Smallest cosine of a sample, of those that hold more than rounding."""
    peaks = [float(np.max(np.abs(want), initial=0.0)) for want, _ in pairs]
    return min((_cosine([pair]) for pair, peak in zip(pairs, peaks, strict=True) if peak >= QUIET * max(peaks)), default=1.0)


def _cosine(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    want = np.concatenate([pair[0].astype(np.float64).ravel() for pair in pairs])
    got = np.concatenate([pair[1].astype(np.float64).ravel() for pair in pairs])
    if not np.all(np.isfinite(got)):
        return 0.0
    if np.array_equal(want, got):
        return 1.0
    scale = float(np.linalg.norm(want) * np.linalg.norm(got))
    return float(np.clip(want @ got / scale, -1.0, 1.0)) if scale else 0.0
