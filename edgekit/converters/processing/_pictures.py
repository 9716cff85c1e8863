"""Pictures as inputs: what sizes to try where a caller may send any, and how a file becomes pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Detections, Dim, GoldenSample, ImageInput, Signature, TensorSpec
from edgekit.errors import EnvironmentMissingError, UsageError
from edgekit.runtime.engines import one_line

__all__ = ["image_of", "is_open", "read_picture", "sample_notes", "sample_shape"]

# Height and width over those of the first step's result: larger, smaller, and of another shape.
_FACTORS = ((2.0, 1.5), (0.75, 1.25), (1.5, 2.5))


def image_of(signature: Signature, name: str) -> ImageInput | None:
    """The picture steps of an input, if it has any."""
    return next((image for image in signature.images if image.name == name), None)


def is_open(image: ImageInput | None) -> bool:
    """Pictures of any size come in, and the steps bring them to one."""
    return image is not None and image.resize is not None and image.given is None


def sample_shape(signature: Signature, spec: TensorSpec, index: int, batch: int) -> tuple[int, ...]:
    """Shape of the sample with a number: open sizes of a picture differ from sample to sample, every other open dimension is ``batch``."""
    image = image_of(signature, spec.name)
    open_sizes: dict[int, int] = {}
    if image is not None and image.resize is not None:
        first = 1 if image.layout == "HWC" else 2
        factors = _FACTORS[index % len(_FACTORS)]
        open_sizes = {
            first + axis: max(1, int(side * factor)) for axis, (side, factor) in enumerate(zip(image.resize, factors, strict=True))
        }
    return tuple(dim if isinstance(dim, int) else open_sizes.get(axis, batch) for axis, dim in enumerate(spec.shape))


def sample_notes(signature: Signature, samples: Sequence[GoldenSample]) -> tuple[str, ...]:
    """What the user should know about samples: a detector that sees nothing proves nothing about its boxes."""
    post = signature.postprocess
    if isinstance(post, Detections) and not any(np.any(sample.outputs[post.count]) for sample in samples):
        return ("no box came out of any sample, so none was compared: give --calibration with pictures of what the model detects",)
    return ()


def read_picture(file: Path, spec: TensorSpec, image: ImageInput) -> np.ndarray:
    """A picture file as uint8 [1,H,W,C] or [1,C,H,W] with the channels that the input asks for, at the size that it has or, where that is
    open, at the file's own. Nothing is normalised: the artifact does that.

    Raises:
        EnvironmentMissingError: Pillow is not installed. UsageError: not a readable picture.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("calibration pictures", "pillow", "convert") from exc
    height, width, channels = _layout(spec.shape, image)
    try:
        with Image.open(file) as opened:
            picture: Any = opened.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
            if isinstance(height, int) and isinstance(width, int) and picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError) as exc:
        raise UsageError(str(file), f"not a readable picture: {one_line(exc)}", "a picture file", "remove or replace it") from exc
    pixels = np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)
    if image.colours == "BGR2RGB":  # callers give BGR
        pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
    return np.ascontiguousarray(pixels if image.layout == "HWC" else pixels.transpose(2, 0, 1))[np.newaxis]


def _layout(shape: Sequence[Dim], image: ImageInput) -> tuple[Dim, Dim, int]:
    height, width, channels = (shape[1], shape[2], shape[3]) if image.layout == "HWC" else (shape[2], shape[3], shape[1])
    assert isinstance(channels, int)
    return height, width, channels
