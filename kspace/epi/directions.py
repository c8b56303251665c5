"""Which way the readouts of a file truly run, told by the samples: marks are missing, or converters turned the readouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kspace.epi.plan import EpiPlan, Numbers

Complex = NDArray[np.complex64]
Read = Callable[[Numbers], Iterable[tuple[int, Complex]]]
SAME_LINE, OTHER_LINE = 0.97, 0.9  # likeness of navigators, 1 where they differ by a shift and a phase
CLEARLY = 1.1  # ratio of likenesses from which on lines tell; those of a symmetric object are much alike both ways
FAR = 8  # part of a readout by which those of both directions may be shifted against each other: its eighth
N_CENTRAL = 9  # lines that are compared


def alternates(plan: EpiPlan, numbers: Numbers, read: Read) -> bool:
    """Whether lines that follow each other in time are more alike when every second one is turned around.

    For scans that mark no readout as reversed: either none is (fly-back), or the marks are missing.
    """
    same, turned = _both_ways([samples for _, samples in read(numbers)])
    return turned > same


def mirrored_neighbours(lines: list[Complex]) -> bool:
    """Whether consecutive `lines`, each ``(coil sample)``, are clearly more alike when every second one is turned around."""
    same, turned = _both_ways(lines)
    return turned > CLEARLY * same


def navigators_are_turned(plan: EpiPlan, numbers: Numbers, read: Read) -> bool | None:
    """Whether the navigators that are marked as reversed were turned around by whoever wrote them; None without navigators.

    Those of both directions are the same line.
    """
    first = int(plan.group[numbers[0]])
    marked = turned = size = 0.0
    for (a, before), (b, after) in pairwise(read(plan.navigators[first]) if first >= 0 else ()):
        if plan.is_reversed[a] != plan.is_reversed[b]:
            marked += likeness(before, after[:, ::-1])
            turned += likeness(before, after)
            size += norm(before) * norm(after)
    return turned > SAME_LINE * size and marked < OTHER_LINE * size if size > 0 else None


def lines_are_turned(plan: EpiPlan, numbers: Numbers, central: int, read: Read) -> bool | None:
    """Whether the lines `numbers` that are marked as reversed were turned around; None where they do not tell.

    Lines beside each other, about the number `central`, are much alike if both run the same way.
    """
    place = int(np.searchsorted(numbers, central))
    first = max(0, min(place - N_CENTRAL // 2, len(numbers) - N_CENTRAL))
    marked = turned = 0.0
    for (a, before), (b, after) in pairwise(read(numbers[first : first + N_CENTRAL])):
        if plan.is_reversed[a] != plan.is_reversed[b]:
            marked += likeness(before, after[:, ::-1])
            turned += likeness(before, after)
    return True if turned > CLEARLY * marked else False if marked > CLEARLY * turned else None


def with_navigator_directions(plan: EpiPlan, numbers: Numbers, central: int, read: Read, is_assumed: bool) -> EpiPlan:
    """The plan with the directions of those navigators whose marks are missing.

    Navigators without phase encoding are the line through the centre of k-space: turned around, they resemble the line
    number `central` less.

    Parameters
    ----------
    plan
        The plan.
    numbers
        Of the lines of an image.
    central
        The one nearest to the centre of k-space.
    read
        Yields readouts.
    is_assumed
        Whether the directions of all navigators were assumed; otherwise only groups that are marked alike are looked at.
    """
    changed = plan.is_reversed.copy()
    for group in np.unique(plan.group[numbers]):
        members = plan.navigators[group] if group >= 0 else np.empty(0, np.int64)
        marks = plan.is_reversed[members]
        if len(members) < 2 or (len(np.unique(marks)) == 2 and not is_assumed):
            continue
        ((_, line),) = read(np.array([central]))
        ahead, turned = ([likeness(way, line) for way in ways] for ways in _ways([s for _, s in read(members)]))
        if plan.is_reversed[central]:
            ahead, turned = turned, ahead
        odd = np.arange(len(members)) % 2 == 1
        patterns = [odd, ~odd] if is_assumed else [marks, odd, ~odd]
        changed[members] = max(patterns, key=lambda p: float(np.sum(np.where(p, turned, ahead))))
    return plan.with_marks(changed)


def norm(samples: Complex) -> float:
    """Root sum of squares, in double precision."""
    return float(np.linalg.norm(samples.astype(np.complex128)))


def shot_parity(rows: Numbers) -> NDArray[np.bool_]:
    """Whether each line is the second, fourth, ... of its echo train; `rows` ``(line,)`` in the order of acquisition."""
    steps = np.sign(np.diff(rows))
    starts = np.concatenate([[True], steps == (-1 if np.sum(steps) >= 0 else 1)])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    return (np.arange(len(rows)) - first) % 2 == 1


def likeness(a: NDArray[np.complexfloating], b: NDArray[np.complexfloating]) -> float:
    """Largest magnitude of the cross-correlation of ``(coil sample)`` along the readout, coils together, near no shift."""
    a, b = a.astype(np.complex128), b.astype(np.complex128)  # squares of samples in any unit
    n = a.shape[-1]
    far = n // FAR
    shifted = (np.vdot(a[:, max(0, -d) : n - max(0, d)], b[:, max(0, d) : n - max(0, -d)]) for d in range(-far, far + 1))
    return float(max(abs(value) for value in shifted))


def _ways(readouts: list[Complex]) -> tuple[list[Complex], list[Complex]]:
    return readouts, [samples[:, ::-1] for samples in readouts]


def _both_ways(lines: list[Complex]) -> tuple[float, float]:
    """Likeness of consecutive lines, and of such that were turned around every second time."""
    pairs = list(pairwise(lines))
    return sum(likeness(a, b) for a, b in pairs), sum(likeness(a, b[:, ::-1]) for a, b in pairs)
