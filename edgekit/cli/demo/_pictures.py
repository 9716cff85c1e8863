"""The demo's input: a scanned page that scikit-image ships, and labels rendered here whose text is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Picture", "pictures"]

# What a parcel label, a meter and a sign say; short lines, as on real ones.
_LABELS = {
    "parcel label": ("FRAGILE", "Order 48-2207", "Dock 7B", "12.5 kg"),
    "meter": ("kWh 004182", "Phase L2", "230V 50Hz"),
    "sign": ("Platform 9", "Exit to Museum", "Open 8am-6pm"),
}


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: for people.
        pixels: uint8 RGB ``(H, W, 3)``.
        lines: the text that is on it, top to bottom; empty when nobody wrote it down.
    """

    name: str
    pixels: np.ndarray
    lines: tuple[str, ...] = ()


def pictures() -> list[Picture]:
    """A real scanned page and three rendered labels, always the same."""
    from skimage import data

    return [Picture("scanned page", _rgb(data.page()))] + [_render(name, lines, seed) for seed, (name, lines) in enumerate(_LABELS.items())]


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]).astype(np.uint8)


def _render(name: str, lines: tuple[str, ...], seed: int) -> Picture:
    """Black on light paper with sensor noise, a little rotated, so that it is not a font sample."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 44)
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (560, 90 * len(lines) + 60), (236, 232, 222))
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((60 + 20 * (index % 2), 40 + 90 * index), line, font=font, fill=(28, 28, 34))
    image = image.rotate(float(random.uniform(-1.0, 1.0)), fillcolor=(236, 232, 222), resample=Image.Resampling.BICUBIC)
    noisy = np.asarray(image, np.float32) + random.normal(0, 6, (*image.size[::-1], 3))
    return Picture(name, np.clip(noisy, 0, 255).astype(np.uint8), lines)
