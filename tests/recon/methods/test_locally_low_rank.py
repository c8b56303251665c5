"""Locally low rank series: the proximal operator by its definition, a dynamic phantom against its truth, and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import recon
from kspace.errors import InputError
from kspace.linear_operators import stacked
from kspace.masks import MaskSpec
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.operators import Sense
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.methods.choose import LocallyLowRank, shrink_blocks
from recon.methods.classical import CgSense, TotalVariation
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from tests.support.off_grid import N, scan_of

FRAMES, SPOKES = 8, 8


def dynamic(frame: int) -> TrajectoryScan:
    """Contrast arrives in one ellipse, another one moves."""
    up = 1 - np.exp(-frame / 3)
    shapes = (
        ellipsoid((0.01, -0.02, 0), (0.08, 0.06, 0.1), 20, 1.0),
        ellipsoid((0.03, 0.01, 0.005), (0.02, 0.03, 0.02), 0, 0.2 + 0.8 * up),
        ellipsoid((-0.02 + 0.0015 * frame, 0.015, 0), (0.008, 0.008, 0.05), 0, 0.6),
    )
    angles = golden_angles(FRAMES * SPOKES)[frame * SPOKES : (frame + 1) * SPOKES]
    return TrajectoryScan(
        Phantom(shapes), head_coils(6), radial(SPOKES, 2 * N, angles), (N, N, 1), kind="goldenangle", noise_std=0.03
    )


def test_singular_values_of_blocks_are_shrunk() -> None:
    x = torch.randn(3, 8, 12, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    found = shrink_blocks(x, 0.7, 4)
    block = x[:, 4:8, 8:12].reshape(3, 16).T
    u, s, v = torch.linalg.svd(block, full_matrices=False)
    expected = u @ torch.diag((s - 0.7).clamp(min=0)).to(u.dtype) @ v
    assert torch.allclose(found[:, 4:8, 8:12].reshape(3, 16).T, expected, atol=1e-10)
    # The grid of blocks may begin anywhere, and need not fit.
    odd = x[:, :7, :11]
    assert torch.allclose(shrink_blocks(odd, 0.0, 4, (3, 2)), odd, atol=1e-10)
    assert torch.equal(shrink_blocks(odd, 1e6, 4, (3, 2)), torch.zeros_like(odd))


@pytest.mark.slow
def test_a_dynamic_phantom() -> None:
    x = (np.arange(N) - N // 2) * 0.24 / N
    ys, ops, truths = [], [], []
    for frame in range(FRAMES):
        scan = dynamic(frame)
        coils = torch.from_numpy(scan.coils.section((0, 0, 0), (1, 0, 0), (0, 1, 0)).maps(x, x[:, None])).to(torch.complex64)
        magnitude = coils.abs().square().sum(0).sqrt()
        ys.append(torch.from_numpy(scan.samples(frame)[0]))
        ops.append(NonCartesianSense(coils / magnitude, torch.from_numpy(scan.trajectory)))
        truths.append(torch.from_numpy(scan.image()[0]) * magnitude)
    y, op, truth = torch.stack(ys), stacked(ops), torch.stack(truths)
    errors = [
        float((method(y, op).abs() - truth).norm() / truth.norm()) for method in (CgSense(), TotalVariation(), LocallyLowRank())
    ]
    assert errors[2] < 0.08
    assert errors[2] < 0.8 * errors[1]
    assert errors[2] < 0.4 * errors[0]
    scaled = LocallyLowRank()(1e-6 * y, op)
    assert torch.allclose(1e6 * scaled, LocallyLowRank()(y, op), rtol=1e-3, atol=1e-4)


def cartesian_series(noise: float, n_frames: int = 6, n: int = 24) -> tuple[Tensor, Sense, Tensor]:
    """A ventricle that beats, 5 coils, a third of the lines: samples, operator, and truth ``(frame y x)``."""
    x, k, coils = (np.arange(n) - n // 2) * 0.24 / n, (np.arange(n) - n // 2) / n, head_coils(5)
    maps = torch.from_numpy(coils.section((0, 0, 0), (1, 0, 0), (0, 1, 0)).maps(x, x[:, None])).to(torch.complex64)
    magnitude = maps.abs().square().sum(0).sqrt()
    ys, masks, truths = [], [], []
    for frame in range(n_frames):
        r = 0.035 + 0.008 * np.sin(2 * np.pi * frame / n_frames)
        shapes = (ellipsoid((0, 0, 0), (0.085, 0.095, 0.1), -10, 0.7), ellipsoid((0.02, -0.01, 0), (r, 0.9 * r, 0.05), 0, 0.5))
        scan = TrajectoryScan(Phantom(shapes), coils, np.stack(np.meshgrid(k, k), -1), (n, n, 1), noise_std=noise)
        masks.append(MaskSpec.parse(f"seitzer:3,centre=4,seed={frame}").draw((n, n), str(frame)).reshape(1, n, 1))
        ys.append(torch.from_numpy(scan.samples(frame)[0]) * masks[-1])
        truths.append(torch.from_numpy(scan.image()[0]) * magnitude)
    return torch.stack(ys), Sense(maps / magnitude, torch.stack(masks)), torch.stack(truths)


def test_a_series_on_the_grid_and_the_weight_that_follows_the_noise() -> None:
    y, op, truth = cartesian_series(0.1)

    def error(method: Callable[[Tensor, Sense], Tensor]) -> float:
        return float((method(y, op).abs() - truth).norm() / truth.norm())

    found = error(LocallyLowRank())
    assert found < 0.5 * error(CgSense())
    assert found < 0.9 * error(LocallyLowRank(0.05))
    assert found < 1.25 * min(error(LocallyLowRank(w)) for w in (0.2, 0.4))
    scaled = LocallyLowRank(iterations=3)(1e-6 * y, op)
    assert torch.allclose(1e6 * scaled, LocallyLowRank(iterations=3)(y, op), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
def test_the_command_reconstructs_frames_together(tmp_path: Path) -> None:
    whole = replace(scan_of(), trajectory=radial(48, 2 * N, golden_angles(48)), kind="goldenangle", noise_std=0.03)
    write_trajectory_scan(whole, tmp_path / "scan.h5", whole.trajectory)
    with recon.open(tmp_path / "scan.h5") as opened:
        images = opened.reconstruct(method="llr", spokes_per_frame=12)
        sense = opened.reconstruct(method="sense", spokes_per_frame=12)
    assert [image.header.index.repetition for image in images] == [0, 1, 2, 3]
    flicker, without = (float(np.std([np.abs(i.numpy()) for i in found], axis=0).mean()) for found in (images, sense))
    assert flicker < 0.6 * without  # nothing moves


def test_one_frame_is_refused(tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    with pytest.raises(InputError, match="has one repetition; the method needs several"):
        reconstruct_file(tmp_path / "scan.h5", tmp_path / "out", RunOptions(method="llr"))
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="lamda must be finite and positive"):
        LocallyLowRank(0.0)
    with pytest.raises(InputError, match="blocks of 1"):
        LocallyLowRank(block=1)
    op = NonCartesianSense(torch.ones(1, 8, 8, dtype=torch.complex64), torch.from_numpy(radial(8, 16)))
    with pytest.raises(InputError, match="needs several frames"):
        LocallyLowRank()(torch.ones(1, 8, 16, dtype=torch.complex64), op)
