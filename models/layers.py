"""Building blocks that two or more systems share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.data_consistency import data_consistency, regularised_solve
from kspace.errors import InputError
from kspace.operators import Sense
from models.interface import Discriminator

Norm = Literal["none", "instance", "batch"]
Start = Literal["sense", "adjoint"]


# ---------------------------------------------------------------------------------------------------------------------------
# Images and channels


def to_channels(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to real ``(n 2 y x)``: real and imaginary part, the batch flattened."""
    return torch.view_as_real(image.reshape(-1, *image.shape[-2:]).resolve_conj()).movedim(-1, 1).contiguous()


def from_channels(channels: Tensor, like: Tensor) -> Tensor:
    """Real ``(n 2 y x)`` to complex with the shape and precision of `like`, ``(*batch y x)``.

    The precision is restored because a network under autocast answers in half precision, which has no complex numbers.
    """
    pairs = channels.movedim(1, -1).to(like.real.dtype).contiguous()
    return torch.view_as_complex(pairs).reshape(like.shape)


def magnitude(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to real ``(n 1 y x)``."""
    return image.abs().reshape(-1, 1, *image.shape[-2:])


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Repeat the edge of ``(n c y x)`` until both sizes are multiples of `multiple`; also return the crop that undoes it."""
    n_y, n_x = x.shape[-2:]
    more_y, more_x = -n_y % multiple, -n_x % multiple
    top, left = more_y // 2, more_x // 2
    padded = F.pad(x, (left, more_x - left, top, more_y - top), mode="replicate") if more_y or more_x else x
    return padded, lambda out: out[..., top : top + n_y, left : left + n_x]


def refuse_other_size(x: Tensor, size: int, system: str) -> None:
    """Raise `InputError` unless the last two axes are `size` x `size`, as the published network needs them."""
    if x.shape[-2:] != (size, size):
        came = f"{x.shape[-2]}x{x.shape[-1]}"
        raise InputError(f"{system} as published takes {size}x{size} images, got {came}", fix="use its raw preset")


# ---------------------------------------------------------------------------------------------------------------------------
# Scale, starting image, data consistency


def slice_scale(y: Tensor, op: Sense) -> Tensor:
    """The intensity of the zero-filled image, `intensity` of ``A^H y``: real ``(*batch 1 1)``, homogeneous in `y`."""
    return intensity(op.adjoint(y))


@torch.no_grad()
def intensity(image: Tensor) -> Tensor:
    """One positive number per slice, from ``z = |image|``: ``sqrt(sum z^4 / sum z^2)``, or 1 for a slice of zeros.

    It is the intensity at which the energy of the slice lies: a single bright pixel moves it less than the maximum, and air
    around the object not at all. Complex ``(*batch y x)`` to real ``(*batch 1 1)``.
    """
    z = image.abs()
    # Fourth powers of 1e-10 leave the range of single precision: take them relative to the maximum.
    peak = z.amax((-2, -1), keepdim=True)
    power = (z / torch.where(peak > 0, peak, 1)).square()
    energy = power.sum((-2, -1), keepdim=True)
    rms = (power.square().sum((-2, -1), keepdim=True) / torch.where(energy > 0, energy, 1)).sqrt()
    return torch.where(peak > 0, peak * rms, 1)


OUTER = 0.375  # of the width of k-space: farther from the centre, noise is what most samples show
NOISE, RATE = -6.0, math.log(4)  # where the conditions of a scan are zero
# Where the slopes of log lamda over the conditions start. lamda is the variance of the noise over that of what the network gets
# wrong, which is in part noise too, and is larger at high rates and where undersampling acts along one axis.
SLOPES = (0.5, -0.5, -1.0)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured, with what every step towards an image needs of it, formed once.

    Attributes
    ----------
    y
        Complex ``(*batch coil ky kx)``.
    op
        Its forward model.
    zero_filled
        ``A^H y``, complex ``(*batch y x)``.
    back_projection
        ``A^H W y``; the same unless samples were measured several times.
    """

    y: Tensor
    op: Sense
    zero_filled: Tensor
    back_projection: Tensor

    @classmethod
    def of(cls, y: Tensor, op: Sense) -> Measurement:
        """`y`, and what follows from it."""
        zero_filled = op.adjoint(y)
        return cls(y, op, zero_filled, zero_filled if op.n_averages is None else op.back_projection(y))

    @classmethod
    def scaled(cls, y: Tensor, op: Sense) -> tuple[Measurement, Tensor]:
        """The measurement divided by its `slice_scale`, and what its images are multiplied by in the end.

        That is the same scale, but 0 for a slice of zeros, from which a network's biases would make an image.
        """
        given = cls.of(y, op)
        scale = intensity(given.zero_filled)
        unit = torch.where(given.zero_filled.abs().amax((-2, -1), keepdim=True) > 0, scale, 0)
        zero_filled = given.zero_filled / scale
        same = given.back_projection is given.zero_filled
        return cls(y / scale.unsqueeze(-3), op, zero_filled, zero_filled if same else given.back_projection / scale), unit

    @cached_property
    def conditions(self) -> Tensor:
        """`scan_conditions`; for a measurement in units of its scale."""
        return scan_conditions(self.y, self.op)


def starting_image(measured: Measurement, start: Start, lamda: float, tolerance: float) -> Tensor:
    """Where a network starts from: the regularised SENSE solve ``(A^H W A + lamda I) x = A^H W y``, or ``A^H y`` itself.

    Complex ``(*batch y x)``.
    """
    if start == "adjoint":
        return measured.zero_filled
    return regularised_solve(None, measured.back_projection, measured.op, lamda, tolerance=tolerance)


@torch.no_grad()
def scan_conditions(y: Tensor, op: Sense) -> Tensor:
    """What the best weight of a prior depends on, from the samples and the mask alone.

    Parameters
    ----------
    y
        Complex ``(*batch coil ky kx)``, divided by `slice_scale`.
    op
        Its forward model.

    Returns
    -------
    Tensor
        Real ``(*batch 3)``: logarithm of the noise variance of a sample plus 6, logarithm of the acceleration over 4, and 1
        where undersampling acts along one axis only, else 0. The noise is measured on the outermost samples, as the median of
        ``|y|^2`` over ln 2, so that nothing has to be known about the scanner.
    """
    mask = op.mask if op.mask.ndim > 2 else op.mask.unsqueeze(0)
    n_y, n_x = y.shape[-2:]
    mask = mask.expand(*mask.shape[:-2], n_y, n_x)
    ky, kx = ((torch.arange(n, device=y.device) - n // 2).abs() / n for n in (n_y, n_x))
    outer = (mask & (torch.maximum(ky[:, None], kx) > OUTER)).expand(y.shape)
    planes = zip(y.reshape(-1, *y.shape[-3:]), outer.reshape(-1, *y.shape[-3:]), strict=True)
    medians = torch.stack([_median_power(samples[there]) for samples, there in planes]).reshape(y.shape[:-3])
    sampled = mask.float().mean((-3, -2, -1))
    lines = (mask == mask[..., :1]).flatten(-3).all(-1) | (mask == mask[..., :1, :]).flatten(-3).all(-1)
    # A slice of zeros, or one without noise, is as good as the best scan.
    noise = (medians / math.log(2)).clamp(1e-4, 1).log() - NOISE
    found = [noise, -sampled.clamp_min(1e-3).log() - RATE, lines.to(noise.dtype)]
    return torch.stack(torch.broadcast_tensors(*found), -1)


def _median_power(samples: Tensor) -> Tensor:
    # Without a sample nothing is known of the noise: the condition is then 0.
    return samples.abs().square().median() if samples.numel() else samples.real.new_tensor(math.log(2) * math.exp(NOISE))


class Consistency(nn.Module):
    """Data consistency: ``(A^H A + lamda I) x = A^H y + lamda z``, or exact replacement where there is an exact answer.

    Several coils have no exact answer worth having (the operator is injective and ill-conditioned), so `lamda`, noise over
    signal variance, says how far it is inverted.

    Parameters
    ----------
    lamda
        Where it starts, or stays.
    learned
        Train its logarithm.
    exact
        Replace the samples where there is one coil of unit modulus, whatever `lamda` is.
    tolerance
        Relative residual of the solve. Far looser than the operators' default, to train at bearable speed. Ten times looser in
        the backward pass, which took more than twice as long as the forward one: a gradient of a few slices is noisier.
    adapt
        Let the logarithm of `lamda` be linear in the conditions of the scan (`scan_conditions`), with slopes that are learned
        as it is: what is right for a noisy scan of points is several times too much for lines that alias.
    """

    def __init__(
        self,
        lamda: float = 0.1,
        learned: bool = True,
        exact: bool = False,
        tolerance: float = 1e-3,
        adapt: bool = False,
    ) -> None:
        super().__init__()
        if not lamda > 0:
            raise ValueError(f"lamda must be positive; got {lamda}")
        self.log_lamda = nn.Parameter(torch.tensor(math.log(lamda)), requires_grad=learned)
        self.slopes = nn.Parameter(torch.tensor(SLOPES), requires_grad=learned) if adapt else None
        self.exact, self.tolerance = exact, tolerance

    def forward(self, image: Tensor, measured: Measurement) -> Tensor:
        """Complex image ``(*batch y x)``, and what was measured in units of its scale, to image."""
        op = measured.op
        if self.exact and op.n_coils == 1 and torch.allclose(op.maps.abs(), torch.ones_like(op.maps.real), atol=1e-4):
            return data_consistency(image, measured.y, op)
        # Below 1e-4 conjugate gradients need hundreds of iterations; above 1e2 the data are ignored.
        log_lamda: Tensor = self.log_lamda
        if self.slopes is not None:
            log_lamda = log_lamda + (measured.conditions * self.slopes).sum(-1)[..., None, None]
        lamda = log_lamda.clamp(math.log(1e-4), math.log(1e2)).exp()
        return regularised_solve(
            image, measured.back_projection, op, lamda, tolerance=self.tolerance, gradient_tolerance=10 * self.tolerance
        )


# ---------------------------------------------------------------------------------------------------------------------------
# TensorFlow's conventions


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output size ``ceil(n / stride)``, the odd pixel of padding at the end."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n in (x.shape[-1], x.shape[-2])]
        return super().forward(F.pad(x, [side for p in pads for side in (p // 2, p - p // 2)]))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with TensorFlow's SAME padding: output size ``n * stride``, the adjoint of `SameConv2d`."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel, stride, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        (k, _), (s, _) = self.kernel_size, self.stride
        before = max(k - s, 0) // 2
        n_y, n_x = (n * s for n in x.shape[-2:])
        full = super().forward(x)
        return full[..., before : before + n_y, before : before + n_x]


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose running variance is that of the batch itself, without Bessel's correction.

    TensorLayer and TensorFlow's plain layers keep it so. It matters where few values enter: at the 2x2 bottom of a deep U-Net.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(x.mean((0, 2, 3)).to(self.running_mean), momentum)
            self.running_var.lerp_(x.var((0, 2, 3), correction=0).to(self.running_var), momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class BatchStatistics2d(nn.BatchNorm2d):
    """Batch normalisation that always uses the statistics of its batch, with a trained shift and no scale.

    What TensorFlow's ``contrib.layers.batch_norm`` does by default when nobody tells it that training is over.
    """

    def __init__(self, n: int, eps: float = 1e-3) -> None:
        super().__init__(n, eps=eps, affine=False, track_running_stats=False)
        self.shift = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, None, self.shift, training=True, eps=self.eps)


# ---------------------------------------------------------------------------------------------------------------------------
# Networks of the raw presets


def normalisation(norm: Norm, n: int) -> nn.Module:
    """A normalisation layer over `n` channels.

    ``instance`` is written as one group per channel, which also takes one-pixel images; it keeps no running averages, so a
    slice's result depends neither on the other slices nor on how they are spread over devices. ``batch`` loses both.
    """
    if norm == "instance":
        return nn.GroupNorm(n, n)
    return nn.BatchNorm2d(n) if norm == "batch" else nn.Identity()


def he_initialise(network: nn.Module, slope: float = 0.2) -> None:
    """Keep the variance of activations from layer to layer (He 2015, doi:10.1109/ICCV.2015.123): weights of convolutions and
    linear layers from a normal distribution for leaky ReLUs of `slope`, biases 0.

    PyTorch's own start shrinks a signal about threefold per layer, which a deep network without normalisation cannot afford.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # A transposed convolution of stride s adds up k^2 / s^2 products per channel for each pixel.
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.in_channels * module.weight[0, 0].numel() // (module.stride[0] * module.stride[1])
            nn.init.normal_(module.weight, std=math.sqrt(2 / ((1 + slope**2) * fan_in)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def truncated_normal(network: nn.Module, std: float) -> None:
    """TensorFlow's usual start: weights from a normal distribution cut at two standard deviations, biases 0."""
    for m in network.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.trunc_normal_(m.weight, std=std, a=-2 * std, b=2 * std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def activations(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What each of a chain of layers puts out."""
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return found


def zero_last(conv: nn.Conv2d) -> nn.Conv2d:
    """Zero a layer's weights, so that the network it ends starts as the identity of its residual connection."""
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
        Start with an output of zero, for a network that is added to its input.
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
        skips = []
        for encode, down in zip(self.encode, self.down, strict=True):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = decode(torch.cat([up(x), skip], 1))
        return crop(self.last(x))


class Spectral(nn.Module):
    """A layer whose weights are divided by their largest singular value (Miyato 2018, arXiv 1802.05957).

    One power iteration per call in training. PyTorch's own parametrisation cannot be sent to spawned processes.
    """

    u: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("u", F.normalize(torch.randn(layer.weight.shape[0]), dim=0))

    def weight(self) -> Tensor:
        """The layer's weights over their largest singular value, as far as the iterations have found it."""
        matrix = self.layer.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return self.layer.weight / (u @ matrix @ v)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(self.layer, {"weight": self.weight()}, (x,))
        return out


def maybe_spectral(layer: nn.Conv2d | nn.Linear, spectral: bool) -> nn.Module:
    """`layer`, initialised, with spectral normalisation where asked for."""
    he_initialise(layer)
    return Spectral(layer) if spectral else layer


@dataclass(frozen=True)
class PatchCriticOptions:
    """Channels of the first level, halvings, normalisation, and whether layers are spectrally normalised."""

    width: int = 32
    depth: int = 4
    norm: Norm = "none"
    spectral: bool = False


class PatchCritic(Discriminator):
    """Convolutions 4x4 of stride 2, each with a leaky ReLU, to a map of scores: takes images of any size.

    Parameters
    ----------
    view
        Complex ``(*batch y x)`` to the real channels that it looks at: `magnitude` or `to_channels`.
    n_channels
        How many those are.
    """

    def __init__(self, view: Callable[[Tensor], Tensor], n_channels: int, options: PatchCriticOptions) -> None:
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
        x, _ = pad_to_multiple(self.view(image), 2**self.depth)
        return activations(self.layers, x)
