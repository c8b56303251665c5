"""Small segmentation network: tissue classes by intensity, for the semantic score of reconstructions."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from models.parts.features import load_frozen
from models.parts.layers import UNet

CLASSES = 4  # background, and three of rising intensity
TISSUE_WEIGHTS = Path(__file__).parents[1] / "weights" / "tissue.safetensors"


class TissueNet(nn.Module):
    """U-Net with instance normalisation from magnitudes to logits of `CLASSES` classes.

    Parameters
    ----------
    width, depth
        See `models.parts.layers.UNet`.
    """

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.network = UNet(1, CLASSES, width, depth, norm="instance")

    def forward(self, x: Tensor) -> Tensor:
        """Magnitudes, real ``(n 1 y x)``, any size, maximum 1 per slice, to logits ``(n 4 y x)``."""
        out: Tensor = self.network(x)
        return out


def load_tissue(path: Path | None = None) -> TissueNet:
    """Load the trained network, frozen.

    Raises
    ------
    InputError
        If the weights are absent or belong to another network.
    """
    return load_frozen(TissueNet(), path or TISSUE_WEIGHTS, "segmentation network", "leave the semantic score out")
