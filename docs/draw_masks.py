"""Draws docs/img/masks.png, the picture of docs/MASKS.md: `python docs/draw_masks.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kspace.masks import MaskSpec, acceleration

SHAPE = (160, 160)
ROWS = (
    ("random1d:4", "equispaced1d:4", "uniform1d:4", "gancs:4", "seitzer:8", "partial:6/8"),
    (
        "fastmri-random:4",
        "fastmri-equispaced:4",
        "fastmri-equispaced-fraction:4",
        "fastmri-magic:4",
        "dagan-g1d:30%",
        "centre:4",
    ),
    ("poisson2d:4", "poisson2d:8", "dagan-g2d:20%", "dagan-p2d:20%", "radial:20%", "spiral:20%"),
)
MARGIN, CAPTION = 8, 28


def main() -> None:
    """One tile per mask, one pixel per sample, white where sampled; ky runs down, kx to the right."""
    height, width = SHAPE[0] + CAPTION + MARGIN, SHAPE[1] + MARGIN
    sheet = Image.new("L", (len(ROWS[0]) * width + MARGIN, len(ROWS) * height + MARGIN), 216)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for j, row in enumerate(ROWS):
        for i, text in enumerate(row):
            mask = MaskSpec.parse(text).draw(SHAPE, "example.h5")
            at = MARGIN + i * width, MARGIN + j * height
            pixels = mask.expand(SHAPE).numpy().astype(np.uint8) * np.uint8(255)
            sheet.paste(Image.fromarray(pixels), (at[0], at[1] + CAPTION))
            pen.text(at, f"{text}\nR = {acceleration(mask, SHAPE):.2f}", fill=0, font=font, spacing=1)
    path = Path(__file__).parent / "img" / "masks.png"
    sheet.quantize(16).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
