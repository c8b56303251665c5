"""Sorting of readouts by their acquisition headers alone: image lines, calibration lines, places on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kspace.container import ImageIndex
from kspace.epi.plan import EpiPlan
from kspace.errors import InputError
from kspace.io.mrd.echo_planar import Trajectory, is_unnamed_epi, plan_calibration, plan_epi
from kspace.io.mrd.flags import (
    CALIBRATION,
    CALIBRATION_AND_IMAGING,
    COMPRESSED,
    EXCLUDED,
    NOT_IMAGING,
    REVERSE,
)
from kspace.io.mrd.header import Encoding, Limits, MrdHeader

SAME = 0.01  # relative difference of lengths that converters round
IMAGE_COUNTERS = ("contrast", "set", "phase", "repetition", "slice")


@dataclass(frozen=True, eq=False)
class ReadoutPlan:
    """Where the readouts of one encoding go.

    Attributes
    ----------
    encoding
        The encoding, with everything filled in that the acquisition headers tell.
    imaging, calibration
        Numbers of the readouts that are lines of images, and of those that serve coil maps only, in order of acquisition.
    ky, kz
        Grid rows ``(readout,)`` of all readouts of the file; meaningful for those of this encoding.
    first, stop
        Grid columns ``[first, stop)`` of all readouts; ``stop`` may lie one beyond the matrix (see `_columns`).
    images
        For each image, the numbers of its readouts.
    epi
        What brings echo-planar readouts to the grid; None where they lie on it.
    calibration_epi
        What brings the separate calibration lines of an echo-planar encoding to the grid where they are no echo trains.
    """

    encoding: Encoding
    imaging: np.ndarray
    calibration: np.ndarray
    ky: np.ndarray
    kz: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    images: dict[ImageIndex, np.ndarray]
    epi: EpiPlan | None = None
    calibration_epi: EpiPlan | None = None


def plan_encoding(
    encoding: Encoding,
    header: MrdHeader,
    headers: np.ndarray,
    path: Path,
    warnings: list[str],
    trajectory: Trajectory | None = None,
) -> ReadoutPlan:
    """Sort the readouts of one encoding; `trajectory` is that of echo-planar readouts, see `epi_readouts`.

    Raises
    ------
    InputError
        If the acquisition headers contradict each other, the header or the encoded matrix.
    """
    flags = headers["flags"]
    mine = (headers["encoding_space_ref"] == encoding.index) & ((flags & EXCLUDED) == 0)
    numbers = np.flatnonzero(mine)
    imaging, calibration = _split_calibration(encoding, headers, numbers, warnings)
    lends = len(calibration) > 0 and any(other.is_epi for other in header.encodings if other.index != encoding.index)
    if lends and not len(imaging) and len(np.unique(headers["idx"]["kspace_encode_step_2"][calibration])) == 1:
        encoding = replace(encoding, encoded_matrix=(*encoding.encoded_matrix[:2], 1))  # siemens_to_ismrmrd: lRefLines3D
    if encoding.refusal is not None or not (len(imaging) or lends):
        # Columns and rows of a spiral mean nothing; `refusal` is raised when somebody asks for its images.
        none = np.empty(0, np.int64)
        return ReadoutPlan(replace(encoding, n_readouts=len(imaging)), imaging, calibration, none, none, none, none, {})
    both = np.concatenate([imaging, calibration])
    _check_channels(encoding, header, headers, both, path, warnings)
    _check_lengths(headers, both, path)
    reference = imaging if len(imaging) else calibration  # readouts that only serve the maps of an echo-planar encoding
    centre, ky, kz = _rows(encoding, headers, reference, calibration, path, warnings)
    if is_unnamed_epi(encoding, headers, both):
        encoding = replace(encoding, trajectory="epi")
        warnings.append(
            f"encoding {encoding.index}: Cartesian by its header, but lines and navigators run both ways: taken as echo-planar"
        )
    epi = calibration_epi = None
    if encoding.is_epi:
        calibration, calibration_epi = plan_calibration(encoding, headers, imaging, calibration, warnings)
        echoes = imaging if calibration_epi is not None else np.concatenate([imaging, calibration])
        epi = plan_epi(encoding, headers, echoes, path, warnings, trajectory)
    if epi is None and not encoding.has_trajectory:
        first, stop = _columns(encoding, headers, both, path, warnings)
    else:
        first, stop = np.zeros(len(headers), np.int64), np.full(len(headers), encoding.encoded_matrix[0])
    dwell_s = _dwell(encoding, headers, reference, warnings)
    calibrated = bool(np.any(flags[imaging] & (CALIBRATION | CALIBRATION_AND_IMAGING)))
    encoding = replace(
        encoding,
        centre=centre,
        n_coils=int(headers["active_channels"][reference[0]]),
        n_readouts=len(imaging),
        dwell_s=dwell_s if dwell_s is None or epi is None else dwell_s / epi.readouts[0].noise_gain,
        calibration="separate" if len(calibration) else "embedded" if calibrated else "none",
    )
    return ReadoutPlan(encoding, imaging, calibration, ky, kz, first, stop, _group(headers, imaging), epi, calibration_epi)


def check_readouts(headers: np.ndarray, header: MrdHeader, path: Path) -> None:
    """Refuse acquisition headers ``(readout,)`` none of which could become an image line.

    Raises
    ------
    InputError
        Naming what the readouts are instead, or the encoding that they refer to and the header does not have.
    """
    flags = headers["flags"]
    if np.any(flags & COMPRESSED):
        raise InputError("the samples are compressed (ISMRMRD flags 53 to 56)", path, "decompress them first")
    left = (flags & EXCLUDED) == 0
    if not left.any():
        counts = {name: int(np.count_nonzero(flags & bit)) for bit, name in NOT_IMAGING.items()}
        found = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        only = "only noise: " if counts["noise"] == len(headers) else ""
        raise InputError(f"{only}no imaging readouts among {len(headers)} ({found})", path, "give the imaging scan")
    highest = int(headers["encoding_space_ref"][left].max())
    if highest >= len(header.encodings):
        raise InputError(
            f"readouts refer to encoding {highest}, the header has {len(header.encodings)}", path, "convert the scan again"
        )


def _split_calibration(
    encoding: Encoding, headers: np.ndarray, numbers: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Image lines, and lines for coil maps only. The header's calibrationMode decides first, flags second."""
    flags = headers["flags"][numbers]
    only = ((flags & CALIBRATION) != 0) & ((flags & CALIBRATION_AND_IMAGING) == 0)
    if not only.any():
        return numbers, numbers[:0]
    mode = (encoding.calibration_mode or "").lower()
    # A separate calibration measures lines that the image has as well; an embedded one fills its gaps.
    places = _places(headers, numbers)
    overlap = bool(np.isin(places[only], places[~only]).any())
    if mode in ("embedded", "interleaved") and not (overlap and encoding.is_epi):  # another echo train, with another phase
        separate = False
        if overlap:
            warnings.append(
                f"encoding {encoding.index}: calibrationMode is '{mode}', but calibration lines repeat image lines; averaged"
            )
    elif mode in ("separate", "external"):
        separate = True
    else:
        separate = overlap or bool(only.all())
        warnings.append(
            f"encoding {encoding.index}: calibrationMode is {repr(mode) if mode else 'missing'}; calibration lines taken as "
            + ("separate, since they repeat image lines" if separate else "embedded, since they fill gaps of the image")
        )
    return (numbers[~only], numbers[only]) if separate else (numbers, numbers[:0])


def _places(headers: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """One number for the image and the line that a readout belongs to, whatever its average."""
    idx = headers["idx"][numbers]
    names = (*IMAGE_COUNTERS, "kspace_encode_step_1", "kspace_encode_step_2")
    columns = np.stack([idx[name].astype(np.int64) for name in names], axis=1)
    return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)


def _group(headers: np.ndarray, imaging: np.ndarray) -> dict[ImageIndex, np.ndarray]:
    if not len(imaging):
        return {}
    idx = headers["idx"][imaging]
    columns = np.stack([idx[name].astype(np.int64) for name in IMAGE_COUNTERS], axis=1)
    keys, inverse = np.unique(columns, axis=0, return_inverse=True)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(inverse.reshape(-1)))[:-1]
    groups = np.split(imaging[order], ends)
    return {ImageIndex(*(int(v) for v in key)): group for key, group in zip(keys, groups, strict=True)}


def _check_channels(
    encoding: Encoding, header: MrdHeader, headers: np.ndarray, numbers: np.ndarray, path: Path, warnings: list[str]
) -> None:
    channels, stated = headers["active_channels"][numbers], header.receiver_channels
    expected = int(channels[0])
    wrong = np.flatnonzero(channels != expected)
    if len(wrong):
        raise InputError(
            f"readout {numbers[wrong[0]]} has {channels[wrong[0]]} channels, readout {numbers[0]} has {expected}",
            path,
            "convert the scan again",
        )
    if expected < 1 or stated == 0:
        who = "the readouts have" if expected < 1 else "the header says"
        raise InputError(f"{who} {min(expected, stated or 0)} channels", path, "convert the scan again")
    if stated is not None and stated != expected:  # converters copy the channels of the receiver, not of the coils in use
        warnings.append(f"encoding {encoding.index}: the header says {stated} channels, the readouts have {expected}: taken so")


def _check_lengths(headers: np.ndarray, numbers: np.ndarray, path: Path) -> None:
    """Echoes of one scan may differ in length, lines of one echo may not."""
    lengths = headers["number_of_samples"][numbers]
    separate = (headers["flags"][numbers] & CALIBRATION) != 0
    kind = headers["idx"]["contrast"][numbers].astype(np.int64) * 2 + separate
    for one in np.unique(kind):
        here = np.flatnonzero(kind == one)
        wrong = here[lengths[here] != lengths[here[0]]]
        if len(wrong):
            raise InputError(
                f"readout {numbers[wrong[0]]} has {lengths[wrong[0]]} samples, readout {numbers[here[0]]} {lengths[here[0]]}",
                path,
                "convert the scan again",
            )


def _dwell(encoding: Encoding, headers: np.ndarray, imaging: np.ndarray, warnings: list[str]) -> float | None:
    dwells = np.unique(headers["sample_time_us"][imaging])
    if len(dwells) > 1:
        shown = ", ".join(f"{dwell:g}" for dwell in dwells)
        warnings.append(f"encoding {encoding.index}: dwell times differ between readouts ({shown} us); each image uses its own")
    elif not 0 < dwells[0] < np.inf:
        warnings.append(f"encoding {encoding.index}: no dwell time (sample_time_us): taken as that of the noise scan")
    return float(dwells[0]) * 1e-6 if 0 < dwells[0] < np.inf else None


def _rows(
    encoding: Encoding, headers: np.ndarray, imaging: np.ndarray, calibration: np.ndarray, path: Path, warnings: list[str]
) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """Centre counters, and the grid rows of all readouts: counter ``c`` lies at row ``c - centre + n // 2``."""
    centres, rows = [], []
    for step, axis in ((1, 1), (2, 2)):
        name = f"kspace_encode_step_{step}"
        counters = headers["idx"][name].astype(np.int64)
        n = encoding.encoded_matrix[axis]
        if step == 1 and encoding.has_trajectory:
            centres.append(0)  # a counter of spokes or interleaves, not of lines
            rows.append(np.full(len(headers), n // 2))
            continue
        user = np.unique(headers["idx"]["user"][imaging, 4 + step])
        try:
            centre = _centre(encoding, step, n, counters[imaging], user, path, warnings)
        except InputError:
            if not encoding.has_trajectory or bool((headers["trajectory_dimensions"][imaging] < 3).any()):
                raise
            centres.append(0)  # a counter of readouts: their trajectory has kz, which decides
            rows.append(np.full(len(headers), -1))
            continue
        row = counters - centre + n // 2
        outside = calibration[(row[calibration] < 0) | (row[calibration] >= n)]
        if len(outside):
            raise InputError(
                f"calibration readout {outside[0]} has {name} = {counters[outside[0]]} with centre {centre}, outside the "
                f"encoded matrix of {n}",
                path,
                "correct encodingLimits or encodedSpace",
            )
        centres.append(centre)
        rows.append(row)
    return (centres[0], centres[1]), rows[0], rows[1]


def _centre(
    encoding: Encoding, step: int, n: int, counters: np.ndarray, user: np.ndarray, path: Path, warnings: list[str]
) -> int:
    """The counter at the centre of k-space.

    The header's, where it is within its own limits and keeps the lines inside the matrix; else Siemens' counter in
    ``idx.user[5]`` (step 1) or ``user[6]`` (step 2), where it is constant and not zero; else, where the header has no limits,
    the centre of the matrix.
    """
    name = f"kspace_encode_step_{step}"
    low, high = int(counters.min()), int(counters.max())

    def inside(centre: int) -> bool:
        return low - centre + n // 2 >= 0 and high - centre + n // 2 < n

    limits: Limits | None = encoding.limits.get(f"kspace_encoding_step_{step}")
    stated = limits.centre if limits is not None else None
    in_range = limits is not None and stated is not None and limits.minimum <= stated <= limits.maximum
    siemens = int(user[0]) if len(user) == 1 and user[0] != 0 and n > 1 else None
    if stated is not None and in_range and inside(stated):
        if siemens is not None and siemens != stated:
            warnings.append(
                f"encoding {encoding.index}: {name} is centred at {stated}, though idx.user[{4 + step}] says {siemens}"
            )
        return stated
    if siemens is not None and inside(siemens):
        why = "missing" if stated is None else f"{stated}, which cannot be"
        warnings.append(
            f"encoding {encoding.index}: centre of {name} taken from idx.user[{4 + step}] ({siemens}); the header's is {why}"
        )
        return siemens
    if stated is None and inside(n // 2):
        if n > 1:
            warnings.append(
                f"encoding {encoding.index}: no centre of {name} in encodingLimits: that of the matrix, {n // 2}, taken"
            )
        return n // 2
    centre = n // 2 if stated is None else stated
    raise InputError(
        f"{name} runs from {low} to {high} with centre {centre}, outside the encoded matrix of {n}",
        path,
        "correct encodingLimits or encodedSpace",
    )


def _columns(
    encoding: Encoding, headers: np.ndarray, numbers: np.ndarray, path: Path, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Grid columns ``[first, stop)`` of the readouts `numbers` (others stay 0), after discarding and reversing.

    ``center_sample``, ``discard_pre`` and ``discard_post`` count samples in the order in which they were acquired: the analogue
    converter knows no direction. So a reversed readout of n samples has its centre at index ``n - 1 - center_sample``, once
    reversed; with n even and the centre at n / 2, its last sample is then one beyond the matrix, at k = +n/2, while
    k = -n/2 was not measured. That one sample is dropped; moving the line instead would give the image a phase ramp of one turn
    over the field of view, against the lines that were not reversed.
    """
    n, pre, post, centre = (
        headers[name].astype(np.int64)[numbers]
        for name in ("number_of_samples", "discard_pre", "discard_post", "center_sample")
    )
    width = encoding.encoded_matrix[0]
    kept = n - pre - post
    _refuse_first(numbers, kept < 1, "discards {} + {} of its {} samples", path, pre, post, n)
    _refuse_first(numbers, kept > width, "has {} samples, the encoded matrix {}", path, kept, np.full_like(n, width))
    if not centre.any() and np.all(width // 2 + n > width) and np.all(kept == width):
        # Nothing but the middle fits: not a guess.
        warnings.append(
            f"encoding {encoding.index}: center_sample is 0 in every readout, taken as not given: centre {width // 2}"
        )
        centre = pre + width // 2
    reverse = (headers["flags"][numbers] & REVERSE) != 0
    before = np.where(reverse, n - 1 - centre, centre)
    lead = np.where(reverse, post, pre)
    whole_first = width // 2 - before
    first, stop = whole_first + lead, whole_first + lead + kept
    beyond = (first < 0) | (stop > width + reverse) | (centre >= n)
    _refuse_first(
        numbers,
        beyond,
        "has {} samples with center_sample {}, outside the encoded matrix {}",
        path,
        n,
        centre,
        np.full_like(n, width),
    )
    short = np.minimum(whole_first, width - whole_first - n) * 8 > width
    _refuse_first(
        numbers,
        short,
        "has {} samples centred at {}, too few on both sides for the encoded matrix {}",
        path,
        n,
        centre,
        np.full_like(n, width),
    )
    all_first, all_stop = np.zeros(len(headers), np.int64), np.zeros(len(headers), np.int64)
    all_first[numbers], all_stop[numbers] = first, stop
    return all_first, all_stop


def _refuse_first(numbers: np.ndarray, wrong: np.ndarray, text: str, path: Path, *values: np.ndarray) -> None:
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        what = text.format(*(int(value[i]) for value in values))
        raise InputError(f"readout {numbers[i]} {what}", path, "correct the header or convert the scan again")


def calibration_of(plan: ReadoutPlan, headers: np.ndarray, index: ImageIndex) -> np.ndarray:
    """Numbers ``(n,)`` of the separate calibration readouts that serve an image.

    Those of its slice, and as far as there are any, of its contrast, set, phase and repetition; otherwise those of the first
    one that has them. `headers` are the acquisition headers ``(readout,)``.
    """
    numbers = plan.calibration
    for name in ("slice", "contrast", "set", "phase", "repetition"):
        counters = headers["idx"][name][numbers]
        if not len(numbers):
            break
        wanted = getattr(index, name)
        if name != "slice" and not (counters == wanted).any():
            wanted = counters.min()
        numbers = numbers[counters == wanted]
    return numbers


def find_lender(plan: ReadoutPlan, others: Sequence[ReadoutPlan]) -> ReadoutPlan | None:
    """The plan of an encoding that holds nothing but calibration lines for the images of the echo-planar `plan`.

    A gradient-echo reference scan beside an accelerated EPI, as ``siemens_to_ismrmrd`` writes it: same coils and field of view
    along ky, same width of a pixel along kx.
    """
    if plan.epi is None or len(plan.calibration):
        return None
    mine = plan.encoding
    for other in others:
        theirs = other.encoding
        if len(other.imaging) or not len(other.ky) or theirs.n_coils != mine.n_coils:
            continue
        pixels = [e.encoded_fov_m[0] / e.encoded_matrix[0] for e in (mine, theirs)]
        lines = [e.encoded_fov_m[1] for e in (mine, theirs)]
        depth = [e.encoded_matrix[2] for e in (mine, theirs)]
        if depth[0] == depth[1] and all(abs(a / b - 1) < SAME for a, b in (pixels, lines)):
            return other
    return None
