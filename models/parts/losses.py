"""Loss terms on the image and on k-space: pure functions of a `Step` that return a real scalar.

Conventions. Images and k-space of a `Step` are in units of the slice's scale, and the Fourier transform is orthonormal. Every
term averages over the slices of the batch, so its weight does not depend on the batch size. A *view* maps complex images
``(*batch y x)`` to the representation that a paper compares, ``(n c y x)``: the complex image, its magnitude, or two channels.
`images` names the entries of `Step.intermediates` that a term sums over. x is the reconstruction, ``||.||`` the Euclidean norm.

`orthonormal_weight` converts the weights of papers that used the unnormalised transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.fourier import fft
from models.parts.interface import Step
from models.parts.layers import magnitude

View = Callable[[Tensor], Tensor]


def complex_view(image: Tensor) -> Tensor:
    """Complex ``(*batch y x)`` to complex ``(n 1 y x)``: the modulus of the complex difference counts."""
    return image.reshape(-1, 1, *image.shape[-2:])


def orthonormal_weight(weight: float, matrix: Sequence[int], power: int) -> float:
    """Weight of a k-space term under the orthonormal transform, given that under the unnormalised one.

    The unnormalised transform is ``sqrt(ny * nx)`` times larger, for the matrix ``(ny, nx)``; the error enters to `power`.
    """
    return weight * math.prod(matrix) ** (power / 2)


# ---------------------------------------------------------------------------------------------------------------------------
# Image


def l1(step: Step, view: View = complex_view, images: Sequence[str] = ("image",)) -> Tensor:
    """Mean absolute error ``mean |x - target|``, summed over `images`."""
    target = view(step.target)
    return _sum((view(step.intermediates[name]) - target).abs().mean() for name in images)


def l2(step: Step, view: View = complex_view, images: Sequence[str] = ("image",)) -> Tensor:
    """Mean squared error ``mean |x - target|^2``, summed over `images`."""
    target = view(step.target)
    return _sum(_square(view(step.intermediates[name]) - target).mean() for name in images)


def nmse(step: Step, view: View = complex_view, squared: bool = True) -> Tensor:
    """Normalised error ``||x - target||^2 / ||target||^2`` of each slice.

    Without the squares where `squared` is False: the NMSE of Yang 2018, doi:10.1109/TMI.2017.2785879.
    """
    target = view(step.target)
    ratio = _ratio(_energy(view(step.image) - target), _energy(target))
    return (ratio if squared else _safe_sqrt(ratio)).mean()


def relative(
    step: Step, view: View = complex_view, images: Sequence[str] = ("image",), power: int = 1, floor: float = 0.01
) -> Tensor:
    """Error relative to that of the starting image: 1 where the network gains nothing.

    ``sum |x - target|^p / (sum |start - target|^p + floor^p * sum |target|^p)`` of each slice, summed over `images`: easy and
    hard slices, low and high accelerations have the same weight. `floor` limits that of slices without undersampling.
    """
    return _sum(relative_by_slice(step, view, name, power, floor).mean() for name in images)


def relative_by_slice(step: Step, view: View, name: str, power: int, floor: float) -> Tensor:
    """`relative` of the intermediate called `name` for each slice, real ``(n)``."""
    if "start" not in step.intermediates:
        raise ValueError("this loss compares with the starting image; return it in `Generator.intermediates` under 'start'")
    target, start = view(step.target), view(step.intermediates["start"]).detach()
    reference = _moment(start - target, power) + floor**power * _moment(target, power)
    return _ratio(_moment(view(step.intermediates[name]) - target, power), reference)


def log_relative(step: Step, view: View = complex_view, floor: float = 0.001) -> Tensor:
    """Logarithmic error ``1/2 log(sum |x - target|^2 / sum |start - target|^2 + floor)``, averaged over the slices.

    1 dB of PSNR is 0.115 for every slice and acceleration, down to `floor`, 30 dB; the slices that gain least dominate the
    mean of `relative`.
    """
    return (relative_by_slice(step, view, "image", 2, 0.01) + floor).log().mean() / 2


def structural_dissimilarity(step: Step, window: int = 7) -> Tensor:
    """Dissimilarity ``1 - SSIM`` of magnitudes: uniform window, sample covariance, the target's maximum as data range.

    Wang 2004, doi:10.1109/TIP.2003.819861, with the constants of scikit-image and fastMRI.
    """
    image, target = magnitude(step.image), magnitude(step.target)
    peak = target.amax((1, 2, 3), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    return 1 - ssim_map(image, target, window, 1, (0.01 * peak) ** 2, (0.03 * peak) ** 2, sample=True).mean()


def ssim_map(
    a: Tensor, b: Tensor, window: int, stride: int, c1: Tensor | float, c2: Tensor | float, sample: bool = False
) -> Tensor:
    """Structural similarity map (Wang 2004, doi:10.1109/TIP.2003.819861) of real images ``(n 1 y x)``, uniform windows.

    Constants `c1` and `c2` are scalars or ``(n 1 1 1)``; `sample` for the unbiased covariance. Returns real ``(n 1 y' x')``.
    """
    n = window**2
    bessel = n / (n - 1) if sample else 1.0
    mean_a, mean_b, aa, bb, ab = (F.avg_pool2d(x, window, stride) for x in (a, b, a * a, b * b, a * b))
    var_a, var_b = bessel * (aa - mean_a**2), bessel * (bb - mean_b**2)
    covariance = bessel * (ab - mean_a * mean_b)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (var_a + var_b + c2)


def total_variation(step: Step, view: View = complex_view, images: Sequence[str] = ("image",), reduce: str = "mean") -> Tensor:
    """Anisotropic total variation (Rudin 1992, doi:10.1016/0167-2789(92)90242-F), summed over the channels of `view`.

    ``reduce="mean"`` divides by the number of pixels of a slice; ``"sum"`` is TensorFlow's ``image.total_variation``.
    """

    def variation(x: Tensor) -> Tensor:
        per_slice = x.diff(dim=-1).abs().sum((1, 2, 3)) + x.diff(dim=-2).abs().sum((1, 2, 3))
        return (per_slice if reduce == "sum" else per_slice / math.prod(x.shape[-2:])).mean()

    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce is 'mean' or 'sum'; got {reduce!r}")
    return _sum(variation(view(step.intermediates[name])) for name in images)


# ---------------------------------------------------------------------------------------------------------------------------
# k-space


def kspace_masked(
    step: Step, power: int = 1, view: View | None = None, images: Sequence[str] = ("image",), over_all: bool = False
) -> Tensor:
    """Error ``mean |A x - y|^p`` over the acquired samples; with `over_all` over all entries of k-space, zeros included.

    With a `view`, of the channels of the complex difference of single-coil k-space: ``|re| + |im|`` in Quan 2018,
    doi:10.1109/TMI.2018.2820120.
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

    return _sum(error(step.intermediates[name]) for name in images)


def kspace_full(step: Step, power: int = 2, magnitudes: bool = False, view: View = complex_view) -> Tensor:
    """Error ``mean |F x - F target|^p`` over all of k-space; with `magnitudes` of the moduli, as the code of Yang 2018.

    doi:10.1109/TMI.2017.2785879.
    """
    a, b = (fft(view(x).to(step.target.dtype)) for x in (step.image, step.target))
    return _power(a.abs() - b.abs() if magnitudes else a - b, power).mean()


def frequency(step: Step) -> Tensor:
    """Scale-free k-space error ``||F x - F target||_1 / ||F target||_1`` of each slice, over all of k-space.

    Squared norms would give the image's NMSE (Parseval); moduli give the weak outer k-space more weight.
    """
    a, b = fft(complex_view(step.image)), fft(complex_view(step.target))
    return _ratio(_moment(a - b, 1), _moment(b, 1)).mean()


def data_consistency_error(step: Step) -> Tensor:
    """Relative residual of the data ``||A x - y||^2 / ||y||^2`` of each slice."""
    return _ratio(_energy(_coils(step.op.forward(step.image) - step.y)), _energy(_coils(step.y))).mean()


def held_out(step: Step) -> Tensor:
    """Self-supervised loss ``||A' x - y'||_2 / ||y'||_2 + ||A' x - y'||_1 / ||y'||_1``, y' being held out.

    Yaman 2020, doi:10.1002/mrm.28378.
    """
    if step.held_out is None:
        raise ValueError("nothing is held out in this step")
    y, op = step.held_out
    y, error = _coils(y), _coils(op.forward(step.image) - y)
    squared = _safe_sqrt(_ratio(_energy(error), _energy(y)))
    return (squared + _ratio(_moment(error, 1), _moment(y, 1))).mean()


def cyclic_measurement(step: Step, images: Sequence[str] = ("image",)) -> Tensor:
    """Cyclic loss from measurement to image to measurement: ``sum |A G(y) - y| / sum |y|`` of each slice.

    Quan 2018, doi:10.1109/TMI.2018.2820120.
    """
    y = _coils(step.y)
    reference = _moment(y, 1)
    return _sum(_ratio(_moment(_coils(step.op.forward(step.intermediates[n])) - y, 1), reference).mean() for n in images)


def cyclic_image(step: Step, images: Sequence[str] = ("image",)) -> Tensor:
    """Cyclic loss from image to measurement to image: ``sum |G(A target) - target| / sum |target|`` of each slice.

    Quan 2018, doi:10.1109/TMI.2018.2820120. It runs the generator again, on the noise-free measurement of the target; where `y`
    is that measurement, it equals the image loss.
    """
    again = step.generator.intermediates(step.op.forward(step.target), step.op)
    target = complex_view(step.target)
    return _sum(_ratio(_moment(complex_view(again[n]) - target, 1), _moment(target, 1)).mean() for n in images)


# ---------------------------------------------------------------------------------------------------------------------------
# Parameters


def generator_kernels(step: Step) -> Tensor:
    """`kernel_l1` of the generator."""
    return kernel_l1(step.generator)


def discriminator_kernels(step: Step) -> Tensor:
    """`kernel_l1` of the discriminator."""
    return kernel_l1(step.discriminator)


def kernel_l1(network: nn.Module) -> Tensor:
    """Sum of the absolute values of all convolution kernels of `network`, a real scalar."""
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
    """`numerator` over `denominator`, or over 1 for slices of zeros, which have no relative error."""
    return numerator / torch.where(denominator > 0, denominator, 1)


def _safe_sqrt(x: Tensor) -> Tensor:
    # The gradient of the root at 0 is infinite; there the loss is at its minimum and wants none.
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def _coils(y: Tensor) -> Tensor:
    return y.reshape(-1, *y.shape[-3:])
