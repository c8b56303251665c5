"""Posterior samplers: cascades whose networks take noise beside the image, so that each draw is another reconstruction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.consistency import Observation
from models.parts.interface import Step
from models.parts.layers import from_channels, to_channels
from models.parts.losses import View
from models.parts.raw import Cascade, RawGeneratorOptions


@dataclass(frozen=True)
class SamplerOptions(RawGeneratorOptions):
    """Options of a posterior sampler, beside those of all raw generators.

    Parameters
    ----------
    noise
        Channels of standard normal noise that each network takes.
    samples
        Draws whose mean is the image; their noise is always the same.
    training_samples
        Draws of each slice in a training step; at least 2.
    """

    noise: int = 2
    samples: int = 8
    training_samples: int = 2

    def __post_init__(self) -> None:
        if self.noise < 1 or self.samples < 1 or self.training_samples < 2:
            raise ValueError("noise and samples must be at least 1, training_samples at least 2")


class PosteriorSampler(Cascade):
    """Cascade with noise. Called, it returns the mean of `SamplerOptions.samples` draws; `sample` returns the draws.

    Parameters
    ----------
    options
        See there.
    networks
        ``2 + noise`` channels to two, real ``(n c y x)``; the last layer of each is its submodule ``last``.
    """

    options: Any

    def __init__(self, options: SamplerOptions, networks: Iterable[nn.Module]) -> None:
        super().__init__(options, networks)

    def sample(self, y: Tensor, op: Sense, n: int, seed: int = 0) -> Tensor:
        """`n` draws, complex ``(n *batch y x)``, of k-space ``(*batch coil ky kx)``.

        Scale, ``A^H y`` and starting image are computed once: a draw costs one pass through the networks. All slices of a
        batch have the same noise, so none depends on the others.
        """
        observed, start, unit = self.prepared(y, op)
        return torch.stack([image for _, image in self._draws(start, observed, n, seed)]) * unit

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """Means of the draws, complex ``(*batch y x)``: ``before_k`` the last data consistency, and ``image``."""
        before, image = torch.zeros_like(start), torch.zeros_like(start)
        for one_before, one in self._draws(start, observed, self.options.samples, 0):
            before, image = before + one_before, image + one
        n = self.options.samples
        return {f"before_{len(self.networks) - 1}": before / n, "image": image / n}

    def training_images(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``, ``sample_k`` of new noise for each slice, and ``image``, their mean, complex ``(*batch y x)``.

        `y` is complex ``(*batch coil ky kx)``.
        """
        observed, start, unit = self.prepared(y, op)
        found = {}
        for k in range(self.options.training_samples):
            noise = torch.randn(self._noise_shape(start, shared=False), dtype=start.real.dtype, device=start.device)
            found[f"sample_{k}"] = self._draw(start, observed, noise)[1]
        mean = torch.stack(list(found.values())).mean(0)
        return {name: image * unit for name, image in {"start": start, **found, "image": mean}.items()}

    def _noise_shape(self, start: Tensor, shared: bool) -> tuple[int, ...]:
        n = 1 if shared else math.prod(start.shape[:-2])
        return (n, self.options.noise, *start.shape[-2:])

    def _draws(self, start: Tensor, observed: Observation, n: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        for k in range(n):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + k)
            noise = torch.randn(self._noise_shape(start, shared=True), generator=rng)
            yield self._draw(start, observed, noise.to(start.device, start.real.dtype))

    def _draw(self, start: Tensor, observed: Observation, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One pass with noise ``(n|1 c y x)``: complex ``(*batch y x)`` before the last data consistency, and the image."""
        before = image = start
        for k, network in enumerate(self.networks):
            channels = to_channels(image)
            joined = torch.cat([channels, noise.expand(len(channels), *noise.shape[1:])], 1)
            before = image = image + from_channels(network(joined), like=image) * observed.op.support
            if self.consistency:
                image = self.consistency[k](image, observed)
        return before, image


def spread_reward(step: Step, view: View = to_channels, relative: bool = True, floor: float = 0.01) -> Tensor:
    """Reward of the spread of the draws, to be added to the L1 loss of their mean (Bendel 2023, arXiv 2210.13389).

    ``-sqrt(2 / (pi P (P + 1))) mean s`` with ``s = sqrt(pi / (2 P (P - 1))) sum |x_k - m|`` over P draws (``sample_k``)
    with mean m at each pixel of `view`: the standard deviation, estimated without bias for Gaussian draws. With `relative`
    it is the sum of s over ``sum |start - target|`` of each slice, as `models.parts.losses.relative` has the error. With
    weight 1 beside that of the error, the minimum is a Gaussian posterior with the right mean and standard deviation.

    The authors' code takes the root of the unbiased variance, for two draws 0.80 times as much, and tunes the weight.
    """
    names = [name for name in step.intermediates if name.startswith("sample_")]
    draws = torch.stack([view(step.intermediates[name]) for name in names])
    target, start = view(step.target), view(step.intermediates["start"]).detach()
    reference = (start - target).abs().sum((1, 2, 3)) + floor * target.abs().sum((1, 2, 3))
    n = len(names)
    std = math.sqrt(math.pi / (2 * n * (n - 1))) * (draws - draws.mean(0)).abs().sum(0)
    spread = std.sum((1, 2, 3)) / torch.where(reference > 0, reference, 1) if relative else std.mean((1, 2, 3))
    return -math.sqrt(2 / (math.pi * n * (n + 1))) * spread.mean()
