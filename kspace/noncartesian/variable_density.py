"""Variable-density spirals from the parameters of a header: the design that ISMRMRD files name HargreavesVDS2000.

An arm is ``k(t) = r exp(i theta)`` with a pitch that the field of view F sets, ``d theta / d r = 2 pi F(r) / N`` for N
interleaves, where F is a polynomial of r, as fast as gradient and slew rate allow (Kim, Adalsteinsson and Spielman 2003,
doi:10.1002/mrm.10538, for such designs; Hargreaves, PhD thesis, Stanford 2001, for this one). With ``c(r) = 2 pi F / N``,

    |k'|  = r' sqrt(1 + r^2 c^2)
    |k''| = |(r'' - r c^2 r'^2) + i (r c r'' + (2 c + r c_r) r'^2)|        c_r = dc/dr

so the limit of the slew rate is a quadratic equation of r''.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

IDENTIFIER = "HargreavesVDS2000"
GAMMA = 4258.0  # Hz/G of protons, rounded as the readers of such files have it
NEEDED = ("interleaves", "SamplingTime_ns", "MaxGradient_G_per_cm", "MaxSlewRate_G_per_cm_per_s", "krmax_per_cm")
OFF_PIXEL = 0.03  # relative difference of the pixels of an arm and of the encoded matrix that is stated
SAME = 0.01  # relative difference of times that converters round


@dataclass(frozen=True)
class Arm:
    """What a spiral arm was designed for, in the units of the header.

    Attributes
    ----------
    interleaves
        Arms of a full k-space.
    fov_cm
        Coefficients of the field of view (cm, cm^2, ...) as a polynomial of r (1/cm).
    largest_per_cm
        Radius at which the arm ends.
    gradient_g_per_cm, slew_g_per_cm_per_s
        Largest gradient and slew rate.
    step_s
        Time between samples, and step of the design.
    """

    interleaves: int
    fov_cm: tuple[float, ...]
    largest_per_cm: float
    gradient_g_per_cm: float
    slew_g_per_cm_per_s: float
    step_s: float

    def reached_per_cm(self, n_samples: int) -> float:
        """Radius of the last of `n_samples`, or of the arm where that ends before."""
        return float(np.abs(_designed(self, n_samples)[-1]))


def arm_of(parameters: Mapping[str, float], dwell_s: float | None, counter: int, where: str) -> Arm:
    """The arm that a ``trajectoryDescription`` describes.

    Parameters
    ----------
    parameters
        Its numbers by their names.
    dwell_s
        Time between samples of the readouts, None where unknown.
    counter
        The largest interleaf of the readouts.
    where
        Of the header, for messages.

    Raises
    ------
    InputError
        If parameters are missing, or contradict each other or the readouts.
    """
    stated = [name for name in parameters if name.startswith("FOVCoeff_")]
    n_fov = int(parameters.get("fov_coefficients", len(stated)))
    needed = (*NEEDED, *(f"FOVCoeff_{i + 1}_cm" for i in range(max(1, min(n_fov, 16)))))
    fix = "complete trajectoryDescription, or give --trajectory FILE"
    if missing := [name for name in needed if name not in parameters]:
        raise InputError(f"trajectoryDescription {IDENTIFIER} lacks {', '.join(missing)}", where, fix)
    if wrong := [f"{name} = {parameters[name]:g}" for name in needed[:6] if not 0 < parameters[name] < math.inf]:
        raise InputError(f"trajectoryDescription {IDENTIFIER} has {', '.join(wrong)}, expected more than 0", where, fix)
    fov = tuple(parameters[name] for name in needed[5:])
    radii = np.linspace(0, parameters["krmax_per_cm"], 100)
    if np.polynomial.polynomial.polyval(radii, fov).min() <= 0:
        raise InputError(f"the FOVCoeff of trajectoryDescription {IDENTIFIER} reach a field of view of zero", where, fix)
    interleaves, step_s = int(parameters["interleaves"]), parameters["SamplingTime_ns"] / 1e9
    if counter >= interleaves:
        what = f"kspace_encode_step_1 reaches {counter}, trajectoryDescription has {interleaves} interleaves"
        raise InputError(what, where, "correct interleaves, or give --trajectory FILE")
    if dwell_s is not None and abs(dwell_s / step_s - 1) > SAME:
        what = f"sample_time_us is {1e6 * dwell_s:g}, SamplingTime_ns of trajectoryDescription {1e9 * step_s:g}"
        raise InputError(what, where, "correct one of them, or give --trajectory FILE")
    return Arm(
        interleaves,
        fov,
        parameters["krmax_per_cm"],
        parameters["MaxGradient_G_per_cm"],
        parameters["MaxSlewRate_G_per_cm_per_s"],
        step_s,
    )


def spiral_arms(arm: Arm, interleaf: NDArray[np.int64], n_samples: int) -> NDArray[np.float64]:
    """Arms of a spiral, float64 ``(readout sample 2)`` in 1/m: as many samples as the arm has, at most `n_samples`.

    `interleaf` ``(readout)`` counts the turns by ``2 pi / N``, clockwise. The signs are those with which Gadgetron
    reconstructs such files: the first arm leaves the centre along -x.
    """
    turned = -_designed(arm, n_samples)[None] * np.exp(-2j * math.pi * interleaf / arm.interleaves)[:, None]
    return 100 * np.stack([turned.real, turned.imag], -1)


def differences(arm: Arm, n_arm: int, n_samples: int, voxel_m: Sequence[float]) -> list[str]:
    """What to say about the `n_arm` samples of an arm for readouts of `n_samples`, and where it does not agree with the encoded
    pixels `voxel_m` ``(x, y)``."""
    found = [f"arms computed from trajectoryDescription {IDENTIFIER}, {n_arm} of {n_samples} samples used"]
    pixel_m, share = 0.005 / arm.largest_per_cm, arm.reached_per_cm(n_samples) / arm.largest_per_cm
    if any(abs(pixel_m / size - 1) > OFF_PIXEL for size in voxel_m):
        shown = " x ".join(f"{1e3 * size:.3g}" for size in voxel_m)
        found.append(
            f"krmax_per_cm {arm.largest_per_cm:g} makes pixels of {1e3 * pixel_m:.3g} mm, the encoded ones have {shown}: arms "
            "taken in 1/cm as stated, and the field of view as encoded"
        )
    if share < 1 - OFF_PIXEL:
        found.append(f"{n_samples} samples end at {share:.2f} of krmax_per_cm: blurred accordingly")
    return found


@lru_cache(maxsize=4)
def _designed(arm: Arm, n_samples: int) -> NDArray[np.complex128]:
    """One arm from k = 0, ``(sample)`` in 1/cm, by semi-implicit steps of the sampling time."""
    fov = np.polynomial.Polynomial(arm.fov_cm)
    slope, turns, dt = fov.deriv(), 2 * math.pi / arm.interleaves, arm.step_s
    r = speed = angle = angular = 0.0
    found = [0j]
    while len(found) < n_samples and r < arm.largest_per_cm:
        f = float(fov(r))
        c, change = turns * f, turns * float(slope(r))
        stretch = 1 + (r * c) ** 2
        fastest = min(GAMMA * arm.gradient_g_per_cm, 1 / (f * dt)) / math.sqrt(stretch)
        if speed > fastest:
            acceleration = (fastest - speed) / dt
        else:
            acceleration = _acceleration(r, speed, c, change, GAMMA * arm.slew_g_per_cm_per_s)
        angular += (c * acceleration + change * speed**2) * dt
        speed += acceleration * dt
        angle, r = angle + angular * dt, r + speed * dt
        found.append(cmath.rect(r, angle))
    return np.array(found)


def _acceleration(r: float, speed: float, c: float, change: float, slew: float) -> float:
    """The largest r'' at which ``|k''|`` stays below `slew`; where none does, the one at which it is least."""
    radial, tangential = -r * (c * speed) ** 2, (2 * c + r * change) * speed**2
    a, half_b = 1 + (r * c) ** 2, radial + r * c * tangential
    return (-half_b + math.sqrt(max(0.0, half_b**2 - a * (radial**2 + tangential**2 - slew**2)))) / a
