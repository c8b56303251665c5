"""Non-uniform Fourier transform by finufft (Barnett et al. 2019, doi:10.1137/18M120885X), on the CPU; differentiable.

``y[j] = 1/sqrt(n_y n_x) * sum_r image[r] * exp(-2j pi k_j . (r - n//2))``: at the points of a grid, `kspace.fourier.fft`. In
two dimensions, or with z and kz in three: the trajectory says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Relative error of a transform. Single precision coordinates alone cost about 1e-6 at 256 points.
TOLERANCE = {torch.complex64: 1e-6, torch.complex128: 1e-12}


def to_samples(image: Tensor, trajectory: Tensor) -> Tensor:
    """Samples, complex ``(n readout sample)``, of images ``(n y x)`` at `trajectory` ``(readout sample 2)``, or of volumes
    ``(n z y x)`` at ``(readout sample 3)``.

    Parameters
    ----------
    image
        Complex64 or complex128. Its precision decides on the tolerance: `TOLERANCE`.
    trajectory
        Real; kx, ky and kz in cycles per pixel. No gradient flows to it.
    """
    samples: Tensor = _ToSamples.apply(image, trajectory)
    return samples


def to_image(y: Tensor, trajectory: Tensor, shape: Sequence[int], tolerance: float | None = None) -> Tensor:
    """Adjoint of `to_samples`: images, complex ``(n y x)`` or ``(n z y x)`` of `shape`, of samples ``(n readout sample)`` at
    `trajectory` ``(readout sample 2)`` or ``(readout sample 3)``. A `tolerance` of 1e-8 or more saves memory; None:
    `TOLERANCE`."""
    image: Tensor = _ToImage.apply(y, trajectory, tuple(shape), tolerance)
    return image


class Repeated:
    """Transforms of one image at a time at one trajectory, again and again: points are sorted once, the digits are few, and
    there is no gradient. Four times as fast as `to_samples` and `to_image` where 1e-4 is enough.

    Parameters
    ----------
    trajectory
        Real ``(readout sample 2)``, or 3 for volumes; cycles per pixel.
    shape
        Matrix ``(y x)`` of the image, or ``(z y x)``.
    tolerance
        Relative error of a transform.
    """

    def __init__(self, trajectory: Tensor, shape: Sequence[int], tolerance: float = 1e-4) -> None:
        import finufft

        self._shape, self._samples = tuple(shape), tuple(trajectory.shape[:-1])
        _, points, options = _prepared(torch.zeros(1, dtype=torch.complex64), trajectory)
        # A grid oversampled by 1.25 has a third of the points of one oversampled by 2, and suffices for these digits.
        options |= {"eps": tolerance, "dtype": "complex64", "upsampfac": 1.25}
        self._adjoint, self._forward = (finufft.Plan(kind, self._shape, isign=3 - 2 * kind, **options) for kind in (1, 2))
        self._adjoint.setpts(*points)
        self._forward.setpts(*points)

    def to_image(self, y: Tensor) -> Tensor:
        """Complex64 ``(y x)`` or ``(z y x)`` of complex64 samples ``(readout sample)``."""
        values = y.contiguous().numpy().ravel()
        return torch.from_numpy(self._adjoint.execute(values) / np.float32(math.sqrt(math.prod(self._shape))))

    def to_samples(self, image: Tensor) -> Tensor:
        """Complex64 ``(readout sample)`` of a complex64 image ``(y x)`` or ``(z y x)``."""
        y = self._forward.execute(image.contiguous().numpy()) / np.float32(math.sqrt(math.prod(self._shape)))
        return torch.from_numpy(y).reshape(self._samples)


class _ToSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, trajectory: Tensor) -> Tensor:
        import finufft

        ctx.shape = tuple(image.shape[1:])
        ctx.save_for_backward(trajectory)
        values, points, options = _prepared(image, trajectory)
        transform = finufft.nufft2d2 if len(points) == 2 else finufft.nufft3d2
        y = transform(*points, values, isign=-1, **options) / math.sqrt(math.prod(ctx.shape))
        return _restored(y, image, (len(image), *trajectory.shape[:-1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (trajectory,) = ctx.saved_tensors
        return to_image(gradient, trajectory, ctx.shape), None


class _ToImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, trajectory: Tensor, shape: tuple[int, ...], tolerance: float | None) -> Tensor:
        import finufft

        ctx.save_for_backward(trajectory)
        values, points, options = _prepared(y.flatten(1), trajectory)
        if tolerance is not None:
            options |= {"eps": tolerance, "upsampfac": 1.25}  # a quarter of the points of a grid oversampled by 2, in 3-D
        transform = finufft.nufft2d1 if len(points) == 2 else finufft.nufft3d1
        image = transform(*points, values, shape, isign=1, **options) / math.sqrt(math.prod(shape))
        return _restored(image, y, (len(y), *shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (trajectory,) = ctx.saved_tensors
        return to_samples(gradient, trajectory), None, None, None


def _prepared(x: Tensor, trajectory: Tensor) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any]]:
    values = x.detach().resolve_conj().cpu().contiguous().numpy()
    real = np.float32 if values.dtype == np.complex64 else np.float64
    turns = trajectory.detach().cpu().flatten(0, -2).to(torch.float64)
    turns = turns - turns.round()  # finufft folds the points itself, with fewer digits
    points = [np.ascontiguousarray((2 * np.pi * k).numpy().astype(real)) for k in reversed(turns.unbind(1))]
    return values, points, {"eps": TOLERANCE[x.dtype], "nthreads": torch.get_num_threads()}


def _restored(array: np.ndarray, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.asarray(array)).reshape(shape).to(like.device)
