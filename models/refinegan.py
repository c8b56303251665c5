"""RefineGAN: Quan, Nguyen-Duc and Jeong, IEEE TMI 37(6):1488-1497 (2018), doi:10.1109/TMI.2018.2820120.

Two residual networks in a chain, data consistency after each: the first reconstructs, the second refines. The loss closes two
cycles, measurement -> image -> measurement and image -> measurement -> image. Two independent images A and B share each step,
and each reconstruction is compared with both.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  re and im as 2 channels, each v/255 from [0, 1] to [-1, 1]  complex, any matrix, scaled by `slice_scale`
start                  A^H y of that representation                                regularised SENSE (or A^H y)
network                14,979,394 parameters each, sums as skips, tanh             U-Nets of `width` and `depth`, or the paper's
                                                                                   blocks (`network: residual`) with a stem at
                                                                                   full resolution; no tanh, no batch norm
chain                  S = DC(G1(M) + M), T = DC(G2(S) + S)                        the same, `chain` networks
data consistency       exact replacement                                           exact for one coil, else a regularised solve
                                                                                   whose weight follows the scan's noise, rate
                                                                                   and kind of mask (`adapt_lamda`)
discriminator          11,002,433 parameters, 8x8 map of scores                    strided convolutions, map of scores
adversarial            WGAN, clipped at 0.01                                       WGAN-GP, 0.005
image terms            L1 after (5) and before (500) data consistency              error over that of the start, each network
k-space term           0.25 * L1 of the samples, unnormalised F                    cycle of the measurement, relative L1, 0.1
others                 total variation 1e-4, L1 of kernels 1e-5                    `cyclic_image`, `extra`: off
optimiser              Adam 1e-4, 0.5, eps 1e-3, 5 pieces                          Adam 1e-3, cosine
=====================  ==========================================================  =============================================

*Representation.* 8-bit values 0..255 of **both** channels are mapped to [-1, 1], so a real image has an imaginary channel of
-1, not 0: x becomes ``2x - (1 + i)``. The published preset converts the k-space of an image in [0, 1], and its output back.

*Weights.* The code's weights are per single term, and it sums the terms of A, B, S and T. Here a term is a mean over the batch
and a sum over S and T, so image terms count twice and adversarial ones (two real images for each fake) four times: the same
total. They were meant as 1/rate and are 1/2 by mistake (the rate was counted after mapping the mask to ±1); the values above
are those that were used.

*Paper and code disagree.* ``losses: {variant: paper}`` is the log-GAN with L1 image weight 10 and k-space weight 1;
``generator: {consistency: false}`` drops the data consistency that the paper's figure does not show.

*U-Nets in the raw preset.* On cropped multi-coil readouts the paper's blocks, which first halve the resolution and sum their
skip connections, learned slowly: after 150 steps on 64 cropped readouts two of them gained 1.1 dB over the starting image,
three U-Nets 3.1 dB after 100.

*Weight of data consistency.* With one constant for every scan, a chain trained on 1-D and Poisson-disc undersampling at R = 2
to 8 and signal-to-noise ratios of 8 to 60 gained up to 0.6 dB under 1-D undersampling when its weights were divided by four
afterwards, and lost up to 1.9 dB under Poisson discs.

*Not reproduced*: total variation along the channel axis instead of columns; clipping of the normalisation layers, which left
the critic inert (``schedule: {clip_norms: true}`` restores it); the rise of the learning rate at epoch 100 (3e-4 for 3e-5).
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.operators import Sense
from models.parts.adversarial import Kind, adversarial, discriminator_loss
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.layers import (
    Norm,
    PatchDiscriminator,
    PatchOptions,
    UNet,
    activations,
    from_channels,
    he_initialise,
    magnitude,
    normalisation,
    pad_to_multiple,
    refuse_other_size,
    to_channels,
    zero_last,
)
from models.parts.losses import (
    cyclic_image,
    cyclic_measurement,
    discriminator_kernels,
    generator_kernels,
    kspace_masked,
    l1,
    log_relative,
    orthonormal_weight,
    relative,
    total_variation,
)
from models.parts.raw import Cascade, RawGeneratorOptions, RawLosses, RawOptions, assemble
from models.parts.tensorflow import SameConv2d, SameConvTranspose2d, truncated_normal

SIZE = 256
NormLayer = Callable[[int], nn.Module]


class ResidualBlock(nn.Module):
    """Residual block ``x + conv(act(norm(conv(act(norm(conv(x)))))))``, 3x3, half the channels in the middle."""

    def __init__(self, n: int, norm: NormLayer) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(n, n, norm), _conv(n, n // 2, norm), SameConv2d(n // 2, n, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c y x)`` to the same."""
        out: Tensor = x + self.body(x)
        return out


def _conv(a: int, b: int, norm: NormLayer, stride: int = 1, transposed: bool = False) -> nn.Sequential:
    make = SameConvTranspose2d if transposed else SameConv2d
    return nn.Sequential(make(a, b, 3, stride, bias=False), norm(b), nn.LeakyReLU(0.2))


def encoder(a: int, b: int, norm: NormLayer) -> nn.Sequential:
    """Level of the encoder, real ``(n a y x)`` to ``(n b y/2 x/2)``."""
    return nn.Sequential(_conv(a, b, norm, 2), ResidualBlock(b, norm), _conv(b, b, norm))


def decoder(a: int, b: int, norm: NormLayer) -> nn.Sequential:
    """Level of the decoder, real ``(n a y x)`` to ``(n b 2y 2x)``."""
    return nn.Sequential(_conv(a, b, norm, 1, transposed=True), ResidualBlock(b, norm), _conv(b, b, norm, 2, transposed=True))


class RefineNet(nn.Module):
    """Network of the chain, 2 channels to 2: encoders and decoders with summed skip connections.

    `stem` adds a residual block at full resolution, which the published network lacks.
    """

    def __init__(self, width: int, depth: int, norm: NormLayer, stem: bool) -> None:
        super().__init__()
        if width < 2 or depth < 1:
            raise ValueError(f"a RefineGAN network needs width >= 2 and depth >= 1; got {width} and {depth}")
        widths = [width * 2**level for level in range(depth)]
        self.depth = depth
        self.stem = nn.Sequential(_conv(2, width, norm), ResidualBlock(width, norm)) if stem else None
        first = width if stem else 2
        self.encode = nn.ModuleList(encoder(a, b, norm) for a, b in zip([first, *widths[:-1]], widths, strict=True))
        self.decode = nn.ModuleList(decoder(a, b, norm) for a, b in zip(widths, [width, *widths[:-1]], strict=True))
        self.last = SameConv2d(width, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n 2 y x)``, any size, to the same."""
        x, crop = pad_to_multiple(x, 2**self.depth)
        full = x = self.stem(x) if self.stem is not None else x
        skips = []
        for encode in self.encode:
            x = encode(x)
            skips.append(x)
        x = self.decode[-1](skips.pop())
        for decode in reversed(self.decode[:-1]):
            x = decode(x + skips.pop())
        return crop(self.last(x + full if self.stem is not None else x))


# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class RefineGanGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    network
        ``unet``: `models.parts.layers.UNet`; ``residual``: the paper's blocks, `RefineNet` with a stem.
    width, depth
        Channels of the first level, doubled at each of the `depth` levels; 64 and 4 in the paper.
    chain
        Number of networks; 2 in the paper.
    """

    network: Literal["unet", "residual"] = "unet"
    width: int = 24
    depth: int = 3
    chain: int = 3

    def __post_init__(self) -> None:
        if self.chain < 1:
            raise ValueError(f"chain must be at least 1; got {self.chain}")


class RefineGanGenerator(Cascade):
    """Chain of residual networks on the complex image, data consistency after each."""

    def __init__(self, options: RefineGanGeneratorOptions = RefineGanGeneratorOptions()) -> None:
        each = options.network, options.width, options.depth, options.norm
        super().__init__(options, (_network(*each) for _ in range(options.chain)))


def _network(kind: Literal["unet", "residual"], width: int, depth: int, norm: Norm) -> nn.Module:
    """Network of the chain with its last layer zeroed."""
    if kind == "unet":
        return UNet(2, 2, width, depth, norm, zero_init=True)
    network = RefineNet(width, depth, partial(normalisation, norm), stem=True)
    he_initialise(network)
    zero_last(network.last)
    return network


@dataclass(frozen=True)
class RefineGanLosses(RawLosses):
    """Loss weights; 0 switches a term off. `image` applies to the output of every network of the chain.

    Parameters
    ----------
    magnitude
        Weight of the logarithmic error of the last magnitude, which PSNR counts.
    cyclic_measurement
        Weight of the cyclic loss over the measurement.
    cyclic_image
        Weight of that over the image, which runs the generator again.
    """

    magnitude: float = 0.3
    cyclic_measurement: float = 0.1
    cyclic_image: float = 0.0
    adversarial: float = 0.005
    gradient_penalty: float = 10.0
    kind: Kind = "wgan"


@dataclass(frozen=True)
class RefineGanOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: RefineGanGeneratorOptions = RefineGanGeneratorOptions()
    discriminator: PatchOptions = PatchOptions()
    losses: RefineGanLosses = RefineGanLosses()
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.5, 0.9))


def raw(generator: Generator, options: RefineGanOptions) -> Gan:
    """Assemble RefineGAN for complex multi-coil data."""
    losses = options.losses
    after = tuple(f"after_{k}" for k in range(options.generator.chain))
    return assemble(
        generator,
        options,
        PatchDiscriminator(to_channels, 2, options.discriminator),
        LossTerm("image", losses.image / len(after), partial(relative, images=after)),
        LossTerm("magnitude", losses.magnitude, partial(log_relative, view=magnitude)),
        LossTerm("cyclic_measurement", losses.cyclic_measurement, cyclic_measurement),
        LossTerm("cyclic_image", losses.cyclic_image, cyclic_image),
        images=after,
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


@dataclass(frozen=True)
class PublishedRefineGanGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    consistency
        Data consistency after each network; the paper's figure has none.
    batch_norm
        Normalise over the batch. Published is a batch of one: statistics of the image itself in training, running averages at
        test time; so it is here for any batch size without `batch_norm`.
    width
        Channels of the first level; 64 as published.
    """

    consistency: bool = True
    batch_norm: bool = False
    width: int = 64


class PublishedRefineGanGenerator(Generator):
    """Chain S = DC(G1(M) + M), T = DC(G2(S) + S) on 256x256 images in the published representation."""

    homogeneous = False

    def __init__(self, options: PublishedRefineGanGeneratorOptions = PublishedRefineGanGeneratorOptions()) -> None:
        super().__init__()
        self.consistency, width, norm = options.consistency, options.width, published_norm(options.batch_norm)
        self.reconstruct = RefineNet(width, 4, norm, stem=False)
        self.refine = RefineNet(width, 4, norm, stem=False)
        _initialise(self)

    def learned(self) -> list[nn.Module]:
        """Both networks."""
        return [self.reconstruct, self.refine]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (M), ``before_0``, ``after_0`` (Sp, S), ``before_1``, ``image`` (Tp, T), complex ``(*batch 256 256)``."""
        refuse_other_size(op.maps, SIZE, "RefineGAN")
        ones = torch.ones((*y.shape[:-3], *y.shape[-2:]), dtype=y.dtype, device=y.device)
        y = 2 * y - op.forward((1 + 1j) * ones)
        image = op.adjoint(y)
        found = {"start": image}
        for k, network in enumerate((self.reconstruct, self.refine)):
            image = image + from_channels(torch.tanh(network(to_channels(image))), like=image)
            found[f"before_{k}"] = image
            image = data_consistency(image, y, op) if self.consistency else image
            found["image" if k else "after_0"] = image
        return {name: (x + (1 + 1j)) / 2 for name, x in found.items()}


@dataclass(frozen=True)
class PublishedRefineGanDiscriminatorOptions:
    """Options of the published critic: `batch_norm` and `width` as those of the generator."""

    batch_norm: bool = False
    width: int = 64


class PublishedRefineGanDiscriminator(Discriminator):
    """WGAN critic of 256x256 images, 2 channels in the published representation: an 8x8 map of unbounded scores."""

    def __init__(self, options: PublishedRefineGanDiscriminatorOptions = PublishedRefineGanDiscriminatorOptions()) -> None:
        super().__init__()
        w, norm = options.width, published_norm(options.batch_norm)
        first = nn.Sequential(SameConv2d(2, w, 4, 2, bias=False), nn.LeakyReLU(0.2))
        blocks = [encoder(a, b, norm) for a, b in ((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))]
        self.layers = nn.ModuleList([first, *blocks, SameConv2d(8 * w, 1, 4)])
        _initialise(self)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of an image, complex ``(*batch 256 256)``, scores ``(n 1 8 8)`` last; `roi` is not used."""
        return activations(self.layers, display(image))


def published_norm(batch_norm: bool) -> NormLayer:
    """Batch normalisation, or its form for a batch of one: see `PublishedRefineGanGeneratorOptions`."""
    if batch_norm:
        return nn.BatchNorm2d
    return partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)


def _initialise(network: nn.Module) -> None:
    truncated_normal(network, 0.02)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.uniform_(m.weight, 0, 1)


def display(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` with parts in [0, 1] to the published representation: ``(n 2 y x)`` in [-1, 1]."""
    return to_channels(2 * image - (1 + 1j))


def _twice(difference: Tensor) -> Tensor:
    # Differences in the published representation are twice those of the images.
    return 2 * to_channels(difference)


@dataclass(frozen=True)
class PublishedRefineGanLosses:
    """Weights of single terms (k-space under the unnormalised transform); None: those of the `variant`.

    `image` and `image_before` are L1 after and before data consistency. `variant` decides the adversarial loss too.
    """

    variant: Literal["code", "paper"] = "code"
    image: float | None = None
    image_before: float | None = None
    kspace: float | None = None
    total_variation: float | None = None
    kernels: float | None = None
    adversarial: float | None = None

    def weight(self, name: str) -> float:
        """Weight of the term `name`: the given one, or that of the variant."""
        given: float | None = getattr(self, name)
        return given if given is not None else VARIANTS[self.variant].get(name, 0.0)


CODE = {"image": 5.0, "image_before": 500.0, "kspace": 0.25, "total_variation": 1e-4, "kernels": 1e-5, "adversarial": 1.0}
VARIANTS = {"code": CODE, "paper": {"image": 10.0, "kspace": 1.0, "adversarial": 1.0}}
AFTER, BEFORE = ("after_0", "image"), ("before_0", "before_1")
PIECES = ((0, 1.0), (100, 0.3), (200, 0.2), (300, 0.1), (400, 0.02), (500, 0.01))
ADAM = Optimiser(LearningRate(1e-4, "piecewise", points=PIECES), betas=(0.5, 0.999), eps=1e-3)


@dataclass(frozen=True)
class PublishedRefineGanOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedRefineGanGeneratorOptions = PublishedRefineGanGeneratorOptions()
    discriminator: PublishedRefineGanDiscriminatorOptions = PublishedRefineGanDiscriminatorOptions()
    losses: PublishedRefineGanLosses = PublishedRefineGanLosses()
    g_optimiser: Optimiser = ADAM
    d_optimiser: Optimiser = ADAM
    schedule: Schedule = Schedule(
        fresh_batch=True, clip=0.01, mask_per="batch", batch_size=2, max_epochs=500, steps_per_epoch=100
    )


def published(generator: Generator, options: PublishedRefineGanOptions) -> Gan:
    """Assemble RefineGAN as published. A batch of two is A and B of the paper; a larger one holds more such pairs."""
    losses = options.losses
    kind: Kind = "wgan" if losses.variant == "code" else "minimax"
    kspace = orthonormal_weight(losses.weight("kspace"), (SIZE, SIZE), 1)
    variation = partial(total_variation, view=display, images=AFTER, reduce="sum")
    g_terms = terms(
        LossTerm("image", 2 * losses.weight("image"), partial(l1, view=display, images=AFTER)),
        LossTerm("image_before", 2 * losses.weight("image_before"), partial(l1, view=display, images=BEFORE)),
        LossTerm("kspace", 2 * kspace, partial(kspace_masked, view=_twice, images=BEFORE, over_all=True)),
        LossTerm("total_variation", 2 * losses.weight("total_variation"), variation),
        LossTerm("kernels", losses.weight("kernels"), generator_kernels),
        LossTerm("adversarial", 4 * losses.weight("adversarial"), partial(adversarial, kind=kind, images=AFTER)),
    )
    plays = 1.0 if losses.weight("adversarial") else 0.0
    d_terms = terms(
        LossTerm("adversarial", 4 * plays, partial(discriminator_loss, kind=kind, images=AFTER)),
        LossTerm("kernels", plays * losses.weight("kernels"), discriminator_kernels),
    )
    networks = (PublishedRefineGanDiscriminator(options.discriminator),)
    return Gan(generator, networks, g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


PRESETS = {
    "raw": Preset(
        "RefineGAN",
        RefineGanGenerator,
        raw,
        RefineGanOptions(),
        {"generator": {"width": 8}, "discriminator": {"width": 4}},
        convention="refinegan",
    ),
    "published": Preset(
        "RefineGAN",
        PublishedRefineGanGenerator,
        published,
        PublishedRefineGanOptions(),
        {"generator": {"width": 4}, "discriminator": {"width": 4}},
        SIZE,
        "refinegan",
    ),
}
