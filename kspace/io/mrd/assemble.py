"""From readouts to the k-space of one image, and the header that belongs to it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from kspace.container import Geometry, Header, ImageIndex, KSpace, ReceiveCoils, Vector
from kspace.epi.directions import (
    Read,
    alternates,
    lines_are_turned,
    navigators_are_turned,
    shot_parity,
    with_navigator_directions,
)
from kspace.epi.place import Placed, by_entropy, coil_groups, count_shots, is_delayed, place_lines
from kspace.epi.plan import EpiPlan
from kspace.errors import InputError
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.echo_planar import without_discarded
from kspace.io.mrd.flags import REVERSE
from kspace.io.mrd.header import MrdHeader
from kspace.io.mrd.noncartesian import EncodingReadouts, TrajectoryOptions, load_readouts
from kspace.io.mrd.sort import ReadoutPlan, calibration_of

if TYPE_CHECKING:  # headers alone are read without torch
    from torch import Tensor

MOST_QUIET_RAD = 0.2  # between shots, below which nothing is said
CENTRAL_SCALARS = ("flags", "measurement_uid", "scan_counter", "acquisition_time_stamp", "sample_time_us", "center_sample")
CENTRAL_VECTORS = (
    *("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position"),
    *("physiology_time_stamp", "user_int", "user_float"),
)


def load_image(
    group: h5py.Group,
    path: Path,
    headers: np.ndarray,
    plan: ReadoutPlan,
    index: ImageIndex,
    header: Header,
    ghost: str = "auto",
    trajectory: TrajectoryOptions | None = None,
    warnings: list[str] | None = None,
    lender: ReadoutPlan | None = None,
) -> KSpace:
    """Read the readouts of one image, and nothing else, onto the grid of the encoded matrix, or with their trajectory.

    `ghost` says what is done about the odd-even phase of echo-planar readouts, see `kspace.epi.place.GHOST`; `warnings`
    receives what was assumed; `lender` is the encoding with the calibration lines, where they are not in that of the image.

    Returns
    -------
    KSpace
        ``(coil ky kx)``, or ``(kz coil ky kx)`` where the encoded matrix has several z; repeated lines averaged.
    """
    import torch

    numbers = plan.images[index]
    if plan.encoding.has_trajectory:
        options, notes = trajectory or TrajectoryOptions(), [] if warnings is None else warnings
        source = EncodingReadouts(group, path, headers, plan.encoding, plan.imaging, plan.kz, options, notes)
        return load_readouts(source, numbers, header)
    calibration = calibration_of(plan, headers, index)
    _check_memory(plan, path, 2 if len(calibration) else 1)
    separate = None
    if plan.epi is not None:
        warnings = [] if warnings is None else warnings
        data, count, header = _place_epi(group, path, headers, plan, plan.epi, numbers, header, ghost, warnings)
        if len(calibration):
            of_calibration = plan.calibration_epi or plan.epi
            separate = _place_epi(group, path, headers, plan, of_calibration, calibration, header, ghost, [])[0]
    else:
        data, count = _place(group, path, headers, plan, numbers)
        data = _without_ghost(plan, headers, numbers, data, ghost, [] if warnings is None else warnings)
        separate = _place(group, path, headers, plan, calibration)[0] if len(calibration) else None
    if lender is not None and len(lines := calibration_of(lender, headers, index)):
        separate = _borrow(_place(group, path, headers, lender, lines)[0], plan.encoding.encoded_matrix)
    n_averages = torch.from_numpy(count)
    return KSpace(
        data=_squeeze(plan, data),
        mask=n_averages > 0,
        header=header,
        n_averages=n_averages,
        calibration=None if separate is None else _squeeze(plan, separate),
    )


def _place_epi(
    group: h5py.Group,
    path: Path,
    headers: np.ndarray,
    plan: ReadoutPlan,
    epi: EpiPlan,
    numbers: np.ndarray,
    header: Header,
    ghost: str,
    warnings: list[str],
) -> tuple[np.ndarray, np.ndarray, Header]:
    """Mean of the echo-planar readouts on the grid, how often each line was measured, and the header with what was done."""
    encoding = plan.encoding

    def read(which: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        return mrd_file.read_samples(group, path, headers, which)

    def read_kept(which: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        return without_discarded(headers, read(which))

    where = f"encoding {encoding.index}"
    shape = encoding.encoded_matrix[2], encoding.n_coils, encoding.encoded_matrix[1]
    groups = coil_groups(header.coils.names, encoding.n_coils)
    epi, read_turned = _oriented(epi, plan.ky, numbers, shape[2], read_kept, where, warnings)
    if epi.delayed is not None:
        delayed = is_delayed(epi, numbers, read_turned)
        epi = replace(epi, readouts=epi.delayed) if delayed else epi
        warnings.append(
            f"{where}: acqDelayTime does not put the readouts into the middle of their gradient; the samples are "
            + ("where it says" if delayed else "in the middle, and are taken so")
        )
    placed = place_lines(epi, numbers, plan.kz, plan.ky, shape, read_turned, ghost, str(path), groups)
    unmarked = not epi.is_marked and ghost in ("auto", "entropy") and bool(np.all(np.diff(np.unique(plan.ky[numbers])) == 1))
    if unmarked and len(numbers) > 1:
        directed = epi.with_directions(numbers, shot_parity(plan.ky[numbers])).with_turned().without_navigators()
        other = place_lines(directed, numbers, plan.kz, plan.ky, shape, read_kept, "entropy", str(path), groups)
        if other.differs:
            placed = other
            warnings.append(
                f"{where}: no readout is marked as reversed, but every second one has another phase: turned already"
            )
    if placed.source == "entropy" and ghost != "entropy":
        warnings.append(
            f"{where}: no phase correction navigators: the odd-even phase is estimated from each image by minimum entropy; a "
            "Nyquist ghost may remain"
        )
    _warn_of_shots(placed, count_shots(plan.ky[numbers]) if shape[0] == 1 else 1, where, warnings)
    count = np.ascontiguousarray(placed.count[:, None, :, None])
    return placed.grid, count if encoding.is_3d else count[0], _epi_header(header, placed, epi.readouts[0].noise_gain)


def _oriented(
    epi: EpiPlan, ky: np.ndarray, numbers: np.ndarray, n_ky: int, read: Read, where: str, warnings: list[str]
) -> tuple[EpiPlan, Read]:
    """The plan and a reader of the samples, for readouts as they truly run."""
    central = int(numbers[np.argmin(np.abs(ky[numbers] - n_ky // 2))])
    is_assumed = not epi.is_marked and len(numbers) > 1 and alternates(epi, numbers, read)
    if is_assumed:
        epi = epi.with_directions(numbers, shot_parity(ky[numbers]))
        warnings.append(
            f"{where}: no readout is marked as reversed, but neighbours are mirrored: every second one is taken as reversed"
        )
    epi = with_navigator_directions(epi, numbers, central, read, is_assumed)
    lines, navigators = lines_are_turned(epi, numbers, central, read), navigators_are_turned(epi, numbers, read)
    lines = bool(navigators) if lines is None else lines
    navigators = lines if navigators is None else navigators
    if lines or navigators:
        warnings.append(f"{where}: readouts are marked as reversed, but run like the others: not turned around")
    if lines == navigators:
        return epi.with_turned() if lines else epi, read
    of_lines = set(numbers.tolist())

    def read_turned(which: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        for number, samples in read(which):
            turned = epi.is_reversed[number] and (lines if number in of_lines else navigators)
            yield number, samples[:, ::-1] if turned else samples

    return epi, read_turned


def _borrow(grid: np.ndarray, matrix: tuple[int, int, int]) -> np.ndarray:
    """Calibration lines ``(kz coil ky kx)`` of another encoding with pixels of the same width, on the grid of `matrix`."""
    import torch

    from kspace.fourier import fft, ifft, resize

    nx, ny = matrix[:2]
    columns = resize(ifft(torch.from_numpy(grid), (-1,)), (nx,))
    lines = resize(fft(columns, (-1,)).movedim(-1, -2), (ny,)).movedim(-2, -1)
    return np.ascontiguousarray(lines.numpy())


def _warn_of_shots(placed: Placed, n_shots: int, where: str, warnings: list[str]) -> None:
    if not placed.is_in_phase:
        least = min(shot.agreement for shot in placed.shots)
        warnings.append(
            f"{where}: the navigators of its shots agree by {least:.2f} only (of 1): the phase between them is not corrected; "
            "a ghost may remain"
        )
    elif placed.shots:
        largest = max(abs(shot.constant_rad) for shot in placed.shots)
        if largest > MOST_QUIET_RAD:
            warnings.append(
                f"{where}: the phase differs between shots: corrected from navigators as far as it is constant or linear along "
                "the readout; see shot_phase in the record"
            )
    elif n_shots > 1 and placed.source != "navigators":
        warnings.append(
            f"{where}: {n_shots} shots without navigators: the phase between them is not corrected; a ghost may remain"
        )


def _epi_header(header: Header, placed: Placed, noise_gain: float) -> Header:
    steps = ("regrid", *(() if placed.source == "none" else (f"odd-even phase from {placed.source}",)))
    # The dwell time that a plain sample with the noise of a regridded one would have.
    central = {**header.central, "sample_time_us": header.central["sample_time_us"] / noise_gain}
    groups = coil_groups(header.coils.names, len(header.coils.numbers))
    arrays = [{"coils": members.tolist()} if len(groups) > 1 else {} for members in groups]
    phases = [vars(p) | array for group in placed.phases for p, array in zip(group, arrays, strict=False)]
    study = {**header.study, "odd_even_phase": phases}
    if placed.shots:
        study["shot_phase"] = [vars(shot) for shot in placed.shots]
    return replace(header, steps=(*header.steps, *steps), central=central, study=study)


def _squeeze(plan: ReadoutPlan, grid: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(grid if plan.encoding.is_3d else grid[0])


def _check_memory(plan: ReadoutPlan, path: Path, n_grids: int) -> None:
    """Refuse early what would die late: k-space of one image, or its coil images, must fit into the machine."""
    encoding = plan.encoding
    matrix = max(encoding.encoded_matrix, encoding.recon_matrix, key=math.prod)
    needed = 8 * math.prod(matrix) * encoding.n_coils * n_grids
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        x, y, z = matrix
        raise InputError(
            f"one image of {x} x {y} x {z} points and {encoding.n_coils} coils needs {needed / 2**30:.1f} GiB, this "
            f"machine has {there / 2**30:.1f}",
            path,
            "use a machine with more memory",
        )


def _place(
    group: h5py.Group, path: Path, headers: np.ndarray, plan: ReadoutPlan, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the readouts on the grid ``(kz coil ky kx)``, and how often each sample was measured.

    The count is int32 ``(1, ky, kx)``, or ``(kz, 1, ky, kx)`` in 3-D, its last axis of length 1 where every line is whole.
    """
    nx, ny, nz = plan.encoding.encoded_matrix
    whole = bool(np.all((plan.first[numbers] == 0) & (plan.stop[numbers] >= nx)))
    grid = np.zeros((nz, plan.encoding.n_coils, ny, nx), np.complex64)
    count = np.zeros((nz, 1, ny, 1 if whole else nx), np.int32)
    measured = np.zeros((nz, ny), np.int32).tolist()  # lists: a scalar of an array costs more than the copy of a line
    for line, (_, samples) in zip(
        _lines(plan, headers, numbers), mrd_file.read_samples(group, path, headers, numbers), strict=True
    ):
        z, y, first, stop, pre, end, reverse = line
        kept = samples[:, pre:end][:, ::-1] if reverse else samples[:, pre:end]
        stop = min(stop, nx)
        if measured[z][y]:
            grid[z, :, y, first:stop] += kept[:, : stop - first]
        else:
            grid[z, :, y, first:stop] = kept[:, : stop - first]
        measured[z][y] += 1
        if not whole:
            count[z, 0, y, first:stop] += 1
    if whole:
        count[:, 0, :, 0] = measured
    for z, y in np.argwhere(np.array(measured) > 1):
        grid[z, :, y] /= np.maximum(count[z, :, y], 1)
    return grid, count if plan.encoding.is_3d else count[0]


def _without_ghost(
    plan: ReadoutPlan, headers: np.ndarray, numbers: np.ndarray, grid: np.ndarray, ghost: str, warnings: list[str]
) -> np.ndarray:
    """The grid ``(kz coil ky kx)`` of lines that run both ways in an encoding that is not called echo-planar, without the phase
    between the directions where the image's entropy is clearly less without it."""
    rows = plan.ky[numbers]
    back = (headers["flags"][numbers] & REVERSE) != 0
    reverse = np.zeros(grid.shape[2], bool)
    reverse[rows[back]] = True
    both = back.any() and not back.all() and not reverse[rows[~back]].any()
    if not both or plan.encoding.is_3d or ghost not in ("auto", "entropy") or np.any(np.diff(np.unique(rows)) != 1):
        return grid
    free, phase = by_entropy(np.stack([grid * ~reverse[:, None], grid * reverse[:, None]]))
    if not phase.is_clear(grid.shape[-1]):
        return grid
    warnings.append(
        f"encoding {plan.encoding.index}: lines run both ways and differ in phase ({phase}): corrected by minimum entropy; a "
        "Nyquist ghost may remain"
    )
    return free


def _lines(plan: ReadoutPlan, headers: np.ndarray, numbers: np.ndarray) -> Iterable[tuple[int, int, int, int, int, int, bool]]:
    """For each readout, in their order: kz, ky, first and last column, first and last sample to keep, whether reversed."""
    chosen = headers[numbers]
    end = chosen["number_of_samples"].astype(np.int64) - chosen["discard_post"]
    reverse = (chosen["flags"] & REVERSE) != 0
    columns = plan.kz[numbers], plan.ky[numbers], plan.first[numbers], plan.stop[numbers], chosen["discard_pre"], end, reverse
    return zip(*(column.tolist() for column in columns), strict=True)


def image_header(
    path: Path, headers: np.ndarray, plan: ReadoutPlan, index: ImageIndex, header: MrdHeader, warnings: list[str]
) -> Header:
    """Header of one image: sizes from its encoding, geometry and counters from its central readout.

    `headers` are the acquisition headers ``(readout,)`` of the file.
    """
    encoding, numbers = plan.encoding, plan.images[index]
    ny, nz = encoding.encoded_matrix[1:]
    distance = np.abs(plan.ky[numbers] - ny // 2) + np.abs(plan.kz[numbers] - nz // 2)
    centre = headers[int(numbers[np.argmin(distance)])]
    spread = np.ptp(headers["position"][numbers], axis=0).max()
    if spread > 0.1:
        warnings.append(f"{_name(index)}: positions of its readouts differ by {spread:g} mm; that of the central one is used")
    study: dict[str, Any] = {
        **header.study,
        "calibration": encoding.calibration,
        "limits": {name: asdict(limit) for name, limit in encoding.limits.items()},
    }
    if encoding.calibration_mode is not None:
        study["calibrationMode"] = encoding.calibration_mode
    return Header(
        source=str(path),
        encoding=encoding.index,
        index=index,
        encoded_matrix=encoding.encoded_matrix,
        recon_matrix=encoding.recon_matrix,
        encoded_fov_m=encoding.encoded_fov_m,
        recon_fov_m=encoding.recon_fov_m,
        geometry=_geometry(centre, encoding.recon_fov_m, path, index),
        acceleration=encoding.acceleration,
        central=_central(centre),
        study=study,
        coils=ReceiveCoils(
            tuple(range(encoding.n_coils)), header.coil_names if len(header.coil_names) <= encoding.n_coils else ()
        ),
        steps=("read",),
    )


def _central(head: np.void) -> dict[str, Any]:
    central: dict[str, Any] = {name: head[name].item() for name in CENTRAL_SCALARS}
    central |= {name: tuple(head[name].tolist()) for name in CENTRAL_VECTORS}
    idx = head["idx"]
    central["idx"] = {name: idx[name].tolist() for name in idx.dtype.names}
    central["average"] = central["idx"]["average"]
    return central


def _geometry(head: np.void, fov_m: Vector, path: Path, index: ImageIndex) -> Geometry:
    """Position and directions of a readout. Directions that are all zero were never set: nominal ones stand in for them.

    Raises
    ------
    InputError
        If they are not finite, or not three directions at right angles: an image placed by them would lie wrongly.
    """
    position, table = _vector(head["position"], 1e-3), _vector(head["patient_table_position"], 1e-3)
    dirs = np.stack([head[name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir")])
    if not np.all(np.isfinite([*position, *table])) or not np.all(np.isfinite(dirs)):
        raise InputError(f"{_name(index)} has a position or direction that is NaN or infinite", path, "correct the readouts")
    if not dirs.any():
        return Geometry(position_m=position, fov_m=fov_m, table_position_m=table, nominal=True)
    if np.abs(dirs @ dirs.T - np.eye(3)).max() > 1e-2:
        shown = ", ".join("(" + " ".join(f"{v:.3g}" for v in d) + ")" for d in dirs)
        raise InputError(
            f"read, phase and slice direction of {_name(index)} are {shown}, expected unit vectors at right angles",
            path,
            "correct the readouts, or set all to zero if unknown",
        )
    dirs /= np.linalg.norm(dirs, axis=1, keepdims=True)
    return Geometry(position, _vector(dirs[0]), _vector(dirs[1]), _vector(dirs[2]), fov_m, table)


def _vector(values: Iterable[float], scale: float = 1.0) -> Vector:
    x, y, z = (float(value) * scale for value in values)
    return x, y, z


def _name(index: ImageIndex) -> str:
    return "image " + ", ".join(f"{name} {value}" for name, value in asdict(index).items())
