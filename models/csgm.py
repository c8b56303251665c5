"""CSGM and IAGAN: Bora et al., ICML 2017, arXiv 1703.03208; Hussein, Tirer and Giryes, AAAI 2020, arXiv 1906.05284.

On MRI: Bhadra, Zhou and Anastasio, SPIE 11312 (2020), doi:10.1117/12.2549750.

A generator of images, trained without any k-space. At test time its latent vector is fitted to the acquired samples (CSGM),
then latent vector and weights together (image-adaptive, IAGAN; `fit.adaptation`). No mask, coil array or acceleration is
trained for.

=====================  =========================================================  =============================================
\\                      published                                                  raw (default)
=====================  =========================================================  =============================================
image                  magnitude in [0, 1], 256x256                               complex: magnitude and unit phasor, any matrix
                                                                                  (interpolated from `size`)
generator              progressive GAN's (Karras 2018), latent vector of 512      residual blocks, latent vector of 128
critic                 progressive GAN's, with the spread over the batch          strided convolutions; re, im and magnitude
adversarial            WGAN-GP 10, drift 0.001                                    the same
optimiser              Adam 1e-3, 0, 0.99                                         Adam 2e-4, 0, 0.9
latent stage           5 random starts of 1800 Adam steps, rate 0.1               3 of 150, rate 0.05; factor a solved for
adaptation             300 steps, rates 1e-4 (latent) and 1e-3 (weights)          off; 300 as method ``iagan``, 1e-3 and 3e-4
stop                   none                                                       held-out samples and noise level, in `recon`
data consistency       optional back-projection                                   regularised solve
=====================  ==========================================================  =============================================

Steps and rates published are those of IAGAN's code. CSGM's (500 steps at rate 0.1, 2 starts, penalty 1e-3) are
``generator: {fit: {steps: 500, restarts: 2, penalty: 0.001, adaptation: 0}}``. No text of Bhadra et al. that names steps or a
stopping rule was at hand.

*Not reproduced*: growing during training; the published preset trains at full size from the start. The raw network grows by
``recon train --init``: weights of a smaller `size` are continued by blocks that at first interpolate.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.adversarial import AdversarialWeights, Kind, adversarial, discriminator_terms
from models.parts.consistency import Observation, slice_scale
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.latent import LatentFit, PriorGenerator
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    activations,
    he_initialise,
    magnitude,
    refuse_other_size,
    to_channels,
)

BASE = 4  # side of the first feature map
FULL = 128  # side from which on the raw network has the channels of its `width`
SIZE = 256  # of the published preset


def levels_of(size: int) -> int:
    """Doublings from the first feature map to `size`; ValueError unless it is 4 times a power of two."""
    levels = round(math.log2(size / BASE)) if size >= BASE else -1
    if levels < 1 or BASE * 2**levels != size:
        raise ValueError(f"size must be 8, 16, 32, ...; got {size}")
    return levels


def pixel_norm(x: Tensor) -> Tensor:
    """Features ``(n c y x)`` or ``(n c)`` over the root of their mean square at each position (Karras 2018)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


class Doubling(nn.Module):
    """Residual block that doubles the matrix: interpolation, plus two 3x3 convolutions of it (He 2016)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.last = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)`` to ``(n n_out 2y 2x)``."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        inner = self.first(F.leaky_relu(pixel_norm(x), 0.2))
        inner = self.last(F.leaky_relu(pixel_norm(inner), 0.2))
        skip: Tensor = x if self.skip is None else self.skip(x)
        return skip + inner


@dataclass(frozen=True)
class CsgmGeneratorOptions:
    """Options of the raw generator.

    Parameters
    ----------
    size
        Side of the images; other matrices are interpolated from it.
    latent
        Length of the latent vector.
    width
        Channels where the side is 128 or more, doubled at each coarser level, at most `most`.
    most
        See `width`.
    fit
        How it is fitted to a scan.
    """

    size: int = 128
    latent: int = 128
    width: int = 16
    most: int = 192
    fit: LatentFit = LatentFit()


class CsgmGenerator(PriorGenerator):
    """Residual generator of complex images: softplus magnitude times a unit phasor, so that phase never wraps."""

    homogeneous = True

    def __init__(self, options: CsgmGeneratorOptions = CsgmGeneratorOptions()) -> None:
        super().__init__(options)
        levels = levels_of(options.size)
        sides = [BASE * 2**k for k in range(levels + 1)]
        widths = [min(max(options.width, options.width * FULL // side), options.most) for side in sides]
        self.first = nn.Linear(options.latent, widths[0] * BASE**2)
        self.blocks = nn.ModuleList(Doubling(a, b) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)
        he_initialise(self)
        with torch.no_grad():
            self.head.weight.mul_(0.3)

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        """`slice_scale` of k-space ``(*batch coil ky kx)``: real ``(*batch 1 1)``."""
        return slice_scale(y, op)

    @property
    def n_latent(self) -> int:
        """As the options say."""
        return int(self.options.latent)

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.first, self.blocks, self.head]

    def square(self, z: Tensor) -> Tensor:
        """Images, complex ``(n size size)``, of latent vectors, real ``(n n_latent)``."""
        x = self.first(pixel_norm(z)).unflatten(1, (-1, BASE, BASE))
        for block in self.blocks:
            x = block(x)
        # Complex numbers have no half precision.
        size, cosine, sine = self.head(F.leaky_relu(pixel_norm(x), 0.2)).to(z.dtype).unbind(1)
        phasor = torch.complex(1 + cosine, sine)
        return F.softplus(size) * phasor / (phasor.abs() + 1e-6)

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same network of a smaller size, tensors of any shape, continued to this one's size.

        The first feature map of a larger network is that of the smaller; the blocks that are added interpolate at first. Up to
        a side of `FULL` they have fewer channels than those before, and the last layer starts anew.
        """
        own = self.state_dict()
        found = dict(state)
        known = sum(1 for name in state if name.startswith("blocks.") and name.endswith(".last.weight"))
        for name, x in own.items():
            if name.startswith("blocks.") and int(name.split(".")[1]) >= known:
                found[name] = torch.zeros_like(x) if ".last." in name else x.clone()
            elif name == "head.weight" and name in found and found[name].shape != x.shape:
                found[name] = x.clone()
        return found


def complex_and_magnitude(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to real ``(n 3 y x)``: real and imaginary part and magnitude."""
    return torch.cat([to_channels(image), magnitude(image)], 1)


@dataclass(frozen=True)
class CsgmLosses(AdversarialWeights):
    """Weights of WGAN-GP; there is no other term, since no image belongs to a latent vector."""

    adversarial: float = 1.0
    gradient_penalty: float = 10.0
    drift: float = 0.001
    kind: Kind = "wgan"


@dataclass(frozen=True)
class CsgmOptions:
    """Sections of a configuration of the raw preset."""

    generator: CsgmGeneratorOptions = CsgmGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(width=32, depth=5)
    losses: CsgmLosses = CsgmLosses()
    g_optimiser: Optimiser = Optimiser(LearningRate(2e-4), betas=(0.0, 0.9))
    d_optimiser: Optimiser = Optimiser(LearningRate(2e-4), betas=(0.0, 0.9))
    schedule: Schedule = Schedule(n_discriminator=1, batch_size=8)


def raw(generator: Generator, options: CsgmOptions) -> Gan:
    """Assemble the prior of complex images."""
    critic = PatchDiscriminator(complex_and_magnitude, 3, options.discriminator)
    return _gan(generator, critic, options)


def _gan(generator: Generator, critic: Discriminator, options: CsgmOptions | PublishedCsgmOptions) -> Gan:
    losses = options.losses
    g_terms = terms(LossTerm("adversarial", losses.adversarial, partial(adversarial, kind=losses.kind)))
    d_terms = discriminator_terms(losses, 1.0, ("image",))
    return Gan(generator, (critic,), g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class Equalised(nn.Module):
    """Layer whose weights are standard normal and scaled by He's constant at run time (Karras 2018, section 4.1)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        nn.init.normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        self.layer, self.scale = layer, gain / math.sqrt(layer.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c y x)`` or ``(n c)``, as the layer."""
        weight = self.layer.weight * self.scale
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return F.conv2d(x, weight, self.layer.bias, padding=self.layer.padding)


def _conv(a: int, b: int, kernel: int = 3, gain: float = math.sqrt(2)) -> Equalised:
    return Equalised(nn.Conv2d(a, b, kernel, padding=kernel // 2), gain)


class FirstMap(nn.Module):
    """Latent vector ``(n latent)`` to the first feature map ``(n c 4 4)``, one bias a channel."""

    def __init__(self, latent: int, n: int) -> None:
        super().__init__()
        self.dense = Equalised(nn.Linear(latent, n * BASE**2, bias=False), math.sqrt(2) / BASE)
        self.bias = nn.Parameter(torch.zeros(n, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Real ``(n latent)`` to ``(n c 4 4)``."""
        out: Tensor = self.dense(z).unflatten(1, (-1, BASE, BASE)) + self.bias
        return out


def published_widths(size: int, most: int) -> list[int]:
    """Channels of the progressive GAN at 4, 8, ... `size` pixels: 8192 over the side, at most `most`."""
    return [min(2 * 8192 // (BASE * 2**k), most) for k in range(levels_of(size) + 1)]


@dataclass(frozen=True)
class PublishedCsgmGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    size
        Side of the images.
    latent
        Length of the latent vector.
    most
        Most channels; 512 as published.
    channels
        Of the image: 1 for magnitudes, 3 as published for faces.
    fit
        How it is fitted to a scan: as IAGAN's code.
    """

    size: int = SIZE
    latent: int = 512
    most: int = 512
    channels: int = 1
    fit: LatentFit = LatentFit(
        restarts=5, steps=1800, rate=0.1, adaptation=300, latent_rate=1e-4, weights_rate=1e-3, penalty=0.0, patience=0,
        consistency=False, free_scale=False,
    )  # fmt: skip


class PublishedCsgmGenerator(PriorGenerator):
    """Generator of the progressive GAN (Karras 2018, arXiv 1710.10196) for magnitudes in [0, 1]."""

    homogeneous = False

    def __init__(self, options: PublishedCsgmGeneratorOptions = PublishedCsgmGeneratorOptions()) -> None:
        super().__init__(options)
        widths = published_widths(options.size, options.most)
        self.first = FirstMap(options.latent, widths[0])
        self.second = _conv(widths[0], widths[0])
        self.firsts = nn.ModuleList(_conv(a, b) for a, b in pairwise(widths))
        self.seconds = nn.ModuleList(_conv(b, b) for b in widths[1:])
        self.head = _conv(widths[-1], options.channels, 1, 1.0)

    @property
    def n_latent(self) -> int:
        """512 as published."""
        return int(self.options.latent)

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.first, self.second, self.firsts, self.seconds, self.head]

    def square(self, z: Tensor) -> Tensor:
        """Images, complex ``(n size size)`` with zero phase, of latent vectors, real ``(n n_latent)``."""
        x = self.first(pixel_norm(z))
        x = self._activated(self.second(self._activated(x)))
        for first, second in zip(self.firsts, self.seconds, strict=True):
            x = self._activated(first(F.interpolate(x, scale_factor=2, mode="nearest")))
            x = self._activated(second(x))
        image = (self.head(x)[:, 0].to(z.dtype) + 1) / 2
        return torch.complex(image, torch.zeros_like(image))

    @staticmethod
    def _activated(x: Tensor) -> Tensor:
        return pixel_norm(F.leaky_relu(x, 0.2))

    def observe(self, y: Tensor, op: Sense) -> tuple[Observation, Tensor]:
        """The samples ``(coil ky kx)`` as they are: magnitudes in [0, 1] already."""
        refuse_other_size(op.maps, self.options.size, "CSGM")
        return Observation.of(y, op), torch.ones((*y.shape[:-3], 1, 1), dtype=y.real.dtype, device=y.device)


@dataclass(frozen=True)
class PublishedCsgmDiscriminatorOptions:
    """Options of the published critic: those of the generator that it mirrors."""

    size: int = SIZE
    most: int = 512
    channels: int = 1


class PublishedCsgmDiscriminator(Discriminator):
    """Critic of the progressive GAN: convolutions and 2x2 averages, spread over the batch as a further channel, one score."""

    def __init__(self, options: PublishedCsgmDiscriminatorOptions = PublishedCsgmDiscriminatorOptions()) -> None:
        super().__init__()
        widths = published_widths(options.size, options.most)[::-1]
        self.levels = len(widths)
        self.first = _conv(options.channels, widths[0], 1)
        self.layers = nn.ModuleList(
            nn.Sequential(_conv(a, a), nn.LeakyReLU(0.2), _conv(a, b), nn.LeakyReLU(0.2), nn.AvgPool2d(2))
            for a, b in pairwise(widths)
        )
        n = widths[-1]
        self.last = nn.Sequential(_conv(n + 1, n), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(BASE), nn.Flatten(),
                                  Equalised(nn.Linear(n * BASE**2, n)), nn.LeakyReLU(0.2),
                                  Equalised(nn.Linear(n, 1), 1.0))  # fmt: skip

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of an image, complex ``(*batch y x)``, and the score ``(n 1)``; `roi` is not used."""
        x = F.leaky_relu(self.first(2 * magnitude(image) - 1), 0.2)
        found = activations(self.layers, x)
        x = found[-1]
        spread = x.std(0, correction=0).mean() if len(x) > 1 else x.new_zeros(())
        return [*found, self.last(torch.cat([x, spread.expand(len(x), 1, *x.shape[-2:])], 1))]


@dataclass(frozen=True)
class PublishedCsgmOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedCsgmGeneratorOptions = PublishedCsgmGeneratorOptions()
    discriminator: PublishedCsgmDiscriminatorOptions = PublishedCsgmDiscriminatorOptions()
    losses: CsgmLosses = CsgmLosses()
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-3), betas=(0.0, 0.99))
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-3), betas=(0.0, 0.99))
    schedule: Schedule = Schedule(mask_per="run", batch_size=16)


def published(generator: Generator, options: PublishedCsgmOptions) -> Gan:
    """Assemble the progressive GAN for magnitudes in [0, 1]."""
    return _gan(generator, PublishedCsgmDiscriminator(options.discriminator), options)


FEW = {"restarts": 2, "steps": 4, "check": 2, "adaptation": 2}
NARROW = {"generator": {"size": 32, "latent": 8, "width": 4, "most": 8, "fit": FEW}, "discriminator": {"width": 4, "depth": 3}}
PRESETS = {
    "raw": Preset("CSGM", CsgmGenerator, raw, CsgmOptions(), NARROW),
    "published": Preset(
        "CSGM",
        PublishedCsgmGenerator,
        published,
        PublishedCsgmOptions(),
        {"generator": {"size": 32, "latent": 8, "most": 8, "fit": FEW}, "discriminator": {"size": 32, "most": 8}},
    ),
}
