"""Phases from navigators: readouts of both directions without phase encoding, acquired before those of the image.

Between the directions (`navigator_phase`, and `group_phases` for each group of coils), and between shots (`shot_phase`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kspace.epi.phase import OddEvenPhase, fit_line, fit_polynomial, line_errors

SIGNIFICANT = 4.0  # standard errors, from which on a group of coils gets a phase of its own
CLEAR = 0.8  # of the magnitude of its navigators that a line must bring into phase: below it they are mostly noise
Navigators = NDArray[np.complex64]


@dataclass(frozen=True)
class ShotPhase:
    """Phase of one shot minus that of the one with the centre of k-space, along the readout in image space.

    Attributes
    ----------
    constant_rad
        At the centre of the image.
    linear_rad
        Change per pixel of the encoded matrix.
    agreement
        0 to 1: how far the navigators of both are the same, once this phase is taken out.
    """

    constant_rad: float = 0.0
    linear_rad: float = 0.0
    agreement: float = 1.0

    def correction(self, n: int) -> NDArray[np.complex128]:
        """Factor ``(n,)`` in image space that takes the phase out."""
        x = np.arange(n) - n // 2
        return np.exp(-1j * (self.constant_rad + self.linear_rad * x))


def navigator_phase(navigators: Navigators, is_reversed: NDArray[np.bool_], order: int = 1) -> OddEvenPhase | None:
    """Phase between forward and reversed readouts, from navigators of alternating direction.

    Each is compared with the mean of its two neighbours, which are of the other direction. The phase that off-resonance
    builds up between these two, is taken out first: with three navigators their middle one is then seen at its own time.
    All coils count, by their energy. Two navigators leave the build-up in the constant. As Gadgetron's ``EPICorr``.

    Parameters
    ----------
    navigators
        In image space along the readout, complex ``(navigator coil x)``, reversed ones already turned.
    is_reversed
        Direction of each, ``(navigator,)``.
    order
        Of the polynomial along the readout: 0 constant, 1 linear, more.

    Returns
    -------
    OddEvenPhase or None
        None where no two consecutive navigators differ in direction, or all are zero.
    """
    cross = _between_directions(navigators, is_reversed)
    return None if cross is None else fit_polynomial(cross.sum(0), order)


def group_phases(
    navigators: Navigators, is_reversed: NDArray[np.bool_], groups: Sequence[NDArray[np.int64]], order: int = 1
) -> tuple[OddEvenPhase, ...] | None:
    """`navigator_phase` for each group of coils: receivers of different coil arrays may differ in their delay.

    A group whose constant and slope are those of all coils within `SIGNIFICANT` standard errors, or that has too much noise to
    tell, gets the phase of all.

    Parameters
    ----------
    navigators, is_reversed, order
        As for `navigator_phase`: complex ``(navigator coil x)``, ``(navigator,)``, and the order.
    groups
        Numbers of the coils ``(coil,)`` of each group, together all coils.
    """
    cross = _between_directions(navigators, is_reversed)
    if cross is None:
        return None
    everything = cross.sum(0)
    common = fit_polynomial(everything, order)
    found = []
    for members in groups:
        own = cross[members].sum(0)
        # What the group has beside the phase of all, so that both are judged at the same pixels.
        beside = own * np.exp(-1j * np.angle(everything))
        line = fit_line(beside)
        errors = line_errors(beside, line)
        x = np.arange(len(beside)) - len(beside) // 2
        weight = np.abs(beside)
        centre = float(np.sum(weight * x) / weight.sum()) if weight.any() else 0.0
        differs = abs(line[0] + line[1] * centre) > SIGNIFICANT * errors[0] or abs(line[1]) > SIGNIFICANT * errors[1]
        differs = differs and abs(np.sum(beside * np.exp(-1j * (line[0] + line[1] * x)))) > CLEAR * weight.sum()
        found.append(fit_polynomial(own, order) if len(groups) > 1 and differs else common)
    return tuple(found)


def shot_phase(reference: Navigators, navigators: Navigators) -> ShotPhase:
    """Phase between two shots, from navigators that were acquired alike before each of them.

    Constant and linear along the readout, as motion and drift of the field change them from shot to shot (Ordidge et al. 1994,
    doi:10.1016/0730-725X(94)92539-9). How it varies along ky, navigators without phase encoding cannot tell.

    Parameters
    ----------
    reference, navigators
        Of both shots, in image space along the readout, complex ``(navigator coil x)``, free of the odd-even phase.
    """
    n = min(len(reference), len(navigators))
    a, b = (part[:n].astype(np.complex128) for part in (reference, navigators))
    cross = np.sum(np.conj(a) * b, axis=(0, 1))
    scale = float(np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)))
    if not cross.any() or scale == 0:
        return ShotPhase()
    constant, slope = fit_line(cross)
    x = np.arange(len(cross)) - len(cross) // 2
    return ShotPhase(constant, slope, float(np.sum(cross * np.exp(-1j * (constant + slope * x))).real) / scale)


def _between_directions(navigators: Navigators, is_reversed: NDArray[np.bool_]) -> NDArray[np.complex128] | None:
    """Forward times conjugate reversed navigators, ``(coil x)``, the drift between them taken out; None where none can be."""
    n_coils, n = navigators.shape[1:]
    cross = np.zeros((n_coils, n), np.complex128)
    turned = is_reversed[1:] != is_reversed[:-1]
    triples = np.flatnonzero(turned[1:] & turned[:-1]) + 1
    for p in triples:
        before, middle, after = navigators[p - 1 : p + 2].astype(np.complex128)
        constant, slope = fit_line(np.sum(np.conj(before) * after, axis=0))
        x = np.arange(n) - n // 2
        drift = np.exp(0.5j * (constant + slope * x))
        pair = np.conj(before * drift + after * np.conj(drift)) * middle
        cross += np.conj(pair) if is_reversed[p] else pair
    if not len(triples):
        for p in np.flatnonzero(turned):
            first, second = navigators[p : p + 2].astype(np.complex128)
            pair = np.conj(first) * second
            cross += np.conj(pair) if is_reversed[p + 1] else pair
    return cross if np.any(cross.sum(0)) else None
