"""Which way each readout of an echo-planar scan runs, what brings it to the grid, and which navigators belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kspace.epi.regrid import Readout, regridding_matrix, shifting_matrix
from kspace.epi.trapezoid import read_trapezoid
from kspace.errors import InputError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EpiPlan:
    """Readouts of one echo-planar encoding.

    Attributes
    ----------
    n
        Points of the encoded matrix along the readout.
    n_samples
        Samples of a line.
    readouts
        What forward and what reversed readouts go through.
    kept
        Samples that are not to be discarded, of forward and of reversed readouts.
    is_reversed
        Bool ``(readout,)``, for all readouts of the file.
    navigators
        Groups of numbers of navigator readouts, each group acquired one after the other.
    group
        For each readout of the file, the group of navigators that belongs to it; -1 where there is none.
    is_ramp_sampled
        Whether the samples are unevenly spaced.
    is_marked
        Whether any line is marked as reversed; where none is, `with_directions` finds out from the samples.
    delayed
        `readouts` for the delay that the header states, where it does not put them into the middle of their gradient.
    """

    n: int
    n_samples: int
    readouts: tuple[Readout, Readout]
    kept: tuple[slice, slice]
    is_reversed: NDArray[np.bool_]
    navigators: tuple[Numbers, ...]
    group: Numbers
    is_ramp_sampled: bool
    is_marked: bool
    delayed: tuple[Readout, Readout] | None = None

    def with_turned(self) -> EpiPlan:
        """The plan for readouts that are marked as reversed, and lie in the file from left to right all the same."""
        forward, back = self.readouts
        return replace(self, readouts=(forward, Readout(np.ascontiguousarray(back.matrix[:, ::-1]), back.noise_gain)))

    def with_marks(self, is_reversed: NDArray[np.bool_]) -> EpiPlan:
        """The plan with other directions ``(readout,)`` of the readouts."""
        return replace(self, is_reversed=is_reversed)

    def without_navigators(self) -> EpiPlan:
        """The plan for readouts whose navigators are not used."""
        return replace(self, navigators=(), group=np.full_like(self.group, -1))

    def with_directions(self, numbers: Numbers, is_reversed: NDArray[np.bool_]) -> EpiPlan:
        """The plan with other directions ``(n,)`` of the lines `numbers`, and of the navigators alternately before them."""
        changed = self.is_reversed.copy()
        changed[numbers] = is_reversed
        for group in self.navigators:
            changed[group] = np.arange(len(group))[::-1] % 2 == 0
        if self.is_ramp_sampled:
            return replace(self, is_reversed=changed, is_marked=True)
        first = -(self.n_samples - 1) / 2
        forward, backward = (shifting_matrix(first, self.n_samples, self.n, way) for way in (False, True))
        return replace(self, is_reversed=changed, is_marked=True, readouts=(forward, backward))


def plan_readouts(
    headers: NDArray[np.void],
    lines: Numbers,
    navigators: Numbers,
    is_reversed: NDArray[np.bool_],
    n: int,
    parameters: Mapping[str, float],
    source: str,
    warnings: list[str],
    trajectory: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> EpiPlan:
    """Plan the readouts of an echo-planar encoding.

    Parameters
    ----------
    headers
        Acquisition headers ``(readout,)`` of the file.
    lines, navigators
        Numbers of the readouts with phase encoding (calibration included), and of the navigators.
    is_reversed
        Bool ``(readout,)``.
    n
        Points of the encoded matrix along the readout.
    parameters
        Of the header's trajectory description, see `kspace.epi.trapezoid.read_trapezoid`.
    source
        Name of the file, for messages.
    warnings
        Receives what was assumed.
    trajectory
        Positions ``(n_samples,)`` of the samples of forward and of reversed readouts in units of 1 / (encoded field of view),
        where the readouts carry them; the description is not used then.

    Raises
    ------
    InputError
        If the description contradicts itself or the readouts.
    """
    n_samples = int(headers["number_of_samples"][lines[0]])
    kept = tuple(_kept(headers, lines[is_reversed[lines] == backward], n_samples) for backward in (False, True))
    dwell_us = float(headers["sample_time_us"][lines[0]])
    lobe = read_trapezoid(parameters, n_samples, dwell_us, source, warnings) if trajectory is None else None
    delayed = None
    if trajectory is not None:
        readouts = tuple(regridding_matrix(k[part], n) for k, part in zip(trajectory, kept, strict=True))
    elif lobe is None:
        if n_samples < n:
            raise InputError(
                f"the readouts have {n_samples} samples, the encoded matrix {n}, and the header describes no ramp sampling",
                source,
                "correct encodedSpace or trajectoryDescription in the header",
            )
        if n_samples > n:
            warnings.append(
                "no ramp times of the EPI readout in the header: samples taken as evenly spaced; if they are not, images are "
                "stretched and ring along the readout: add rampUpTime, flatTopTime, rampDownTime to trajectoryDescription"
            )
        first = _first(headers, lines, is_reversed, n_samples)
        readouts = tuple(
            shifting_matrix(first, n_samples, n, backward, part) for backward, part in zip((False, True), kept, strict=True)
        )
    else:
        readouts = _both_ways(lobe.trajectory(n), kept, n)
        delayed = None if lobe.is_centred else _both_ways(lobe.trajectory(n, lobe.delay_us), kept, n)
    groups = _groups(headers, navigators)
    group, is_borrowed = _nearest_group(headers, groups)
    if is_borrowed[lines].any():
        warnings.append("slices without navigators of their own take those that were acquired last before them")
    return EpiPlan(
        n=n,
        n_samples=n_samples,
        readouts=(readouts[0], readouts[1]),
        kept=(kept[0], kept[1]),
        is_reversed=is_reversed,
        navigators=groups,
        group=group,
        is_ramp_sampled=lobe is not None or trajectory is not None,
        is_marked=bool(is_reversed[lines].any()),
        delayed=delayed,
    )


def _both_ways(k: NDArray[np.float64], kept: Sequence[slice], n: int) -> tuple[Readout, Readout]:
    return regridding_matrix(k[kept[0]], n), regridding_matrix(-k[kept[1]], n)


def _kept(headers: NDArray[np.void], lines: Numbers, n_samples: int) -> slice:
    if not len(lines):
        return slice(0, n_samples)
    head = headers[lines[0]]
    return slice(int(head["discard_pre"]), n_samples - int(head["discard_post"]))


def _first(headers: NDArray[np.void], lines: Numbers, is_reversed: NDArray[np.bool_], n_samples: int) -> float:
    """Position of the first sample of a forward readout, evenly spaced.

    The same ``center_sample`` in both directions says no more than that the readout is centred: k = 0 then lies between two
    samples, where a gradient lobe has its middle.
    """
    centres = [headers["center_sample"][lines[is_reversed[lines] == way]].astype(int) for way in (False, True)]
    forward, backward = (int(c[0]) if len(c) else None for c in centres)
    if forward is None or forward == backward:
        return -(n_samples - 1) / 2
    return -float(forward)


def _groups(headers: NDArray[np.void], navigators: Numbers) -> tuple[Numbers, ...]:
    """Navigators that follow each other directly, in one slice."""
    if not len(navigators):
        return ()
    slices = headers["idx"]["slice"][navigators].astype(np.int64)
    breaks = (np.diff(navigators) != 1) | (np.diff(slices) != 0)
    return tuple(np.split(navigators, np.flatnonzero(breaks) + 1))


def _nearest_group(headers: NDArray[np.void], groups: tuple[Numbers, ...]) -> tuple[Numbers, NDArray[np.bool_]]:
    """For each readout the last group of its slice before it, else the first after it; where its slice has none the last of any
    slice before it, else -1. And whether it is that of another slice."""
    nearest = np.full(len(headers), -1, np.int64)
    slices = headers["idx"]["slice"].astype(np.int64)
    starts = np.array([group[0] for group in groups], np.int64)
    of_group = np.array([slices[group[0]] for group in groups], np.int64)
    for one in np.unique(of_group):
        mine, here = np.flatnonzero(of_group == one), np.flatnonzero(slices == one)
        place = np.searchsorted(starts[mine], here, side="right") - 1
        nearest[here] = mine[np.maximum(place, 0)]
    borrows = nearest < 0
    nearest[borrows] = np.searchsorted(starts, np.flatnonzero(borrows), side="right") - 1
    return nearest, borrows & (nearest >= 0)
