"""What a bundle's artifact does around the model itself: picture inputs that it prepares, and outputs that it ranks.

`ImageInput` says which steps lie between the bytes of a picture and the source model's input; `TopClasses` and `Detections` say which outputs
replace the source model's own.
"""

# No `annotations` from the future here: msgspec would compile each of them from its text when it makes the decoder, 2 ms of a start.
from typing import Literal

import msgspec

__all__ = ["LABELS", "Detections", "ImageInput", "TopClasses"]

LABELS = "labels.txt"
"""The label file inside a bundle: UTF-8, one label a line, in the order of the class numbers."""

Size = tuple[int, int]
"""Height and width, in pixels."""


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input that takes uint8 pictures; the artifact does these steps, in this order.

    1. float32; 2. ``resize`` (linear, half-pixel centres, no antialias), with ``letterbox`` padded by ``pad``, with ``cover`` cut at the
    centre; 3. ``crop`` at the centre; 4. channels reversed where ``colours`` is given; 5. ``(value * scale - mean) / std``.

    Attributes:
        name: the input.
        layout: ``HWC`` or ``CHW``: how callers give a picture; the batch comes first.
        colours: ``RGB2BGR`` or ``BGR2RGB``: what callers give, and what the model reads; empty keeps the channels as they come.
        given: size of the pictures that callers give; None leaves it open, or to the model.
        resize: size after step 2.
        fit: ``stretch`` changes the aspect ratio; ``letterbox`` keeps it and pads; ``cover`` keeps it and cuts.
        pad: pixel value of a letterbox's bars, 0 to 255.
        crop: size after step 3.
        scale, mean, std: step 5; ``mean`` and ``std`` have one value or one a channel, in the model's order of channels.
    """

    name: str
    layout: Literal["HWC", "CHW"] = "HWC"
    colours: Literal["", "RGB2BGR", "BGR2RGB"] = ""
    given: Size | None = None
    resize: Size | None = None
    fit: Literal["stretch", "letterbox", "cover"] = "stretch"
    pad: float = 0.0
    crop: Size | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class TopClasses(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="top_k", tag_field="kind"):
    """The ``k`` best classes in place of the scores of all.

    Attributes:
        scores: output with the best scores, descending, float32 [..., k].
        classes: output with their class numbers, int64 [..., k].
        k: how many.
        of: the source model's output that they come from.
        activation: what was added before ranking: ``softmax``, ``sigmoid`` or ``none``.
    """

    scores: str
    classes: str
    k: int
    of: str
    activation: Literal["none", "softmax", "sigmoid"] = "none"


class Detections(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="nms", tag_field="kind"):
    """A detector's boxes after non-maximum suppression, best first, padded by zeros.

    Attributes:
        boxes: output float32 [N, max, 4]: x1, y1, x2, y2 in the model's own units.
        scores: output float32 [N, max].
        classes: output int64 [N, max].
        count: output int64 [N]: how many are real.
        iou: a box that overlaps a better one of its class by more than this is dropped.
        score: a box must score more than this.
        max: the most boxes of one picture.
        candidates: only so many boxes with the best scores take part.
        of: the source model's outputs that they come from.
        format: ``cxcywh`` or ``xyxy``, of the source model's boxes.
        objectness: the fifth value of a box multiplies its class scores.
        background: class 0 means "nothing" and is left out; the others count from 0.
        agnostic: boxes of different classes drop each other too.
    """

    boxes: str
    scores: str
    classes: str
    count: str
    iou: float
    score: float
    max: int
    candidates: int
    of: tuple[str, ...]
    format: Literal["cxcywh", "xyxy"]
    objectness: bool = False
    background: bool = False
    agnostic: bool = False
