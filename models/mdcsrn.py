"""mDCSRN-GAN: Chen et al., MICCAI 2018, doi:10.1007/978-3-030-00928-1_11, arXiv 1803.01417.

Densely connected super-resolution. A low-resolution acquisition is the central block of k-space (mask ``centre:4``: half the
points along each axis). The network takes the image at the full matrix, whose outer k-space is empty, and predicts what is
missing. Measured samples stay.

=====================  ==========================================================  =============================================
\\                      published                                                   raw (default)
=====================  ==========================================================  =============================================
image                  magnitude in [0, 1], patches of 64^3                        complex, any matrix; planes, or volumes
                                                                                   (``dims: 3``)
network                3x3x3; 32 filters, 4 dense blocks of 4 units (growth 16,    the same in 2-D with 3 blocks, no norm
                       batch norm, ELU), compressors to 32, 1x1x1
data consistency       none                                                        exact for one coil, else a regularised solve
critic                 64 to 512 filters, layer norm, FC 1024, FC 1                strided convolutions on planes
adversarial            WGAN, clipped at 0.01, weight 0.001; 7 critic steps         WGAN-GP, 0.001; 1 critic step
image term             squared error                                               relative error
optimiser              RMSProp 1e-4 (here Adam 1e-4, 0.5)                          Adam 1e-3, cosine
=====================  ==========================================================  =============================================

Architecture and schedule of the published preset are those of a replication, since the authors' code was never released.

*Volumes.* A 3-D scan is decoupled along its readout, which is sampled completely, so it is a batch of planes; with
``dims: 3`` the last axis of the batch is the network's third, and planes do see each other.

*Not reproduced*: 10,000 critic steps before the first and 200 after every 500 generator steps.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.adversarial import Kind, adversarial, discriminator_loss
from models.parts.consistency import Observation
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    activations,
    from_channels,
    he_initialise,
    to_channels,
    zero_last,
)
from models.parts.losses import l2, relative
from models.parts.raw import RawGenerator, RawGeneratorOptions, RawLosses, RawOptions, assemble
from models.parts.volumes import as_volumes, volume_critic

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class DenseUnit(nn.Module):
    """ELU and a 3x3 convolution without bias of all features before it, whose output is joined to them (Huang 2017)."""

    def __init__(self, n: int, growth: int, dims: int, norm: bool) -> None:
        super().__init__()
        self.norm = NORMS[dims](n) if norm else nn.Identity()
        self.conv = CONVOLUTIONS[dims](n, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c y x)`` or ``(n c z y x)`` to as many channels and `growth` more."""
        return torch.cat([x, self.conv(F.elu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Densely connected network at one resolution: compressors before the blocks, and the last layer, see all outputs so far.

    Parameters
    ----------
    n_in, n_out
        Channels.
    width, growth, blocks, units
        Channels of the first layer and the compressors, of a unit, number of blocks, and of units in each.
    dims
        2 or 3.
    norm
        Batch norm in the units.
    """

    def __init__(self, n_in: int, n_out: int, width: int, growth: int, blocks: int, units: int, dims: int, norm: bool) -> None:
        super().__init__()
        conv, each = CONVOLUTIONS[dims], width + units * growth
        self.first = conv(n_in, width, 3, padding=1, bias=False)
        self.compress = nn.ModuleList(conv(width + k * each, width, 1, bias=False) for k in range(1, blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DenseUnit(width + i * growth, growth, dims, norm) for i in range(units))) for _ in range(blocks)
        )
        self.last = conv(width + blocks * each, n_out, 1)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)`` or ``(n n_in z y x)`` to ``(n n_out y x)`` or ``(n n_out z y x)``."""
        x = self.first(x)
        found = [x]
        for k, block in enumerate(self.blocks):
            found.append(block(self.compress[k - 1](torch.cat(found, 1)) if k else x))
        out: Tensor = self.last(torch.cat(found, 1))
        return out


# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


@dataclass(frozen=True)
class MdcsrnGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, growth, blocks, units
        Of the `DenseNet`; 32, 16, 4 and 4 in the paper.
    dims
        2: each plane by itself; 3: the last axis of the batch is the third of the image.
    """

    width: int = 32
    growth: int = 16
    blocks: int = 3
    units: int = 4
    dims: int = 2

    def __post_init__(self) -> None:
        if self.dims not in CONVOLUTIONS:
            raise ValueError(f"dims is 2 or 3; got {self.dims}")
        if min(self.width, self.growth, self.blocks, self.units) < 1:
            raise ValueError("width, growth, blocks and units must be at least 1")


class MdcsrnGenerator(RawGenerator):
    """Densely connected network on the image at full matrix, then data consistency."""

    def __init__(self, options: MdcsrnGeneratorOptions = MdcsrnGeneratorOptions()) -> None:
        super().__init__(options)
        o = options
        self.network = DenseNet(2, 2, o.width, o.growth, o.blocks, o.units, o.dims, norm=False)
        zero_last(self.network.last)
        self.consistency = options.data_consistency(exact=True) if options.consistency else None

    def learned(self) -> list[nn.Module]:
        """The network."""
        return [self.network]

    def last_layers(self) -> list[nn.Module]:
        """That of the network."""
        return [self.network.last]

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """``image``, complex ``(*batch y x)``."""
        channels = to_channels(start)
        if self.options.dims == 3:
            n_z = start.shape[-3] if start.ndim > 2 else 1
            volumes = channels.unflatten(0, (-1, n_z)).transpose(1, 2)
            found = self.network(volumes).transpose(1, 2).flatten(0, 1)
        else:
            found = self.network(channels)
        image = start + from_channels(found, like=start) * observed.op.support
        return {"image": image if self.consistency is None else self.consistency(image, observed)}


@dataclass(frozen=True)
class MdcsrnLosses(RawLosses):
    """Loss weights; 0 switches a term off."""

    adversarial: float = 0.001
    gradient_penalty: float = 10.0
    kind: Kind = "wgan"


@dataclass(frozen=True)
class MdcsrnOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: MdcsrnGeneratorOptions = MdcsrnGeneratorOptions()
    discriminator: PatchOptions = PatchOptions()
    losses: MdcsrnLosses = MdcsrnLosses()


def raw(generator: Generator, options: MdcsrnOptions) -> Gan:
    """Assemble mDCSRN-GAN for complex multi-coil data."""
    critic = PatchDiscriminator(to_channels, 2, options.discriminator)
    return assemble(generator, options, critic, LossTerm("image", options.losses.image, relative))


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


@dataclass(frozen=True)
class PublishedMdcsrnGeneratorOptions:
    """Options of the published generator: those of its `DenseNet`."""

    width: int = 32
    growth: int = 16
    blocks: int = 4
    units: int = 4


class PublishedMdcsrnGenerator(Generator):
    """3-D densely connected network on the magnitude of the low-resolution image at full matrix."""

    homogeneous = False

    def __init__(self, options: PublishedMdcsrnGeneratorOptions = PublishedMdcsrnGeneratorOptions()) -> None:
        super().__init__()
        o = options
        self.network = DenseNet(1, 1, o.width, o.growth, o.blocks, o.units, 3, norm=True)

    def learned(self) -> list[nn.Module]:
        """The network."""
        return [self.network]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (A^H y) and ``image``, complex ``(*batch y x)``; the last axis of the batch is the third of the image."""
        start = op.adjoint(y)
        image = self.network(as_volumes(start.abs())).to(start.real.dtype)
        return {"start": start, "image": torch.complex(image.reshape(start.shape), torch.zeros_like(start.real))}


@dataclass(frozen=True)
class PublishedMdcsrnDiscriminatorOptions:
    """Options of the published critic: channels of the first level, and of the fully connected layer."""

    width: int = 64
    dense: int = 1024


class PublishedMdcsrnDiscriminator(Discriminator):
    """WGAN critic of magnitudes: 3x3x3 convolutions with layer norm, every second of stride 2; one score a volume."""

    def __init__(self, options: PublishedMdcsrnDiscriminatorOptions = PublishedMdcsrnDiscriminatorOptions()) -> None:
        super().__init__()
        self.layers = volume_critic(options.width, options.dense, 0.2, partial(nn.GroupNorm, 1))

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c z y x)`` of an image, complex ``(*batch y x)``, and the score ``(n 1)``; `roi` is not used."""
        return activations(self.layers, as_volumes(image.abs()))


@dataclass(frozen=True)
class PublishedMdcsrnLosses:
    """Weight of the adversarial term beside the squared error."""

    adversarial: float = 1e-3


RATE = Optimiser(LearningRate(1e-4), betas=(0.5, 0.999))


@dataclass(frozen=True)
class PublishedMdcsrnOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedMdcsrnGeneratorOptions = PublishedMdcsrnGeneratorOptions()
    discriminator: PublishedMdcsrnDiscriminatorOptions = PublishedMdcsrnDiscriminatorOptions()
    losses: PublishedMdcsrnLosses = PublishedMdcsrnLosses()
    g_optimiser: Optimiser = RATE
    d_optimiser: Optimiser = RATE
    schedule: Schedule = Schedule(n_discriminator=7, clip=0.01, clip_norms=True, batch_size=1)


def published(generator: Generator, options: PublishedMdcsrnOptions) -> Gan:
    """Assemble mDCSRN-GAN as published."""
    g_terms = terms(
        LossTerm("image", 1.0, partial(l2, view=as_magnitudes)),
        LossTerm("adversarial", options.losses.adversarial, partial(adversarial, kind="wgan")),
    )
    d_terms = terms(LossTerm("adversarial", 1.0, partial(discriminator_loss, kind="wgan")))
    critic = PublishedMdcsrnDiscriminator(options.discriminator)
    return Gan(generator, (critic,), g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


def as_magnitudes(image: Tensor) -> Tensor:
    """Real part of an image without phase, complex ``(*batch y x)`` to ``(n 1 y x)``; that of a network may be negative."""
    return image.real.reshape(-1, 1, *image.shape[-2:])


NARROW = {"generator": {"width": 8, "growth": 8, "blocks": 2, "units": 3}, "discriminator": {"width": 4}}
PUBLISHED_NARROW = {
    "generator": {"width": 4, "growth": 2, "blocks": 2, "units": 2},
    "discriminator": {"width": 2, "dense": 4},
}
PRESETS = {
    "raw": Preset("mDCSRN-GAN", MdcsrnGenerator, raw, MdcsrnOptions(), NARROW),
    "published": Preset("mDCSRN-GAN", PublishedMdcsrnGenerator, published, PublishedMdcsrnOptions(), PUBLISHED_NARROW),
}
