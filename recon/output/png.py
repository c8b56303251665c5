"""PNG export: montage of slices and volumes in radiological orientation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from kspace.container import Geometry, Image
from recon.output.geometry import axes_of, slice_stacks, voxel_m
from recon.output.series import NOTICE, RunRecord, method_of, pixels, volume_of, window

MAX_TILES = 48
WIDTH = 1600
"""Maximum width of a row of tiles in pixels; the longer side of a tile is at most `TILE`."""
TILE = 720
GAP = 6
BACKGROUND, INK, DIM = 40, 255, 190

# Screen directions right and down in LPS, by the axis nearest to the slice normal: the patient's right is on the left of axial
# and coronal images; anterior is at the top of axial and on the left of sagittal images; the head is at the top.
SCREEN = {
    0: ("sagittal", np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])),
    1: ("coronal", np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0])),
    2: ("axial", np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])),
}
VOLUME_COUNTERS = ("contrast", "set", "phase", "repetition")  # as `volume_of` orders them
LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))


@dataclass(frozen=True)
class View:
    """Radiological view of a slice ``(y x)``: transposition, then flips.

    Attributes
    ----------
    plane
        Nearest plane: ``axial``, ``coronal`` or ``sagittal``.
    transpose, flip_rows, flip_columns
        Operations on the array.
    letters
        Directions at the left, right, top and bottom edge (``R L A P H F``, two letters where oblique).
    """

    plane: str
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    letters: tuple[str, str, str, str]

    def apply(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the view to a slice, float32 ``(y x)``."""
        oriented = array.T if self.transpose else array
        return oriented[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def view_of(geometry: Geometry) -> View:
    """Radiological view of slices with this geometry."""
    read, phase, _ = axes_of(geometry).T
    plane, right, down = SCREEN[int(np.argmax(np.abs(np.cross(read, phase))))]
    transpose = abs(phase @ right) + abs(read @ down) > abs(read @ right) + abs(phase @ down)
    columns, rows = (phase, read) if transpose else (read, phase)
    flip_columns, flip_rows = bool(columns @ right < 0), bool(rows @ down < 0)
    rightwards = -columns if flip_columns else columns
    downwards = -rows if flip_rows else rows
    letters = (direction(-rightwards), direction(rightwards), direction(-downwards), direction(downwards))
    return View(plane, bool(transpose), flip_rows, flip_columns, letters)


def direction(vector: NDArray[np.float64]) -> str:
    """Letters of a patient direction ``(3,)`` in LPS, with a second letter if it is more than 20 degrees oblique."""
    order = np.argsort(-np.abs(vector), kind="stable")
    found = [LETTERS[axis][int(vector[axis] > 0)] for axis in order[:2] if abs(vector[axis]) > math.sin(math.radians(20))]
    return "".join(found)


def write_montage(path: Path, images: Sequence[Image], record: RunRecord) -> None:
    """Write a PNG of all slices and volumes, at most `MAX_TILES` tiles, with one grey scale.

    Parameters
    ----------
    path
        File to write.
    images
        Images of one role.
    record
        Method, for the caption.
    """
    low, high = window(images)
    slices, n_slices, n_volumes = choose_tiles(images)
    tiles = [_tile(image, z, low, high) for image, z, _ in slices]
    labels = [label for _, _, label in slices]
    letters = [_letters(image.header.geometry) for image, _, _ in slices]
    # One row per volume, as long as that is readable.
    columns, scale = _grid(tiles, n_slices if n_volumes > 1 and len(tiles) == n_slices * n_volumes else None)
    drawn = [_draw_tile(*args, scale) for args in zip(tiles, labels, letters, strict=True)]
    montage = _assemble(drawn, columns, _caption(images, record, (low, high), len(slices), n_slices * n_volumes))
    info = PngInfo()
    info.add_text("Description", comments_of(images, record))
    montage.save(path, pnginfo=info)


def _counters(images: Sequence[Image]) -> list[str]:
    """Counters in the tile labels: slice (or plane of a single slab), and all others that vary."""
    several = len({image.header.index.slice for image in images}) > 1
    slab = images[0].data.shape[0] > 1
    volumes = zip(*{volume_of(image) for image in images}, strict=True)
    varying = [name for name, values in zip(VOLUME_COUNTERS, volumes, strict=True) if len(set(values)) > 1]
    return [*(["slice"] if several or not slab else []), *(["z"] if slab else []), *varying]


def _label(image: Image, z: int, counters: Sequence[str]) -> str:
    """Label of a tile: the counters of the file, from 0, as used by ``--slices`` and ``--repetitions``."""
    return " / ".join(str(z if name == "z" else getattr(image.header.index, name)) for name in counters)


def choose_tiles(images: Sequence[Image]) -> tuple[list[tuple[Image, int, str]], int, int]:
    """Choose the displayed slices and volumes, evenly spread if there are more than `MAX_TILES`.

    Returns
    -------
    list of (Image, int, str), int, int
        Image, z and label of each tile, sorted by volume and slice; total number of slices and of volumes.
    """
    places = [(s, z) for stack in slice_stacks(images) for s in stack.slices for z in range(stack.image.data.shape[0])]
    volumes = sorted({volume_of(image) for image in images})
    by_index = {(volume_of(image), image.header.index.slice): image for image in images}
    n_volumes = min(len(volumes), max(4, MAX_TILES // len(places)))
    n_slices = min(len(places), MAX_TILES // n_volumes)
    counters = _counters(images)
    chosen = []
    for v in _spread(len(volumes), n_volumes):
        for p in _spread(len(places), n_slices):
            slice_index, z = places[p]
            image = by_index.get((volumes[v], slice_index))
            if image is not None:
                chosen.append((image, z, _label(image, z, counters)))
    return chosen, len(places), len(volumes)


def comments_of(images: Sequence[Image], record: RunRecord) -> str:
    """Description stored in the PNG metadata."""
    return f"{NOTICE}; {method_of(images[0].role, record)}; {record.description}"


def _spread(n: int, m: int) -> list[int]:
    """`m` evenly spread integers below `n`; the middle one for m = 1."""
    return [int((i + 0.5) * n / m) for i in range(m)]


def _tile(image: Image, z: int, low: float, high: float) -> PilImage.Image:
    """Slice in radiological view, windowed to 0 to 1 and resampled to square pixels."""
    view = view_of(image.header.geometry)
    only = replace(image, data=image.data[z : z + 1])
    values = np.clip((view.apply(pixels(only)[0]) - low) / (high - low), 0, 1)
    dx, dy, _ = voxel_m(image)
    across, down = (dy, dx) if view.transpose else (dx, dy)
    height, width = values.shape
    pixel = min(across, down)
    size = (max(1, round(width * across / pixel)), max(1, round(height * down / pixel)))
    montage = PilImage.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return montage if size == montage.size else montage.resize(size, PilImage.Resampling.BICUBIC)


def _letters(geometry: Geometry) -> tuple[str, str, str, str]:
    """Orientation letters; none for nominal geometry, because wrong letters are worse than none."""
    return ("", "", "", "") if geometry.nominal else view_of(geometry).letters


def _grid(tiles: Sequence[PilImage.Image], row: int | None) -> tuple[int, float]:
    """Number of columns and magnification, for an aspect ratio near 3:2, few empty cells and tiles of at most `TILE`."""
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)

    def cost(columns: int) -> float:
        rows = math.ceil(len(tiles) / columns)
        return abs(math.log(columns * width / (rows * height) / 1.5)) + (columns * rows - len(tiles)) / len(tiles)

    columns = row if row and 3 <= row <= 12 else min(range(1, len(tiles) + 1), key=cost)
    longer = max(width, height)
    return columns, max(0.05, min(TILE / longer, (WIDTH / columns) / width))


def _draw_tile(tile: PilImage.Image, label: str, letters: Sequence[str], scale: float) -> PilImage.Image:
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    values = np.asarray(tile.resize(size, PilImage.Resampling.BICUBIC))
    montage = PilImage.fromarray(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8))
    font = _font(min(26, max(10, min(size) // 18)))
    draw = ImageDraw.Draw(montage)
    w, h = size
    left, right, top, bottom = letters
    spots = [((4, h / 2), "lm", left), ((w - 4, h / 2), "rm", right), ((w / 2, 3), "mt", top), ((w / 2, h - 3), "mb", bottom)]
    for place, anchor, text in [*spots, ((4, 3), "lt", label)]:
        # The dark outline keeps letters readable on bright tissue.
        draw.text(place, text, fill=INK, font=font, anchor=anchor, stroke_width=2, stroke_fill=0)
    return montage


def _caption(images: Sequence[Image], record: RunRecord, scale: tuple[float, float], shown: int, total: int) -> tuple[str, str]:
    planes = sorted({view_of(image.header.geometry).plane for image in images})
    title = " · ".join(t for t in (Path(record.source).name, method_of(images[0].role, record)) if t)
    if record.generated and images[0].role == "main":
        title += " (trained generator)"
    parts = [", ".join(planes), f"grey scale {scale[0]:.3g} to {scale[1]:.3g} (99.5th percentile)"]
    parts.append(f"label: {' / '.join(_counters(images))}, counted from 0")
    if shown < total:
        parts.append(f"{shown} of {total} shown")
    if any(image.header.geometry.nominal for image in images):
        parts.append("directions nominal")
    return title, " · ".join(parts)


def _assemble(tiles: Sequence[PilImage.Image], columns: int, caption: tuple[str, str]) -> PilImage.Image:
    cell_w, cell_h = max(t.width for t in tiles), max(t.height for t in tiles)
    rows = math.ceil(len(tiles) / columns)
    lines = [(NOTICE, _font(24), INK), (caption[0], _font(24), INK), (caption[1], _font(20), DIM)]
    text_width = max(math.ceil(f.getlength(text)) for text, f, _ in lines) + 2 * GAP + 8
    width = max(columns * cell_w + (columns + 1) * GAP, text_width)
    bar = 100
    montage = PilImage.new("L", (width, rows * (cell_h + GAP) + GAP + bar), BACKGROUND)
    draw = ImageDraw.Draw(montage)
    left = (width - columns * cell_w - (columns - 1) * GAP) // 2
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        x, y = left + column * (cell_w + GAP), GAP + row * (cell_h + GAP)
        draw.rectangle((x, y, x + cell_w - 1, y + cell_h - 1), fill=0)
        montage.paste(tile, (x + (cell_w - tile.width) // 2, y + (cell_h - tile.height) // 2))
    for (text, f, ink), y in zip(lines, (4, 36, 68), strict=True):
        draw.text((GAP + 4, montage.height - bar + y), text, fill=ink, font=f)
    return montage


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
