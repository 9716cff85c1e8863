"""Every engine's artifact with the steps inside, against the steps in NumPy around the plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from skimage.transform import resize

import edgekit
from edgekit.bundle import LABELS, Bundle, Detections, TopClasses
from edgekit.converters import processing
from edgekit.converters._samples import reference_run, synthetic_inputs
from edgekit.converters._source import load_source
from edgekit.errors import ModelError, ShapeRequiredError, UnknownNameError, UsageError
from edgekit.runtime import load, verify_bundle
from tests.converters.processing.conftest import ENGINES

pytestmark = pytest.mark.slow

SLOW = ("tensorrt", "tflite", "coreml")  # their toolchains take seconds
EVERY = [pytest.param(engine, marks=pytest.mark.slow if engine.startswith(SLOW) else ()) for engine in ENGINES]

IMAGENET = "scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225"
IMAGES = {
    "plain": "image=uint8,HWC",
    "all": f"image=uint8,HWC,RGB2BGR,from=20x30,resize=16x16,{IMAGENET}",
    "larger": "image=uint8,CHW,from=9x11,resize=16x16,mean=127.5,std=128",
    "letterbox": "image=uint8,HWC,from=24x40,resize=16x16,fit=letterbox,pad=114,scale=1/255",
    "cover": f"image=uint8,HWC,BGR2RGB,from=24x40,resize=20x20,fit=cover,crop=16x16,{IMAGENET}",
}
MAX_REL = 5e-6
"""Of float32 outputs; the limit of a build is 1e-3."""


def check(bundle: Bundle, limit: float = MAX_REL) -> Bundle:
    metrics = bundle.manifest.verification.metrics
    assert metrics
    assert all(found.max_rel <= limit for found in metrics.values()), metrics
    return bundle


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("engine", EVERY)
def test_pictures_go_in_as_they_are(classifier: Callable[..., Path], tmp_path: Path, engine: str, name: str) -> None:
    bundle = check(
        edgekit.build(classifier(), device=ENGINES[engine], precision="fp32", image_inputs=[IMAGES[name]], output=tmp_path / "b.edgekit")
    )
    assert bundle.manifest.artifact.engine == engine
    assert bundle.signature.inputs[0].dtype == "uint8"
    assert bundle.signature.images[0] == processing.parse_image_input(IMAGES[name])
    assert bundle.manifest.source.filename == classifier().name


def test_the_golden_answers_are_those_of_the_plain_model(classifier: Callable[..., Path], tmp_path: Path) -> None:
    """Without any code of ours: scikit-image resamples, NumPy normalises, ONNX Runtime runs the file."""
    bundle = edgekit.build(classifier(), device="generic-x86", image_inputs=[IMAGES["all"]], output=tmp_path / "b")
    session = onnxruntime.InferenceSession(classifier(), providers=["CPUExecutionProvider"])
    for sample in bundle.golden():
        pictures = sample.inputs["image"].astype(float)
        small = [resize(each, (16, 16), order=1, mode="edge", anti_aliasing=False, preserve_range=True) for each in pictures]
        ready = (np.stack(small)[..., ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        expected = session.run(None, {"image": ready.transpose(0, 3, 1, 2).astype(np.float32)})[0]
        np.testing.assert_allclose(sample.outputs["scores"], expected, atol=1e-5)
    with load(bundle) as running:
        np.testing.assert_allclose(running.run(sample.inputs)["scores"], expected, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_factors_go_into_the_first_convolution(classifier: Callable[..., Path], tmp_path: Path, padded: bool, precision: str) -> None:
    source = processing.apply(load_source(classifier(padded)), processing.requested({"image_inputs": [IMAGES["all"]]}))
    kinds = [node.op_type for node in source.model.graph.node]
    assert "Mul" not in kinds
    assert kinds.count("Gather") == 0  # the order of channels is in the weights too
    assert ("Add" in kinds) is padded  # where zeros pad, the offset cannot pass the convolution
    kernel = numpy_helper.to_array(next(tensor for tensor in source.model.graph.initializer if tensor.dims[:] == [4, 3, 3, 3]))
    plain = numpy_helper.to_array(onnx.load(classifier(padded)).graph.initializer[0])
    np.testing.assert_allclose(kernel[:, 0], plain[:, 2] / 255 / 0.225, rtol=1e-6)
    built = edgekit.build(
        classifier(padded), device="generic-x86", precision=precision, image_inputs=[IMAGES["all"]], output=tmp_path / "b.edgekit"
    )
    check(built, MAX_REL if precision == "fp32" else 5e-3)


def test_tflite_reads_the_bytes_without_a_transpose(classifier: Callable[..., Path], tmp_path: Path) -> None:
    bundle = edgekit.build(
        classifier(), device="raspberry-pi-5", precision="fp32", image_inputs=[IMAGES["all"]], output=tmp_path / "b.edgekit"
    )
    (binding,) = bundle.manifest.artifact.inputs
    assert (binding.native_dtype, binding.perm) == ("uint8", None)
    operators = bundle.report()["emitter"]["operators"]
    assert "TRANSPOSE" not in operators
    assert operators["RESIZE_BILINEAR"] == 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_pictures_of_any_size(classifier: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    steps = f"image=uint8,HWC,resize=16x16,{IMAGENET}"
    bundle = check(
        edgekit.build(classifier(), device=ENGINES[engine], precision="fp32", image_inputs=[steps], output=tmp_path / "b.edgekit")
    )
    assert bundle.signature.inputs[0].describe() == "uint8[N,image_height,image_width,3]"
    sizes = {sample.inputs["image"].shape[1:3] for sample in bundle.golden()}
    assert len(sizes) == 3
    with pytest.raises(ShapeRequiredError, match="--shape image=1,H,W,3"):
        edgekit.build(classifier(), device="raspberry-pi-5", image_inputs=[steps], output=tmp_path / "t.edgekit")


def test_picture_files_are_samples_as_they_are(classifier: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, size in enumerate([(30, 40), (17, 23), (16, 16)]):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(pictures / f"{index}.png")
    steps = f"image=uint8,HWC,BGR2RGB,resize=16x16,{IMAGENET}"
    bundle = check(
        edgekit.build(classifier(), device="generic-x86", calibration=pictures, image_inputs=[steps], output=tmp_path / "b.edgekit")
    )
    assert bundle.manifest.verification.sample_source == "calibration"
    read = [sample.inputs["image"] for sample in bundle.golden()]
    assert [each.shape for each in read] == [(1, 30, 40, 3), (1, 17, 23, 3), (1, 16, 16, 3)]
    np.testing.assert_array_equal(read[0][0, ..., ::-1], np.asarray(Image.open(pictures / "0.png")))  # callers give BGR
    fixed = edgekit.build(
        classifier(), device="generic-x86", calibration=pictures, image_inputs=[IMAGES["letterbox"]], output=tmp_path / "f.edgekit"
    )
    assert {sample.inputs["image"].shape for sample in fixed.golden()} == {(1, 24, 40, 3)}


@pytest.mark.parametrize("changes", [{"opset": 11}, {"opset": 9}, {"kind": TensorProto.FLOAT16}, {"channels_last": True}])
def test_models_of_other_kinds(classifier: Callable[..., Path], tmp_path: Path, changes: dict) -> None:
    bundle = edgekit.build(
        classifier(**changes), device="generic-x86", precision="fp32", image_inputs=[IMAGES["all"]], top_k=2, output=tmp_path / "b.edgekit"
    )
    check(bundle, 5e-3 if "kind" in changes else MAX_REL)
    assert bundle.signature.outputs[0].dtype == "float32"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("picture=uint8,HWC", UnknownNameError, "unknown name 'picture'"),
        ("image=uint8,HWC,resize=20x20", UsageError, "its steps give 20x20 pixels; expected 16x16, which the model fixes"),
        ("image=uint8,HWC,from=20x20", UsageError, "20x20"),
        ("image=uint8,HWC,mean=1,2", UsageError, "mean has 2 values; expected 1 or 3"),
    ],
)
def test_steps_that_do_not_fit_the_model_are_refused(classifier: Callable[..., Path], text: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        processing.apply(load_source(classifier()), processing.requested({"image_inputs": [text]}))


def test_an_input_that_is_no_picture_is_refused(tiny_mlp: Path) -> None:
    with pytest.raises(UsageError, match=r"the model's input is float32\[N,8\]"):
        processing.apply(load_source(tiny_mlp), processing.requested({"image_inputs": ["x=uint8,HWC"]}))


# --- classes -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\nhorse\nfish\nœuf\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("engine", EVERY)
def test_the_best_classes_and_their_names(classifier: Callable[..., Path], labels: Path, tmp_path: Path, engine: str) -> None:
    bundle = check(
        edgekit.build(
            classifier(),
            device=ENGINES[engine],
            precision="fp32",
            classes=labels,
            top_k=3,
            image_inputs=["image=uint8,HWC,scale=1/255"],
            output=tmp_path / "b.edgekit",
        )
    )
    assert bundle.labels() == ("cat", "dog", "horse", "fish", "œuf")
    assert LABELS in bundle.manifest.files
    assert bundle.signature.postprocess == TopClasses("scores", "classes", 3, "scores", "softmax")
    assert [spec.dtype for spec in bundle.signature.outputs] == ["float32", "int64"]
    for sample in bundle.golden():
        assert np.all(np.diff(sample.outputs["scores"]) <= 0)
        assert sample.outputs["classes"].shape == sample.outputs["scores"].shape == (len(sample.inputs["image"]), 3)


@pytest.mark.parametrize(
    ("softmax", "asked", "added"), [(True, "", "none"), (False, "", "softmax"), (False, "sigmoid", "sigmoid"), (True, "none", "none")]
)
def test_a_softmax_is_added_only_where_there_is_none(classifier: Callable[..., Path], softmax: bool, asked: str, added: str) -> None:
    options = {"top_k": 5} | ({"class_scores": asked} if asked else {})
    source = processing.apply(load_source(classifier(softmax=softmax)), processing.requested(options))  # type: ignore[arg-type]
    assert isinstance(source.signature.postprocess, TopClasses)
    assert source.signature.postprocess.activation == added
    session = onnxruntime.InferenceSession(source.model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = synthetic_inputs(source.signature, 0)
    scores = session.run(["scores"], inputs)[0]
    np.testing.assert_allclose(scores, reference_run(source, source.signature)(inputs)["scores"], atol=1e-6)
    assert (abs(float(scores.sum()) - 1) < 1e-5) is (added in ("softmax", "none"))


def test_names_alone_change_no_output(classifier: Callable[..., Path], labels: Path, tmp_path: Path) -> None:
    bundle = edgekit.build(classifier(), device="generic-x86", classes=labels, top_k=0, output=tmp_path / "b.edgekit")
    assert bundle.labels()[3] == "fish"
    assert [spec.describe() for spec in bundle.signature.outputs] == ["float32[N,5]"]
    assert verify_bundle(bundle.path).ok


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\nb\n", "2 labels; expected 5"), (b"", "no label"), (b"a\n\nb\n", "line 2 is blank"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_wrong_label_file_is_one_clear_line(classifier: Callable[..., Path], tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        edgekit.build(classifier(), device="generic-x86", classes=path, output=tmp_path / "b.edgekit")
    assert not (tmp_path / "b.edgekit").exists()


def test_which_output_holds_scores_must_be_clear(tiny_conv: Path, classifier: Callable[..., Path], tmp_path: Path) -> None:
    bundle = edgekit.build(tiny_conv, device="generic-x86", top_k=2, class_scores="scores=auto", output=tmp_path / "b.edgekit")
    assert [spec.name for spec in bundle.signature.outputs] == ["features", "scores", "classes"]
    with pytest.raises(UsageError, match=r"several outputs could hold class scores.*--class-scores OUTPUT=auto"):
        processing.apply(load_source(tiny_conv), processing.requested({"top_k": 2}))
    with pytest.raises(UsageError, match="has 5 classes; expected at most 5"):
        processing.apply(load_source(classifier()), processing.requested({"top_k": 6}))
    with pytest.raises(UnknownNameError, match="unknown name 'score'"):
        processing.apply(load_source(classifier()), processing.requested({"top_k": 1, "class_scores": "score=none"}))


# --- detections ----------------------------------------------------------------------------------------------------------------------------


def picture_of_boxes(seed: int, anchors: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre-and-size boxes [A,4] in clusters, and scores [A,C]."""
    random = np.random.default_rng(seed)
    centres = random.uniform(50, 250, (6, 2))[random.integers(0, 6, anchors)] + random.normal(0, 8, (anchors, 2))
    boxes = np.concatenate([centres, random.uniform(30, 60, (anchors, 2))], axis=1)
    return boxes.astype(np.float32), random.uniform(0, 1, (anchors, classes)).astype(np.float32)


HEADS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    "joined": ("iou=0.45,score=0.5,max=12", ((1, 7, 60),)),
    "two pictures": ("iou=0.45,score=0.5,max=12,candidates=40", ((2, 7, 60),)),
    "boxes first": ("iou=0.45,score=0.2,max=9,objectness,agnostic", ((1, 60, 8),)),
    "one class": ("iou=0.3,score=0.5,max=40,candidates=60", ((1, 5, 60),)),
    "apart": ("iou=0.45,score=0.6,max=12,boxes=raw_boxes,scores=raw_scores,format=cxcywh", ((1, 60, 4), (1, 60, 3))),
    "apart, turned": ("iou=0.45,score=0.6,max=12,boxes=raw_boxes,scores=raw_scores,background", ((1, 60, 4), (1, 4, 60))),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("engine", [pytest.param(engine, marks=pytest.mark.slow if engine != "onnxruntime" else ()) for engine in ENGINES])
def test_boxes_are_suppressed_inside(detector: Callable[..., Path], tmp_path: Path, engine: str, name: str) -> None:
    nms, shapes = HEADS[name]
    arrays: dict[str, list[np.ndarray]] = {}
    for sample in range(2):
        rows = []
        for picture in range(shapes[0][0]):
            sizes = sorted(shapes[-1][1:])
            boxes, scores = picture_of_boxes(10 * sample + picture, 60, sizes[0] - (4 if len(shapes) == 1 else 0))
            if name == "apart, turned":
                boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
            parts = [np.concatenate([boxes, scores], axis=1)] if len(shapes) == 1 else [boxes, scores]
            rows.append([part if part.shape == shape[1:] else part.T for part, shape in zip(parts, shapes, strict=True)])
        names = ["raw_in"] if len(shapes) == 1 else ["raw_boxes_in", "raw_scores_in"]
        for key, column in zip(names, zip(*rows, strict=True), strict=True):
            arrays.setdefault(key, []).append(np.stack(column))
    folder = tmp_path / "samples"
    folder.mkdir()
    for sample in range(2):
        np.savez(folder / f"{sample}.npz", **{key: values[sample] for key, values in arrays.items()})
    bundle = check(
        edgekit.build(
            detector(*shapes), device=ENGINES[engine], precision="fp32", calibration=folder, nms=nms, output=tmp_path / "b.edgekit"
        )
    )
    post = bundle.signature.postprocess
    assert isinstance(post, Detections)
    assert [spec.name for spec in bundle.signature.outputs] == ["boxes", "scores", "classes", "count"]
    counts = np.concatenate([sample.outputs["count"] for sample in bundle.golden()])
    assert counts.min() > 2
    assert not any("no box came out" in note for note in bundle.manifest.verification.notes)


def test_a_detector_that_sees_nothing_is_told(detector: Callable[..., Path], tmp_path: Path) -> None:
    bundle = edgekit.build(detector((1, 7, 60)), device="generic-x86", nms="iou=0.5,score=99,max=5", output=tmp_path / "b.edgekit")
    assert any("no box came out of any sample" in note for note in bundle.manifest.verification.notes)
    assert not any(sample.outputs["boxes"].any() for sample in bundle.golden())


def test_the_number_of_pictures_is_fixed(detector: Callable[..., Path], tmp_path: Path) -> None:
    model = detector(("N", 7, 60))
    assert edgekit.build(model, device="x86", nms="iou=0.5,score=0.5,max=5", output=tmp_path / "1").signature.outputs[0].shape == (1, 5, 4)
    three = edgekit.build(model, device="x86", nms="iou=0.5,score=0.5,max=5", shapes={"raw_in": (3, 7, 60)}, output=tmp_path / "3")
    assert [spec.describe() for spec in three.signature.outputs] == ["float32[3,5,4]", "float32[3,5]", "int64[3,5]", "int64[3]"]


@pytest.mark.parametrize(
    ("shapes", "nms", "message"),
    [
        (((1, 60),), "iou=0.5,score=0.5,max=5", "a float tensor of rank 3"),
        (((1, 4, 60),), "iou=0.5,score=0.5,max=5", "4\\+classes"),
        (((1, 60, 4), (1, 60, 3)), "iou=0.5,score=0.5,max=5", "2 outputs"),
        (((1, 60, 4), (1, 61, 3)), "iou=0.5,score=0.5,max=5,boxes=raw_boxes,scores=raw_scores", "boxes \\[N, A, 4\\]"),
        (((1, 60, 4), (1, 60, 3)), "iou=0.5,score=0.5,max=5,boxes=raw_boxes,scores=rows", "unknown name 'rows'"),
        (((1, 5, 60),), "iou=0.5,score=0.5,max=5,background", "beside the background"),
        (((1, 7, "A"),), "iou=0.5,score=0.5,max=5", "sizes that only you can know"),
    ],
)
def test_outputs_of_another_layout_are_refused(detector: Callable[..., Path], shapes: tuple, nms: str, message: str) -> None:
    with pytest.raises((UsageError, ModelError), match=message):
        processing.apply(load_source(detector(*shapes)), processing.requested({"nms": nms}))
