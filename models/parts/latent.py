"""Unconditional generators as priors of one scan: a latent vector, and then the weights too, are fitted to the samples.

    z = argmin ||W^(1/2) (y - a A G(z))||^2 / ||W^(1/2) y||^2 + rho |z|^2 / n     CSGM: Bora 2017, arXiv 1703.03208
    z, theta = argmin of the same, from there                      image-adaptive: Hussein 2020, arXiv 1906.05284

The complex factor a, solved for in closed form, takes scale and constant phase of the scan from the fit. What happens at each
look (held-out samples, noise level) is the caller's: see `Watch`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kspace.data_consistency import regularised_solve
from kspace.fourier import interpolate, resize
from kspace.operators import Sense
from models.parts.consistency import Observation
from models.parts.interface import Generator


@dataclass(frozen=True)
class LatentFit:
    """How a prior is fitted to a scan.

    Parameters
    ----------
    restarts
        Random latent vectors that are fitted beside each other; the best goes on.
    steps
        Adam steps on the latent vector, weights fixed.
    rate
        Learning rate of these steps.
    adaptation
        Further steps on the latent vector and all weights together; 0 for CSGM.
    latent_rate, weights_rate
        Learning rates of the further steps.
    penalty
        Weight of the mean square of the latent vector, relative to the energy of the samples.
    check
        Steps between two looks (`Watch`).
    patience
        Looks without a smaller error that end a stage; 0: never.
    consistency
        Data consistency at the end.
    lamda
        Its weight, noise variance over variance of the error, where the caller does not know better.
    free_scale
        Solve for the complex factor a; False: a = 1.
    seed
        Of the random latent vectors.
    """

    restarts: int = 3
    steps: int = 150
    rate: float = 0.05
    adaptation: int = 0
    latent_rate: float = 1e-3
    weights_rate: float = 3e-4
    penalty: float = 1e-3
    check: int = 10
    patience: int = 4
    consistency: bool = True
    lamda: float = 0.05
    free_scale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.restarts, self.steps, self.check) < 1 or self.adaptation < 0:
            raise ValueError("restarts, steps and check must be at least 1, adaptation at least 0")


@dataclass(frozen=True, eq=False)
class Look:
    """What a watcher says of candidate images.

    Attributes
    ----------
    errors
        Of each candidate, real ``(candidate)``; the smallest is kept.
    enough
        The fit has reached the noise: stop this stage.
    """

    errors: Tensor
    enough: bool = False


# Candidate images ``(candidate y x)``, complex, in the units of the observation, to a `Look`.
Watch = Callable[[Tensor], Look]


@dataclass(eq=False)
class Fitted:
    """An image that a prior was fitted to, and how.

    Attributes
    ----------
    image
        Complex ``(y x)``, before data consistency.
    error
        As the watcher measured it.
    history
        Stage (``latent`` or ``adaptation``), step, and smallest error of each look.
    kept
        Stage and step of `image`.
    """

    image: Tensor
    error: float
    history: list[tuple[str, int, float]] = field(default_factory=list)
    kept: tuple[str, int] = ("latent", 0)


class PriorGenerator(Generator):
    """Unconditional generator: images from latent vectors. Called with a scan, it is fitted to it, plane by plane.

    Parameters
    ----------
    options
        With a field ``fit`` (`LatentFit`).
    """

    fitted = True
    options: Any

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    @property
    @abstractmethod
    def n_latent(self) -> int:
        """Length of the latent vector."""

    @abstractmethod
    def square(self, z: Tensor) -> Tensor:
        """Images, complex ``(n size size)``, of latent vectors, real ``(n n_latent)``."""

    def images(self, z: Tensor, shape: tuple[int, int]) -> Tensor:
        """Images ``(n y x)`` of any matrix `shape`, from latent vectors ``(n n_latent)``.

        The square is interpolated to the longer side, in k-space, and cropped to the shorter.
        """
        square = self.square(z)
        side = max(shape)
        return resize(interpolate(square, (side, side)), shape)

    def draw(self, n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`n` standard normal latent vectors, real ``(n n_latent)``, with the precision and device of `like`, of any shape."""
        z = torch.randn(n, self.n_latent, generator=generator, device="cpu" if generator is not None else like.device)
        return z.to(like.device, like.real.dtype)

    def training_images(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``image``: one of a random latent vector for each slice, ``(*batch y x)``. The samples are not looked at."""
        batch = y.shape[:-3]
        z = self.draw(batch.numel(), y)
        return {"image": self.images(z, (y.shape[-2], y.shape[-1])).reshape(*batch, *y.shape[-2:])}

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``prior`` (fitted) and ``image`` (after data consistency), complex ``(*batch y x)``, without gradients.

        `y` is complex ``(*batch coil ky kx)``.
        """
        found = [self.fit_scan(*plane) for plane in planes_of(y, op)]
        return {
            name: torch.stack([image[name] for image in found]).reshape(*y.shape[:-3], *y.shape[-2:])
            for name in ("prior", "image")
        }

    def fit_scan(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``prior`` and ``image``, complex ``(y x)``, of one plane ``(coil ky kx)``, by its own residual alone."""
        # The gradients needed here exist even where the caller wants none.
        with torch.inference_mode(False), torch.enable_grad():
            observed, unit = self.observe(y.clone(), cloned(op))
            if not bool(unit.any()):
                zeros = torch.zeros_like(observed.zero_filled)
                return {"prior": zeros, "image": zeros}
            fitted = fit(self, observed, self.options.fit)
        image = self.consistent(fitted.image, observed, self.options.fit.lamda)
        return {"prior": fitted.image * unit, "image": image * unit}

    def observe(self, y: Tensor, op: Sense) -> tuple[Observation, Tensor]:
        """Observation of k-space ``(*batch coil ky kx)`` in the units of the prior, and the factor that restores its own."""
        return Observation.scaled(y, op)

    def consistent(self, image: Tensor, observed: Observation, lamda: float) -> Tensor:
        """Image ``(*batch y x)`` after data consistency of weight `lamda`, unless the options switch it off."""
        if not self.options.fit.consistency:
            return image
        with torch.no_grad():
            return regularised_solve(image, observed.back_projection, observed.op, lamda, tolerance=1e-4)


def fit(prior: PriorGenerator, observed: Observation, options: LatentFit, watch: Watch | None = None) -> Fitted:
    """Fit a prior to one plane.

    Parameters
    ----------
    prior
        Does not change: what is adapted is a copy.
    observed
        One plane, ``(coil ky kx)``, scaled.
    options
        How.
    watch
        Called with candidate images every `LatentFit.check` steps; the best look is kept. None: the residual of the fit is
        the error, and nothing stops a stage early.
    """
    prior = copy.deepcopy(prior).requires_grad_(False).eval()
    rng = torch.Generator().manual_seed(options.seed)
    z = prior.draw(options.restarts, observed.y, rng).requires_grad_(True)
    groups: list[dict[str, Any]] = [{"params": [z], "lr": options.rate}]
    best, latent = _stage(prior, observed, options, watch, "latent", options.steps, groups, z, None)
    if options.adaptation:
        z = latent[None].clone().requires_grad_(True)
        for p in prior.parameters():
            p.requires_grad_(True)
        groups = [
            {"params": [z], "lr": options.latent_rate},
            {"params": list(prior.parameters()), "lr": options.weights_rate},
        ]
        best, _ = _stage(prior, observed, options, watch, "adaptation", options.adaptation, groups, z, best)
    return best


def _stage(
    prior: PriorGenerator,
    observed: Observation,
    options: LatentFit,
    watch: Watch | None,
    stage: str,
    steps: int,
    groups: list[dict[str, Any]],
    z: Tensor,
    best: Fitted | None,
) -> tuple[Fitted, Tensor]:
    """Run one stage; return the best image so far, and the latent vector of this stage's best look."""
    adam = torch.optim.Adam(groups)
    shape = (observed.y.shape[-2], observed.y.shape[-1])
    own, kept, idle = float("inf"), z.detach()[0], 0
    for step in range(steps + 1):
        images = prior.images(z, shape)
        factor, residuals = _residual(images, observed, options)
        if step % options.check == 0 or step == steps:
            candidates = (factor * images).detach()
            look = Look(residuals.detach()) if watch is None else watch(candidates)
            error, i = float(look.errors.min()), int(look.errors.argmin())
            if best is None or error < best.error:
                history = [] if best is None else best.history
                best = Fitted(candidates[i], error, history, (stage, step))
            best.history.append((stage, step, error))
            idle = 0 if error < own else idle + 1
            if error < own:
                own, kept = error, z.detach()[i].clone()
            if look.enough or idle == options.patience > 0:
                break
        if step == steps:
            break
        # Candidates do not see each other: the sum gives each its own gradient.
        loss = (residuals + options.penalty * z.square().mean(1)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert best is not None
    return best, kept


def _residual(images: Tensor, observed: Observation, options: LatentFit) -> tuple[Tensor, Tensor]:
    """Factor a ``(candidate 1 1)`` and relative squared residual ``(candidate)`` of images ``(candidate y x)``.

    The minimum over a has no gradient through a (envelope theorem), so a counts as a constant.
    """
    op, y = observed.op, observed.y
    weights = op.weights
    predicted = op.forward(images)
    energy = (weights * y.abs().square()).sum()
    if options.free_scale:
        with torch.no_grad():
            own = (weights * predicted.abs().square()).sum((-3, -2, -1), keepdim=True)
            factor = (weights * predicted.conj() * y).sum((-3, -2, -1), keepdim=True) / own.clamp(min=1e-12)
    else:
        factor = torch.ones((len(images), 1, 1, 1), dtype=y.dtype, device=y.device)
    difference = torch.view_as_real((factor * predicted - y).resolve_conj()).square().sum(-1)
    return factor[:, 0], (weights * difference).sum((-3, -2, -1)) / energy.clamp(min=1e-30)


def planes_of(y: Tensor, op: Sense) -> list[tuple[Tensor, Sense]]:
    """Planes ``(coil ky kx)`` of k-space ``(*batch coil ky kx)``, each with its operator."""
    batch = y.shape[:-3]
    flat = op.flattened(batch)

    def at(x: Tensor, i: int) -> Tensor:
        return x[i if len(x) > 1 else 0]

    found = []
    for i, plane in enumerate(y.reshape(-1, *y.shape[-3:])):
        counts = None if flat.n_averages is None else at(flat.n_averages, i)
        found.append((plane, replace(op, maps=at(flat.maps, i), mask=at(flat.mask, i), n_averages=counts)))
    return found


def cloned(op: Sense) -> Sense:
    """The operator with tensors that autograd may save, whatever mode they were made in."""
    counts = None if op.n_averages is None else op.n_averages.clone()
    return replace(op, maps=op.maps.clone(), mask=op.mask.clone(), n_averages=counts)
