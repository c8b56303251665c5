"""Perceptual loss: distance between the features of a network trained on another task.

Johnson 2016, doi:10.1007/978-3-319-46475-6_43. VGG (Simonyan 2015, arXiv 1409.1556) with torchvision's ImageNet weights, or the
small network of `models.parts.features`. Without trained weights it raises: untrained features are never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.errors import InputError
from models.parts.features import MrFeatures, load_mr_features
from models.parts.interface import LossTerm, Step
from models.parts.layers import magnitude

Features = Literal["vgg16", "vgg16_caffe", "vgg19", "mr"]

URL = "https://download.pytorch.org/models/"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The Caffe weights take intensities of 0 to 255 less their mean: the scale behind the loss weights of older papers.
CAFFE = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True)
class _Source:
    convs: tuple[int, ...]  # convolutions per block
    file: str  # torchvision's file; the hexadecimal part of its name begins the sha256 of its content
    standardise: tuple[tuple[float, ...], tuple[float, ...]]


SOURCES = {
    "vgg16": _Source((2, 2, 3, 3, 3), "vgg16-397923af.pth", IMAGENET),
    "vgg16_caffe": _Source((2, 2, 3, 3, 3), "vgg16_features-amdegroot-88682ab5.pth", CAFFE),
    "vgg19": _Source((2, 2, 4, 4, 4), "vgg19-dcbb9e9d.pth", IMAGENET),
}
WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """Convolutions of VGG up to the deepest tap, under torchvision's parameter names (``features.N.weight``).

    Parameters
    ----------
    source
        Key of `SOURCES`.
    taps
        Layers to return: ``relu{block}_{conv}`` or ``pool{block}``, counted from 1.
    size
        Resize the input to this many pixels squared first (bilinear), or None.
    """

    def __init__(self, source: str = "vgg16", taps: Sequence[str] = ("pool4",), size: int | None = None) -> None:
        super().__init__()
        self.taps, self.size, self.source = tuple(taps), size, SOURCES[source]
        layers: list[nn.Module] = []
        self.places: dict[int, str] = {}
        n_in = 1
        for block, (n_convs, width) in enumerate(zip(self.source.convs, WIDTHS, strict=True), start=1):
            for conv in range(1, n_convs + 1):
                layers += [nn.Conv2d(3 if n_in == 1 else n_in, width, 3, padding=1), nn.ReLU()]
                self.places[len(layers) - 1] = f"relu{block}_{conv}"
                n_in = width
            # TensorFlow's SAME pooling keeps an odd last row: that is ceil_mode.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            self.places[len(layers) - 1] = f"pool{block}"
        unknown = set(self.taps) - set(self.places.values())
        if unknown or not self.taps:
            raise InputError(f"{source} has no layers {sorted(unknown)}", fix=f"choose from {', '.join(self.places.values())}")
        deepest = max(i for i, name in self.places.items() if name in self.taps)
        self.features = nn.Sequential(*layers[: deepest + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Alias of `activations`: real ``(n 1 y x)`` to the activations ``(n c y' x')`` at the taps."""
        return self.activations(x)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Activations ``(n c y' x')`` at the taps, of magnitudes in [0, 1], real ``(n 1 y x)``."""
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in self.source.standardise)
        x = (x - mean) / std
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self.places.get(i) in self.taps:
                found.append(x)
        return found


def load_vgg(source: str, taps: Sequence[str], size: int | None = None, weights: Path | str | None = None) -> Vgg:
    """Load VGG with trained weights, frozen.

    Parameters
    ----------
    source, taps, size
        See `Vgg`.
    weights
        A safetensors file with torchvision's names, or torchvision's own ``.pth`` file. None: torchvision's cache, else a
        download.

    Raises
    ------
    InputError
        If there are no weights, or the file is not the one that its name says.
    """
    path = Path(weights) if weights is not None else _cached_or_downloaded(SOURCES[source].file)
    if not path.is_file():
        raise InputError("no such file of VGG weights", path, f"give perceptual.weights the path of {SOURCES[source].file}")
    state = _read(path, SOURCES[source].file)
    network = Vgg(source, taps, size)
    expected = network.state_dict()
    missing = [k for k, v in expected.items() if k not in state or state[k].shape != v.shape]
    if missing:
        raise InputError(f"these are not the weights of {source}: {missing[0]} is missing or of another shape", path)
    network.load_state_dict({k: state[k].float() for k in expected})
    return network.eval().requires_grad_(False)


def _cached_or_downloaded(name: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Writes to a temporary file, checks the hash in the name, then renames.
            torch.hub.download_url_to_file(URL + name, str(path), hash_prefix=_prefix(name), progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the perceptual loss needs {name}, which is not there and cannot be fetched from {URL} ({error})",
                path.parent,
                "put the file there, give perceptual.weights its path, choose perceptual.features mr, or weight 0",
            ) from error
    return path


def _prefix(name: str) -> str:
    return name.removesuffix(".pth").rsplit("-", 1)[1]


def _read(path: Path, official: str) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"damaged or truncated safetensors file ({error})", path, "fetch it again") from error
    if path.name != official:
        raise InputError(f"only torchvision's own {official} or a .safetensors file is read", path, "convert it to safetensors")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(_prefix(official)):
        raise InputError(
            f"its sha256 begins with {digest[:8]}, not with the {_prefix(official)} of its name", path, "fetch it again"
        )
    # The hash says that this is torchvision's file, and the unpickler builds tensors only.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@dataclass(frozen=True)
class Perceptual:
    """Features that a perceptual term compares.

    Parameters
    ----------
    features
        ``mr``: our own; ``vgg16``, ``vgg19``: torchvision's; ``vgg16_caffe``: the original weights, from torchvision, to whose
        scale the loss weights of older papers refer.
    weights
        Path of the weights; None: the bundled ones (mr), torchvision's cache or a download (VGG).
    taps
        Layers of VGG to compare: see `Vgg`. `features` mr compares its four levels.
    size
        Size in pixels that images are resized to for VGG; None: their own.
    """

    features: Features = "mr"
    weights: str | None = None
    taps: tuple[str, ...] = ("relu2_2", "relu3_3", "relu4_3")
    size: int | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """Frozen feature network as a function on any device: magnitudes in [0, 1], real ``(n 1 y x)``, to a list of activations.

    Attributes
    ----------
    network
        Moved to the device of each input.
    """

    network: MrFeatures | Vgg

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.network.to(x.device)
        return self.network.features(x) if isinstance(self.network, MrFeatures) else self.network.activations(x)


def feature_extractor(options: Perceptual) -> Extractor:
    """Load the trained feature network; `InputError` where there are no weights."""
    if options.features == "mr":
        return Extractor(load_mr_features(Path(options.weights) if options.weights is not None else None))
    if options.features not in SOURCES:
        raise InputError(f"unknown features {options.features!r}", fix=f"choose from mr, {', '.join(SOURCES)}")
    return Extractor(load_vgg(options.features, options.taps, options.size, options.weights))


def perceptual_term(name: str, weight: float, options: Perceptual, relative: bool = True) -> LossTerm:
    """Perceptual loss term; its network is loaded only where `weight` is not 0."""
    if weight == 0:
        return LossTerm(name, 0.0, _switched_off)
    return LossTerm(name, weight, partial(perceptual, extract=feature_extractor(options), relative=relative))


def _switched_off(step: Step) -> Tensor:
    raise RuntimeError("a perceptual term of weight 0 was evaluated")


def perceptual(step: Step, extract: Callable[[Tensor], list[Tensor]], relative: bool = True) -> Tensor:
    """Mean squared distance between the features of the magnitudes of image and target, averaged over the taps; a real scalar.

    Parameters
    ----------
    extract
        See `feature_extractor`.
    relative
        Divide both images by the target's maximum, and each distance by the energy of the target's features: scale-free, as
        raw presets need it. Otherwise for images in [0, 1], without that division, as published.
    """
    image, target = magnitude(step.image).float(), magnitude(step.target).float()
    if relative:
        peak = target.amax((1, 2, 3), keepdim=True)
        peak = torch.where(peak > 0, peak, 1)
        image, target = image / peak, target / peak
    with torch.no_grad():
        wanted = extract(target)
    distances = []
    for a, b in zip(extract(image), wanted, strict=True):
        error = (a - b).square().mean((1, 2, 3))
        # A black slice has no features and no relative distance: its absolute distance counts.
        energy = b.square().mean((1, 2, 3))
        distances.append((error / torch.where(energy > 0, energy, 1) if relative else error).mean())
    return torch.stack(distances).mean()
