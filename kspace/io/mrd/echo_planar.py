"""Echo-planar readouts of a file: whether they are some, their navigators, and where their samples lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from kspace.epi.directions import N_CENTRAL, likeness, mirrored_neighbours, norm
from kspace.epi.plan import EpiPlan, plan_readouts
from kspace.epi.regrid import shifting_matrix
from kspace.errors import InputError
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.flags import EXCLUDED, NAVIGATION, NOISE, PHASE_CORRECTION, REVERSE
from kspace.io.mrd.header import Encoding, MrdHeader

ALIKE = 0.4  # of neighbouring lines, 1 where they are the same: noise stays far below
STRAIGHT = 0.01  # of the extent of a readout, what it may stray to the sides
OBLIQUE = 0.1  # of the longest extent along one axis, what a readout off the grid covers along both
MOST_LINES = 512  # of the first image that are looked at
Trajectory = tuple[np.ndarray, np.ndarray]  # of a forward and of a reversed readout, along the readout


def is_unnamed_epi(encoding: Encoding, headers: np.ndarray, lines: np.ndarray) -> bool:
    """Whether an encoding that is Cartesian by its header was acquired in echo trains, as its navigators tell.

    `headers` are the acquisition headers ``(readout,)`` of the file, `lines` numbers ``(n,)`` of its lines.
    """
    flags, contrast = headers["flags"], headers["idx"]["contrast"]
    reverse = (flags & REVERSE) != 0
    navigators = (headers["encoding_space_ref"] == encoding.index) & ((flags & PHASE_CORRECTION) != 0)
    if encoding.trajectory != "cartesian" or encoding.is_epi or len(np.unique(reverse[navigators])) < 2:
        return False
    # Echoes of alternating direction, each of them an image of its own, are no echo train.
    return any(len(np.unique(reverse[lines[contrast[lines] == one]])) == 2 for one in np.unique(contrast[lines]))


def central_lines(encoding: Encoding, headers: np.ndarray) -> np.ndarray:
    """Numbers ``(n,)`` of lines of the first image that were acquired one after the other about the centre of k-space.

    None for encodings that are no candidates for `is_mirrored`: those with reversed readouts, trajectories, or more than one
    line in the same place.
    """
    flags, idx = headers["flags"], headers["idx"]
    lines = np.flatnonzero((headers["encoding_space_ref"] == encoding.index) & ((flags & EXCLUDED) == 0))
    none = lines[:0]
    if encoding.trajectory != "cartesian" or encoding.is_epi or not len(lines) or (flags[lines] & REVERSE).any():
        return none
    for name in ("slice", "contrast", "phase", "repetition", "set", "average", "kspace_encode_step_2"):
        lines = lines[idx[name][lines] == idx[name][lines[0]]]
    steps = np.diff(idx["kspace_encode_step_1"][lines].astype(np.int64))
    alike = headers["number_of_samples"][lines] == headers["number_of_samples"][lines[0]]
    if len(lines) < 2 * N_CENTRAL or not alike.all() or not (np.all(np.diff(lines) == 1) and len(np.unique(steps)) == 1):
        return none
    middle = len(lines) // 2 - N_CENTRAL // 2
    return np.asarray(lines[middle : middle + N_CENTRAL])


def is_mirrored(lines: list[np.ndarray]) -> bool:
    """Whether `lines` beside each other, each ``(coil sample)``, show an echo train that nothing in the file names.

    ``philips_to_ismrmrd`` copies neither the kind of the scan nor the sign of its gradients.
    """
    size = sum(norm(a) * norm(b) for a, b in pairwise(lines))
    turned = sum(likeness(a, b[:, ::-1]) for a, b in pairwise(lines))
    return mirrored_neighbours(lines) and turned > ALIKE * size


def without_discarded(headers: np.ndarray, readouts: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and samples ``(coil sample)`` of readouts, zeros where `headers` ``(readout,)`` tell to discard samples."""
    for number, samples in readouts:
        pre, post = int(headers["discard_pre"][number]), int(headers["discard_post"][number])
        kept = np.array(samples)
        kept[:, :pre] = 0
        kept[:, samples.shape[1] - post :] = 0
        yield number, kept


def plan_epi(
    encoding: Encoding, headers: np.ndarray, lines: np.ndarray, path: Path, warnings: list[str], trajectory: Trajectory | None
) -> EpiPlan:
    """Plan the echo-planar `lines` ``(n,)`` of an encoding, see `kspace.epi.plan.plan_readouts`; `headers` are the acquisition
    headers ``(readout,)`` of the file, `trajectory` is that of `epi_readouts`.
    """
    flags = headers["flags"]
    mine = (headers["encoding_space_ref"] == encoding.index) & ((flags & NOISE) == 0)
    navigators = np.flatnonzero(mine & ((flags & PHASE_CORRECTION) != 0))
    if not len(navigators):  # as sequences of Pulseq mark them
        navigators = np.flatnonzero(mine & ((flags & NAVIGATION) != 0))
    alike = headers["number_of_samples"][navigators] == headers["number_of_samples"][lines[0]]
    if not alike.all():
        warnings.append(
            f"encoding {encoding.index}: {np.count_nonzero(~alike)} navigators have another number of samples than the lines: "
            "they are not used"
        )
    navigators = navigators[alike]
    is_reversed = (flags & REVERSE) != 0
    n = encoding.encoded_matrix[0]
    if trajectory is not None:
        scale = _units(max(float(np.abs(k).max()) for k in trajectory), n, encoding.encoded_fov_m[0], path)
        trajectory = trajectory[0] * scale, trajectory[1] * scale
    parameters = encoding.parameters
    return plan_readouts(headers, lines, navigators, is_reversed, n, parameters, str(path), warnings, trajectory)


def plan_calibration(
    encoding: Encoding, headers: np.ndarray, imaging: np.ndarray, calibration: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, EpiPlan | None]:
    """The calibration lines ``(n,)`` of an echo-planar encoding that can be used, and their plan where they are no echo trains.

    A gradient-echo reference that stands in the encoding of the images: evenly spaced samples, all from left to right.
    Echo trains of another length have ramps of their own, which no header describes.
    """
    if not len(calibration) or not len(imaging):
        return calibration, None
    reverse = (headers["flags"] & REVERSE) != 0
    lengths, pre, post = (headers[name].astype(np.int64) for name in ("number_of_samples", "discard_pre", "discard_post"))
    n_samples, alike = int(lengths[calibration[0]]), lengths[calibration[0]] == lengths[imaging[0]]
    if reverse[calibration].any() or (alike and not reverse[imaging].any()):
        if alike:
            return calibration, None
        warnings.append(
            f"encoding {encoding.index}: calibration lines of {n_samples} samples run both ways, those of its images have "
            f"{lengths[imaging[0]]}: not used"
        )
        return calibration[:0], None
    head = calibration[0]
    kept = slice(int(pre[head]), n_samples - int(post[head]))
    first = -float(headers["center_sample"][head] or n_samples // 2)
    plain = shifting_matrix(first, n_samples, encoding.encoded_matrix[0], False, kept)
    warnings.append(f"encoding {encoding.index}: its calibration lines run one way: no echo trains, taken as evenly spaced")
    none = np.full(len(headers), -1, np.int64)
    plan = EpiPlan(
        encoding.encoded_matrix[0], n_samples, (plain, plain), (kept, kept), np.zeros(len(headers), bool), (), none, False, True
    )
    return calibration, plan


def _units(largest: float, n: int, fov_m: float, path: Path) -> float:
    """Factor to units of 1 / (field of view) for a trajectory that reaches `largest`."""
    for unit in (1.0, float(n), n / fov_m):  # cycles per pixel, 1 / (field of view), 1 / m
        if 0.3 * unit <= largest <= 0.6 * unit:
            return n / unit
    raise InputError(
        f"the trajectory along the readout reaches {largest:.3g}, expected about 0.5, {n / 2:g} or {n / 2 / fov_m:.4g} (1/m)",
        path,
        "correct the trajectory, the matrix or the field of view",
    )


def _follow_trajectories(
    encoding: Encoding, headers: np.ndarray, path: Path, read: Callable[[int], np.ndarray]
) -> tuple[Encoding, np.ndarray]:
    """An encoding and the acquisition headers ``(readout,)`` of the file, for readouts whose trajectories show an echo train.

    Straight lines along kx in both directions: converters of Pulseq data may call them 'other', and leave marks and counters
    out. These are taken from the trajectories then.

    Parameters
    ----------
    encoding
        The encoding.
    headers
        Acquisition headers ``(readout,)`` of the file.
    path
        Of the file, for messages.
    read
        Reads the trajectory ``(sample, dimension)`` of a readout.
    """
    flags, idx = headers["flags"], headers["idx"]
    mine = (headers["encoding_space_ref"] == encoding.index) & ((flags & NOISE) == 0)
    lines = np.flatnonzero(mine & ((flags & EXCLUDED) == 0))
    same = encoding, headers
    if encoding.trajectory not in ("epi", "cartesian", "other") or len(lines) < 2:
        return same
    if (headers["trajectory_dimensions"][lines] < (1 if encoding.is_epi else 2)).any():
        return same
    first = lines
    for name in ("slice", "contrast", "phase", "repetition", "set", "average", "kspace_encode_step_2"):
        first = first[idx[name][first] == idx[name][first[0]]]
    points = [read(int(number)) for number in first[:MOST_LINES]]
    first = first[: len(points)]
    back = np.array([k[0, 0] > k[-1, 0] for k in points])
    if not all(_is_straight(k) for k in points) or len(np.unique(back)) < 2:
        return same
    rows = _ky_rows(encoding, points, path)
    marked = bool(np.array_equal(back, (flags[first] & REVERSE) != 0))
    counted = rows is None or len(np.unique(rows - idx["kspace_encode_step_1"][first].astype(np.int64))) == 1
    named = encoding if encoding.is_epi else replace(encoding, trajectory="epi")
    if marked and (counted or encoding.is_epi):
        return named, headers
    changed = headers.copy()
    numbers = np.flatnonzero(mine & (headers["trajectory_dimensions"] > 0))
    points = [read(int(number)) for number in numbers]
    turned = np.array([k[0, 0] > k[-1, 0] for k in points])
    changed["flags"][numbers] = (flags[numbers] & ~REVERSE) | np.where(turned, REVERSE, np.uint64(0))
    rows = None if counted else _ky_rows(encoding, points, path)
    if rows is None:
        return named, changed
    changed["idx"]["kspace_encode_step_1"][numbers] = np.clip(rows + encoding.encoded_matrix[1] // 2, 0, 65535)
    limits = {name: limit for name, limit in encoding.limits.items() if name != "kspace_encoding_step_1"}
    return replace(named, limits=limits), changed


def _is_straight(k: np.ndarray) -> bool:
    """Whether a trajectory ``(sample, dimension)`` goes one way along its first dimension, and nowhere along the others."""
    steps = np.diff(k[:, 0])
    extent = float(np.ptp(k[:, 0]))
    one_way = bool(np.all(steps >= 0) or np.all(steps <= 0))
    return extent > 0 and one_way and bool(np.all(np.ptp(k[:, 1:], axis=0) < STRAIGHT * extent))


def _ky_rows(encoding: Encoding, points: list[np.ndarray], path: Path) -> np.ndarray | None:
    """Lines of trajectories, counted from the centre of k-space; None where they have one dimension."""
    if points[0].shape[1] < 2:
        return None
    n, fov_m = encoding.encoded_matrix, encoding.encoded_fov_m
    scale = _units(max(float(np.abs(k[:, 0]).max()) for k in points), n[0], fov_m[0], path)
    of_y = {float(n[0]): float(n[1]), 1.0: 1.0}.get(scale, fov_m[1])
    return np.round(of_y * np.array([float(np.mean(k[:, 1])) for k in points])).astype(np.int64)


def epi_readouts(encoding: Encoding, headers: np.ndarray, path: Path) -> tuple[int, int] | None:
    """Numbers of a forward and a reversed line whose trajectories are those of all; None where the readouts carry none.

    `headers` are the acquisition headers ``(readout,)`` of the file.

    Raises
    ------
    InputError
        If some lines of the encoding carry a trajectory and others do not.
    """
    flags = headers["flags"]
    lines = np.flatnonzero((headers["encoding_space_ref"] == encoding.index) & ((flags & EXCLUDED) == 0))
    carries = headers["trajectory_dimensions"][lines] > 0
    if not encoding.is_epi or not carries.any():
        return None
    if not carries.all():
        with_one, without = lines[carries][0], lines[~carries][0]
        raise InputError(
            f"readout {with_one} of encoding {encoding.index} carries a trajectory, readout {without} none",
            path,
            "convert the scan again",
        )
    back = (flags[lines] & REVERSE) != 0
    forward, backward = lines[~back], lines[back]
    return int((forward if len(forward) else backward)[0]), int((backward if len(backward) else forward)[0])


def name_echo_trains(group: h5py.Group, path: Path, header: MrdHeader, headers: np.ndarray) -> tuple[MrdHeader, np.ndarray]:
    """The header with those encodings called echo-planar whose trajectories or samples show it though nothing says so, and the
    acquisition headers ``(readout,)`` with the directions of their readouts.

    Damaged samples and trajectories are told of when their image is loaded.
    """
    encodings, notes, directed = [], [], headers

    def read(number: int) -> np.ndarray:
        return mrd_file.read_trajectory(group, path, headers, number)

    for encoding in header.encodings:
        named, before = encoding, directed
        with contextlib.suppress(InputError):
            named, directed = _follow_trajectories(encoding, directed, path, read)
        if named is not encoding or directed is not before:
            notes.append(f"encoding {encoding.index}: its trajectories are lines both ways along kx: taken as echo-planar")
        elif _leaves_the_grid(encoding, headers, read):
            named = replace(encoding, trajectory="other")
            notes.append(
                f"encoding {encoding.index}: Cartesian by its header, but its trajectories are no lines along kx: they count"
            )
        elif _is_mirrored(group, path, encoding, headers):
            named = replace(encoding, trajectory="epi")
            notes.append(
                f"encoding {encoding.index}: Cartesian by its header, but every second line is mirrored: taken as echo-planar"
            )
        encodings.append(named)
    return replace(header, encodings=tuple(encodings), warnings=(*header.warnings, *notes)), directed


def _leaves_the_grid(encoding: Encoding, headers: np.ndarray, read: Callable[[int], np.ndarray]) -> bool:
    """Whether trajectories of an encoding that is Cartesian by its header are oblique or curved."""
    mine = headers["encoding_space_ref"] == encoding.index
    lines = np.flatnonzero(mine & ((headers["flags"] & EXCLUDED) == 0) & (headers["trajectory_dimensions"] >= 2))
    if encoding.trajectory != "cartesian" or encoding.is_epi:
        return False
    with contextlib.suppress(InputError):
        extents = np.array([np.ptp(read(int(number))[:, :2], axis=0) for number in lines[:MOST_LINES]]).reshape(-1, 2)
        return bool((extents.min(1) > OBLIQUE * extents.max(initial=0.0)).any())
    return False


def _is_mirrored(group: h5py.Group, path: Path, encoding: Encoding, headers: np.ndarray) -> bool:
    lines = central_lines(encoding, headers)
    samples: list[np.ndarray] = []
    with contextlib.suppress(InputError):
        readouts = mrd_file.read_samples(group, path, headers, lines)
        samples = [line for _, line in without_discarded(headers, readouts)]
    return bool(samples) and is_mirrored(samples)


def epi_trajectories(group: h5py.Group, path: Path, header: MrdHeader, headers: np.ndarray) -> dict[int, Trajectory]:
    """By encoding: positions ``(sample,)`` along the readout of a forward and of a reversed echo-planar line.

    `headers` are the acquisition headers ``(readout,)`` of the file; errors as `epi_readouts`.
    """
    found = {}
    for encoding in header.encodings:
        numbers = epi_readouts(encoding, headers, path)
        if numbers is not None:
            forward, backward = (mrd_file.read_trajectory(group, path, headers, number)[:, 0] for number in numbers)
            found[encoding.index] = forward.astype(np.float64), backward.astype(np.float64)
    return found
