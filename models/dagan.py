"""DAGAN: Yang et al., IEEE TMI 37(6):1310-1321 (2018), doi:10.1109/TMI.2017.2785879.

A U-Net removes aliasing; with *refinement learning* it predicts what to add to the zero-filled image. Loss terms on the image,
on k-space and on VGG features, beside the adversarial one. ``losses: {frequency: 0}`` of the published preset is its
predecessor, Yu et al. 2017, arXiv 1705.07137.

======================  ======================================================  ============================================
\\                       published                                               raw (default)
======================  ======================================================  ============================================
image                   magnitude, 1 channel, 256x256, [-1, 1]                  complex, any matrix, scaled by `slice_scale`
input                   2 |A^H y| - 1                                           regularised SENSE (or A^H y)
generator               8 halvings, conv 4x4, batch norm; 98,587,393            U-Net of `width`, `depth`, no batch norm
output                  tanh, or clip(tanh + input) with `refine`               start + network, or network without `refine`
data consistency        none                                                    one soft step at the end (`consistency`)
critic                  48,141,633 parameters, one logit, batch norm            strided convolutions, map of logits
adversarial             non-saturating                                          the same, 0.01
image term              15 * root NMSE, background counting as -1               error over that of the start, 1
frequency term          0.1 * mean (|F x| - |F t|)^2, unnormalised F            relative L1 of F x - F t, 0.1
perceptual term         0.0025 * VGG-16 (Caffe), after pool4                    relative, `mr` features; 0, YAML: 0.1
optimiser               Adam 1e-4, 0.5; halved every 5 epochs                   Adam 1e-3, cosine
======================  ======================================================  ============================================

Paper and code disagree: ``variant: paper`` takes half the mean squared error of the image and of complex k-space, and 224
pixels for VGG; ``variant: code`` (default) the root NMSE, the moduli of k-space, and 244. Not reproduced: the 8-bit min-max
stretch of the target before VGG, which shows the two branches different intensities.

The published preset takes the k-space of a single-coil image whose magnitude lies in [0, 1] and answers on that range.
"""
# ruff: noqa: B008 - the default arguments are frozen dataclasses

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from kspace.operators import Sense
from models.adversarial import Kind, adversarial, critic, critic_terms
from models.extra import Extra, extra_terms
from models.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Preset, Schedule, terms
from models.layers import (
    BiasedBatchNorm2d,
    Consistency,
    Measurement,
    Norm,
    PatchCritic,
    PatchCriticOptions,
    Start,
    UNet,
    activations,
    from_channels,
    magnitude,
    refuse_other_size,
    slice_scale,
    starting_image,
    to_channels,
    truncated_normal,
)
from models.losses import frequency, kspace_full, l2, nmse, orthonormal_weight, relative
from models.perceptual import Perceptual, perceptual_term

SIZE = 256

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


class RawGenerator(Generator):
    """U-Net with refinement learning on the complex image, then one soft data-consistency step.

    Parameters
    ----------
    width, depth, norm
        See `models.layers.UNet`. ``batch`` would tie a slice's result to its batch.
    refine
        Predict what to add to the starting image. The last layer then starts at zero, so that an untrained network returns the
        starting image.
    start, start_lamda
        Start from the SENSE solve with this regularisation, or from ``A^H y``.
    consistency, lamda, learn_lamda
        End in ``(A^H A + lamda I) x = A^H y + lamda z``, z being the network's image.
    adapt_lamda
        Let `lamda` depend on the scan's noise, acceleration and kind of mask: see `models.layers.Consistency`.
    tolerance
        Relative residual of both solves.
    """

    def __init__(
        self,
        width: int = 32,
        depth: int = 3,
        norm: Norm = "none",
        refine: bool = True,
        start: Start = "sense",
        start_lamda: float = 0.02,
        consistency: bool = True,
        lamda: float = 0.1,
        learn_lamda: bool = True,
        adapt_lamda: bool = True,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.refine, self.start, self.start_lamda, self.tolerance = refine, start, start_lamda, tolerance
        self.network = UNet(2, 2, width, depth, norm, down="stride", zero_init=refine)
        self.consistency = Consistency(lamda, learn_lamda, tolerance=tolerance, adapt=adapt_lamda) if consistency else None

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        return slice_scale(y, op)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``, ``network`` (before data consistency) and ``image``."""
        measured, scale = Measurement.scaled(y, op)
        start = starting_image(measured, self.start, self.start_lamda, self.tolerance)
        network = from_channels(self.network(to_channels(start)), like=start) * op.support
        if self.refine:
            network = start + network
        image = network if self.consistency is None else self.consistency(network, measured)
        return {"start": start * scale, "network": network * scale, "image": image * scale}


@dataclass(frozen=True)
class RawLosses:
    """Weights of the terms; 0 switches one off. `kind` is the adversarial loss, the penalties weigh against the critic's."""

    image: float = 1.0
    frequency: float = 0.1
    perceptual: float = 0.0
    adversarial: float = 0.01
    gradient_penalty: float = 0.0
    r1: float = 0.0
    kind: Kind = "non_saturating"


def raw(
    generator: Generator,
    discriminator: PatchCriticOptions = PatchCriticOptions(spectral=True),
    losses: RawLosses = RawLosses(),
    perceptual: Perceptual = Perceptual(),
    extra: Extra = Extra(),
    g_optimiser: Optimiser = Optimiser(),
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.5, 0.999)),
    schedule: Schedule = Schedule(),
) -> Gan:
    """DAGAN on complex multi-coil data."""
    plays = 1.0 if losses.adversarial or extra.feature_matching else 0.0
    g_terms = terms(
        LossTerm("image", losses.image, relative),
        LossTerm("frequency", losses.frequency, frequency),
        perceptual_term("perceptual", losses.perceptual, perceptual),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind=losses.kind)),
    )
    d_terms = critic_terms(plays, losses.kind, losses.gradient_penalty, losses.r1)
    networks = (PatchCritic(magnitude, 1, discriminator),)
    return Gan(generator, networks, g_terms + extra_terms(extra), d_terms, g_optimiser, d_optimiser, schedule)


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class PublishedGenerator(Generator):
    """The U-Net of the paper: eight halvings of a 256x256 magnitude image and back.

    Parameters
    ----------
    refine
        ``unet_refine``: clip(tanh + input, -1, 1). Otherwise ``unet``: tanh.
    width
        Channels of the first level; 64 as published.
    """

    def __init__(self, refine: bool = True, width: int = 64) -> None:
        super().__init__()
        self.refine = refine
        w = width
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

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled) and ``image``, magnitudes in [0, 1] as complex images."""
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


class PublishedCritic(Discriminator):
    """The critic of the paper: a 256x256 magnitude image in [-1, 1] to one logit."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
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
    """Complex ``(*batch y x)`` with magnitudes in [0, 1] to what the paper computes on: ``(n 1 y x)`` in [-1, 1]."""
    return 2 * magnitude(image) - 1


@dataclass(frozen=True)
class PublishedCriticOptions:
    """Channels of the first level; 64 as published."""

    width: int = 64


@dataclass(frozen=True)
class PublishedLosses:
    """Published weights (g_alpha, g_beta under the unnormalised transform, g_gamma, g_adv), and which form the terms take."""

    variant: Literal["code", "paper"] = "code"
    image: float = 15.0
    frequency: float = 0.1
    perceptual: float = 0.0025
    adversarial: float = 1.0


def published(
    generator: Generator,
    discriminator: PublishedCriticOptions = PublishedCriticOptions(),
    losses: PublishedLosses = PublishedLosses(),
    perceptual: Perceptual = Perceptual("vgg16_caffe", taps=("pool4",)),
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-4, "step", every=5, factor=0.5), betas=(0.5, 0.999)),
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4, "step", every=5, factor=0.5), betas=(0.5, 0.999)),
    schedule: Schedule = Schedule(mask_per="run", batch_size=25, max_epochs=9999, patience=10),
) -> Gan:
    """DAGAN as published."""
    code = losses.variant == "code"
    if perceptual.size is None:
        perceptual = Perceptual(perceptual.features, perceptual.weights, perceptual.taps, 244 if code else 224)
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
    d_terms = terms(LossTerm("critic", 1.0 if losses.adversarial else 0.0, partial(critic, kind="non_saturating")))
    networks = (PublishedCritic(discriminator.width),)
    return Gan(generator, networks, g_terms, d_terms, g_optimiser, d_optimiser, schedule)


PRESETS = {"raw": Preset(RawGenerator, raw), "published": Preset(PublishedGenerator, published)}
