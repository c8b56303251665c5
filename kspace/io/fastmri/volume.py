"""fastMRI HDF5: reader of multi-coil and single-coil volumes.

The files store ``kspace`` as ``(slice, coil, readout, phase)``, without the coil axis for single coils, and images as
``(slice, readout, phase)``. Here the readout is last: `FastmriVolume.load` and `FastmriVolume.target` transpose on reading,
`write_volume` and `write_reconstruction` on writing, so that no other module depends on the order in the files.

Format: Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI. https://doi.org/10.48550/arXiv.1811.08839
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from torch import Tensor

from kspace.container import Geometry, Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io.fastmri.header import FastmriHeader, parse_header
from kspace.io.hdf5 import check_self_contained, find_dataset, open_h5, plain_attributes
from kspace.io.hdf5_heap import check_list

if TYPE_CHECKING:
    from kspace.noise import Noise

__all__ = ["FastmriVolume", "open_volume"]

MAX_SAMPLES = 1 << 29  # per slice, 4 GiB; ten times the largest real slices


@dataclass(frozen=True)
class FastmriVolume:
    """Volume in a fastMRI file: header and shapes. `load` reads the samples of one slice.

    It holds no open file, so it can be passed to other processes and kept in large numbers.

    Attributes
    ----------
    path
        The file.
    n_slices, n_coils
        Number of slices and coils (1 for single-coil files).
    matrix
        Matrix size ``(ky, kx)`` of k-space; kx is the readout.
    recon_shape
        Matrix size ``(y, x)`` of the reconstructed image, the centre of the encoded image; limited to the size of the
        volume where the header's recon matrix is larger.
    single_coil
        True for files without a coil axis, whose target is ``reconstruction_esc``.
    acquired
        First and past-the-last acquired line ``ky`` according to the header.
    scan
        Parsed ``ismrmrd_header``, empty if the file has none.
    target_name
        ``reconstruction_rss``, ``reconstruction_esc``, or None without a target.
    has_mask
        Whether the file has a mask (test files, prospectively undersampled scans).
    attributes
        File attributes: ``acquisition``, ``max``, ``norm``, ``patient_id``, ``acceleration``, ``num_low_frequency``.
    boxes
        Regions of interest, rows ``(slice, class, y0, x0, y1, x1)`` in pixels of the image of `recon_shape`.
    noise_covariance
        E[n n^H] of the samples, complex64 ``(coil coil)``, in squared units of the file; None if unknown.
    has_truth
        Whether the file is a simulation that holds the noise-free ground truth (`truth`).
    """

    path: Path
    n_slices: int
    n_coils: int
    matrix: tuple[int, int]
    recon_shape: tuple[int, int]
    single_coil: bool
    acquired: tuple[int, int]
    scan: FastmriHeader = field(repr=False)
    target_name: str | None
    has_mask: bool
    attributes: dict[str, Any] = field(default_factory=dict)
    boxes: tuple[tuple[float, ...], ...] = ()
    noise_covariance: Tensor | None = field(default=None, repr=False, compare=False)
    has_truth: bool = False

    @property
    def patient(self) -> str:
        """Patient pseudonym; the file name if missing, so that unrelated files are never grouped."""
        return str(self.attributes.get("patient_id") or self.path.name)

    @property
    def max(self) -> float | None:
        """Maximum of the target volume, from the file attributes."""
        value = self.attributes.get("max")
        return None if value is None else float(value)

    @property
    def steps(self) -> tuple[str, ...]:
        """Processing steps applied to the samples before they were written."""
        steps = self.attributes.get("steps")
        return tuple(str(steps).split(",")) if steps else ()

    @property
    def mask(self) -> Tensor:
        """Sampling mask without the margin: bool ``(ky, 1)`` for complete phase-encode lines, else ``(ky, kx)``."""
        with open_h5(self.path) as file:
            return _read_mask(file, self)

    @property
    def noise(self) -> Noise | None:
        """Noise of the imaging samples from `noise_covariance`; None if unknown, or if the samples are whitened."""
        from kspace.noise import Noise  # not needed to read a volume

        if self.noise_covariance is None or "whiten" in self.steps:
            return None
        # The file has no number of noise samples: the covariance is taken as exact.
        return Noise(self.noise_covariance.numpy().astype(np.complex128), None, n_samples=1 << 30, source=str(self.path))

    def load(self, index: int) -> KSpace:
        """Read one slice.

        Parameters
        ----------
        index
            Slice number from 0.

        Returns
        -------
        KSpace
            ``data`` complex64 ``(coil ky kx)``, zero where not acquired; ``mask`` ``(1 ky 1)`` or ``(1 ky kx)``.

        Raises
        ------
        InputError
            If the slice does not exist, cannot be read, or holds samples that are not finite.
        """
        self._check_slice(index)
        with open_h5(self.path) as file:
            data = _read_slice(file["kspace"], index, self)
            mask = _read_mask(file, self)
            n_averages = _optional(file, "n_averages", index)
            calibration = _read_slice(file["calibration"], index, self) if "calibration" in file else None
            header = _slice_header(file, index, self)
        if not mask.all():
            data.masked_fill_(~mask, 0)
        return KSpace(
            data=data,
            mask=mask[None],
            header=header,
            n_averages=None if n_averages is None else n_averages.mT.reshape(mask[None].shape),
            calibration=calibration,
        )

    def header(self, index: int) -> Header:
        """Header of one slice, without reading samples."""
        self._check_slice(index)
        with open_h5(self.path) as file:
            return _slice_header(file, index, self)

    def target(self, index: int) -> Tensor | None:
        """Target of one slice, float32 ``(y x)``; None without a target."""
        self._check_slice(index)
        if self.target_name is None:
            return None
        with open_h5(self.path) as file:
            image = file[self.target_name][index]
        return torch.from_numpy(np.ascontiguousarray(image.T, dtype=np.float32))

    def truth(self, index: int) -> Tensor | None:
        """Magnitude of the noise-free ground truth of a simulation, float32 ``(y x)`` of `recon_shape`, over the standard
        deviation of whitened noise; None where the file does not say."""
        self._check_slice(index)
        if not self.has_truth:
            return None
        with open_h5(self.path) as file:
            image = torch.from_numpy(np.ascontiguousarray(file["truth"][index].T, dtype=np.float32))
        if not image.isfinite().all():
            raise InputError(f"slice {index} of truth holds NaN or infinity", self.path, "correct or recreate the file")
        return image

    def boxes_of(self, index: int) -> Tensor:
        """Regions of interest of one slice, float32 ``(n, 5)``: class, y0, x0, y1, x1 in points of the image delivered."""
        rows = [row[1:] for row in self.boxes if row[0] == index]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)

    def _check_slice(self, index: int) -> None:
        if not 0 <= index < self.n_slices:
            raise InputError(f"there is no slice {index}", self.path, f"it has slices 0 to {self.n_slices - 1}")


def open_volume(path: str | os.PathLike[str]) -> FastmriVolume:
    """Read header, attributes and shapes of a fastMRI-style file; no samples.

    Raises
    ------
    InputError
        For every file that cannot be used: not there, a folder, empty, not HDF5, truncated, HDF5 without ``kspace`` (an
        ISMRMRD file: said so), shapes that contradict the header or each other.
    """
    path = Path(path)
    with open_h5(path) as file:
        check_self_contained(file, path)
        kspace = find_dataset(file, "kspace", path)
        n_slices, n_coils, n_kx, n_ky = _check_kspace(kspace, path)
        scan = parse_header(_header_text(file, path), str(path)) if "ismrmrd_header" in file else FastmriHeader()
        single_coil = kspace.ndim == 3
        names = ("reconstruction_esc", "reconstruction_rss") if single_coil else ("reconstruction_rss", "reconstruction_esc")
        target_name = next((name for name in names if name in file), None)
        recon_shape = _recon_shape(file, scan, target_name, (n_ky, n_kx), path)
        attributes = plain_attributes(file)
        covariance = _read_covariance(file, n_coils, path)
        volume = FastmriVolume(
            path=path,
            n_slices=n_slices,
            n_coils=n_coils,
            matrix=(n_ky, n_kx),
            recon_shape=recon_shape,
            single_coil=single_coil,
            acquired=scan.acquired_range(n_ky),
            scan=scan,
            target_name=target_name,
            has_mask="mask" in file,
            attributes=attributes,
            boxes=_read_boxes(file, path),
            noise_covariance=covariance,
            # Others may call anything so, in any unit; ours is in that of the noise.
            has_truth="truth" in file and bool(attributes.get("simulated")) and covariance is not None,
        )
        _check_header(volume)
        _read_mask(file, volume)
        if volume.has_truth:
            _check_truth(find_dataset(file, "truth", path), volume)
    return volume


def _check_kspace(kspace: h5py.Dataset, path: Path) -> tuple[int, int, int, int]:
    if kspace.dtype.kind != "c":
        raise InputError(f"kspace is {kspace.dtype}, expected complex", path, "correct or recreate the file")
    if kspace.ndim not in (3, 4):
        raise InputError(
            f"kspace has shape {kspace.shape}, expected (slice, coil, readout, phase)",
            path,
            "correct or recreate the file",
        )
    n_slices, *coils, n_kx, n_ky = kspace.shape
    n_coils = coils[0] if coils else 1
    if 0 in kspace.shape:
        raise InputError(f"kspace is empty: its shape is {kspace.shape}", path, "correct or recreate the file")
    if n_coils * n_kx * n_ky > MAX_SAMPLES:
        raise InputError(
            f"a slice of shape {kspace.shape[1:]} is larger than {MAX_SAMPLES} samples",
            path,
            "correct or recreate the file",
        )
    return n_slices, n_coils, n_kx, n_ky


def _check_header(volume: FastmriVolume) -> None:
    matrix = volume.scan.encoded_matrix
    n_ky, n_kx = volume.matrix
    if matrix is not None and matrix[:2] != (n_kx, n_ky):
        raise InputError(
            f"kspace is {n_kx} x {n_ky} (readout x phase), the header's encoded matrix {matrix[0]} x {matrix[1]}",
            volume.path,
            "correct or recreate the file",
        )
    start, stop = volume.acquired
    if start >= stop:
        limits = f"centre {volume.scan.ky_centre}, maximum {volume.scan.ky_max}"
        raise InputError(
            f"the header's encoding limits ({limits}) leave no line of {n_ky}",
            volume.path,
            "correct or recreate the file",
        )


def _check_truth(truth: h5py.Dataset, volume: FastmriVolume) -> None:
    expected = volume.n_slices, *reversed(volume.recon_shape)
    if truth.shape != expected or truth.dtype.kind != "f":
        raise InputError(
            f"truth is {truth.dtype} of shape {truth.shape}, expected real numbers of shape {expected}",
            volume.path,
            "correct or recreate the file",
        )


def _header_text(file: h5py.File, path: Path) -> bytes | str:
    dataset = file["ismrmrd_header"]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape not in ((), (1,)) or dataset.dtype.kind not in "SO":
        raise InputError("the ismrmrd_header is not text", path, "correct or recreate the file")
    check_list(dataset, path)
    value = dataset[()]
    text = value[0] if isinstance(value, np.ndarray) else value
    return text if isinstance(text, (bytes, str)) else bytes(text)


def _recon_shape(
    file: h5py.File, scan: FastmriHeader, target_name: str | None, matrix: tuple[int, int], path: Path
) -> tuple[int, int]:
    """Output size ``(y, x)``: recon matrix of the header, at most that of k-space; else the target's, else that of k-space."""
    shape = matrix
    if target_name is not None:
        target = find_dataset(file, target_name, path)
        if target.ndim != 3 or target.shape[0] != file["kspace"].shape[0]:
            raise InputError(
                f"{target_name} has shape {target.shape}, kspace {file['kspace'].shape}",
                path,
                "correct or recreate the file",
            )
        shape = target.shape[2], target.shape[1]
        if shape[0] > matrix[0] or shape[1] > matrix[1]:
            raise InputError(
                f"{target_name} is larger ({target.shape}) than kspace {file['kspace'].shape}",
                path,
                "correct or recreate the file",
            )
    if scan.recon_matrix is not None:
        shape = scan.recon_matrix[1], scan.recon_matrix[0]
    return min(shape[0], matrix[0]), min(shape[1], matrix[1])


def _read_mask(file: h5py.File, volume: FastmriVolume) -> Tensor:
    n_ky, n_kx = volume.matrix
    start, stop = volume.acquired
    lines = torch.zeros(n_ky, 1, dtype=torch.bool)
    lines[start:stop] = True
    if not volume.has_mask:
        return lines
    mask = np.asarray(find_dataset(file, "mask", volume.path)[()])
    if mask.shape not in ((n_ky,), (n_kx, n_ky)):
        raise InputError(
            f"the mask has shape {mask.shape}, kspace has {n_ky} lines of {n_kx} samples",
            volume.path,
            "correct or recreate the file",
        )
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError("the mask holds values other than 0 and 1", volume.path, "correct or recreate the file")
    if not mask.any():
        raise InputError("the mask is empty", volume.path, "correct or recreate the file")
    acquired = torch.from_numpy(mask.astype(bool).reshape(-1, n_ky)).mT.contiguous()
    return acquired & lines


def _read_slice(dataset: h5py.Dataset, index: int, volume: FastmriVolume) -> Tensor:
    samples = dataset[index].astype(np.complex64, copy=False).reshape(volume.n_coils, *reversed(volume.matrix))
    data = torch.from_numpy(np.ascontiguousarray(samples.swapaxes(-1, -2)))  # NumPy transposes three times as fast as torch
    # The sum is not finite if any sample is not, at a tenth of the cost; it may overflow, hence the second check.
    if not torch.view_as_real(data).sum().isfinite() and not torch.view_as_real(data).isfinite().all():
        raise InputError(
            f"slice {index} of {dataset.name.lstrip('/')} holds NaN or infinite samples",
            volume.path,
            "correct or recreate the file",
        )
    return data


def _optional(file: h5py.File, name: str, index: int) -> Tensor | None:
    return torch.from_numpy(file[name][index].astype(np.int32)) if name in file else None


def _read_boxes(file: h5py.File, path: Path) -> tuple[tuple[float, ...], ...]:
    if "boxes" not in file:
        return ()
    boxes = np.asarray(file["boxes"][()])
    if boxes.ndim != 2 or boxes.shape[1] != 6 or boxes.dtype.kind not in "fiu":
        raise InputError(
            f"boxes have shape {boxes.shape}, expected rows (slice, class, y0, x0, y1, x1)",
            path,
            "correct or recreate the file",
        )
    return tuple(tuple(float(value) for value in row) for row in boxes)


def _read_covariance(file: h5py.File, n_coils: int, path: Path) -> Tensor | None:
    if "noise_covariance" not in file:
        return None
    covariance = np.asarray(find_dataset(file, "noise_covariance", path)[()])
    if covariance.shape != (n_coils, n_coils) or covariance.dtype.kind not in "cf":
        raise InputError(
            f"the noise covariance is {covariance.dtype} {covariance.shape}, expected {n_coils} coils",
            path,
            "correct or recreate the file",
        )
    if not np.isfinite(covariance).all() or not np.allclose(covariance, covariance.conj().T, rtol=1e-4, atol=0):
        raise InputError("the noise covariance is not Hermitian and finite", path, "correct or recreate the file")
    return torch.from_numpy(covariance.astype(np.complex64))


def _slice_header(file: h5py.File, index: int, volume: FastmriVolume) -> Header:
    n_ky, n_kx = volume.matrix
    encoded_fov = volume.scan.encoded_fov_m or (0.0, 0.0, 0.0)
    recon_y, recon_x = volume.recon_shape
    # The output image is the centre of the encoded one, so its pixels have the encoded size regardless of the header.
    recon_fov = (encoded_fov[0] * recon_x / n_kx, encoded_fov[1] * recon_y / n_ky, encoded_fov[2])
    # fastMRI files have no positions. A spacing of one slice thickness makes the volume a single stack.
    height = (index - volume.n_slices // 2) * encoded_fov[2]
    geometry = Geometry(position_m=(0.0, 0.0, height), fov_m=recon_fov, nominal=True)
    if "geometry" in file:
        entry: dict[str, Any] = json.loads(file["geometry"].asstr()[()])[index]
        entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        geometry = replace(Geometry(**entry), fov_m=recon_fov)
    noise_std = volume.attributes.get("noise_std")
    return Header(
        source=str(volume.path),
        index=ImageIndex(slice=index),
        encoded_matrix=(n_kx, n_ky, 1),
        recon_matrix=(recon_x, recon_y, 1),
        encoded_fov_m=encoded_fov,
        recon_fov_m=recon_fov,
        geometry=geometry,
        noise_std=None if noise_std is None else float(noise_std),
        acceleration=volume.scan.acceleration,
        study=dict(volume.scan.study),
        steps=volume.steps,
    )
