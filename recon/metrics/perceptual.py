"""Perceptual metrics: distances between network features, available if the weights are.

``mr``
    Bundled network trained on MR images (`models.parts.features`). Comparable only with itself.
``lpips``
    Zhang et al. 2018, doi:10.1109/CVPR.2018.00068, version 0.1 on VGG-16.
``dists``
    Ding et al. 2020, doi:10.1109/TPAMI.2020.3045810.

LPIPS and DISTS use their authors' weights: torchvision's VGG-16 from its cache (or a given file), and the trained layers in
the package torchmetrics, a dependency of Lightning, verified by SHA-256. Nothing is downloaded and untrained features are never
used: functions return None if weights are missing, and `why_not` gives the reason.

Volumes are ``(slice y x)``, real or complex (magnitude). Each slice is divided by the largest magnitude of its target and
clipped to [0, 1]; grey images become three equal channels; nothing is resized. Values are means over the slices; 0 for equal
images, smaller is better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kspace.errors import InputError

if TYPE_CHECKING:
    from models.parts.perceptual import Vgg

METRICS = ("mr", "lpips", "dists")
TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
# Files of torchmetrics and their SHA-256, verified to be the authors' weights.
HEADS = {
    "lpips": ("lpips_models/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "dists": ("dists_models/weights.pt", "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"),
}
MIN_SIDE = 32  # pixels, 2 after four halvings


def mr_distance(target: NDArray, image: NDArray, weights: Path | None = None) -> float | None:
    """Feature distance of the bundled MR network.

    LPIPS without learned channel weights: activations are normalised over the channels at each position; squared differences
    are summed over channels and averaged over positions and the four levels.

    Parameters
    ----------
    target, image
        ``(slice y x)``.
    weights
        Weight file of the network; None for the bundled weights.

    Returns
    -------
    float or None
        None if the weights are missing.
    """
    return _measured("mr", target, image, weights)


def lpips(target: NDArray, image: NDArray, backbone: Path | None = None) -> float | None:
    """LPIPS on VGG-16 of volumes ``(slice y x)``; None if weights are missing.

    `backbone` is a VGG-16 weight file; None for torchvision's cache.
    """
    return _measured("lpips", target, image, backbone)


def dists(target: NDArray, image: NDArray, backbone: Path | None = None) -> float | None:
    """DISTS of volumes ``(slice y x)``; `backbone` as for `lpips`. None if weights are missing."""
    return _measured("dists", target, image, backbone)


def why_not(metric: str, path: Path | None = None) -> str | None:
    """Reason why a metric of `METRICS` is unavailable; None if it is available. `path` is its weight file, if any."""
    try:
        _distance(metric, path)
    except InputError as error:
        return str(error)
    return None


def _measured(metric: str, target: NDArray, image: NDArray, path: Path | None) -> float | None:
    if target.shape != image.shape or target.ndim != 3:
        raise ValueError(f"target and image must both be (slice y x); got {target.shape} and {image.shape}")
    if min(target.shape[1:]) < MIN_SIDE:
        return None
    try:
        distance = _distance(metric, path)
    except InputError:
        return None
    values = []
    with torch.inference_mode():
        for wanted, found in zip(target, image, strict=True):  # slice by slice, because VGG activations are large
            values.append(float(distance(*_scaled(wanted, found))))
    return float(np.mean(values))


def _scaled(target: NDArray, image: NDArray) -> tuple[Tensor, Tensor]:
    """Both slices ``(y x)`` scaled to [0, 1], float32 ``(1 1 y x)``."""
    pair = [np.abs(x).astype(np.float64) for x in (target, image)]
    peak = pair[0].max() or 1.0  # a zero slice is not scaled
    scaled = [torch.from_numpy((x / peak).astype(np.float32)).clamp(0, 1)[None, None] for x in pair]
    return scaled[0], scaled[1]


Distance = Callable[[Tensor, Tensor], Tensor]


def _distance(metric: str, path: Path | None) -> Distance:
    """Distance function of two slices ``(1 1 y x)`` in [0, 1].

    Raises
    ------
    InputError
        If weights are missing.
    """
    if metric == "mr":
        from models.parts.features import MR_WEIGHTS

        return _mr(path or MR_WEIGHTS)
    backbone = path or _cached_vgg()
    if not backbone.is_file():
        fix = f"put torchvision's {backbone.name} there" if path is None else "give a VGG-16 weight file"
        raise InputError("VGG-16 weights not found", backbone, fix)
    return _lpips(backbone) if metric == "lpips" else _dists(backbone)


def _cached_vgg() -> Path:
    from models.parts.perceptual import SOURCES

    return Path(torch.hub.get_dir()) / "checkpoints" / SOURCES["vgg16"].file


# Failures are not cached: weights may be added later.
@lru_cache(maxsize=2)
def _mr(path: Path) -> Distance:
    from models.parts.features import load_mr_features

    network = load_mr_features(path)

    def distance(target: Tensor, image: Tensor) -> Tensor:
        pairs = zip(network.features(target), network.features(image), strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).mean()

    return distance


@lru_cache(maxsize=2)
def _lpips(backbone: Path) -> Distance:
    state, network = _head("lpips"), _vgg(backbone)
    heads = [state[f"lin{i}.model.1.weight"] for i in range(len(TAPS))]

    def distance(target: Tensor, image: Tensor) -> Tensor:
        # LPIPS' normalisation of [-1, 1] equals ImageNet's of [0, 1].
        features = zip(heads, network.activations(target), network.activations(image), strict=True)
        return torch.stack([(head * (_unit(a) - _unit(b)).square()).sum(1).mean() for head, a, b in features]).sum()

    return distance


@lru_cache(maxsize=2)
def _dists(backbone: Path) -> Distance:
    state, network = _head("dists"), _vgg(backbone)
    for i, layer in enumerate(network.features):
        if isinstance(layer, torch.nn.MaxPool2d):
            network.features[i] = _L2Pool()
    total = state["alpha"].sum() + state["beta"].sum()
    alpha, beta = ((state[name] / total).flatten() for name in ("alpha", "beta"))

    def features(x: Tensor) -> list[Tensor]:
        return [x.expand(-1, 3, -1, -1), *network.activations(x)]

    def distance(target: Tensor, image: Tensor) -> Tensor:
        like = [_alike(a, b) for a, b in zip(features(target), features(image), strict=True)]
        means, textures = (torch.cat(values) for values in zip(*like, strict=True))
        return 1 - (alpha * means).sum() - (beta * textures).sum()

    return distance


class _L2Pool(torch.nn.Module):
    """DISTS' L2 pooling: 3x3 Hann window, stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        window = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = (window[:, None] * window).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity of mean and texture per channel ``(channel)``, from activations ``(1 channel y x)``."""
    mean_a, mean_b = a.mean((0, 2, 3)), b.mean((0, 2, 3))
    variances = a.var((0, 2, 3), correction=0) + b.var((0, 2, 3), correction=0)
    covariance = (a * b).mean((0, 2, 3)) - mean_a * mean_b
    means = (2 * mean_a * mean_b + 1e-6) / (mean_a.square() + mean_b.square() + 1e-6)
    return means, (2 * covariance + 1e-6) / (variances + 1e-6)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _vgg(backbone: Path) -> Vgg:
    from models.parts.perceptual import load_vgg

    network = load_vgg("vgg16", TAPS, weights=backbone)
    for layer in network.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.ceil_mode = False  # as in torchvision and LPIPS
    return network


def _head(metric: str) -> dict[str, Tensor]:
    """Trained weights on top of VGG features, from the installed torchmetrics."""
    name, expected = HEADS[metric]
    found = find_spec("torchmetrics")
    path = Path(found.origin).parent / "functional" / "image" / name if found and found.origin else Path(name)
    if not path.is_file():
        raise InputError(f"the installed torchmetrics has no weights of {metric}", path, "install torchmetrics 1.9")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"the checksum is not that of the {metric} weights", path, "install torchmetrics 1.9")
    # Safe: verified by checksum, and weights_only builds tensors only.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.float() for key, value in state.items()}
