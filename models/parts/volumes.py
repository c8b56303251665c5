"""Volumes: a batch of planes whose last axis is the third of the image, as the planes of a 3-D scan are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def as_volumes(image: Tensor) -> Tensor:
    """Real ``(*batch z y x)``, or a plane ``(y x)``, to ``(n 1 z y x)``."""
    while image.ndim < 3:
        image = image[None]
    return image.reshape(-1, 1, *image.shape[-3:])


def volume_critic(
    width: int, dense: int, slope: float, norm: Callable[[int], nn.Module], first_norm: bool = False
) -> nn.ModuleList:
    """Layers of a 3-D critic, real ``(n 1 z y x)`` to one score ``(n 1)``.

    Eight 3x3x3 convolutions, every second of stride 2, of `width` to 8 `width` channels, each with `norm` and a leaky ReLU;
    the last map is averaged to 4x4x4 where it is larger, and two layers of `dense` and one channel follow.
    """
    layers = []
    plan = [(1, width, 1)]
    for k in range(4):
        n = width * 2**k
        plan += [(n, n, 2)] + ([(n, 2 * n, 1)] if k < 3 else [])
    for i, (a, b, stride) in enumerate(plan):
        norms = [norm(b)] if i or first_norm else []
        layers.append(nn.Sequential(nn.Conv3d(a, b, 3, stride, 1), *norms, nn.LeakyReLU(slope)))
    n = plan[-1][1]
    layers.append(
        nn.Sequential(nn.AdaptiveAvgPool3d(4), nn.Flatten(), nn.Linear(64 * n, dense), nn.LeakyReLU(slope), nn.Linear(dense, 1))
    )
    return nn.ModuleList(layers)
