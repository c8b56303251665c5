"""Regularised least squares for a batch of planes, on any device.

    minimise over x:  1/2 || W^(1/2) (A x - y) ||^2 + lamda * max|A^H W y| * R(x)

R quadratic: the normal equations of `kspace`. Otherwise the alternating direction method of multipliers (Boyd et al. 2011,
doi:10.1561/2200000016) splits ``R(x) = r(G x)`` with a circulant G^H G. Its linear system is then exactly diagonal in the
Fourier domain for one coil of unit modulus, and nearly so for several: a few preconditioned conjugate gradient steps do.

Every plane stops by itself, and none depends on what is solved beside it. A volume ``(z y x)`` whose planes the forward model
couples (`ForwardModel.rank` of 3) takes the place of a plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kspace import normal_equations
from kspace.cg import Watch, conjugate_gradients, energy
from kspace.fourier import IMAGE_AXES, fft_corner, ifft_corner
from kspace.operators import ForwardModel
from recon.methods.regularisers import Sparsity

# Over-relaxation of Eckstein and Bertsekas 1992, doi:10.1007/BF01581204: any value below 2 converges.
_RELAXATION = 1.8
# With one coil the first iteration finds the zero-filled image unchanged: that is not convergence.
_FEWEST = 5


@dataclass(frozen=True, eq=False)
class Planes:
    """The data terms of a batch of planes, each scaled so that `ForwardModel.unit_weight` and the largest pixel of
    `ForwardModel.reference` are 1: on a grid, the largest weight and max|A^H W y|.

    Attributes
    ----------
    op
        Forward model; maps complex ``(plane coil y x)``, mask ``(plane 1|coil ky kx|1)``, one plane where all share them.
    top
        Unit weight of each plane, real ``(plane|1 1 1)``.
    rhs
        ``A^H W y``, scaled, complex ``(plane y x)``.
    scale
        What an image of the scaled problem is multiplied by, real ``(plane 1 1)``; 0 for a plane without signal.
    start
        Where iterations start, complex ``(plane y x)``; None: from `rhs`, which is near the solution on a grid. Off it the
        centre, sampled many times over, would take its time to fade.
    noise
        Relative residual that the normal equations have at the true image, real ``(plane 1 1)``; None on a grid, in problems
        that are `relative`, and where the noise was not measured.
    """

    op: ForwardModel
    top: Tensor
    rhs: Tensor
    scale: Tensor
    start: Tensor | None = None
    noise: Tensor | None = None

    @classmethod
    def of(cls, y: Tensor, op: ForwardModel, relative: bool = True) -> Planes:
        """The data terms of ``y (plane coil ky kx)`` and an operator with maps and mask for each plane, or for all.

        Without `relative` the largest pixel of `rhs` is 1, not that of the reference, which off the Cartesian grid needs a
        density compensation: for quadratic problems, which have no scale.
        """
        # where, not a product: a sample that was not acquired may be anything, NaN included.
        y = torch.where(op.weights > 0, y.detach(), 0)
        peak = _peak(y, 3)
        # Before anything is squared: raw data may be 1e-20 or 1e20.
        y = y / torch.where(peak > 0, peak, 1)
        top = op.unit_weight.clamp(min=1e-30)
        rhs, peak = op.back_projection(y) / top, peak.reshape(-1, *[1] * op.rank)
        reference = op.reference(y, rhs) if relative else rhs
        largest = _peak(reference, op.rank)
        divisor = torch.where(largest > 0, largest, 1)
        noise = None if relative or not op.noise_known else _noise(op, rhs * peak)
        return cls(op, top, rhs / divisor, largest * peak, None if reference is rhs else reference / divisor, noise)

    def __len__(self) -> int:
        return len(self.rhs)

    def __getitem__(self, index: slice | Tensor) -> Planes:
        def take(x: Tensor) -> Tensor:
            return x if len(x) == 1 else x[index]

        start = None if self.start is None else self.start[index]
        noise = None if self.noise is None else take(self.noise)
        return Planes(self.op.planes(index), take(self.top), self.rhs[index], self.scale[index], start, noise)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(y x)`` or ``(z y x)``."""
        return self.op.shape

    @property
    def weights(self) -> Tensor:
        """Real ``(plane|1 1|coil ky kx|1)``, at most 1; zero frequency at ``n // 2``."""
        return self.op.weights / self.top.reshape(-1, 1, 1, 1)

    @property
    def unit_coil(self) -> Tensor:
        """Bool ``(plane|1)``: one coil whose map is the same everywhere. A^H W A is then diagonal in the Fourier domain."""
        return self.op.diagonal

    def circulant(self) -> Tensor:
        """Eigenvalues, real ``(plane|1 ky kx)`` with zero frequency at index 0, of the circulant matrix nearest to
        ``A^H W A``; equal to it for `unit_coil`."""
        return self.op.nearest_circulant(self.weights, IMAGE_AXES if self.op.rank == 2 else self.op.axes)

    def finish(self, x: Tensor) -> Tensor:
        """Solutions of the scaled problems as images ``(plane y x)``: original scale, zero outside the support of the maps."""
        return x * self.op.support * self.scale


def least_squares(
    planes: Planes, lamda: float, max_iterations: int, tolerance: float | Tensor, watch: Watch | None = None
) -> Tensor:
    """``(A^H W A + lamda I) x = A^H W y``, to a relative residual of `tolerance`: complex ``(plane y x)``."""
    options = {"max_iterations": max_iterations, "tolerance": tolerance, "warn": False, "watch": watch}
    return normal_equations.solve(planes.op, lamda * planes.top, planes.rhs * planes.top, **options)  # type: ignore[arg-type]


def sparse(
    planes: Planes,
    regulariser: Sparsity,
    lamda: float,
    max_iterations: int,
    tolerance: float,
    watch: Watch | None = None,
) -> Tensor:
    """``min 1/2 ||W^(1/2)(A x - y)||^2 + lamda r(G x)`` by ADMM, complex ``(plane y x)``.

    A plane is done when an iteration changes it by less than `tolerance`, relative to its norm. The penalty parameter is
    ``rho = lamda / threshold`` with the `threshold` that the regulariser suggests: it only decides how fast the iteration is.
    `watch` sees the planes that are not yet done.
    """
    g = regulariser.to(planes.rhs.dtype, planes.rhs.device)
    size = normal_equations.chunk(planes.rhs.device)
    solution = torch.zeros_like(planes.rhs)
    unit = planes.unit_coil.expand(len(planes))
    for index in (unit.nonzero().flatten(), (~unit).nonzero().flatten()):
        for part in index.split(max(size // math.prod(planes.op.maps.shape[-planes.op.rank - 1 :]), 1)):
            if len(part):
                solution[part] = _admm(planes[part], g, lamda, max_iterations, tolerance, watch)
    return solution


def _admm(planes: Planes, g: Sparsity, lamda: float, max_iterations: int, tolerance: float, watch: Watch | None) -> Tensor:
    rho = lamda / g.threshold
    solution = (planes.rhs if planes.start is None else planes.start).clone()
    running = torch.arange(len(planes), device=planes.rhs.device)
    step = MinimiseX(planes, g, rho)
    x, v = solution, g.forward(solution)
    u = torch.zeros_like(v)
    for iteration in range(1, max_iterations + 1):
        before, x = x, step(x, v - u)
        relaxed = torch.add(_RELAXATION * g.forward(x), v, alpha=1 - _RELAXATION)
        v = g.shrink(relaxed + u, g.threshold)
        u = u + relaxed - v
        if watch is not None:
            watch(iteration, x)
        # Outside the support the data say nothing: the image wanders there, and is cut off at the end.
        support = step.planes.op.support
        rank = step.planes.op.rank
        change, size = energy((x - before) * support, rank), energy(x * support, rank)
        going = (change > tolerance**2 * size).flatten() | (iteration < _FEWEST)
        if iteration < max_iterations and bool(going.all()):
            continue
        solution[running] = x
        kept = going.nonzero().flatten()
        if iteration == max_iterations or len(kept) == 0:
            break
        running, x, v, u = running[kept], x[kept], v[kept], u[kept]
        step = MinimiseX(step.planes[kept], g, rho)
    return solution


class MinimiseX:
    """``argmin over x: 1/2 ||W^(1/2)(A x - y)||^2 + rho/2 ||G x - z||^2``: exact where that is a division, else a few steps of
    conjugate gradients from the last iterate."""

    def __init__(self, planes: Planes, g: Sparsity, rho: float) -> None:
        self.planes, self._g, self._rho = planes, g, rho
        self._gram = planes.op.gram(planes.weights)
        self._inverse = 1 / (planes.circulant() + rho * g.gram_eigenvalues).clamp(min=1e-6)
        self._exact = bool(planes.unit_coil.all())

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        rhs = self.planes.rhs + self._rho * self._g.adjoint(z)
        if self._exact:
            return self._divide(rhs)
        rank = self.planes.op.rank
        return conjugate_gradients(self._matrix, self._divide, rhs, x, 0.0, self._g.inner_steps, warn=False, rank=rank)

    def _matrix(self, x: Tensor) -> Tensor:
        return self._gram(x) + self._rho * self._g.gram(x)

    def _divide(self, x: Tensor) -> Tensor:
        axes = tuple(range(-self.planes.op.rank, 0))
        return ifft_corner(self._inverse * fft_corner(x, axes), axes)


def _noise(op: ForwardModel, rhs: Tensor) -> Tensor:
    """`Planes.noise` for ``A^H W y`` over the unit weight: E|A^H W n|^2 is the trace of ``A^H W A`` for unit variance."""
    power = op.maps.abs().square().sum(tuple(range(-op.rank - 1, 0))).reshape(-1, *[1] * op.rank) / op.unit_weight
    return op.noise_std * (power / energy(rhs, op.rank).clamp(min=1e-30)).sqrt()


def _peak(x: Tensor, rank: int) -> Tensor:
    """Largest magnitude over the last `rank` axes, which are kept with length 1."""
    return x.abs().amax(tuple(range(-rank, 0)), keepdim=True)
