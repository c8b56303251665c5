"""Echo-planar trajectories from Pulseq sequence files (``.seq``, Layton et al. 2017, doi:10.1002/mrm.26235)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

Real = NDArray[np.float64]
FLAT = 0.25  # of a line: how much ky may change within a readout


@dataclass(frozen=True, eq=False)
class PulseqLines:
    """Lines of an echo-planar sequence on a Cartesian grid.

    Attributes
    ----------
    kx
        Position of each sample along the readout, ``(readout, sample)``, in units of 1 / (field of view).
    rows
        Line of each readout, ``(readout,)``, 0 for the first; the centre of k-space is row ``matrix[1] // 2``.
    matrix
        Points ``(x, y)``.
    fov_m
        Field of view ``(x, y, z)``, metres.
    """

    kx: Real
    rows: NDArray[np.int64]
    matrix: tuple[int, int]
    fov_m: tuple[float, float, float]


def read_lines(path: Path) -> PulseqLines:
    """The lines of a gradient-echo EPI sequence: parallel to kx, trapezoidal gradients, k = 0 at the pulse before.

    Raises
    ------
    InputError
        If the file is not such a sequence.
    """
    text = _sections(path)
    fov = next((line.split()[1:] for line in text.get("DEFINITIONS", []) if line.startswith("FOV ")), None)
    if fov is None or len(fov) != 3:
        raise InputError("the sequence defines no field of view (FOV)", path, "add FOV to its definitions")
    fov_m = (float(fov[0]), float(fov[1]), float(fov[2]))
    k = _trajectory(text, path) * np.array(fov_m[:2])
    ky, kx = k[..., 1], k[..., 0]
    steps = np.diff(kx, axis=1)
    parallel = np.ptp(ky, axis=1).max() < FLAT and bool(np.all((steps > 0).all(1) | (steps < 0).all(1)))
    if not parallel:
        raise InputError("the readouts are not lines along kx, so it is no EPI", path, "give --trajectory")
    rows = np.round(ky.mean(axis=1)).astype(np.int64)
    half = int(max(-rows.min(), rows.max() + 1))
    n = round(float(np.ptp(kx[0]) + np.abs(steps[0]).mean()))
    return PulseqLines(kx, rows + half, (n, 2 * half), fov_m)


def _sections(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"not a readable Pulseq file ({error})", path, "give the .seq file of the scan") from error
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if section := re.fullmatch(r"\[(\w+)\]", line.strip()):
            name = section.group(1)
        elif line.strip() and not line.startswith("#"):
            found.setdefault(name, []).append(line)
    if "BLOCKS" not in found or "ADC" not in found:
        raise InputError("not a Pulseq sequence with readouts: [BLOCKS] or [ADC] is missing", path, "give the .seq of the scan")
    return found


def _table(text: dict[str, list[str]], section: str) -> dict[int, list[float]]:
    rows = (line.split() for line in text.get(section, []))
    return {int(row[0]): [float(value) if re.fullmatch(r"[-+.\deE]+", value) else np.nan for value in row[1:]] for row in rows}


def _trajectory(text: dict[str, list[str]], path: Path) -> Real:
    """Samples of all readouts in 1/m, ``(readout, sample, 2)``."""
    raster_us = 1e6 * next(
        (float(line.split()[1]) for line in text.get("DEFINITIONS", []) if line.startswith("BlockDurationRaster")), 1e-5
    )
    traps, adcs = _table(text, "TRAP"), _table(text, "ADC")
    k, found = np.zeros(2), []
    for _, duration, rf, gx, gy, _, adc, *_ in _blocks(text):
        gradients = []
        for number in (gx, gy):
            if number and number not in traps:
                raise InputError("a gradient is not a trapezoid", path, "convert the scan with its trajectory")
            gradients.append(traps.get(number, [0.0, 0.0, 0.0, 0.0, 0.0]))
        if adc:
            n, dwell_ns, delay_us = adcs[adc][:3]
            t: Real = delay_us + (np.arange(int(n), dtype=np.float64) + 0.5) * (dwell_ns * 1e-3)
            found.append(k + np.stack([_area(g, t) for g in gradients], axis=-1))
        end = np.array([duration * raster_us])
        area = np.array([_area(g, end)[0] for g in gradients])
        k = np.zeros(2) if rf else k + area
    if not found or len({len(samples) for samples in found}) != 1:
        raise InputError("the readouts of the sequence differ in length, or there are none", path, "give the .seq of the scan")
    return np.stack(found)


def _blocks(text: dict[str, list[str]]) -> list[list[int]]:
    return [[int(value) for value in line.split()] for line in text["BLOCKS"]]


def _area(trap: list[float], t_us: Real) -> Real:
    """Area of a trapezoid (amplitude Hz/m, rise, flat, fall, delay in us) up to the times `t_us` ``(n,)``, in 1/m."""
    amplitude, rise, flat, fall, delay = trap[:5]
    corners = delay + np.cumsum([0.0, rise, flat, fall])
    fine = np.clip(t_us, corners[0], corners[3])
    up, top, down = (np.clip(fine - start, 0, length) for start, length in zip(corners, (rise, flat, fall), strict=False))
    area = top + (up**2 / (2 * rise) if rise else 0) + (down - down**2 / (2 * fall) if fall else 0)
    return np.asarray(amplitude * area * 1e-6)
