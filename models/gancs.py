"""GANCS: Mardani, Gong et al., IEEE TMI 38(1):167-179 (2019), doi:10.1109/TMI.2018.2858752; arXiv 1706.00051.

A residual network at full resolution proposes an image, and its projection onto the null space of the sampling, added to what
was measured, is the answer. Least-squares adversarial loss, ramped in after a start on pixels alone.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  2 channels, 256x128, magnitude in [0, 1]                    complex, any matrix, scaled by `slice_scale`
start                  A^H y                                                       regularised SENSE (or A^H y)
network                8 pre-activation blocks, 128 channels; 3,118,978            `blocks` of `width` channels, no batch norm,
                       (paper: 5 post-activation blocks)                           on folded 2x2 pixels (`fold`)
data consistency       x = P_N(G(x0)) + x0, exact replacement                      exact for one coil, else a regularised solve
cascade                `cascades` (paper; 1 in the code)                           `cascades`, 3
critic                 65,785 parameters, mean of a score map of the magnitude     strided convolutions, map of scores
adversarial            least squares, share 1 - f                                  least squares, 0.01 after `hold` steps
image term             L1 of magnitudes, share f (DSSIM, L2 by choice)             error over that of the start
k-space term           share of 1 - f, unnormalised F; 0                           0.1
f                      1 for 2,000 steps, then 0.75 + 1/sqrt(n - 1994), at most 1
optimiser              Adam 1e-5, 0.5; halved every 10,000 steps; simultaneous     Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Paper and code disagree: ``variant`` of generator and critic picks the layers (``paper``: five blocks, three 1x1 convolutions; a
critic without the 3x3 layer of stride 1) and ``variant`` of the losses the weights (``paper``: f tends to 0.975, k-space
term 1). Not reproduced: f above 1 for the nine steps after the switch, a negative adversarial weight.

Batch statistics are used always, at test time too, as the code does: TensorFlow was never told that training was over. The
result of a slice therefore depends on its batch; reconstruct slices one by one. A VGG term is offered (`perceptual`), but no
published form of it is known.

The published preset takes the k-space of a single-coil image whose magnitude lies in [0, 1].
"""
# ruff: noqa: B008 - the default arguments are frozen dataclasses

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.operators import Sense
from models.adversarial import Kind, adversarial, critic, critic_terms
from models.extra import Extra, extra_terms
from models.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Preset, Schedule, Step, terms
from models.layers import (
    BatchStatistics2d,
    Consistency,
    Measurement,
    Norm,
    PatchCritic,
    PatchCriticOptions,
    SameConv2d,
    SameConvTranspose2d,
    Start,
    activations,
    from_channels,
    he_initialise,
    magnitude,
    normalisation,
    pad_to_multiple,
    slice_scale,
    starting_image,
    to_channels,
    zero_last,
)
from models.losses import data_consistency_error, kspace_masked, l1, l2, relative, ssim_map
from models.perceptual import Perceptual, perceptual_term

Variant = Literal["code", "paper"]

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


class Block(nn.Module):
    """``x + conv(act(norm(conv(act(norm(x))))))``, 3x3."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        first = nn.Conv2d(width, width, 3, padding=1)
        self.body = nn.Sequential(normalisation(norm, width), nn.LeakyReLU(0.2), first, normalisation(norm, width))
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.last(F.leaky_relu(self.body(x), 0.2))
        return out


class ResNet(nn.Module):
    """Residual blocks at one resolution, then three 1x1 convolutions: real ``(n 2 y x)`` to the same, any size.

    Squares of `fold` x `fold` pixels are folded into channels: at the same cost the network sees `fold` times as far.
    """

    def __init__(self, width: int, blocks: int, fold: int, norm: Norm) -> None:
        super().__init__()
        self.fold = fold
        self.body = nn.Sequential(nn.Conv2d(2 * fold**2, width, 3, padding=1), *(Block(width, norm) for _ in range(blocks)))
        self.tail = nn.Sequential(nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(width, 2 * fold**2, 1)
        he_initialise(self)
        for module in self.body.modules():
            if isinstance(module, Block):
                # Each block would double the variance; near the identity it does not.
                module.last.weight.data.mul_(0.1)
        zero_last(self.last)

    def forward(self, x: Tensor) -> Tensor:
        x, crop = pad_to_multiple(x, self.fold)
        return crop(F.pixel_shuffle(self.last(self.tail(self.body(F.pixel_unshuffle(x, self.fold)))), self.fold))


class RawGenerator(Generator):
    """A cascade of residual networks on the complex image, each followed by data consistency.

    Parameters
    ----------
    width, blocks, fold
        Channels, residual blocks and folding of each network (`ResNet`); 128, 5 and 1 in the paper.
    cascades
        Number of networks, each with weights of its own.
    norm
        ``none`` or ``instance``; ``batch`` would tie a slice's result to its batch.
    start, start_lamda
        Start from the SENSE solve with this regularisation, or from ``A^H y``. The networks' last layers start at zero, so an
        untrained cascade returns what data consistency makes of it.
    consistency, lamda, learn_lamda
        Data consistency after each network: one coil of unit modulus exactly, others by the solve with `lamda`.
    adapt_lamda
        Let `lamda` depend on the scan's noise, acceleration and kind of mask: see `models.layers.Consistency`.
    tolerance
        Relative residual of all solves.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 5,
        fold: int = 2,
        cascades: int = 3,
        norm: Norm = "none",
        start: Start = "sense",
        start_lamda: float = 0.02,
        consistency: bool = True,
        lamda: float = 0.1,
        learn_lamda: bool = True,
        adapt_lamda: bool = True,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        if min(width, blocks, fold, cascades) < 1:
            raise ValueError("width, blocks, fold and cascades are at least 1")
        self.start, self.start_lamda, self.tolerance = start, start_lamda, tolerance
        self.networks = nn.ModuleList(ResNet(width, blocks, fold, norm) for _ in range(cascades))
        self.consistency = nn.ModuleList(
            Consistency(lamda, learn_lamda, True, tolerance, adapt_lamda) for _ in range(cascades if consistency else 0)
        )

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        return slice_scale(y, op)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``, ``proposal`` (the last network's image before data consistency) and ``image``."""
        measured, scale = Measurement.scaled(y, op)
        start = image = proposal = starting_image(measured, self.start, self.start_lamda, self.tolerance)
        for k, network in enumerate(self.networks):
            image = proposal = image + from_channels(network(to_channels(image)), like=image) * op.support
            if self.consistency:
                image = self.consistency[k](proposal, measured)
        return {"start": start * scale, "proposal": proposal * scale, "image": image * scale}


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 for `hold` steps, then rises linearly to `weight` over as many."""

    weight: float
    hold: int

    def __call__(self, number: int) -> float:
        return self.weight if self.hold == 0 else self.weight * min(1.0, max(0.0, number / self.hold - 1))


@dataclass(frozen=True)
class RawLosses:
    """Weights of the terms; 0 switches one off. The adversarial one is ramped in after `hold` steps on pixels alone."""

    image: float = 1.0
    kspace: float = 0.1
    perceptual: float = 0.0
    adversarial: float = 0.01
    hold: int = 500
    gradient_penalty: float = 0.0
    r1: float = 0.0
    kind: Kind = "lsgan"


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
    """GANCS on complex multi-coil data."""
    plays = 1.0 if losses.adversarial or extra.feature_matching else 0.0
    ramp = Ramp(losses.adversarial, losses.hold) if losses.adversarial else 0.0
    g_terms = terms(
        LossTerm("image", losses.image, relative),
        LossTerm("kspace", losses.kspace, data_consistency_error),
        perceptual_term("perceptual", losses.perceptual, perceptual),
        LossTerm("adversarial", ramp, partial(adversarial, kind=losses.kind)),
    )
    d_terms = critic_terms(plays, losses.kind, losses.gradient_penalty, losses.r1)
    networks = (PatchCritic(magnitude, 1, discriminator),)
    return Gan(generator, networks, g_terms + extra_terms(extra), d_terms, g_optimiser, d_optimiser, schedule)


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class PreActivation(nn.Module):
    """(norm, ReLU, conv) twice, and the input added."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3), BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class PostActivation(nn.Module):
    """(conv, norm, ReLU), (conv, norm), the input added, ReLU."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(n, n, 3, 1e-3), BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3), BatchStatistics2d(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _conv(a: int, b: int, kernel: int, f: float, transposed: bool = False) -> nn.Module:
    """Convolution with a start from the truncated normal distribution of variance ``f / (sqrt(a b) k^2)``."""
    layer = (SameConvTranspose2d if transposed else SameConv2d)(a, b, kernel)
    std = math.sqrt(f / (math.sqrt(a * b) * kernel**2))
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def published_network(variant: Variant, n: int) -> nn.Sequential:
    """Real ``(n 2 y x)`` to the same."""
    layers = [_conv(2, n, 1, 1)]
    if variant == "code":
        for _ in range(4):
            layers += [PreActivation(n), PreActivation(n)]
            layers += [BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1, transposed=True)]
        layers += [_conv(n, n, 3, 2), nn.ReLU()]
    else:
        layers += [*(PostActivation(n) for _ in range(5)), _conv(n, n, 1, 2), nn.ReLU()]
    return nn.Sequential(*layers, _conv(n, n, 1, 2), nn.ReLU(), _conv(n, 2, 1, 1))


class PublishedGenerator(Generator):
    """Network and projection, `cascades` times with weights of their own; `width` is 128 as published."""

    def __init__(self, variant: Variant = "code", cascades: int = 1, width: int = 128) -> None:
        super().__init__()
        self.networks = nn.ModuleList(published_network(variant, width) for _ in range(cascades))

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (A^H y), ``proposal`` (before the last projection) and ``image``."""
        start = image = proposal = op.adjoint(y)
        for network in self.networks:
            proposal = from_channels(network(to_channels(image)), like=image)
            image = data_consistency(proposal, y, op)
        return {"start": start, "proposal": proposal, "image": image}


class PublishedCritic(Discriminator):
    """``2 |x| - 1`` to one unbounded score: the mean of a map."""

    def __init__(self, variant: Variant = "code") -> None:
        super().__init__()
        plan = [(1, 8, 3, 2), (8, 16, 3, 2), (16, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 64, 1, 1)]
        if variant == "paper":
            plan.remove((64, 64, 3, 1))
        self.layers = nn.ModuleList(
            nn.Sequential(SameConv2d(a, b, k, s), BatchStatistics2d(b), nn.ReLU()) for a, b, k, s in plan
        )
        self.last = SameConv2d(64, 1, 1)
        for m in self.modules():
            if isinstance(m, SameConv2d):
                std = math.sqrt(2 / (math.sqrt(m.in_channels * m.out_channels) * m.weight[0, 0].numel()))
                nn.init.trunc_normal_(m.weight, std=std, a=-2 * std, b=2 * std)
                assert m.bias is not None
                nn.init.zeros_(m.bias)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        found = activations(self.layers, 2 * magnitude(image) - 1)
        return [*found, self.last(found[-1]).mean((2, 3))]


def structural_dissimilarity_5x5(step: Step) -> Tensor:
    """``(1 - SSIM) / 2`` of magnitudes on 5x5 windows two pixels apart, with the constants of the code."""
    return (1 - ssim_map(magnitude(step.image), magnitude(step.target), 5, 2, 1e-4, 9e-4).mean()) / 2


@dataclass(frozen=True)
class Share:
    """`factor` times f (or 1 - f): 1 for `hold` steps, then ``end + 1 / sqrt(n - hold + 6)``, at most 1."""

    factor: float
    of_pixels: bool
    end: float
    hold: int

    def __call__(self, number: int) -> float:
        f = 1.0 if number < self.hold else min(1.0, self.end + 1 / math.sqrt(number - self.hold + 6))
        return self.factor * (f if self.of_pixels else 1 - f)


@dataclass(frozen=True)
class PublishedCriticOptions:
    """Whose layers: the code's or the paper's figure."""

    variant: Variant = "code"


@dataclass(frozen=True)
class PublishedLosses:
    """Shares of the terms, named as in the table above.

    Pixels take f: of it `ssim` DSSIM, the rest L1 by `l1` and L2 by ``1 - l1``. The game takes 1 - f: of it `consistency` the
    k-space term (0 wherever the projection is exact), the rest the adversarial one. `end` None: that of the variant.
    """

    variant: Variant = "code"
    l1: float = 1.0
    ssim: float = 0.0
    consistency: float = 0.0
    perceptual: float = 0.0
    hold: int = 2000
    end: float | None = None


def published(
    generator: Generator,
    discriminator: PublishedCriticOptions = PublishedCriticOptions(),
    losses: PublishedLosses = PublishedLosses(),
    perceptual: Perceptual = Perceptual(),
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-5, "step", "step", every=10_000, factor=0.5), betas=(0.5, 0.999)),
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-5, "step", "step", every=10_000, factor=0.5), betas=(0.5, 0.999)),
    schedule: Schedule = Schedule(order="simultaneous", mask_per="run", batch_size=16),
) -> Gan:
    """GANCS as published."""
    end = losses.end if losses.end is not None else (0.75 if losses.variant == "code" else 0.975)

    def share(factor: float, of_pixels: bool) -> Share | float:
        return Share(factor, of_pixels, end, losses.hold) if factor else 0.0

    pixels = 1 - losses.ssim
    # Under the unnormalised transform the mean of squares is H W times larger: here H W is not fixed, so it is in the term.
    kspace_weight = share(losses.consistency, False) if losses.variant == "code" else 1.0
    g_terms = terms(
        LossTerm("image_l1", share(pixels * losses.l1, True), partial(l1, view=magnitude)),
        LossTerm("image_l2", share(pixels * (1 - losses.l1), True), partial(l2, view=magnitude)),
        LossTerm("ssim", share(losses.ssim, True), structural_dissimilarity_5x5),
        LossTerm("kspace", kspace_weight, unnormalised_kspace),
        perceptual_term("perceptual", losses.perceptual, perceptual),
        LossTerm("adversarial", share(1 - losses.consistency, False), partial(adversarial, kind="lsgan")),
    )
    d_terms = terms(LossTerm("critic", 1.0, partial(critic, kind="lsgan")))
    networks = (PublishedCritic(discriminator.variant),)
    return Gan(generator, networks, g_terms, d_terms, g_optimiser, d_optimiser, schedule)


def unnormalised_kspace(step: Step) -> Tensor:
    """``mean |A x - y|^2`` over all entries of k-space under the unnormalised transform."""
    return kspace_masked(step, power=2, over_all=True) * math.prod(step.image.shape[-2:])


PRESETS = {"raw": Preset(RawGenerator, raw), "published": Preset(PublishedGenerator, published)}
