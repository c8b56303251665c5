"""Adversarial terms: the game between generator and critic, and what keeps the critic in bounds.

Each kind comes as a pair: `critic` for the discriminator, `adversarial` for the generator. Critic terms detach the image
themselves; generator terms freeze the critic themselves. Real and fake images are scored in separate passes, so that a critic
with batch normalisation never mixes the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.interface import LossTerm, Step, frozen, terms

Kind = Literal["minimax", "non_saturating", "lsgan", "wgan"]


def critic(step: Step, kind: Kind, stages: Sequence[str] = ("image",), real_label: float = 1.0) -> Tensor:
    """The discriminator's loss on the target and on the detached `stages`, with s the scores.

    ====================  ==================================================  =======================================
    minimax,              ``mean softplus(-s(real)) + mean softplus(s(fake))``  Goodfellow 2014, arXiv 1406.2661
    non_saturating
    lsgan                 ``mean (s(real) - 1)^2 + mean s(fake)^2``             Mao 2017, doi:10.1109/ICCV.2017.304
    wgan                  ``mean s(fake) - mean s(real)``                       Arjovsky 2017, arXiv 1701.07875
    ====================  ==================================================  =======================================

    Several fakes: each is paired with the target, and the pairs are added up. `real_label` below 1 smooths the label of the
    target one-sidedly (minimax, non_saturating, lsgan).
    """
    real = step.discriminator(step.target.detach(), step.roi)
    fakes = [step.discriminator(step.stages[name].detach(), step.roi) for name in stages]
    loss = torch.stack([_critic(real, fake, kind, real_label) for fake in fakes])
    return loss.sum()


def _critic(real: Tensor, fake: Tensor, kind: Kind, label: float) -> Tensor:
    if kind in ("minimax", "non_saturating"):
        return _cross_entropy(real, label) + _cross_entropy(fake, 0.0)
    if kind == "lsgan":
        return (real - label).square().mean() + fake.square().mean()
    if kind == "wgan":
        return fake.mean() - real.mean()
    raise ValueError(f"unknown adversarial loss {kind!r}; one of minimax, non_saturating, lsgan, wgan")


def critic_terms(
    plays: float, kind: Kind, gradient_penalties: float, r1s: float, stages: Sequence[str] = ("image",)
) -> tuple[LossTerm, ...]:
    """The terms of a critic: its loss, averaged over `stages` and times `plays`, and its penalties where they have a weight.

    None at all where `plays` is 0: a game without a generator term needs no critic.
    """
    return terms(
        LossTerm("critic", plays / len(stages), partial(critic, kind=kind, stages=stages)),
        LossTerm("gradient_penalty", gradient_penalties if plays else 0.0, gradient_penalty),
        LossTerm("r1", r1s if plays else 0.0, r1),
    )


def adversarial(step: Step, kind: Kind, stages: Sequence[str] = ("image",)) -> Tensor:
    """The generator's loss, added up over `stages`.

    ``-mean softplus(s)`` (that is, ``mean log(1 - D)``) for minimax, ``mean softplus(-s)`` for non_saturating,
    ``mean (s - 1)^2`` for lsgan, ``-mean s`` for wgan.
    """
    with frozen(step.discriminator):
        scores = [step.discriminator(step.stages[name], step.roi) for name in stages]
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


def gradient_penalty(step: Step, stages: Sequence[str] = ("image",)) -> Tensor:
    """``mean (||grad s(u)|| - 1)^2`` at random points u between target and each fake (Gulrajani 2017, arXiv 1704.00028).

    The published weight is 10. Scores are averaged over a patch map first. For a complex image the gradient counts real and
    imaginary part as two coordinates.
    """
    target = step.target.detach()
    penalties = []
    for name in stages:
        t = torch.rand((*target.shape[:-2], 1, 1), dtype=target.real.dtype, device=target.device)
        slope = _input_gradient(step, target + t * (step.stages[name].detach() - target))
        penalties.append((_norm(slope) - 1).square().mean())
    return torch.stack(penalties).sum()


def r1(step: Step) -> Tensor:
    """``mean ||grad s(target)||^2 / 2`` (Mescheder 2018, arXiv 1801.04406): a critic flat around real images."""
    slope = _input_gradient(step, step.target.detach())
    return torch.view_as_real(slope.resolve_conj()).square().sum((-3, -2, -1)).mean() / 2


def _input_gradient(step: Step, image: Tensor) -> Tensor:
    image = image.clone().requires_grad_(True)
    scores = step.discriminator(image, step.roi)
    score = scores.flatten(1).mean(1).sum()
    (gradient,) = torch.autograd.grad(score, image, create_graph=True)
    return gradient


def _norm(gradient: Tensor) -> Tensor:
    pairs = torch.view_as_real(gradient.resolve_conj())
    return torch.linalg.vector_norm(pairs, dim=(-3, -2, -1))


def feature_matching(step: Step) -> Tensor:
    """Mean over the critic's layers, scores included, of ``mean |f(x) - f(target)|`` (Salimans 2016, arXiv 1606.03498).

    Seitzer 2018 (arXiv 1806.11216) uses it this way. Features of the target are constants.
    """
    with frozen(step.discriminator):
        fake = step.discriminator.features(step.image, step.roi)
        with torch.no_grad():
            real = step.discriminator.features(step.target, step.roi)
    return torch.stack([F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)]).mean()
