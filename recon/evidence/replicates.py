"""Repeated reconstructions of perturbed samples: their spread, and how well they predict what was left out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kspace.operators import ForwardModel
from kspace.simulation.from_images import complex_noise
from recon.evidence.noise import n_samples
from recon.evidence.record import HeldOutScore, Verdict
from recon.methods.generator import GeneratorReconstructor
from recon.methods.held_out import Candidates, together, without
from recon.methods.stack import FRACTION, Fit

Reconstruct = Callable[[Tensor, ForwardModel], Tensor]
WINDOW = 3  # pixels over which the variance of a few reconstructions is averaged
FLOOR = 0.1  # of the median inside the support: no pixel is certain


@dataclass(frozen=True, eq=False)
class Replicates:
    """Reconstructions of a scan with fewer samples and more noise.

    Attributes
    ----------
    samples
        k-space of each, complex ``(coil ky kx)`` or with a batch before it.
    ops
        Their operators, without the samples that were held out.
    held
        Bool ``(ky kx|1)``: what was held out of each; nothing where there are too few candidates.
    images
        Complex ``(k *batch y x)``.
    candidates
        What may be held out.
    """

    samples: tuple[Tensor, ...]
    ops: tuple[ForwardModel, ...]
    held: tuple[Tensor, ...]
    images: Tensor
    candidates: Candidates


def replicate(reconstruct: Reconstruct, y: Tensor, op: ForwardModel, noise_std: float, k: int, seed: int) -> Replicates:
    """`k` reconstructions, each without another 12 % of the lines or points outside of the calibration area, and with noise
    of the scan's level added to the rest: together twice the variance.

    Parameters
    ----------
    reconstruct
        ``(y, op) -> image``.
    y, op
        Complex ``(*batch coil ky kx)``, zero where not acquired.
    noise_std
        Square root of E|n|^2 of a sample measured once.
    k, seed
        How many, and the seed of what is random.
    """
    candidates = Candidates.of_model(op, y.ndim == 3)
    # Fewer than this, and what is left is another scan.
    enough = candidates.n >= 2 * k
    held = candidates.draw(k, FRACTION, seed) if enough else [torch.zeros_like(candidates.where)] * k
    rng = torch.Generator().manual_seed(seed)
    samples, ops = [], []
    for mask in held:
        rest = without(op, mask)
        noise = complex_noise(tuple(y.shape), rng).to(y.device) * noise_std
        if op.n_averages is not None:
            noise = noise / op.n_averages.clamp(min=1).sqrt()
        samples.append(torch.where(rest.mask, y + noise, 0))
        ops.append(rest)
    return Replicates(tuple(samples), tuple(ops), tuple(held), _all(reconstruct, samples, ops), candidates)


def repeat(
    network: GeneratorReconstructor, reconstruct: Reconstruct, y: Tensor, op: ForwardModel, noise_std: float, k: int, seed: int
) -> Replicates:
    """What an interval rests on: `k` draws of a posterior sampler from all samples, which hold nothing out; `replicate` of
    anything else.

    Parameters
    ----------
    network
        The generator.
    reconstruct
        What made the image.
    y, op, noise_std, k, seed
        As for `replicate`: complex ``(*batch coil ky kx)``.
    """
    draws = network.sample(y, op, k, seed)
    if draws is None:
        return replicate(quick(reconstruct), y, op, noise_std, k, seed)
    return Replicates((), (), (), draws, Candidates.of_model(op, y.ndim == 3))


def _all(reconstruct: Reconstruct, samples: list[Tensor], ops: list[ForwardModel]) -> Tensor:
    """Images ``(k *batch y x)``: planes in one batch, volumes one after another."""
    if samples[0].ndim > 3:
        return torch.stack([reconstruct(y, op) for y, op in zip(samples, ops, strict=True)])
    return reconstruct(torch.stack(samples), together(ops))


def spread_of(image: Tensor, replicates: Replicates, support: Tensor) -> Tensor:
    """Root mean square deviation of the magnitudes of `replicates` from that of `image`, real ``(*batch y x)``.

    The variance is averaged over `WINDOW` pixels, since there are few; it is at least `FLOOR` of its median and 0 outside of
    the support.

    Parameters
    ----------
    image, support
        Complex and bool ``(*batch y x)``.
    replicates
        Of the same scan.
    """
    variance = (replicates.images.abs() - image.abs()).square().mean(0)
    planes = variance.reshape(-1, 1, *variance.shape[-2:])
    smooth = avg_pool2d(planes, WINDOW, 1, WINDOW // 2, count_include_pad=False).reshape(variance.shape)
    sigma = smooth.clamp(min=0).sqrt()
    inside = support.expand(sigma.shape)
    least = FLOOR * float(sigma[inside].median()) if bool(inside.any()) else 0.0
    return torch.where(inside, sigma.clamp(min=least), 0)


def held_out_of_replicates(
    replicates: Replicates, companion: Reconstruct, y: Tensor, op: ForwardModel, image: str
) -> HeldOutScore | None:
    """Score of `replicates` at the samples that they were not given; None where nothing was held out.

    Parameters
    ----------
    replicates
        Of the generated image.
    companion
        Reconstructs the same samples.
    y, op
        All samples, complex ``(*batch coil ky kx)``, and the forward model.
    image
        Name for the record.
    """
    if not any(bool(held.any()) for held in replicates.held):
        return None
    classical = _all(companion, list(replicates.samples), list(replicates.ops))
    importance = replicates.candidates.importance().to(y.device)
    errors = []
    for i, held in enumerate(replicates.held):
        w = (importance * held.to(y.device)).expand(y.shape[-2:])
        target = torch.where(op.mask, y, 0)

        def weighted(z: Tensor, w: Tensor = w) -> float:
            return float((w * z.abs().double().square()).sum())

        parts = [op.forward(x[i]) - target for x in (replicates.images, classical)]
        errors.append([weighted(parts[0]), weighted(parts[1]), weighted(target)])
    table = torch.tensor(errors, dtype=torch.float64)
    total = table.sum(0)
    if float(total[1]) <= 0 or float(total[2]) <= 0:
        return None
    ratios = table[:, 0] / table[:, 1].clamp(min=1e-300)
    spread = float(ratios.std()) / len(ratios) ** 0.5 if len(ratios) > 1 else None
    n = sum(int(held.sum()) for held in replicates.held)
    error, beside = float(total[0] / total[2]), float(total[1] / total[2])
    return score(error, beside, spread, replicates.candidates.unit, n, (image,))


def held_out_of_fit(fit: Fit, images: tuple[str, ...]) -> HeldOutScore | None:
    """Score of a stack, from the solves that its weights were chosen with; None where nothing could be held out."""
    if fit.companion is None or fit.gain is None or not fit.errors or fit.energy is None or fit.companion <= 0:
        return None
    # The gain is measured with weights from other folds. Where L1-wavelet alone is delivered, its own error counts.
    generated = fit.errors[0] if fit.weights[0] == 1 else max(1 - fit.gain, 0.0)
    spread = None if fit.gain_error is None else fit.gain_error / fit.companion
    return score(generated / fit.energy, fit.companion / fit.energy, spread, fit.unit, fit.n_held_out, images)


def score(
    error: float, companion_error: float, spread: float | None, unit: str, n: int, images: tuple[str, ...]
) -> HeldOutScore:
    """The score with its verdict: amber where the prediction is worse than the companion's beyond its standard error."""
    ratio = error / companion_error
    worse = ratio > 1 + (spread or 0.0)
    verdict: Verdict = "amber" if worse else "green"
    word = "worse" if worse else "no worse"
    about = f"+- {spread:.1g}" if spread is not None else "of unknown error"
    says = f"predicts {n} held-out {unit} {word} than the classical image: error ratio {ratio:.2f} {about}"
    return HeldOutScore(verdict, says, error, companion_error, ratio, spread, unit, n, images)


def worst_case_scale(y: Tensor, op: ForwardModel, noise_std: float) -> float:
    """Norm of the noise of all acquired samples of k-space ``(*batch coil ky kx)``."""
    return noise_std * n_samples(op, y) ** 0.5


def quick(reconstruct: Reconstruct) -> Reconstruct:
    """What is repeated in place of a reconstruction: of a stack the network alone, a tenth of its time, whose distance from the
    stack counts as spread; of a refined generator the same with few iterations; anything else itself."""
    from recon.methods.refine import RefinedGenerator
    from recon.methods.stack import Stack

    if isinstance(reconstruct, Stack):
        return reconstruct.network
    if isinstance(reconstruct, RefinedGenerator):
        return replace(reconstruct, residual=replace(reconstruct.residual, iterations=8))
    return reconstruct
