"""Odd-even phase from navigators: readouts of both directions without phase encoding, acquired before those of the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.epi.phase import OddEvenPhase, fit_line, fit_polynomial


def navigator_phase(navigators: NDArray[np.complex64], is_reversed: NDArray[np.bool_], order: int = 1) -> OddEvenPhase | None:
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
    cross = np.zeros(navigators.shape[-1], np.complex128)
    turned = is_reversed[1:] != is_reversed[:-1]
    triples = np.flatnonzero(turned[1:] & turned[:-1]) + 1
    for p in triples:
        before, middle, after = navigators[p - 1 : p + 2].astype(np.complex128)
        constant, slope = fit_line(np.sum(np.conj(before) * after, axis=0))
        x = np.arange(len(cross)) - len(cross) // 2
        drift = np.exp(0.5j * (constant + slope * x))
        pair = np.sum(np.conj(before * drift + after * np.conj(drift)) * middle, axis=0)
        cross += np.conj(pair) if is_reversed[p] else pair
    if not len(triples):
        for p in np.flatnonzero(turned):
            first, second = navigators[p : p + 2].astype(np.complex128)
            pair = np.sum(np.conj(first) * second, axis=0)
            cross += np.conj(pair) if is_reversed[p + 1] else pair
    return fit_polynomial(cross, order) if np.any(cross) else None
