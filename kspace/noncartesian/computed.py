"""Trajectories of readouts that carry none, from what the header says about their order."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kspace.noncartesian.trajectory import GOLDEN, radial
from kspace.noncartesian.variable_density import IDENTIFIER

Order = Literal["radial", "goldenangle", "spiral", "none"]


def order_of(trajectory: str, description: str) -> Order:
    """How readouts follow each other, from the name of the trajectory and the identifier of its ``trajectoryDescription``:
    ``none`` where neither says it. Golden angles are often stated by the identifier alone."""
    if trajectory == "goldenangle" or (trajectory in ("radial", "other") and "golden" in description.lower()):
        return "goldenangle"
    if trajectory == "radial":
        return "radial"
    return "spiral" if trajectory in ("spiral", "other") and description == IDENTIFIER else "none"


def spokes(order: Order, counter: NDArray[np.int64], n_spokes: int, n_samples: int, centre: int) -> NDArray[np.float64]:
    """Spokes of readouts, ``(readout sample 2)`` in fractions of k-space (±0.5).

    Parameters
    ----------
    order
        ``goldenangle``, or ``radial``: equally spaced over the half circle.
    counter
        Of each readout ``(readout)``.
    n_spokes
        On the half circle.
    n_samples, centre
        Samples of a readout, and which of them is at the centre of k-space; 0: not stated, the one at ``n_samples // 2``.
    """
    angles: NDArray[np.float64] = counter.astype(np.float64) * (GOLDEN if order == "goldenangle" else math.pi / n_spokes)
    shift = (n_samples // 2 - centre) / n_samples if centre else 0.0
    return radial(len(counter), n_samples, angles) + shift * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]
