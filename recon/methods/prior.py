"""Fit of an unconditional generator to one scan, judged at acquired samples that the fit does not see.

The originals (`models.csgm`) run a fixed number of steps. Here a share of the samples outside of the calibration area is held
out; the best image at these samples is kept, and a stage ends once the error there has stopped falling
(`LatentFit.patience`) or the residual of the others is that of noise (Morozov's discrepancy principle, 1966).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kspace.operators import Sense
from models.parts.consistency import Observation
from models.parts.latent import Fitted, LatentFit, Look, PriorGenerator, cloned, fit, planes_of
from recon.methods.held_out import Candidates, noise_variance, without

FEWEST = 20  # lines or points below which nothing can be spared
HELD_OUT = 0.1  # of the candidates
LEAST, MOST = 1e-3, 1.0  # weight of the prior in the last data consistency
SEED = 0


@dataclass(frozen=True, eq=False)
class Judge:
    """Watches a fit at samples that it does not see (`models.parts.latent.Watch`).

    Attributes
    ----------
    seen, held
        The scan without the samples that are held out, and those alone: scaled, one plane ``(coil ky kx)``.
    variance
        E|n|^2 of a sample measured once, in the units of the observation; None: unknown.
    """

    seen: Observation
    held: Observation
    variance: float | None

    def __call__(self, candidates: Tensor) -> Look:
        """Look at candidate images, complex ``(candidate y x)``."""
        with torch.no_grad():
            errors = _energy(self.held, candidates) / _energy(self.held, torch.zeros_like(candidates)).clamp(min=1e-30)
            residuals = _energy(self.seen, candidates)
        return Look(errors, float(residuals[int(errors.argmin())]) <= self._noise_energy())

    def _noise_energy(self) -> float:
        """Expected energy of the noise of all samples that the fit sees, weighted by their numbers of averages."""
        if self.variance is None:
            return 0.0
        n = self.seen.op.mask.expand(self.seen.y.shape).sum()
        return self.variance * float(n)

    def prior_weight(self, image: Tensor, default: float) -> float:
        """Weight of `image`, complex ``(y x)``, in data consistency: noise variance over that of its error at held-out
        samples, summed over the coils; `default` where the noise is not known."""
        n = int(self.held.op.mask.expand(self.held.y.shape).sum()) // self.held.op.n_coils
        if self.variance is None or n == 0:
            return default
        error = float(_energy(self.held, image[None])[0]) / n - self.variance * self.held.op.n_coils
        return min(MOST, max(LEAST, self.variance / max(error, 1e-12)))


def fit_to_scan(prior: PriorGenerator, y: Tensor, op: Sense) -> Tensor:
    """Image, complex ``(*batch y x)``, of a prior fitted to each plane of k-space ``(*batch coil ky kx)``.

    Parameters
    ----------
    prior
        Does not change.
    y, op
        k-space and its forward model; samples that were not acquired have no influence.
    """
    # In half precision the steps of a fit are lost in rounding.
    full = torch.autocast(y.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), full:
        images = [fit_plane(prior, plane.clone(), cloned(one))[0] for plane, one in planes_of(y, op)]
    return torch.stack(images).reshape(*y.shape[:-3], *y.shape[-2:])


def fit_plane(prior: PriorGenerator, y: Tensor, op: Sense) -> tuple[Tensor, Fitted | None]:
    """Image, complex ``(y x)``, of one plane ``(coil ky kx)``, and how it was fitted; None for a plane without signal."""
    options: LatentFit = prior.options.fit
    y = torch.where(op.mask, y, 0)
    observed, unit = prior.observe(y, op)
    if not bool(unit.any()) or not bool(y.any()):
        return torch.zeros_like(observed.zero_filled), None
    candidates = Candidates.among(op.mask.reshape(-1, *op.mask.shape[-2:]).all(0).cpu(), y.shape[-2:])
    variance = noise_variance(observed.y, op)
    if candidates.n < FEWEST:
        fitted = fit(prior, observed, options)
        weight = options.lamda
    else:
        held = candidates.draw(1, HELD_OUT, SEED)[0].to(y.device)
        judge = Judge(_part(observed.y, without(op, held)), _part(observed.y, without(op, ~held)), variance)
        fitted = fit(prior, judge.seen, options, judge)
        weight = judge.prior_weight(fitted.image, options.lamda)
    return prior.consistent(fitted.image, observed, weight) * unit, fitted


def _part(y: Tensor, op: Sense) -> Observation:
    return Observation.of(torch.where(op.mask, y, 0), op)


def _energy(observed: Observation, images: Tensor) -> Tensor:
    """Squared residual of images ``(candidate y x)``, weighted by the numbers of averages, real ``(candidate)``."""
    error = (observed.op.forward(images) - observed.y).abs().square()
    return (observed.op.weights * error).sum((-3, -2, -1))
