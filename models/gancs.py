"""GANCS: Mardani, Gong et al., IEEE TMI 38(1):167-179 (2019), doi:10.1109/TMI.2018.2858752; arXiv 1706.00051.

A residual network at full resolution proposes an image; its projection onto the null space of the sampling, plus the measured
samples, is the result. Least-squares adversarial loss, ramped in after a phase of pixel losses alone.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  2 channels, 256x128, magnitude in [0, 1]                    complex, any matrix, scaled by `slice_scale`
start                  A^H y                                                       regularised SENSE (or A^H y)
network                8 pre-activation blocks, 128 channels; 3,118,978            `blocks` of `width` channels, no batch norm,
                       (paper: 5 post-activation blocks)                           on folded 2x2 pixels (`fold`)
data consistency       x = P_N(G(x0)) + x0, exact replacement                      exact for one coil, else a regularised solve
cascade                `cascades` (paper; 1 in the code)                           `cascades`, 3
discriminator          65,785 parameters, mean of a score map of the magnitude     strided convolutions, map of scores
adversarial            least squares, share 1 - f                                  least squares, 0.01 after `hold` steps
image term             L1 of magnitudes, share f (DSSIM, L2 by choice)             error over that of the start
k-space term           share of 1 - f, unnormalised F; 0                           0.1
f                      1 for 2,000 steps, then 0.75 + 1/sqrt(n - 1994), at most 1
optimiser              Adam 1e-5, 0.5; halved every 10,000 steps; simultaneous     Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Paper and code disagree: ``variant`` of generator and discriminator picks the layers (``paper``: five blocks, three 1x1
convolutions; a discriminator without the 3x3 layer of stride 1) and ``variant`` of the losses the weights (``paper``: f tends
to 0.975, k-space term 1). Not reproduced: f above 1 for the nine steps after the switch, a negative adversarial weight.

As in the code, normalisation uses batch statistics at test time too: ``is_training`` was never set to False. The result of a
slice therefore depends on its batch; reconstruct slices one by one. A VGG term is offered (`perceptual`), but no
published form of it is known.

The published preset takes the k-space of a single-coil image with magnitudes in [0, 1].
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.operators import Sense
from models.parts.adversarial import Kind, adversarial, discriminator_loss
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, terms
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    ResNet,
    activations,
    from_channels,
    magnitude,
    to_channels,
)
from models.parts.losses import data_consistency_error, kspace_masked, l1, l2, relative, ssim_map
from models.parts.perceptual import Perceptual, perceptual_term
from models.parts.raw import Cascade, RawGeneratorOptions, RawLosses, RawOptions, assemble
from models.parts.tensorflow import BatchStatistics2d, SameConv2d, SameConvTranspose2d

Variant = Literal["code", "paper"]

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class GancsGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, blocks, fold
        Channels, residual blocks and folding of each network (`ResNet`); 128, 5 and 1 in the paper.
    cascades
        Number of networks with separate weights.
    """

    width: int = 64
    blocks: int = 5
    fold: int = 2
    cascades: int = 3

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.fold, self.cascades) < 1:
            raise ValueError("width, blocks, fold and cascades must be at least 1")


class GancsGenerator(Cascade):
    """Cascade of residual networks on the complex image, each followed by data consistency."""

    def __init__(self, options: GancsGeneratorOptions = GancsGeneratorOptions()) -> None:
        each = options.width, options.blocks, options.fold, options.norm
        super().__init__(options, (ResNet(*each) for _ in range(options.cascades)))


@dataclass(frozen=True)
class Ramp:
    """Loss weight that is 0 for `hold` steps, then rises linearly to `weight` over as many."""

    weight: float
    hold: int

    def __call__(self, number: int) -> float:
        return self.weight if self.hold == 0 else self.weight * min(1.0, max(0.0, number / self.hold - 1))


@dataclass(frozen=True)
class GancsLosses(RawLosses):
    """Loss weights; 0 switches a term off.

    Parameters
    ----------
    kspace
        Weight of the relative residual of the data.
    hold
        Steps on the other terms alone, after which the adversarial weight rises over as many steps.
    """

    kspace: float = 0.1
    hold: int = 500
    kind: Kind = "lsgan"


@dataclass(frozen=True)
class GancsOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: GancsGeneratorOptions = GancsGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(spectral=True)
    losses: GancsLosses = GancsLosses()


def raw(generator: Generator, options: GancsOptions) -> Gan:
    """Assemble GANCS for complex multi-coil data."""
    losses = options.losses
    return assemble(
        generator,
        options,
        PatchDiscriminator(magnitude, 1, options.discriminator),
        LossTerm("image", losses.image, relative),
        LossTerm("kspace", losses.kspace, data_consistency_error),
        weight=Ramp(losses.adversarial, losses.hold) if losses.adversarial else 0.0,
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class PreActivation(nn.Module):
    """Residual block: (norm, ReLU, conv) twice, plus the input."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3), BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c y x)`` to the same."""
        out: Tensor = x + self.body(x)
        return out


class PostActivation(nn.Module):
    """Residual block: (conv, norm, ReLU), (conv, norm), plus the input, ReLU."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(n, n, 3, 1e-3), BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1e-3), BatchStatistics2d(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c y x)`` to the same."""
        return F.relu(x + self.body(x))


def _conv(a: int, b: int, kernel: int, f: float, transposed: bool = False) -> nn.Module:
    """Convolution with initial weights from the truncated normal distribution of variance ``f / (sqrt(a b) k^2)``."""
    layer = (SameConvTranspose2d if transposed else SameConv2d)(a, b, kernel)
    std = math.sqrt(f / (math.sqrt(a * b) * kernel**2))
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def published_network(variant: Variant, n: int) -> nn.Sequential:
    """Published network of `n` channels, real ``(n 2 y x)`` to the same."""
    layers = [_conv(2, n, 1, 1)]
    if variant == "code":
        for _ in range(4):
            layers += [PreActivation(n), PreActivation(n)]
            layers += [BatchStatistics2d(n), nn.ReLU(), _conv(n, n, 3, 1, transposed=True)]
        layers += [_conv(n, n, 3, 2), nn.ReLU()]
    else:
        layers += [*(PostActivation(n) for _ in range(5)), _conv(n, n, 1, 2), nn.ReLU()]
    return nn.Sequential(*layers, _conv(n, n, 1, 2), nn.ReLU(), _conv(n, 2, 1, 1))


@dataclass(frozen=True)
class PublishedGancsGeneratorOptions:
    """Options of the published generator: layers of code or paper, number of networks and projections, and channels."""

    variant: Variant = "code"
    cascades: int = 1
    width: int = 128


class PublishedGancsGenerator(Generator):
    """Network and projection, `cascades` times."""

    homogeneous = False

    def __init__(self, options: PublishedGancsGeneratorOptions = PublishedGancsGeneratorOptions()) -> None:
        super().__init__()
        self.networks = nn.ModuleList(published_network(options.variant, options.width) for _ in range(options.cascades))

    def learned(self) -> list[nn.Module]:
        """The networks."""
        return list(self.networks)

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (A^H y), ``proposal`` (before the last projection) and ``image``, complex ``(*batch y x)``."""
        start = image = proposal = op.adjoint(y)
        for network in self.networks:
            proposal = from_channels(network(to_channels(image)), like=image)
            image = data_consistency(proposal, y, op)
        return {"start": start, "proposal": proposal, "image": image}


@dataclass(frozen=True)
class PublishedGancsDiscriminatorOptions:
    """Options of the published discriminator: layers of the code or of the paper's figure."""

    variant: Variant = "code"


class PublishedGancsDiscriminator(Discriminator):
    """Discriminator of ``2 |x| - 1`` with one unbounded score, the mean of a map."""

    def __init__(self, options: PublishedGancsDiscriminatorOptions = PublishedGancsDiscriminatorOptions()) -> None:
        super().__init__()
        plan = [(1, 8, 3, 2), (8, 16, 3, 2), (16, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 64, 1, 1)]
        if options.variant == "paper":
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
        """Activations ``(n c y x)`` of an image, complex ``(*batch y x)``, and the score ``(n 1)``; `roi` is not used."""
        found = activations(self.layers, 2 * magnitude(image) - 1)
        return [*found, self.last(found[-1]).mean((2, 3))]


def structural_dissimilarity_5x5(step: Step) -> Tensor:
    """Dissimilarity ``(1 - SSIM) / 2`` of magnitudes (`ssim_map`) on 5x5 windows two pixels apart, constants of the code."""
    return (1 - ssim_map(magnitude(step.image), magnitude(step.target), 5, 2, 1e-4, 9e-4).mean()) / 2


@dataclass(frozen=True)
class Share:
    """Loss weight `factor` times f or 1 - f, f being 1 for `hold` steps n, then ``end + 1 / sqrt(n - hold + 6)``, at most 1."""

    factor: float
    of_pixels: bool
    end: float
    hold: int

    def __call__(self, number: int) -> float:
        f = 1.0 if number < self.hold else min(1.0, self.end + 1 / math.sqrt(number - self.hold + 6))
        return self.factor * (f if self.of_pixels else 1 - f)


@dataclass(frozen=True)
class PublishedGancsLosses:
    """Shares of the terms, named as in the table above.

    f weights the pixel loss, L1 with share `l1` and L2 with the rest, and DSSIM with share `ssim`. ``1 - f`` weights the
    k-space term, 0 where the projection is exact, with share `consistency`, and the adversarial one with the rest. f falls
    after `hold` steps towards `end`; None: that of the variant.
    """

    variant: Variant = "code"
    l1: float = 1.0
    ssim: float = 0.0
    consistency: float = 0.0
    perceptual: float = 0.0
    hold: int = 2000
    end: float | None = None


HALVED = Optimiser(LearningRate(1e-5, "step", "step", every=10_000, factor=0.5), betas=(0.5, 0.999))


@dataclass(frozen=True)
class PublishedGancsOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedGancsGeneratorOptions = PublishedGancsGeneratorOptions()
    discriminator: PublishedGancsDiscriminatorOptions = PublishedGancsDiscriminatorOptions()
    losses: PublishedGancsLosses = PublishedGancsLosses()
    perceptual: Perceptual = Perceptual()
    g_optimiser: Optimiser = HALVED
    d_optimiser: Optimiser = HALVED
    schedule: Schedule = Schedule(order="simultaneous", mask_per="run", batch_size=16)


def published(generator: Generator, options: PublishedGancsOptions) -> Gan:
    """Assemble GANCS as published."""
    losses = options.losses
    end = losses.end if losses.end is not None else (0.75 if losses.variant == "code" else 0.975)

    def share(factor: float, of_pixels: bool) -> Share | float:
        return Share(factor, of_pixels, end, losses.hold) if factor else 0.0

    pixels = 1 - losses.ssim
    # The unnormalised transform makes the mean of squares H W times larger; as H W varies here, the factor is in the term.
    kspace_weight = share(losses.consistency, False) if losses.variant == "code" else 1.0
    g_terms = terms(
        LossTerm("image_l1", share(pixels * losses.l1, True), partial(l1, view=magnitude)),
        LossTerm("image_l2", share(pixels * (1 - losses.l1), True), partial(l2, view=magnitude)),
        LossTerm("ssim", share(losses.ssim, True), structural_dissimilarity_5x5),
        LossTerm("kspace", kspace_weight, unnormalised_kspace),
        perceptual_term("perceptual", losses.perceptual, options.perceptual),
        LossTerm("adversarial", share(1 - losses.consistency, False), partial(adversarial, kind="lsgan")),
    )
    d_terms = terms(LossTerm("adversarial", 1.0, partial(discriminator_loss, kind="lsgan")))
    networks = (PublishedGancsDiscriminator(options.discriminator),)
    return Gan(generator, networks, g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


def unnormalised_kspace(step: Step) -> Tensor:
    """Error ``mean |A x - y|^2`` over all entries of k-space under the unnormalised transform, a real scalar."""
    return kspace_masked(step, power=2, over_all=True) * math.prod(step.image.shape[-2:])


NARROW = {"generator": {"width": 8}, "discriminator": {"width": 4}}
PRESETS = {
    "raw": Preset("GANCS", GancsGenerator, raw, GancsOptions(), NARROW, convention="gancs"),
    "published": Preset(
        "GANCS", PublishedGancsGenerator, published, PublishedGancsOptions(), {"generator": {"width": 4}}, convention="gancs"
    ),
}
