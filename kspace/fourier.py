"""The one Fourier pair: centred and orthonormal. Nothing else in the project calls `torch.fft`.

Centred means that the zero frequency, and the origin of the image, lie at index ``n // 2`` of each axis, for odd and even
``n``. Orthonormal means that the transform preserves the Euclidean norm, so white noise of variance 1 stays white noise of
variance 1.
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
    """`fft` for arrays whose origin lies at index 0: what inner loops use between one `to_corner` and one `to_centre`."""
    return torch.fft.fftn(image, dim=tuple(axes), norm="ortho")


def ifft_corner(y: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """`ifft` for arrays whose origin lies at index 0."""
    return torch.fft.ifftn(y, dim=tuple(axes), norm="ortho")


def to_corner(x: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Move the origin from index ``n // 2`` to index 0 along `axes` (`ifftshift`). Axes of length 1 are left alone."""
    return torch.fft.ifftshift(x, dim=long) if (long := _long(x, axes)) else x


def to_centre(x: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Move the origin from index 0 to index ``n // 2`` along `axes` (`fftshift`). Axes of length 1 are left alone."""
    return torch.fft.fftshift(x, dim=long) if (long := _long(x, axes)) else x


def centring_phases(n: int, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Phases that centre a transform without moving an array.

    Along an axis of length n, ``fft(x) == kspace_phase * fft_corner(image_phase * x)``, and ``ifft(y) ==
    conj(image_phase) * ifft_corner(conj(kspace_phase) * y)``: moving the origin is a factor ``exp(2j pi (n//2) r / n)`` in the
    other domain, ±1 for even n. What multiplies images and k-space anyway (coil maps, masks) can hold the factors for nothing.

    Returns
    -------
    tuple
        `image_phase` and `kspace_phase`, complex of `dtype`, shape ``(n)``, of modulus 1.
    """
    centre, index = n // 2, torch.arange(n, device=device)
    # The products are reduced before they become angles: an angle of many turns would lose digits.
    turns = (centre * index % n).to(torch.float64) / n
    shift = (centre * centre % n) / n
    image_phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
    kspace_phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * (turns - shift))
    return image_phase.to(dtype), kspace_phase.to(dtype)


def central(n: int, m: int) -> slice:
    """Indices of the central `m` of `n` points, about the origin: index ``n // 2`` becomes index ``m // 2``.

    The start is ``n // 2 - m // 2``. (``(n - m) // 2``, as fastMRI cuts, is one less where n is even and m odd.)
    """
    start = n // 2 - m // 2
    return slice(start, start + m)


def centre_crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut the last ``len(shape)`` axes to `shape`, keeping the origin: index ``n // 2`` becomes index ``m // 2``.

    Raises
    ------
    ValueError
        If an axis would have to grow; see `resize`.
    """
    if any(m > n for m, n in zip(shape, x.shape[-len(shape) :], strict=True)):
        raise ValueError(f"cannot crop {tuple(x.shape)} to the larger {tuple(shape)}; use resize, which also pads")
    return resize(x, shape)


def resize(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut or zero-pad each of the last ``len(shape)`` axes to `shape`, keeping the origin at ``n // 2``."""
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
    """Sinc interpolation of an image over the same field of view: zero-pad or cut its k-space to `shape`.

    The intensity of the image is kept (that of the orthonormal transform would change with the number of points).

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
