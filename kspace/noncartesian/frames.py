"""Images off the grid, divided into frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kspace.container import ImageIndex
from kspace.errors import InputError


def frames_of(
    images: dict[ImageIndex, np.ndarray], n_frames: int | None, readouts_per_frame: int | None, path: Path
) -> dict[ImageIndex, np.ndarray]:
    """Images with their readout numbers ``(n,)``, each divided into frames that count as repetitions."""
    found = {}
    for index, numbers in images.items():
        n = readouts_per_frame or len(numbers) // (n_frames or 1)
        count = n_frames or len(numbers) // n
        if n < 1 or n * count > len(numbers) or count < 1:
            what = f"{len(numbers)} readouts cannot be divided into {count or 1} frames of {max(n, 1)}"
            raise InputError(what, path, "choose fewer --frames or --spokes-per-frame")
        for frame in range(count):
            found[replace(index, repetition=index.repetition * count + frame)] = numbers[frame * n : (frame + 1) * n]
    return found
