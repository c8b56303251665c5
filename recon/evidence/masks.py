"""What kind of undersampling a mask is, and how its samples are spread: for comparison with masks that were trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kspace import coils
from kspace.masks import MaskSpec
from recon.methods.held_out import Candidates

RINGS = 8
KINDS = ("random lines", "regular lines", "points", "complete")


def plane_of(mask: Tensor) -> Tensor:
    """Bool ``(ky kx|1)``: samples that all planes of a mask ``(*batch ky kx|1)`` have."""
    return mask.reshape(-1, *mask.shape[-2:]).all(0).cpu()


def kind_of(plane: Tensor, shape: Sequence[int]) -> str:
    """One of `KINDS`, for a mask ``(ky kx|1)`` of k-space of `shape` ``(ky kx)``."""
    if bool(plane.all()):
        return "complete"
    found = Candidates.among(plane, shape)
    if found.unit == "points":
        return "points"
    return "regular lines" if found.regular else "random lines"


def profile(plane: Tensor, shape: Sequence[int]) -> tuple[float, ...]:
    """Share of acquired samples in `RINGS` rings of a mask ``(ky kx|1)``, for lines in bands of ky; centre first."""
    n_y, n_x = shape
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) / max(n / 2, 1) for n in (n_y, n_x))
    lines = plane.shape[-1] == 1
    radius = y[:, None].abs() if lines else torch.hypot(y[:, None], x)
    ring = (radius * RINGS).long().clamp(max=RINGS - 1)
    sampled = plane.double() if lines else plane.expand(n_y, n_x).double()
    return tuple(float(sampled[ring == i].mean()) for i in range(RINGS))


def centre_share(plane: Tensor, shape: Sequence[int]) -> float:
    """Width of the sampled centre of a mask ``(ky kx|1)`` along ky, as a share of the matrix."""
    return coils.calibration_region(plane.expand(shape[0], plane.shape[-1]))[0] / shape[0]


def nearest_profile(
    found: Sequence[float], kind: str, acceleration: float, known: Sequence[tuple[str, float, Sequence[float]]]
) -> float | None:
    """Root mean square difference of a profile to the nearest known one of its kind and about its R; None: none is near."""
    near = [p for k, r, p in known if k == kind and abs(math.log(r / max(acceleration, 1e-6))) <= math.log(1.5)]
    distances = [(sum((a - b) ** 2 for a, b in zip(found, p, strict=True)) / len(found)) ** 0.5 for p in near]
    return min(distances, default=None)


Drawn = tuple[str, float, tuple[float, ...], float]


def trained_profiles(specs: Sequence[str], shape: tuple[int, int], draws: int) -> list[Drawn]:
    """Kind, actual R, profile and centre of masks drawn from specifications on k-space of `shape`."""
    found = []
    for text in specs:
        for draw in range(draws):
            plane = MaskSpec.parse(text).draw(shape, f"calibration {draw}")
            r = plane.numel() / max(int(plane.sum()), 1)
            found.append((kind_of(plane, shape), r, profile(plane, shape), centre_share(plane, shape)))
    return found
