"""Locally low rank series against their truth: the default weight and the best of several.

    python -m benchmarks.series

Two analytic phantoms with the coils' own maps. `arriving`: contrast arrives and a small ellipse moves, 6 coils, 48 x 48, 8
frames of 8 golden-angle spokes; on it the first default was chosen. `beating`: a ventricle beats and another ellipse turns and
moves, 12 coils, 64 x 64, 16 frames of a fifth of the lines, denser in the centre, other lines in each frame. Error: relative
norm of the difference of the magnitudes of all frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kspace.linear_operators import stacked
from kspace.masks import MaskSpec
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.operators import ForwardModel, Sense
from kspace.simulation.noncartesian import TrajectoryScan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.methods.choose import LocallyLowRank
from recon.methods.classical import CgSense, TotalVariation

Case = tuple[Tensor, ForwardModel, Tensor]
FIRST = 0.05  # the default until it followed the noise
LOW, HIGH = (0.01, 0.02, 0.05, 0.08, 0.12), (0.08, 0.12, 0.25, 0.4)  # weights to choose from
SPOKES, FRAMES = 8, {"arriving": 8, "beating": 16}
NOISE = {"arriving": {0.005: LOW, 0.03: LOW, 0.1: HIGH}, "beating": {0.003: LOW, 0.02: LOW, 0.1: HIGH}}


def arriving(frame: int) -> Phantom:
    """Of the radial series."""
    up = 1 - math.exp(-frame / 3)
    return Phantom(
        (
            ellipsoid((0.01, -0.02, 0), (0.08, 0.06, 0.1), 20, 1.0),
            ellipsoid((0.03, 0.01, 0.005), (0.02, 0.03, 0.02), 0, 0.2 + 0.8 * up),
            ellipsoid((-0.02 + 0.0015 * frame, 0.015, 0), (0.008, 0.008, 0.05), 0, 0.6),
        )
    )


def beating(frame: int) -> Phantom:
    """Of the Cartesian series: two beats in all frames."""
    phase = 4 * math.pi * frame / FRAMES["beating"]
    r = 0.03 + 0.008 * math.sin(phase)
    return Phantom(
        (
            ellipsoid((0, 0, 0), (0.085, 0.095, 0.1), -10, 0.7),
            ellipsoid((0.02, -0.01, 0), (r + 0.012, r + 0.010, 0.05), 0, 0.35),
            ellipsoid((0.02, -0.01, 0), (r, 0.9 * r, 0.05), 0, -0.3),
            ellipsoid((-0.045, 0.02 + 0.006 * math.sin(phase + 1), 0), (0.02, 0.012, 0.05), 30 + 10 * math.sin(phase), 0.5),
            ellipsoid((-0.02, -0.055, 0), (0.012, 0.008, 0.05), 0, -0.5),
        )
    )


def case(kind: str, noise: float) -> Case:
    """Samples ``(frame coil ky kx)`` with noise, their operator, and the truth ``(frame y x)``."""
    n, n_coils = (48, 6) if kind == "arriving" else (64, 12)
    x = (np.arange(n) - n // 2) * 0.24 / n
    coils = head_coils(n_coils)
    maps = torch.from_numpy(coils.section((0, 0, 0), (1, 0, 0), (0, 1, 0)).maps(x, x[:, None])).to(torch.complex64)
    magnitude = maps.abs().square().sum(0).sqrt()
    ys, ops, truths = [], [], []
    random = torch.Generator().manual_seed(0)
    for frame in range(FRAMES[kind]):
        if kind == "arriving":
            angles = golden_angles(FRAMES[kind] * SPOKES)[frame * SPOKES : (frame + 1) * SPOKES]
            scan = TrajectoryScan(arriving(frame), coils, radial(SPOKES, 2 * n, angles), (n, n, 1), noise_std=noise)
            op: ForwardModel = NonCartesianSense(maps / magnitude, torch.from_numpy(scan.trajectory))
        else:
            k = (np.arange(n) - n // 2) / n
            grid = np.stack(np.meshgrid(k, k), -1)
            scan = TrajectoryScan(beating(frame), coils, grid, (n, n, 1), noise_std=0.0)
            op = Sense(
                maps / magnitude, MaskSpec.parse(f"seitzer:5,centre=4,seed={frame}").draw((n, n), f"f{frame}").reshape(1, n, 1)
            )
        y = torch.from_numpy(scan.samples(frame)[0])
        if kind == "beating":
            y = op.mask * (y + noise * torch.randn(y.shape, dtype=y.dtype, generator=random))
        ys.append(y)
        ops.append(op)
        truths.append(torch.from_numpy(scan.image()[0]) * magnitude)
    return torch.stack(ys), stacked(ops), torch.stack(truths)


def main() -> None:
    """Print the table."""
    print(f"| series | noise | sense | tv | llr | at {FIRST:g} | best (weight) |\n|---|---|---|---|---|---|---|")
    for kind, levels in NOISE.items():
        for noise, weights in levels.items():
            y, op, truth = case(kind, noise)

            def error(method: Callable[[Tensor, ForwardModel], Tensor], case: Case = (y, op, truth)) -> float:
                y, op, truth = case
                return float((method(y, op).abs() - truth).norm() / truth.norm())

            found = [error(method) for method in (CgSense(), TotalVariation(), LocallyLowRank(), LocallyLowRank(FIRST))]
            best, weight = min((error(LocallyLowRank(w)), w) for w in weights)
            cells = " | ".join(f"{e:.3f}" for e in found)
            print(f"| {kind} | {noise:g} | {cells} | {best:.3f} ({weight:g}) |", flush=True)


if __name__ == "__main__":
    main()
