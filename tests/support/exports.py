"""Images with a known truth for the tests of what is written: blobs at stated patient coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.container import Geometry, Header, Image, ImageIndex
from recon.output.export import RunRecord

# LPS, millimetres, relative to the centre of the scan; the amplitudes name them. No symmetry maps the set onto itself.
BLOBS = {1.0: (30.0, 8.0, 4.0), 0.8: (-22.0, 25.0, -6.0), 0.6: (12.0, -31.0, 10.0), 0.45: (-35.0, -12.0, -12.0)}
WIDTH_MM = 4.0


def rotation(*degrees: float) -> NDArray[np.float64]:
    """Rotation about x, then y, then z; its columns are read, phase and slice direction."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def phantom(mm: NDArray[np.float64], centre_mm: Sequence[float]) -> NDArray[np.float64]:
    """Sum of the blobs at the patient coordinates ``(... 3)``."""
    total = np.zeros(mm.shape[:-1])
    for amplitude, place in BLOBS.items():
        distance = mm - (np.asarray(place) + centre_mm)
        total += amplitude * np.exp(-0.5 * (distance**2).sum(-1) / WIDTH_MM**2)
    return total


def make_image(
    shape: tuple[int, int, int] = (1, 40, 48),
    fov_mm: tuple[float, float, float] = (120.0, 120.0, 5.0),
    position_mm: Sequence[float] = (0.0, 0.0, 0.0),
    axes: NDArray[np.float64] | None = None,
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    index: ImageIndex | None = None,
    gain: complex = 1.0,
    role: str = "main",
    nominal: bool = False,
    **header: Any,
) -> Image:
    """An image ``(z y x)`` of the blobs, sampled at the voxel centres; voxel n // 2 lies on `position_mm`."""
    axes = np.eye(3) if axes is None else axes
    grid = [(np.arange(n) - n // 2) * f / n for n, f in zip(shape, fov_mm[::-1], strict=True)]
    z, y, x = np.meshgrid(*grid, indexing="ij")
    mm = np.asarray(position_mm) + np.stack([x, y, z], -1) @ axes.T
    values = torch.from_numpy(phantom(mm, centre_mm) * gain)
    geometry = Geometry(
        position_m=tuple(1e-3 * float(v) for v in position_mm),
        read_dir=tuple(axes[:, 0].tolist()),
        phase_dir=tuple(axes[:, 1].tolist()),
        slice_dir=tuple(axes[:, 2].tolist()),
        fov_m=tuple(1e-3 * v for v in fov_mm),
        nominal=nominal,
    )
    return Image(
        values.to(torch.complex64 if values.is_complex() else torch.float32),
        Header(index=index or ImageIndex(), geometry=geometry, recon_matrix=shape[::-1], **header),
        role=role,
    )


def make_scan(axes: NDArray[np.float64], kind: str, centre_mm: Sequence[float] = (15.0, -40.0, 60.0)) -> list[Image]:
    """A 3-D scan (``3d``), or slices whose index grows along (``ascending``) or against (``descending``) slice_dir."""
    centre = np.asarray(centre_mm, float)
    if kind == "3d":
        return [make_image((37, 41, 64), (160.0, 123.0, 111.0), centre, axes, centre, gain=2 + 1j)]
    offsets = 3.0 * (np.arange(35) - 17)
    if kind == "descending":
        offsets = offsets[::-1]
    return [
        make_image((1, 50, 63), (126.0, 125.0, 2.0), centre + o * axes[:, 2], axes, centre, index=ImageIndex(slice=s), gain=1j)
        for s, o in enumerate(offsets)
    ]


def make_record(**changes: Any) -> RunRecord:
    """A record of a SENSE run."""
    values: dict[str, Any] = {
        "method": "sense",
        "generated": False,
        "description": "SENSE of a phantom",
        "versions": {"recon": "0.1.0", "torch": "2.15.0"},
        "source": "scan.h5",
        "source_sha256": "ab" * 32,
    }
    return RunRecord(**(values | changes))
