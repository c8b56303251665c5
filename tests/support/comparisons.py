"""Small volumes, and commands that compare on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kspace.container import Header, KSpace
from kspace.fourier import fft
from kspace.io.fastmri import write_volume
from recon import cli
from tests.support.scans import coil_maps, ellipses

SHAPE = (36, 32)
MASK = "random1d:2,centre=12"


def volume(
    path: Path, seed: int = 0, n_slices: int = 2, noise: float = 0.02, boxes: Sequence[Sequence[float]] = (), mask: Any = None
) -> Path:
    """A fastMRI-style volume of ellipses: 3 coils, noise, a phase."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_ky, n_kx = SHAPE
    matrix, fov = (n_kx, n_ky, 1), (0.2, 0.2, 0.005)
    header = Header(encoded_matrix=matrix, recon_matrix=matrix, encoded_fov_m=fov, recon_fov_m=fov)
    g = torch.Generator().manual_seed(seed)
    sampled = torch.ones(1, n_ky, 1, dtype=torch.bool) if mask is None else mask
    slices = []
    for i in range(n_slices):
        clean = fft(coil_maps(3, SHAPE) * ellipses(SHAPE, 10 * seed + i))
        noisy = clean + noise * torch.randn(clean.shape, generator=g, dtype=torch.complex64)
        slices.append(KSpace(1e-4 * noisy * sampled, sampled, header))
    return write_volume(path, slices, patient_id=path.stem, boxes=boxes)


def volumes(folder: Path, n: int = 3, **options: Any) -> Path:
    """A folder of volumes."""
    for i in range(n):
        volume(folder / f"v{i}.h5", seed=i, **options)
    return folder


def run(*words: object) -> int:
    """`recon compare WORDS`, in this process."""
    return cli.execute(["compare", *map(str, words)])
