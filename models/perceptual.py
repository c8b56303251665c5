"""Perceptual loss: distance between features of a network trained on something else.

Johnson 2016, doi:10.1007/978-3-319-46475-6_43. VGG (Simonyan 2015, arXiv 1409.1556) with torchvision's ImageNet weights, or the
small network of `models.features`. Features that nobody trained are never used: where no weights are to be had, it refuses.
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
from models.features import MrFeatures, load_mr_features
from models.interface import LossTerm, Step
from models.layers import magnitude

Features = Literal["vgg16", "vgg16_caffe", "vgg19", "mr"]

URL = "https://download.pytorch.org/models/"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The Caffe weights take intensities of 0 to 255 less their mean: the scale that DAGAN's and SRGAN's weights refer to.
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
    """The convolutions of VGG up to the deepest tap, under torchvision's parameter names (``features.N.weight``).

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
            # TensorFlow's SAME pooling, which DAGAN used, keeps an odd last row: that is ceil_mode.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            self.places[len(layers) - 1] = f"pool{block}"
        unknown = set(self.taps) - set(self.places.values())
        if unknown or not self.taps:
            raise InputError(f"{source} has no layers {sorted(unknown)}", fix=f"choose from {', '.join(self.places.values())}")
        deepest = max(i for i, name in self.places.items() if name in self.taps)
        self.features = nn.Sequential(*layers[: deepest + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `activations`."""
        return self.activations(x)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Magnitudes in [0, 1], real ``(n 1 y x)``, to the activations at the taps."""
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
    """VGG with trained weights, frozen.

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
        If no weights are to be had, or the file is not what its name says.
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
            # Writes beside, checks the hash in the name, then renames.
            torch.hub.download_url_to_file(URL + name, str(path), hash_prefix=_prefix(name), progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the perceptual loss needs {name}, not there and not to be had from {URL} ({error})",
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
            raise InputError(f"not a whole safetensors file ({error})", path, "fetch it again") from error
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
    """Which features a perceptual term compares.

    Attributes
    ----------
    features
        ``mr``: our own; ``vgg16``, ``vgg19``: torchvision's; ``vgg16_caffe``: the original weights, as torchvision ships them,
        whose scale the weights of older papers refer to.
    weights
        Path of the weights; None: those that ship (mr), torchvision's cache or a download (VGG).
    taps, size
        VGG's layers to compare, and the size that images are brought to first; `features` mr has four levels and no size.
    """

    features: Features = "mr"
    weights: str | None = None
    taps: tuple[str, ...] = ("relu2_2", "relu3_3", "relu4_3")
    size: int | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A frozen feature network as a function that follows its input from device to device.

    Called with magnitudes in [0, 1], real ``(n 1 y x)``, it gives a list of activations.
    """

    network: MrFeatures | Vgg

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.network.to(x.device)
        return self.network.features(x) if isinstance(self.network, MrFeatures) else self.network.activations(x)


def feature_extractor(options: Perceptual) -> Extractor:
    """The trained feature network; raises `InputError` where its weights are not to be had."""
    if options.features == "mr":
        return Extractor(load_mr_features(Path(options.weights) if options.weights is not None else None))
    if options.features not in SOURCES:
        raise InputError(f"unknown features {options.features!r}", fix=f"choose from mr, {', '.join(SOURCES)}")
    return Extractor(load_vgg(options.features, options.taps, options.size, options.weights))


def perceptual_term(name: str, weight: float, options: Perceptual, relative: bool = True) -> LossTerm:
    """The term, its network loaded where its weight is not 0: a term that is switched off needs no weights."""
    if weight == 0:
        return LossTerm(name, 0.0, _switched_off)
    return LossTerm(name, weight, partial(perceptual, extract=feature_extractor(options), relative=relative))


def _switched_off(step: Step) -> Tensor:
    raise RuntimeError("a perceptual term of weight 0 was evaluated")


def perceptual(step: Step, extract: Callable[[Tensor], list[Tensor]], relative: bool = True) -> Tensor:
    """Squared distance between the features of the magnitudes of image and target, averaged over the taps.

    Parameters
    ----------
    extract
        See `feature_extractor`.
    relative
        Divide both images by the target's maximum, and each distance by the energy of the target's features: free of any scale,
        as raw presets need it. Otherwise images are taken to lie in [0, 1] and the plain mean of squares is returned, as
        published.
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
        # A slice without features, a black one, has no relative distance: its own counts as it is.
        energy = b.square().mean((1, 2, 3))
        distances.append((error / torch.where(energy > 0, energy, 1) if relative else error).mean())
    return torch.stack(distances).mean()
