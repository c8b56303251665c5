"""Small feature network for MR images, for perceptual terms and metrics without ImageNet weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from kspace.errors import InputError
from models.parts.layers import he_initialise

MR_WEIGHTS = Path(__file__).parents[1] / "weights" / "mr_features.safetensors"


class MrFeatures(nn.Module):
    """Four levels of two 3x3 convolutions, each with group normalisation and a leaky ReLU; 2x2 average pooling between them.

    Trained on three tasks at once, so that its features carry contrast, anatomy and orientation: class of the tumour, its
    bounding box, and rotation of the image by multiples of 90 degrees.

    Parameters
    ----------
    widths
        Channels of the levels, multiples of 8.
    n_classes
        Tumour classes.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128), n_classes: int = 3) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True))
        # The box needs positions, the other two tasks do not.
        self.tumour = nn.Linear(widths[-1], n_classes)
        self.rotation = nn.Linear(widths[-1], 4)
        self.box = nn.Linear(16 * widths[-1], 4)
        he_initialise(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations ``(n c y' x')`` of the levels, finest first, of magnitudes, real ``(n 1 y x)``, maximum 1 per slice."""
        found = []
        for i, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 2, ceil_mode=True) if i else x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Predict the three tasks from magnitudes, real ``(n 1 y x)``, with maximum 1 per slice.

        Returns
        -------
        dict
            ``tumour`` logits ``(n classes)``; ``rotation`` logits ``(n 4)``; ``box`` ``(n 4)``: centre x, centre y, width and
            height as fractions of the image.
        """
        last = self.features(x)[-1]
        pooled = last.mean((2, 3))
        grid = F.adaptive_avg_pool2d(last, 4).flatten(1)
        return {"tumour": self.tumour(pooled), "rotation": self.rotation(pooled), "box": self.box(grid).sigmoid()}


def _level(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def load_mr_features(path: Path | None = None) -> MrFeatures:
    """Load the trained network, frozen.

    Raises
    ------
    InputError
        If the weights are absent or belong to another network.
    """
    return load_frozen(
        MrFeatures(), path or MR_WEIGHTS, "MR feature network", "choose features vgg16 or vgg19, or perceptual weight 0"
    )


Network = TypeVar("Network", bound=nn.Module)


def load_frozen(network: Network, path: Path, name: str, fix: str) -> Network:
    """Give `network` the weights of a safetensors file, and freeze it.

    Parameters
    ----------
    network, path
        See there.
    name, fix
        What it is called in a message, and what helps where the file is absent.

    Raises
    ------
    InputError
        If the weights are absent or belong to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"the weights of the {name} are absent", path, fix)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(f"damaged or truncated safetensors file ({error})", path, "fetch it again") from error
    expected = {k: v.shape for k, v in network.state_dict().items()}
    if {k: v.shape for k, v in state.items()} != expected:
        raise InputError(f"not the weights of the {name}: names or shapes differ", path, "fetch it again")
    network.load_state_dict({k: v.float() for k, v in state.items()})
    return network.eval().requires_grad_(False)
