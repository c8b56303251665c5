"""Recon-GLGAN: Murugesan et al., MLMIR 2019, arXiv 1908.09262.

A plain U-Net, and a critic with two branches: one looks at the whole image, one at a region of interest (in the paper, the
heart).

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  magnitude, 1 channel, 160x160, [0, 1]                       complex, any matrix, scaled by `slice_scale`
input                  |A^H y|                                                     regularised SENSE (or A^H y)
generator              U-Net 64-1024, batch norm, no residual; 31,044,289          start + U-Net of `width`, `depth`
data consistency       none                                                        one soft step at the end (`consistency`)
critic                 global and local branch; 9,063,681 parameters               two branches of strided convolutions
                       (``context: false``: the global one alone; 8,578,689)
region of interest     60x60 around the centre of the data set's box               3/8 of the matrix around it
adversarial            binary cross-entropy, 4e-4                                  the same, 0.01
image term             L1, 1                                                       error over that of the start, 1
optimiser              G: Adam 1e-3, x 0.1 every 40 epochs; D: SGD 5e-3            Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Where the data set has no box, the region of the highest energy of the target is taken. Image and target are cut at the same
place.

Not reproduced: the `break` that leaves one batch per epoch, and the baseline's swapped labels. The normalisation layers that
the published critic declares and never uses (640 parameters) are kept, frozen, so that counts and weights files agree.

The published preset takes the k-space of a single-coil image whose magnitude lies in [0, 1].
"""
# ruff: noqa: B008 - the default arguments are frozen dataclasses

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.operators import Sense
from models.adversarial import Kind, adversarial, critic, critic_terms
from models.extra import Extra, extra_terms
from models.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Preset, Schedule, Step, terms
from models.layers import (
    Consistency,
    Measurement,
    Norm,
    Start,
    UNet,
    activations,
    from_channels,
    magnitude,
    maybe_spectral,
    refuse_other_size,
    slice_scale,
    starting_image,
    to_channels,
)
from models.losses import relative
from models.perceptual import Perceptual, perceptual_term

SIZE, ROI = 160, 60

# ---------------------------------------------------------------------------------------------------------------------------
# Region of interest


def cut(x: Tensor, roi: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of `size` around the centres of boxes, moved inside where they would reach out of the image.

    Real ``(n c y x)`` and integer ``(*batch 4)`` (`Step.roi`) to ``(n c *size)``.
    """
    corners = []
    boxes = roi.reshape(-1, 4)
    for axis, n in enumerate(size):
        centre = (boxes[:, axis] + boxes[:, axis + 2]) // 2
        corners.append((centre - n // 2).clamp(0, x.shape[axis - 2] - n).tolist())
    windows = [one[:, a : a + size[0], b : b + size[1]] for one, a, b in zip(x, *corners, strict=True)]
    return torch.stack(windows)


def highest_energy(target: Tensor, fraction: float = 0.375) -> Tensor:
    """The box of `fraction` of each side of the matrix that holds the most energy.

    Complex ``(*batch y x)`` to integer ``(*batch 4)`` (`Step.roi`); the first such box where there are several.
    """
    height, width = (_window(n, fraction) for n in target.shape[-2:])
    # Sums over windows from running sums, in double precision: the small ones are differences of large ones.
    sums = F.pad(target.detach().abs().double().square().cumsum(-2).cumsum(-1), (1, 0, 1, 0))
    columns = sums[..., width:] - sums[..., :-width]
    inside = columns[..., height:, :] - columns[..., :-height, :]
    best = inside.flatten(-2).argmax(-1)
    top, left = best // inside.shape[-1], best % inside.shape[-1]
    return torch.stack([top, left, top + height, left + width], -1)


def _window(n: int, fraction: float) -> int:
    return max(1, round(fraction * n))


# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


class RawGenerator(Generator):
    """U-Net on the complex image, then one soft data-consistency step.

    Parameters
    ----------
    width, depth, norm
        See `models.layers.UNet`. ``batch`` would tie a slice's result to its batch.
    start, start_lamda
        Start from the SENSE solve with this regularisation, or from ``A^H y``; the network predicts what to add, and nothing
        before it was trained.
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
        start: Start = "sense",
        start_lamda: float = 0.02,
        consistency: bool = True,
        lamda: float = 0.1,
        learn_lamda: bool = True,
        adapt_lamda: bool = True,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.start, self.start_lamda, self.tolerance = start, start_lamda, tolerance
        self.network = UNet(2, 2, width, depth, norm, down="pool", zero_init=True)
        self.consistency = Consistency(lamda, learn_lamda, tolerance=tolerance, adapt=adapt_lamda) if consistency else None

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        return slice_scale(y, op)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start``, ``network`` (before data consistency) and ``image``."""
        measured, scale = Measurement.scaled(y, op)
        start = starting_image(measured, self.start, self.start_lamda, self.tolerance)
        network = start + from_channels(self.network(to_channels(start)), like=start) * op.support
        image = network if self.consistency is None else self.consistency(network, measured)
        return {"start": start * scale, "network": network * scale, "image": image * scale}


@dataclass(frozen=True)
class CriticOptions:
    """Channels of the first level and halvings of each branch, whether there is a local one (`context`), and its window."""

    width: int = 32
    depth: int = 4
    context: bool = True
    roi_fraction: float = 0.375
    spectral: bool = True


class ContextCritic(Discriminator):
    """A branch on the whole magnitude image and one on its region of interest, joined into one logit: any matrix."""

    def __init__(self, options: CriticOptions) -> None:
        super().__init__()
        self.fraction = options.roi_fraction
        self.whole = _branch(options)
        self.local = _branch(options) if options.context else None
        self.join = maybe_spectral(nn.Linear(128 if options.context else 64, 1), options.spectral)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        x = magnitude(image)
        found = activations(self.whole, x)
        ends = [found[-1]]
        if self.local is not None:
            size = _window(x.shape[-2], self.fraction), _window(x.shape[-1], self.fraction)
            found += activations(self.local, cut(x, _required(roi), size))
            ends.append(found[-1])
        return [*found, self.join(torch.cat(ends, 1))]


def _branch(options: CriticOptions) -> nn.ModuleList:
    widths = [1, *(options.width * min(2**level, 8) for level in range(options.depth))]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        conv = maybe_spectral(nn.Conv2d(a, b, 4, 2, 1), options.spectral)
        # One more row and column, so that a single pixel is enough.
        layers.append(nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), conv, nn.LeakyReLU(0.2)))
    dense = maybe_spectral(nn.Linear(16 * widths[-1], 64), options.spectral)
    layers.append(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), dense, nn.LeakyReLU(0.2)))
    return nn.ModuleList(layers)


def _required(roi: Tensor | None) -> Tensor:
    if roi is None:
        raise ValueError("the local branch needs regions of interest: `Gan.step` finds them, or give `roi`")
    return roi


@dataclass(frozen=True)
class RawLosses:
    """Weights of the terms; 0 switches one off. `kind` is the adversarial loss, the penalties weigh against the critic's."""

    image: float = 1.0
    perceptual: float = 0.0
    adversarial: float = 0.01
    gradient_penalty: float = 0.0
    r1: float = 0.0
    kind: Kind = "non_saturating"


def raw(
    generator: Generator,
    discriminator: CriticOptions = CriticOptions(),
    losses: RawLosses = RawLosses(),
    perceptual: Perceptual = Perceptual(),
    extra: Extra = Extra(),
    g_optimiser: Optimiser = Optimiser(),
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.5, 0.999)),
    schedule: Schedule = Schedule(),
) -> Gan:
    """Recon-GLGAN on complex multi-coil data."""
    plays = 0.5 if losses.adversarial or extra.feature_matching else 0.0
    g_terms = terms(
        LossTerm("image", losses.image, relative),
        perceptual_term("perceptual", losses.perceptual, perceptual),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind=losses.kind)),
    )
    d_terms = critic_terms(plays, losses.kind, losses.gradient_penalty, losses.r1)
    find = partial(highest_energy, fraction=discriminator.roi_fraction)
    networks = (ContextCritic(discriminator),)
    return Gan(generator, networks, g_terms + extra_terms(extra), d_terms, g_optimiser, d_optimiser, schedule, find)


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class PublishedGenerator(Generator):
    """U-Net of two (conv 3x3, batch norm, ReLU) per level, 64 to 1024 channels, on a 160x160 magnitude image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encode = nn.ModuleList(_double(a, b) for a, b in pairwise([1, *widths]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(b, a, 2, 2), nn.BatchNorm2d(a), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.decode = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.last = nn.Conv2d(width, 1, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(m.weight, gain=math.sqrt(2))
                assert m.bias is not None
                nn.init.zeros_(m.bias)

    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled) and ``image``: real, and may be slightly negative, as the last layer is linear."""
        refuse_other_size(op.maps, SIZE, "Recon-GLGAN")
        start = op.adjoint(y)
        x, skips = magnitude(start), []
        for level, encode in enumerate(self.encode):
            x = encode(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, decode in zip(reversed(self.up), reversed(self.decode), strict=True):
            x = decode(torch.cat([up(x), skips.pop()], 1))
        image = self.last(x).to(start.real.dtype).reshape(start.shape)
        return {"start": start, "image": torch.complex(image, torch.zeros_like(image))}


def _double(a: int, b: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (a, b):
        layers += [nn.Conv2d(n, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


class PublishedBranch(nn.Module):
    """Convolutions 9x9, 5x5 and 5x5 without padding, each with a leaky ReLU and 2x2 average pooling, then two dense layers."""

    def __init__(self, n_flat: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 32, 9), nn.Conv2d(32, 64, 5), nn.Conv2d(64, 64, 5)])
        self.idle = nn.ModuleList(nn.BatchNorm2d(n) for n in (32, 64, 64)).requires_grad_(False)
        self.dense = nn.Sequential(nn.Linear(n_flat, 512), nn.LeakyReLU(0.2), nn.Linear(512, 64), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Magnitudes ``(n 1 y x)`` to activations; the last is ``(n 64)``."""
        found = []
        for conv in self.convs:
            x = F.avg_pool2d(F.leaky_relu(conv(x), 0.2), 2)
            found.append(x)
        return [*found, self.dense(x.flatten(1))]


class PublishedCritic(Discriminator):
    """The context discriminator on 160x160 images and 60x60 regions; without `context` the baseline GAN's."""

    def __init__(self, context: bool = True) -> None:
        super().__init__()
        self.whole = PublishedBranch(64 * 16 * 16)
        self.local = PublishedBranch(64 * 3 * 3) if context else None
        self.join = nn.Linear(128 if context else 64, 1)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        x = magnitude(image)
        found: list[Tensor] = self.whole(x)
        ends = [found[-1]]
        if self.local is not None:
            local: list[Tensor] = self.local(cut(x, _required(roi), (ROI, ROI)))
            ends.append(local[-1])
            found = found + local
        return [*found, self.join(torch.cat(ends, 1))]


def l1_to_magnitude(step: Step) -> Tensor:
    """``mean | x - |target| |`` of the network's real image, whose negative values count as they are."""
    return (step.image.real - step.target.abs()).abs().mean()


@dataclass(frozen=True)
class PublishedCriticOptions:
    """With the local branch, or the baseline GAN's critic without it."""

    context: bool = True


@dataclass(frozen=True)
class PublishedLosses:
    """Published weights."""

    image: float = 1.0
    adversarial: float = 4e-4


def published(
    generator: Generator,
    discriminator: PublishedCriticOptions = PublishedCriticOptions(),
    losses: PublishedLosses = PublishedLosses(),
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-3, "step", every=40, factor=0.1)),
    d_optimiser: Optimiser = Optimiser(LearningRate(5e-3), name="sgd"),
    schedule: Schedule = Schedule(mask_per="run", batch_size=2, max_epochs=150),
) -> Gan:
    """Recon-GLGAN as published."""
    g_terms = terms(
        LossTerm("image", losses.image, l1_to_magnitude),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind="non_saturating")),
    )
    d_terms = terms(LossTerm("critic", 0.5 if losses.adversarial else 0.0, partial(critic, kind="non_saturating")))
    networks = (PublishedCritic(discriminator.context),)
    return Gan(generator, networks, g_terms, d_terms, g_optimiser, d_optimiser, schedule, highest_energy)


PRESETS = {"raw": Preset(RawGenerator, raw), "published": Preset(PublishedGenerator, published)}
