"""RefineGAN: Quan, Nguyen-Duc and Jeong, IEEE TMI 37(6):1488-1497 (2018), doi:10.1109/TMI.2018.2820120.

Two residual networks in a chain, data consistency after each: the first reconstructs, the second refines. The loss closes two
loops, measurement -> image -> measurement and image -> measurement -> image. Two independent images A and B share each step,
and each reconstruction is held against each of the two.

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
critic                 11,002,433 parameters, 8x8 map of scores                    strided convolutions, map of scores
adversarial            WGAN, clipped at 0.01                                       WGAN-GP, 0.005
image terms            L1 after (5) and before (500) data consistency              error over that of the start, every stage
k-space term           0.25 * L1 of the samples, unnormalised F                    loop over the measurement, relative L1, 0.1
others                 total variation 1e-4, L1 of kernels 1e-5                    `cyclic_image`, `extra`: off
optimiser              Adam 1e-4, 0.5, eps 1e-3, 5 pieces                          Adam 1e-3, cosine
=====================  ==========================================================  =============================================

*The representation's quirk.* 8-bit values 0..255 of **both** channels are mapped to [-1, 1], so a real image has an imaginary
channel of -1, not 0: x becomes ``2x - (1 + i)``. The published preset does that to the k-space of an image in [0, 1] and undoes
it at its output, so its caller sees neither.

*Weights.* The code's table is per single term, and it adds up the terms of A, B, S and T. Here a term is a mean over the batch
and a sum over stages, so image terms count twice and adversarial ones (two real images for each fake) four times: the same sum.
They are 1/rate by intent and 1/2 by mistake (it counts after mapping the mask to ±1); the values above are what ran.

*Paper and code disagree.* ``losses: {variant: paper}`` is the log-GAN with L1 image weight 10 and k-space weight 1;
``generator: {consistency: false}`` drops the data consistency that the paper's figure does not show.

*U-Nets in the raw preset.* On multi-coil strips the paper's blocks, which halve the resolution before anything else and add
their skips up, were slow learners: after 150 steps on 64 strips two of them gained 1.1 dB over the start, three U-Nets 3.1 dB
after 100.

*The weight of data consistency.* With one constant for every scan, a chain trained on lines and Poisson discs at R = 2 to 8 and
signal-to-noise ratios of 8 to 60 gained up to 0.6 dB under lines when its weights were divided by four afterwards, and lost up
to 1.9 dB under Poisson discs.

*Not reproduced*: total variation along the channel axis instead of columns; clipping of the normalisation layers, which left
the critic inert (``schedule: {clip_norms: true}`` brings it back); the rise of the learning rate at epoch 100 (3e-4 for 3e-5).
"""
# ruff: noqa: B008 - the default arguments are frozen dataclasses

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from kspace.data_consistency import data_consistency
from kspace.operators import Sense
from models.adversarial import Kind, adversarial, critic, critic_terms
from models.extra import Extra, extra_terms
from models.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Preset, Schedule, terms
from models.layers import (
    Consistency,
    Measurement,
    Norm,
    PatchCritic,
    PatchCriticOptions,
    SameConv2d,
    SameConvTranspose2d,
    Start,
    UNet,
    activations,
    from_channels,
    he_initialise,
    magnitude,
    normalisation,
    pad_to_multiple,
    refuse_other_size,
    slice_scale,
    starting_image,
    to_channels,
    truncated_normal,
    zero_last,
)
from models.losses import (
    critic_kernels,
    cyclic_image,
    cyclic_measurement,
    generator_kernels,
    kspace_masked,
    l1,
    log_relative,
    orthonormal_weight,
    relative,
    total_variation,
)
from models.perceptual import Perceptual, perceptual_term

SIZE = 256
NormLayer = Callable[[int], nn.Module]


class Residual(nn.Module):
    """``x + conv(act(norm(conv(act(norm(conv(x)))))))``, all 3x3, with half the channels in the middle and nothing after it."""

    def __init__(self, n: int, norm: NormLayer) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(n, n, norm), _conv(n, n // 2, norm), SameConv2d(n // 2, n, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _conv(a: int, b: int, norm: NormLayer, stride: int = 1, transposed: bool = False) -> nn.Sequential:
    make = SameConvTranspose2d if transposed else SameConv2d
    return nn.Sequential(make(a, b, 3, stride, bias=False), norm(b), nn.LeakyReLU(0.2))


def encoder(a: int, b: int, norm: NormLayer) -> nn.Sequential:
    """``(n a y x)`` to ``(n b y/2 x/2)``."""
    return nn.Sequential(_conv(a, b, norm, 2), Residual(b, norm), _conv(b, b, norm))


def decoder(a: int, b: int, norm: NormLayer) -> nn.Sequential:
    """``(n a y x)`` to ``(n b 2y 2x)``."""
    return nn.Sequential(_conv(a, b, norm, 1, transposed=True), Residual(b, norm), _conv(b, b, norm, 2, transposed=True))


class RefineNet(nn.Module):
    """One network of the chain, 2 channels to 2: encoders and decoders with sums as skip connections.

    `stem`, which the published network has not, adds a residual block at full resolution.
    """

    def __init__(self, width: int, depth: int, norm: NormLayer, stem: bool) -> None:
        super().__init__()
        if width < 2 or depth < 1:
            raise ValueError(f"a RefineGAN network needs width >= 2 and depth >= 1; got {width} and {depth}")
        widths = [width * 2**level for level in range(depth)]
        self.depth = depth
        self.stem = nn.Sequential(_conv(2, width, norm), Residual(width, norm)) if stem else None
        first = width if stem else 2
        self.encode = nn.ModuleList(encoder(a, b, norm) for a, b in zip([first, *widths[:-1]], widths, strict=True))
        self.decode = nn.ModuleList(decoder(a, b, norm) for a, b in zip(widths, [width, *widths[:-1]], strict=True))
        self.last = SameConv2d(width, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n 2 y x)``, any size."""
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


class RawGenerator(Generator):
    """A chain of residual networks on the complex image, data consistency after each.

    Parameters
    ----------
    network
        ``unet``: `models.layers.UNet`; ``residual``: the paper's blocks, `RefineNet` with a stem.
    width, depth
        Channels of the first level, doubled at each of the `depth` levels; 64 and 4 in the paper.
    chain
        Number of networks; 2 in the paper.
    norm
        ``none`` or ``instance``; ``batch`` would tie a slice's result to its batch.
    start, start_lamda
        Start from the SENSE solve with this regularisation, or from ``A^H y``. The networks' last layers start at zero, so an
        untrained chain returns what data consistency makes of it.
    consistency, lamda, learn_lamda
        Data consistency after each network: one coil of unit modulus exactly, others by the solve with `lamda`.
    adapt_lamda
        Let each `lamda` depend on the scan's noise, acceleration and kind of mask: see `models.layers.Consistency`.
    tolerance
        Relative residual of all solves.
    """

    def __init__(
        self,
        network: Literal["unet", "residual"] = "unet",
        width: int = 24,
        depth: int = 3,
        chain: int = 3,
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
        if chain < 1:
            raise ValueError(f"a chain has at least one network; got {chain}")
        self.start, self.start_lamda, self.tolerance = start, start_lamda, tolerance
        self.networks = nn.ModuleList(_network(network, width, depth, norm) for _ in range(chain))
        self.consistency = nn.ModuleList(
            Consistency(lamda, learn_lamda, True, tolerance, adapt_lamda) for _ in range(chain * consistency)
        )

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        return slice_scale(y, op)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``; for each network of the chain ``before_k`` and ``after_k`` (data consistency); ``image``, the last."""
        measured, scale = Measurement.scaled(y, op)
        image = starting_image(measured, self.start, self.start_lamda, self.tolerance)
        found = {"start": image}
        for k, network in enumerate(self.networks):
            image = image + from_channels(network(to_channels(image)), like=image) * op.support
            found[f"before_{k}"] = image
            if self.consistency:
                image = self.consistency[k](image, measured)
            found[f"after_{k}"] = image
        return {name: stage * scale for name, stage in {**found, "image": image}.items()}


def _network(kind: Literal["unet", "residual"], width: int, depth: int, norm: Norm) -> nn.Module:
    """One network of the chain, its last layer zero."""
    if kind == "unet":
        return UNet(2, 2, width, depth, norm, zero_init=True)
    network = RefineNet(width, depth, partial(normalisation, norm), stem=True)
    he_initialise(network)
    zero_last(network.last)
    return network


@dataclass(frozen=True)
class RawLosses:
    """Weights of the terms; 0 switches one off.

    `image` holds every stage of the chain against the target, phase and all; `magnitude` the magnitude of the last, by what
    PSNR counts. `cyclic_image` runs the generator once more, on the noise-free measurement of the target.
    `gradient_penalty` and `r1` weigh against the critic's own loss.
    """

    image: float = 1.0
    magnitude: float = 0.3
    cyclic_measurement: float = 0.1
    cyclic_image: float = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.005
    gradient_penalty: float = 10.0
    r1: float = 0.0
    kind: Kind = "wgan"


def raw(
    generator: Generator,
    discriminator: PatchCriticOptions = PatchCriticOptions(),
    losses: RawLosses = RawLosses(),
    perceptual: Perceptual = Perceptual(),
    extra: Extra = Extra(),
    g_optimiser: Optimiser = Optimiser(),
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.5, 0.9)),
    schedule: Schedule = Schedule(),
) -> Gan:
    """RefineGAN on complex multi-coil data."""
    assert isinstance(generator, RawGenerator)
    after = tuple(f"after_{k}" for k in range(len(generator.networks)))
    plays = 1.0 if losses.adversarial or extra.feature_matching else 0.0
    g_terms = terms(
        LossTerm("image", losses.image / len(after), partial(relative, stages=after)),
        LossTerm("magnitude", losses.magnitude, partial(log_relative, view=magnitude)),
        LossTerm("cyclic_measurement", losses.cyclic_measurement, cyclic_measurement),
        LossTerm("cyclic_image", losses.cyclic_image, cyclic_image),
        perceptual_term("perceptual", losses.perceptual, perceptual),
        LossTerm("adversarial", losses.adversarial / len(after), partial(adversarial, kind=losses.kind, stages=after)),
    )
    d_terms = critic_terms(plays, losses.kind, losses.gradient_penalty, losses.r1, after)
    networks = (PatchCritic(to_channels, 2, discriminator),)
    return Gan(generator, networks, g_terms + extra_terms(extra), d_terms, g_optimiser, d_optimiser, schedule)


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class PublishedGenerator(Generator):
    """S = DC(G1(M) + M), T = DC(G2(S) + S) on 256x256 images in the published representation.

    `consistency` False drops DC, as in the paper's figure. Published is a batch of one, that is, normalisation with the image's
    own statistics in training and running averages at test time: so it is here for any batch size, unless `batch_norm`.
    """

    def __init__(self, consistency: bool = True, batch_norm: bool = False, width: int = 64) -> None:
        super().__init__()
        self.consistency = consistency
        self.reconstruct = RefineNet(width, 4, published_norm(batch_norm), stem=False)
        self.refine = RefineNet(width, 4, published_norm(batch_norm), stem=False)
        _initialise(self)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (M), ``before_0``, ``after_0`` (Sp, S), ``before_1``, ``image`` (Tp, T), in the units of `y`."""
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
        return {name: (stage + (1 + 1j)) / 2 for name, stage in found.items()}


class PublishedCritic(Discriminator):
    """256x256, 2 channels in the published representation, to an 8x8 map of unbounded scores."""

    def __init__(self, batch_norm: bool = False, width: int = 64) -> None:
        super().__init__()
        w, norm = width, published_norm(batch_norm)
        first = nn.Sequential(SameConv2d(2, w, 4, 2, bias=False), nn.LeakyReLU(0.2))
        blocks = [encoder(a, b, norm) for a, b in ((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))]
        self.layers = nn.ModuleList([first, *blocks, SameConv2d(8 * w, 1, 4)])
        _initialise(self)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        return activations(self.layers, display(image))


def published_norm(batch_norm: bool) -> NormLayer:
    """Batch normalisation, or what it is for a batch of one: see `PublishedGenerator`."""
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
class PublishedCriticOptions:
    """See `PublishedGenerator`."""

    batch_norm: bool = False
    width: int = 64


@dataclass(frozen=True)
class PublishedLosses:
    """Weights of single terms (k-space under the unnormalised transform); None: those of the variant."""

    variant: Literal["code", "paper"] = "code"
    image: float | None = None
    image_before: float | None = None
    kspace: float | None = None
    total_variation: float | None = None
    kernels: float | None = None
    adversarial: float | None = None

    def weight(self, name: str) -> float:
        """The weight given, or that of the variant."""
        given: float | None = getattr(self, name)
        return given if given is not None else VARIANTS[self.variant].get(name, 0.0)


CODE = {"image": 5.0, "image_before": 500.0, "kspace": 0.25, "total_variation": 1e-4, "kernels": 1e-5, "adversarial": 1.0}
VARIANTS = {"code": CODE, "paper": {"image": 10.0, "kspace": 1.0, "adversarial": 1.0}}
STAGES, BEFORE = ("after_0", "image"), ("before_0", "before_1")
PIECES = ((0, 1.0), (100, 0.3), (200, 0.2), (300, 0.1), (400, 0.02), (500, 0.01))
ADAM = Optimiser(LearningRate(1e-4, "piecewise", points=PIECES), betas=(0.5, 0.999), eps=1e-3)


def published(
    generator: Generator,
    discriminator: PublishedCriticOptions = PublishedCriticOptions(),
    losses: PublishedLosses = PublishedLosses(),
    g_optimiser: Optimiser = ADAM,
    d_optimiser: Optimiser = ADAM,
    schedule: Schedule = Schedule(
        fresh_batch=True, clip=0.01, mask_per="batch", batch_size=2, max_epochs=500, steps_per_epoch=100
    ),
) -> Gan:
    """RefineGAN as published. A batch of two is A and B of the paper; of more, more such pairs."""
    kind: Kind = "wgan" if losses.variant == "code" else "minimax"
    kspace = orthonormal_weight(losses.weight("kspace"), (SIZE, SIZE), 1)
    variation = partial(total_variation, view=display, stages=STAGES, reduce="sum")
    g_terms = terms(
        LossTerm("image", 2 * losses.weight("image"), partial(l1, view=display, stages=STAGES)),
        LossTerm("image_before", 2 * losses.weight("image_before"), partial(l1, view=display, stages=BEFORE)),
        LossTerm("kspace", 2 * kspace, partial(kspace_masked, view=_twice, stages=BEFORE, over_all=True)),
        LossTerm("total_variation", 2 * losses.weight("total_variation"), variation),
        LossTerm("kernels", losses.weight("kernels"), generator_kernels),
        LossTerm("adversarial", 4 * losses.weight("adversarial"), partial(adversarial, kind=kind, stages=STAGES)),
    )
    plays = 1.0 if losses.weight("adversarial") else 0.0
    d_terms = terms(
        LossTerm("critic", 4 * plays, partial(critic, kind=kind, stages=STAGES)),
        LossTerm("kernels", plays * losses.weight("kernels"), critic_kernels),
    )
    networks = (PublishedCritic(discriminator.batch_norm, discriminator.width),)
    return Gan(generator, networks, g_terms, d_terms, g_optimiser, d_optimiser, schedule)


PRESETS = {"raw": Preset(RawGenerator, raw), "published": Preset(PublishedGenerator, published)}
