"""Network blocks and image representations that two or more systems share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.errors import InputError
from models.parts.interface import Discriminator

Norm = Literal["none", "instance", "batch"]


# ---------------------------------------------------------------------------------------------------------------------------
# Images and channels


def to_channels(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to real ``(n 2 y x)``: real and imaginary part, the batch flattened."""
    return torch.view_as_real(image.reshape(-1, *image.shape[-2:]).resolve_conj()).movedim(-1, 1).contiguous()


def from_channels(channels: Tensor, like: Tensor) -> Tensor:
    """Real ``(n 2 y x)`` to complex with the shape and precision of `like`, ``(*batch y x)``.

    The precision is restored because autocast yields half precision, which has no complex numbers.
    """
    pairs = channels.movedim(1, -1).to(like.real.dtype).contiguous()
    return torch.view_as_complex(pairs).reshape(like.shape)


def magnitude(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to real ``(n 1 y x)``."""
    return image.abs().reshape(-1, 1, *image.shape[-2:])


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pad ``(n c y x)`` with its edge to multiples of `multiple`; return it and the crop that undoes the padding."""
    n_y, n_x = x.shape[-2:]
    more_y, more_x = -n_y % multiple, -n_x % multiple
    top, left = more_y // 2, more_x // 2
    padded = F.pad(x, (left, more_x - left, top, more_y - top), mode="replicate") if more_y or more_x else x
    return padded, lambda out: out[..., top : top + n_y, left : left + n_x]


def refuse_other_size(x: Tensor, size: int, system: str) -> None:
    """Raise `InputError` unless `x` is ``(*batch size size)``, as the published network requires."""
    if x.shape[-2:] != (size, size):
        given = f"{x.shape[-2]}x{x.shape[-1]}"
        raise InputError(f"{system} as published takes {size}x{size} images, got {given}", fix="use its raw preset")


# ---------------------------------------------------------------------------------------------------------------------------
# Networks of the raw presets


def normalisation(norm: Norm, n: int) -> nn.Module:
    """Normalisation layer over `n` channels.

    ``instance`` (Ulyanov 2016, arXiv 1607.08022) is one group per channel, which also takes one-pixel images and keeps no
    running averages: a slice's result depends neither on the other slices nor on their distribution over devices. With
    ``batch`` (Ioffe 2015, arXiv 1502.03167) it depends on both.
    """
    if norm == "instance":
        return nn.GroupNorm(n, n)
    return nn.BatchNorm2d(n) if norm == "batch" else nn.Identity()


def he_initialise(network: nn.Module, slope: float = 0.2) -> None:
    """Initialise as He 2015, doi:10.1109/ICCV.2015.123: normal weights that keep the variance under leaky ReLUs, biases 0.

    PyTorch's default shrinks a signal about threefold per layer, too much for a deep network without normalisation.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
            # A pixel of a transposed convolution of stride s sums k^2 / s^2 products per channel.
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.in_channels * module.weight[0, 0].numel() // (module.stride[0] * module.stride[1])
            nn.init.normal_(module.weight, std=math.sqrt(2 / ((1 + slope**2) * fan_in)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def activations(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Outputs of each of a chain of layers, the first applied to `x`, real ``(n c y x)``."""
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return found


def zero_last(conv: nn.Conv2d | nn.Conv3d) -> nn.Module:
    """Zero the last layer of a residual network, so that it starts as the identity, and return it."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by normalisation and a leaky ReLU: ``(n c y x)`` to ``(n d y x)``."""

    def __init__(self, n_in: int, n_out: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for n in (n_in, n_out):
            layers += [
                nn.Conv2d(n, n_out, 3, padding=1, bias=norm == "none"),
                normalisation(norm, n_out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        super().__init__(*layers)


def through_levels(
    x: Tensor, encode: nn.ModuleList, down: nn.ModuleList, bottom: nn.Module, up: nn.ModuleList, decode: nn.ModuleList
) -> Tensor:
    """Down and up the levels of a U-Net, each with its skip connection: features of the first level, real ``(n c y x)``."""
    skips = []
    for level, halve in zip(encode, down, strict=True):
        x = level(x)
        skips.append(x)
        x = halve(x)
    x = bottom(x)
    for double, level, skip in zip(reversed(up), reversed(decode), reversed(skips), strict=True):
        x = level(torch.cat([double(x), skip], 1))
    return x


class UNet(nn.Module):
    """U-Net (Ronneberger 2015, doi:10.1007/978-3-319-24574-4_28) for images of any size.

    Parameters
    ----------
    n_in, n_out
        Channels.
    width
        Channels of the first level; each level below has twice as many, up to 8 times.
    depth
        Number of halvings.
    norm
        See `normalisation`.
    down
        Halve by 2x2 average pooling, or by a 4x4 convolution of stride 2 with the matching transposed one on the way up.
    zero_init
        Zero the last layer, for a network that is added to its input.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 32,
        depth: int = 3,
        norm: Norm = "none",
        down: Literal["pool", "stride"] = "pool",
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"a U-Net needs width >= 1 and depth >= 1; got {width} and {depth}")
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        self.depth = depth
        self.encode = nn.ModuleList(DoubleConv(a, b, norm) for a, b in zip([n_in, *widths[:-2]], widths[:-1], strict=True))
        self.bottom = DoubleConv(widths[-2], widths[-1], norm)
        strided = down == "stride"
        self.down = nn.ModuleList(nn.Conv2d(w, w, 4, 2, 1) if strided else nn.AvgPool2d(2) for w in widths[:-1])
        size, pad = (4, 1) if strided else (2, 0)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, size, 2, pad) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(DoubleConv(2 * w, w, norm) for w in widths[:-1])
        self.last = nn.Conv2d(width, n_out, 1)
        he_initialise(self)
        if zero_init:
            zero_last(self.last)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)`` to ``(n n_out y x)``."""
        x, crop = pad_to_multiple(x, 2**self.depth)
        return crop(self.last(through_levels(x, self.encode, self.down, self.bottom, self.up, self.decode)))


class PreActivationBlock(nn.Module):
    """Residual block ``x + conv(act(norm(conv(act(norm(x))))))``, 3x3 (He 2016, doi:10.1007/978-3-319-46493-0_38)."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        first = nn.Conv2d(width, width, 3, padding=1)
        self.body = nn.Sequential(normalisation(norm, width), nn.LeakyReLU(0.2), first, normalisation(norm, width))
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n width y x)`` to the same."""
        out: Tensor = x + self.last(F.leaky_relu(self.body(x), 0.2))
        return out


class ResNet(nn.Module):
    """Residual blocks at one resolution, then three 1x1 convolutions.

    Squares of `fold` x `fold` pixels are folded into channels (Shi 2016, doi:10.1109/CVPR.2016.207): a `fold` times larger
    receptive field at the same cost. `n_in` channels, of which those beyond two are noise.
    """

    def __init__(self, width: int, blocks: int, fold: int, norm: Norm, n_in: int = 2) -> None:
        super().__init__()
        self.fold = fold
        self.body = nn.Sequential(
            nn.Conv2d(n_in * fold**2, width, 3, padding=1), *(PreActivationBlock(width, norm) for _ in range(blocks))
        )
        self.tail = nn.Sequential(nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(width, 2 * fold**2, 1)
        he_initialise(self)
        for module in self.body.modules():
            if isinstance(module, PreActivationBlock):
                # At full weight each block would double the variance.
                module.last.weight.data.mul_(0.1)
        zero_last(self.last)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)``, any size, to ``(n 2 y x)``."""
        x, crop = pad_to_multiple(x, self.fold)
        return crop(F.pixel_shuffle(self.last(self.tail(self.body(F.pixel_unshuffle(x, self.fold)))), self.fold))


class Spectral(nn.Module):
    """Layer with weights divided by their largest singular value (Miyato 2018, arXiv 1802.05957).

    One power iteration per call in training; its estimate `u` is real ``(n_out,)``. PyTorch's parametrisation cannot be sent to
    spawned processes.
    """

    u: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("u", F.normalize(torch.randn(layer.weight.shape[0]), dim=0))

    def weight(self) -> Tensor:
        """Weights of the layer over the power iteration's estimate of their largest singular value."""
        matrix = self.layer.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return self.layer.weight / (u @ matrix @ v)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalised layer to `x`, real ``(n c y x)`` or ``(n c)``."""
        out: Tensor = torch.func.functional_call(self.layer, {"weight": self.weight()}, (x,))
        return out


def maybe_spectral(layer: nn.Conv2d | nn.Linear, spectral: bool) -> nn.Module:
    """Initialise `layer` (`he_initialise`), and normalise it spectrally if `spectral`."""
    he_initialise(layer)
    return Spectral(layer) if spectral else layer


@dataclass(frozen=True)
class PatchOptions:
    """Options of a patch discriminator.

    Parameters
    ----------
    width, depth, norm
        As of a `UNet`.
    spectral
        Normalise the layers spectrally (`Spectral`).
    """

    width: int = 32
    depth: int = 4
    norm: Norm = "none"
    spectral: bool = False


class PatchDiscriminator(Discriminator):
    """Convolutions 4x4 of stride 2 with leaky ReLUs to a map of scores (Isola 2017, doi:10.1109/CVPR.2017.632); any image size.

    Parameters
    ----------
    view
        Representation that it sees, complex ``(*batch y x)`` to real ``(n c y x)``: `magnitude` or `to_channels`.
    n_channels
        Number c of its channels.
    options
        See there.
    """

    def __init__(self, view: Callable[[Tensor], Tensor], n_channels: int, options: PatchOptions) -> None:
        super().__init__()
        self.view, self.depth = view, options.depth
        widths = [n_channels, *(options.width * min(2**level, 8) for level in range(options.depth))]
        self.layers = nn.ModuleList()
        for level, (a, b) in enumerate(pairwise(widths)):
            norm = "none" if level == 0 else options.norm
            conv = maybe_spectral(nn.Conv2d(a, b, 4, 2, 1), options.spectral)
            self.layers.append(nn.Sequential(conv, normalisation(norm, b), nn.LeakyReLU(0.2)))
        self.layers.append(maybe_spectral(nn.Conv2d(widths[-1], 1, 3, padding=1), options.spectral))

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations ``(n c y x)`` of an image, complex ``(*batch y x)``; `roi` is not used."""
        x, _ = pad_to_multiple(self.view(image), 2**self.depth)
        return activations(self.layers, x)
