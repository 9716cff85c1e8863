"""The same steps in NumPy, written from their definitions and not from the graph: what every fused artifact is compared with.

Arithmetic is float64; results are rounded once.
"""

from __future__ import annotations

import numpy as np

from edgekit.bundle import Detections, ImageInput, TopClasses
from edgekit.converters.processing._geometry import place

__all__ = ["detections", "prepared", "resized", "suppressed", "top_classes"]


def prepared(image: ImageInput, pictures: np.ndarray, channels_last: bool = False, dtype: str = "float32") -> np.ndarray:
    """What the source model reads.

    Args:
        image: the steps.
        pictures: uint8 [N,H,W,C] or [N,C,H,W], as ``image.layout`` says.
        channels_last: the model reads [N,H,W,C], not [N,C,H,W].
        dtype: of the model's input.
    """
    values = pictures.astype(np.float64)
    if image.layout == "HWC":
        values = values.transpose(0, 3, 1, 2)
    steps = place(image, (values.shape[2], values.shape[3]))
    if steps.resize is not None:
        values = resized(resized(values, 2, steps.resize[0]), 3, steps.resize[1])
    top, left, bottom, right = steps.pads
    values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=image.pad)
    if steps.cut is not None:
        top, left, height, width = steps.cut
        values = values[:, :, top : top + height, left : left + width]
    if image.colours:
        values = values[:, ::-1]
    mean, std = (np.asarray(each, np.float64).reshape(1, -1, 1, 1) for each in (image.mean, image.std))
    values = (values * image.scale - mean) / std
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if channels_last else values, np.dtype(dtype))


def resized(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear resampling of one axis: output ``i`` lies at ``(i + 0.5) * old / new - 0.5``; beyond the edge is the edge. No antialias."""
    old = values.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.int64)
    shape = [1] * values.ndim
    shape[axis] = size
    share = (at - low).reshape(shape)
    return np.asarray(values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, old - 1), axis) * share)


def top_classes(post: TopClasses, values: np.ndarray) -> dict[str, np.ndarray]:
    """The best ``k`` along the last axis, descending; of equal scores the lower class first."""
    scores = values.astype(np.float64)
    if post.activation == "softmax":
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
    elif post.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    order = np.argsort(-scores, axis=-1, kind="stable")[..., : post.k]
    return {post.scores: np.take_along_axis(scores, order, -1).astype(np.float32), post.classes: order.astype(np.int64)}


def detections(post: Detections, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Boxes after suppression, from the source model's own outputs."""
    boxes, scores = _head(post, outputs)
    found: dict[str, list[np.ndarray]] = {name: [] for name in (post.boxes, post.scores, post.classes, post.count)}
    for corners, table in zip(boxes, scores, strict=True):
        best, classes = table.max(axis=1), table.argmax(axis=1)
        kept = suppressed(post, corners, best, classes)
        rows = (corners[kept].astype(np.float32), best[kept].astype(np.float32), classes[kept].astype(np.int64))
        for name, row in zip((post.boxes, post.scores, post.classes), rows, strict=True):
            found[name].append(np.concatenate([row, np.zeros((post.max - len(kept), *row.shape[1:]), row.dtype)]))
        found[post.count].append(np.asarray(len(kept), np.int64))
    return {name: np.stack(rows) for name, rows in found.items()}


def _head(post: Detections, outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Corners [N,A,4] and class scores [N,A,C], in float32 as the model gave them."""
    if len(post.of) == 2:
        boxes, scores = (outputs[name] for name in post.of)
        scores = scores if scores.shape[1] == boxes.shape[1] else scores.transpose(0, 2, 1)
    else:
        joined = outputs[post.of[0]]
        joined = joined if joined.shape[1] >= joined.shape[2] else joined.transpose(0, 2, 1)
        boxes, scores = joined[..., :4], joined[..., 4:]
        if post.objectness:
            scores = scores[..., 1:] * scores[..., :1]
    scores = scores[..., 1:] if post.background else scores
    if post.format == "cxcywh":
        half = boxes[..., 2:] * boxes.dtype.type(0.5)
        boxes = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    return boxes, scores


def suppressed(post: Detections, corners: np.ndarray, best: np.ndarray, classes: np.ndarray) -> list[int]:
    """Greedy non-maximum suppression of one picture: indices of what is kept, best first."""
    order = np.argsort(-best, kind="stable")[: post.candidates]
    left = [int(index) for index in order if best[index] > np.float32(post.score)]
    kept: list[int] = []
    while left and len(kept) < post.max:
        chosen = left.pop(0)
        kept.append(chosen)
        left = [
            other
            for other in left
            if (not post.agnostic and classes[other] != classes[chosen]) or not _overlap(corners[chosen], corners[other], post.iou)
        ]
    return kept


def _overlap(a: np.ndarray, b: np.ndarray, limit: float) -> bool:
    """Intersection over union above ``limit``; a box without area overlaps nothing."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    inner = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).prod()
    area = [np.maximum(0, box[2:] - box[:2]).prod() for box in (a, b)]
    return bool(inner > limit * (area[0] + area[1] - inner))
