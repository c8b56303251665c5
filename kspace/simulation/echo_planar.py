"""Prescribing an echo-planar scan: echo trains of alternating direction, navigators, sampling on the ramps.

`echo_planar` turns a Cartesian `Acquisition` into one; `kspace.simulation.measurement` then evaluates the phantom's Fourier
transform exactly where the trapezoid puts each sample.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kspace.epi.phase import OddEvenPhase
from kspace.epi.trapezoid import Trapezoid
from kspace.io.mrd.flags import CALIBRATION, NOISE, REVERSE, flag
from kspace.simulation.acquisition import COUNTERS, Acquisition

NAVIGATOR = flag("IS_PHASECORR_DATA") | flag("IS_RTFEEDBACK_DATA")


def echo_planar(
    scan: Acquisition,
    lobe: Trapezoid,
    n_shots: int = 1,
    n_navigators: int = 3,
    phase: OddEvenPhase | None = None,
    is_marked: bool = True,
) -> Acquisition:
    """Acquire the lines of each image in echo trains.

    Parameters
    ----------
    scan
        A Cartesian scan, perhaps accelerated; separate calibration lines get echo trains of their own.
    lobe
        Readout gradient and samples. The header describes it under the name 'ConventionalEPI'.
    n_shots
        Echo trains for each image; their lines interleave.
    n_navigators
        Readouts without phase encoding before each echo train, the first reversed as on Siemens scanners; 0: none.
    phase
        Of forward minus reversed readouts, planted exactly: half of it, as a phase and as a shift of k-space. No higher orders.
    is_marked
        Whether reversed readouts carry the flag that says so.
    """
    headers = scan.headers.copy()
    lines = (headers["flags"] & NOISE) == 0
    headers["number_of_samples"][lines], headers["center_sample"][lines] = lobe.n_samples, lobe.n_samples // 2
    headers["sample_time_us"][lines] = lobe.dwell_us
    keys = np.stack([headers["idx"][name] for name in COUNTERS] + [headers["flags"] & CALIBRATION], axis=1).astype(np.int64)
    keys[~lines] = -1
    order, reverse = list(np.flatnonzero(~lines)), [False] * int(np.sum(~lines))
    navigators = [False] * len(order)
    for key in dict.fromkeys(map(tuple, keys[lines].tolist())):
        rows = np.flatnonzero((keys == key).all(axis=1))
        rows = rows[np.argsort(headers["idx"]["kspace_encode_step_1"][rows], kind="stable")]
        for shot in range(n_shots):
            train = rows[shot::n_shots]
            order += [train[0]] * n_navigators + list(train)
            navigators += [True] * n_navigators + [False] * len(train)
            reverse += [i % 2 == 0 for i in range(n_navigators)] + [i % 2 == 1 for i in range(len(train))]
    headers, is_navigator = headers[order], np.array(navigators)
    headers["flags"][is_navigator] |= NAVIGATOR
    headers["idx"]["kspace_encode_step_1"][is_navigator] = scan.centres[0][0]
    reversed_rows = np.array(reverse)
    if is_marked:
        headers["flags"][reversed_rows] |= REVERSE
    delay = lobe.centred_delay_us if lobe.delay_us is None else lobe.delay_us
    described = {
        "rampUpTime": lobe.ramp_up_us, "flatTopTime": lobe.flat_top_us, "rampDownTime": lobe.ramp_down_us,
        "acqDelayTime": delay, "numSamples": lobe.n_samples, "dwellTime": lobe.dwell_us,
        "numberOfNavigators": n_navigators,
    }  # fmt: skip
    spaces = tuple(replace(space, trajectory="epi", parameters=described) for space in scan.spaces)
    return replace(
        scan,
        headers=headers,
        gain=scan.gain[order],
        spaces=spaces,
        lobe=lobe,
        odd_even_phase=phase or OddEvenPhase(),
        is_reversed=reversed_rows,
    )
