"""Adversarial losses of generator and discriminator, and penalties on the discriminator's gradient.

Each kind is a pair: `discriminator_loss` and `adversarial`, the generator's loss. Discriminator terms detach the image;
generator terms freeze the discriminator. Real and fake images are scored in separate passes, so that batch normalisation in a
discriminator never mixes the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.interface import LossTerm, Step, frozen, terms

Kind = Literal["minimax", "non_saturating", "lsgan", "wgan"]


def discriminator_loss(step: Step, kind: Kind, images: Sequence[str] = ("image",), real_label: float = 1.0) -> Tensor:
    """Discriminator's loss on the target and on the detached `images`, with s the scores.

    ====================  ==================================================  =======================================
    minimax,              ``mean softplus(-s(real)) + mean softplus(s(fake))``  Goodfellow 2014, arXiv 1406.2661
    non_saturating
    lsgan                 ``mean (s(real) - 1)^2 + mean s(fake)^2``             Mao 2017, doi:10.1109/ICCV.2017.304
    wgan                  ``mean s(fake) - mean s(real)``                       Arjovsky 2017, arXiv 1701.07875
    ====================  ==================================================  =======================================

    The discriminator of a WGAN is called a critic there: its scores are unbounded.

    Parameters
    ----------
    step
        See there.
    kind
        Row of the table.
    images
        Names of the fakes in `Step.intermediates`; each is paired with the target, and the pairs are summed.
    real_label
        Label of the target; below 1 for one-sided smoothing (Salimans 2016, arXiv 1606.03498), not for wgan.

    Returns
    -------
    Tensor
        Real scalar.
    """
    real = step.score(step.target.detach())
    fakes = [step.score(step.intermediates[name].detach()) for name in images]
    return torch.stack([_discriminator_loss(real, fake, kind, real_label) for fake in fakes]).sum()


def _discriminator_loss(real: Tensor, fake: Tensor, kind: Kind, label: float) -> Tensor:
    if kind in ("minimax", "non_saturating"):
        return _cross_entropy(real, label) + _cross_entropy(fake, 0.0)
    if kind == "lsgan":
        return (real - label).square().mean() + fake.square().mean()
    if kind == "wgan":
        return fake.mean() - real.mean()
    raise ValueError(f"unknown adversarial loss {kind!r}; one of minimax, non_saturating, lsgan, wgan")


@dataclass(frozen=True)
class AdversarialWeights:
    """Weights of an adversarial training; 0 switches a term off.

    Parameters
    ----------
    adversarial
        Weight of the generator's adversarial term.
    gradient_penalty
        Weight of `gradient_penalty` against the discriminator's own loss.
    r1
        Weight of `r1` against the discriminator's own loss.
    drift
        Weight of `drift` against the discriminator's own loss.
    kind
        Adversarial loss: see `discriminator_loss`.
    """

    adversarial: float = 0.01
    gradient_penalty: float = 0.0
    r1: float = 0.0
    drift: float = 0.0
    kind: Kind = "non_saturating"


def discriminator_terms(weights: AdversarialWeights, weight: float, images: Sequence[str]) -> tuple[LossTerm, ...]:
    """Terms of a discriminator: its loss, averaged over `images` and times `weight`, and the penalties that have a weight.

    Empty where `weight` is 0: without a generator term there is nothing to learn for a discriminator.
    """
    loss = partial(discriminator_loss, kind=weights.kind, images=images)
    return terms(
        LossTerm("adversarial", weight / len(images), loss),
        LossTerm("gradient_penalty", weights.gradient_penalty if weight else 0.0, gradient_penalty),
        LossTerm("r1", weights.r1 if weight else 0.0, r1),
        LossTerm("drift", weights.drift if weight else 0.0, drift),
    )


def adversarial(step: Step, kind: Kind, images: Sequence[str] = ("image",)) -> Tensor:
    """Generator's adversarial loss, summed over the intermediates called `images`; a real scalar.

    ``-mean softplus(s)`` (that is, ``mean log(1 - D)``) for minimax, ``mean softplus(-s)`` for non_saturating,
    ``mean (s - 1)^2`` for lsgan, ``-mean s`` for wgan; sources as in `discriminator_loss`.
    """
    with frozen(step.discriminator):
        scores = [step.score(step.intermediates[name]) for name in images]
    return torch.stack([_adversarial(s, kind) for s in scores]).sum()


def _adversarial(s: Tensor, kind: Kind) -> Tensor:
    if kind == "minimax":
        return -F.softplus(s).mean()
    if kind == "non_saturating":
        return F.softplus(-s).mean()
    if kind == "lsgan":
        return (s - 1).square().mean()
    if kind == "wgan":
        return -s.mean()
    raise ValueError(f"unknown adversarial loss {kind!r}; one of minimax, non_saturating, lsgan, wgan")


def _cross_entropy(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def gradient_penalty(step: Step, images: Sequence[str] = ("image",)) -> Tensor:
    """Penalty ``mean (||grad s(u)|| - 1)^2`` at random points u between target and fake (Gulrajani 2017, arXiv 1704.00028).

    A real scalar, summed over the intermediates called `images`. The published weight is 10. Scores are averaged over a patch
    map first; the gradient has the real and imaginary part of each pixel as two coordinates.
    """
    target = step.target.detach()
    penalties = []
    for name in images:
        t = torch.rand((*target.shape[:-2], 1, 1), dtype=target.real.dtype, device=target.device)
        slope = _input_gradient(step, target + t * (step.intermediates[name].detach() - target))
        penalties.append((_norm(slope) - 1).square().mean())
    return torch.stack(penalties).sum()


def r1(step: Step) -> Tensor:
    """Penalty ``mean ||grad s(target)||^2 / 2`` on the scores at real images (Mescheder 2018, arXiv 1801.04406)."""
    slope = _input_gradient(step, step.target.detach())
    return torch.view_as_real(slope.resolve_conj()).square().sum((-3, -2, -1)).mean() / 2


def drift(step: Step) -> Tensor:
    """Penalty ``mean s(target)^2`` that keeps the scores of a critic near 0 (Karras 2018, arXiv 1710.10196, appendix A.1)."""
    return step.score(step.target.detach()).square().mean()


def _input_gradient(step: Step, image: Tensor) -> Tensor:
    image = image.clone().requires_grad_(True)
    scores = step.score(image)
    score = scores.flatten(1).mean(1).sum()
    (gradient,) = torch.autograd.grad(score, image, create_graph=True)
    return gradient


def _norm(gradient: Tensor) -> Tensor:
    pairs = torch.view_as_real(gradient.resolve_conj())
    return torch.linalg.vector_norm(pairs, dim=(-3, -2, -1))


def feature_matching(step: Step) -> Tensor:
    """Mean over the discriminator's layers, scores included, of ``mean |f(x) - f(target)|``; a real scalar.

    Salimans 2016, arXiv 1606.03498, in the form of Seitzer 2018, arXiv 1806.11216. Features of the target are constants.
    """
    with frozen(step.discriminator):
        fake = step.discriminator.features(step.judged(step.image), step.roi)
        with torch.no_grad():
            real = step.discriminator.features(step.judged(step.target), step.roi)
    return torch.stack([F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)]).mean()
