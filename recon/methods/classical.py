"""Reconstructors: values called ``(y, op) -> image``, so that zero-filled, SENSE, compressed sensing and GAN look alike.

All are positively homogeneous: ``r(c * y, op with c * noise_std) == c * r(y, op)`` for c > 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.operators import ForwardModel, Sense
from recon.methods.grappa import Grappa

if TYPE_CHECKING:
    from recon.methods.regularisers import Sparsity
    from recon.methods.solvers import Planes


class Reconstructor(Protocol):
    """Anything called ``(y, op) -> image``: `y` complex ``(*batch coil ky kx)``, the image complex ``(*batch y x)``."""

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor: ...


@dataclass(frozen=True)
class ZeroFilled:
    """``A^H y``: the coil images of the zero-filled k-space, combined with the maps; off the grid with density compensation."""

    name: ClassVar[str] = "zero-filled"

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        return op.zero_filled(y)


# Best weights of L1-wavelet and TV off the grid over those on it, where the mean eigenvalue is that of the sampled frequencies
# (brain, fruit and 0.055 T scans under radial and spiral masks: docs/NONCARTESIAN.md).
OFF_GRID = 2.5
# Of the residual of the true image. Phantom of 8 coils, 20 to 201 spokes for 256 points, relative noise 0.005 to 0.1: the error
# against truth is within 13 % of its minimum over all tolerances; at a fixed one of 3e-4 it is up to three times the minimum.
# More than half stops too early where k-space is oversampled (72 spokes for 48 points: 22 % above the minimum, 37 % at 0.7).
NOISE_SHARE = 0.5
RESIDUALS = 3e-5, 1e-2  # lowest and highest


@dataclass(frozen=True)
class CgSense:
    """``argmin 1/2 ||W^(1/2)(A x - y)||^2 + lamda/2 ||x||^2``. Pruessmann et al. 2001, doi:10.1002/mrm.1241.

    Preconditioned conjugate gradients, to the minimum.

    Attributes
    ----------
    lamda
        Noise variance over signal variance. The norm of A is 1 for normalised maps, so this needs no scale. It shrinks the
        image by the factor 1 / (1 + lamda) where k-space is full: kept small, so that repetitions of a series do not flicker.
    iterations
        At most so many.
    tolerance
        Relative residual of the normal equations at which the iteration stops. None: 1e-6 on a grid. Off it the residual that
        the true image has because of the noise, times `NOISE_SHARE` (the discrepancy principle of Morozov, in the normal
        equations: Hanke 1995, Conjugate Gradient Type Methods for Ill-Posed Problems); what comes after fits the noise of the
        frequencies that are sampled least. Where the noise was not measured,
        `ForwardModel.least_residual`.
    """

    name: ClassVar[str] = "sense"
    lamda: float = 3e-3
    iterations: int = 200
    tolerance: float | None = None

    def __post_init__(self) -> None:
        _check(self, lowest=0.0)

    def stop(self, op: ForwardModel, noise: Tensor | None = None) -> float | Tensor:
        """The tolerance for a forward model and, real ``(plane 1 1)``, the `noise` of `solvers.Planes`."""
        if self.tolerance is not None:
            return self.tolerance
        if noise is None:
            return max(1e-6, op.least_residual)
        return (NOISE_SHARE * noise).clamp(*RESIDUALS)

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        return _solved(y, op, self._solve, relative=False)

    def _solve(self, planes: Planes) -> Tensor:
        from recon.methods import solvers

        return solvers.least_squares(planes, self.lamda, self.iterations, self.stop(planes.op, planes.noise))


@dataclass(frozen=True)
class L1Wavelet:
    """``argmin 1/2 ||W^(1/2)(A x - y)||^2 + lamda max|A^H W y| ||Psi x||_1``, Psi wavelets averaged over all shifts.

    Lustig, Donoho and Pauly 2007, doi:10.1002/mrm.21391; `recon.methods.regularisers.Wavelet` says which norm it is exactly.

    Attributes
    ----------
    lamda
        Relative to max|A^H W y|, the largest pixel of the zero-filled image; off the grid see `weight_of`.
    iterations
        At most so many iterations of ADMM.
    tolerance
        Relative change of the image in one iteration at which it stops.
    wavelet
        Orthogonal wavelet, under PyWavelets' name.
    levels
        Depth of the transform. Deeper helps where the gaps between samples are wide and one coil must bridge them (half a
        decibel on 8-bit images at 10 %), and costs as much where many coils bridge them.
    """

    name: ClassVar[str] = "l1-wavelet"
    lamda: float = 2e-3
    iterations: int = 300
    tolerance: float = 1e-4
    wavelet: str = "db2"
    levels: int = 2

    def __post_init__(self) -> None:
        _check(self)
        import pywt

        if self.wavelet not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(self.wavelet).orthogonal:
            raise InputError(f"'{self.wavelet}' is not an orthogonal wavelet", self.name, "choose db2, sym4, haar, ...")
        if self.levels < 1:
            raise InputError(f"levels must be at least 1; got {self.levels}", self.name, "leave it out")

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        return _solved(y, op, self._solve)

    def regulariser(self, shape: Sequence[int]) -> Sparsity:
        """The norm, without its weight, for images of `shape` ``(y x)``, or volumes ``(z y x)``."""
        from recon.methods.regularisers import Wavelet

        return Wavelet(shape, self.wavelet, self.levels)

    def _solve(self, planes: Planes) -> Tensor:
        from recon.methods import solvers

        return solvers.sparse(
            planes, self.regulariser(planes.shape), weight_of(self.lamda, planes.op), self.iterations, self.tolerance
        )


@dataclass(frozen=True)
class TotalVariation:
    """``argmin 1/2 ||W^(1/2)(A x - y)||^2 + lamda max|A^H W y| TV(x)``, isotropic. Block et al. 2007, doi:10.1002/mrm.21236.

    Attributes
    ----------
    lamda
        Relative to max|A^H W y|, the largest pixel of the zero-filled image; off the grid see `weight_of`.
    iterations
        At most so many iterations of ADMM.
    tolerance
        Relative change of the image in one iteration at which it stops.
    """

    name: ClassVar[str] = "tv"
    lamda: float = 1.5e-3
    iterations: int = 200
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        return _solved(y, op, self._solve)

    def regulariser(self, shape: Sequence[int]) -> Sparsity:
        """The norm, without its weight, for images of `shape` ``(y x)``, or volumes ``(z y x)``."""
        from recon.methods.regularisers import Gradient

        return Gradient(shape)

    def _solve(self, planes: Planes) -> Tensor:
        from recon.methods import solvers

        return solvers.sparse(
            planes, self.regulariser(planes.shape), weight_of(self.lamda, planes.op), self.iterations, self.tolerance
        )


METHODS: dict[str, Callable[..., Reconstructor]] = {
    cls.name: cls for cls in (ZeroFilled, CgSense, Grappa, L1Wavelet, TotalVariation)
}


def unasked() -> list[str]:
    """Methods that take part in a comparison without being named: all but those whose `by_default` is False."""
    return [name for name, method in METHODS.items() if getattr(method, "by_default", True)]


def register(method: type[Any]) -> type[Any]:
    """Add a classical method from outside this module, as decorator of its class.

    Raises
    ------
    TypeError
        If it is no frozen dataclass, or its name is absent, malformed or taken.
    """
    where = f"{method.__module__}.{method.__qualname__}"
    if not (is_dataclass(method) and method.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise TypeError(f"{where}: rule 'options': it is no frozen dataclass; use @dataclass(frozen=True) below @register")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "name" in [f.name for f in fields(method)]:
        raise TypeError(f"{where}: rule 'name': write `name: ClassVar[str]`, lower-case letters, digits and hyphens")
    if name in (*METHODS, "rss"):
        raise TypeError(f"{where}: rule 'name': there is a method called '{name}'; choose another")
    METHODS[name] = method  # type: ignore[assignment]
    return method


def make(method: str, **options: Any) -> Reconstructor:
    """The reconstructor called `method`, with `options` for its attributes.

    Raises
    ------
    InputError
        If there is no such method, it has no such option, or a value is out of range.
    """
    if method not in METHODS:
        fix = f"choose from {', '.join(METHODS)}"
        if method == "rss":
            raise InputError("'rss' is a magnitude, not a reconstruction that others can be compared with", None, fix)
        raise InputError(f"unknown method '{method}'", None, fix)
    known = [f.name for f in fields(METHODS[method])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            fix = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(f"method '{method}' has no option '{option}'", None, fix)
    return METHODS[method](**options)


def rss(y: Tensor) -> Tensor:
    """Root sum of squares over the coils of the zero-filled coil images.

    Parameters
    ----------
    y
        Complex ``(*batch coil ky kx)``, zero where not sampled.

    Returns
    -------
    Tensor
        Real ``(*batch y x)``. A magnitude, for export and as reported truth; not a reconstructor.
    """
    return torch.linalg.vector_norm(ifft(y), dim=-3)


def objective(method: L1Wavelet | TotalVariation | CgSense, image: Tensor, y: Tensor, op: Sense) -> float:
    """The value that `method` minimises, at `image`, for one plane; relative to ``max|A^H W y| ** 2`` and the largest weight.

    Parameters
    ----------
    method
        With its weight.
    image, y, op
        Complex ``(y x)``, complex ``(coil ky kx)``, and the forward model of that plane.

    Returns
    -------
    float
        In double precision.
    """
    from recon.methods.solvers import Planes

    planes = Planes.of(*flattened(y, op)[:2])
    scale = planes.scale.to(torch.float64)
    x = (image.to(torch.complex128) / scale).unsqueeze(-3)
    measured = torch.where(op.weights > 0, y, 0).to(torch.complex128) / scale.unsqueeze(-1)
    residual = fft(planes.op.maps.to(torch.complex128) * x) - measured
    misfit = 0.5 * float((planes.weights * residual.abs().square()).sum())
    if isinstance(method, CgSense):
        return misfit + 0.5 * method.lamda * float(x.abs().square().sum())
    g = method.regulariser(planes.shape)
    return misfit + method.lamda * float(g.norm(g.forward(x)).sum())


def _solved(y: Tensor, op: ForwardModel, solve: Callable[[Planes], Tensor], relative: bool = True) -> Tensor:
    """The image of every plane of a batch, solved together as far as memory allows; `relative`: see `Planes.of`."""
    from kspace.normal_equations import planes_at_once
    from recon.methods.solvers import Planes

    samples, flat, batch = flattened(y, op)
    images = samples.new_empty((len(samples), *op.shape))
    n = planes_at_once(op)
    for first in range(0, len(samples), n):
        part = slice(first, first + n)
        planes = Planes.of(samples[part], flat.planes(part), relative)
        images[part] = planes.finish(solve(planes))
    return images.reshape(*batch, *op.shape)


def flattened(y: Tensor, op: ForwardModel) -> tuple[Tensor, ForwardModel, tuple[int, ...]]:
    """k-space ``(plane coil ky kx)``, its operator, and the batch that the planes stand for."""
    if y.ndim < 3 or y.shape[-3:] != (op.n_coils, *op.samples):
        raise ValueError(f"k-space of shape {tuple(y.shape)} does not fit maps of shape {tuple(op.maps.shape)}")
    batch = torch.broadcast_shapes(y.shape[:-3], op.batch)
    return y.expand(*batch, *y.shape[-3:]).reshape(-1, *y.shape[-3:]), op.flattened(batch), batch


def weight_of(lamda: float, op: ForwardModel) -> float:
    """`lamda` of L1-wavelet and TV as it weighs against the scaled data term of `op`: times `OFF_GRID` in planes off the grid,
    so that one value serves both."""
    return lamda * (OFF_GRID if op.least_residual and op.rank == 2 else 1.0)


def _check(method: Any, lowest: float | None = None) -> None:
    """Refuse values that have no meaning. `lowest` is the smallest weight that has one; None: it must be positive."""
    lamda = method.lamda
    good = math.isfinite(lamda) and (lamda > 0 if lowest is None else lamda >= lowest)
    if not good:
        bound = "positive" if lowest is None else f"at least {lowest:g}"
        raise InputError(f"lamda must be finite and {bound}; got {lamda}", f"method {method.name}", "choose 1e-4 to 1e-1")
    if method.iterations < 1:
        raise InputError(f"iterations must be at least 1; got {method.iterations}", f"method {method.name}", "leave it out")
    if method.tolerance is not None and not (math.isfinite(method.tolerance) and method.tolerance >= 0):
        raise InputError(f"tolerance must be at least 0; got {method.tolerance}", f"method {method.name}", "leave it out")
