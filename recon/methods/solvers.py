"""Regularised least squares for one plane, with SigPy's algorithms over the project's own operators.

    minimise over x:  1/2 || W^(1/2) (A x - y) ||^2 + lamda * max|A^H W y| * R(x)

SigPy's ready-made apps stop far from the minimum: they know neither that the norm of A is at most 1 nor how the matrices
look in the Fourier domain. Here the alternating direction method of multipliers (Boyd et al. 2011,
doi:10.1561/2200000016) splits ``R(x) = r(G x)`` with a circulant G^H G. Its linear system is then exactly diagonal in the
Fourier domain for one coil of unit modulus, and nearly so for several: a few preconditioned conjugate gradient steps do.

SigPy's algorithms work on NumPy arrays, here views of CPU tensors. Inside, the origin of image and k-space lies in the corner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sigpy as sp
import torch
from torch import Tensor

from kspace.fourier import IMAGE_AXES, fft_corner, ifft_corner, to_centre, to_corner
from kspace.operators import Sense, nearest_circulant
from recon.methods.regularisers import Sparsity

# Over-relaxation of Eckstein and Bertsekas 1992, doi:10.1007/BF01581204: any value below 2 converges.
_RELAXATION = 1.8
# With one coil the first iteration finds the zero-filled image unchanged: that is not convergence.
_FEWEST = 5


class TorchLinop(sp.linop.Linop):
    """A SigPy linop from two functions of tensors, adjoint to each other."""

    def __init__(
        self,
        oshape: tuple[int, ...],
        ishape: tuple[int, ...],
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(oshape, ishape)
        self._forward_function, self._adjoint_function = forward, adjoint

    def _apply(self, x: np.ndarray) -> np.ndarray:
        return self._forward_function(torch.from_numpy(x)).numpy()

    def _adjoint_linop(self) -> TorchLinop:
        return TorchLinop(self.ishape, self.oshape, self._adjoint_function, self._forward_function)


@dataclass(frozen=True, eq=False)
class Plane:
    """The data term of one plane, scaled so that the largest weight and max|A^H W y| are 1.

    Attributes
    ----------
    maps
        Complex ``(coil y x)``, origin in the corner.
    weights
        Real ``(1 or coil, ky, kx or 1)``, origin in the corner.
    y
        Complex ``(coil ky kx)``, origin in the corner, zero where not sampled.
    rhs
        ``A^H W y``, complex ``(y x)``.
    scale
        What an image of the scaled problem is multiplied by; 0 for a plane without signal.
    """

    maps: Tensor
    weights: Tensor
    y: Tensor
    rhs: Tensor
    scale: float

    @classmethod
    def of(cls, y: Tensor, op: Sense) -> Plane:
        """The data term of ``y (coil ky kx)`` and an operator without batch."""
        weights = op.weights.cpu()
        weights = weights.reshape(-1, *weights.shape[-2:])
        axes = IMAGE_AXES if weights.shape[-1] > 1 else IMAGE_AXES[:1]
        weights = to_corner(weights / weights.max().clamp(min=1e-30), axes)
        maps = to_corner(op.maps.detach().cpu()).to(torch.complex64)
        # where, not a product: a sample that was not acquired may be anything, NaN included.
        y = torch.where(weights > 0, to_corner(y.detach().cpu()), 0)
        peak = float(y.abs().max())
        if peak == 0:
            return cls(maps, weights, y.to(torch.complex64), y[0].to(torch.complex64), 0.0)
        y = (y / peak).to(torch.complex64)  # before anything is squared: raw data may be 1e-20 or 1e20
        rhs = (maps.conj() * ifft_corner(weights * y)).sum(0)
        scale = float(rhs.abs().max())
        if scale == 0:
            return cls(maps, weights, y, rhs, 0.0)
        return cls(maps, weights, y / scale, rhs / scale, scale * peak)

    @property
    def shape(self) -> tuple[int, int]:
        """``(y x)``."""
        return self.maps.shape[-2], self.maps.shape[-1]

    @property
    def unit_coil(self) -> bool:
        """One coil whose map has modulus 1 everywhere and the same phase: A^H W A is then diagonal in the Fourier domain."""
        return len(self.maps) == 1 and bool((self.maps - self.maps[0, 0, 0]).abs().max() < 1e-6)

    def gram(self, x: Tensor) -> Tensor:
        """``A^H W A x``. Where whole lines are sampled the transforms along the readout cancel and are left out."""
        axes = IMAGE_AXES if self.weights.shape[-1] > 1 else IMAGE_AXES[:1]
        return (self.maps.conj() * ifft_corner(self.weights * fft_corner(self.maps * x, axes), axes)).sum(0)

    def circulant(self) -> Tensor:
        """Eigenvalues, real ``(ky kx)``, of the circulant matrix nearest to ``A^H W A``; equal to it for `unit_coil`."""
        return nearest_circulant(self.maps, self.weights)

    def misfit(self, x: Tensor) -> float:
        """``1/2 || W^(1/2) (A x - y) ||^2``, in double precision."""
        residual = fft_corner(self.maps.to(torch.complex128) * x) - self.y
        return 0.5 * float((self.weights * residual.abs().square()).sum())

    def finish(self, x: Tensor) -> Tensor:
        """The solution of the scaled problem as an image: original scale, centred, zero outside the support of the maps."""
        return to_centre(x * (self.maps != 0).any(0)) * self.scale


Watch = Callable[[int, Tensor], None]
"""Called after every iteration with its number, from 1, and the image so far, which it must not change."""


def least_squares(plane: Plane, lamda: float, max_iterations: int, tolerance: float, watch: Watch | None = None) -> Tensor:
    """``(A^H W A + lamda I) x = A^H W y`` by preconditioned conjugate gradients, to a relative residual of `tolerance`."""

    def matrix(x: Tensor) -> Tensor:
        return plane.gram(x) + lamda * x

    x = torch.zeros_like(plane.rhs)
    eigenvalues = plane.circulant() + lamda
    _conjugate_gradients(plane, matrix, plane.rhs, x, eigenvalues, max_iterations, tolerance, watch)
    return x


def sparse(
    plane: Plane,
    regulariser: Sparsity,
    lamda: float,
    max_iterations: int,
    tolerance: float,
    watch: Watch | None = None,
) -> Tensor:
    """``min 1/2 ||W^(1/2)(A x - y)||^2 + lamda r(G x)`` by ADMM, until an iteration changes x by less than `tolerance`.

    The penalty parameter is ``rho = lamda / threshold`` with the `threshold` that the regulariser suggests: it only decides how
    fast the iteration is.
    """
    g, rho = regulariser, lamda / regulariser.threshold
    x = plane.rhs.clone()
    v = g.forward(x)
    u, relaxed = torch.zeros_like(v), torch.empty_like(v)
    spectrum = plane.circulant() + rho * g.gram_eigenvalues
    exact = plane.unit_coil
    # Outside the support the data say nothing: the image wanders there, and is cut off at the end.
    support = (plane.maps != 0).any(0)
    change = [np.inf]

    def minimise_x() -> None:
        rhs = plane.rhs + rho * g.adjoint(v - u)
        before = x.clone()
        if exact:
            x.copy_(ifft_corner(fft_corner(rhs) / spectrum))
        else:
            _conjugate_gradients(plane, lambda z: plane.gram(z) + rho * g.gram(z), rhs, x, spectrum, g.inner_steps, 0.0)
        change[0] = _relative_change(x * support, before * support)

    def minimise_v() -> None:
        torch.add(_RELAXATION * g.forward(x), v, alpha=1 - _RELAXATION, out=relaxed)
        v.copy_(g.shrink(relaxed + u, lamda / rho))

    algorithm = sp.alg.ADMM(
        minimise_x, minimise_v, x.numpy(), v.numpy(), u.numpy(),
        A=lambda _: relaxed.numpy(), B=np.negative, c=0, max_iter=max_iterations,
    )  # fmt: skip
    while not algorithm.done() and (change[0] > tolerance or algorithm.iter < _FEWEST):
        algorithm.update()
        if watch is not None:
            watch(algorithm.iter, x)
    return x


def _relative_change(x: Tensor, before: Tensor) -> float:
    return float(torch.linalg.vector_norm(x - before) / torch.linalg.vector_norm(x).clamp(min=1e-30))


def _conjugate_gradients(
    plane: Plane,
    matrix: Callable[[Tensor], Tensor],
    rhs: Tensor,
    x: Tensor,
    eigenvalues: Tensor,
    max_iterations: int,
    tolerance: float,
    watch: Watch | None = None,
) -> None:
    """Solve ``matrix(x) = rhs`` in place from `x`, preconditioned by the circulant matrix of `eigenvalues`."""
    shape = plane.shape
    inverse = 1 / eigenvalues.clamp(min=1e-6)

    def precondition(r: Tensor) -> Tensor:
        return ifft_corner(inverse * fft_corner(r))

    norm = float(torch.vdot(rhs.ravel(), precondition(rhs).ravel()).real) ** 0.5
    algorithm = sp.alg.ConjugateGradient(
        TorchLinop(shape, shape, matrix, matrix),
        rhs.numpy(),
        x.numpy(),
        P=TorchLinop(shape, shape, precondition, precondition),
        max_iter=max_iterations,
        tol=tolerance * norm,
    )
    while not algorithm.done():
        algorithm.update()
        if watch is not None:
            watch(algorithm.iter, x)
