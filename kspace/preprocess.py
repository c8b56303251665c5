"""From the samples as read to those that a reconstruction sees: small functions ``KSpace -> KSpace``.

`prepare` applies them in order. Each leaves its name in ``header.steps`` and refuses to be applied twice. `undersample` is for
studies on fully sampled data; `to_recon_matrix` brings the finished image to size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kspace.compression import compress
from kspace.container import Header, KSpace, ReceiveCoils
from kspace.errors import InputError
from kspace.fourier import fft, ifft, interpolate, resize
from kspace.noise import Noise
from kspace.partial_fourier import pocs

__all__ = [
    "check_range",
    "conjugate",
    "dead_coils",
    "decouple",
    "drop_dead_coils",
    "match_channels",
    "prepare",
    "remove_oversampling",
    "to_recon_matrix",
    "undersample",
    "whiten",
]

SMALLEST = torch.finfo(torch.float32).tiny
DEAD = 1e-6  # noise variance, relative to the median coil's, below which a coil is not connected
WHOLE = 1e-3  # a computed number of voxels this close to an integer is that integer: headers round lengths to micrometres


def check_range(k: KSpace) -> None:
    """Refuse samples that single precision does not hold: below 1.2e-38 numbers lose their digits, and their inverses overflow.

    Raises
    ------
    InputError
        If the largest sample is not zero and below the smallest normal number; the message has its size.
    """
    parts = torch.view_as_real(k.data)  # aminmax takes one pass and no memory
    largest = max(abs(float(value)) for value in torch.aminmax(parts)) if k.data.numel() else 0.0
    if 0 < largest < SMALLEST:
        raise InputError(
            f"the largest sample is {largest:.2g}, below {SMALLEST:.2g}, the smallest that single precision holds in full",
            k.header.source or None,
            "scale the samples up when the scan is converted",
        )


def prepare(
    k: KSpace,
    noise: Noise | None,
    *,
    conjugated: bool = False,
    n_virtual: int | None = None,
    partial_fourier: Literal["zero-filled", "pocs"] = "zero-filled",
    keep_silent: bool = False,
) -> KSpace:
    """All preprocessing between a file and a reconstruction: the one path of scans, training and comparison.

    `conjugate` (an option), `drop_dead_coils`, `whiten`, `remove_oversampling`, `kspace.compression.compress` and
    `kspace.partial_fourier.pocs` (options), `decouple` (3-D).

    Parameters
    ----------
    k
        k-space as read, ``(coil ky kx)`` or ``(kz coil ky kx)``.
    noise
        Noise of its channels; None: no whitening, and only channels of zeros are dead.
    conjugated
        Whether the file has the other sign of the Fourier exponent.
    n_virtual
        Number of virtual coils to compress to; None: no compression.
    partial_fourier
        What becomes of a side of k-space that was not acquired.
    keep_silent
        Keep channels of zeros where the noise is not known: training batches hold slices with one number of coils.

    Returns
    -------
    KSpace
        ``(coil ky kx)``, or ``(x coil kz ky)`` of a 3-D scan.

    Raises
    ------
    InputError
        If a step was already applied, or cannot be, or the samples are too small for single precision.
    """
    check_range(k)
    if conjugated:
        k = conjugate(k)
    if noise is not None or not keep_silent:
        k = drop_dead_coils(k, noise)
    if noise is not None:
        k = whiten(k, noise)
    if k.trajectory is not None:
        if partial_fourier == "pocs":
            raise InputError("POCS needs samples on a Cartesian grid", "--partial-fourier pocs", "leave it out")
        return k if n_virtual is None else compress(k, n_virtual)
    k = remove_oversampling(k)
    if n_virtual is not None:
        k = compress(k, n_virtual)
    if partial_fourier == "pocs":
        k = pocs(k)
    return decouple(k) if k.header.encoded_matrix[2] > 1 else k


def conjugate(k: KSpace) -> KSpace:
    """Conjugate the samples, for files with the other sign of the Fourier exponent. Rotates the image by 180 degrees."""
    calibration = None if k.calibration is None else k.calibration.conj().resolve_conj()
    return k.after("conjugate", data=k.data.conj().resolve_conj(), calibration=calibration)


def dead_coils(noise: Noise) -> tuple[int, ...]:
    """Channels whose noise variance is below 1e-6 of the median: not connected, or switched off."""
    variance = np.real(np.diag(noise.covariance))
    return tuple(int(c) for c in np.flatnonzero(variance < DEAD * np.median(variance)))


def drop_dead_coils(k: KSpace, noise: Noise | None) -> KSpace:
    """Remove the channels that `dead_coils` finds in the noise; whitening would blow up their rounding errors.

    Without noise, channels are removed whose samples are all exactly zero while others' are not.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``.
    noise
        Noise of the same channels, None where unknown.

    Returns
    -------
    KSpace
        That of the remaining channels; ``header.coils`` names those used and those dropped.

    Raises
    ------
    InputError
        If the noise has another number of channels than the scan.
    """
    present = _coils(k)
    if noise is not None:
        _check_same_coils(k, noise)
        dead = set(dead_coils(noise))
    else:
        silent = (k.data == 0).transpose(0, -3).flatten(1).all(1).tolist()
        dead = set() if all(silent) else {c for c, zero in zip(present, silent, strict=True) if zero}
    keep = [i for i, c in enumerate(present) if c not in dead]
    dropped = tuple(c for c in present if c in dead)
    coils = replace(k.header.coils, numbers=tuple(present[i] for i in keep), dropped=dropped)
    where = torch.tensor(keep, device=k.data.device)
    data = k.data if not dropped else k.data.index_select(-3, where)
    calibration = k.calibration if not dropped or k.calibration is None else k.calibration.index_select(-3, where)
    return k.after("drop_dead_coils", header={"coils": coils}, data=data, calibration=calibration)


def whiten(k: KSpace, noise: Noise) -> KSpace:
    """Combine the channels so that their noise is independent, and E|n|^2 = 1 for one (not averaged) sample.

    With the covariance ``C = L L^H`` of the imaging samples (`Noise.covariance_at` their dwell time), they become ``L^-1 y``
    (Pruessmann et al. 2001, doi:10.1002/mrm.1241).

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``; ``header.central["sample_time_us"]`` is its dwell time.
    noise
        Noise of the scan's channels, those included that were dropped from `k`.

    Returns
    -------
    KSpace
        Whitened data and separate calibration, ``header.noise_std`` 1.

    Raises
    ------
    InputError
        If the noise has another number of channels, or too few samples, or is singular: some channel is dead or a copy.
    """
    _check_same_coils(k, noise)
    coils = list(_coils(k))
    source = noise.source or k.header.source or None
    if noise.n_samples < len(coils):
        raise InputError(
            f"{noise.n_samples} noise samples cannot give the covariance of {len(coils)} coils",
            source,
            "give a longer noise scan (--noise), or do not whiten",
        )
    dwell_us = k.header.central.get("sample_time_us", 0.0)
    covariance = noise.covariance_at(dwell_us * 1e-6 if dwell_us > 0 else None)[np.ix_(coils, coils)]
    if "conjugate" in k.header.steps:  # the noise scan is as it was read
        covariance = covariance.conj()
    std = np.sqrt(np.real(np.diag(covariance)))
    if 0 < std.max() < SMALLEST:
        raise InputError(
            f"the noise has a standard deviation of {std.max():.2g}, below {SMALLEST:.2g}, the smallest that single "
            "precision holds in full",
            source,
            "scale the samples up when the scan is converted, or do not whiten",
        )
    try:
        # Coils of very different gain are no reason to call the covariance singular, so their correlation is judged.
        if not std.all() or np.linalg.cond(covariance / np.outer(std, std)) > 1e12:
            raise np.linalg.LinAlgError("singular")
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"the noise covariance of the {len(coils)} coils is singular: a coil is dead, or a copy of others",
            source,
            "give another noise scan (--noise), or do not whiten",
        ) from error
    matrix = torch.from_numpy(inverse).to(k.data.device)
    calibration = None if k.calibration is None else _mix(matrix, k.calibration)
    return k.after("whiten", header={"noise_std": 1.0}, data=_mix(matrix, k.data), calibration=calibration)


def match_channels(maps: Tensor, k: KSpace, noise: Noise | None) -> Tensor:
    """Do to coil maps what `drop_dead_coils` and `whiten` did to the channels of `k`: other maps would leave aliases.

    Parameters
    ----------
    maps
        Complex ``(*batch coil y x)``, of all channels of the raw file.
    k
        The k-space after preprocessing.
    noise
        The noise that was used; None where none was.
    """
    if noise is None:
        return maps
    steps = tuple(step for step in k.header.steps if step == "conjugate")  # decides on the covariance
    raw = KSpace(maps, torch.ones((1, 1, 1), dtype=torch.bool), replace(k.header, steps=steps, coils=ReceiveCoils()))
    if "drop_dead_coils" in k.header.steps:
        raw = drop_dead_coils(raw, noise)
    if "whiten" in k.header.steps:
        raw = whiten(raw, noise)
    return raw.data


def _mix(matrix: Tensor, data: Tensor) -> Tensor:
    return torch.einsum("dc,...cyx->...dyx", matrix.to(data.dtype), data)


def _coils(k: KSpace) -> tuple[int, ...]:
    """Original channel numbers of the coils in `k`."""
    return k.header.coils.numbers or tuple(range(k.n_coils))


def _check_same_coils(k: KSpace, noise: Noise) -> None:
    coils = _coils(k)
    n_coils = noise.covariance.shape[0]
    known = len(k.header.coils.dropped) + len(coils)
    if len(coils) != k.n_coils or known != n_coils:
        raise InputError(
            f"the noise has {n_coils} channels, the scan {known}",
            noise.source or k.header.source or None,
            "give its own noise scan",
        )


def remove_oversampling(k: KSpace) -> KSpace:
    """Cut the readout to the field of view of the recon space, in image space; white noise stays white.

    The new number of points is that of the recon field of view, rounded up where it is not an integer; the header's encoded
    matrix and field of view follow exactly, ``header.encoded_readout`` keeps the points that there were. Where lines are partly
    sampled (asymmetric echo), a new sample counts as acquired if those that it is interpolated from, up to the next on
    either side, were.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``, kx not yet decoupled.
    """
    if "decouple" in k.header.steps:
        raise InputError("readout oversampling must be removed before decoupling", k.header.source or None)
    n = k.data.shape[-1]
    fov = k.header.encoded_fov_m[0]
    wanted = n * k.header.recon_fov_m[0] / fov if fov > 0 else float(n)
    m = min(n, round(wanted) if abs(wanted - round(wanted)) < WHOLE else math.ceil(wanted))
    if m == n:
        return k.after("remove_oversampling", header={"encoded_readout": n})
    mask, n_averages = k.mask, k.n_averages
    if mask.shape[-1] > 1:
        counts = _decimate((mask.int() if n_averages is None else n_averages), n, m)
        mask, n_averages = counts > 0, None if n_averages is None else counts
    data = torch.where(mask, _crop_readout(k.data, m), 0)
    calibration = None if k.calibration is None else _crop_readout(k.calibration, m)
    matrix, lengths = k.header.encoded_matrix, k.header.encoded_fov_m
    header = {"encoded_matrix": (m, *matrix[1:]), "encoded_fov_m": (fov * m / n, *lengths[1:]), "encoded_readout": n}
    return k.after("remove_oversampling", header=header, data=data, mask=mask, n_averages=n_averages, calibration=calibration)


def _crop_readout(y: Tensor, m: int) -> Tensor:
    return fft(resize(ifft(y, (-1,)), (m,)), (-1,))


def _decimate(counts: Tensor, n: int, m: int) -> Tensor:
    """How often the samples of the coarser grid were measured: the least of their neighbours on the finer one."""
    position = (torch.arange(m, device=counts.device) - m // 2) * (n / m) + n // 2
    low, high = torch.floor(position + WHOLE).long() - 1, torch.ceil(position - WHOLE).long() + 1
    least = counts[..., low.clamp(0, n - 1)]
    for step in range(1, int((high - low).max()) + 1):
        least = torch.minimum(least, counts[..., torch.minimum(low + step, high).clamp(0, n - 1)])
    return least


def decouple(k: KSpace) -> KSpace:
    """Split a 3-D Cartesian scan into independent 2-D planes along the readout: ``(kz coil ky kx)`` to ``(x coil kz ky)``.

    The readout is transformed, as sampled, zero where an asymmetric echo left it out; the mask has no readout axis any more.
    """
    if k.data.ndim != 4 or k.header.encoded_matrix[2] < 2:
        raise InputError(
            f"only 3-D k-space (kz coil ky kx) can be decoupled, got {tuple(k.data.shape)}", k.header.source or None
        )
    mask, n_averages, header = k.mask, k.n_averages, {}
    if mask.shape[-1] > 1:
        lines = mask.any(-1, keepdim=True)
        # Transforming zeros spreads the noise of the others over all x.
        fraction = float(mask.sum() / (lines.sum() * mask.shape[-1]).clamp(min=1))
        if k.header.noise_std is not None:
            header["noise_std"] = k.header.noise_std * math.sqrt(fraction)
        mask, n_averages = lines, None if n_averages is None else n_averages.amax(-1, keepdim=True)

    def planes(x: Tensor) -> Tensor:
        return ifft(x, (-1,)).permute(3, 1, 0, 2).contiguous()

    def turn(x: Tensor) -> Tensor:
        return x.expand(k.data.shape[0], 1, k.data.shape[2], 1).permute(3, 1, 0, 2).contiguous()

    return k.after(
        "decouple",
        header=header,
        data=planes(k.data),
        mask=turn(mask),
        n_averages=None if n_averages is None else turn(n_averages),
        calibration=None if k.calibration is None else planes(k.calibration),
    )


def undersample(k: KSpace, mask: Tensor, step: str = "undersample") -> KSpace:
    """k-space as a scan with a smaller mask would have acquired it: retrospective undersampling.

    What the mask leaves out reaches nothing in the result, NaN included.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``.
    mask
        Bool, broadcastable to ``(*batch coil ky kx)`` with a coil axis of length 1, ``(ky 1)`` where whole lines are sampled.
        Samples that `k` does not have stay unsampled.
    step
        Name of the step in the header.

    Returns
    -------
    KSpace
        Zero outside ``k.mask & mask``, its new mask; averages likewise. A separate calibration was acquired apart and stays;
        ``header.acceleration`` stays the scan protocol's.

    Raises
    ------
    InputError
        If the step was already applied.
    ValueError
        If the mask is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool; got {mask.dtype}")
    kept = k.mask & mask.to(k.mask.device)
    n_averages = None if k.n_averages is None else k.n_averages * kept
    # Not a product: NaN times zero is NaN, and what was not acquired must not matter.
    return k.after(step, data=torch.where(kept, k.data, 0), mask=kept, n_averages=n_averages)


def to_recon_matrix(image: Tensor, header: Header) -> Tensor:
    """Bring an image from the encoded to the recon field of view and matrix; the origin stays at voxel ``n // 2``.

    Each axis is cut (or padded with zeros) where the voxels have the right size already, and otherwise evaluated at the voxels
    of the recon matrix by the Fourier series of the image, which is zero-filling where it grows finer: exact for every ratio
    of lengths, without rounding. Frequencies beyond what coarser voxels can hold are left out. Intensities stay.

    Parameters
    ----------
    image
        Complex or real ``(*batch y x)``, or ``(*batch z y x)`` of a 3-D scan (encoded matrix with several z), on the encoded
        matrix of `header`. Real images stay real.
    header
        Header of the k-space that the image was made from (oversampling removed or not).

    Returns
    -------
    Tensor
        The same with the recon matrix's axes, and the dtype of `image`.

    Raises
    ------
    ValueError
        If the image does not have the shape that the header says.
    """
    n_axes = 3 if header.encoded_matrix[2] > 1 else 2
    expected = tuple(reversed(header.encoded_matrix[:n_axes]))
    if tuple(image.shape[-n_axes:]) != expected:
        raise ValueError(f"the image has shape {tuple(image.shape)}, its header says {expected}")
    result = image if image.is_complex() else torch.complex(image, torch.zeros_like(image))
    for axis in range(n_axes):
        n, m = header.encoded_matrix[axis], header.recon_matrix[axis]
        old, new = header.encoded_fov_m[axis], header.recon_fov_m[axis]
        ratio = new / old if old > 0 and new > 0 else 1.0
        result = _to_grid(result.movedim(-1 - axis, -1), n, m, ratio).movedim(-1, -1 - axis)
    return (result if image.is_complex() else result.real).contiguous()


def _to_grid(image: Tensor, n: int, m: int, ratio: float) -> Tensor:
    """Values along the last axis at the voxels of m points over `ratio` times the field of view of the n."""
    if abs(n * ratio - m) < WHOLE:
        return resize(image, (m,))
    if abs(ratio - 1) * n < WHOLE:
        return interpolate(image, (m,))
    frequency = torch.arange(n, dtype=torch.float64, device=image.device) - n // 2
    position = (torch.arange(m, dtype=torch.float64, device=image.device) - m // 2) * (ratio / m)
    waves = torch.exp(2j * math.pi * frequency[:, None] * position) / math.sqrt(n)
    kept = (frequency * ratio >= -(m // 2)) & (frequency * ratio <= (m - 1) // 2)
    # The series repeats beyond the encoded field of view; the image does not.
    inside = (position * n >= -(n // 2) - 0.5) & (position * n <= (n - 1) // 2 + 0.5)
    waves = (waves * kept[:, None] * inside).to(image.dtype)
    return fft(image, (-1,)) @ waves
