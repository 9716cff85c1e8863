"""Reading a picture with PP-OCRv4: detector, boxes, recogniser, text. Plain NumPy around two EdgeKit sessions.

Pre- and post-processing follow PaddleOCR's published configuration of these models (configs/det/ch_PP-OCRv4, configs/rec/PP-OCRv4):
normalisation constants, thresholds 0.3 and 0.6, unclip ratio 1.5, height 48.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["DETECTOR_SHAPE", "LINE_SHAPE", "Reading", "line_tensor", "read"]

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

DETECTOR_SHAPE = (1, 3, 480, 640)  # N, C, H, W
LINE_SHAPE = (1, 3, 48, 320)
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_PIXEL_THRESHOLD = 0.3
_BOX_THRESHOLD = 0.6
_UNCLIP_RATIO = 1.5
_TEXT_THRESHOLD = 0.5
_MIN_SIDE = 5


@dataclass(frozen=True)
class Reading:
    """One line found: box in the picture's pixels (left, top, right, bottom), text, mean probability of its characters."""

    box: tuple[int, int, int, int]
    text: str
    confidence: float


def read(pixels: np.ndarray, detect: Run, recognise: Run, characters: list[str]) -> list[Reading]:
    """All lines of text in a picture, top to bottom.

    Args:
        pixels: uint8 RGB ``(H, W, 3)``.
        detect: the detector's session, input ``x`` of `DETECTOR_SHAPE`.
        recognise: the recogniser's session, input ``x`` of `LINE_SHAPE`.
        characters: meaning of each class of the recogniser; index 0 is the CTC blank.
    """
    tensor, scale = _detector_tensor(pixels)
    (heat,) = detect({"x": tensor}).values()
    readings = []
    for box in _boxes(heat[0, 0], scale, pixels.shape[:2]):
        left, top, right, bottom = box
        pieces = [
            _decode(next(iter(recognise({"x": line_tensor(piece)}).values()))[0], characters)
            for piece in _split(pixels[top:bottom, left:right])
        ]
        sure = [(text, confidence) for text, confidence in pieces if text and confidence > _TEXT_THRESHOLD]
        if sure:
            readings.append(Reading(box, " ".join(text for text, _ in sure), float(np.mean([confidence for _, confidence in sure]))))
    return sorted(readings, key=lambda reading: (reading.box[1] // 12, reading.box[0]))


def line_tensor(pixels: np.ndarray) -> np.ndarray:
    """One line of text (uint8 RGB) as the recogniser's float32 ``(1, 3, 48, 320)``: BGR, scaled to [-1, 1], padded on the right."""
    _, _, height, width = LINE_SHAPE
    wanted = min(width, max(1, round(pixels.shape[1] * height / pixels.shape[0])))
    scaled = _resize(pixels, (height, wanted)).astype(np.float32)[..., ::-1] / 127.5 - 1.0
    tensor = np.zeros(LINE_SHAPE, np.float32)
    tensor[0, :, :, :wanted] = scaled.transpose(2, 0, 1)
    return tensor


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def _detector_tensor(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture fitted into the detector's input, and the scale that was applied."""
    _, _, height, width = DETECTOR_SHAPE
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    size = (round(pixels.shape[0] * scale), round(pixels.shape[1] * scale))
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: size[0], : size[1]] = _resize(pixels, size)
    normal = (canvas[..., ::-1].astype(np.float32) / 255.0 - _MEAN) / _STD
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None]), scale


def _boxes(heat: np.ndarray, scale: float, shape: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Upright boxes around connected text pixels, grown back by the ratio that the detector was trained to shrink by."""
    from scipy import ndimage

    labels, _ = ndimage.label(heat > _PIXEL_THRESHOLD)
    boxes = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        inside = labels[rows, columns] == index
        if min(height, width) < _MIN_SIDE or float(heat[rows, columns][inside].mean()) < _BOX_THRESHOLD:
            continue
        grow = height * width * _UNCLIP_RATIO / (2 * (height + width))
        top, bottom = (rows.start - grow) / scale, (rows.stop + grow) / scale
        left, right = (columns.start - grow) / scale, (columns.stop + grow) / scale
        boxes.append((max(0, int(left)), max(0, int(top)), min(shape[1], round(right)), min(shape[0], round(bottom))))
    return boxes


def _split(line: np.ndarray) -> list[np.ndarray]:
    """Cut a line that is wider than the recogniser's input where the fewest ink is, near the limit."""
    _, _, height, width = LINE_SHAPE
    limit = int(line.shape[0] * width / height)
    if line.shape[1] <= limit:
        return [line]
    # Ink per column, over a window about as wide as the space between words: gaps inside a word are narrower.
    ink = np.abs(line.astype(np.float32) - np.median(line)).max(axis=2).mean(axis=0)
    window = max(3, line.shape[0] // 4)
    smooth = np.convolve(ink, np.ones(window) / window, mode="same")
    start = limit // 2
    cut = start + int(np.argmin(smooth[start:limit]))
    return [line[:, :cut], *_split(line[:, cut:])]


def _decode(probabilities: np.ndarray, characters: list[str]) -> tuple[str, float]:
    """Greedy CTC: the best class per step, repeats and blanks dropped; with the mean probability of what stays."""
    best = probabilities.argmax(axis=-1)
    keep = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
    text = "".join(characters[index] for index in best[keep]).strip()
    return text, float(probabilities.max(axis=-1)[keep].mean()) if keep.any() else 0.0
