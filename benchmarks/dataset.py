"""Examples per second from fastMRI-style files, against fastMRI's own loader on the same files in the same run.

Ours delivers more: coil maps (from the cache, as in every epoch but the first) and the complex target beside the samples.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kspace.container import Header, KSpace
from kspace.fourier import fft
from kspace.io.fastmri import write_volume
from kspace.masks import MaskSpec
from recon.datasets.example import collate
from recon.datasets.kspace_dataset import KSpaceDataset, ShapeBatchSampler, find_volumes

Row = tuple[str, float, str, str]
N_VOLUMES, N_SLICES, N_WORKERS, N_EPOCHS = 2, 6, 2, 7
# (ky, kx) of k-space, (y, x) of the image, coils: without oversampling, and fastMRI's knees
KINDS = (((256, 256), (256, 256), 8), ((368, 640), (320, 320), 12))


def run() -> list[Row]:
    """Examples per second of both loaders, two workers each, epochs in turn, and the ratio of the medians."""
    return [row for kind in KINDS for row in _compare(*kind)]


def _compare(matrix: tuple[int, int], recon: tuple[int, int], n_coils: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        volumes, maps = Path(name) / "volumes", Path(name) / "maps"
        volumes.mkdir()
        for number in range(N_VOLUMES):
            write_volume(volumes / f"v{number}.h5", _slices(matrix, recon, n_coils, number), patient_id=f"p{number}")
        dataset = KSpaceDataset(find_volumes(volumes), [MaskSpec("random1d", 4.0)], cache=maps)
        first = time.perf_counter()
        for _ in _ours(dataset):
            pass
        first = time.perf_counter() - first
        seconds = _alternate(_ours(dataset), _fastmri(volumes))
    n = N_VOLUMES * N_SLICES
    what = f"{matrix[1]}x{matrix[0]}, {n_coils} coils"
    note = f"{N_WORKERS} workers, load {os.getloadavg()[0]:.1f}"
    return [
        (f"examples, first epoch (maps are made), {what}", n / first, "1/s", note),
        (f"examples with cached maps, {what}", n / seconds[0], "1/s", note),
        (f"  fastMRI SliceDataset + VarNetDataTransform: {n / seconds[1]:.3g} 1/s", seconds[1] / seconds[0], "x", "at least 1"),
    ]


def _ours(dataset: KSpaceDataset) -> DataLoader[Any]:
    sampler = ShapeBatchSampler(dataset.shapes, 1)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=N_WORKERS, persistent_workers=True)


def _fastmri(folder: Path) -> DataLoader[Any]:
    from fastmri.data import SliceDataset
    from fastmri.data.subsample import create_mask_for_mask_type
    from fastmri.data.transforms import VarNetDataTransform

    transform = VarNetDataTransform(create_mask_for_mask_type("random", [0.08], [4]))
    # Its cache of headers is a pickle; the headers are read when the data set is made, which is not timed.
    dataset: Dataset[Any] = SliceDataset(root=folder, challenge="multicoil", transform=transform, use_dataset_cache=False)
    return DataLoader(dataset, batch_size=1, num_workers=N_WORKERS, persistent_workers=True)


def _alternate(*loaders: DataLoader[Any]) -> list[float]:
    """Median seconds of an epoch of each loader, taking turns; the first of each, which starts the workers, does not count."""
    times: list[list[float]] = [[] for _ in loaders]
    for epoch in range(N_EPOCHS + 1):
        for loader, record in zip(loaders, times, strict=True):
            start = time.perf_counter()
            for _ in loader:
                pass
            if epoch:
                record.append(time.perf_counter() - start)
    return [float(np.median(record)) for record in times]


def _slices(matrix: tuple[int, int], recon: tuple[int, int], n_coils: int, seed: int) -> Iterator[KSpace]:
    """An ellipse with texture, seen by coils around it, with noise."""
    (n_ky, n_kx), (n_y, n_x), point_m = matrix, recon, 0.0005
    header = Header(
        encoded_matrix=(n_kx, n_ky, 1),
        recon_matrix=(n_x, n_y, 1),
        encoded_fov_m=(n_kx * point_m, n_ky * point_m, 0.0045),
        recon_fov_m=(n_x * point_m, n_y * point_m, 0.0045),
    )
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_ky) * n_ky / n_y, torch.linspace(-1, 1, n_kx) * n_kx / n_x, indexing="ij")
    angles = torch.arange(n_coils) * 2 * torch.pi / n_coils
    maps = torch.stack([torch.exp(-((x - torch.cos(a)) ** 2 + (y - torch.sin(a)) ** 2) / 2 + 1j * a) for a in angles])
    for index in range(N_SLICES):
        image = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1) * (1 + 0.3 * torch.sin((9 + index) * x) * torch.cos(7 * y))
        noise = torch.randn(maps.shape, dtype=torch.complex64, generator=generator)
        yield KSpace(1e-5 * (fft(image * maps) + 0.01 * noise), torch.ones(1, n_ky, 1, dtype=torch.bool), header)
