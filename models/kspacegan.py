"""k-space GAN: Shitrit and Riklin Raviv, DLMIA 2017, doi:10.1007/978-3-319-67558-9_5; dual-domain form: Shaul et al.,
Medical Image Analysis 65:101747 (2020), doi:10.1016/j.media.2020.101747.

The generator acts on k-space and predicts the samples that were not acquired; acquired ones stay. The discriminator judges the
image. The dual-domain form continues with a network on the image.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  magnitude in [0, 1], 256x256                                complex, any matrix, scaled by `slice_scale`
k-space                of one coil; unsampled entries hold noise of +-0.01         of the combined image, times a `ramp`
network on k-space     U-Net, 2 channels to 2, batch norm, bilinear upsampling     U-Net of `width`, `depth`, no batch norm
data consistency       exact replacement after the first network                   after each network
network on the image   U-Net on the magnitude (`dual`)                             U-Net on the complex image (`domains`)
discriminator          patches of the central 128x128, batch norm                  strided convolutions, map of scores
adversarial            non-saturating, 0.1                                         non-saturating, 0.01
terms                  1000 MSE after the first network, 1000 smooth L1 of the     error over that of the start after each
                       result, 5 on the missing samples                            network, relative L1 of k-space 0.1
optimiser              Adam 1e-3 and 2e-3, 0.5                                     Adam 1e-3, cosine
=====================  ==========================================================  =============================================

The authors of 2017 published no code; the published preset follows the description of 2020, for one slice instead of three
neighbouring ones. ``generator: {dual: false}`` with ``losses: {middle: 0, image: 0}`` leaves adversarial and k-space term,
as in 2017. Not reproduced: the pause of the discriminator where it is ahead, and learning rates that fall on a plateau.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.fourier import fft, ifft
from kspace.operators import Sense
from models.parts.adversarial import adversarial, discriminator_loss
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, terms
from models.parts.layers import (
    DoubleConv,
    PatchDiscriminator,
    PatchOptions,
    UNet,
    activations,
    from_channels,
    magnitude,
    refuse_other_size,
    to_channels,
)
from models.parts.losses import frequency, l2, relative
from models.parts.raw import Cascade, RawGeneratorOptions, RawLosses, RawOptions, assemble

SIZE = 256
Domain = Literal["kspace", "image"]

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


def ramp(shape: Sequence[int], like: Tensor, floor: float = 0.05) -> Tensor:
    """Weight ``sqrt(r^2 + floor^2)`` of k-space, real ``(ky kx)``; r is the radius, 0.5 at the edge of each axis.

    Images have spectra that fall about as 1/r: so weighted, samples near the centre and far from it have similar sizes.
    """
    ky, kx = ((torch.arange(n, device=like.device) - n // 2) / n for n in shape)
    return (ky[:, None].square() + kx.square() + floor**2).sqrt()


class InKspace(nn.Module):
    """Network applied to the k-space of an image, times `ramp`, and back: real ``(n 2 y x)`` to the same."""

    def __init__(self, body: UNet) -> None:
        super().__init__()
        self.body = body

    @property
    def last(self) -> nn.Module:
        """Last layer of the network."""
        return self.body.last

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n 2 y x)``, any size, to the same."""
        image = torch.view_as_complex(x.float().movedim(1, -1).contiguous())
        weight = ramp(x.shape[-2:], x)
        k = from_channels(self.body(to_channels(fft(image) * weight)), like=image)
        return to_channels(ifft(k / weight))


@dataclass(frozen=True)
class KspaceGanGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, depth
        See `models.parts.layers.UNet`.
    domains
        What each network of the chain acts on, ``kspace`` or ``image``; ``[kspace]`` is the form of 2017.
    """

    width: int = 24
    depth: int = 3
    domains: tuple[Domain, ...] = ("kspace", "image")

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains must name at least one network")


class KspaceGanGenerator(Cascade):
    """Chain of networks on k-space or on the image, data consistency after each."""

    def __init__(self, options: KspaceGanGeneratorOptions = KspaceGanGeneratorOptions()) -> None:
        each = options.width, options.depth, options.norm
        networks = ((domain, UNet(2, 2, *each, zero_init=True)) for domain in options.domains)
        super().__init__(options, (InKspace(body) if domain == "kspace" else body for domain, body in networks))


@dataclass(frozen=True)
class KspaceGanLosses(RawLosses):
    """Loss weights; 0 switches a term off. `image` applies to the output of every network.

    Parameters
    ----------
    kspace
        Weight of the relative L1 error of k-space.
    """

    kspace: float = 0.1


@dataclass(frozen=True)
class KspaceGanOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: KspaceGanGeneratorOptions = KspaceGanGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(spectral=True)
    losses: KspaceGanLosses = KspaceGanLosses()


def raw(generator: Generator, options: KspaceGanOptions) -> Gan:
    """Assemble the k-space GAN for complex multi-coil data."""
    losses = options.losses
    after = tuple(f"after_{k}" for k in range(len(options.generator.domains)))
    critic = PatchDiscriminator(magnitude, 1, options.discriminator)
    image = LossTerm("image", losses.image / len(after), partial(relative, images=after))
    return assemble(generator, options, critic, image, LossTerm("kspace", losses.kspace, frequency))


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class BilinearUNet(nn.Module):
    """U-Net of five levels with maximum pooling, bilinear upsampling and batch normalisation.

    Real ``(n n_in y x)`` to ``(n n_out y x)``, y and x multiples of 16.
    """

    def __init__(self, n_in: int, n_out: int, width: int) -> None:
        super().__init__()
        down = [n_in, width, 2 * width, 4 * width, 8 * width, 8 * width]
        up = [8 * width, 4 * width, 2 * width, width, width]
        self.encode = nn.ModuleList(DoubleConv(a, b, "batch") for a, b in pairwise(down))
        skips = reversed(down[1:-1])
        self.decode = nn.ModuleList(DoubleConv(a + skip, b, "batch") for (a, b), skip in zip(pairwise(up), skips, strict=True))
        self.last = nn.Conv2d(width, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)`` to ``(n n_out y x)``."""
        skips: list[Tensor] = []
        for encode in self.encode:
            x = encode(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for decode in self.decode:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = decode(torch.cat([x, skips.pop()], 1))
        out: Tensor = self.last(x)
        return out


@dataclass(frozen=True)
class PublishedKspaceGanGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    dual
        Continue with a network on the magnitude (2020); without it the form of 2017.
    width
        Channels of the first level.
    fill
        Bound of the uniform noise that unsampled entries hold in training.
    """

    dual: bool = True
    width: int = 32
    fill: float = 0.01


class PublishedKspaceGanGenerator(Generator):
    """Network on k-space, replacement of the acquired samples, and network on the magnitude."""

    homogeneous = False

    def __init__(self, options: PublishedKspaceGanGeneratorOptions = PublishedKspaceGanGeneratorOptions()) -> None:
        super().__init__()
        self.fill = options.fill
        self.predict = BilinearUNet(2, 2, options.width)
        self.enhance = BilinearUNet(1, 1, options.width) if options.dual else None

    def learned(self) -> list[nn.Module]:
        """Both networks."""
        return [self.predict] if self.enhance is None else [self.predict, self.enhance]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled), ``middle`` (after the samples were replaced) and ``image``, complex ``(*batch 256 256)``."""
        refuse_other_size(op.maps, SIZE, "the k-space GAN")
        start = op.adjoint(y)
        channels = to_channels(fft(start))
        if self.training:
            noise = self.fill * (2 * torch.rand_like(channels) - 1)
            missing = ~op.mask.expand(*start.shape[:-2], 1, *start.shape[-2:]).reshape(-1, 1, *start.shape[-2:])
            channels = channels + noise * missing
        predicted = ifft(from_channels(self.predict(channels), like=start))
        middle = data_consistency(predicted, y, op)
        found = {"start": start, "predicted": predicted, "middle": middle}
        if self.enhance is None:
            return {**found, "image": middle}
        size = magnitude(middle)
        image = (torch.tanh(self.enhance(size)).to(size.dtype) + size).clamp(0, 1).reshape(start.shape)
        return {**found, "image": torch.complex(image, torch.zeros_like(image))}


@dataclass(frozen=True)
class PublishedKspaceGanDiscriminatorOptions:
    """Options of the published discriminator: channels of the first level, and side of the central square that it sees."""

    width: int = 64
    crop: int = 128


class PublishedKspaceGanDiscriminator(Discriminator):
    """Pairs of 3x3 convolutions, the second of stride 2, on the centre of the magnitude, to a map of logits."""

    def __init__(self, options: PublishedKspaceGanDiscriminatorOptions = PublishedKspaceGanDiscriminatorOptions()) -> None:
        super().__init__()
        self.crop, w = options.crop, options.width
        plan = [(1, w, 1), (w, w, 2), (w, 2 * w, 1), (2 * w, 2 * w, 2), (2 * w, 4 * w, 1), (4 * w, 4 * w, 2), (4 * w, 8 * w, 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)) for a, b, stride in plan
        )
        self.layers.append(nn.Conv2d(8 * w, 1, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of the centre of an image, complex ``(*batch y x)``; `roi` is not used."""
        shown = magnitude(image)
        top, left = ((n - self.crop) // 2 for n in shown.shape[-2:])
        return activations(self.layers, shown[..., top : top + self.crop, left : left + self.crop])


def missing_samples(step: Step, name: str = "predicted") -> Tensor:
    """Squared error of k-space over the samples not acquired: sum over their number times the largest ``|F target|``.

    A real scalar; `name` is an intermediate, complex ``(*batch y x)``.
    """
    wanted = fft(step.target)
    missing = ~step.op.mask.expand(*wanted.shape[:-2], 1, *wanted.shape[-2:])[..., 0, :, :]
    error = torch.view_as_real((fft(step.intermediates[name]) - wanted).resolve_conj()).square().sum(-1) * missing
    peak = wanted.abs().amax((-2, -1))
    peak = torch.where(peak > 0, peak, 1)
    return (error.sum((-2, -1)) / (missing.sum((-2, -1)).clamp(min=1) * peak)).mean()


def smooth_l1(step: Step) -> Tensor:
    """Smooth L1 error of the magnitude (Girshick 2015, doi:10.1109/ICCV.2015.169), a real scalar."""
    return F.smooth_l1_loss(magnitude(step.image), magnitude(step.target))


@dataclass(frozen=True)
class PublishedKspaceGanLosses:
    """Weights of 2020; 0 switches a term off. `middle`: squared error after the first network; `image`: that of the result."""

    image: float = 1000.0
    middle: float = 1000.0
    kspace: float = 5.0
    adversarial: float = 0.1


@dataclass(frozen=True)
class PublishedKspaceGanOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedKspaceGanGeneratorOptions = PublishedKspaceGanGeneratorOptions()
    discriminator: PublishedKspaceGanDiscriminatorOptions = PublishedKspaceGanDiscriminatorOptions()
    losses: PublishedKspaceGanLosses = PublishedKspaceGanLosses()
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-3), betas=(0.5, 0.999))
    d_optimiser: Optimiser = Optimiser(LearningRate(2e-3), betas=(0.5, 0.999))
    schedule: Schedule = Schedule(mask_per="run", batch_size=32, max_epochs=50)


def published(generator: Generator, options: PublishedKspaceGanOptions) -> Gan:
    """Assemble the k-space GAN as published."""
    losses = options.losses
    g_terms = terms(
        LossTerm("image", losses.image, smooth_l1),
        LossTerm("middle", losses.middle, partial(l2, view=magnitude, images=("middle",))),
        LossTerm("kspace", losses.kspace, missing_samples),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind="non_saturating")),
    )
    half = 0.5 if losses.adversarial else 0.0
    d_terms = terms(LossTerm("adversarial", half, partial(discriminator_loss, kind="non_saturating")))
    critics = (PublishedKspaceGanDiscriminator(options.discriminator),)
    return Gan(generator, critics, g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


NARROW = {"generator": {"width": 4}, "discriminator": {"width": 4}}
PRESETS = {
    "raw": Preset(
        "k-space GAN", KspaceGanGenerator, raw, KspaceGanOptions(), {"generator": {"width": 8}, "discriminator": {"width": 4}}
    ),
    "published": Preset("k-space GAN", PublishedKspaceGanGenerator, published, PublishedKspaceGanOptions(), NARROW, SIZE),
}
