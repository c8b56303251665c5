"""DAGAN: Yang et al., IEEE TMI 37(6):1310-1321 (2018), doi:10.1109/TMI.2017.2785879.

A U-Net removes aliasing; with *refinement learning* it predicts the correction of the zero-filled image. Loss terms on the
image, on k-space and on VGG features, beside the adversarial one. ``losses: {frequency: 0}`` of the published preset is its
predecessor, Yu et al. 2017, arXiv 1705.07137.

======================  ======================================================  ============================================
\\                       published                                               raw (default)
======================  ======================================================  ============================================
image                   magnitude, 1 channel, 256x256, [-1, 1]                  complex, any matrix, scaled by `slice_scale`
input                   2 |A^H y| - 1                                           regularised SENSE (or A^H y)
generator               8 halvings, conv 4x4, batch norm; 98,587,393            U-Net of `width`, `depth`, no batch norm
output                  tanh, or clip(tanh + input) with `refine`               start + network, or network without `refine`
data consistency        none                                                    one soft step at the end (`consistency`)
discriminator           48,141,633 parameters, one logit, batch norm            strided convolutions, map of logits
adversarial             non-saturating                                          the same, 0.01
image term              15 * root NMSE, background counting as -1               error over that of the start, 1
frequency term          0.1 * mean (|F x| - |F t|)^2, unnormalised F            relative L1 of F x - F t, 0.1
perceptual term         0.0025 * VGG-16 (Caffe), after pool4                    relative, `mr` features; 0, YAML: 0.1
optimiser               Adam 1e-4, 0.5; halved every 5 epochs                   Adam 1e-3, cosine
======================  ======================================================  ============================================

Paper and code disagree: ``variant: paper`` takes half the mean squared error of the image and of complex k-space, and 224
pixels for VGG; ``variant: code`` (default) the root NMSE, the moduli of k-space, and 244. Not reproduced: the 8-bit min-max
stretch of the target before VGG, which shows the two branches different intensities.

The published preset takes the k-space of a single-coil image with magnitudes in [0, 1], and returns an image in that range.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.adversarial import adversarial, discriminator_loss
from models.parts.consistency import Observation
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.layers import PatchDiscriminator, PatchOptions, UNet, activations, magnitude, refuse_other_size
from models.parts.losses import frequency, kspace_full, l2, nmse, orthonormal_weight, relative
from models.parts.perceptual import Perceptual, perceptual_term
from models.parts.raw import RawGenerator, RawGeneratorOptions, RawLosses, RawOptions, assemble, correction
from models.parts.tensorflow import BiasedBatchNorm2d, truncated_normal

SIZE = 256

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class DaganGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, depth
        See `models.parts.layers.UNet`.
    refine
        Refinement learning: predict the correction of the starting image. Without it, the image.
    """

    width: int = 32
    depth: int = 3
    refine: bool = True


class DaganGenerator(RawGenerator):
    """U-Net with refinement learning on the complex image, then one step of soft data consistency."""

    options: DaganGeneratorOptions

    def __init__(self, options: DaganGeneratorOptions = DaganGeneratorOptions()) -> None:
        super().__init__(options)
        self.network = UNet(2, 2, options.width, options.depth, options.norm, down="stride", zero_init=options.refine)
        self.consistency = options.data_consistency() if options.consistency else None

    def learned(self) -> list[nn.Module]:
        """The U-Net."""
        return [self.network]

    def last_layers(self) -> list[nn.Module]:
        """That of the U-Net, with refinement learning."""
        return [self.network.last] if self.options.refine else []

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """``network`` (before data consistency) and ``image``, complex ``(*batch y x)``."""
        network = correction(self.network, start, observed.op)
        if self.options.refine:
            network = start + network
        return {"network": network, "image": network if self.consistency is None else self.consistency(network, observed)}


@dataclass(frozen=True)
class DaganLosses(RawLosses):
    """Loss weights; 0 switches a term off.

    Parameters
    ----------
    frequency
        Weight of the k-space term.
    """

    frequency: float = 0.1


@dataclass(frozen=True)
class DaganOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: DaganGeneratorOptions = DaganGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(spectral=True)
    losses: DaganLosses = DaganLosses()


def raw(generator: Generator, options: DaganOptions) -> Gan:
    """Assemble DAGAN for complex multi-coil data."""
    return assemble(
        generator,
        options,
        PatchDiscriminator(magnitude, 1, options.discriminator),
        LossTerm("image", options.losses.image, relative),
        LossTerm("frequency", options.losses.frequency, frequency),
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


@dataclass(frozen=True)
class PublishedDaganGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    refine
        ``unet_refine``: clip(tanh + input, -1, 1). Otherwise ``unet``: tanh.
    width
        Channels of the first level; 64 as published.
    """

    refine: bool = True
    width: int = 64


class PublishedDaganGenerator(Generator):
    """U-Net of the paper: eight halvings of a 256x256 magnitude image and back."""

    homogeneous = False

    def __init__(self, options: PublishedDaganGeneratorOptions = PublishedDaganGeneratorOptions()) -> None:
        super().__init__()
        self.refine = options.refine
        w = options.width
        down = [1, w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w, 8 * w, 8 * w]
        up = [8 * w, 16 * w, 16 * w, 16 * w, 4 * w, 2 * w, w, w]
        self.down = nn.ModuleList()
        for level, (a, b) in enumerate(pairwise(down), start=1):
            norm = nn.Identity() if level in (1, 8) else BiasedBatchNorm2d(b)
            self.down.append(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), norm, nn.LeakyReLU(0.2)))
        self.up = nn.ModuleList()
        before = down[-1]
        for level, b in enumerate(up):
            self.up.append(nn.Sequential(nn.ConvTranspose2d(before, b, 4, 2, 1), BiasedBatchNorm2d(b), nn.ReLU()))
            before = b + down[7 - level] if level < 7 else b
        self.out = nn.Conv2d(before, 1, 1)
        _initialise(self, 0.01)
        nn.init.trunc_normal_(self.out.weight, std=0.02, a=-0.04, b=0.04)

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.down, self.up, self.out]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled) and ``image``, magnitudes in [0, 1] as complex ``(*batch 256 256)``."""
        refuse_other_size(op.maps, SIZE, "DAGAN")
        zero_filled = op.adjoint(y)
        x = 2 * magnitude(zero_filled) - 1
        h, skips = x, []
        for down in self.down:
            h = down(h)
            skips.append(h)
        skips.pop()
        for up in self.up:
            h = up(h)
            if skips:
                h = torch.cat([h, skips.pop()], 1)
        out = torch.tanh(self.out(h))
        if self.refine:
            out = (out + x).clamp(-1, 1)
        image = ((out + 1) / 2).to(zero_filled.real.dtype).reshape(zero_filled.shape)
        return {"start": zero_filled, "image": torch.complex(image, torch.zeros_like(image))}


@dataclass(frozen=True)
class PublishedDaganDiscriminatorOptions:
    """Options of the published discriminator.

    Parameters
    ----------
    width
        Channels of the first level; 64 as published.
    """

    width: int = 64


class PublishedDaganDiscriminator(Discriminator):
    """Discriminator of the paper: a 256x256 magnitude image in [-1, 1] to one logit."""

    def __init__(self, options: PublishedDaganDiscriminatorOptions = PublishedDaganDiscriminatorOptions()) -> None:
        super().__init__()
        w = options.width
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(1, w, 4, 2, 1), nn.LeakyReLU(0.2))]
        for a, b in pairwise([w, 2 * w, 4 * w, 8 * w, 16 * w, 32 * w]):
            layers.append(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), BiasedBatchNorm2d(b), nn.LeakyReLU(0.2)))
        layers.append(_conv_norm(32 * w, 16 * w, 1, act=True))
        layers.append(_conv_norm(16 * w, 8 * w, 1, act=False))
        self.layers = nn.ModuleList(layers)
        self.residual = nn.Sequential(
            _conv_norm(8 * w, 2 * w, 1, act=True),
            _conv_norm(2 * w, 2 * w, 3, act=True),
            _conv_norm(2 * w, 8 * w, 3, act=False),
        )
        self.act = nn.LeakyReLU(0.2)
        self.out = nn.Linear(4 * 4 * 8 * w, 1)
        _initialise(self, 0.02)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=0.02)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of an image, complex ``(*batch 256 256)``, and the logit ``(n 1)``; `roi` is not used."""
        found = activations(self.layers, display(image))
        found[-1] = self.act(found[-1] + self.residual(found[-1]))
        return [*found, self.out(found[-1].flatten(1))]


def _conv_norm(a: int, b: int, kernel: int, act: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), BiasedBatchNorm2d(b)]
    return nn.Sequential(*layers, *([nn.LeakyReLU(0.2)] if act else []))


def _initialise(network: nn.Module, std: float) -> None:
    truncated_normal(network, std)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.02)


def display(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` with magnitudes in [0, 1] to the published representation: ``(n 1 y x)`` in [-1, 1]."""
    return 2 * magnitude(image) - 1


@dataclass(frozen=True)
class PublishedDaganLosses:
    """Published weights: g_alpha, g_beta (under the unnormalised transform), g_gamma and g_adv.

    Parameters
    ----------
    variant
        Form of the terms: that of the code or of the paper.
    image, frequency, perceptual, adversarial
        Weights; 0 switches a term off.
    """

    variant: Literal["code", "paper"] = "code"
    image: float = 15.0
    frequency: float = 0.1
    perceptual: float = 0.0025
    adversarial: float = 1.0


HALVED = Optimiser(LearningRate(1e-4, "step", every=5, factor=0.5), betas=(0.5, 0.999))


@dataclass(frozen=True)
class PublishedDaganOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedDaganGeneratorOptions = PublishedDaganGeneratorOptions()
    discriminator: PublishedDaganDiscriminatorOptions = PublishedDaganDiscriminatorOptions()
    losses: PublishedDaganLosses = PublishedDaganLosses()
    perceptual: Perceptual = Perceptual("vgg16_caffe", taps=("pool4",))
    g_optimiser: Optimiser = HALVED
    d_optimiser: Optimiser = HALVED
    schedule: Schedule = Schedule(mask_per="run", batch_size=25, max_epochs=9999, patience=10)


def published(generator: Generator, options: PublishedDaganOptions) -> Gan:
    """Assemble DAGAN as published."""
    losses, perceptual = options.losses, options.perceptual
    code = losses.variant == "code"
    if perceptual.size is None:
        perceptual = replace(perceptual, size=244 if code else 224)
    half = 1.0 if code else 0.5
    image_error = partial(nmse, view=display, squared=False) if code else partial(l2, view=display)
    g_terms = terms(
        LossTerm("image", half * losses.image, image_error),
        LossTerm(
            "frequency",
            half * orthonormal_weight(losses.frequency, (SIZE, SIZE), 2),
            partial(kspace_full, power=2, magnitudes=code, view=magnitude),
        ),
        perceptual_term("perceptual", losses.perceptual, perceptual, relative=False),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind="non_saturating")),
    )
    d_loss = partial(discriminator_loss, kind="non_saturating")
    d_terms = terms(LossTerm("adversarial", 1.0 if losses.adversarial else 0.0, d_loss))
    networks = (PublishedDaganDiscriminator(options.discriminator),)
    return Gan(generator, networks, g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


NARROW = {"generator": {"width": 4}, "discriminator": {"width": 4}, "losses": {"perceptual": 0.0}}
PRESETS = {
    "raw": Preset("DAGAN", DaganGenerator, raw, DaganOptions(), {**NARROW, "generator": {"width": 8}}, convention="dagan"),
    "published": Preset("DAGAN", PublishedDaganGenerator, published, PublishedDaganOptions(), NARROW, SIZE, "dagan"),
}
