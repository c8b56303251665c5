"""VarNet: an unrolled network without a discriminator, the yardstick of the adversarial systems. Our own: no published preset.

Networks and data consistency alternate as in MoDL (Aggarwal 2019, doi:10.1109/TMI.2018.2865356), each solve with a weight of
its own, with the coil maps given instead of estimated as in the end-to-end variational network (Sriram 2020,
doi:10.1007/978-3-030-59713-9_7). The last network is used again in all further unrolls. The loss is the mean squared error of
the complex image and of the magnitude, both over the energy of the target, and the structural dissimilarity of magnitudes: what
an adversarial system gains or loses against this one is due to its loss and to its training, as the blocks are those of
RefineGAN's raw preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from models.parts.contract import Preset
from models.parts.interface import Gan, Generator, LossTerm
from models.parts.layers import UNet, magnitude
from models.parts.losses import nmse, structural_dissimilarity
from models.parts.raw import Cascade, RawGeneratorOptions, RawLosses, RawOptions, assemble


@dataclass(frozen=True)
class VarnetGeneratorOptions(RawGeneratorOptions):
    """Options of the generator, beside those of all raw generators.

    Parameters
    ----------
    width, depth
        See `models.parts.layers.UNet`.
    networks
        Number of U-Nets with weights of their own.
    unrolls
        Number of pairs of network and data consistency; the last network serves all pairs beyond `networks`.
    """

    width: int = 24
    depth: int = 3
    networks: int = 2
    unrolls: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.networks <= self.unrolls:
            raise ValueError(f"unrolls must be at least networks, and both at least 1; got {self.unrolls} and {self.networks}")


class VarnetGenerator(Cascade):
    """U-Nets on the complex image and regularised solves in turn."""

    options: VarnetGeneratorOptions

    def __init__(self, options: VarnetGeneratorOptions = VarnetGeneratorOptions()) -> None:
        each = options.width, options.depth, options.norm
        super().__init__(options, (UNet(2, 2, *each, zero_init=True) for _ in range(options.networks)), options.unrolls)

    def chain(self) -> list[nn.Module]:
        """The networks, the last one repeated."""
        return [self.networks[min(k, len(self.networks) - 1)] for k in range(self.options.unrolls)]


@dataclass(frozen=True)
class VarnetLosses(RawLosses):
    """Loss weights; 0 switches a term off. There is no discriminator, so `adversarial` must stay 0.

    Parameters
    ----------
    image, magnitude
        Weights of the squared error of the complex image and of the magnitude, over the energy of the target.
    ssim
        Weight of the structural dissimilarity.
    """

    image: float = 10.0
    magnitude: float = 10.0
    ssim: float = 1.0
    adversarial: float = 0.0


@dataclass(frozen=True)
class VarnetOptions(RawOptions):
    """Sections of a configuration."""

    generator: VarnetGeneratorOptions = VarnetGeneratorOptions()
    losses: VarnetLosses = VarnetLosses()


def raw(generator: Generator, options: VarnetOptions) -> Gan:
    """Assemble the network with its losses, without a discriminator."""
    losses = options.losses
    return assemble(
        generator,
        options,
        None,
        LossTerm("image", losses.image, nmse),
        LossTerm("magnitude", losses.magnitude, partial(nmse, view=magnitude)),
        LossTerm("ssim", losses.ssim, structural_dissimilarity),
    )


PRESETS = {"raw": Preset("VarNet", VarnetGenerator, raw, VarnetOptions(), {"generator": {"width": 8}})}
