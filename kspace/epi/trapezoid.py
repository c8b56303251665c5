"""The readout gradient of an echo-planar scan, as ISMRMRD headers describe it.

The parameters are those of the ``trajectoryDescription`` 'ConventionalEPI' (``siemens_to_ismrmrd`` writes them, Gadgetron's
``EPIReconX`` reads them); the trajectory of a trapezoidal readout is that of Bruder et al. 1992,
doi:10.1002/mrm.1910230211.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

LENGTHS = ("rampUpTime", "flatTopTime", "rampDownTime")
FIX = "correct trajectoryDescription in the header"
UNITS = {1e6: "seconds", 1e3: "milliseconds", 1e-3: "nanoseconds"}  # microseconds in one of them
SAME = 0.02  # relative difference of dwell times that converters round
LONGEST = 8.0  # of a lobe, relative to the readout under it
SHORTEST = 0.6  # of a readout under a lobe: half of the samples may have been taken away


@dataclass(frozen=True)
class Trapezoid:
    """One lobe of the readout gradient, and the samples that are taken under it. Times in microseconds, as in the header.

    Attributes
    ----------
    ramp_up_us, flat_top_us, ramp_down_us
        Durations of the three parts of the lobe.
    n_samples
        Samples of one readout.
    dwell_us
        Time from sample to sample.
    delay_us
        From the start of the lobe to the start of the first sample's dwell time; None where the header does not say.
    """

    ramp_up_us: float
    flat_top_us: float
    ramp_down_us: float
    n_samples: int
    dwell_us: float
    delay_us: float | None = None

    @property
    def duration_us(self) -> float:
        """Duration of the lobe."""
        return self.ramp_up_us + self.flat_top_us + self.ramp_down_us

    @property
    def centred_delay_us(self) -> float:
        """The delay for which the readout lies in the middle of the lobe."""
        return (self.duration_us - self.n_samples * self.dwell_us) / 2

    def area_us(self, t_us: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area under the gradient (amplitude 1) from its start to the times `t_us` ``(n,)`` within the lobe."""
        end = self.ramp_up_us + self.flat_top_us
        up, down = np.clip(t_us, 0, self.ramp_up_us), np.clip(t_us - end, 0, self.ramp_down_us)
        area = np.clip(t_us - self.ramp_up_us, 0, self.flat_top_us)
        if self.ramp_up_us > 0:
            area = area + up**2 / (2 * self.ramp_up_us)
        if self.ramp_down_us > 0:
            area = area + down - down**2 / (2 * self.ramp_down_us)
        return area

    @property
    def is_centred(self) -> bool:
        """Whether the header has the readout in the middle of the lobe, or does not say where it is."""
        return self.delay_us is None or abs(self.delay_us - self.centred_delay_us) <= self.dwell_us

    def trajectory(self, n: int, delay_us: float | None = None) -> NDArray[np.float64]:
        """Position in k-space of each sample ``(n_samples,)`` of a forward readout, in units of 1 / (encoded field of view).

        The readout starts `delay_us` after the lobe does, by default such that it is centred under it; k = 0 lies at half of
        its area. It covers the `n` points of the encoded matrix. A sample counts at the middle of its dwell time.
        """
        delay = self.centred_delay_us if delay_us is None else delay_us
        edges = delay + self.dwell_us * np.array([0, self.n_samples])
        t = edges[0] + self.dwell_us * (np.arange(self.n_samples) + 0.5)
        covered = self.area_us(edges)
        half = self.area_us(np.array([self.duration_us]))[0] / 2
        return np.asarray((self.area_us(t) - half) * (n / (covered[1] - covered[0])))


def read_trapezoid(
    parameters: Mapping[str, float], n_samples: int, dwell_us: float, source: str, warnings: list[str]
) -> Trapezoid | None:
    """The trapezoid of a trajectory description.

    Parameters
    ----------
    parameters
        Its parameters by ISMRMRD's names, times in microseconds.
    n_samples
        Samples of the readouts in the file.
    dwell_us
        Dwell time of the readouts, used where the description has none.
    source
        Name of the file, for messages.
    warnings
        Receives what was assumed.

    Returns
    -------
    Trapezoid or None
        None where there is no ramp sampling: all times are 0 or missing.

    Raises
    ------
    InputError
        If the description contradicts itself or the readouts.
    """
    times = [float(parameters.get(name, 0)) for name in LENGTHS]
    if not any(times):
        return None
    dwell = float(parameters.get("dwellTime", 0)) or dwell_us
    if min(times) < 0 or not 0 < dwell < np.inf:
        shown = ", ".join(f"{name} {time:g}" for name, time in zip(LENGTHS, times, strict=True))
        raise InputError(
            f"the EPI trajectory has {shown}, dwellTime {dwell:g} us, expected times of 0 or more and a dwell time", source, FIX
        )
    delay = parameters.get("acqDelayTime")
    of_sample = dwell_us if 0 < dwell_us < np.inf else dwell
    unit = _unit(sum(times), n_samples * of_sample)
    if unit != 1:
        warnings.append(
            f"the EPI readout gradient lasts {sum(times):g}: taken as {UNITS[unit]}, "
            f"which fits {n_samples} samples of {of_sample:g} us"
        )
        times, delay = [time * unit for time in times], None if delay is None else delay * unit
    dwell = _dwell(dwell, dwell_us, n_samples, sum(times), delay, warnings)
    stated = int(parameters.get("numSamples", 0)) or n_samples
    if stated != n_samples:
        text = f"numSamples of the EPI trajectory is {stated}, the readouts have {n_samples} samples"
        if dwell_us <= 0 or abs(dwell / dwell_us - 1) > SAME or not SHORTEST <= n_samples * dwell / sum(times) <= 1 + SAME:
            raise InputError(text, source, FIX)  # samples may have been taken away, and how is not known
        warnings.append(f"{text} of {dwell:g} us, which fit the gradient, and are taken so")
    lobe = Trapezoid(times[0], times[1], times[2], n_samples, dwell, None if delay is None else float(delay))
    if lobe.centred_delay_us < -dwell:
        raise InputError(
            f"the EPI readout gradient lasts {lobe.duration_us:g} us, too short for {n_samples} samples of {dwell:g} us",
            source,
            FIX,
        )
    if lobe.delay_us is not None and not 0 <= lobe.delay_us <= lobe.duration_us - n_samples * dwell + dwell:
        warnings.append(
            f"acqDelayTime of the EPI trajectory is {lobe.delay_us:g} us, which puts samples outside of the gradient: the "
            "readout is taken as in its middle"
        )
        lobe = replace(lobe, delay_us=None)
    return lobe


def _unit(duration: float, readout_us: float) -> float:
    """Microseconds in the unit of a lobe of this duration, as the readout under it tells: 1, or one of `UNITS`."""
    fits = [unit for unit in (1.0, *UNITS) if 1 - SAME <= duration * unit / readout_us <= LONGEST]
    return 1.0 if 1.0 in fits or len(fits) != 1 else fits[0]


def _dwell(
    stated: float, of_readouts: float, n_samples: int, duration_us: float, delay_us: float | None, warnings: list[str]
) -> float:
    """The dwell time in microseconds: that of the description, unless only that of the readouts fits under the lobe, or into
    the middle of it where the delay says so."""
    if not 0 < of_readouts < np.inf or abs(stated / of_readouts - 1) < SAME:
        return stated

    def misfit(dwell: float) -> float:
        rest = (duration_us - n_samples * dwell) / 2
        outside = rest < -dwell / 2 or LONGEST * n_samples * dwell < duration_us
        return np.inf if outside else 0.0 if delay_us is None else abs(rest - delay_us) / dwell

    taken = of_readouts if misfit(of_readouts) < min(misfit(stated), 1.0) else stated
    warnings.append(
        f"dwellTime of the EPI trajectory is {stated:g} us, sample_time_us of the readouts {of_readouts:g}: {taken:g} us "
        "taken, which fits the gradient"
    )
    return taken
