"""Acquired samples that are held out of a scan, to judge reconstructions that nobody has the truth of.

Cross-validation in k-space: Ward 1984 and, for MRI, Yaman et al. 2020, doi:10.1002/mrm.28378.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from kspace import coils
from kspace.container import KSpace
from kspace.masks import digest
from kspace.noncartesian.operator import NonCartesianSense
from kspace.operators import ForwardModel, Sense
from kspace.seeds import RandomGenerator

Model = TypeVar("Model", bound=ForwardModel)

OUTER = 0.05  # of the samples, the outermost, tell the noise where nothing else does
FEWEST_OUTER = 64
HEAVY_TAIL = 1.25  # mean over median of |n|^2, relative to that of complex Gaussian noise, above which it is not noise alone
RINGS = 6  # in which the density of sampling is counted


@dataclass(frozen=True)
class Candidates:
    """What of a scan may be held out.

    Attributes
    ----------
    unit
        ``lines``, ``points``, or ``readouts`` off the Cartesian grid.
    where
        Bool, ``(ky 1)`` for lines, ``(ky kx)`` for points, ``(readout 1)``.
    calibration
        Size ``(ky, kx)`` of the area that may not.
    density
        Of readouts: what share of k-space each sample stands for, real ``(readout sample)``; None on the grid.
    """

    unit: str
    where: Tensor
    calibration: tuple[int, int]
    density: Tensor | None = None

    @classmethod
    def of(cls, k: KSpace) -> Candidates:
        """Those of prepared k-space: of the samples acquired in all of its planes, the ones outside the sampled centre."""
        plane = k.mask.reshape(-1, *k.mask.shape[-2:]).all(0).cpu()
        # Along a decoupled readout all are points.
        return cls.among(plane, k.data.shape[-2:], "decouple" not in k.header.steps)

    @classmethod
    def among(cls, plane: Tensor, shape: Sequence[int], as_lines: bool = True) -> Candidates:
        """Those of a mask, bool ``(ky kx|1)`` of k-space `shape`: what lies outside the sampled centre.

        Complete lines where the mask consists of them and `as_lines`, else points.
        """
        lines, columns = plane.any(1, keepdim=True), plane.any(0, keepdim=True)
        # Readouts that leave the same samples out (asymmetric echoes) are lines still.
        is_lines = as_lines and torch.equal(plane, lines & columns)
        where = lines.clone() if is_lines else plane.expand(*shape).clone()
        calibration = coils.calibration_region(where)
        where[_block(where, calibration)] = False
        return cls("lines" if is_lines else "points", where, calibration)

    @classmethod
    def of_model(cls, op: ForwardModel, as_lines: bool = True) -> Candidates:
        """Those of a forward model: as `among`, and off the grid complete readouts."""
        plane = op.mask.reshape(-1, *op.mask.shape[-2:]).all(0).cpu()
        if not isinstance(op, NonCartesianSense):
            return cls.among(plane, op.samples, as_lines)
        density = op.compensation.reshape(-1, *op.samples)[0].cpu()
        return cls("readouts", plane.any(1, keepdim=True), (0, 0), density)

    @property
    def n(self) -> int:
        """How many there are."""
        return int(self.where.sum())

    @property
    def regular(self) -> bool:
        """Whether all gaps between the lines outside the calibration area are alike: without a line, one is twice as wide."""
        if self.unit != "lines":
            return False
        (top, bottom), lines = _edges(self.where.shape[0], self.calibration[0]), self.where[:, 0].nonzero()[:, 0]
        sides = [lines[lines < top].diff(), lines[lines >= bottom].diff()]
        gaps = torch.cat(sides)
        return len(gaps) > 2 and bool((gaps == gaps[0]).all()) and int(gaps[0]) > 1

    def draw(self, draws: int, fraction: float, seed: int) -> list[Tensor]:
        """Masks like `where` of what each draw takes out.

        The candidates are sorted by their distance from the centre and cut into as many groups as a draw takes samples; it
        takes one of each group, in an order that is random and does not repeat before the group is used up. So all draws have
        the same share of strong, central samples, and their errors can be compared.
        """
        ky, kx = self.where.nonzero().T.numpy()
        n_held = max(1, round(fraction * len(ky)))
        random = RandomGenerator(f"held out\n{seed}\n{digest(self.where, (self.where.shape[0], self.where.shape[1]))}")
        order = np.lexsort((random.uniform(len(ky)), self.distance()[ky, kx].numpy()))
        masks = [torch.zeros_like(self.where) for _ in range(draws)]
        for group in np.array_split(order, n_held):
            rounds = [group[np.argsort(random.uniform(len(group)))] for _ in range(-(-draws // len(group)))]
            for mask, chosen in zip(masks, np.concatenate(rounds), strict=False):
                mask[ky[chosen], kx[chosen]] = True
        return masks

    def distance(self) -> Tensor:
        """Distance from the centre as a fraction of the matrix, float64 like `where`."""
        n_y, n_x = self.where.shape
        y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (n_y, n_x))
        return torch.hypot(y[:, None] / n_y, x / n_x)

    def importance(self) -> Tensor:
        """``(1 - p) / p``, float64 like `where`: for how many samples that were not acquired a candidate stands.

        p is the share of acquired samples in its ring around the centre. With these weights the mean squared error over the
        candidates estimates that over what was not acquired (Horvitz and Thompson 1952, doi:10.1080/01621459.1952.10483446).
        Of readouts the share of k-space, ``(readout sample)``: spokes crowd in the centre.
        """
        if self.density is not None:
            return self.density.double() * self.where
        outside, weights = torch.ones_like(self.where), torch.zeros(self.where.shape, dtype=torch.float64)
        outside[_block(self.where, self.calibration)] = False
        distance = self.distance()
        order = distance[self.where].sort().values
        edges = order[torch.arange(1, RINGS) * len(order) // RINGS] if len(order) else order
        ring = torch.bucketize(distance, edges, right=True)
        for i in range(len(edges) + 1):
            here = outside & (ring == i)
            acquired = here & self.where
            if n := int(acquired.sum()):
                weights[acquired] = (int(here.sum()) - n) / n
        return weights


def without(op: Model, held: Tensor) -> Model:
    """The operator of a scan without the samples at `held`, bool ``(ky kx|1)`` or ``(readout 1)``."""
    if isinstance(op, NonCartesianSense):
        kept = ~held.to(op.maps.device)
        # The neighbours of what is left out stand for it.
        share = kept.float().mean().clamp(min=1e-6)
        weights = op.weights.squeeze(-3) * kept
        return cast("Model", replace(op, sample_weights=weights, density=op.compensation * kept / share))
    assert isinstance(op, Sense)
    mask = op.mask & ~held.to(op.mask.device)
    return cast("Model", replace(op, mask=mask, n_averages=None if op.n_averages is None else op.n_averages * mask))


def together(ops: Sequence[ForwardModel]) -> ForwardModel:
    """The operators of one plane with different samples, maps ``(coil y x)``, as that of a batch."""
    first = ops[0]
    maps = first.maps.expand(len(ops), *first.maps.shape)
    if isinstance(first, NonCartesianSense):
        found = [op for op in ops if isinstance(op, NonCartesianSense)]
        weights = torch.stack([op.weights.squeeze(-3) for op in found])
        density = torch.stack([op.compensation for op in found])
        return NonCartesianSense(maps, first.trajectory, weights, density, first.noise_std)
    flat = [op.flattened(()) for op in ops]  # a batch of one: masks may lack the coil axis
    counts = None if first.n_averages is None else torch.cat([op.n_averages for op in flat if op.n_averages is not None])
    return Sense(maps, torch.cat([op.mask for op in flat]), first.noise_std, counts)


def noise_variance(y: Tensor, op: ForwardModel, stated: float | None = None) -> float | None:
    """E|n|^2 of a sample measured once, averaged over the coils; None where neither the scan nor its samples tell it.

    The outermost acquired samples are taken for noise where their magnitudes are distributed as those of noise alone: the
    median of |n|^2 is then ln 2 times its mean. Otherwise what `op.noise_std` states, unless they are too weak for it.

    Parameters
    ----------
    y
        Complex ``(*batch coil ky kx)``.
    op
        Forward model.
    stated
        Taken in place of `op.noise_std`; None: that.
    """
    stated = op.noise_std if stated is None else stated
    distance = reduce(torch.hypot, op.frequencies).reshape(-1, *y.shape[-2:])[0]
    power = outer_power(y, op.mask, op.n_averages, distance)
    if power is None:
        return None
    variance = power.median(1).values / math.log(2)
    if (variance > 0).all() and float((power.mean(1) / variance).median()) <= HEAVY_TAIL:
        return float(variance.mean())
    return stated**2 if stated**2 <= float(power.mean()) else None


def outer_power(y: Tensor, mask: Tensor, n_averages: Tensor | None, distance: Tensor | None = None) -> Tensor | None:
    """|y|^2 as of samples measured once, float64 ``(coil sample)``, of the acquired samples farthest from the centre; None
    where there are too few. `distance` is that of each sample ``(ky kx)``; None: samples lie on a grid."""
    n_y, n_x = y.shape[-2:]
    at_y, at_x = (torch.arange(n) - n // 2 for n in (n_y, n_x))
    distance = torch.hypot(at_y[:, None] / n_y, at_x / n_x) if distance is None else distance.cpu()
    plane = mask.reshape(-1, *mask.shape[-2:]).all(0).cpu().expand(n_y, n_x)
    radius = torch.where(plane, distance, -1.0)
    n = max(FEWEST_OUTER, round(OUTER * int(plane.sum())))
    if n > int(plane.sum()) // 2:
        return None
    far = radius.flatten().topk(n).indices.to(y.device)
    counts = mask.int() if n_averages is None else n_averages
    power = torch.where(mask, y, 0).abs().double().square() * counts
    return power.flatten(-2)[..., far].movedim(-2, 0).flatten(1)


def _block(plane: Tensor, size: tuple[int, int]) -> tuple[slice, slice]:
    """The centred block of `size` in a plane."""
    y, x = (slice(*_edges(n, m)) for n, m in zip(plane.shape, size, strict=True))
    return y, x


def _edges(n: int, m: int) -> tuple[int, int]:
    """First index of the m central ones of n, and the first behind them."""
    return n // 2 - m // 2, n // 2 - m // 2 + m
