"""What readouts with kz are: planes, stacks of equal planes, or volumes whose planes are coupled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

Column = Literal["none", "kz", "density"]
Layout = Literal["planes", "stack", "volume"]
Real = NDArray[np.float64]

STEADY = 1e-3  # relative change along a readout below which a column is constant
ON_GRID = 0.02  # partitions: how far from the grid kz may lie
LEAST = 0.25  # of the end of k-space: what kz must reach in its units


@dataclass(frozen=True)
class Readouts:
    """Where the readouts of one image lie.

    Attributes
    ----------
    points
        ``(readout sample 2)`` in cycles per pixel of planes and stacks, ``(readout sample 3)`` of volumes.
    layout
        ``planes``: one plane; ``stack``: equal planes, which a transform along kz separates; ``volume``: anything else.
    rows
        Partition of each readout ``(readout)`` of a stack; None otherwise.
    why
        In words, what makes a volume of it.
    """

    points: Real
    layout: Layout
    rows: NDArray[np.int64] | None = None
    why: str = ""


def third_column(k: Real, partition: NDArray[np.int64], n_partitions: int, where: str) -> Column:
    """What the third column of a trajectory is.

    Parameters
    ----------
    k
        ``(readout sample 3)``, as stated: readouts of all images; with a fourth column the density is there, and the third kz.
    partition
        Counter of each readout.
    n_partitions
        Of the encoded matrix.
    where
        Of the trajectory, for messages.

    Raises
    ------
    InputError
        If it may be either, or contradicts the matrix.
    """
    last, is_kz = k[..., 2], k.shape[-1] == 4
    change = float(np.ptp(last, axis=1).max())
    if n_partitions == 1:
        if bool((last >= 0).all()) and change > 0 and not is_kz:
            return "density"
        if change > STEADY * np.abs(k[..., :2]).max():
            what = "kz changes along the readouts, and the encoded matrix has one partition"
            raise InputError(what, where, "correct encodedSpace in the header, or give --trajectory FILE with kx and ky")
        return "none"
    if not last.any():
        return "none"
    if is_kz or change <= STEADY * np.abs(last).max() or not bool((last >= 0).all()):
        return "kz"
    if np.allclose(last, last[0], rtol=STEADY, atol=STEADY * last.max()) or _same_everywhere(last, partition):
        return "density"  # no kz is the same in every readout, or in every partition
    if len(np.unique(partition)) == 1:
        return "kz"
    what = "the third column of the trajectory is nowhere negative and differs between readouts: kz or a density"
    raise InputError(what, where, "give --trajectory FILE with kx and ky, or with kx, ky and kz")


def placed(points: Real, rows: NDArray[np.int64], n_partitions: int, where: str) -> Readouts:
    """The readouts of one image of a scan with partitions.

    Parameters
    ----------
    points
        ``(readout sample 2)`` in cycles per pixel, or 3 where kz is stated.
    rows
        Partition of each readout by its counter; the centre is ``n_partitions // 2``.
    n_partitions
        Of the encoded matrix.
    where
        For messages.

    Raises
    ------
    InputError
        If kz and the counters contradict each other, or kz is in other units than kx and ky.
    """
    if points.shape[-1] == 3:
        kz = points[..., 2]
        reach = 2 * float(np.abs(kz).max())
        if np.ptp(kz, axis=1).max() > STEADY * np.abs(kz).max():
            _check_reach(reach, where)
            return Readouts(points, "volume", why="kz changes along the readouts")
        position = kz.mean(1) * n_partitions
        if np.ptp(position) > ON_GRID and not _follows(position, rows, where):
            _check_reach(reach, where)
            nearest = np.round(position).astype(np.int64)
            if np.abs(position - nearest).max() > ON_GRID:
                return Readouts(points, "volume", why="partitions lie between those of the grid")
            rows = nearest + n_partitions // 2
        points = points[..., :2]
    if np.any((rows < 0) | (rows >= n_partitions)):
        what = f"partitions from {rows.min()} to {rows.max()} lie outside the encoded matrix of {n_partitions}"
        raise InputError(what, where, "correct encodingLimits or encodedSpace, or state kz in the trajectory")
    counts = np.bincount(rows, minlength=n_partitions)
    n = int(counts.max())
    if not np.all((counts == n) | (counts == 0)):
        why = f"partitions have {counts[counts > 0].min()} to {n} readouts"
    else:
        order = np.argsort(rows, kind="stable").reshape(-1, n)
        if all(np.allclose(points[one], points[order[0]], atol=1e-4) for one in order):
            return Readouts(points, "stack", rows)
        why = "partitions differ in their trajectories"
    kz = np.broadcast_to(((rows - n_partitions // 2) / n_partitions)[:, None, None], (*points.shape[:2], 1))
    return Readouts(np.concatenate([points, kz], -1), "volume", why=why)


def _same_everywhere(last: Real, partition: NDArray[np.int64]) -> bool:
    """Whether every partition has the same columns ``(readout sample)``, in whatever order."""
    parts = [last[partition == one] for one in np.unique(partition)]
    if len(parts) == 1 or len({len(part) for part in parts}) > 1:
        return False
    parts = [part[np.argsort(part.sum(1), kind="stable")] for part in parts]
    return all(np.allclose(part, parts[0], rtol=STEADY, atol=STEADY * last.max()) for part in parts)


def _follows(position: Real, rows: NDArray[np.int64], where: str) -> bool:
    """Whether kz, in partitions, says what the counters say, in whatever units and from whatever zero."""
    if np.ptp(rows) == 0:
        return False
    slope, offset = np.polyfit(rows, position, 1)
    if np.abs(position - slope * rows - offset).max() > ON_GRID * abs(slope):
        return False
    if slope < 0:
        raise InputError("kz falls while the partition counter rises", where, "correct one of them; the other is taken")
    return True


def _check_reach(reach: float, where: str) -> None:
    if reach < LEAST:
        what = f"kz reaches {reach:.3g} of the end of k-space in the units of kx and ky"
        raise InputError(what, where, "correct the third column, or matrix and field of view in the header")
