"""Layers and initialisation under TensorFlow's conventions, which the published networks were defined in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output size ``ceil(n / stride)``, the odd pixel of padding at the end."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``(n n_in y x)`` to ``(n n_out ceil(y/stride) ceil(x/stride))``."""
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n in (x.shape[-1], x.shape[-2])]
        return super().forward(F.pad(x, [side for p in pads for side in (p // 2, p - p // 2)]))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with TensorFlow's SAME padding: output size ``n * stride``, the adjoint of `SameConv2d`."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel, stride, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Real ``(n n_in y x)`` to ``(n n_out stride*y stride*x)``; `output_size` is ignored."""
        (k, _), (s, _) = self.kernel_size, self.stride
        before = max(k - s, 0) // 2
        n_y, n_x = (n * s for n in x.shape[-2:])
        full = super().forward(x)
        return full[..., before : before + n_y, before : before + n_x]


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the biased batch variance in its running average, without Bessel's correction.

    Ioffe 2015, arXiv 1502.03167, as in TensorLayer and TensorFlow's plain layers. The difference matters where few values
    enter, at the 2x2 bottom of a deep U-Net.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise real ``(n c y x)``."""
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
    """Batch normalisation with the statistics of its batch, at test time too, a trained shift and no scale.

    The default of TensorFlow's ``contrib.layers.batch_norm`` where ``is_training`` is never set to False.
    """

    def __init__(self, n: int, eps: float = 1e-3) -> None:
        super().__init__(n, eps=eps, affine=False, track_running_stats=False)
        self.shift = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise real ``(n c y x)``."""
        return F.batch_norm(x, None, None, None, self.shift, training=True, eps=self.eps)


def truncated_normal(network: nn.Module, std: float) -> None:
    """Initialise as TensorFlow's truncated normal: weights of deviation `std` cut at two deviations, biases 0."""
    for m in network.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.trunc_normal_(m.weight, std=std, a=-2 * std, b=2 * std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
