"""Regularisers ``r(G x)`` whose G^H G is circulant: total variation and the translation-invariant wavelet norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from kspace.fourier import fft_corner, ifft_corner


class Sparsity(ABC):
    """A norm of a linear transform of images ``(*batch y x)``, or volumes ``(*batch z y x)``, with periodic boundaries.

    Attributes
    ----------
    gram_eigenvalues
        Real ``(ky kx)`` or ``(kz ky kx)``: the eigenvalues of G^H G, which the Fourier transform diagonalises; zero frequency
        at index 0.
    threshold
        Size of a coefficient that matters, relative to the largest pixel of the zero-filled image: sets the step of ADMM.
    inner_steps
        Conjugate gradient steps in an iteration of ADMM for several coils.
    """

    gram_eigenvalues: Tensor
    threshold: float
    inner_steps: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``G x``, complex ``(*batch coefficient y x)`` from complex ``(*batch y x)``."""

    @abstractmethod
    def adjoint(self, v: Tensor) -> Tensor:
        """``G^H v``."""

    @abstractmethod
    def gram(self, x: Tensor) -> Tensor:
        """``G^H G x``."""

    @abstractmethod
    def norm(self, v: Tensor) -> Tensor:
        """``r(v)``, real ``(*batch)``."""

    @abstractmethod
    def shrink(self, v: Tensor, step: float) -> Tensor:
        """The proximal operator of ``step * r`` at `v`."""

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """The same norm for images of complex `dtype` on `device`."""
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, dtype if value.is_complex() else dtype.to_real()))
        return moved


class Gradient(Sparsity):
    """Isotropic total variation: the sum over the pixels of ``sqrt(|dx|^2 + |dy|^2)``, of volumes with ``|dz|^2``. Rudin, Osher
    and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F; for MRI: Block et al. 2007, doi:10.1002/mrm.21236."""

    threshold = 0.02
    inner_steps = 3

    def __init__(self, shape: Sequence[int]) -> None:
        self._axes = tuple(range(-len(shape), 0))
        self._coefficients = -len(shape) - 1  # axis of the differences
        total = torch.zeros((), dtype=torch.float64)
        for n in shape:
            total = total[..., None] + 4 * torch.sin(torch.pi * torch.arange(n, dtype=torch.float64) / n) ** 2
        self.gram_eigenvalues = total

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x - x.roll(1, axis) for axis in self._axes], self._coefficients)

    def adjoint(self, v: Tensor) -> Tensor:
        first, *others = v.unbind(self._coefficients)
        image = first - first.roll(-1, self._axes[0])
        for one, axis in zip(others, self._axes[1:], strict=True):
            image = image + one - one.roll(-1, axis)
        return image

    def gram(self, x: Tensor) -> Tensor:
        image = 2 * len(self._axes) * x
        for axis in self._axes:
            image = image - x.roll(1, axis) - x.roll(-1, axis)
        return image

    def norm(self, v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=self._coefficients).sum(self._axes)

    def shrink(self, v: Tensor, step: float) -> Tensor:
        length = torch.linalg.vector_norm(v, dim=self._coefficients, keepdim=True)
        return v * (1 - step / length.clamp(min=step))


class Wavelet(Sparsity):
    """The l1 norm of an orthonormal wavelet transform, averaged over all circular shifts of the image.

    One transform alone leaves the pattern of its blocks in the image. BART shifts the image at random in every iteration for
    that reason (Figueiredo and Nowak 2003, doi:10.1109/TIP.2003.814255), and so has no objective to converge to. The average
    over the shifts is a convex function: a coefficient of level j appears in one of 4^j shifts, so it is the weighted norm of
    the undecimated transform (Coifman and Donoho 1995, doi:10.1007/978-1-4612-2544-7_9). The undecimated filters, scaled to
    ``G^H G = I``, are evaluated in the Fourier domain, for any matrix size.

    Of a volume it is the sum over its planes.

    Parameters
    ----------
    shape
        ``(y x)`` of the image, or ``(z y x)``.
    name
        Orthogonal wavelet, under PyWavelets' name.
    levels
        Depth.
    approximation
        Weight of the approximation at the last level; 0: not penalised.
    """

    threshold = 0.06
    inner_steps = 6

    def __init__(self, shape: Sequence[int], name: str = "db2", levels: int = 2, approximation: float = 0.0) -> None:
        import pywt

        self._axes, shape = tuple(range(-len(shape), 0)), shape[-2:]
        wavelet = pywt.Wavelet(name)
        filters = [torch.tensor(taps, dtype=torch.float64) / 2**0.5 for taps in (wavelet.dec_lo, wavelet.dec_hi)]
        bands, weights = [], []
        low_y, low_x = (torch.ones(n, dtype=torch.complex128) for n in shape)
        for level in range(levels):
            (ly, hy), (lx, hx) = ([_response(taps, n, 2**level) for taps in filters] for n in shape)
            for y, x in ((hy, lx), (ly, hx), (hy, hx)):
                bands.append((low_y * y)[:, None] * (low_x * x)[None, :])
                weights.append(2.0 ** -(level + 1))
            low_y, low_x = low_y * ly, low_x * lx
        bands.append(low_y[:, None] * low_x[None, :])
        weights.append(approximation)
        self._bands = torch.stack(bands)
        self._weights = torch.tensor(weights, dtype=torch.float64)[:, None, None]
        self.gram_eigenvalues = torch.ones(shape, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return ifft_corner(self._bands * fft_corner(x).unsqueeze(-3))

    def adjoint(self, v: Tensor) -> Tensor:
        return ifft_corner((self._bands.conj() * fft_corner(v)).sum(-3))

    def gram(self, x: Tensor) -> Tensor:
        return x

    def norm(self, v: Tensor) -> Tensor:
        return (self._weights * v.abs()).sum((-3, *(axis if axis > -3 else axis - 1 for axis in self._axes)))

    def shrink(self, v: Tensor, step: float) -> Tensor:
        size = v.abs()
        return v * (1 - step * self._weights / size.clamp(min=1e-30)).clamp(min=0)


def _response(taps: Tensor, n: int, spacing: int) -> Tensor:
    """Frequency response, complex ``(n)``, of a filter whose taps lie `spacing` points apart on a circle of n points."""
    turns = torch.arange(n, dtype=torch.float64)[:, None] * torch.arange(len(taps)) * spacing / n
    return torch.exp(-2j * torch.pi * turns) @ taps.to(torch.complex128)
