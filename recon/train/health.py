"""Diagnostics of adversarial training: discriminator scores, gradient norms of loss terms, effect of generator noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.interface import LossTerm, Step
from recon.datasets.example import Example


def gradient_norms(terms: Sequence[LossTerm], step: Step) -> dict[str, Tensor]:
    """Norm of the gradient of each weighted term with respect to all images of `Step.intermediates` together.

    It shows a term without influence, as the adversarial one of a WGAN whose normalisation layers are clipped. 0 for terms that
    do not use the images.
    """
    outputs = [image for image in step.intermediates.values() if image.requires_grad]
    found = {}
    for term in terms:
        weight = term.at(step.number)
        if weight == 0 or not outputs:
            continue
        value = weight * term.fn(step)
        squares = value.new_zeros(())
        if value.requires_grad:
            slopes = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
            squares = torch.stack([squares, *(s.abs().square().sum() for s in slopes if s is not None)]).sum()
        found[term.name] = squares.sqrt().detach()
    return found


@torch.no_grad()
def discriminator_scores(step: Step) -> dict[str, Tensor]:
    """Mean scores of targets and outputs, and the share of slices whose target scores higher than the output.

    That share needs no threshold, so it means the same for every adversarial loss: 0.5 is
    a discriminator that knows nothing, 1 one that is never fooled.
    """
    real, fake = (
        torch.stack([_score(d, step.judged(image, d), step.roi) for d in step.discriminators])
        for image in (step.target, step.image)
    )
    wins = (real > fake).float() + 0.5 * (real == fake)
    return {"discriminator/real": real.mean(), "discriminator/fake": fake.mean(), "discriminator/accuracy": wins.mean()}


def _score(discriminator: nn.Module, image: Tensor, roi: Tensor | None) -> Tensor:
    # In evaluation mode, so that looking leaves running averages and power iterations as they are.
    was_training = discriminator.training
    discriminator.eval()
    scores: Tensor = discriminator(image.detach(), roi).flatten(1).mean(1)
    discriminator.train(was_training)
    return scores


@torch.no_grad()
def diversity(generator: nn.Module, batch: Example, image: Tensor) -> Tensor | None:
    """Relative difference between `image` ``(*batch y x)`` and a second run on the same data: the effect of generator noise.

    None where the generator takes no noise.
    """
    again: Tensor = generator(batch.y, batch.op)
    difference = torch.linalg.vector_norm(again - image)
    return difference / torch.linalg.vector_norm(image) if bool(difference > 0) else None
