"""Residual refinement: what the measured samples say against the image of a generator, added as a sparse correction.

    x = G + argmin over r: 1/2 ||W^(1/2)(A r - (y - A G))||^2 + lamda max|A^H W y| ||Psi r||_1

G is the generator's image, Psi and W are those of `recon.methods.classical.L1Wavelet`. This is prior-image constrained
compressed sensing (Chen, Tang and Leng 2008, doi:10.1118/1.2836423) without the term on x itself. The wavelets' approximation
is penalised too: where lines are missing near the centre, an approximation without a penalty takes up amplified noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kspace.operators import ForwardModel
from recon.methods.classical import flattened
from recon.methods.generator import GeneratorReconstructor
from recon.methods.held_out import noise_variance

if TYPE_CHECKING:
    from recon.methods.solvers import Planes

APPROXIMATION = 0.25  # weight of the approximation, that of the details at the last level
NOISE = 0.35  # least weight of the wavelets in standard deviations of the noise

Refinement = Literal["stack", "residual", "none"]


@dataclass(frozen=True)
class Residual:
    """Residual refinement of an image that exists, called ``(image, y, op) -> image``.

    Positively homogeneous; uses acquired samples only; acts on each plane of a batch by itself.

    Attributes
    ----------
    lamda
        Least weight of the wavelets, relative to max|A^H W y| of the samples (not of the residual). It is `NOISE` standard
        deviations of the noise where that is more: below, the residual would bring the noise of the samples back.
    iterations
        Of ADMM, from zero; always as many, so that rounding cannot change their number.
    """

    lamda: float = 2e-3
    iterations: int = 15

    def __call__(self, image: Tensor, y: Tensor, op: ForwardModel) -> Tensor:
        """Refined image, complex ``(*batch y x)``, from `image` ``(*batch y x)`` and k-space ``(*batch coil ky kx)``."""
        from kspace.normal_equations import planes_at_once
        from recon.methods import solvers

        samples, flat, batch = flattened(y, op)
        images = image.expand(*batch, *image.shape[-2:]).reshape(-1, *image.shape[-2:])
        n = planes_at_once(op)
        refined = [images.new_zeros((0, *image.shape[-2:]))]
        for first in range(0, len(samples), n):
            part = slice(first, first + n)
            planes = solvers.Planes.of(samples[part], flat.planes(part))
            floor = NOISE * relative_noise(samples[part], flat.planes(part))
            refined.append(self._solve(images[part], planes, floor.clamp(min=self.lamda).tolist()))
        return torch.cat(refined).reshape(*batch, *image.shape[-2:])

    def _solve(self, images: Tensor, planes: Planes, lamdas: list[float]) -> Tensor:
        from recon.methods import solvers
        from recon.methods.regularisers import Wavelet

        start = images / torch.where(planes.scale > 0, planes.scale, 1)
        # The scale stays that of the samples: weight and thresholds mean the same for the residual as for the image.
        residual = replace(planes, rhs=planes.rhs - planes.op.gram(planes.weights)(start), start=None)
        norm = Wavelet(planes.shape, approximation=APPROXIMATION)
        correction = torch.empty_like(start)
        for lamda in sorted(set(lamdas)):
            alike = torch.tensor([i for i, one in enumerate(lamdas) if one == lamda], device=start.device)
            correction[alike] = solvers.sparse(residual[alike], norm, lamda, self.iterations, 0.0)
        return planes.finish(start + correction)


def relative_noise(y: Tensor, op: ForwardModel) -> Tensor:
    """Standard deviation of the noise of a sample over max|A^H W y|, float64 ``(plane)``; 0 where the noise is not known.

    Parameters
    ----------
    y, op
        Complex ``(*batch coil ky kx)``, and its forward model.
    """
    from recon.methods import solvers

    samples, flat, _ = flattened(y, op)
    found = []
    for i, scale in enumerate(solvers.Planes.of(samples, flat).scale.flatten().tolist()):
        variance = noise_variance(samples[i : i + 1], flat.planes(slice(i, i + 1)))
        found.append(math.sqrt(variance or 0.0) / scale if scale > 0 else 0.0)
    return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class RefinedGenerator:
    """A generator with residual refinement, called ``(y, op) -> image``.

    Attributes
    ----------
    network
        The generator.
    residual
        What follows.
    """

    network: GeneratorReconstructor
    residual: Residual = Residual()

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        y = torch.where(op.mask, y, 0)
        return self.residual(self.network(y, op), y, op)
