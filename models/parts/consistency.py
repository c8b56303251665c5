"""Scale, starting image and data consistency of a reconstruction network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from kspace.data_consistency import data_consistency, regularised_solve
from kspace.operators import Sense

Start = Literal["sense", "adjoint"]


def slice_scale(y: Tensor, op: Sense) -> Tensor:
    """Intensity scale of k-space ``(*batch coil ky kx)``, complex: `intensity` of ``A^H y``, real ``(*batch 1 1)``.

    Homogeneous in `y`.
    """
    return intensity(op.adjoint(y))


@torch.no_grad()
def intensity(image: Tensor) -> Tensor:
    """Energy-weighted intensity of each slice: ``sqrt(sum z^4 / sum z^2)`` with ``z = |image|``, or 1 for a slice of zeros.

    A single bright pixel changes it less than the maximum, and air around the object not at all.

    Parameters
    ----------
    image
        Complex ``(*batch y x)``.

    Returns
    -------
    Tensor
        Positive, real ``(*batch 1 1)``.
    """
    z = image.abs()
    # Fourth powers of 1e-10 leave the range of single precision: take them relative to the maximum.
    peak = z.amax((-2, -1), keepdim=True)
    power = (z / torch.where(peak > 0, peak, 1)).square()
    energy = power.sum((-2, -1), keepdim=True)
    rms = (power.square().sum((-2, -1), keepdim=True) / torch.where(energy > 0, energy, 1)).sqrt()
    return torch.where(peak > 0, peak * rms, 1)


OUTER = 0.375  # of the width of k-space: samples farther from the centre are mostly noise
LOG_NOISE, LOG_ACCELERATION = -6.0, math.log(4)  # zero of the scan conditions
# Initial slopes of log lamda over the conditions. lamda is the noise variance over the variance of the network's error. That
# error holds noise too, and grows with the acceleration and where undersampling acts along one axis.
SLOPES = (0.5, -0.5, -1.0)


@dataclass(frozen=True, eq=False)
class Observation:
    """Measured k-space with the images that every solve starts from, computed once.

    Attributes
    ----------
    y
        k-space, complex ``(*batch coil ky kx)``.
    op
        Its forward model A.
    zero_filled
        ``A^H y``, complex ``(*batch y x)``.
    back_projection
        ``A^H W y`` with W the number of averages of each sample, complex ``(*batch y x)``; `zero_filled` without averages.
    """

    y: Tensor
    op: Sense
    zero_filled: Tensor
    back_projection: Tensor

    @classmethod
    def of(cls, y: Tensor, op: Sense) -> Observation:
        """Observation of `y`, complex ``(*batch coil ky kx)``, in the units of `y`."""
        zero_filled = op.adjoint(y)
        return cls(y, op, zero_filled, zero_filled if op.n_averages is None else op.back_projection(y))

    @classmethod
    def scaled(cls, y: Tensor, op: Sense) -> tuple[Observation, Tensor]:
        """Observation of `y`, complex ``(*batch coil ky kx)``, over its `slice_scale`, and the factor that restores units.

        The factor, real ``(*batch 1 1)``, is that scale, or 0 for a slice of zeros: no image may come from a network's biases.
        """
        given = cls.of(y, op)
        scale = intensity(given.zero_filled)
        unit = torch.where(given.zero_filled.abs().amax((-2, -1), keepdim=True) > 0, scale, 0)
        zero_filled = given.zero_filled / scale
        same = given.back_projection is given.zero_filled
        return cls(y / scale.unsqueeze(-3), op, zero_filled, zero_filled if same else given.back_projection / scale), unit

    @cached_property
    def conditions(self) -> Tensor:
        """`scan_conditions` of a scaled observation, real ``(*batch 3)``."""
        return scan_conditions(self.y, self.op)


def starting_image(observed: Observation, start: Start, lamda: float, tolerance: float) -> Tensor:
    """Starting image of a network, complex ``(*batch y x)``.

    ``sense``: the solution of ``(A^H W A + lamda I) x = A^H W y`` (Pruessmann 2001, doi:10.1002/mrm.1241) to the relative
    residual `tolerance`; ``adjoint``: ``A^H y``.
    """
    if start == "adjoint":
        return observed.zero_filled
    return regularised_solve(None, observed.back_projection, observed.op, lamda, tolerance=tolerance)


@torch.no_grad()
def scan_conditions(y: Tensor, op: Sense) -> Tensor:
    """Properties of a scan that determine the best weight of a prior, from its samples and mask alone.

    Parameters
    ----------
    y
        k-space, complex ``(*batch coil ky kx)``, divided by `slice_scale`.
    op
        Its forward model.

    Returns
    -------
    Tensor
        Real ``(*batch 3)``: logarithm of the noise variance of a sample plus 6; logarithm of the acceleration R over 4; 1 where
        undersampling acts along one axis only, else 0. The noise variance is the median of ``|y|^2`` of the outermost samples
        over ln 2, which is the median of an exponential distribution.
    """
    mask = op.mask if op.mask.ndim > 2 else op.mask.unsqueeze(0)
    n_y, n_x = y.shape[-2:]
    mask = mask.expand(*mask.shape[:-2], n_y, n_x)
    ky, kx = ((torch.arange(n, device=y.device) - n // 2).abs() / n for n in (n_y, n_x))
    outer = (mask & (torch.maximum(ky[:, None], kx) > OUTER)).expand(y.shape)
    planes = zip(y.reshape(-1, *y.shape[-3:]), outer.reshape(-1, *y.shape[-3:]), strict=True)
    medians = torch.stack([_median_power(samples[there]) for samples, there in planes]).reshape(y.shape[:-3])
    sampled = mask.float().mean((-3, -2, -1))
    lines = (mask == mask[..., :1]).flatten(-3).all(-1) | (mask == mask[..., :1, :]).flatten(-3).all(-1)
    # A slice of zeros, or one without noise, counts as the least noisy scan.
    noise = (medians / math.log(2)).clamp(1e-4, 1).log() - LOG_NOISE
    found = [noise, -sampled.clamp_min(1e-3).log() - LOG_ACCELERATION, lines.to(noise.dtype)]
    return torch.stack(torch.broadcast_tensors(*found), -1)


def _median_power(samples: Tensor) -> Tensor:
    # Without outer samples the noise is unknown, and the condition 0.
    return samples.abs().square().median() if samples.numel() else samples.real.new_tensor(math.log(2) * math.exp(LOG_NOISE))


class Consistency(nn.Module):
    """Data consistency: ``(A^H W A + lamda I) x = A^H W y + lamda z``, or exact replacement of the samples.

    MoDL's block (Aggarwal 2019, doi:10.1109/TMI.2018.2865356); exact replacement as Schlemper 2018,
    doi:10.1109/TMI.2017.2760978. A of several coils is injective but ill-conditioned: `lamda`, the noise variance over the
    variance of the error of z, limits the inversion.

    Parameters
    ----------
    lamda
        Initial or fixed weight, positive.
    learned
        Train its logarithm.
    exact
        Replace the samples for one coil with a map of unit modulus on the Cartesian grid, whatever `lamda` is.
    tolerance
        Relative residual of the solve: looser than the operators' default, for the speed of training. Ten times looser in the
        backward pass, which otherwise took more than twice as long as the forward one; gradients of a few slices are noisier.
    adapt
        Make the logarithm of `lamda` linear in `scan_conditions`, with slopes that are learned where `lamda` is. The best
        weight for noisy 2-D undersampled scans is several times too large for 1-D undersampling.
    """

    def __init__(
        self,
        lamda: float = 0.1,
        learned: bool = True,
        exact: bool = False,
        tolerance: float = 1e-3,
        adapt: bool = False,
    ) -> None:
        super().__init__()
        if not lamda > 0:
            raise ValueError(f"lamda must be positive; got {lamda}")
        self.log_lamda = nn.Parameter(torch.tensor(math.log(lamda)), requires_grad=learned)
        self.slopes = nn.Parameter(torch.tensor(SLOPES), requires_grad=learned) if adapt else None
        self.exact, self.tolerance = exact, tolerance

    def forward(self, image: Tensor, observed: Observation) -> Tensor:
        """Make `image`, complex ``(*batch y x)``, consistent with the scaled observation; same shape and units."""
        op = observed.op
        unit = op.n_coils == 1 and torch.allclose(op.maps.abs(), torch.ones_like(op.maps.real), atol=1e-4)
        if self.exact and unit and isinstance(op, Sense):
            return data_consistency(image, observed.y, op)
        # Below 1e-4 conjugate gradients need hundreds of iterations; above 1e2 the data are ignored.
        log_lamda: Tensor = self.log_lamda
        if self.slopes is not None:
            log_lamda = log_lamda + (observed.conditions * self.slopes).sum(-1)[..., None, None]
        lamda = log_lamda.clamp(math.log(1e-4), math.log(1e2)).exp()
        return regularised_solve(
            image, observed.back_projection, op, lamda, tolerance=self.tolerance, gradient_tolerance=10 * self.tolerance
        )
