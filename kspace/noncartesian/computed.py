"""Trajectories of readouts that carry none, from what the header says about their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kspace.noncartesian.trajectory import GOLDEN
from kspace.noncartesian.variable_density import IDENTIFIER

DELAYS = range(-2, 3)  # samples between opposite spokes
PARTIAL = 16  # of a readout: the centre of k-space is as far from its middle at least where it is a partial echo
LEAST_BETTER = 5e-4  # agreement of an order that is taken against the header
LEAST_AGREEMENT, UNLIKELY = 0.5, 0.3  # of neighbouring spokes: to be taken against the header, and to be doubted
Order = Literal["radial", "goldenangle", "spiral", "none"]


def order_of(trajectory: str, description: str) -> Order:
    """How readouts follow each other, from the name of the trajectory and the identifier of its ``trajectoryDescription``:
    ``none`` where neither says it. Golden angles are often stated by the identifier alone."""
    if trajectory == "goldenangle" or (trajectory in ("radial", "other") and "golden" in description.lower()):
        return "goldenangle"
    if trajectory == "radial":
        return "radial"
    return "spiral" if trajectory in ("spiral", "other") and description == IDENTIFIER else "none"


@dataclass(frozen=True)
class Spokes:
    """Which angles the spokes of a scan have.

    Attributes
    ----------
    step_rad
        From one number to the next.
    by_counter
        Whether ``kspace_encode_step_1`` is that number, or the place in order of acquisition.
    says
        In words.
    """

    step_rad: float
    by_counter: bool
    says: str


def candidates(order: Order, n_stated: int, n_counted: int) -> list[Spokes]:
    """Orders that spokes may have, what the header says first: a file that says ``radial`` may mean half a circle, a whole one
    or golden angles, and counters of golden angles may restart with every frame.

    `n_stated` spokes by the limits of the header, `n_counted` by the largest counter.
    """
    golden = [Spokes(GOLDEN, True, "golden angle"), Spokes(GOLDEN, False, "golden angle in order of acquisition")]
    equal = [
        Spokes(turn * math.pi / n, True, f"{n} equal angles over {'half a' if turn == 1 else 'a whole'} circle")
        for n in dict.fromkeys((n_stated, n_counted))
        for turn in (1, 2)
    ]
    return [*golden, *equal] if order == "goldenangle" else [*equal, *golden]


def agreements(y: NDArray[np.complexfloating], angles: Sequence[NDArray[np.float64]], centre: int) -> NDArray[np.float64]:
    """How well neighbours agree where spokes have these angles, about 1 for those that they have and about 0 for others: the
    correlation of the magnitudes of every coil, without their mean over the spokes, around the centre of k-space.

    Parameters
    ----------
    y
        ``(coil readout sample)``.
    angles
        Candidates ``(readout)``, radians.
    centre
        Sample at the centre of k-space.
    """
    width = min(centre, y.shape[-1] - 1 - centre, y.shape[-1] // 4)
    profiles = np.abs(y[..., centre - width : centre + width + 1]).astype(np.float64)
    profiles -= profiles.mean(1, keepdims=True)
    energy = float((profiles**2).sum())
    return np.array([_agreement(profiles, one) / energy if energy else 0.0 for one in angles])


def _agreement(profiles: NDArray[np.float64], angles: NDArray[np.float64]) -> float:
    """Sum of the products of neighbours, where opposite spokes may be shifted by a delay."""
    turn = np.mod(angles, 2 * math.pi)
    forward, order = (turn < math.pi)[:, None], np.argsort(np.mod(turn, math.pi), kind="stable")
    found = []
    for shift in DELAYS:
        backward = np.roll(profiles[..., ::-1], shift, -1)
        along = np.where(forward, profiles, backward)[:, order]
        # Half a circle on, a spoke comes back reversed.
        across = np.roll(along[:, 0, ::-1], shift, -1)
        found.append((along[:, 1:] * along[:, :-1]).sum() + (along[:, -1] * across).sum())
    return float(max(found))


def chosen(possible: Sequence[Spokes], agreement: NDArray[np.float64], n_samples: int) -> tuple[Spokes, str]:
    """The first of the candidates, or the one that fits better, and what to say about it.

    `agreement` ``(candidate)`` is that of `agreements`, of `n_samples` samples in all: noise alone makes it differ by about
    2 (1 - agreement) over the square root of their number.
    """
    best = int(np.argmax(agreement))
    said = f"neighbouring spokes agree by {agreement[0]:.4f} (of 1) for {possible[0].says}"
    needed = max(20 * (1 - agreement[best]) / math.sqrt(n_samples), LEAST_BETTER)
    if agreement[best] > max(LEAST_AGREEMENT, agreement[0] + needed):
        return possible[best], f"{said}, by {agreement[best]:.4f} for {possible[best].says}, which is taken"
    if agreement[0] < UNLIKELY:
        return possible[0], f"{said}: their angles may be others; --trajectory FILE gives them"
    return possible[0], ""


def series_of(idx: NDArray[np.void], imaging: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which series of spokes each readout is of (slice, partition, contrast and set have their own), and its place therein.

    Parameters
    ----------
    idx
        Counters of all readouts ``(readout)``.
    imaging
        Numbers ``(n)`` of those that count, in order of acquisition.
    """
    columns = np.stack([idx[name] for name in ("slice", "kspace_encode_step_2", "contrast", "set")], -1)
    series = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    place = np.zeros(len(idx), np.int64)
    for one in np.unique(series[imaging]):
        mine = imaging[series[imaging] == one]
        place[mine] = np.arange(len(mine))
    return series, place


def spokes(which: Spokes, number: NDArray[np.int64], n_samples: int, centre: int) -> NDArray[np.float64]:
    """Spokes of readouts, ``(readout sample 2)`` in fractions of k-space (±0.5).

    Parameters
    ----------
    which
        Their angles.
    number
        Of each readout ``(readout)``: its counter or its place.
    n_samples, centre
        Samples of a readout, and which of them is at the centre of k-space; 0: not stated, the one at ``n_samples // 2``.
    """
    angles: NDArray[np.float64] = number.astype(np.float64) * which.step_rad
    middle = n_samples // 2
    centre = centre or middle
    # A readout whose longer side is much longer is a partial echo: that side reaches the end.
    n = n_samples if abs(centre - middle) * PARTIAL <= n_samples else 2 * max(centre, n_samples - centre)
    r = (np.arange(n_samples) - centre) / n
    return np.stack([np.cos(angles)[:, None] * r, np.sin(angles)[:, None] * r], -1)
