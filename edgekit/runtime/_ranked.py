"""Comparing outputs whose order depends on their values: the best classes, and a detector's boxes. Pure functions.

Two scores that nearly tie may come out in either order, and then every number at those places differs although nothing is wrong. So a class number
is not compared as a number: what counts is the *gap*, the difference of the reference scores between what should be at a place and what is there.
Boxes are paired first, by class and place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgekit.bundle import Detections, OutputMetrics, TopClasses

__all__ = ["ranked_metrics"]

Outputs = Mapping[str, np.ndarray]
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]

_SAME_PLACE = 0.5
"""Boxes that overlap by more than this (intersection over union) can be a pair: the usual limit for calling a detection right (PASCAL VOC)."""


def ranked_metrics(
    post: TopClasses | Detections,
    reference: Sequence[Outputs],
    actual: Sequence[Outputs],
    plain: Callable[[Pairs], OutputMetrics],
    tie: float,
) -> dict[str, OutputMetrics]:
    """Metrics of the outputs that stand for a ranking; ``max_abs`` and ``max_rel`` of class numbers and counts are gaps in score.

    Args:
        post: what made them.
        reference, actual: per sample, outputs by name, of equal dtypes and shapes.
        plain: metrics of arrays whose order is fixed.
        tie: share of the largest score below which the best two classes count as equal.
    """
    if isinstance(post, TopClasses):
        return {post.classes: _class_gaps(post, reference, actual, tie)}
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    gap, scale = 0.0, 0.0
    for want, got in zip(reference, actual, strict=True):
        for picture in range(len(want[post.count])):
            ours, theirs = _rows(post, want, picture), _rows(post, got, picture)
            pairs = _paired(ours, theirs)
            left, right = [list(side) for side in zip(*pairs, strict=True)] if pairs else ([], [])
            boxes.append((ours[0][left], theirs[0][right]))
            scores.append((ours[1][left], theirs[1][right]))
            scale = max(scale, float(np.max(np.abs(ours[1]), initial=0.0)))
            gap = max(gap, _unpaired_gap(post, ours[1], set(left)), _unpaired_gap(post, theirs[1], set(right)))
            if not _is_padded(post, got, picture):
                gap = max(gap, scale, 1.0)
    found = OutputMetrics(gap, gap / (scale or 1.0), 1.0)
    return {post.boxes: plain(boxes), post.scores: plain(scores), post.classes: found, post.count: found}


# --- classes -------------------------------------------------------------------------------------------------------------------------------


def _class_gaps(post: TopClasses, reference: Sequence[Outputs], actual: Sequence[Outputs], tie: float) -> OutputMetrics:
    gap, scale, agree, rows = 0.0, 0.0, 0, 0
    for want, got in zip(reference, actual, strict=True):
        scores = want[post.scores].reshape(-1, post.k).astype(np.float64)
        right, found = want[post.classes].reshape(-1, post.k), got[post.classes].reshape(-1, post.k)
        for values, names, given in zip(scores, right, found, strict=True):
            peak = float(np.abs(values).max())
            gaps = [_class_gap(values, names, place, name) for place, name in enumerate(given)]
            repeated = len(set(given.tolist())) < post.k
            gap, scale = max(gap, *gaps, peak if repeated else 0.0), max(scale, peak)
            agree, rows = agree + (gaps[0] <= tie * peak and not repeated), rows + 1
    return OutputMetrics(gap, gap / (scale or 1.0), 1.0, agree / rows)


def _class_gap(values: np.ndarray, names: np.ndarray, place: int, name: int) -> float:
    """How much worse, in the reference, the class at a place is than the one that belongs there.

    A class that the reference does not list scores at most what its last one does; in the first place nothing bounds how much less.
    """
    if names[place] == name:
        return 0.0
    listed = np.flatnonzero(names == name)
    if listed.size:
        return float(abs(values[place] - values[listed[0]]))
    return float(values[place] - values[-1]) if place else float(np.abs(values).max())


# --- boxes ---------------------------------------------------------------------------------------------------------------------------------

_Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _rows(post: Detections, outputs: Outputs, picture: int) -> _Rows:
    """Boxes, scores and classes of one picture, without the padding."""
    count = max(0, min(int(outputs[post.count][picture]), post.max))
    return outputs[post.boxes][picture][:count], outputs[post.scores][picture][:count], outputs[post.classes][picture][:count]


def _is_padded(post: Detections, outputs: Outputs, picture: int) -> bool:
    """The count is one, and what lies beyond it is zero."""
    count = int(outputs[post.count][picture])
    rest = (outputs[name][picture][count:] for name in (post.boxes, post.scores, post.classes))
    return 0 <= count <= post.max and not any(part.any() for part in rest)


def _paired(ours: _Rows, theirs: _Rows) -> list[tuple[int, int]]:
    """Each of our boxes, best first, with the free box of its class that overlaps it most, if any does well enough."""
    free, pairs = list(range(len(theirs[1]))), []
    for index, (box, kind) in enumerate(zip(ours[0], ours[2], strict=True)):
        candidates = [other for other in free if theirs[2][other] == kind]
        overlaps = [_overlap(box, theirs[0][other]) for other in candidates]
        if overlaps and max(overlaps) > _SAME_PLACE:
            chosen = candidates[int(np.argmax(overlaps))]
            free.remove(chosen)
            pairs.append((index, chosen))
    return pairs


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union; 1 for two equal boxes, also without area."""
    if np.array_equal(a, b):
        return 1.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    inner = float(np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).prod())
    union = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - inner
    return inner / union if union > 0 else 0.0


def _unpaired_gap(post: Detections, scores: np.ndarray, paired: set[int]) -> float:
    """How far boxes without a partner are above what would have kept them out: the least score or, in a full list, its last one."""
    alone = [float(score) for index, score in enumerate(scores) if index not in paired]
    if not alone:
        return 0.0
    floor = float(scores[-1]) if len(scores) == post.max else post.score
    return max(alone) - floor
