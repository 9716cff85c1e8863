"""The flags ``--image-input``, ``--nms`` and ``--class-scores``: their grammar, with one clear error per mistake. No ONNX here.

::

    --image-input NAME=uint8,HWC|CHW[,RGB2BGR|BGR2RGB][,from=HxW][,resize=HxW][,fit=stretch|letterbox|cover][,pad=0..255][,crop=HxW]
                  [,scale=NUMBER][,mean=NUMBER[,NUMBER…]][,std=NUMBER[,NUMBER…]]
    --nms iou=NUMBER,score=NUMBER,max=COUNT[,candidates=COUNT][,boxes=OUTPUT,scores=OUTPUT][,format=cxcywh|xyxy]
          [,objectness][,background][,agnostic]
    --class-scores [OUTPUT=]auto|none|softmax|sigmoid

A NUMBER is a decimal or a fraction (``1/255``). A number without a key belongs to the key before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, cast

from edgekit.bundle import ImageInput
from edgekit.errors import UnknownNameError, UsageError

__all__ = ["MAX_CANDIDATES", "MAX_DETECTIONS", "ClassScores", "NmsRequest", "parse_class_scores", "parse_image_input", "parse_nms"]

MAX_CANDIDATES = 1024
"""Most boxes that can take part in a suppression: their overlaps are a matrix of that side, and float16 counts exactly to 2048."""
MAX_DETECTIONS = 300
"""Most boxes that can come out: each is a few operators in the graph."""
_CANDIDATES_EACH = 5  # boxes per result: detectors see an object some five to ten times above a usual score

_IMAGE_EXAMPLE = "for example --image-input image=uint8,HWC,resize=224x224,scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225"
_NMS_EXAMPLE = "for example --nms iou=0.45,score=0.25,max=100"
_ACTIVATIONS = ("auto", "none", "softmax", "sigmoid")


@dataclass(frozen=True)
class NmsRequest:
    """``--nms`` as it was given; None where it leaves the choice to the model's outputs."""

    iou: float
    score: float
    max: int
    candidates: int
    boxes: str = ""
    scores: str = ""
    format: Literal["cxcywh", "xyxy"] | None = None
    objectness: bool = False
    background: bool = False
    agnostic: bool = False


@dataclass(frozen=True)
class ClassScores:
    """``--class-scores`` as it was given.

    Attributes:
        output: the source model's output; empty for its only one.
        activation: ``auto`` looks at the model's own answers.
    """

    output: str = ""
    activation: str = "auto"


@dataclass
class _Items:
    """A flag's value, cut at its commas."""

    flag: str
    example: str
    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self, found: str, expected: str) -> UsageError:
        return UsageError(self.flag, found, expected, self.example)

    def read(self, text: str, words: tuple[str, ...], keys: tuple[str, ...]) -> _Items:
        """Sort every item into words and values."""
        last = ""
        for item in text.split(","):
            key, equals, value = item.strip().partition("=")
            if equals:
                if key not in keys:
                    raise UnknownNameError(f"{self.flag} key", key, keys, self.example)
                if key in self.values:
                    raise self.wrong(f"{key} is given twice", "each key once")
                self.values[key], last = [value.strip()], key
            elif key in words:
                if key in self.words:
                    raise self.wrong(f"{key} is given twice", "each word once")
                self.words.append(key)
                last = ""
            elif last and _is_number(key):
                self.values[last].append(key)
            else:
                raise self.wrong(f"{item.strip()!r} is no item", f"{', '.join(words)}, or KEY=VALUE with {', '.join(keys)}")
        return self

    def number(self, key: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        found = self.numbers(key, (default,))
        if len(found) != 1 or not low <= found[0] <= high:
            raise self.wrong(f"{key}={','.join(self.values[key])}", f"one number from {low:g} to {high:g}")
        return found[0]

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        if key not in self.values:
            return default
        if not all(map(_is_number, self.values[key])):
            raise self.wrong(f"{key}={','.join(self.values[key])}", "numbers or fractions like 1/255")
        return tuple(map(_number, self.values[key]))

    def count(self, key: str, default: int, low: int, high: int) -> int:
        text = ",".join(self.values.get(key, [str(default)]))
        if not text.isdecimal() or not low <= int(text) <= high:
            raise self.wrong(f"{key}={text}", f"a whole number from {low} to {high}")
        return int(text)

    def size(self, key: str) -> tuple[int, int] | None:
        if key not in self.values:
            return None
        text = ",".join(self.values[key])
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise self.wrong(f"{key}={text}", "HEIGHTxWIDTH in pixels")
        return int(parts[0]), int(parts[1])

    def choice(self, key: str, default: str, known: tuple[str, ...]) -> str:
        text = ",".join(self.values.get(key, [default]))
        if text not in known:
            raise UnknownNameError(f"{self.flag} {key}", text, known)
        return text

    def one_of(self, known: tuple[str, ...], default: str | None) -> str:
        found = [word for word in self.words if word in known]
        if len(found) > 1:
            raise self.wrong(" and ".join(found), f"one of {', '.join(known)}")
        if not found and default is None:
            raise self.wrong(f"no {' or '.join(known)}", f"one of {', '.join(known)}")
        return found[0] if found else str(default)


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    return float(top) / float(bottom) if slash else float(top)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(_number(text))
    except (ValueError, ZeroDivisionError):
        return False


def parse_image_input(text: str) -> ImageInput:
    """``--image-input`` as its parts.

    Raises:
        UsageError: not of the grammar, a size that is none, a standard deviation of 0, a crop larger than what it cuts, a letterbox, cover or
            crop without the size that it needs.
        UnknownNameError: an unknown key or choice.
    """
    name, equals, rest = text.partition("=")
    items = _Items(f"--image-input {text}", _IMAGE_EXAMPLE)
    if not equals or not name:
        raise items.wrong("no input's name", "NAME=uint8,HWC,…")
    keys = ("from", "resize", "fit", "pad", "crop", "scale", "mean", "std")
    items.read(rest, ("uint8", "HWC", "CHW", "RGB2BGR", "BGR2RGB"), keys)
    items.one_of(("uint8",), None)
    image = ImageInput(
        name,
        layout=cast("Literal['HWC', 'CHW']", items.one_of(("HWC", "CHW"), None)),
        colours=cast("Literal['', 'RGB2BGR', 'BGR2RGB']", items.one_of(("RGB2BGR", "BGR2RGB"), "")),
        given=items.size("from"),
        resize=items.size("resize"),
        fit=cast("Literal['stretch', 'letterbox', 'cover']", items.choice("fit", "stretch", ("stretch", "letterbox", "cover"))),
        pad=items.number("pad", 0.0, 0.0, 255.0),
        crop=items.size("crop"),
        scale=items.number("scale", 1.0),
        mean=items.numbers("mean", (0.0,)),
        std=items.numbers("std", (1.0,)),
    )
    _check_image(items, image)
    return image


def _check_image(items: _Items, image: ImageInput) -> None:
    if image.scale == 0 or 0 in image.std:
        raise items.wrong("a scale or std of 0", "numbers other than 0")
    if image.fit != "stretch" and image.resize is None:
        raise items.wrong(f"fit={image.fit} without resize", "resize=HxW beside it")
    if "pad" in items.values and image.fit != "letterbox":
        raise items.wrong(f"pad={image.pad:g} with fit={image.fit}", "fit=letterbox, the only one that pads")
    if image.fit != "stretch" and image.given is None:
        raise items.wrong(
            f"fit={image.fit} without from", "from=HxW, the size of the pictures: the bars or cuts are worked out at build time"
        )
    if image.crop is not None:
        before = image.resize or image.given
        if before is None:
            raise items.wrong("crop without resize or from", "the size that it cuts")
        if image.crop[0] > before[0] or image.crop[1] > before[1]:
            raise items.wrong(f"crop={image.crop[0]}x{image.crop[1]} of {before[0]}x{before[1]}", "a crop that is no larger")


def parse_nms(text: str) -> NmsRequest:
    """``--nms`` as its parts.

    Raises:
        UsageError, UnknownNameError: as for `parse_image_input`.
    """
    items = _Items(f"--nms {text}", _NMS_EXAMPLE)
    items.read(text, ("objectness", "background", "agnostic"), ("iou", "score", "max", "candidates", "boxes", "scores", "format"))
    for key in ("iou", "score", "max"):
        if key not in items.values:
            raise items.wrong(f"no {key}", "iou, score and max")
    most = items.count("max", 1, 1, MAX_DETECTIONS)
    boxes, scores = (",".join(items.values.get(key, [])) for key in ("boxes", "scores"))
    if scores and not boxes:
        raise items.wrong("scores without boxes", "both outputs, or boxes alone where one output holds both")
    if scores and "objectness" in items.words:
        raise items.wrong("objectness with an output of scores", "objectness where one output holds boxes, objectness and scores")
    form = items.choice("format", "cxcywh", ("cxcywh", "xyxy")) if "format" in items.values else None
    return NmsRequest(
        iou=items.number("iou", 0.5, 0.0, 1.0),
        score=items.number("score", 0.0, -math.inf, math.inf),
        max=most,
        candidates=items.count("candidates", min(max(_CANDIDATES_EACH * most, 100), MAX_CANDIDATES), most, MAX_CANDIDATES),
        boxes=boxes,
        scores=scores,
        format=cast("Literal['cxcywh', 'xyxy'] | None", form),
        objectness="objectness" in items.words,
        background="background" in items.words,
        agnostic="agnostic" in items.words,
    )


def parse_class_scores(text: str) -> ClassScores:
    """``--class-scores``: ``softmax``, or ``OUTPUT=softmax``.

    Raises:
        UnknownNameError: an activation that does not exist.
    """
    output, _, activation = text.rpartition("=")
    if activation not in _ACTIVATIONS:
        raise UnknownNameError(f"--class-scores {text}", activation, _ACTIVATIONS, "for example --class-scores logits=softmax")
    return ClassScores(output, activation)
