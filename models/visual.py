"""Visual refinement: Seitzer et al., MICCAI 2018, doi:10.1007/978-3-030-00928-1_27; arXiv 1806.11216.

Two stages. A data-consistent cascade is trained with the mean squared error, and frozen. Then a U-Net refines its image with
adversarial, feature-matching and perceptual terms and a penalty on what it adds, and without a pixel loss; its output is
scaled by a learned number that starts at zero.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  2 channels, magnitude in [0, 1], 512x512                    complex, any matrix, scaled by `slice_scale`
cascade                3 blocks of 3 convolutions, no residual sum; 31,302         `chain` U-Nets that correct the start
data consistency       exact, after each block; none after the refinement          after each network and the refinement
refinement             U-Net 32-64-128 on the real part; 920,033, and the scale    U-Net of `refine_width`, `refine_depth`
                       (``variant: paper``: on both channels)
discriminator          27,941,697 parameters, 13x13 logits of the magnitude        strided convolutions, map of logits
first stage            mean squared error                                          error over that of the start
second stage           0.5 adversarial, 1 feature matching, 10 VGG-19, 2 penalty   the same, 0.1 perceptual on `mr` features
optimiser              Adam 2e-4, 0.5                                              Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Both stages are one run: the first `losses.first_stage` steps train the cascade, all further ones the refinement; 0 where the
cascade begins with trained weights. No gradient of the second stage reaches the cascade. The discriminator learns from the
first step on.
Not reproduced: the pool of 80 earlier images for the discriminator, and batches of 20 in the first stage.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.operators import Sense
from models.parts.adversarial import adversarial, discriminator_loss, feature_matching
from models.parts.consistency import Observation
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, terms
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    UNet,
    activations,
    from_channels,
    he_initialise,
    magnitude,
    refuse_other_size,
    to_channels,
)
from models.parts.losses import l2, relative
from models.parts.perceptual import Perceptual, perceptual_term
from models.parts.raw import Cascade, RawGeneratorOptions, RawLosses, RawOptions, assemble, correction

SIZE = 512


@dataclass(frozen=True)
class Stage:
    """Loss weight `weight` in one of the two stages, 0 in the other; the second begins after `first` steps."""

    weight: float | Callable[[int], float]
    first: int
    second: bool

    def __call__(self, number: int) -> float:
        if (number >= self.first) != self.second:
            return 0.0
        return self.weight(number) if callable(self.weight) else self.weight


def in_stages(found: tuple[LossTerm, ...], first: int) -> tuple[LossTerm, ...]:
    """The terms, the one called ``image`` in the first stage of `first` steps, all others in the second."""
    return tuple(replace(term, weight=Stage(term.weight, first, term.name != "image")) for term in found)


def penalty(step: Step) -> Tensor:
    """Mean absolute value of the unscaled output of the refinement, a real scalar."""
    return step.intermediates["added"].abs().mean()


# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class VisualGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, depth, chain
        U-Nets of the cascade (`models.parts.layers.UNet`), and their number.
    refine_width, refine_depth
        The U-Net of the refinement.
    """

    width: int = 24
    depth: int = 3
    chain: int = 2
    refine_width: int = 24
    refine_depth: int = 2

    def __post_init__(self) -> None:
        if self.chain < 1:
            raise ValueError(f"chain must be at least 1; got {self.chain}")


class ScaledUNet(nn.Module):
    """U-Net whose output is scaled by a learned number that starts at zero."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.network = UNet(2, 2, width, depth)
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Unscaled output, real ``(n 2 y x)``, for the input ``(n 2 y x)``."""
        out: Tensor = self.network(x)
        return out


class VisualGenerator(Cascade):
    """Cascade, and a refinement of its detached image, data consistency after it too."""

    def __init__(self, options: VisualGeneratorOptions = VisualGeneratorOptions()) -> None:
        each = options.width, options.depth, options.norm
        super().__init__(options, (UNet(2, 2, *each, zero_init=True) for _ in range(options.chain)))
        self.refinement = ScaledUNet(options.refine_width, options.refine_depth)
        self.final = options.data_consistency(exact=True) if options.consistency else None

    def learned(self) -> list[nn.Module]:
        """The networks of the cascade, and the refinement."""
        return [*super().learned(), self.refinement]

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """As `Cascade.refine`, with ``cascade``, ``added`` (unscaled) and ``image``, complex ``(*batch y x)``."""
        found = super().refine(start, observed)
        cascade = found["image"].detach()
        added = correction(self.refinement, cascade, observed.op)
        image = cascade + self.refinement.factor * added
        if self.final is not None:
            image = self.final(image, observed)
        return {**found, "cascade": cascade, "added": added, "image": image}


@dataclass(frozen=True)
class VisualLosses(RawLosses):
    """Loss weights; 0 switches a term off. `image` applies to every network of the cascade.

    Parameters
    ----------
    first_stage
        Steps that train the cascade, before those that train the refinement.
    feature_matching, penalty
        Weights of these terms of the second stage.
    """

    first_stage: int = 2000
    feature_matching: float = 1.0
    penalty: float = 2.0
    adversarial: float = 0.5


@dataclass(frozen=True)
class VisualOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: VisualGeneratorOptions = VisualGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(spectral=True)
    losses: VisualLosses = VisualLosses()


def raw(generator: Generator, options: VisualOptions) -> Gan:
    """Assemble visual refinement for complex multi-coil data."""
    losses = options.losses
    after = tuple(f"after_{k}" for k in range(options.generator.chain))
    gan = assemble(
        generator,
        options,
        PatchDiscriminator(magnitude, 1, options.discriminator),
        LossTerm("image", losses.image / len(after), partial(relative, images=after)),
        LossTerm("feature_matching", losses.feature_matching, feature_matching),
        LossTerm("penalty", losses.penalty, penalty),
    )
    return replace(gan, g_terms=in_stages(gan.g_terms, losses.first_stage))


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


def recnet_block(width: int) -> nn.Sequential:
    """Three 3x3 convolutions with leaky ReLUs between them, real ``(n 2 y x)`` to the same."""
    layers: list[nn.Module] = []
    for a, b in pairwise([2, width, width, 2]):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.01)]
    block = nn.Sequential(*layers[:-1])
    he_initialise(block, 0.01)
    return block


class EvenConv(nn.Sequential):
    """Convolution 4x4 without bias, reflected edges of 1 and 2 pixels, batch normalisation, leaky ReLU: keeps ``(y x)``."""

    def __init__(self, n_in: int, n_out: int, slope: float = 0.1) -> None:
        conv = nn.Conv2d(n_in, n_out, 4, bias=False)
        nn.init.orthogonal_(conv.weight, math.sqrt(2))
        super().__init__(nn.ReflectionPad2d((1, 2, 1, 2)), conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(slope))


class RefinementUNet(nn.Module):
    """U-Net of three scales, real ``(n 2 y x)`` to ``(n n_out y x)``; y and x multiples of 4, at least 16."""

    def __init__(self, n_out: int, width: int) -> None:
        super().__init__()
        widths = [2, width, 2 * width, 4 * width]
        self.encode = nn.ModuleList(nn.Sequential(EvenConv(a, b), EvenConv(b, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(EvenConv(2 * w, w) for w in (2 * width, width))
        self.decode = nn.ModuleList(nn.Sequential(EvenConv(2 * w, w), EvenConv(w, w)) for w in (2 * width, width))
        self.last = nn.Conv2d(width, n_out, 1)
        nn.init.orthogonal_(self.last.weight, math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n 2 y x)`` to ``(n n_out y x)``."""
        fine = self.encode[0](x)
        middle = self.encode[1](F.max_pool2d(fine, 2))
        x = self.encode[2](F.max_pool2d(middle, 2))
        for up, decode, skip in zip(self.up, self.decode, (middle, fine), strict=True):
            x = decode(torch.cat([skip, up(F.interpolate(x, scale_factor=2, mode="nearest"))], 1))
        out: Tensor = self.last(x)
        return out


@dataclass(frozen=True)
class PublishedVisualGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    variant
        ``code``: the refinement changes the real part, mapped to [-1, 1]; ``paper``: it is added to both channels.
    blocks
        Blocks of the cascade.
    width
        Channels of its convolutions and of the first scale of the refinement.
    """

    variant: Literal["code", "paper"] = "code"
    blocks: int = 3
    width: int = 32


class PublishedVisualGenerator(Generator):
    """RecNet, and the U-Net that refines its detached image; no data consistency after that."""

    homogeneous = False

    def __init__(self, options: PublishedVisualGeneratorOptions = PublishedVisualGeneratorOptions()) -> None:
        super().__init__()
        self.paper = options.variant == "paper"
        self.blocks = nn.ModuleList(recnet_block(options.width) for _ in range(options.blocks))
        self.refinement = RefinementUNet(2 if self.paper else 1, options.width)
        self.factor = nn.Parameter(torch.zeros(1))

    def learned(self) -> list[nn.Module]:
        """All of it."""
        return [self]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled), ``cascade``, ``added`` (unscaled) and ``image``, complex ``(*batch 512 512)``."""
        refuse_other_size(op.maps, SIZE, "visual refinement")
        image = start = op.adjoint(y)
        for block in self.blocks:
            image = data_consistency(from_channels(block(to_channels(image)), like=image), y, op)
        fixed = image.detach()
        out = self.refinement(to_channels(fixed)).to(fixed.real.dtype)
        if self.paper:
            added = from_channels(out, like=fixed)
            refined = fixed + self.factor * added
        else:
            plain = out.reshape(fixed.shape)
            added = torch.complex(plain, torch.zeros_like(plain))
            # Mapped to [-1, 1] and back: a change of 2 spans the range of the real part.
            low, high = fixed.real.aminmax(dim=-1, keepdim=True)
            span = high.amax(-2, keepdim=True) - low.amin(-2, keepdim=True)
            refined = fixed + self.factor * added * (span / 2)
        return {"start": start, "cascade": image, "added": added, "image": refined}


@dataclass(frozen=True)
class PublishedVisualDiscriminatorOptions:
    """Options of the published discriminator: channels of the first level, and the share that dropout removes."""

    width: int = 64
    dropout: float = 0.5


class PublishedVisualDiscriminator(Discriminator):
    """Convolutions 4x4 on the magnitude, with reflected edges, to 13x13 logits of a 512x512 image."""

    def __init__(self, options: PublishedVisualDiscriminatorOptions = PublishedVisualDiscriminatorOptions()) -> None:
        super().__init__()
        w = options.width
        self.layers = nn.ModuleList([nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, w, 4, 2), nn.LeakyReLU(0.2))])
        for level, (a, b) in enumerate(pairwise([w, 2 * w, 4 * w, 8 * w, 16 * w, 16 * w])):
            # The last one keeps the size, which a kernel of four pixels can only do with uneven edges.
            pad, stride = (nn.ReflectionPad2d((1, 2, 1, 2)), 1) if level == 4 else (nn.ReflectionPad2d(1), 2)
            body = [pad, nn.Conv2d(a, b, 4, stride, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
            self.layers.append(nn.Sequential(*body, *([nn.Dropout2d(options.dropout)] if level >= 2 else [])))
        self.layers.append(nn.Conv2d(16 * w, 1, 4))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of an image, complex ``(*batch 512 512)``; `roi` is not used."""
        return activations(self.layers, magnitude(image))


@dataclass(frozen=True)
class PublishedVisualLosses:
    """Published weights; 0 switches a term off.

    `image` counts in the first stage of `first_stage` steps (1,500 epochs of 3,000 images in batches of 20), all others in the
    second. `real_label` is the label of real images for the discriminator.
    """

    image: float = 1.0
    adversarial: float = 0.5
    feature_matching: float = 1.0
    perceptual: float = 10.0
    penalty: float = 2.0
    first_stage: int = 225_000
    real_label: float = 0.9


ADAM = Optimiser(LearningRate(2e-4), betas=(0.5, 0.999))


@dataclass(frozen=True)
class PublishedVisualOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedVisualGeneratorOptions = PublishedVisualGeneratorOptions()
    discriminator: PublishedVisualDiscriminatorOptions = PublishedVisualDiscriminatorOptions()
    losses: PublishedVisualLosses = PublishedVisualLosses()
    perceptual: Perceptual = Perceptual("vgg19", taps=("relu5_4",))
    g_optimiser: Optimiser = ADAM
    d_optimiser: Optimiser = ADAM
    schedule: Schedule = Schedule(order="simultaneous", batch_size=5, max_epochs=575)


def published(generator: Generator, options: PublishedVisualOptions) -> Gan:
    """Assemble visual refinement as published."""
    losses = options.losses
    g_terms = terms(
        LossTerm("image", losses.image, partial(l2, images=("cascade",))),
        LossTerm("feature_matching", losses.feature_matching, feature_matching),
        perceptual_term("perceptual", losses.perceptual, options.perceptual, relative=False),
        LossTerm("penalty", losses.penalty, penalty),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind="non_saturating")),
    )
    d_loss = partial(discriminator_loss, kind="non_saturating", real_label=losses.real_label)
    d_terms = terms(LossTerm("adversarial", 1.0 if losses.adversarial else 0.0, d_loss))
    critic = PublishedVisualDiscriminator(options.discriminator)
    training = options.g_optimiser, options.d_optimiser, options.schedule
    return Gan(generator, (critic,), in_stages(g_terms, losses.first_stage), d_terms, *training)


PRESETS = {
    "raw": Preset(
        "Visual refinement",
        VisualGenerator,
        raw,
        VisualOptions(),
        {"generator": {"width": 8, "refine_width": 4}, "discriminator": {"width": 4}},
    ),
    "published": Preset(
        "Visual refinement",
        PublishedVisualGenerator,
        published,
        PublishedVisualOptions(),
        {"generator": {"width": 4}, "discriminator": {"width": 2}, "losses": {"perceptual": 0.0}},
        SIZE,
    ),
}
