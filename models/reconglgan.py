"""Recon-GLGAN: Murugesan et al., MLMIR 2019, arXiv 1908.09262.

A plain U-Net, and a discriminator with two branches: one for the whole image, one for a region of interest (in the paper, the
heart).

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  magnitude, 1 channel, 160x160, [0, 1]                       complex, any matrix, scaled by `slice_scale`
input                  |A^H y|                                                     regularised SENSE (or A^H y)
generator              U-Net 64-1024, batch norm, no residual; 31,044,289          start + U-Net of `width`, `depth`
data consistency       none                                                        one soft step at the end (`consistency`)
discriminator          global and local branch; 9,063,681 parameters               two branches of strided convolutions
                       (``context: false``: the global one alone; 8,578,689)
region of interest     60x60 around the centre of the data set's box               3/8 of the matrix around it
adversarial            binary cross-entropy, 4e-4                                  the same, 0.01
image term             L1, 1                                                       error over that of the start, 1
optimiser              G: Adam 1e-3, x 0.1 every 40 epochs; D: SGD 5e-3            Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Where the data set has no box, the region of highest energy of the target is used. Image and target are cropped alike.

Not reproduced: the `break` that leaves one batch per epoch, and the baseline's swapped labels. The normalisation layers that
the published discriminator declares and never uses (640 parameters) are kept, frozen, so that counts and weights files agree.

The published preset takes the k-space of a single-coil image with magnitudes in [0, 1].
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.adversarial import Kind, adversarial, discriminator_loss
from models.parts.consistency import Observation
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, terms
from models.parts.layers import UNet, activations, magnitude, maybe_spectral, refuse_other_size
from models.parts.losses import relative
from models.parts.raw import RawGenerator, RawGeneratorOptions, RawOptions, assemble, correction

SIZE, ROI = 160, 60

# ---------------------------------------------------------------------------------------------------------------------------
# Region of interest


def cut(x: Tensor, roi: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop windows of `size` around the centres of boxes, shifted to lie inside the image.

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
    """Box of highest energy among those of `fraction` of each side of the matrix; the first of equals.

    Complex ``(*batch y x)`` to integer ``(*batch 4)`` (`Step.roi`).
    """
    height, width = (_window(n, fraction) for n in target.shape[-2:])
    # Double precision: small window sums are differences of large running sums.
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


@dataclass(frozen=True)
class ReconGlganGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, depth
        See `models.parts.layers.UNet`.
    """

    width: int = 32
    depth: int = 3


class ReconGlganGenerator(RawGenerator):
    """U-Net that corrects the complex starting image, then one step of soft data consistency."""

    def __init__(self, options: ReconGlganGeneratorOptions = ReconGlganGeneratorOptions()) -> None:
        super().__init__(options)
        self.network = UNet(2, 2, options.width, options.depth, options.norm, down="pool", zero_init=True)
        self.consistency = options.data_consistency() if options.consistency else None

    def learned(self) -> list[nn.Module]:
        """The U-Net."""
        return [self.network]

    def last_layers(self) -> list[nn.Module]:
        """That of the U-Net."""
        return [self.network.last]

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """``network`` (before data consistency) and ``image``, complex ``(*batch y x)``."""
        network = start + correction(self.network, start, observed.op)
        return {"network": network, "image": network if self.consistency is None else self.consistency(network, observed)}


@dataclass(frozen=True)
class ContextOptions:
    """Options of the context discriminator.

    Parameters
    ----------
    width, depth
        Channels of the first level and number of halvings of each branch.
    context
        Add the local branch.
    roi_fraction
        Size of its window, as a fraction of the matrix.
    spectral
        Normalise the layers spectrally.
    """

    width: int = 32
    depth: int = 4
    context: bool = True
    roi_fraction: float = 0.375
    spectral: bool = True


class ContextDiscriminator(Discriminator):
    """Branches for the whole magnitude image and its region of interest, joined into one logit; any matrix."""

    def __init__(self, options: ContextOptions) -> None:
        super().__init__()
        self.fraction = options.roi_fraction
        self.whole = _branch(options)
        self.local = _branch(options) if options.context else None
        self.join = maybe_spectral(nn.Linear(128 if options.context else 64, 1), options.spectral)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations of an image, complex ``(*batch y x)``, and of the boxes `roi` in it, and the logit ``(n 1)``."""
        x = magnitude(image)
        found = activations(self.whole, x)
        ends = [found[-1]]
        if self.local is not None:
            size = _window(x.shape[-2], self.fraction), _window(x.shape[-1], self.fraction)
            found += activations(self.local, cut(x, _required(roi), size))
            ends.append(found[-1])
        return [*found, self.join(torch.cat(ends, 1))]


def _branch(options: ContextOptions) -> nn.ModuleList:
    widths = [1, *(options.width * min(2**level, 8) for level in range(options.depth))]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        conv = maybe_spectral(nn.Conv2d(a, b, 4, 2, 1), options.spectral)
        # One more row and column allow for an image of one pixel.
        layers.append(nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), conv, nn.LeakyReLU(0.2)))
    dense = maybe_spectral(nn.Linear(16 * widths[-1], 64), options.spectral)
    layers.append(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), dense, nn.LeakyReLU(0.2)))
    return nn.ModuleList(layers)


def _required(roi: Tensor | None) -> Tensor:
    if roi is None:
        raise ValueError("the local branch needs regions of interest: `Gan.step` finds them, or give `roi`")
    return roi


@dataclass(frozen=True)
class ReconGlganOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: ReconGlganGeneratorOptions = ReconGlganGeneratorOptions()
    discriminator: ContextOptions = ContextOptions()


def raw(generator: Generator, options: ReconGlganOptions) -> Gan:
    """Assemble Recon-GLGAN for complex multi-coil data."""
    return assemble(
        generator,
        options,
        ContextDiscriminator(options.discriminator),
        LossTerm("image", options.losses.image, relative),
        d_weight=0.5,
        find_roi=partial(highest_energy, fraction=options.discriminator.roi_fraction),
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


@dataclass(frozen=True)
class PublishedReconGlganGeneratorOptions:
    """Options of the published generator.

    Parameters
    ----------
    width
        Channels of the first level; 64 as published.
    """

    width: int = 64


class PublishedReconGlganGenerator(Generator):
    """U-Net of two (conv 3x3, batch norm, ReLU) per level, 64 to 1024 channels, on a 160x160 magnitude image."""

    homogeneous = False

    def __init__(self, options: PublishedReconGlganGeneratorOptions = PublishedReconGlganGeneratorOptions()) -> None:
        super().__init__()
        widths = [options.width * 2**level for level in range(5)]
        self.encode = nn.ModuleList(_double(a, b) for a, b in pairwise([1, *widths]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(b, a, 2, 2), nn.BatchNorm2d(a), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.decode = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.last = nn.Conv2d(options.width, 1, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(m.weight, gain=math.sqrt(2))
                assert m.bias is not None
                nn.init.zeros_(m.bias)

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.encode, self.up, self.decode, self.last]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (zero-filled) and ``image`` as complex ``(*batch 160 160)``.

        The image is real, with slightly negative values where the linear last layer yields them.
        """
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


@dataclass(frozen=True)
class PublishedReconGlganDiscriminatorOptions:
    """Options of the published discriminator.

    Parameters
    ----------
    context
        Add the local branch; without it, the discriminator of the baseline GAN.
    """

    context: bool = True


class PublishedReconGlganDiscriminator(Discriminator):
    """Context discriminator on 160x160 images and 60x60 regions."""

    def __init__(self, options: PublishedReconGlganDiscriminatorOptions = PublishedReconGlganDiscriminatorOptions()) -> None:
        super().__init__()
        context = options.context
        self.whole = PublishedBranch(64 * 16 * 16)
        self.local = PublishedBranch(64 * 3 * 3) if context else None
        self.join = nn.Linear(128 if context else 64, 1)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations of an image, complex ``(*batch 160 160)``, and of the boxes `roi` in it, and the logit ``(n 1)``."""
        x = magnitude(image)
        found: list[Tensor] = self.whole(x)
        ends = [found[-1]]
        if self.local is not None:
            local: list[Tensor] = self.local(cut(x, _required(roi), (ROI, ROI)))
            ends.append(local[-1])
            found = found + local
        return [*found, self.join(torch.cat(ends, 1))]


def l1_to_magnitude(step: Step) -> Tensor:
    """Error ``mean | x - |target| |`` of the network's real image, negative values included; a real scalar."""
    return (step.image.real - step.target.abs()).abs().mean()


@dataclass(frozen=True)
class PublishedReconGlganLosses:
    """Published weights.

    Parameters
    ----------
    image, adversarial
        Weights; 0 switches a term off.
    """

    image: float = 1.0
    adversarial: float = 4e-4


@dataclass(frozen=True)
class PublishedReconGlganOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedReconGlganGeneratorOptions = PublishedReconGlganGeneratorOptions()
    discriminator: PublishedReconGlganDiscriminatorOptions = PublishedReconGlganDiscriminatorOptions()
    losses: PublishedReconGlganLosses = PublishedReconGlganLosses()
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-3, "step", every=40, factor=0.1))
    d_optimiser: Optimiser = Optimiser(LearningRate(5e-3), name="sgd")
    schedule: Schedule = Schedule(mask_per="run", batch_size=2, max_epochs=150)


def published(generator: Generator, options: PublishedReconGlganOptions) -> Gan:
    """Assemble Recon-GLGAN as published."""
    losses = options.losses
    kind: Kind = "non_saturating"
    g_terms = terms(
        LossTerm("image", losses.image, l1_to_magnitude),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind=kind)),
    )
    d_terms = terms(LossTerm("adversarial", 0.5 if losses.adversarial else 0.0, partial(discriminator_loss, kind=kind)))
    networks = (PublishedReconGlganDiscriminator(options.discriminator),)
    training = options.g_optimiser, options.d_optimiser, options.schedule
    return Gan(generator, networks, g_terms, d_terms, *training, highest_energy)


PRESETS = {
    "raw": Preset(
        "Recon-GLGAN",
        ReconGlganGenerator,
        raw,
        ReconGlganOptions(),
        {"generator": {"width": 8}, "discriminator": {"width": 4}},
        convention="reconglgan",
    ),
    "published": Preset(
        "Recon-GLGAN",
        PublishedReconGlganGenerator,
        published,
        PublishedReconGlganOptions(),
        {"generator": {"width": 4}},
        SIZE,
        "reconglgan",
    ),
}
