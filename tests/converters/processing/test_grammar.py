"""The flags' grammar: every part, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import ImageInput
from edgekit.converters.processing import parse_class_scores, parse_image_input, parse_nms, requested
from edgekit.errors import UsageError


def test_an_image_input_has_all_its_parts() -> None:
    text = "x=uint8,HWC,RGB2BGR,from=480x640,resize=256x320,fit=letterbox,pad=114,crop=224x224,scale=1/255,mean=0.485,0.456,0.406,std=0.5"
    assert parse_image_input(text) == ImageInput(
        "x",
        "HWC",
        "RGB2BGR",
        (480, 640),
        (256, 320),
        "letterbox",
        114.0,
        (224, 224),
        1 / 255,
        (0.485, 0.456, 0.406),
        (0.5,),
    )
    assert parse_image_input("a/b:0=uint8,CHW") == ImageInput("a/b:0", "CHW")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uint8,HWC", "no input's name"),
        ("x=HWC", "no uint8"),
        ("x=uint8", "no HWC or CHW"),
        ("x=uint8,HWC,CHW", "HWC and CHW"),
        ("x=uint8,HWC,HWC", "HWC is given twice"),
        ("x=uint8,HWC,RGB2BGR,BGR2RGB", "RGB2BGR and BGR2RGB"),
        ("x=uint8,NHWC", "'NHWC' is no item"),
        ("x=uint8,HWC,0.5", "'0.5' is no item"),
        ("x=uint8,HWC,size=3x3", "unknown name 'size'"),
        ("x=uint8,HWC,resize=224", "HEIGHTxWIDTH"),
        ("x=uint8,HWC,resize=0x5", "HEIGHTxWIDTH"),
        ("x=uint8,HWC,resize=8x8,resize=9x9", "resize is given twice"),
        ("x=uint8,HWC,scale=1/0", "numbers or fractions"),
        ("x=uint8,HWC,scale=1,2", "one number"),
        ("x=uint8,HWC,std=1,0,1", "scale or std of 0"),
        ("x=uint8,HWC,mean=a", "numbers or fractions"),
        ("x=uint8,HWC,fit=letterbox", "without resize"),
        ("x=uint8,HWC,fit=letterbox,resize=8x8", "without from"),
        ("x=uint8,HWC,fit=squeeze,resize=8x8", "unknown name 'squeeze'"),
        ("x=uint8,HWC,resize=8x8,pad=3", "fit=letterbox, the only one that pads"),
        ("x=uint8,HWC,from=8x8,resize=8x8,fit=letterbox,pad=256", "one number from 0 to 255"),
        ("x=uint8,HWC,crop=8x8", "crop without resize or from"),
        ("x=uint8,HWC,resize=8x8,crop=9x8", "a crop that is no larger"),
    ],
)
def test_a_wrong_image_input_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_image_input(text)
    assert "\n" not in str(caught.value)
    assert "--image-input" in str(caught.value)


def test_nms_has_defaults_that_follow_from_max() -> None:
    request = parse_nms("iou=0.45,score=0.25,max=50")
    assert (request.iou, request.score, request.max, request.candidates) == (0.45, 0.25, 50, 250)
    assert parse_nms("iou=0.5,score=-1,max=10").candidates == 100
    assert parse_nms("iou=0.5,score=-1,max=300").candidates == 1024
    assert parse_nms("iou=0.5,score=0,max=300,candidates=300,objectness,agnostic,format=xyxy").objectness


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iou=0.5,score=0.2", "no max"),
        ("iou=1.5,score=0.2,max=3", "one number from 0 to 1"),
        ("iou=0.5,score=0.2,max=301", "whole number from 1 to 300"),
        ("iou=0.5,score=0.2,max=30,candidates=20", "whole number from 30 to 1024"),
        ("iou=0.5,score=0.2,max=3,scores=s", "scores without boxes"),
        ("iou=0.5,score=0.2,max=3,boxes=b,scores=s,objectness", "objectness with an output of scores"),
        ("iou=0.5,score=0.2,max=3,format=yxyx", "unknown name 'yxyx'"),
    ],
)
def test_a_wrong_nms_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_nms(text)


def test_class_scores_name_an_output_and_an_activation() -> None:
    assert parse_class_scores("a=b=softmax").output == "a=b"
    assert parse_class_scores("sigmoid").activation == "sigmoid"
    with pytest.raises(UsageError, match="unknown name 'relu'"):
        parse_class_scores("relu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_inputs": ["x=uint8,HWC", "x=uint8,CHW"]}, "given twice"),
        ({"top_k": -1}, "positive number"),
        ({"top_k": 0}, "positive number"),
        ({"top_k": 3, "nms": "iou=0.5,score=0.2,max=3"}, "one post-processing"),
        ({"class_scores": "softmax"}, "nothing to rank"),
        ({"classes": "no/such/file"}, "no such file"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        requested(options)


def test_nothing_asked_is_nothing_done() -> None:
    assert requested({}) is None
    assert requested({"image_inputs": [], "nms": None}) is None


@pytest.mark.parametrize(("labels", "kept"), [(1, 1), (3, 3), (5, 5), (7, 5)])
def test_classes_alone_keep_the_best_five_or_all(tmp_path: Path, labels: int, kept: int) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(f"class {number}" for number in range(labels)))
    found = requested({"classes": str(tmp_path / "labels.txt")})
    assert found is not None
    assert found.top_k == kept
