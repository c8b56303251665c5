"""Acquisition flags of ISMRMRD by name, and as bit masks (the standard's flag ``n`` is bit ``n - 1``)."""

from __future__ import annotations

import numpy as np

NUMBERS = {
    "FIRST_IN_SLICE": 7,
    "LAST_IN_SLICE": 8,
    "LAST_IN_REPETITION": 14,
    "IS_NOISE_MEASUREMENT": 19,
    "IS_PARALLEL_CALIBRATION": 20,
    "IS_PARALLEL_CALIBRATION_AND_IMAGING": 21,
    "IS_REVERSE": 22,
    "IS_NAVIGATION_DATA": 23,
    "IS_PHASECORR_DATA": 24,
    "LAST_IN_MEASUREMENT": 25,
    "IS_HPFEEDBACK_DATA": 26,
    "IS_DUMMYSCAN_DATA": 27,
    "IS_RTFEEDBACK_DATA": 28,
    "IS_SURFACECOILCORRECTIONSCAN_DATA": 29,
    "IS_PHASE_STABILIZATION_REFERENCE": 30,
    "IS_PHASE_STABILIZATION": 31,
    "COMPRESSION1": 53,
    "COMPRESSION2": 54,
    "COMPRESSION3": 55,
    "COMPRESSION4": 56,
}


def flag(name: str) -> np.uint64:
    """Bit mask of an acquisition flag: ``flag("IS_REVERSE")`` is ISMRMRD's ``ACQ_IS_REVERSE``, number 22, bit 21."""
    return np.uint64(1 << (NUMBERS[name] - 1))


NOISE = flag("IS_NOISE_MEASUREMENT")
CALIBRATION = flag("IS_PARALLEL_CALIBRATION")
CALIBRATION_AND_IMAGING = flag("IS_PARALLEL_CALIBRATION_AND_IMAGING")
REVERSE = flag("IS_REVERSE")
PHASE_CORRECTION = flag("IS_PHASECORR_DATA")
NAVIGATION = flag("IS_NAVIGATION_DATA")
LAST = flag("LAST_IN_SLICE") | flag("LAST_IN_REPETITION") | flag("LAST_IN_MEASUREMENT")
COMPRESSED = flag("COMPRESSION1") | flag("COMPRESSION2") | flag("COMPRESSION3") | flag("COMPRESSION4")

# Readouts that carry no line of the image, and what to call them.
NOT_IMAGING = {
    NOISE: "noise",
    NAVIGATION: "navigation",
    PHASE_CORRECTION: "phase correction",
    flag("IS_HPFEEDBACK_DATA"): "HP feedback",
    flag("IS_DUMMYSCAN_DATA"): "dummy",
    flag("IS_RTFEEDBACK_DATA"): "RT feedback",
    flag("IS_SURFACECOILCORRECTIONSCAN_DATA"): "surface coil correction",
    flag("IS_PHASE_STABILIZATION_REFERENCE"): "phase stabilization reference",
    flag("IS_PHASE_STABILIZATION"): "phase stabilization",
}
EXCLUDED = np.bitwise_or.reduce(np.array(list(NOT_IMAGING), np.uint64))
