"""The fit of kernels that estimate samples of k-space from their neighbours in all coils."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHTS = tuple(10 ** (i / 4 - 7) for i in range(25))  # 1e-7 to 0.1


@dataclass(frozen=True)
class Kernel:
    """Which samples of the comb estimate those between, along one axis.

    Attributes
    ----------
    spacing
        Of the comb, in points.
    width
        Number of teeth.
    """

    spacing: int
    width: int

    @property
    def before(self) -> int:
        """Teeth before the one that the estimated points follow."""
        return (self.width - 1) // 2

    @property
    def span(self) -> int:
        """Points from the first to the last tooth, both included."""
        return self.spacing * (self.width - 1) + 1

    @property
    def fewest(self) -> int:
        """Places along this axis that a fit needs. With fewer the error was up to 20 dB above that of SENSE (two scans of 8
        coils), although there were more equations than unknowns: neighbouring places say nearly the same."""
        return 1 if self.spacing == 1 else max(2 * self.spacing, self.span)

    @property
    def pads(self) -> tuple[int, int]:
        """Teeth that are added to either end of the comb, so that the points outside of it are estimated too."""
        return self.before + (self.spacing > 1), self.width - 1 - self.before


def teeth(kernels: Sequence[Kernel]) -> Iterator[tuple[int, int]]:
    """Indices of the samples that a pair of kernels takes, ``(ky kx)``."""
    return itertools.product(range(kernels[0].width), range(kernels[1].width))


def targets(kernels: Sequence[Kernel]) -> list[tuple[int, int]]:
    """Points of a cell between the teeth, ``(ky kx)`` after the tooth that it begins with."""
    return [d for d in itertools.product(range(kernels[0].spacing), range(kernels[1].spacing)) if d != (0, 0)]


@dataclass(frozen=True, eq=False)
class Normal:
    """Normal equations of the fit of kernels, in double precision: the smallest eigenvalues are far below the largest.

    Attributes
    ----------
    gram, product
        ``S^H S``, complex ``(plane source source)``, and ``S^H T``, complex ``(plane source target)``.
    energy
        ``||T||^2``, real ``(plane)``.
    n
        Number of equations.
    """

    gram: Tensor
    product: Tensor
    energy: Tensor
    n: int

    @classmethod
    def of(cls, block: Tensor, kernels: Sequence[Kernel], scale: Tensor | None = None) -> Normal:
        """Of reference samples ``(plane coil ky kx)``, over their largest magnitude where no `scale` is given."""
        (ny, nx) = (n - k.span + 1 for n, k in zip(block.shape[-2:], kernels, strict=True))
        peak = block.abs().amax((-3, -2, -1), keepdim=True) if scale is None else scale
        block = block / torch.where(peak > 0, peak, 1)  # squares of samples of 1e-20 would vanish

        def shifted(dy: int, dx: int) -> Tensor:
            return block[..., dy : dy + ny, dx : dx + nx].flatten(-2)

        sources = [shifted(i * kernels[0].spacing, j * kernels[1].spacing) for i, j in teeth(kernels)]
        first = [k.before * k.spacing for k in kernels]
        between = [shifted(first[0] + dy, first[1] + dx) for dy, dx in targets(kernels)]
        # (plane coil offset equation): the order of a convolution's weights.
        s, t = torch.stack(sources, 2).flatten(1, 2), torch.stack(between, 2).flatten(1, 2)
        gram, product = ((s.conj() @ x.mT).to(torch.complex128) for x in (s, t))
        return cls(gram, product, t.abs().square().sum((-2, -1)).double(), ny * nx)

    def solve(self, lamda: float | None) -> Tensor:
        """Kernels, complex ``(plane source target)``; see `Grappa.lamda`."""
        values, vectors = torch.linalg.eigh(self.gram)
        values = values.clamp(min=1e-12 * float(values.max().clamp(min=1e-30)))
        coefficients = vectors.mH @ self.product
        mean = values.mean(-1, keepdim=True)
        if lamda is None:
            weight = _cross_validated(values, coefficients.abs().square().sum(-1), self.energy, self.n, mean)
        else:
            weight = lamda * mean
        return vectors @ (coefficients / (values + weight).unsqueeze(-1))


def joint_fit(
    blocks: Iterable[Tensor], sizes: Sequence[int], kernels: Sequence[Kernel], points: int, lamda: float | None
) -> Iterator[Tensor]:
    """Kernels of the planes of a 3-D scan, complex ``(plane source target)``, part by part.

    The one kernel of `points` along kx is a trigonometric polynomial of x in each plane, whose coefficients are fitted to all
    planes. Their normal matrix is made of the Fourier coefficients along x of the planes' own.
    """
    n, half = sum(sizes), points // 2
    x = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    grams: list[Tensor | int] = [0] * (4 * half + 1)
    products: list[Tensor | int] = [0] * points
    energy: Tensor | float = 0.0
    scale, per_plane = None, 0
    for block, here in zip(blocks, x.split(list(sizes)), strict=True):
        scale = block.abs().amax().clamp(min=1e-38).reshape(1, 1, 1, 1) if scale is None else scale
        one = Normal.of(block, kernels, scale)
        here, energy, per_plane = here.to(block.device), energy + one.energy.sum(), one.n
        for q in range(-2 * half, 2 * half + 1):
            grams[q] = grams[q] + torch.einsum("p,pij->ij", _wave(q, here), one.gram)
        for q in range(-half, half + 1):
            products[q] = products[q] + torch.einsum("p,pij->ij", _wave(-q, here), one.product)
    orders = range(-half, half + 1)
    gram = torch.cat([torch.cat([grams[b - a] for b in orders], -1) for a in orders])  # type: ignore[misc]
    product = torch.cat([products[a] for a in orders])  # type: ignore[misc]
    assert isinstance(energy, Tensor)
    fitted = Normal(gram[None], product[None], energy[None], n * per_plane).solve(lamda)[0]
    coefficients = fitted.reshape(points, -1, fitted.shape[-1])
    for here in x.split(list(sizes)):
        waves = torch.stack([_wave(q, here.to(gram.device)) for q in orders])
        yield torch.einsum("qp,qij->pij", waves, coefficients)


def _wave(order: int, x: Tensor) -> Tensor:
    """``exp(2 pi j order x)``, complex ``(plane)``."""
    return torch.polar(torch.ones_like(x), 2 * torch.pi * order * x)


def _cross_validated(values: Tensor, product: Tensor, energy: Tensor, n: int, mean: Tensor) -> Tensor:
    """Of the weights `WEIGHTS` times `mean` ``(plane 1)``, the one with the least generalised cross validation.

    `values` are eigenvalues ``(plane unknown)``, `product` the squared coefficients of the right-hand sides ``(plane
    unknown)``, `energy` their squared norm ``(plane)``; n equations.
    """
    scores = []
    for weight in WEIGHTS:
        kept = values / (values + weight * mean)
        residual = energy - (product / values * (1 - (1 - kept).square())).sum(-1)
        scores.append(residual.clamp(min=0) / (n - kept.sum(-1)).square())
    best = torch.stack(scores).argmin(0).to(mean.device)
    return torch.tensor(WEIGHTS, dtype=mean.dtype, device=mean.device)[best].unsqueeze(-1) * mean
