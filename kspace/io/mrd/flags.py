"""Acquisition flags of ISMRMRD as bit masks (the standard's flag ``n`` is bit ``n - 1``)."""

from __future__ import annotations

LAST_IN_SLICE = 1 << 7
LAST_IN_REPETITION = 1 << 13
NOISE = 1 << 18
CALIBRATION = 1 << 19
CALIBRATION_AND_IMAGING = 1 << 20
REVERSE = 1 << 21
LAST_IN_MEASUREMENT = 1 << 24
COMPRESSED = 0b1111 << 52

LAST = LAST_IN_SLICE | LAST_IN_REPETITION | LAST_IN_MEASUREMENT

# Readouts that carry no line of the image, and what to call them.
NOT_IMAGING = {
    NOISE: "noise",
    1 << 22: "navigation",
    1 << 23: "phase correction",
    1 << 25: "HP feedback",
    1 << 26: "dummy",
    1 << 27: "RT feedback",
    1 << 28: "surface coil correction",
    1 << 29: "phase stabilization reference",
    1 << 30: "phase stabilization",
}
EXCLUDED = sum(NOT_IMAGING)
