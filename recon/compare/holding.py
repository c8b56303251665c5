"""What of a scan can be held out, and what is known of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kspace import coils, preprocess
from kspace.container import KSpace
from kspace.masks import digest
from kspace.seeds import RandomGenerator

OUTER = 0.05  # of the samples, the outermost, tell the noise where nothing else does
FEWEST_OUTER = 64
HEAVY_TAIL = 1.25  # mean over median of |n|^2, relative to that of complex Gaussian noise, above which it is not noise alone


def hold_out(k: KSpace, held: Tensor) -> KSpace:
    """The scan without the samples at `held`, bool ``(ky kx)`` or ``(ky 1)``: nothing of them is left in it."""
    return preprocess.undersample(k, ~held, "hold_out")


@dataclass(frozen=True)
class Candidates:
    """What of a scan may be held out.

    Attributes
    ----------
    unit
        ``lines`` or ``points``.
    where
        Bool, ``(ky 1)`` for lines and ``(ky kx)`` for points.
    calibration
        Size ``(ky, kx)`` of the area that may not.
    """

    unit: str
    where: Tensor
    calibration: tuple[int, int]

    @classmethod
    def of(cls, k: KSpace) -> Candidates:
        """Those of prepared k-space: of the samples acquired in all of its planes, the ones outside the sampled centre."""
        plane = k.mask.reshape(-1, *k.mask.shape[-2:]).all(0).cpu()
        lines, columns = plane.any(1, keepdim=True), plane.any(0, keepdim=True)
        # Readouts that leave the same samples out (asymmetric echoes) are lines still; along a decoupled one all are points.
        is_lines = "decouple" not in k.header.steps and torch.equal(plane, lines & columns)
        where = lines.clone() if is_lines else plane.expand(k.data.shape[-2:]).clone()
        ny, nx = coils.calibration_region(where)
        top, left = where.shape[0] // 2 - ny // 2, where.shape[1] // 2 - nx // 2
        where[top : top + ny, left : left + nx] = False
        return cls("lines" if is_lines else "points", where, (ny, nx))

    def draw(self, draws: int, fraction: float, seed: int) -> list[Tensor]:
        """Masks like `where` of what each draw takes out.

        The candidates are sorted by their distance from the centre and cut into as many groups as a draw takes samples; it
        takes one of each group, in an order that is random and does not repeat before the group is used up. So all draws have
        the same share of strong, central samples, and their errors can be compared.
        """
        ky, kx = self.where.nonzero().T.numpy()
        n_held = max(1, round(fraction * len(ky)))
        random = RandomGenerator(f"held out\n{seed}\n{digest(self.where, (self.where.shape[0], self.where.shape[1]))}")
        n_y, n_x = self.where.shape
        distance = np.hypot((ky - n_y // 2) / n_y, (kx - n_x // 2) / n_x)
        order = np.lexsort((random.uniform(len(ky)), distance))
        masks = [torch.zeros_like(self.where) for _ in range(draws)]
        for group in np.array_split(order, n_held):
            rounds = [group[np.argsort(random.uniform(len(group)))] for _ in range(-(-draws // len(group)))]
            for mask, chosen in zip(masks, np.concatenate(rounds), strict=False):
                mask[ky[chosen], kx[chosen]] = True
        return masks


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
        power = _outer_power(k)
        if power is None:
            return cls(None, "unknown", "the noise is not known and too few samples tell it: nothing is subtracted")
        variance = power.median(1).values / math.log(2)
        if not (variance > 0).all() or float((power.mean(1) / variance).median()) > HEAVY_TAIL:
            says = "the noise is not known and the outermost samples hold more than noise: nothing is subtracted"
            return cls(None, "unknown", says)
        says = "the noise is taken from the outermost samples, so it may be too high: errors may be too small, alike for all"
        return cls(variance, "outer k-space", says)


def _outer_power(k: KSpace) -> Tensor | None:
    """|y|^2 as of samples measured once, float64 ``(coil sample)``, of the acquired samples farthest from the centre."""
    n_y, n_x = k.data.shape[-2:]
    y, x = (torch.arange(n) - n // 2 for n in (n_y, n_x))
    plane = k.mask.reshape(-1, *k.mask.shape[-2:]).all(0).cpu().expand(n_y, n_x)
    radius = torch.where(plane, torch.hypot(y[:, None] / n_y, x / n_x), -1.0)
    n = max(FEWEST_OUTER, round(OUTER * int(plane.sum())))
    if n > int(plane.sum()) // 2:
        return None
    far = radius.flatten().topk(n).indices.to(k.data.device)
    counts = k.mask.int() if k.n_averages is None else k.n_averages
    power = k.data.abs().double().square() * counts
    return power.flatten(-2)[..., far].movedim(-2, 0).flatten(1)
