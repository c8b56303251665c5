"""Voxel positions in patient coordinates (LPS, metres), and stacks of slices that share a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kspace.container import Geometry, Image
from kspace.errors import InputError


@dataclass(frozen=True)
class SliceStack:
    """Parallel, equidistant slices, or a single slice or slab.

    Attributes
    ----------
    slices
        ``ImageIndex.slice`` of the members, sorted along the slice direction.
    spacing_m
        Voxel spacing along the slice direction; 0 if unknown from header and positions.
    image
        Image of the first slice in the first volume.
    """

    slices: tuple[int, ...]
    spacing_m: float
    image: Image


def voxel_m(image: Image) -> NDArray[np.float64]:
    """Voxel size ``(x y z)`` in metres; z may be 0 for a single slice of unknown thickness.

    Raises
    ------
    InputError
        If the field of view is not positive.
    """
    nz, ny, nx = image.data.shape
    size = np.asarray(image.header.geometry.fov_m, float) / (nx, ny, nz)
    if not np.isfinite(size).all() or min(size[:2]) <= 0 or size[2] < 0 or (nz > 1 and size[2] == 0):
        raise InputError(
            f"the field of view {tuple(image.header.geometry.fov_m)} m of an image is not positive",
            image.header.source or None,
            "correct fieldOfView_mm of the header",
        )
    return size


def axes_of(geometry: Geometry) -> NDArray[np.float64]:
    """Directions of increasing x, y and z index (LPS) as the columns of a ``(3 3)`` matrix."""
    return np.array([geometry.read_dir, geometry.phase_dir, geometry.slice_dir], float).T


def patient_m(image: Image, index: Sequence[float]) -> NDArray[np.float64]:
    """Patient coordinates (LPS, metres) of the voxel with 0-based index ``(x y z)``; voxel ``n // 2`` is at `position_m`."""
    nz, ny, nx = image.data.shape
    offset = (np.asarray(index, float) - (nx // 2, ny // 2, nz // 2)) * voxel_m(image)
    return np.asarray(image.header.geometry.position_m, float) + axes_of(image.header.geometry) @ offset


def slice_stacks(images: Sequence[Image]) -> list[SliceStack]:
    """Sort the slices of images of one matrix into stacks of parallel, equidistant slices.

    Slices of different orientations (a three-plane localiser) and slices with gaps become separate stacks, because no single
    voxel grid holds them.

    Returns
    -------
    list of Stack
        Sorted by lowest slice index; each slice index is in exactly one stack.
    """
    first: dict[int, Image] = {}
    for image in sorted(images, key=lambda image: image.header.index):
        first.setdefault(image.header.index.slice, image)
    bundles: list[list[Image]] = []
    for index in sorted(first):
        bundle = next((b for b in bundles if _same_column(b[0], first[index])), None)
        if bundle is None:
            bundles.append([first[index]])
        else:
            bundle.append(first[index])
    stacks = [stack for bundle in bundles for stack in _regular_runs(bundle)]
    return sorted(stacks, key=lambda stack: min(stack.slices))


def _same_column(a: Image, b: Image) -> bool:
    """Whether two slices are parallel and aligned along their normal, so that one grid can hold both."""
    if a.data.shape != b.data.shape or a.data.shape[0] > 1:
        return False
    size, directions = voxel_m(a), axes_of(a.header.geometry)
    if np.abs(directions - axes_of(b.header.geometry)).max() > 1e-3 or np.abs(size - voxel_m(b)).max() > 1e-6:
        return False
    between = directions.T @ (np.array(b.header.geometry.position_m) - np.array(a.header.geometry.position_m))
    return bool((np.abs(between[:2]) < 0.05 * size[:2]).all())


def _regular_runs(bundle: list[Image]) -> list[SliceStack]:
    along = np.array(bundle[0].header.geometry.slice_dir)
    height = {id(image): float(along @ np.array(image.header.geometry.position_m)) for image in bundle}
    bundle = sorted(bundle, key=lambda image: height[id(image)])
    gaps = np.diff([height[id(image)] for image in bundle])
    # The smallest non-zero gap is the slice spacing; wider gaps mean missing slices, zero gaps coincident ones.
    true_gaps = gaps[gaps > 1e-6]
    spacing = float(true_gaps.min()) if true_gaps.size else 0.0
    runs = [[bundle[0]]]
    for image, gap in zip(bundle[1:], gaps, strict=True):
        if spacing and abs(gap - spacing) <= 0.01 * spacing + 1e-6:
            runs[-1].append(image)
        else:
            runs.append([image])
    return [
        SliceStack(
            slices=tuple(image.header.index.slice for image in run),
            spacing_m=spacing if len(run) > 1 else float(voxel_m(run[0])[2]),
            image=run[0],
        )
        for run in runs
    ]


def check_geometry(geometry: Geometry, where: str | None) -> None:
    """Raise `InputError` if the directions are not perpendicular unit vectors, or the position is not finite."""
    axes = axes_of(geometry)
    if not np.isfinite(axes).all() or np.abs(axes.T @ axes - np.eye(3)).max() > 1e-2:
        raise InputError(
            f"the directions {axes.T.tolist()} (read, phase, slice) are not perpendicular unit vectors",
            where,
            "correct read_dir, phase_dir and slice_dir of the readouts",
        )
    if not np.isfinite(geometry.position_m).all():
        raise InputError(f"the position {geometry.position_m} is not finite", where, "correct the position of the readouts")
