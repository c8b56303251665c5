"""Centred, orthonormal Fourier transforms. No other module calls `torch.fft`.

Centred: the zero frequency and the origin of the image lie at index ``n // 2`` of each axis, for odd and even ``n``.
Orthonormal: the transform preserves the Euclidean norm, and with it the variance of white noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGE_AXES = (-2, -1)


def fft(image: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Image to k-space: centred, orthonormal discrete Fourier transform along `axes`.

    ``y[k] = 1/sqrt(n) * sum_r image[r] * exp(-2j pi (k - n//2) (r - n//2) / n)`` along each axis of length n.

    Parameters
    ----------
    image
        Complex, any shape.
    axes
        Axes to transform.

    Returns
    -------
    Tensor
        Same shape and dtype.
    """
    return to_centre(fft_corner(to_corner(image, axes), axes), axes)


def ifft(y: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """k-space to image: the inverse, and the adjoint, of `fft`. Same shape and dtype as `y`."""
    return to_centre(ifft_corner(to_corner(y, axes), axes), axes)


def fft_corner(image: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """`fft` of an array, complex of any shape, with the origin at index 0 of `axes`: for inner loops without shifts."""
    return torch.fft.fftn(image, dim=tuple(axes), norm="ortho")


def ifft_corner(y: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """`ifft` of an array, complex of any shape, with the origin at index 0 of `axes`."""
    return torch.fft.ifftn(y, dim=tuple(axes), norm="ortho")


def to_corner(x: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Move the origin of `x`, any shape ``(...)``, from index ``n // 2`` to index 0 along `axes` (`ifftshift`)."""
    return torch.fft.ifftshift(x, dim=long) if (long := _long(x, axes)) else x


def to_centre(x: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Move the origin of `x`, any shape ``(...)``, from index 0 to index ``n // 2`` along `axes` (`fftshift`)."""
    return torch.fft.fftshift(x, dim=long) if (long := _long(x, axes)) else x


def centring_phases(n: int, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Phase factors that centre a transform without shifting the array.

    Along an axis of length n, ``fft(x) == kspace_phase * fft_corner(image_phase * x)``, and ``ifft(y) ==
    conj(image_phase) * ifft_corner(conj(kspace_phase) * y)``: shifting the origin is a factor ``exp(2j pi (n//2) r / n)`` in
    the other domain, ±1 for even n. Coil maps and masks can absorb the factors at no cost.

    Returns
    -------
    tuple
        `image_phase` and `kspace_phase`, complex `dtype` of shape ``(n)`` and modulus 1.
    """
    centre, index = n // 2, torch.arange(n, device=device)
    # Reduced modulo one turn first: large angles would lose digits.
    turns = (centre * index % n).to(torch.float64) / n
    shift = (centre * centre % n) / n
    image_phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
    kspace_phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * (turns - shift))
    return image_phase.to(dtype), kspace_phase.to(dtype)


def central(n: int, m: int) -> slice:
    """Slice of the central `m` of `n` points: index ``n // 2`` becomes index ``m // 2``.

    The start is ``n // 2 - m // 2``. (fastMRI's ``(n - m) // 2`` is one less for even n and odd m.)
    """
    start = n // 2 - m // 2
    return slice(start, start + m)


def centre_crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop the last ``len(shape)`` axes to `shape` about the origin: index ``n // 2`` becomes index ``m // 2``.

    Raises
    ------
    ValueError
        If `shape` exceeds that of `x`; see `resize`.
    """
    if any(m > n for m, n in zip(shape, x.shape[-len(shape) :], strict=True)):
        raise ValueError(f"cannot crop {tuple(x.shape)} to the larger {tuple(shape)}; use resize, which pads too")
    return resize(x, shape)


def resize(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop or zero-pad each of the last ``len(shape)`` axes to `shape`, keeping the origin at ``n // 2``."""
    if len(shape) > x.ndim:
        raise ValueError(f"cannot give {len(shape)} axes to a tensor of shape {tuple(x.shape)}")
    for axis, m in zip(range(-len(shape), 0), shape, strict=True):
        n = x.shape[axis]
        if m < n:
            x = x.narrow(axis, central(n, m).start, m)
        elif m > n:
            padded = x.new_zeros((*x.shape[:axis], m, *x.shape[axis:][1:]))
            padded.narrow(axis, central(m, n).start, n).copy_(x)
            x = padded
    return x


def interpolate(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Sinc interpolation of an image over the same field of view: its k-space is zero-padded or cropped to `shape`.

    The image intensity is preserved (the orthonormal transform alone would scale it with the matrix size).

    Parameters
    ----------
    image
        Complex ``(..., y, x)`` or ``(..., z, y, x)``; as many trailing axes as `shape` has.
    shape
        New number of points of those axes.

    Returns
    -------
    Tensor
        Complex, the trailing axes replaced by `shape`.
    """
    axes = [axis for axis, m in zip(range(-len(shape), 0), shape, strict=True) if m != image.shape[axis]]
    if not axes:
        return image
    old = [image.shape[axis] for axis in axes]
    y = resize(fft(image, axes), shape)
    gain = 1.0
    for axis, n in zip(axes, old, strict=True):
        gain *= (y.shape[axis] / n) ** 0.5
    return ifft(y, axes) * gain


def _long(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if x.shape[axis] > 1)
