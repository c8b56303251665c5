"""Readouts off the Cartesian grid: their trajectories, and the k-space of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import h5py
import numpy as np

from kspace.container import Header, KSpace
from kspace.errors import InputError
from kspace.io.hdf5 import guard
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.header import Encoding
from kspace.noncartesian.checks import check_centre, check_range, check_size
from kspace.noncartesian.computed import Order, Spokes, agreements, candidates, chosen, order_of, series_of, spokes
from kspace.noncartesian.delay import GradientDelay, corrected, estimate_delay
from kspace.noncartesian.layout import Column, Readouts, placed, third_column
from kspace.noncartesian.trajectory import Units, cycles_per_pixel, guess_units
from kspace.noncartesian.trajectory_file import load_trajectory
from kspace.noncartesian.variable_density import IDENTIFIER, arm_of, differences, spiral_arms

if TYPE_CHECKING:
    from torch import Tensor

MOST_FOR_UNITS = 1000  # readouts whose trajectories are looked at
LEAST_FOR_ORDER, MOST_FOR_ORDER = 16, 256  # spokes whose samples tell their order
BEYOND = 0.05  # how much farther than the end of k-space a trajectory may reach without finer pixels


@dataclass
class TrajectoryOptions:
    """How trajectories are read.

    Attributes
    ----------
    file
        NumPy file (.npy) with real ``(readout sample 2)``, or 3 with kz, or Pulseq sequence (.seq), in place of what the
        readouts carry; None: those of the readouts.
    units
        Units of the trajectory; None: guessed.
    delay
        ``auto``: estimate gradient delays of radial scans and correct them; ``none``.
    """

    file: Path | None = None
    units: Units | None = None
    delay: Literal["auto", "none"] = "auto"
    _known: dict[int, Units] = field(default_factory=dict)
    _columns: dict[int, Column] = field(default_factory=dict)
    _voxels: dict[int, list[float]] = field(default_factory=dict)
    _spokes: dict[int, Spokes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EncodingReadouts:
    """The readouts of one encoding in an open file.

    Attributes
    ----------
    group, path
        The file.
    headers
        Acquisition headers ``(readout,)`` of all of its readouts.
    encoding
        The encoding.
    imaging
        Numbers ``(n,)`` of its imaging readouts, in order of acquisition.
    rows_z
        Partition of all readouts of the file ``(readout,)``.
    options
        How to read their trajectory.
    warnings
        Receives what was assumed.
    """

    group: h5py.Group
    path: Path
    headers: np.ndarray
    encoding: Encoding
    imaging: np.ndarray
    rows_z: np.ndarray
    options: TrajectoryOptions = field(default_factory=TrajectoryOptions)
    warnings: list[str] = field(default_factory=list)

    @property
    def some(self) -> np.ndarray:
        """Numbers ``(n,)`` of imaging readouts from the whole scan, at most about `MOST_FOR_UNITS`, of the length of the first:
        those of another echo may have another."""
        n = self.headers["number_of_samples"][self.imaging]
        alike = self.imaging[n == n[0]]
        return alike[:: max(1, len(alike) // MOST_FOR_UNITS)]

    @property
    def order(self) -> Order:
        """How the readouts follow each other by the header."""
        return order_of(self.encoding.trajectory, self.encoding.description)

    @property
    def is_computed(self) -> bool:
        """Whether neither the readouts nor the user state a trajectory."""
        return self.options.file is None and not self.headers["trajectory_dimensions"][self.imaging].any()

    @property
    def voxel_m(self) -> list[float]:
        """Encoded voxel size ``(x, y, z)``."""
        return [fov / n for fov, n in zip(self.encoding.encoded_fov_m, self.encoding.encoded_matrix, strict=True)]


def load_readouts(source: EncodingReadouts, numbers: np.ndarray, header: Header) -> KSpace:
    """The readouts of one image with their trajectory.

    Parameters
    ----------
    source
        The readouts of the encoding.
    numbers
        Numbers ``(n,)`` of those of the image.
    header
        Of the image.

    Returns
    -------
    KSpace
        Complex64 ``(coil readout sample)``, or ``(z coil readout sample)`` of a stack of equal planes, transformed along kz;
        trajectory in cycles per pixel of the matrix that the header then has: the encoded voxels over the reconstructed field
        of view. It has kz where the planes of a volume are not equal.

    Raises
    ------
    InputError
        If trajectory and readouts contradict each other, or it is not finite, zero, or in no known unit.
    """
    import torch

    headers, encoding, warnings = source.headers, source.encoding, source.warnings
    where, density, matrix, lengths = _place(source, numbers)
    points = where.points
    pre, post = int(headers["discard_pre"][numbers[0]]), int(headers["discard_post"][numbers[0]])
    n = int(headers["number_of_samples"][numbers[0]])
    kept = slice(pre, min(n - post, points.shape[1]))  # a computed arm may end before its readout
    if kept.start >= kept.stop:
        what = f"readout {numbers[0]} discards {pre} + {post} of its {n} samples, {points.shape[1]} of which have a trajectory"
        raise InputError(what, source.path, "correct the readouts, or give --trajectory FILE")
    check_size(n * len(numbers), encoding.n_coils, source.path)
    samples = mrd_file.read_samples(source.group, source.path, headers, numbers)
    y = np.stack([one[:, kept] for _, one in samples], 1)
    points, density = points[:, kept], None if density is None else density[:, kept]
    check_centre(y, points, source.path)
    study = dict(header.study)
    if source.order in ("radial", "goldenangle") and source.options.delay == "auto":
        delay = where.why if where.layout == "volume" else estimate_delay(y, points)
        if isinstance(delay, GradientDelay):
            warnings.append(f"{header.index.name}: gradient delay corrected: {delay.says}; --gradient-delay none leaves it")
            points = corrected(points, delay)
            study["gradient_delay"] = vars(delay)
        else:
            warnings.append(f"encoding {encoding.index}: gradient delay not estimated: {delay}")
    data, trajectory, compensation = torch.from_numpy(y), torch.from_numpy(np.ascontiguousarray(points)), density
    if where.rows is not None:
        data, trajectory, compensation = _stack(y, points, density, where.rows, encoding.encoded_matrix[2])
    return KSpace(
        data=data,
        mask=torch.ones((1, *data.shape[-2:]), dtype=torch.bool),
        header=replace(header, encoded_matrix=matrix, encoded_fov_m=lengths, study=study),
        trajectory=trajectory,
        density=None if compensation is None else torch.from_numpy(np.ascontiguousarray(compensation, np.float32)),
    )


def describe_readouts(source: EncodingReadouts, numbers: np.ndarray) -> str:
    """In words, how the readouts `numbers` ``(n,)`` of an image are reconstructed, and where their trajectory comes from."""
    try:
        found = _place(source, numbers)[0]
    except InputError as error:
        return f"trajectory: {error.what}; {error.fix}" if error.fix else f"trajectory: {error.what}"
    said = {
        "planes": "trajectory in planes",
        "stack": "stack of equal planes: transformed along kz, plane by plane",
        "volume": f"trajectory in three dimensions ({found.why}): {len(numbers)} readouts, one volume at a time",
    }[found.layout]
    if not source.is_computed:
        return said
    known = source.options._spokes.get(source.encoding.index)
    how = f"trajectoryDescription {IDENTIFIER}" if known is None else known.says
    return f"{said}; the readouts carry none, computed from the header ({how})"


def _grid(encoding: Encoding, voxel: list[float]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Matrix and field of view of the reconstruction: encoded voxels over the reconstructed field of view."""
    x, y = (max(1, math.ceil(fov / size - 1e-3)) for fov, size in zip(encoding.recon_fov_m[:2], voxel[:2], strict=True))
    return (x, y, encoding.encoded_matrix[2]), (x * voxel[0], y * voxel[1], encoding.encoded_fov_m[2])


def _place(
    source: EncodingReadouts, numbers: np.ndarray
) -> tuple[Readouts, np.ndarray | None, tuple[int, int, int], tuple[float, float, float]]:
    """Where the readouts of an image lie, the density column ``(readout sample)`` if there is one, matrix, field of view."""
    encoding, path, voxel = source.encoding, source.path, _voxel(source)
    k, density = _trajectory(source, numbers)
    points = _in_pixels(source, k, voxel)
    where = Readouts(points, "planes")
    if encoding.is_3d:
        where = placed(points, source.rows_z[numbers], encoding.encoded_matrix[2], str(path))
        if where.layout == "volume":
            check_range(where.points, encoding.index, path, _units(source))
    return where, density, *_grid(encoding, voxel)


def _in_pixels(source: EncodingReadouts, k: np.ndarray, voxel: list[float]) -> np.ndarray:
    """A stated or computed trajectory in cycles per pixel of `voxel`."""
    encoding, units = source.encoding, _units(source)
    fov = (*(encoding.recon_fov_m if _is_recon_grid(k, encoding) else encoding.encoded_fov_m)[:2], encoding.encoded_fov_m[2])
    points = cycles_per_pixel(k, units, voxel, fov)
    check_range(points[..., :2], encoding.index, source.path, units)
    return points


def _voxel(source: EncodingReadouts) -> list[float]:
    """Voxel size ``(x, y, z)`` in metres of an encoding's images: the encoded one, but finer where the trajectory reaches
    farther, and along y that of x where spokes are computed, which are equally long in all directions."""
    known, voxel, where = source.options._voxels, source.voxel_m, f"encoding {source.encoding.index}"
    if source.encoding.index in known:
        return known[source.encoding.index]
    shown = f"{1e3 * voxel[0]:.3g} x {1e3 * voxel[1]:.3g} mm"
    if source.is_computed and source.order in ("radial", "goldenangle"):
        if abs(voxel[1] / voxel[0] - 1) > BEYOND:
            source.warnings.append(
                f"{where}: spokes reach equally far, but encoded pixels are {shown}: those of x taken for both"
            )
        found = [voxel[0], voxel[0], voxel[2]]
    else:
        some = _in_pixels(source, _trajectory(source, source.some)[0], voxel)
        reach = np.maximum(1.0, 2 * np.abs(some[..., :2]).max((0, 1)))
        if reach.max() > 1 + BEYOND:
            said = f"the trajectory reaches {reach[0]:.2f} x {reach[1]:.2f} of the end of k-space for encoded pixels of {shown}"
            source.warnings.append(f"{where}: {said}: finer ones are computed")
        found = [*(size / by if by > 1 + BEYOND else size for size, by in zip(voxel[:2], reach, strict=True)), voxel[2]]
    known[source.encoding.index] = found
    return found


def _trajectory(source: EncodingReadouts, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """kx and ky ``(readout sample 2)`` as they are stated, or with kz ``(readout sample 3)``, and the density column ``(readout
    sample)`` where there is one."""
    encoding, headers, path = source.encoding, source.headers, source.path
    if source.options.file is not None:
        k = _of_file(source.options.file, source)
        if k.shape[-1] == 3 and not encoding.is_3d:
            what = "the trajectory has kz, and the encoded matrix has one partition"
            raise InputError(
                what, f"--trajectory {source.options.file}", "give kx and ky, or correct encodedSpace in the header"
            )
        return k[np.searchsorted(source.imaging, numbers)], None
    n_dims = np.unique(headers["trajectory_dimensions"][source.imaging])
    if len(n_dims) > 1:
        shown = ", ".join(map(str, n_dims))
        raise InputError(
            f"encoding {encoding.index}: readouts with trajectories of {shown} dimensions are mixed",
            path,
            "convert the scan again",
        )
    if n_dims[0] == 0:
        return _computed(source, numbers), None
    if n_dims[0] not in (2, 3, 4):
        what = f"the trajectory has {n_dims[0]} dimensions, expected 2 to 4: kx, ky, then kz, a density or both"
        raise InputError(what, path, "convert the scan again, or give --trajectory FILE")
    k = read_trajectories(source, numbers)
    if not k[..., :2].any():
        raise InputError(f"the trajectory of {len(numbers)} readouts is zero everywhere", path, "give --trajectory FILE")
    if n_dims[0] == 2:
        return k, None
    columns = source.options._columns
    if encoding.index not in columns:
        # Of the encoding, not of the image: no frame may decide otherwise than the next.
        partition = headers["idx"]["kspace_encode_step_2"][source.some].astype(np.int64)
        of_all = read_trajectories(source, source.some)
        columns[encoding.index] = third_column(of_all, partition, encoding.encoded_matrix[2], str(path))
    column = columns[encoding.index]
    density = k[..., -1] if n_dims[0] == 4 or column == "density" else None
    return k[..., : 3 if column == "kz" else 2], density


def read_trajectories(source: EncodingReadouts, numbers: np.ndarray) -> np.ndarray:
    """Trajectories of the readouts `numbers` ``(n,)``, in ascending order, float64 ``(readout sample dimension)``, as they are
    stored.

    Raises
    ------
    InputError
        If a length contradicts the header of its readout, or a value is not finite.
    """
    headers, path = source.headers, source.path
    n, dims = int(headers["number_of_samples"][numbers[0]]), int(headers["trajectory_dimensions"][numbers[0]])
    stored, found = source.group["data"].fields("traj"), []
    for block in mrd_file.blocks(numbers, 4 * n * dims):
        with guard(path):
            values = stored[block]
        for number, one in zip(range(block.start, block.stop, block.step), values, strict=True):
            if one.size != n * dims:
                what = f"readout {number} holds {one.size} trajectory values, its head says {n} samples x {dims} dimensions"
                raise InputError(what, path, "the file is damaged or badly converted")
            if not np.isfinite(one).all():
                bad = int(np.count_nonzero(~np.isfinite(one)))
                raise InputError(f"the trajectory of readout {number} has {bad} NaN or infinite values", path, "convert again")
            found.append(one.reshape(n, dims))
    return np.stack(found).astype(np.float64)


def _of_file(file: Path, source: EncodingReadouts) -> np.ndarray:
    n = source.headers["number_of_samples"][source.imaging]
    if n.min() != n.max():
        what = f"the readouts have {n.min()} to {n.max()} samples, a trajectory for all needs one length"
        raise InputError(what, f"--trajectory {file}", "put it into the readouts (traj)")
    return load_trajectory(file, len(n), int(n[0]))


def _computed(source: EncodingReadouts, numbers: np.ndarray) -> np.ndarray:
    """Spokes or arms of the readouts, by their counter, where the header names an order."""
    encoding, headers = source.encoding, source.headers
    counter = headers["idx"]["kspace_encode_step_1"].astype(np.int64)
    n, centre = int(headers["number_of_samples"][numbers[0]]), int(headers["center_sample"][numbers[0]])
    if source.order == "none":
        what = f"encoding {encoding.index} is {encoding.trajectory}, and its readouts carry no trajectory"
        raise InputError(what, source.path, "give --trajectory FILE")
    if source.order == "spiral":
        highest = int(counter[source.imaging].max())
        arm = arm_of(encoding.parameters, encoding.dwell_s, highest, str(source.path))
        k = spiral_arms(arm, counter[numbers], n)
        said = differences(arm, k.shape[1], n, source.voxel_m[:2])
        source.warnings.extend(f"encoding {encoding.index}: {one}" for one in said)
        return k
    series, place = series_of(headers["idx"], source.imaging)
    which = _spokes(source, counter, series, place)
    return spokes(which, (counter if which.by_counter else place)[numbers], n, centre)


def _spokes(source: EncodingReadouts, counter: np.ndarray, series: np.ndarray, place: np.ndarray) -> Spokes:
    """The order of an encoding's spokes: the stated one, or another where only that fits the samples."""
    encoding, known = source.encoding, source.options._spokes
    if encoding.index in known:
        return known[encoding.index]
    limit, n_counted = encoding.limits.get("kspace_encoding_step_1"), int(counter[source.imaging].max()) + 1
    possible = candidates(source.order, n_counted if limit is None else limit.maximum + 1, n_counted)
    known[encoding.index] = possible[0]
    group = source.imaging[series[source.imaging] == series[source.imaging[0]]][:MOST_FOR_ORDER]
    n, centre = (int(source.headers[name][group[0]]) for name in ("number_of_samples", "center_sample"))
    if len(group) >= LEAST_FOR_ORDER and np.all(source.headers["number_of_samples"][group] == n):
        y = np.stack([one for _, one in mrd_file.read_samples(source.group, source.path, source.headers, group)], 1)
        angles = [(counter if one.by_counter else place)[group] * one.step_rad for one in possible]
        known[encoding.index], said = chosen(possible, agreements(y, angles, centre or n // 2), y.size // 2)
        if said:
            source.warnings.append(f"encoding {encoding.index}: {said}")
    return known[encoding.index]


def _units(source: EncodingReadouts) -> Units:
    """Units of an encoding's trajectory, the same for all of its images."""
    options, encoding = source.options, source.encoding
    if source.is_computed:
        return "1/m" if source.order == "spiral" else "fraction"
    if options.units is not None:
        return options.units
    if options.file is not None and options.file.suffix == ".seq":
        return "1/m"
    if encoding.index not in options._known:
        k = _of_file(options.file, source) if options.file else read_trajectories(source, source.some)
        largest = float(np.abs(k[..., :2]).max())
        where = str(source.path) if options.file is None else f"--trajectory {options.file}"
        if largest == 0:
            raise InputError("the trajectory is zero everywhere", where, "give --trajectory FILE")
        matrix = encoding.encoded_matrix[0], encoding.recon_matrix[0]
        units = guess_units(largest, min(source.voxel_m[:2]), matrix, where)
        source.warnings.append(f"encoding {encoding.index}: trajectory taken in units of {units} (largest |k| {largest:.4g})")
        options._known[encoding.index] = units
    return options._known[encoding.index]


def _is_recon_grid(k: np.ndarray, encoding: Encoding) -> bool:
    """Whether units of ``grid`` count cycles of the reconstructed field of view, not of an oversampled one."""
    largest = float(np.abs(k[..., :2]).max())
    ends = encoding.encoded_matrix[0] / 2, encoding.encoded_matrix[0] / 2 * encoding.recon_fov_m[0] / encoding.encoded_fov_m[0]
    return abs(math.log(largest / ends[1])) < abs(math.log(largest / ends[0])) if ends[0] != ends[1] else True


def _stack(
    y: np.ndarray, points: np.ndarray, density: np.ndarray | None, row: np.ndarray, nz: int
) -> tuple[Tensor, Tensor, np.ndarray | None]:
    """Planes ``(z coil readout sample)`` of a stack of equal planes, transformed along kz, their trajectory and density."""
    import torch

    from kspace.fourier import ifft

    order = np.argsort(row, kind="stable").reshape(-1, int(np.bincount(row).max()))
    grid = np.zeros((nz, y.shape[0], order.shape[1], y.shape[2]), np.complex64)
    for one in order:
        grid[row[one[0]]] = y[:, one]
    planes = ifft(torch.from_numpy(grid), (0,)).contiguous()
    return planes, torch.from_numpy(points[order[0]]), None if density is None else density[order[0]]
