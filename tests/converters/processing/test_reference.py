"""The NumPy steps against other people's: scikit-image's resampling, ONNX Runtime's NonMaxSuppression."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from skimage.transform import resize

from edgekit.bundle import Detections, ImageInput, TopClasses
from edgekit.converters.processing import _reference as reference


def detections(**changes: object) -> Detections:
    facts = {"boxes": "b", "scores": "s", "classes": "c", "count": "n", "iou": 0.4, "score": 0.3, "max": 20, "candidates": 200}
    return Detections(**(facts | {"of": ("raw",), "format": "xyxy"} | changes))


@pytest.mark.parametrize("size", [(5, 7), (40, 30), (13, 90), (20, 31), (1, 1)])
def test_resampling_is_scikit_images(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).uniform(0, 255, (20, 31))
    ours = reference.resized(reference.resized(picture, 0, size[0]), 1, size[1])
    theirs = resize(picture, size, order=1, mode="edge", anti_aliasing=False, preserve_range=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_steps_come_in_their_order() -> None:
    pictures = np.zeros((1, 2, 4, 3), np.uint8)
    pictures[..., 0], pictures[..., 2] = 100, 20
    image = ImageInput(
        "x", colours="RGB2BGR", given=(2, 4), resize=(4, 4), fit="letterbox", pad=200, scale=0.1, mean=(2.0, 0.0, 0.0), std=(1.0, 1.0, 2.0)
    )
    found = reference.prepared(image, pictures)
    assert found.shape == (1, 3, 4, 4)
    assert found.dtype == np.float32
    # Blue first now: 20 * 0.1 - 2; the bars are 200 before the mean and std of their channel.
    np.testing.assert_allclose(found[0, :, 1, 1], [0.0, 0.0, 5.0], atol=1e-6)
    np.testing.assert_allclose(found[0, :, 0, 0], [18.0, 20.0, 10.0], atol=1e-6)
    np.testing.assert_allclose(found[0, :, 3, 3], found[0, :, 0, 0])
    flipped = reference.prepared(image, pictures, channels_last=True)
    np.testing.assert_array_equal(flipped.transpose(0, 3, 1, 2), found)


def test_cover_keeps_the_centre() -> None:
    pictures = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    image = ImageInput("x", given=(4, 6), resize=(2, 2), fit="cover", crop=(1, 2))
    halves = resize(pictures[0, :, :, 0].astype(float), (2, 3), order=1, mode="edge", anti_aliasing=False, preserve_range=True)
    np.testing.assert_allclose(reference.prepared(image, pictures)[0, 0], halves[0:1, 0:2])


@pytest.mark.parametrize(
    ("activation", "expected"), [("none", [3.0, 2.0]), ("softmax", None), ("sigmoid", [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))])]
)
def test_the_best_classes_come_first(activation: str, expected: list[float] | None) -> None:
    post = TopClasses("s", "c", 2, "raw", activation)  # type: ignore[arg-type]
    found = reference.top_classes(post, np.array([[1.0, 3.0, 2.0, 2.0]], np.float32))
    np.testing.assert_array_equal(found["c"], [[1, 2]])
    if expected is None:
        powers = np.exp([1.0, 3.0, 2.0, 2.0])
        expected = [powers[1] / powers.sum(), powers[2] / powers.sum()]
    np.testing.assert_allclose(found["s"][0], expected, rtol=1e-6)


def onnx_nms(boxes: np.ndarray, scores: np.ndarray, iou: float, score: float, most: int, centre: int) -> list[tuple[int, int]]:
    """(box, class) pairs that ONNX Runtime's own operator keeps, best score first."""
    names = ["boxes", "scores", "most", "iou", "score"]
    arrays = [boxes, scores, np.array([most], np.int64), np.array([iou], np.float32), np.array([score], np.float32)]
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", names, ["kept"], center_point_box=centre)],
        "nms",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in zip(names, arrays, strict=True)],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["K", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = session.run(None, dict(zip(names, arrays, strict=True)))[0]
    return sorted(((int(box), int(kind)) for _, kind, box in rows), key=lambda pair: -scores[0, pair[1], pair[0]])


@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
@pytest.mark.parametrize("seed", range(5))
def test_suppression_keeps_what_onnx_runtimes_operator_keeps(seed: int, form: str) -> None:
    random = np.random.default_rng(seed)
    corner, side = random.uniform(0, 40, (1, 80, 2)), random.uniform(5, 30, (1, 80, 2))
    boxes = np.concatenate([corner + side / 2, side] if form == "cxcywh" else [corner, corner + side], axis=2).astype(np.float32)
    # One class of a box scores, as it is with the best class of each: ONNX's operator keeps a box once for every class.
    kinds, values = random.integers(0, 3, 80), random.uniform(0, 1, 80)
    scores = np.zeros((1, 80, 3), np.float32)
    scores[0, np.arange(80), kinds] = values
    post = detections(of=("raw_boxes", "raw_scores"), format=form, max=80)
    found = reference.detections(post, {"raw_boxes": boxes, "raw_scores": scores})
    kept = onnx_nms(boxes, scores.transpose(0, 2, 1), 0.4, 0.3, 80, centre=int(form == "cxcywh"))
    count = int(found["n"][0])
    assert 10 < count == len(kept) < 60
    np.testing.assert_array_equal(found["c"][0, :count], [kind for _, kind in kept])
    np.testing.assert_array_equal(found["s"][0, :count], [scores[0, box, kind] for box, kind in kept])
    assert not found["b"][0, count:].any()
    assert not found["s"][0, count:].any()
