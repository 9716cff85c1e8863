"""Class numbers and boxes are compared by the scores behind them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle import Detections, OutputMetrics, Signature, TensorSpec, TopClasses
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for

TOP = TopClasses("scores", "classes", 3, "raw")
TOP_SIGNATURE = Signature((), (TensorSpec("scores", "float32", (1, 3)), TensorSpec("classes", "int64", (1, 3))), postprocess=TOP)
BOXES = Detections("boxes", "scores", "classes", "count", 0.5, 0.3, 4, 100, ("raw",), "xyxy")
BOX_SIGNATURE = Signature(
    (),
    (
        TensorSpec("boxes", "float32", (1, 4, 4)),
        TensorSpec("scores", "float32", (1, 4)),
        TensorSpec("classes", "int64", (1, 4)),
        TensorSpec("count", "int64", (1,)),
    ),
    postprocess=BOXES,
)


def ranking(scores: list[float], classes: list[int]) -> dict[str, np.ndarray]:
    return {"scores": np.array([scores], np.float32), "classes": np.array([classes], np.int64)}


def classes_of(reference: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> OutputMetrics:
    return compare_outputs([reference], [actual], TOP_SIGNATURE)["classes"]


def boxes(*rows: tuple[float, float, float, float, float, int]) -> dict[str, np.ndarray]:
    """Rows of (x1, y1, x2, y2, score, class), padded."""
    table = np.zeros((4, 6), np.float32)
    if rows:
        table[: len(rows)] = rows
    return {
        "boxes": table[None, :, :4],
        "scores": table[None, :, 4],
        "classes": table[None, :, 5].astype(np.int64),
        "count": np.array([len(rows)], np.int64),
    }


def misses(reference: dict[str, np.ndarray], actual: dict[str, np.ndarray], precision: str = "fp32") -> list[str]:
    signature = BOX_SIGNATURE if "boxes" in reference else TOP_SIGNATURE
    return check_metrics(compare_outputs([reference], [actual], signature), thresholds_for(precision))


def test_equal_rankings_agree() -> None:
    found = classes_of(ranking([0.5, 0.3, 0.1], [7, 2, 900]), ranking([0.5, 0.3, 0.1], [7, 2, 900]))
    assert found == OutputMetrics(0.0, 0.0, 1.0, 1.0)


def test_near_ties_may_come_in_either_order() -> None:
    near = ranking([0.5, 0.49999, 0.1], [7, 900, 3])
    assert not misses(near, ranking([0.5, 0.49999, 0.1], [900, 7, 3]))
    assert classes_of(near, ranking([0.5, 0.49999, 0.1], [900, 7, 3])).max_abs == pytest.approx(1e-5, rel=0.01)
    assert not misses(near, ranking([0.5, 0.49999, 0.1], [7, 900, 4]))  # the class after the last, with the same score
    apart = ranking([0.5, 0.45, 0.1], [7, 900, 3])
    assert misses(apart, ranking([0.5, 0.45, 0.1], [900, 7, 3]))
    assert any("classes" in miss for miss in misses(apart, ranking([0.5, 0.45, 0.1], [900, 7, 3])))


@pytest.mark.parametrize("wrong", [[8, 2, 3], [7, 8, 3], [7, 7, 3], [2, 7, 3]])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_another_class_is_wrong_although_its_score_is_right(wrong: list[int], precision: str) -> None:
    assert misses(ranking([0.5, 0.3, 0.1], [7, 2, 3]), ranking([0.5, 0.3, 0.1], wrong), precision)


def test_boxes_are_paired_before_they_are_compared() -> None:
    a, b, c = (0, 0, 10, 10, 0.9, 1), (50, 50, 80, 90, 0.89999, 1), (0, 0, 10, 10, 0.5, 2)
    found = compare_outputs([boxes(a, b, c)], [boxes(b, a, c)], BOX_SIGNATURE)
    assert all(metrics.max_rel == 0 for metrics in found.values())
    moved = compare_outputs([boxes(a, b)], [boxes((0, 0, 10, 10.5, 0.9, 1), b)], BOX_SIGNATURE)
    assert moved["boxes"].max_abs == pytest.approx(0.5)
    assert moved["count"].max_abs == 0


def test_a_box_of_another_class_or_place_is_missing() -> None:
    a, b = (0, 0, 10, 10, 0.9, 1), (50, 50, 80, 90, 0.7, 1)
    for wrong in (
        boxes(a),
        boxes(a, (50, 50, 80, 90, 0.7, 2)),
        boxes(a, (0, 50, 30, 90, 0.7, 1)),
        boxes(a, b, (200, 200, 210, 210, 0.6, 1)),
    ):
        assert misses(boxes(a, b), wrong)
        assert misses(boxes(a, b), wrong, "fp16")


def test_a_box_at_the_least_score_may_come_or_go() -> None:
    a, edge = (0, 0, 10, 10, 0.9, 1), (50, 50, 80, 90, 0.30001, 1)
    assert not misses(boxes(a, edge), boxes(a))
    assert not misses(boxes(a), boxes(a, edge))
    full = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0, 0.9 - 0.1 * i, 1) for i in range(3)]
    last, other = (100, 0, 110, 10, 0.50001, 1), (130, 0, 140, 10, 0.5, 1)
    assert not misses(boxes(*full, last), boxes(*full, other))  # the list is full: either may be the last
    assert misses(boxes(*full[:2], last), boxes(*full[:2], other))


def test_pictures_without_boxes_agree() -> None:
    assert not misses(boxes(), boxes())
    assert misses(boxes(), boxes((0, 0, 10, 10, 0.9, 1)))


def test_what_is_beyond_the_count_must_be_zero() -> None:
    a = (0, 0, 10, 10, 0.9, 1)
    dirty = boxes(a)
    dirty["boxes"][0, 3, 2] = 1.0
    assert misses(boxes(a), dirty)
    for count in (-1, 5):
        assert misses(boxes(a), boxes(a) | {"count": np.array([count])})
