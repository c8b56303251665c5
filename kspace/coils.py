"""Coil sensitivity maps from acquired samples only, and coil compression.

Every estimate here first multiplies by the mask: a sample that was not acquired cannot change a map.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft, resize
from kspace.io.mrd.noise import Noise
from kspace.preprocess import match_channels

METHODS = ("espirit", "jsense")

# Below, the calibration matrix has too few rows to tell the signal from the null space.
_SPARE_LINES = 2

# Chosen on a phantom with 4 to 24 central lines and gaps between the rest.
_JSENSE_KERNEL = 8
_JSENSE_WEIGHT = 1e-2


class NoCalibration(InputError):
    """There are not enough calibration samples around the centre of k-space to estimate coil maps from."""


def estimate_maps(
    k: KSpace,
    method: str = "espirit",
    calibration_width: int = 24,
    *,
    kernel_width: int | None = None,
    threshold: float = 0.02,
    crop: float = 0.8,
) -> Tensor:
    """Estimate the coil sensitivity maps of every plane.

    The calibration samples are those of ``k.calibration`` where it is present, else the largest centred block of `k` that was
    sampled completely; JSENSE also takes a centre with gaps.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``.
    method
        ``espirit``: Uecker et al. 2014, doi:10.1002/mrm.24751. ``jsense``: Ying and Sheng 2007, doi:10.1002/mrm.21245,
        by SigPy.
    calibration_width
        At most so many calibration samples are used along each axis.
    kernel_width
        ESPIRiT: samples along each axis of a calibration kernel. Default: 6, fewer where the calibration block is small.
    threshold
        ESPIRiT: singular values below `threshold` times the largest belong to the null space.
    crop
        ESPIRiT: maps are zero where the eigenvalue of the image-space operator lies below; 1 means the model holds exactly.

    Returns
    -------
    Tensor
        complex64 ``(*batch coil y x)``. The squared magnitudes sum to 1 over the coils inside the support and to 0 outside. The
        phase is that of the first principal coil combination, which has no zeros inside an object and so no phase
        singularities. One coil: ones. A plane without signal: zeros. Never NaN.

    Raises
    ------
    NoCalibration
        If there are too few calibration lines.
    InputError
        If samples are not finite, or `method` is not known.
    """
    if method not in METHODS:
        raise InputError(f"unknown method '{method}' for coil maps", k.header.source or None, "use espirit or jsense")
    if k.n_coils == 1:
        return torch.ones(k.data.shape, dtype=torch.complex64, device=k.data.device)
    data, mask = _calibration_samples(k)
    if not bool(torch.isfinite(torch.view_as_real(data)).all()):
        raise InputError("k-space samples that are not finite", k.header.source or None, "leave the damaged readouts out")
    planes = data.reshape(-1, *data.shape[-3:])
    masks = mask.expand(*data.shape[:-3], 1, *data.shape[-2:]).reshape(-1, *data.shape[-2:])
    maps = torch.zeros(planes.shape, dtype=torch.complex64, device=data.device)
    regions: dict[bytes, tuple[int, int]] = {}
    for plane, plane_mask, out in zip(planes, masks, maps, strict=True):
        peak = plane.abs().max()
        if peak == 0:
            continue
        plane = (plane / peak).to(torch.complex64)  # raw data may be 1e-20 or 1e20: squares must not under- or overflow
        if method == "jsense":
            out.copy_(_jsense(plane, plane_mask, calibration_width))
            continue
        key = plane_mask.cpu().numpy().tobytes()
        if key not in regions:
            regions[key] = calibration_region(plane_mask)
        size = min(regions[key][0], calibration_width), min(regions[key][1], calibration_width)
        width = kernel_width or _kernel_width(size)
        _check_size(size, width, k.header.source)
        out.copy_(_espirit(resize(plane, size), (plane.shape[-2], plane.shape[-1]), width, threshold, crop))
    return maps.reshape(data.shape)


def load_maps(path: Path, k: KSpace, noise: Noise | None = None) -> Tensor:
    """Read coil maps that were made elsewhere, of the channels of the raw file, and treat them as its samples were.

    Parameters
    ----------
    path
        ``.npy``, or HDF5 with a dataset ``maps``: complex ``(coil y x)``, or ``(slice coil y x)`` from which the slice of `k`
        is taken; for a 3-D scan ``(coil z y x)``. The channels are all those of the raw file, not whitened.
    k
        The k-space they are for, ``(*batch coil ky kx)``. Where its dead coils were dropped, its channels whitened or
        compressed, the maps are.
    noise
        What `k` was whitened with, None where it was not.

    Returns
    -------
    Tensor
        complex64 ``(*batch coil y x)``, scaled so that the squared magnitudes sum to 1 over the channels of the raw file
        (whitened ones, where `k` is) where any is non-zero.

    Raises
    ------
    InputError
        If the file cannot be read, or its maps do not fit `k`.
    """
    maps = _placed(torch.from_numpy(_read_array(path)).to(torch.complex64), k, path)
    if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
        raise InputError("maps with values that are not finite", path, "set them to zero where they are not known")
    maps = maps / maps.abs().max().clamp(min=1e-30)
    maps = match_channels(maps.to(k.data.device), k, noise)
    total = torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    maps = torch.where(total > 1e-6 * total.max(), maps / total.clamp(min=1e-30), 0)
    return to_virtual(maps, k).expand(k.data.shape)


def _placed(maps: Tensor, k: KSpace, path: Path) -> Tensor:
    """Maps of all raw channels ``(*batch coil y x)`` on the planes of `k`, from the shape that a file has."""
    virtual = k.header.study.get("virtual_coils")
    kept = k.n_coils if virtual is None else virtual.shape[-1]
    n_coils = kept + len(k.header.study.get("dropped_coils", ()))
    axes, wanted = "coil y x", (n_coils, *k.data.shape[-2:])
    if "decouple" in k.header.steps:
        axes, wanted = "coil z y x", (*wanted, len(k.data))
    elif maps.ndim == 4 and k.data.ndim == 3:
        index = k.header.index.slice
        if index >= len(maps):
            raise InputError(f"maps of {len(maps)} slices, slice {index} is asked for", path, "give maps of every slice")
        maps = maps[index]
    if tuple(maps.shape) != wanted:
        raise InputError(
            f"maps of shape {tuple(maps.shape)}, the data need ({axes}) = {wanted}",
            path,
            "make them on the grid of the data after oversampling was removed, for all channels of the raw file",
        )
    return maps.permute(3, 0, 1, 2) if maps.ndim == 4 else maps


def to_virtual(maps: Tensor, k: KSpace) -> Tensor:
    """Maps ``(*batch coil y x)`` of the coils that `k` had before `compress`, of its virtual coils; as they are without."""
    matrix = k.header.study.get("virtual_coils")
    return maps if matrix is None else torch.einsum("vc,...cyx->...vyx", matrix.to(maps.device), maps)


def _read_array(path: Path) -> np.ndarray:
    import h5py

    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with h5py.File(path, "r") as f:
                array = f["maps"][()]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"unreadable coil maps ({error})", path, "give .npy, or HDF5 with a dataset 'maps'") from error
    if array.ndim not in (3, 4) or not np.issubdtype(array.dtype, np.number):
        raise InputError(f"{array.dtype} of shape {array.shape} where complex ([slice,] coil, y, x) belongs", path)
    return np.asarray(array)


def calibration_region(mask: Tensor) -> tuple[int, int]:
    """Size of the largest centred block that was sampled completely.

    Parameters
    ----------
    mask
        Bool ``(*batch ky kx)``, for a batch the block that is sampled in every plane. A readout axis of length 1 (whole lines
        sampled) yields length 1.

    Returns
    -------
    tuple[int, int]
        ``(ky, kx)`` of the block with the most samples; index ``n // 2`` of an axis of length n is its index ``m // 2`` of
        length m. ``(0, 0)`` where the centre itself was not sampled.
    """
    full = mask.reshape(-1, *mask.shape[-2:]).all(0).cpu()
    ny, nx = full.shape
    best = (0, 0)
    width = nx
    for height in range(1, ny + 1):
        # Growing from m - 1 to m adds the row at index n//2 - m//2 (m even) or n//2 + m//2 (m odd).
        row = ny // 2 + (height // 2 if height % 2 else -(height // 2))
        width = min(width, _centred_run(full[row]))
        if width == 0:
            break
        if height * width > best[0] * best[1]:
            best = (height, width)
    return best


def compress(k: KSpace, n_virtual: int) -> KSpace:
    """Replace the coils by `n_virtual` orthonormal combinations that hold most of the signal.

    Singular value decomposition of the acquired samples, Huang et al. 2008, doi:10.1016/j.mri.2007.04.010. The combinations
    are orthonormal, so white noise stays white and `Header.noise_std` stands; whiten first. One matrix serves all planes.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``.
    n_virtual
        Number of virtual coils, at most the number of coils.

    Returns
    -------
    KSpace
        The same with `n_virtual` coils, strongest first, in the data and in the separate calibration.

    Raises
    ------
    InputError
        If `n_virtual` is not between 1 and the number of coils, or compression was applied before.
    """
    if not 1 <= n_virtual <= k.n_coils:
        raise InputError(
            f"{n_virtual} virtual coils asked for, the data have {k.n_coils}",
            k.header.source or None,
            f"choose 1 to {k.n_coils}",
        )
    acquired = torch.where(k.mask, k.data, 0)
    samples = acquired.movedim(-3, 0).reshape(k.n_coils, -1)
    samples = (samples / samples.abs().max().clamp(min=torch.finfo(samples.real.dtype).tiny)).to(torch.complex128)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    matrix = vectors.flip(-1)[:, :n_virtual].mH.to(k.data.dtype)

    def combine(data: Tensor) -> Tensor:
        return torch.einsum("vc,...cyx->...vyx", matrix, data)

    calibration = None if k.calibration is None else combine(k.calibration)
    # Kept, for coil maps that come from elsewhere have to be combined alike.
    study = {**k.header.study, "virtual_coils": matrix}
    return k.after("compress", header={"study": study}, data=combine(acquired), calibration=calibration)


def _calibration_samples(k: KSpace) -> tuple[Tensor, Tensor]:
    """Samples for the maps, zero where not acquired, and their mask ``(*batch 1 ky kx)``."""
    if k.calibration is not None:
        return k.calibration, (k.calibration != 0).any(-3, keepdim=True)
    mask = k.mask.expand(*k.mask.shape[:-2], *k.data.shape[-2:])
    if mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask.all(-3, keepdim=True)
    elif mask.ndim == 2:
        mask = mask.unsqueeze(0)
    # where, not a product: NaN times zero is NaN, and what was not acquired must not matter.
    return torch.where(mask, k.data, 0), mask


def _kernel_width(size: tuple[int, int]) -> int:
    """Width of the kernels for a calibration block: with few positions for a wide kernel, the signal space stays unseen and
    the maps come out empty."""
    return min(6, max(3, math.ceil(0.4 * min(size))))


def _check_size(size: tuple[int, int], kernel_width: int, source: str) -> None:
    needed = kernel_width + _SPARE_LINES
    if size[0] < needed:
        raise NoCalibration(
            f"{size[0]} calibration lines around the centre of k-space, {needed} are needed",
            source or None,
            "estimate the maps with jsense, or give maps",
        )
    if size[1] < needed:
        raise NoCalibration(
            f"{size[1]} calibration samples per line around the centre of k-space, {needed} are needed",
            source or None,
            "estimate the maps with jsense, or give maps",
        )


def _centred_run(row: Tensor) -> int:
    """Length m of the longest run of True that holds indices ``n//2 - m//2`` up to ``n//2 - m//2 + m - 1``."""
    n = len(row)
    gaps = (~row).nonzero().flatten()
    before = int(gaps[gaps < n // 2].max()) + 1 if bool((gaps < n // 2).any()) else 0
    after = int(gaps[gaps >= n // 2].min()) if bool((gaps >= n // 2).any()) else n
    left, right = n // 2 - before, after - n // 2  # samples before the centre, and from the centre on
    return min(2 * left + 1, 2 * right)


def _espirit(calibration: Tensor, shape: tuple[int, int], kernel_width: int, threshold: float, crop: float) -> Tensor:
    """Maps of one plane. The image-space operator is a trigonometric polynomial of the kernel's autocorrelation: it is computed
    on a grid that just holds that, and interpolated exactly, row by row; its dominant eigenvector is the map."""
    n_coils = len(calibration)
    small = _kernel_operator(calibration, kernel_width, threshold)
    rows = torch.einsum("yj,jicd->yicd", _dirichlet(shape[0], len(small), kernel_width, small), small)
    columns = _dirichlet(shape[1], len(small), kernel_width, small)
    maps = calibration.new_zeros((shape[0], shape[1], n_coils))
    for y, row in enumerate(rows):
        operator = (columns @ row.reshape(len(row), -1)).reshape(shape[1], n_coils, n_coils)
        vector, value = _dominant(operator, crop)
        maps[y] = vector * (value > crop)[:, None]
    return _smooth_phase(maps.permute(2, 0, 1), calibration)


def _smooth_phase(maps: Tensor, calibration: Tensor) -> Tensor:
    """Give the maps ``(coil y x)`` the phase at which the principal combination of the coils is real and positive."""
    principal = torch.linalg.eigh(torch.einsum("cyx,dyx->cd", calibration, calibration.conj()))[1][:, -1]
    reference = torch.einsum("cyx,c->yx", maps, principal.conj())
    return maps * torch.where(reference == 0, 1, reference.conj() / reference.abs().clamp(min=1e-30))


def _kernel_operator(calibration: Tensor, kernel_width: int, threshold: float) -> Tensor:
    """The operator ``(grid grid coil coil)`` that a vector of coil images must satisfy, on ``2 * kernel_width`` points."""
    n_coils, w, grid = len(calibration), kernel_width, 2 * kernel_width
    blocks = calibration.unfold(1, w, 1).unfold(2, w, 1)  # (coil by bx w w)
    matrix = blocks.permute(1, 2, 0, 3, 4).reshape(-1, n_coils * w * w)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    kernels = vectors[values > threshold * values[0]].reshape(-1, n_coils, w, w)
    images = ifft(resize(kernels, (grid, grid))) * (grid / w)
    return torch.einsum("kcyx,kdyx->yxcd", images, images.conj())


def _dirichlet(n: int, grid: int, kernel_width: int, like: Tensor) -> Tensor:
    """Matrix ``(n grid)`` that interpolates a polynomial of lags below `kernel_width` from `grid` to `n` points."""
    lags = torch.arange(1, kernel_width, dtype=torch.float64)
    r = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    s = (torch.arange(grid, dtype=torch.float64) - grid // 2) / grid
    angle = 2 * torch.pi * (r[:, None] - s[None, :])
    matrix = (1 + 2 * torch.cos(angle[..., None] * lags).sum(-1)) / grid
    return matrix.to(dtype=like.dtype, device=like.device)


def _dominant(operator: Tensor, crop: float, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue ``(n)`` and its eigenvector ``(n coil)`` of each of n positive semi-definite matrices.

    Power iteration with the eighth power of the matrix, until the vectors stand still wherever the eigenvalue may pass `crop`.
    It starts from the column with the largest diagonal element: for a semi-definite matrix that cannot be orthogonal to the
    solution, as a fixed start can.
    """
    power = operator
    for _ in range(3):
        power = power @ power
    column = torch.diagonal(power, dim1=-2, dim2=-1).real.argmax(-1)
    vector = _normalised(power.gather(-1, column[:, None, None].expand(-1, power.shape[-2], 1)))
    for _ in range(30):
        new = power @ vector
        # ||G^8 v|| is at most the eigenvalue's eighth power and grows towards it, so the margin keeps the late ones in.
        relevant = torch.linalg.vector_norm(new, dim=(-2, -1)) > (0.9 * crop) ** 8
        new = _normalised(new)
        change = torch.linalg.vector_norm(new - vector, dim=(-2, -1)) * relevant
        vector = new
        if change.max() < tolerance:
            break
    return vector[..., 0], torch.linalg.vector_norm(operator @ vector, dim=(-2, -1))


def _normalised(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp(min=1e-30)


def _jsense(plane: Tensor, mask: Tensor, width: int) -> Tensor:
    """SigPy's JSENSE, with the mask given: SigPy would otherwise take the non-zero samples for it.

    Its defaults (kernels of 16 samples, no regularisation) diverge to NaN where the centre has gaps.
    """
    import sigpy.mri.app

    app = sigpy.mri.app.JsenseRecon(
        plane.cpu().numpy(),
        weights=mask.cpu().numpy().astype("float32"),
        ksp_calib_width=width,
        mps_ker_width=_JSENSE_KERNEL,
        lamda=_JSENSE_WEIGHT,
        show_pbar=False,
    )
    # SigPy divides by the root sum of squares, which is zero where every map is: no NaN may leave, and no warning.
    with np.errstate(divide="ignore", invalid="ignore"):
        maps = torch.from_numpy(app.run()).to(plane.device)
    maps = torch.where(torch.isfinite(torch.view_as_real(maps)).all(-1), maps, 0)
    return _smooth_phase(maps, plane)
