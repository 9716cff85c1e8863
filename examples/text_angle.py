"""Pixels in, words out: ``python examples/text_angle.py [DEVICE]`` builds PP-OCR's angle classifier so that it takes pictures of any size as they are and answers
with the name of the best class, then asks it about a line of text, upright and upside down.

DEVICE must be one that this machine can run (generic-x86, intel-nuc); the others need ``from=HxW`` in the flag, because their shapes are fixed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `examples` itself, when this file is run as a script

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import edgekit
from edgekit.bundle import Bundle
from examples.models import fetch

__all__ = ["LABELS", "build", "line", "main"]

LABELS = ("upright", "upside down")
STEPS = "x=uint8,HWC,RGB2BGR,resize=48x192,scale=1/255,mean=0.5,std=0.5"


def line(text: str) -> np.ndarray:
    """Black words on white, uint8 [H,W,3]."""
    font = ImageFont.load_default(32)
    _, _, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (int(right) + 16, int(bottom) + 12), "white")
    ImageDraw.Draw(picture).text((8, 4), text, "black", font)
    return np.asarray(picture)


def build(device: str, folder: Path) -> Bundle:
    """The bundle, proven on a few rendered lines."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for index, text in enumerate(("Deadline 12:30", "edge or cloud", "TOTAL 48.90 EUR")):
        Image.fromarray(line(text)).save(pictures / f"{index}.png")
        Image.fromarray(line(text)[::-1, ::-1]).save(pictures / f"{index}-turned.png")
    names = folder / "labels.txt"
    names.write_text("\n".join(LABELS) + "\n")
    return edgekit.build(
        fetch("ppocr-cls"),
        device=device,
        image_inputs=[STEPS],
        classes=names,
        top_k=1,
        calibration=pictures,
        output=folder / "angle.edgekit",
    )


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(arguments[0] if arguments else "generic-x86", Path(folder))
        labels = bundle.labels()
        with edgekit.load(bundle) as session:
            for name, picture in (("as written", line("Hello, pixels")), ("turned", line("Hello, pixels")[::-1, ::-1])):
                answer = session.run({"x": np.ascontiguousarray(picture)[np.newaxis]})
                print(f"{name}: {labels[answer['classes'][0, 0]]} ({answer['scores'][0, 0]:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
