"""MoDL networks of the package ``deepinv`` with weights from a local file, as reconstructors on our masks and coil maps.

MoDL (Aggarwal 2019, doi:10.1109/TMI.2018.2865356) alternates a denoiser, here DnCNN (Zhang 2017, doi:10.1109/TIP.2017.2662206),
with a regularised solve, which is the package's own, on its own multi-coil operator. The package normalises no input: the
largest pixel of each zero-filled image is made 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kspace.operators import ForwardModel, on_grid
from recon.methods.pretrained.state import ForeignNetwork, Found, below

DENOISER = "prior.0.denoiser."


@dataclass(frozen=True, eq=False)
class DeepinvNetwork(ForeignNetwork):
    """A ``deepinv.models.MoDL``; of positive homogeneity, by the scale of the zero-filled image."""

    package: ClassVar[str] = "deepinv"

    @staticmethod
    def find(state: Mapping[str, Tensor]) -> Found | None:
        """MoDL of the sizes in `state`, tensors of any shape, and its tensors.

        Raises
        ------
        ImportError
            If these are of a MoDL, and the package is not installed.
        """
        own = below(state, f"{DENOISER}in_conv.weight")
        if own is None:
            return None
        from deepinv.models import DnCNN, MoDL

        width, channels = own[f"{DENOISER}in_conv.weight"].shape[:2]
        depth = 2 + _count(own, re.escape(DENOISER) + r"conv_list\.(\d+)\.weight")
        denoiser = DnCNN(channels, channels, depth, nf=width, pretrained=None, bias=f"{DENOISER}in_conv.bias" in own)
        return MoDL(denoiser, _count(own, r"params_algo\.stepsize\.(\d+)")), own

    @torch.no_grad()
    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        op = on_grid(op, self.name, "choose another method")
        planes = (x.expand_as(y).reshape(-1, *y.shape[-3:]).to(self.device) for x in (y, op.maps, op.mask))
        images = [self._one(*plane) for plane in zip(*planes, strict=True)]  # its solver stops for a batch as a whole
        return torch.stack(images).reshape(*y.shape[:-3], *y.shape[-2:]).to(y.device)

    def _one(self, y: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        from deepinv.physics import MultiCoilMRI

        physics = MultiCoilMRI(mask=mask[None, :1].float(), coil_maps=maps[None].resolve_conj(), device=self.device)
        samples = torch.view_as_real((y * mask).resolve_conj()).movedim(-1, 0)[None]
        scale = torch.linalg.vector_norm(physics.A_adjoint(samples), dim=1).amax()
        if scale == 0:
            return y.new_zeros(y.shape[-2:])
        image = scale * self.network(samples / scale, physics)
        return torch.view_as_complex(image[0].movedim(0, -1).contiguous())


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of tensors, of any shape, whose names match."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)
