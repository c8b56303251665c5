"""Writer of fastMRI HDF5; `kspace.io.fastmri.volume` describes the format."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft, resize
from kspace.io.atomic import atomic_write
from kspace.io.fastmri.header import format_header
from kspace.io.hdf5 import create_h5

# Idempotent steps, which readers of the file may apply again.
_REPEATABLE = ("drop_dead_coils", "remove_oversampling")

_ON_DISK = partial(h5py.File, mode="w")


def write_volume(
    path: str | os.PathLike[str],
    slices: Iterable[KSpace],
    *,
    patient_id: str = "",
    acquisition: str = "",
    noise_covariance: Tensor | None = None,
    boxes: Sequence[Sequence[float]] = (),
    truth: Tensor | None = None,
    attributes: dict[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write slices of one scan as a fastMRI file (atomic write).

    Fully sampled scans get ``reconstruction_rss`` (root sum of squares of the coil images, cropped to the recon matrix of the
    header) with the attributes ``max`` and ``norm``; others get ``mask``, ``(phase,)`` for complete phase-encode lines, else
    ``(readout, phase)``. Averages, separate calibration, positions and applied steps are stored in additional data sets, which
    other readers of the format ignore.

    Parameters
    ----------
    path
        Output file.
    slices
        ``data`` complex64 ``(coil ky kx)``, all of the same shape and mask. One slice at a time is in memory.
    patient_id, acquisition
        fastMRI attributes of these names. Data splits use `patient_id`.
    noise_covariance
        E[n n^H] of the samples, complex ``(coil coil)``, if known and the data are not whitened.
    boxes
        Regions of interest, rows ``(slice, class, y0, x0, y1, x1)`` in pixels of the recon image ``(y x)``.
    truth
        Noise-free ground truth magnitude of a simulation, real ``(slice y x)`` of the recon matrix, in units of the standard
        deviation of whitened noise. Written as data set ``truth``, ``(slice, readout, phase)``.
    attributes
        Further file attributes (numbers and text).
    force
        Overwrite an existing file.

    Raises
    ------
    InputError
        If the file exists or cannot be written, or slices are missing or differ in shape or mask.
    """
    path = Path(path)
    with _new_file(path, force) as file:
        first, geometry, rss_max, rss_norm2 = _write_slices(file, slices, path)
        n_slices, n_coils = len(geometry), first.n_coils
        file["ismrmrd_header"] = format_header(first.header, n_slices, n_coils)
        if not all(entry["nominal"] for entry in geometry):
            file["geometry"] = json.dumps(geometry)
        if noise_covariance is not None:
            if noise_covariance.shape != (n_coils, n_coils):
                raise ValueError(f"noise covariance {tuple(noise_covariance.shape)} for {n_coils} coils")
            file["noise_covariance"] = noise_covariance.detach().cpu().to(torch.complex64).numpy()
        if len(boxes):
            file["boxes"] = np.asarray(boxes, dtype=np.float32).reshape(-1, 6)
        if truth is not None:
            x, y, _ = first.header.recon_matrix
            if truth.shape != (n_slices, y, x):
                raise ValueError(f"truth of shape {tuple(truth.shape)}, expected {(n_slices, y, x)}")
            file["truth"] = truth.detach().cpu().to(torch.float32).mT.contiguous().numpy()
        file.attrs.update({"acquisition": acquisition, "patient_id": patient_id, **(attributes or {})})
        if rss_max is not None:
            file.attrs.update({"max": rss_max, "norm": rss_norm2**0.5})
        if steps := [step for step in first.header.steps if step not in _REPEATABLE]:
            file.attrs["steps"] = ",".join(steps)
        if first.header.noise_std is not None:
            file.attrs["noise_std"] = first.header.noise_std
    return path


def write_reconstruction(
    path: str | os.PathLike[str],
    images: Sequence[Tensor] | Tensor,
    *,
    attributes: dict[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a volume in fastMRI submission layout: data set ``reconstruction``, float32 ``(slice, readout, phase)``.

    Parameters
    ----------
    path
        Output file; fastMRI expects the name of the reconstructed volume.
    images
        ``(slice y x)``, or images ``(y x)`` or ``(z y x)`` to stack; complex (magnitudes are written) or real.
    attributes
        File attributes.
    force
        Overwrite an existing file.

    Raises
    ------
    InputError
        If the file exists or cannot be written.
    ValueError
        If the images differ in shape.
    """
    planes = [plane.detach().cpu() for image in images for plane in image.reshape(-1, *image.shape[-2:])]
    if len({plane.shape for plane in planes}) != 1:
        raise ValueError(f"images must be of one shape; got {sorted({tuple(plane.shape) for plane in planes})}")
    stack = torch.stack(planes)
    magnitude = stack.abs() if stack.is_complex() else stack
    path = Path(path)
    with _new_file(path, force, create_h5) as file:
        file["reconstruction"] = magnitude.to(torch.float32).mT.contiguous().numpy()
        file.attrs.update(attributes or {})
    return path


@contextlib.contextmanager
def _new_file(
    path: Path, force: bool, create: Callable[[Path], AbstractContextManager[h5py.File]] = _ON_DISK
) -> Iterator[h5py.File]:
    """New file that gets its name once complete (atomic write)."""
    if path.exists() and not force:
        raise InputError("the file exists", path, "choose another name, or force")
    with atomic_write(path) as beside, create(beside) as file:
        yield file


def _write_slices(
    file: h5py.File, slices: Iterable[KSpace], path: Path
) -> tuple[KSpace, list[dict[str, Any]], float | None, float]:
    first: KSpace | None = None
    geometry: list[dict[str, Any]] = []
    rss_max, rss_norm2 = 0.0, 0.0
    full = False
    for k in slices:
        if first is None:
            first, full = k, bool(k.mask.all())
            _check_writable(k, path)
            if not full:
                mask = k.mask[0].mT.cpu().numpy().astype(np.uint8)
                file["mask"] = mask[0] if mask.shape[0] == 1 else mask
        elif k.data.shape != first.data.shape or not torch.equal(k.mask, first.mask):
            raise InputError(f"slice {len(geometry)} differs from slice 0 in shape or mask", path, "write two files")
        _append(file, "kspace", k.data)
        if k.n_averages is not None:
            _append(file, "n_averages", k.n_averages[0].to(torch.int32))
        if k.calibration is not None:
            _append(file, "calibration", k.calibration)
        if full:
            rss = root_sum_of_squares(k)
            _append(file, "reconstruction_rss", rss)
            rss_max, rss_norm2 = max(rss_max, float(rss.max())), rss_norm2 + float(rss.double().square().sum())
        geometry.append(asdict(k.header.geometry))
    if first is None:
        raise InputError("there are no slices to write", path)
    return first, geometry, rss_max if full else None, rss_norm2


def root_sum_of_squares(k: KSpace) -> Tensor:
    """Root sum of squares of the coil images, cropped to the recon matrix of the header: fastMRI's ``reconstruction_rss``.

    Parameters
    ----------
    k
        ``(*batch coil ky kx)``.

    Returns
    -------
    Tensor
        Real ``(*batch y x)``.
    """
    x, y, _ = k.header.recon_matrix
    rss = ifft(k.data).abs().square().sum(-3).sqrt()
    return resize(rss, (min(y, rss.shape[-2]), min(x, rss.shape[-1])))


def _check_writable(k: KSpace, path: Path) -> None:
    if k.data.ndim != 3 or k.mask.ndim != 3 or k.mask.shape[0] != 1:
        raise ValueError(f"slices must be (coil ky kx) with one mask; got {tuple(k.data.shape)}, mask {tuple(k.mask.shape)}")
    n_ky, n_kx = k.data.shape[-2:]
    if k.header.encoded_matrix[:2] != (n_kx, n_ky):
        raise InputError(f"k-space is {n_kx} x {n_ky}, the header's encoded matrix {k.header.encoded_matrix[:2]}", path)
    if min(k.header.recon_matrix[:2]) < 1:
        raise InputError(f"the header's recon matrix is {k.header.recon_matrix}", path)


def _append(file: h5py.File, name: str, x: Tensor) -> None:
    values = x.detach().cpu().mT.contiguous().numpy()
    if name not in file:
        file.create_dataset(name, (0, *values.shape), values.dtype, chunks=(1, *values.shape), maxshape=(None, *values.shape))
    dataset = file[name]
    dataset.resize(dataset.shape[0] + 1, axis=0)
    dataset[-1] = values
