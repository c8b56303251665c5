"""A variable-density spiral as the header of a file describes it, and its arm by an integration of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from kspace.noncartesian.variable_density import GAMMA, Arm

# 48 pixels of 5 mm.
PARAMETERS: dict[str, float] = {
    "interleaves": 8,
    "fov_coefficients": 1,
    "SamplingTime_ns": 4000,
    "MaxGradient_G_per_cm": 2.4,
    "MaxSlewRate_G_per_cm_per_s": 14000.0,
    "FOVCoeff_1_cm": 28.0,
    "krmax_per_cm": 1.0,
}
ARM = Arm(8, (28.0,), 1.0, 2.4, 14000.0, 4e-6)


def integrated(arm: Arm, n_samples: int, substeps: int = 20) -> NDArray[np.float64]:
    """The arm, ``(sample 2)`` in 1/cm from k = 0 along +x, as far as it goes. Of the speed ``|k'|`` along the arm and not of
    r'': an arm of curvature kappa turns at ``v^2 kappa`` across, which leaves the rest of the slew rate for v."""
    dt = arm.step_s / substeps
    fastest, slew = GAMMA * arm.gradient_g_per_cm, GAMMA * arm.slew_g_per_cm_per_s
    r = speed = angle = 0.0
    found = []
    for step in range(n_samples * substeps):
        if step % substeps == 0:
            found.append((r * np.cos(angle), r * np.sin(angle)))
        c = 2 * np.pi * np.polyval(arm.fov_cm[::-1], r) / arm.interleaves
        slope = 2 * np.pi * np.polyval(np.polyder(arm.fov_cm[::-1]), r) / arm.interleaves
        rc = r * c
        # Curvature of a curve in polar form, of theta(r) with theta' = c.
        curvature = (2 * c + r * slope + r**2 * c**3) / (1 + rc**2) ** 1.5
        limit = min(fastest, float(arm.step_s**-1 / np.polyval(arm.fov_cm[::-1], r)))
        left = slew**2 - (speed**2 * curvature) ** 2
        speed = min(limit, speed + np.sqrt(max(0.0, left)) * dt)
        if left < 0:
            speed = min(speed, np.sqrt(slew / curvature))
        middle = r + 0.5 * speed / np.sqrt(1 + rc**2) * dt
        c = 2 * np.pi * np.polyval(arm.fov_cm[::-1], middle) / arm.interleaves
        along = speed / np.sqrt(1 + (middle * c) ** 2) * dt
        angle, r = angle + c * along, r + along
        if r > arm.largest_per_cm:
            break
    return np.array(found)


def described(path: Path, identifier: str, parameters: Mapping[str, float]) -> Path:
    """Put a ``trajectoryDescription`` into the header of the file at `path`."""
    shown = "".join(
        f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"
        for kind, which in (("Long", int), ("Double", float))
        for name, value in parameters.items()
        if isinstance(value, which)
    )
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        there = f"</trajectory><trajectoryDescription><identifier>{identifier}</identifier>{shown}</trajectoryDescription>"
        file["dataset/xml"][0] = xml.replace("</trajectory>", there).encode()
    return path
