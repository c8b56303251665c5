"""Loss terms on the image and on k-space: pure functions of a `Step` that return a real scalar.

Conventions. Images and k-space of a `Step` are in units of the slice's scale and the Fourier transform is orthonormal. Every
term averages over the slices of the batch, so its weight does not depend on the batch size. A *view* turns complex images
``(*batch y x)`` into what a paper compares, ``(n c y x)``: the complex image itself, its magnitude, or two channels.

Papers that used the unnormalised transform are converted with `orthonormal_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.fourier import fft
from models.interface import Step
from models.layers import magnitude

View = Callable[[Tensor], Tensor]


def complex_view(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to complex ``(n 1 y x)``: differences are moduli of complex differences."""
    return image.reshape(-1, 1, *image.shape[-2:])


def orthonormal_weight(weight: float, matrix: Sequence[int], power: int) -> float:
    """The weight of a k-space term under the orthonormal transform, given that under the unnormalised one.

    The unnormalised transform is ``sqrt(ny * nx)`` times larger: an error to the power 1 or 2 takes that power of it.
    """
    return weight * math.prod(matrix) ** (power / 2)


# ---------------------------------------------------------------------------------------------------------------------------
# Image


def l1(step: Step, view: View = complex_view, stages: Sequence[str] = ("image",)) -> Tensor:
    """``mean |x - target|``, summed over `stages`."""
    target = view(step.target)
    return _sum((view(step.stages[name]) - target).abs().mean() for name in stages)


def l2(step: Step, view: View = complex_view, stages: Sequence[str] = ("image",)) -> Tensor:
    """``mean |x - target|^2``, summed over `stages`."""
    target = view(step.target)
    return _sum(_square(view(step.stages[name]) - target).mean() for name in stages)


def nmse(step: Step, view: View = complex_view, squared: bool = True) -> Tensor:
    """``||x - target||^2 / ||target||^2``, slice by slice; without the squares where `squared` is False (DAGAN's NMSE)."""
    target = view(step.target)
    ratio = _ratio(_energy(view(step.image) - target), _energy(target))
    return (ratio if squared else _safe_sqrt(ratio)).mean()


def relative(
    step: Step, view: View = complex_view, stages: Sequence[str] = ("image",), power: int = 1, floor: float = 0.01
) -> Tensor:
    """Error over the error that the generator started with: 1 means that nothing was gained over its first image.

    ``sum |x - target|^p / (sum |start - target|^p + floor^p * sum |target|^p)``, slice by slice, so that easy and hard slices,
    low and high accelerations, weigh the same. `floor` keeps slices without any undersampling from ruling the mean. Summed over
    `stages`.
    """
    return _sum(relative_by_slice(step, view, name, power, floor).mean() for name in stages)


def relative_by_slice(step: Step, view: View, stage: str, power: int, floor: float) -> Tensor:
    """`relative` of one stage, real ``(n)``, before the mean over slices."""
    if "start" not in step.stages:
        raise ValueError("this loss compares with the generator's starting image, and its stages name none")
    target, start = view(step.target), view(step.stages["start"]).detach()
    reference = _moment(start - target, power) + floor**power * _moment(target, power)
    return _ratio(_moment(view(step.stages[stage]) - target, power), reference)


def log_relative(step: Step, view: View = complex_view, floor: float = 0.001) -> Tensor:
    """Logarithm of the root of `relative` with squares: a decibel of PSNR is 0.115, whatever the slice and its acceleration.

    ``1/2 log(sum |x - target|^2 / sum |start - target|^2 + floor)``, slice by slice. A mean of relative errors is ruled by the
    slices that gain least; here a tenth of the error counts alike for all, down to `floor`, 30 dB.
    """
    return (relative_by_slice(step, view, "image", 2, 0.01) + floor).log().mean() / 2


def structural_dissimilarity(step: Step, window: int = 7) -> Tensor:
    """``1 - SSIM`` of magnitudes with a uniform window and sample covariance, the range being the target's maximum.

    Wang 2004, doi:10.1109/TIP.2003.819861, with the constants of scikit-image and fastMRI.
    """
    image, target = magnitude(step.image), magnitude(step.target)
    peak = target.amax((1, 2, 3), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    return 1 - ssim_map(image, target, window, 1, (0.01 * peak) ** 2, (0.03 * peak) ** 2, sample=True).mean()


def ssim_map(
    a: Tensor, b: Tensor, window: int, stride: int, c1: Tensor | float, c2: Tensor | float, sample: bool = False
) -> Tensor:
    """Structural similarity of real images ``(n 1 y x)`` in each uniform window; `sample` for the unbiased covariance."""
    n = window**2
    bessel = n / (n - 1) if sample else 1.0
    mean_a, mean_b, aa, bb, ab = (F.avg_pool2d(x, window, stride) for x in (a, b, a * a, b * b, a * b))
    var_a, var_b = bessel * (aa - mean_a**2), bessel * (bb - mean_b**2)
    covariance = bessel * (ab - mean_a * mean_b)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (var_a + var_b + c2)


def total_variation(step: Step, view: View = complex_view, stages: Sequence[str] = ("image",), reduce: str = "mean") -> Tensor:
    """Sum of absolute differences between neighbours along rows and columns (anisotropic), over the channels of `view`.

    ``reduce="mean"`` divides it by the number of pixels of a slice; ``"sum"`` is TensorFlow's ``image.total_variation``.
    """

    def variation(x: Tensor) -> Tensor:
        per_slice = x.diff(dim=-1).abs().sum((1, 2, 3)) + x.diff(dim=-2).abs().sum((1, 2, 3))
        return (per_slice if reduce == "sum" else per_slice / math.prod(x.shape[-2:])).mean()

    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce is 'mean' or 'sum'; got {reduce!r}")
    return _sum(variation(view(step.stages[name])) for name in stages)


# ---------------------------------------------------------------------------------------------------------------------------
# k-space


def kspace_masked(
    step: Step, power: int = 1, view: View | None = None, stages: Sequence[str] = ("image",), over_all: bool = False
) -> Tensor:
    """``mean |A x - y|^p`` over the acquired samples; over all entries of k-space with `over_all`, zeros included.

    `view`, given, turns the complex difference of single-coil k-space into channels first (RefineGAN sums |re| and |im|).
    """
    n_sampled = step.op.mask.expand_as(step.y).sum().clamp(min=1)
    n_all = step.y.numel()

    def error(image: Tensor) -> Tensor:
        difference = step.op.forward(image) - step.y
        if view is None:
            return _power(difference, power).sum() / (n_all if over_all else n_sampled)
        channels = view(difference)
        mean = _power(channels, power).mean()
        return mean if over_all else mean * n_all / n_sampled

    return _sum(error(step.stages[name]) for name in stages)


def kspace_full(step: Step, power: int = 2, magnitudes: bool = False, view: View = complex_view) -> Tensor:
    """``mean |F x - F target|^p`` over all of k-space; of the difference of moduli with `magnitudes` (DAGAN's code)."""
    a, b = (fft(view(x).to(step.target.dtype)) for x in (step.image, step.target))
    return _power(a.abs() - b.abs() if magnitudes else a - b, power).mean()


def frequency(step: Step) -> Tensor:
    """``||F x - F target||_1 / ||F target||_1`` over all of k-space, slice by slice: what raw presets use, free of any scale.

    The square of it would be the image's NMSE again (Parseval); the modulus weighs the faint outer k-space more.
    """
    a, b = fft(complex_view(step.image)), fft(complex_view(step.target))
    return _ratio(_moment(a - b, 1), _moment(b, 1)).mean()


def data_consistency_error(step: Step) -> Tensor:
    """``||A x - y||^2 / ||y||^2``, slice by slice: how far the image is from explaining the measurement."""
    return _ratio(_energy(_coils(step.op.forward(step.image) - step.y)), _energy(_coils(step.y))).mean()


def held_out(step: Step) -> Tensor:
    """``||A' x - y'||_2 / ||y'||_2 + ||A' x - y'||_1 / ||y'||_1``, of samples y' that the generator did not see.

    The loss of self-supervised training: Yaman 2020, doi:10.1002/mrm.28378.
    """
    if step.held_out is None:
        raise ValueError("nothing is held out in this step")
    y, op = step.held_out
    y, error = _coils(y), _coils(op.forward(step.image) - y)
    squared = _safe_sqrt(_ratio(_energy(error), _energy(y)))
    return (squared + _ratio(_moment(error, 1), _moment(y, 1))).mean()


def cyclic_measurement(step: Step, stages: Sequence[str] = ("image",)) -> Tensor:
    """RefineGAN's loop measurement -> image -> measurement: ``sum |A G(y) - y| / sum |y|``, slice by slice.

    Quan 2018, doi:10.1109/TMI.2018.2820120.
    """
    y = _coils(step.y)
    reference = _moment(y, 1)
    return _sum(_ratio(_moment(_coils(step.op.forward(step.stages[n])) - y, 1), reference).mean() for n in stages)


def cyclic_image(step: Step, stages: Sequence[str] = ("image",)) -> Tensor:
    """RefineGAN's loop image -> measurement -> image: ``sum |G(A target) - target| / sum |target|``, slice by slice.

    One more run of the generator, on the noise-free measurement of the target. Where `y` is that measurement already, it is the
    plain image loss.
    """
    again = step.generator.stages(step.op.forward(step.target), step.op)
    target = complex_view(step.target)
    return _sum(_ratio(_moment(complex_view(again[n]) - target, 1), _moment(target, 1)).mean() for n in stages)


# ---------------------------------------------------------------------------------------------------------------------------
# Parameters


def generator_kernels(step: Step) -> Tensor:
    """Sum of the absolute values of the generator's convolution kernels."""
    return kernel_l1(step.generator)


def critic_kernels(step: Step) -> Tensor:
    """The same of the critic's."""
    return kernel_l1(step.discriminator)


def kernel_l1(network: nn.Module) -> Tensor:
    """Sum of the absolute values of all convolution kernels."""
    return _sum(m.weight.abs().sum() for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


# ---------------------------------------------------------------------------------------------------------------------------


def _sum(values: object) -> Tensor:
    return torch.stack(list(values)).sum()  # type: ignore[call-overload]


def _square(x: Tensor) -> Tensor:
    # |x|^2 without the root that abs() takes of it, whose gradient is not defined at 0.
    return torch.view_as_real(x.resolve_conj()).square().sum(-1) if x.is_complex() else x.square()


def _power(x: Tensor, power: int) -> Tensor:
    if power not in (1, 2):
        raise ValueError(f"power is 1 or 2; got {power}")
    return x.abs() if power == 1 else _square(x)


def _moment(x: Tensor, power: int) -> Tensor:
    return _power(x, power).sum((1, 2, 3))


def _energy(x: Tensor) -> Tensor:
    return _moment(x, 2)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Slices of nothing but zeros have no relative error: theirs counts as it is."""
    return numerator / torch.where(denominator > 0, denominator, 1)


def _safe_sqrt(x: Tensor) -> Tensor:
    # The gradient of the root at 0 is infinite; there the loss is at its minimum and wants none.
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def _coils(y: Tensor) -> Tensor:
    return y.reshape(-1, *y.shape[-3:])
