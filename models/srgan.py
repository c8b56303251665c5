"""SRGAN on the central block of k-space: Ledig 2017, doi:10.1109/CVPR.2017.19.

In 3-D: Sánchez and Vilaplana, MIDL 2018, arXiv 1812.11440. Upsampling by any factor: Hu 2019, doi:10.1109/CVPR.2019.00167
(on MRI Tan 2020, arXiv 2004.02086).

A low-resolution acquisition is the central block of k-space (mask ``centre:4``: half the points along each axis). Residual
blocks work on the matrix of that block; features are then brought to the full matrix. Measured samples stay.

=====================  ==========================================================  =============================================
\\                      published (3-D)                                             raw (default)
=====================  ==========================================================  =============================================
image                  magnitude in [0, 1]                                         complex, any matrix
input                  magnitude of the central block, 1/`scale` of each axis      the block that holds all samples
network                3x3x3, 32 features, 6 residual blocks, batch norm           3x3, 48 features, 8 residual blocks
upsampling             sub-pixel convolution by `scale`                            weights predicted from the factor and the
                                                                                   position between low-resolution pixels
data consistency       none                                                        exact for one coil, else a regularised solve
critic                 32 to 256 features, FC 1024, FC 1                           strided convolutions, magnitude
loss                   squared error, 0.1 LSGAN, gradient difference               relative error, 0.001 non-saturating
optimiser              Adam 1e-4                                                   Adam 1e-3, cosine
=====================  ==========================================================  =============================================

*Planes and volumes.* A 3-D scan is decoupled along its readout, which is sampled completely: it is a batch of planes that were
undersampled alike. The published preset takes that batch as its third axis and doubles the other two.

*Not reproduced*: soft labels that were drawn once when the graph was built, and Gaussian blur as the model of low resolution.
"""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.fourier import interpolate
from kspace.operators import Sense
from models.parts.adversarial import adversarial, discriminator_loss
from models.parts.consistency import Observation
from models.parts.contract import Preset
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, terms
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    PreActivationBlock,
    activations,
    from_channels,
    he_initialise,
    magnitude,
    to_channels,
)
from models.parts.losses import relative
from models.parts.raw import RawGenerator, RawGeneratorOptions, RawLosses, RawOptions, assemble
from models.parts.volumes import as_volumes, volume_critic

# ---------------------------------------------------------------------------------------------------------------------------
# Raw preset


def measured_block(mask: Tensor) -> tuple[int, int]:
    """Size ``(ky, kx)`` of the smallest central block that holds all samples of a mask, bool ``(... ky kx|1)``."""
    plane = mask.reshape(-1, *mask.shape[-2:]).any(0)
    found = []
    for axis in (1, 0):
        n = plane.shape[1 - axis]
        at = plane.any(axis).nonzero()[:, 0]
        if not len(at):
            found.append(n)
            continue
        below, above = n // 2 - int(at[0]), int(at[-1]) + 1 - n // 2
        # The central m of n points reach m // 2 below the origin and m - m // 2 from it on.
        found.append(min(n, max(2 * below, 2 * above - 1)))
    return found[0], found[1]


class ScaleUpsampler(nn.Module):
    """Upsampling by any factor: each pixel weighs the features of the nearest low-resolution pixel with weights predicted from
    its distance to that pixel and the factor (Meta-SR's upscale module, with one neighbour)."""

    def __init__(self, n: int, hidden: int = 64) -> None:
        super().__init__()
        self.n = n
        self.first = nn.Sequential(nn.Linear(4, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.last = nn.Linear(hidden, 2 * n)

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Real features ``(n c y x)`` to two channels ``(n 2 *shape)``."""
        rows, columns = (_nearest(n, m, x) for n, m in zip(x.shape[-2:], shape, strict=True))
        grid = torch.cat(
            [
                torch.stack(torch.broadcast_tensors(rows[1][:, None], columns[1]), -1),
                x.new_tensor([x.shape[-2] / shape[0], x.shape[-1] / shape[1]]).expand(*shape, 2),
            ],
            -1,
        )
        weights = self.last(self.first(grid)).unflatten(-1, (2, self.n))
        near = x[:, :, rows[0]][:, :, :, columns[0]]
        return torch.einsum("ncyx,yxkc->nkyx", near, weights.to(near.dtype))


def _nearest(n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `m` points the nearest of `n` points over the same field of view, and the distance from it in its pixels."""
    position = (torch.arange(m, device=like.device) - m // 2) * (n / m) + n // 2
    nearest = position.round().long().clamp(0, n - 1)
    return nearest, (position - nearest).to(torch.float32)


@dataclass(frozen=True)
class SrGanGeneratorOptions(RawGeneratorOptions):
    """Options of the raw generator, beside those of all raw generators.

    Parameters
    ----------
    width, blocks
        Channels and residual blocks at the matrix of the measured block; 64 and 16 in Ledig 2017.
    """

    width: int = 48
    blocks: int = 8

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1:
            raise ValueError("width and blocks must be at least 1")


class SrGanGenerator(RawGenerator):
    """Residual blocks at low resolution, scale-conditioned upsampling, data consistency."""

    def __init__(self, options: SrGanGeneratorOptions = SrGanGeneratorOptions()) -> None:
        super().__init__(options)
        n = options.width
        blocks = (PreActivationBlock(n, options.norm) for _ in range(options.blocks))
        self.body = nn.Sequential(nn.Conv2d(2, n, 3, padding=1), *blocks)
        self.upsample = ScaleUpsampler(n)
        he_initialise(self)
        for block in self.body[1:]:
            assert isinstance(block, PreActivationBlock)
            block.last.weight.data.mul_(0.1)  # at full weight each block would double the variance
        nn.init.zeros_(self.upsample.last.weight)
        nn.init.zeros_(self.upsample.last.bias)
        self.consistency = options.data_consistency(exact=True) if options.consistency else None

    def learned(self) -> list[nn.Module]:
        """Blocks and upsampling."""
        return [self.body, self.upsample]

    def last_layers(self) -> list[nn.Module]:
        """The weights' last layer."""
        return [self.upsample.last]

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """``image``, complex ``(*batch y x)``. Slices whose measured blocks differ go through the network one by one."""
        op, shape = observed.op, (start.shape[-2], start.shape[-1])
        flat = start.reshape(-1, *shape)
        masks = op.mask.expand(*start.shape[:-2], *op.mask.shape[-3:]) if op.mask.ndim > 3 else op.mask
        planes = masks.reshape(-1, *op.mask.shape[-2:]) if op.mask.ndim > 3 else op.mask.reshape(1, *op.mask.shape[-2:])
        blocks = [self._block(plane, shape) for plane in planes]
        if len(set(blocks)) == 1:
            correction = self._correction(flat, blocks[0])
        else:
            correction = torch.cat([self._correction(one[None], block) for one, block in zip(flat, blocks, strict=True)])
        image = start + correction.reshape(start.shape) * op.support
        return {"image": image if self.consistency is None else self.consistency(image, observed)}

    @staticmethod
    def _block(plane: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
        return measured_block(plane.expand(shape))

    def _correction(self, images: Tensor, block: tuple[int, int]) -> Tensor:
        low = to_channels(interpolate(images, block))
        return from_channels(self.upsample(self.body(low), (images.shape[-2], images.shape[-1])), like=images)


@dataclass(frozen=True)
class SrGanLosses(RawLosses):
    """Loss weights; 0 switches a term off."""

    adversarial: float = 0.001


@dataclass(frozen=True)
class SrGanOptions(RawOptions):
    """Sections of a configuration of the raw preset."""

    generator: SrGanGeneratorOptions = SrGanGeneratorOptions()
    discriminator: PatchOptions = PatchOptions(spectral=True)
    losses: SrGanLosses = SrGanLosses()


def raw(generator: Generator, options: SrGanOptions) -> Gan:
    """Assemble SRGAN for complex multi-coil data."""
    critic = PatchDiscriminator(magnitude, 1, options.discriminator)
    return assemble(generator, options, critic, LossTerm("image", options.losses.image, relative))


# ---------------------------------------------------------------------------------------------------------------------------
# Published preset


class Residual3d(nn.Module):
    """Two 3x3x3 convolutions with batch norm, plus the input."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(n, n, 3, padding=1),
            nn.BatchNorm3d(n),
            nn.LeakyReLU(0.25),
            nn.Conv3d(n, n, 3, padding=1),
            nn.BatchNorm3d(n),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n c z y x)`` to the same."""
        out: Tensor = x + self.body(x)
        return out


@dataclass(frozen=True)
class PublishedSrGanGeneratorOptions:
    """Options of the published generator: channels, residual blocks, and upsampling along y and x, 2 or 4."""

    width: int = 32
    blocks: int = 6
    scale: int = 2

    def __post_init__(self) -> None:
        if self.scale not in (2, 4):
            raise ValueError(f"scale is 2 or 4; got {self.scale}")


class PublishedSrGanGenerator(Generator):
    """3-D residual network on the magnitude at low resolution, sub-pixel upsampling of each plane."""

    homogeneous = False

    def __init__(self, options: PublishedSrGanGeneratorOptions = PublishedSrGanGeneratorOptions()) -> None:
        super().__init__()
        n, self.scale_factor = options.width, options.scale
        self.first = nn.Sequential(nn.Conv3d(1, n, 3, padding=1), nn.LeakyReLU(0.25))
        self.body = nn.Sequential(
            *(Residual3d(n) for _ in range(options.blocks)), nn.Conv3d(n, n, 3, padding=1), nn.BatchNorm3d(n)
        )
        self.up = nn.ModuleList(nn.Conv3d(n, 4 * n, 3, padding=1) for _ in range(options.scale // 2))
        self.last = nn.Conv3d(n, 1, 3, padding=1)

    def learned(self) -> list[nn.Module]:
        """All layers."""
        return [self.first, self.body, self.up, self.last]

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` (A^H y) and ``image``, complex ``(*batch y x)``; the last axis of the batch is the third of the image."""
        start = op.adjoint(y)
        low = tuple(max(1, n // self.scale_factor) for n in start.shape[-2:])
        x = self.first(as_volumes(interpolate(start, low).abs()))
        x = x + self.body(x)
        for conv in self.up:
            planes = F.pixel_shuffle(conv(x).transpose(1, 2).flatten(0, 1), 2)
            x = F.leaky_relu(planes.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2), 0.25)
        image = F.interpolate(self.last(x), (x.shape[2], *start.shape[-2:]))  # odd matrices
        return {"start": start, "image": torch.complex(image.reshape(start.shape), torch.zeros_like(start.real))}


@dataclass(frozen=True)
class PublishedSrGanDiscriminatorOptions:
    """Options of the published critic: channels of the first level, and of the fully connected layer."""

    width: int = 32
    dense: int = 1024


class PublishedSrGanDiscriminator(Discriminator):
    """Critic of magnitudes: 3x3x3 convolutions, every second of stride 2, two fully connected layers, one score a volume."""

    def __init__(self, options: PublishedSrGanDiscriminatorOptions = PublishedSrGanDiscriminatorOptions()) -> None:
        super().__init__()
        self.layers = volume_critic(options.width, options.dense, 0.3, nn.BatchNorm3d)

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c z y x)`` of an image, complex ``(*batch y x)``, and the score ``(n 1)``; `roi` is not used."""
        return activations(self.layers, as_volumes(image.abs()))


@dataclass(frozen=True)
class PublishedSrGanLosses:
    """Weights of the published terms."""

    adversarial: float = 0.1
    gradient_difference: float = 1.0


@dataclass(frozen=True)
class PublishedSrGanOptions:
    """Sections of a configuration of the published preset."""

    generator: PublishedSrGanGeneratorOptions = PublishedSrGanGeneratorOptions()
    discriminator: PublishedSrGanDiscriminatorOptions = PublishedSrGanDiscriminatorOptions()
    losses: PublishedSrGanLosses = PublishedSrGanLosses()
    g_optimiser: Optimiser = Optimiser(LearningRate(1e-4))
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4))
    schedule: Schedule = Schedule(batch_size=1)


def published(generator: Generator, options: PublishedSrGanOptions) -> Gan:
    """Assemble the 3-D SRGAN as published."""
    losses = options.losses
    g_terms = terms(
        LossTerm("image", 1.0, squared_error),
        LossTerm("gradient_difference", losses.gradient_difference, gradient_difference),
        LossTerm("adversarial", losses.adversarial, partial(adversarial, kind="lsgan")),
    )
    d_terms = terms(LossTerm("adversarial", 1.0, partial(discriminator_loss, kind="lsgan")))
    critic = PublishedSrGanDiscriminator(options.discriminator)
    return Gan(generator, (critic,), g_terms, d_terms, options.g_optimiser, options.d_optimiser, options.schedule)


def squared_error(step: Step) -> Tensor:
    """Sum over the pixels of the squared error of magnitudes, mean over slices: a real scalar."""
    return (step.image.real - step.target.abs()).square().sum((-2, -1)).mean()


def gradient_difference(step: Step) -> Tensor:
    """Sum of ``(|d x| - |d target|)^2`` of magnitudes over both axes (Mathieu 2016, arXiv 1511.05440), mean over slices."""
    x, target = step.image.real, step.target.abs()
    found = [(x.diff(dim=axis).abs() - target.diff(dim=axis).abs()).square().sum((-2, -1)).mean() for axis in (-1, -2)]
    return torch.stack(found).sum()


NARROW = {"generator": {"width": 16, "blocks": 3}, "discriminator": {"width": 4}}
PUBLISHED_NARROW = {"generator": {"width": 4, "blocks": 1}, "discriminator": {"width": 2, "dense": 4}}
PRESETS = {
    "raw": Preset("SRGAN", SrGanGenerator, raw, SrGanOptions(), NARROW),
    "published": Preset("SRGAN", PublishedSrGanGenerator, published, PublishedSrGanOptions(), PUBLISHED_NARROW),
}
