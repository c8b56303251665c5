"""Density compensation against areas that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.noncartesian.density import pipe_density, voronoi_density
from kspace.noncartesian.trajectory import golden_angles, radial, spiral

N = 32


@pytest.mark.parametrize("density", [pipe_density, voronoi_density])
def test_density_of_spokes_is_the_ramp(density: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    n_spokes = 64
    found = density(torch.from_numpy(radial(n_spokes, 2 * N)), (N, N)).mean(0)
    radius = (torch.arange(2 * N, dtype=torch.float64) - N) / (2 * N)
    ramp = radius.abs() * N * math.pi / n_spokes / 2  # area of a ring of half a point's width, per sample
    inside = (radius.abs() > 0.1) & (radius.abs() < 0.4)
    assert torch.allclose(found[inside], ramp[inside], rtol=0.1)


def test_cells_of_a_grid_have_the_area_1_to_its_edges() -> None:
    x, y = (torch.arange(n, dtype=torch.float64) / n - 0.5 for n in (20, 16))
    points = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)
    assert torch.allclose(voronoi_density(points, (16, 20)), torch.ones(16, 20, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("kind", ["radial", "golden", "spiral"])
def test_cells_fill_the_disc_of_k_space(kind: str) -> None:
    points = {
        "radial": radial(40, 2 * N),
        "golden": radial(40, 2 * N, golden_angles(40)),
        "spiral": spiral(16, 300, 2.0),
    }[kind]
    cells = voronoi_density(torch.from_numpy(points), (N, N))
    assert bool((cells > 0).all())
    assert float(cells.sum()) == pytest.approx(math.pi * (N / 2) ** 2, rel=0.03)


def test_samples_at_one_place_share_its_cell() -> None:
    points = torch.from_numpy(radial(24, N))
    once = voronoi_density(points, (N, N))
    assert torch.allclose(once[:, N // 2], once[0, N // 2])
    # The polygon about the centre: 48 neighbours at one point of the grid.
    assert float(once[:, N // 2].sum()) == pytest.approx(48 * 0.25 * math.tan(math.pi / 48), rel=1e-3)
    twice = voronoi_density(torch.cat([points, points + 1e-9]), (N, N))
    assert torch.allclose(2 * twice[:24], once)


@pytest.mark.parametrize(
    "points", [torch.zeros(3, 8, 2), torch.stack([torch.linspace(-0.5, 0.5, 24)] * 2, -1).reshape(3, 8, 2)]
)
def test_samples_that_span_no_area_are_refused(points: Tensor) -> None:
    with pytest.raises(InputError, match=r"--density voronoi: \d+ places of samples .* use --density pipe"):
        voronoi_density(points, (N, N))
