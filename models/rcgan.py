"""rcGAN: Bendel, Ahmad and Schniter, NeurIPS 2023, arXiv 2210.13389: a conditional GAN that samples the posterior of one scan.

The generator takes noise. Its loss is the L1 error of the mean of P draws, less a reward for their standard deviation that is
exactly large enough for the spread to be that of the posterior where the posterior is Gaussian, and a conditional WGAN-GP.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
input                  zero-filled images of `coils` coils, 2 channels of          SENSE and 2 channels of noise, any
                       noise; 384x384                                              matrix and coil count
network                U-Net, 128 to 1024 channels, batch norm                     GANCS's residual networks, data consistency
                                                                                   after each
data consistency       exact, coil by coil                                         exact for one coil, else a regularised solve
critic                 candidate and zero-filled, pooled, instance norm            candidate and starting image, strided
loss                   L1 of the mean of 2, minus beta times the spread,           the same, relative to the starting image's
                       adversarial 1e-2, 1e-4 (epoch 4), 1e-5 (epoch 22)           error; adversarial 0.005
optimiser              Adam 1e-3, 0, 0.99                                          Adam 1e-3, cosine
=====================  ==========================================================  =============================================

*Beta* is `losses.spread`. The authors tune it after each epoch by 0.02 times the deviation of the gain of the mean of 8
draws over one draw from the 2.5 dB, ``10 log10(2 * 8 / 9)``, of a true posterior sampler. Here it is constant;
``python -m benchmarks.posterior`` prints that gain.

*Not reproduced*: coil compression computed from fully sampled data, which no undersampled scan has; the critic sees combined
images in place of coil images.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.operators import Sense
from models.parts.adversarial import AdversarialWeights, Kind, adversarial, discriminator_terms
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    ResNet,
    activations,
    pad_to_multiple,
    through_levels,
    to_channels,
)
from models.parts.losses import l1, relative
from models.parts.raw import RawLosses, RawOptions, assemble
from models.parts.sampler import PosteriorSampler, SamplerOptions, spread_reward

START_NOISE = 0.1  # of their usual size: initial weights of the noise, which would drown the image otherwise

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class RcGanGeneratorOptions(SamplerOptions):
    """Options of the raw generator, beside those of all samplers.

    Parameters
    ----------
    width, blocks, fold
        Channels, residual blocks and folding of each network (`models.parts.layers.ResNet`).
    cascades
        Number of networks with separate weights.
    """

    width: int = 64
    blocks: int = 5
    fold: int = 2
    cascades: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.blocks, self.fold, self.cascades) < 1:
            raise ValueError("width, blocks, fold and cascades must be at least 1")


class RcGanGenerator(PosteriorSampler):
    """Cascade of residual networks that take noise. It may begin from weights of GANCS, whose networks take none."""

    begins_from = ("gancs",)

    def __init__(self, options: RcGanGeneratorOptions = RcGanGeneratorOptions()) -> None:
        each = options.width, options.blocks, options.fold, options.norm, 2 + options.noise
        super().__init__(options, (ResNet(*each) for _ in range(options.cascades)))
        for network in self.networks:
            first = network.get_submodule("body.0")
            assert isinstance(first, nn.Conv2d)
            with torch.no_grad():
                first.weight[:, 2 * options.fold**2 :] *= START_NOISE

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a shorter chain, or of networks without noise, tensors of any shape, as this network's."""
        found, own = super().adopted(state), self.state_dict()
        for name, x in found.items():
            if name in own and x.ndim == 4 and x.shape[1] < own[name].shape[1]:
                wider = own[name].clone()
                wider[:, : x.shape[1]] = x
                found[name] = wider
        return found


@dataclass(frozen=True)
class RcGanLosses(RawLosses):
    """Loss weights; 0 switches a term off.

    Parameters
    ----------
    spread
        Weight of the reward of the standard deviation, beta; 1 for a Gaussian posterior.
    """

    spread: float = 1.0
    adversarial: float = 0.005
    gradient_penalty: float = 10.0
    drift: float = 0.001
    kind: Kind = "wgan"


@dataclass(frozen=True)
class RcGanOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: RcGanGeneratorOptions = RcGanGeneratorOptions()
    discriminator: PatchOptions = PatchOptions()
    losses: RcGanLosses = RcGanLosses()
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.0, 0.99))


def pair(images: Tensor) -> Tensor:
    """Candidate and starting image, complex ``(*batch 2 y x)``, as real ``(n 4 y x)``."""
    return to_channels(images).reshape(-1, 4, *images.shape[-2:])


class PairDiscriminator(PatchDiscriminator):
    """Patch critic that sees the candidate beside the starting image."""

    conditional = True

    def __init__(self, options: PatchOptions) -> None:
        super().__init__(pair, 4, options)


def raw(generator: Generator, options: RcGanOptions) -> Gan:
    """Assemble rcGAN for complex multi-coil data."""
    losses = options.losses
    draws = tuple(f"sample_{k}" for k in range(options.generator.training_samples))
    return assemble(
        generator,
        options,
        PairDiscriminator(options.discriminator),
        LossTerm("image", losses.image, partial(relative, view=to_channels)),
        LossTerm("spread", losses.spread, spread_reward),
        images=draws,
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


def _unit(a: int, b: int, norm: bool = True) -> nn.Sequential:
    """Convolution 3x3 with batch norm and PReLU."""
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b) if norm else nn.Identity(), nn.PReLU())


class PostResidual(nn.Module):
    """Two units and a 1x1 skip connection: real ``(n a y x)`` to ``(n b y x)``."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.body, self.skip = nn.Sequential(_unit(a, b), _unit(b, b)), nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n a y x)`` to ``(n b y x)``."""
        out: Tensor = self.body(x) + self.skip(x)
        return out


@dataclass(frozen=True)
class PublishedRcGanGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    coils
        Number of coils that it takes.
    width, depth
        Channels of the first level, doubled at each of the `depth` levels.
    noise
        Channels of noise.
    samples, training_samples
        As of `SamplerOptions`.
    """

    coils: int = 8
    width: int = 128
    depth: int = 4
    noise: int = 2
    samples: int = 8
    training_samples: int = 2


class PublishedRcGanGenerator(Generator):
    """U-Net on the zero-filled coil images and noise; measured k-space is put back exactly."""

    homogeneous = False

    def __init__(self, options: PublishedRcGanGeneratorOptions = PublishedRcGanGeneratorOptions()) -> None:
        super().__init__()
        self.options = options
        widths = [options.width * 2**k for k in range(options.depth)]
        inputs = [2 * options.coils + options.noise, *widths[:-1]]
        self.encode = nn.ModuleList(
            nn.Sequential(_unit(a, b, norm=k > 0), PostResidual(b, b))
            for k, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.down = nn.ModuleList(nn.Conv2d(b, b, 3, 2, 1) for b in widths)
        n = widths[-1]
        self.bottom = nn.Sequential(_unit(n, n), *(PostResidual(n, n) for _ in range(5)), _unit(n, n))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in zip([*widths[1:], n], widths, strict=True))
        self.decode = nn.ModuleList(nn.Sequential(_unit(2 * b, b), PostResidual(b, b)) for b in widths)
        self.head = nn.Sequential(nn.Conv2d(widths[0], widths[0], 1), nn.Conv2d(widths[0], 2 * options.coils, 1))

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.encode, self.down, self.bottom, self.up, self.decode, self.head]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (A^H y) and ``image``, the mean of the draws, complex ``(*batch y x)``, of ``(*batch coil ky kx)``."""
        rng = torch.Generator().manual_seed(0)
        shape = (1, self.options.noise, *y.shape[-2:])
        draws = [self._draw(y, op, torch.randn(shape, generator=rng).to(y.device)) for _ in range(self.options.samples)]
        return {"start": op.adjoint(y), "image": torch.stack(draws).mean(0)}

    def training_images(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``, ``sample_k`` of new noise for each slice, and their mean ``image``, of k-space ``(*batch coil ky kx)``."""
        shape = (y.shape[:-3].numel(), self.options.noise, *y.shape[-2:])
        n = self.options.training_samples
        draws = {f"sample_{k}": self._draw(y, op, torch.randn(shape, device=y.device)) for k in range(n)}
        return {"start": op.adjoint(y), **draws, "image": torch.stack(list(draws.values())).mean(0)}

    def _draw(self, y: Tensor, op: Sense, noise: Tensor) -> Tensor:
        if op.n_coils != self.options.coils:
            raise InputError(
                f"rcGAN as published takes {self.options.coils} coils, got {op.n_coils}",
                fix="use its raw preset, or generator.coils",
            )
        coil_images = torch.view_as_real(ifft(y)).reshape(-1, op.n_coils, *y.shape[-2:], 2).movedim(-1, 2).flatten(1, 2)
        found = self._network(torch.cat([coil_images, noise.expand(len(coil_images), *noise.shape[1:])], 1))
        pairs = found.unflatten(1, (op.n_coils, 2)).movedim(2, -1).to(y.real.dtype).contiguous()
        predicted = torch.where(op.mask, y, fft(torch.view_as_complex(pairs).reshape(y.shape)))
        return (op.maps.conj() * ifft(predicted)).sum(-3)

    def _network(self, x: Tensor) -> Tensor:
        x, crop = pad_to_multiple(x, 2 ** len(self.down))
        return crop(self.head(through_levels(x, self.encode, self.down, self.bottom, self.up, self.decode)))


@dataclass(frozen=True)
class PublishedRcGanDiscriminatorOptions:
    """Options of the published critic: channels of the first level, and levels."""

    width: int = 128
    depth: int = 4


class PublishedRcGanDiscriminator(Discriminator):
    """Critic of candidate and zero-filled image: residual block, then pooling, convolution and instance norm; one score."""

    conditional = True

    def __init__(self, options: PublishedRcGanDiscriminatorOptions = PublishedRcGanDiscriminatorOptions()) -> None:
        super().__init__()
        widths = [options.width * 2**k for k in range(options.depth)]
        w = widths[0]
        self.first = nn.Sequential(nn.Conv2d(4, w, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(w, w, 3, padding=1))
        self.skip = nn.Conv2d(4, w, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.AvgPool2d(2, ceil_mode=True),
                nn.Conv2d(a, b, 3, padding=1),
                nn.GroupNorm(b, b),  # instance norm that takes one pixel too
                nn.LeakyReLU(0.2),
            )
            for a, b in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.last = nn.Conv2d(widths[-1], 1, 1)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of pairs, complex ``(*batch 2 y x)``, and the score ``(n 1)``; `roi` is not used."""
        x = pair(image)
        found = activations(self.layers, F.leaky_relu(self.first(x) + self.skip(x), 0.2))
        return [*found, self.last(found[-1]).mean((2, 3))]


@dataclass(frozen=True)
class PublishedRcGanLosses:
    """Loss weights of the paper: `steps_per_epoch` converts its epochs, at which the adversarial weight falls, to steps."""

    spread: float = 1.0
    adversarial: float = 1e-2
    gradient_penalty: float = 10.0
    drift: float = 0.001
    steps_per_epoch: int = 1000


@dataclass(frozen=True)
class Stairs:
    """Loss weight that falls to 1 % of `first` after 4 epochs of `epoch` steps, and to 0.1 % after 22."""

    first: float
    epoch: int

    def __call__(self, number: int) -> float:
        return self.first * (1.0 if number < 4 * self.epoch else 0.01 if number < 22 * self.epoch else 0.001)


ADAM = Optimiser(LearningRate(1e-3), betas=(0.0, 0.99))


@dataclass(frozen=True)
class PublishedRcGanOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedRcGanGeneratorOptions = PublishedRcGanGeneratorOptions()
    discriminator: PublishedRcGanDiscriminatorOptions = PublishedRcGanDiscriminatorOptions()
    losses: PublishedRcGanLosses = PublishedRcGanLosses()
    g_optimiser: Optimiser = ADAM
    d_optimiser: Optimiser = ADAM
    schedule: Schedule = Schedule(batch_size=9, max_epochs=100)


def published(generator: Generator, options: PublishedRcGanOptions) -> Gan:
    """Assemble rcGAN as published."""
    losses = options.losses
    n = options.generator.training_samples
    draws = tuple(f"sample_{k}" for k in range(n))
    weight = Stairs(losses.adversarial / n, losses.steps_per_epoch)
    g_terms = terms(
        LossTerm("image", 1.0, partial(l1, view=to_channels)),
        LossTerm("spread", losses.spread, partial(spread_reward, relative=False)),
        LossTerm("adversarial", weight, partial(adversarial, kind="wgan", images=draws)),
    )
    weights = AdversarialWeights(losses.adversarial, losses.gradient_penalty, drift=losses.drift, kind="wgan")
    d_terms = discriminator_terms(weights, 1.0, draws)
    critic = PublishedRcGanDiscriminator(options.discriminator)
    return Gan(generator, (critic,), g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


NARROW = {"generator": {"width": 8, "samples": 2}, "discriminator": {"width": 4, "depth": 3}}
PUBLISHED_NARROW = {"generator": {"width": 4, "coils": 1, "samples": 2}, "discriminator": {"width": 4}}
PRESETS = {
    "raw": Preset("rcGAN", RcGanGenerator, raw, RcGanOptions(), NARROW),
    "published": Preset("rcGAN", PublishedRcGanGenerator, published, PublishedRcGanOptions(), PUBLISHED_NARROW),
}
