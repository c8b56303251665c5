"""What of a scan can be held out, and what is known of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kspace import preprocess
from kspace.container import KSpace
from recon.methods.held_out import HEAVY_TAIL, outer_power


def hold_out(k: KSpace, held: Tensor) -> KSpace:
    """The scan without the samples at `held`, bool ``(ky kx)`` or ``(ky 1)``: nothing of them is left in it."""
    return preprocess.undersample(k, ~held, "hold_out")


@dataclass(frozen=True)
class NoiseLevel:
    """Noise of the samples measured once: variance E|n|^2 of each coil ``(coil)``, None where unknown, and how it is known."""

    variance: Tensor | None
    source: str
    says: str

    @classmethod
    def of(cls, k: KSpace) -> NoiseLevel:
        """That of prepared k-space; where it was not whitened, estimated from the outermost acquired samples."""
        if k.header.noise_std is not None:
            variance = torch.full((k.n_coils,), k.header.noise_std**2, dtype=torch.float64)
            if "whiten" in k.header.steps:
                return cls(variance, "whitening", "the noise is known from a noise scan: its variance is 1 after whitening")
            return cls(variance, "header", "the file states the noise")
        power = outer_power(k.data, k.mask, k.n_averages)
        if power is None:
            return cls(None, "unknown", "the noise is not known and too few samples tell it: nothing is subtracted")
        variance = power.median(1).values / math.log(2)
        if not (variance > 0).all() or float((power.mean(1) / variance).median()) > HEAVY_TAIL:
            says = "the noise is not known and the outermost samples hold more than noise: nothing is subtracted"
            return cls(None, "unknown", says)
        says = "the noise is taken from the outermost samples, so it may be too high: errors may be too small, alike for all"
        return cls(variance, "outer k-space", says)
