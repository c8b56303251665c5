"""Networks of the package ``fastmri`` with weights from a local file, as reconstructors on our masks and coil maps.

The end-to-end variational network (Sriram 2020, doi:10.1007/978-3-030-59713-9_7) gets our coil maps in place of those that its
second network would estimate, so that all methods of a comparison have the same; its image is combined with them. The U-Net
(Zbontar 2018, arXiv 1811.08839) turns the root sum of squares of the zero-filled coil images into a magnitude. Both were
trained on k-space whose last axis is the phase encoding: axes are exchanged on the way in and out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kspace.fourier import ifft
from kspace.operators import ForwardModel, on_grid
from recon.methods.pretrained.state import ForeignNetwork, Found, below

CLAMP = 6.0  # standard deviations: the input of fastMRI's U-Net


@dataclass(frozen=True, eq=False)
class FastmriNetwork(ForeignNetwork):
    """A ``fastmri.models.VarNet`` or ``Unet``; of positive homogeneity, as both normalise their input."""

    package: ClassVar[str] = "fastmri"

    @staticmethod
    def find(state: Mapping[str, Tensor]) -> Found | None:
        """VarNet or U-Net of the sizes in `state`, tensors of any shape, and its tensors."""
        return _varnet(state) or _unet(state)

    @torch.inference_mode()
    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``; the U-Net's has no phase."""
        shape = (*y.shape[:-3], *y.shape[-2:])
        op = on_grid(op, self.name, "choose another method")
        maps, mask = (x.expand_as(y).reshape(-1, *y.shape[-3:]).mT.to(self.device) for x in (op.maps, op.mask))
        samples = y.reshape(-1, *y.shape[-3:]).mT.to(self.device) * mask
        image = self._varnet(samples, maps, mask) if self.kind == "VarNet" else self._unet(samples)
        there = samples.abs().amax((1, 2, 3), keepdim=True)[:, 0] > 0  # no network normalises a slice of zeros
        return torch.where(there, image, 0).mT.reshape(shape).to(y.device).clone()

    def _varnet(self, samples: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        network: Any = self.network
        given, sensitivities = (torch.view_as_real(x.resolve_conj().contiguous()) for x in (samples, maps))
        k = given.clone()
        for cascade in network.cascades:
            k = cascade(k, given, mask[..., None], sensitivities)
        return (maps.conj() * ifft(torch.view_as_complex(k.contiguous()))).sum(1)

    def _unet(self, samples: Tensor) -> Tensor:
        filled = ifft(samples).abs().square().sum(1, keepdim=True).sqrt()
        mean, std = filled.mean((2, 3), keepdim=True), filled.std((2, 3), keepdim=True)
        std = torch.where(std > 0, std, 1)
        image = self.network(((filled - mean) / std).clamp(-CLAMP, CLAMP)) * std + mean
        return image[:, 0].clamp(min=0).to(samples.dtype)


def _varnet(state: Mapping[str, Tensor]) -> Found | None:
    """VarNet of the sizes in `state`, tensors of any shape, and its tensors."""
    own = below(state, "cascades.0.dc_weight")
    if own is None:
        return None
    from fastmri.models import VarNet

    numbers = [int(m[1]) for m in (re.match(r"cascades\.(\d+)\.", name) for name in own) if m]
    chans, pools = _sizes(own, "cascades.0.model.unet.")
    sens_chans, sens_pools = _sizes(own, "sens_net.norm_unet.unet.")
    return VarNet(1 + max(numbers), sens_chans, sens_pools, chans, pools), own


def _unet(state: Mapping[str, Tensor]) -> Found | None:
    """U-Net of the sizes in `state`, tensors of any shape, and its tensors; one channel to one."""
    own = below(state, "down_sample_layers.0.layers.0.weight")
    if own is None:
        return None
    from fastmri.models import Unet

    return Unet(1, 1, *_sizes(own, "")), own


def _sizes(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int]:
    """Channels and levels of a U-Net in `state`, tensors of any shape."""
    first = state.get(f"{prefix}down_sample_layers.0.layers.0.weight")
    found = (re.match(re.escape(prefix) + r"down_sample_layers\.(\d+)\.", name) for name in state)
    levels = {m[1] for m in found if m}
    return (1 if first is None else first.shape[0]), max(1, len(levels))
