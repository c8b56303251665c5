"""Density of samples: the area of k-space that each stands for, and the points of the grid that they visit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kspace.errors import InputError
from kspace.noncartesian.nufft import Repeated

Density = Literal["pipe", "voronoi"]
ITERATIONS = 30
SAME = 1e-4  # points of the grid: samples nearer than about this are one


def visited(trajectory: Tensor, shape: Sequence[int]) -> Tensor:
    """Points of the Cartesian grid nearest to a sample of `trajectory` ``(... 2)`` or ``(... 3)``: bool ``(ky kx)`` or
    ``(kz ky kx)`` of `shape`."""
    n = torch.tensor(tuple(reversed(shape)), device=trajectory.device)  # of kx, ky, kz
    points = (trajectory.reshape(-1, len(n)) * n).round().long() + n // 2
    points = points[((points >= 0) & (points < n)).all(1)]
    found = torch.zeros(tuple(shape), dtype=torch.bool, device=trajectory.device)
    found[points.flip(1).unbind(1)] = True
    return found


def pipe_density(trajectory: Tensor, shape: Sequence[int], iterations: int = ITERATIONS) -> Tensor:
    """Density compensation by Pipe and Menon's iteration, ``w <- w / (C w)``, C a convolution in k-space.

    Pipe and Menon 1999, doi:10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V, with the kernel that the field of
    view asks for: the transform of its autocorrelation (Johnson and Pipe 2009, doi:10.1002/mrm.21817), which is not negative.

    Parameters
    ----------
    trajectory
        Real ``(readout sample 2)`` or ``(readout sample 3)``, cycles per pixel.
    shape
        Matrix ``(y x)`` or ``(z y x)`` of the image.
    iterations
        Number of iterations.

    Returns
    -------
    Tensor
        Float64 ``(readout sample)``, in points of the grid: 1 for each sample of a Cartesian scan, at most 1 where samples lie
        farther apart than those of the grid.
    """
    wide = tuple(2 * n for n in shape)
    transforms = Repeated(trajectory, wide)
    tent = [(1 - (torch.arange(2 * n, dtype=torch.float64) - n).abs() / n) for n in shape]
    window = tent[0]
    for one in tent[1:]:
        window = window[..., None] * one
    window = (window * 2 ** len(shape)).float()  # two transforms, each orthonormal on the doubled grid
    w = torch.ones(trajectory.shape[:-1], dtype=torch.complex64)
    for _ in range(iterations):
        convolved = transforms.to_samples(window * transforms.to_image(w))
        w = (w.real / convolved.real.clamp(min=1e-12)).to(torch.complex64)
    return w.real.double()


def voronoi_density(trajectory: Tensor, shape: Sequence[int]) -> Tensor:
    """Density compensation by the areas of the Voronoi cells of the samples.

    Rasche et al. 1999, doi:10.1109/42.774165. Samples at one place, as those of all spokes at the
    centre, share its cell. Cells that are open or reach out of the convex hull of the samples have the area of the nearest one
    that does not.

    Parameters
    ----------
    trajectory
        Real ``(readout sample 2)``, cycles per pixel.
    shape
        Matrix ``(y x)`` of the image.

    Returns
    -------
    Tensor
        Float64 ``(readout sample)``, in points of the grid: 1 for each sample of a Cartesian scan, more where samples lie
        farther apart than those of the grid.

    Raises
    ------
    InputError
        If the samples span no area, or are those of a volume.
    """
    if len(shape) == 3:
        what = "the cells of samples in three dimensions are not computed"
        raise InputError(what, "--density voronoi", "use --density pipe")
    from scipy.spatial import ConvexHull, QhullError, Voronoi, cKDTree

    points = trajectory.reshape(-1, 2).double().numpy() * np.array([shape[1], shape[0]])
    _, first, inverse, counts = np.unique(
        np.round(points / SAME).astype(np.int64), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    places = points[first]
    try:
        cells, hull = Voronoi(places), ConvexHull(places)
    except (QhullError, ValueError) as error:
        what = f"{len(places)} places of samples that span no area have no Voronoi cells"
        raise InputError(what, "--density voronoi", "use --density pipe") from error
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    # By facets in turn: all at once would be gigabytes.
    outside = np.zeros(len(cells.vertices), bool)
    for normal, offset in zip(normals, offsets, strict=True):
        outside |= cells.vertices @ normal + offset > SAME
    areas = np.full(len(places), np.nan)
    for i, region in enumerate(cells.point_region):
        corners = cells.regions[region]
        if corners and -1 not in corners and not outside[corners].any():
            areas[i] = _area(cells.vertices[corners])
    known = np.isfinite(areas)
    if not known.any():
        raise InputError("no sample has a closed Voronoi cell", "--density voronoi", "use --density pipe")
    areas[~known] = areas[known][cKDTree(places[known]).query(places[~known])[1]]
    return torch.from_numpy((areas / counts)[inverse.reshape(-1)].reshape(trajectory.shape[:-1]))


def _area(corners: NDArray[np.float64]) -> float:
    """Of a convex polygon ``(corner 2)``, its corners in order."""
    x, y = (corners - corners[0]).T
    return 0.5 * abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1]))


DENSITIES = {"pipe": pipe_density, "voronoi": voronoi_density}
