"""How far an artifact's outputs are from the source model's, and whether that is near enough. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.bundle import OutputMetrics, Signature
from edgekit.errors import UnknownNameError, VerificationError
from edgekit.runtime._ranked import ranked_metrics

__all__ = [
    "TIE",
    "are_distributions",
    "check_metrics",
    "compare_outputs",
    "describe_metrics",
    "thresholds_for",
    "top1_agreement",
    "worst_output",
]

TIE = 2.0**-10
"""Scores closer than this, relative to the largest of their row, count as equal: the spacing of binary16 numbers (IEEE 754-2019, 11
significant bits), so half precision cannot order them."""

QUIET = 1e-2
"""A sample whose output stays below this share of the output's largest reference value takes no part in ``cosine``: it holds little but
rounding (a detector that sees nothing answers 1e-7 everywhere), and a direction of rounding errors means nothing."""

FINEST = 2.0**-22
"""In an output that stays from 0 to `QUIET` differences up to this count as none. float32 has a spacing of 2^-23 below 1, and a probability is as coarse as that everywhere when
it is computed from it: ONNX Runtime 1.31's Sigmoid, the reference, is wrong by up to 1.7e-7 at every argument, which is all there is of it below -16. The artifacts
that differ from it there are nearer to the truth (LiteRT and Core ML compute the exponential)."""

_LEAST_SCALE = 1e-3
"""Errors of such an output are relative to no less than this. Its logits are -7 and below, a sigmoid turns their absolute error into a relative one, and half precision
has a spacing of 2^-8 there and more: the PP-OCRv4 detector's 2e-4 come out 6 % off, which is 1e-5 of a probability. Its direction must hold all the same."""

_SUM_TOLERANCE = 1e-3  # of 1.0: a softmax in float32 over thousands of classes is nearer than that

# Upper limits on max_abs / max_rel, lower limits on cosine and top1_agreement. Where there is a limit ``probability_cosine``, an output of probability
# distributions is held to it and to top1_agreement alone.
_THRESHOLDS: dict[str, dict[str, float]] = {
    # Same arithmetic in another order: float32 sums of 1e4 terms differ by about 1e-6 relative; Winograd and FFT convolutions and
    # polynomial exp/tanh add up to 1e-4. Ten times that is a wrong operator, not rounding.
    "fp32": {"max_rel": 1e-3, "cosine": 0.99999, "top1_agreement": 1.0},
    # binary16 rounds each value by up to 2^-11 = 4.9e-4; over a hundred layers these errors add up like a random walk to some 5e-3, and a
    # softmax turns an absolute error of a logit into a relative one. Top-1 may flip in one row of fifty where classes nearly tie.
    # Where an output is a probability distribution and two classes nearly tie, any rounding moves most of the mass from one to the other: in the
    # PP-OCRv4 recogniser, rounding the weights alone (arithmetic in float32) moves one step of 640 by 0.69, the same for every engine. So
    # distributions are held to their direction over the whole sample and to the chosen classes, not to the worst single value. On rendered text one
    # sample of eight has a cosine of 0.976 there, with every class as in float32.
    "fp16": {"max_rel": 5e-2, "cosine": 0.999, "top1_agreement": 0.98, "probability_cosine": 0.95},
    # Eight bits have 256 steps: how much a model loses is measured and bounded layer by layer before the artifact is written (`--min-agreement`,
    # edgekit.converters.quantization). What is held here is that an engine's integer kernels do what was measured, on samples too few for percentages.
    "int8": {"max_rel": 0.35, "cosine": 0.95, "top1_agreement": 0.85, "probability_cosine": 0.9},
}


def compare_outputs(
    reference: Sequence[Mapping[str, np.ndarray]], actual: Sequence[Mapping[str, np.ndarray]], signature: Signature
) -> dict[str, OutputMetrics]:
    """Metrics of every output over all samples.

    ``max_rel`` is the largest absolute error over the largest absolute reference value of that output in any sample (over 1.0 where the
    reference is all zeros); of probabilities that are all but 0, see `FINEST` and `_LEAST_SCALE`. ``cosine`` treats a sample's output as one vector, samples
    below `QUIET` apart; two zero vectors give 1, one gives 0.
    ``top1_agreement`` is the share of rows (along the last axis) whose arg-max is the reference's, or one of its ties within `TIE`. An
    output has class scores when it is float, its last axis has at least 2 elements, and either its rank is 2 or each of its rows is a
    probability distribution: a picture or a recurrent state is not, a sequence of softmax rows is. Integers and booleans are compared as
    numbers, but for class numbers and counts of a post-processing: see `edgekit.runtime._ranked`.

    Args:
        reference: per sample, outputs of the source model by name.
        actual: per sample, outputs of the artifact by name; same order.
        signature: names the outputs.

    Raises:
        VerificationError: no samples, an output that is missing, another dtype or shape, a NaN or
            infinity on one side only, a source that answers with nothing but NaN.
    """
    if not reference or len(reference) != len(actual):
        raise VerificationError("samples", f"{len(actual)} answers to {len(reference)} samples", "one answer per sample, at least one")
    metrics = {}
    for spec in signature.outputs:
        pairs = []
        for index, (want, got) in enumerate(zip(reference, actual, strict=True)):
            if spec.name not in got or spec.name not in want:
                raise VerificationError(f"output {spec.name!r} of sample {index}", "missing", spec.describe())
            _check(spec.name, index, want[spec.name], got[spec.name])
            pairs.append((want[spec.name], got[spec.name]))
        metrics[spec.name] = _metrics(pairs)
    if signature.postprocess is not None:
        metrics |= ranked_metrics(signature.postprocess, reference, actual, _metrics, TIE)
    return metrics


def thresholds_for(precision: str) -> dict[str, float]:
    """The limits that an artifact of a precision must keep; ``max_rel`` from above, ``cosine`` and ``top1_agreement`` from below.

    Raises:
        UnknownNameError: no limits are known for it.
    """
    if precision not in _THRESHOLDS:
        raise UnknownNameError("precision", precision, _THRESHOLDS)
    return dict(_THRESHOLDS[precision])


def check_metrics(metrics: Mapping[str, OutputMetrics], thresholds: Mapping[str, float]) -> list[str]:
    """What misses its limit, worst first; empty when all is near enough. A NaN misses every limit."""
    misses = [
        (excess, f"output {name!r}: {key} {value:.6g}, limit {thresholds[key]:g}")
        for name, found in metrics.items()
        for key, value, excess in _excesses(found, thresholds)
        if not excess <= 1.0
    ]
    return [text for _, text in sorted(misses, key=lambda miss: (-np.nan_to_num(miss[0], nan=np.inf), miss[1]))]


def worst_output(metrics: Mapping[str, OutputMetrics], thresholds: Mapping[str, float]) -> str:
    """Name of the output that is nearest to, or furthest beyond, one of its limits."""

    def badness(name: str) -> float:
        return max((float(np.nan_to_num(excess, nan=np.inf)) for _, _, excess in _excesses(metrics[name], thresholds)), default=0.0)

    return max(metrics, key=badness)


def describe_metrics(metrics: OutputMetrics) -> str:
    """``max_abs 1.2e-07, max_rel 3e-07, cosine 1.00000000, top1 1.0000``."""
    text = f"max_abs {metrics.max_abs:.3g}, max_rel {metrics.max_rel:.3g}, cosine {metrics.cosine:.8f}"
    return text if metrics.top1_agreement is None else f"{text}, top1 {metrics.top1_agreement:.4f}"


def _excesses(found: OutputMetrics, thresholds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """``(metric, value, how much of its limit is used)`` per limited metric; above 1 is a miss. A limit of 0 or 1 takes no error."""
    used = []
    lenient = found.probabilities and "probability_cosine" in thresholds
    for key, limit in thresholds.items():
        if key in (("max_rel", "cosine") if lenient else ("probability_cosine",)):
            continue
        value = found.cosine if key == "probability_cosine" else getattr(found, key)
        if value is None:
            continue
        error, allowed = (value, limit) if key.startswith("max_") else (1.0 - value, 1.0 - limit)
        used.append((key, value, error / allowed if allowed > 0 else (0.0 if error <= 0 else np.inf if error > 0 else np.nan)))
    return used


def _check(name: str, index: int, want: np.ndarray, got: np.ndarray) -> None:
    thing = f"output {name!r} of sample {index}"
    if want.dtype != got.dtype or want.shape != got.shape:
        raise VerificationError(thing, f"{got.dtype}{list(got.shape)}", f"{want.dtype}{list(want.shape)} as in the source model")
    if want.dtype.kind not in "fiub":
        raise VerificationError(thing, f"dtype {want.dtype}", "numbers", "this dtype cannot be compared yet")
    undefined = np.isnan(want)
    if want.size and undefined.all():
        step = "give samples that the model is made for with --calibration"
        raise VerificationError(thing, f"the source model itself answers with {want.size} NaN values and nothing else", "numbers", step)
    # An infinity is an answer, the score of what is masked out for instance, and so is the root of a negative number: it has to be the same.
    if bad := int(np.count_nonzero((want != got) & ~(undefined & np.isnan(got)) & ~(np.isfinite(want) & np.isfinite(got)))):
        raise VerificationError(
            thing,
            f"{bad} of {got.size} values are NaN, or infinite where the source model's are not",
            "the source model's values",
            "build it with --precision fp32",
        )


def _metrics(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> OutputMetrics:
    # float64, so that the comparison's own rounding does not count; a 64-bit integer above 2^53 is rounded the same on both sides
    wide = [(_finite(want, want), _finite(got, want)) for want, got in pairs]
    max_abs = max(float(np.max(np.abs(want - got), initial=0.0)) for want, got in wide)
    silent = all(_are_small_probabilities(want) for want, _ in pairs)
    if silent:
        wide = [(want, np.where(np.abs(want - got) <= FINEST, want, got)) for want, got in wide]
    error = max(float(np.max(np.abs(want - got), initial=0.0)) for want, got in wide)
    peaks = [float(np.max(np.abs(want), initial=0.0)) for want, _ in wide]
    scale = max(peaks)
    least = _LEAST_SCALE if silent and scale else 0.0
    cosine = min(_cosine(*pair) for pair, peak in zip(wide, peaks, strict=True) if peak >= QUIET * scale)
    distributions = all(are_distributions(want) for want, _ in pairs)
    return OutputMetrics(max_abs, error / (max(scale, least) or 1.0), cosine, top1_agreement(pairs), distributions)


def _finite(array: np.ndarray, want: np.ndarray) -> np.ndarray:
    """As a vector, without what is infinite or NaN on both sides."""
    wide: np.ndarray = array.astype(np.float64)[np.isfinite(want)]
    return wide


def _are_small_probabilities(array: np.ndarray) -> bool:
    """Floats of 32 bits or fewer, all from 0 to `QUIET`: so far as values can tell, probabilities of what is not there."""
    return array.dtype.kind == "f" and array.dtype.itemsize <= 4 and bool(np.all((array >= 0) & (array <= QUIET)))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    if np.array_equal(a, b):
        return 1.0
    # Scaled first: squares of numbers near the ends of the float range would overflow or vanish.
    top_a, top_b = np.max(np.abs(a)), np.max(np.abs(b))
    if not top_a or not top_b:
        return 0.0
    a, b = a / top_a, b / top_b
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def top1_agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Share of rows whose arg-max is the reference's or one of its ties; None where the output has no class axis (see `compare_outputs`)."""
    if not all(_has_class_axis(want) for want, _ in pairs):
        return None
    agree = rows = 0
    for want, got in pairs:
        scores, chosen = want.reshape(-1, want.shape[-1]).astype(np.float64), got.reshape(-1, got.shape[-1]).argmax(axis=1)
        slack = TIE * np.abs(scores).max(axis=1, where=np.isfinite(scores), initial=0.0)
        near = scores[np.arange(len(scores)), chosen] >= scores.max(axis=1) - slack
        agree += int(np.count_nonzero(near | (chosen == scores.argmax(axis=1))))  # the second where the scores are infinite or NaN
        rows += len(scores)
    return agree / rows if rows else None


def _has_class_axis(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" or array.ndim < 2 or array.shape[-1] < 2 or not array.size:
        return False
    return array.ndim == 2 or are_distributions(array)


def are_distributions(array: np.ndarray) -> bool:
    """Every row along the last axis is a probability distribution over two classes or more."""
    if array.dtype.kind != "f" or array.ndim < 2 or array.shape[-1] < 2 or not array.size:
        return False
    return bool(np.all(array >= 0) and np.all(np.abs(array.sum(axis=-1, dtype=np.float64) - 1.0) <= _SUM_TOLERANCE))
