"""Where a picture's pixels go: sizes, bars and cuts, as plain numbers. The graph and the NumPy reference both read this."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.bundle import ImageInput

__all__ = ["Placement", "final_size", "place"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Steps in their order; what is None or zero is left out.

    Attributes:
        resize: size to resample to.
        pads: rows above, columns to the left, rows below, columns to the right.
        cut: top, left, height and width of the part that is kept.
    """

    resize: Size | None
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    cut: tuple[int, int, int, int] | None = None


def place(image: ImageInput, given: Size | None) -> Placement:
    """The steps for pictures of a size; ``given`` may be None for ``stretch`` only, which needs no size."""
    resize, pads, cut, now = image.resize, (0, 0, 0, 0), None, image.resize or given
    if image.fit == "letterbox":
        assert resize is not None
        assert given is not None
        resize, pads = _letterbox(given, resize)
    elif image.fit == "cover":
        assert resize is not None
        assert given is not None
        wanted = resize
        resize = _scaled(given, max(wanted[0] / given[0], wanted[1] / given[1]), wanted, max)
        cut = _centre(resize, wanted)
    if image.crop is not None:
        assert now is not None
        inner = _centre(now, image.crop)
        cut = inner if cut is None else (cut[0] + inner[0], cut[1] + inner[1], *image.crop)
    if resize == given:
        resize = None
    before = resize or given
    if cut is not None and before is not None and cut == (0, 0, *before):
        cut = None
    return Placement(resize, pads, cut)


def final_size(image: ImageInput) -> Size | None:
    """Height and width after all steps; None when nothing here decides them."""
    return image.crop or image.resize or image.given


def _letterbox(given: Size, wanted: Size) -> tuple[Size, tuple[int, int, int, int]]:
    inner = _scaled(given, min(wanted[0] / given[0], wanted[1] / given[1]), wanted, min)
    rows, columns = wanted[0] - inner[0], wanted[1] - inner[1]
    return inner, (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _scaled(size: Size, ratio: float, wanted: Size, limit: Callable[[int, int], int]) -> Size:
    """Both sides by one ratio, rounded half up, at least 1, and never past ``wanted`` by rounding."""
    height, width = (max(1, math.floor(side * ratio + 0.5)) for side in size)
    return limit(height, wanted[0]), limit(width, wanted[1])


def _centre(size: Size, wanted: Size) -> tuple[int, int, int, int]:
    return (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2, *wanted
