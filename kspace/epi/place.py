"""Echo-planar lines on the grid of the encoded matrix: regridded, turned, and freed of the odd-even phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kspace.epi.directions import Complex, Read
from kspace.epi.entropy import estimate_phase
from kspace.epi.navigators import ShotPhase, group_phases, shot_phase
from kspace.epi.phase import OddEvenPhase, fit_line
from kspace.epi.plan import EpiPlan, Numbers
from kspace.errors import InputError

GHOST = ("auto", "linear", "polynomial", "entropy", "none")
ORDERS = {"auto": 1, "linear": 1, "polynomial": 4}
AGREE = 0.7  # of the navigators of two echo shots: below it they are not of the same object, or encoded differently


@dataclass(frozen=True, eq=False)
class Placed:
    """Lines on the grid.

    Attributes
    ----------
    grid
        Mean of the lines, complex64 ``(kz coil ky kx)``.
    count
        How often each was measured, int32 ``(kz ky)``.
    source
        Where the phase comes from: ``navigators``, ``entropy`` or ``none``.
    phases
        What was corrected between the directions: for each group of navigators, or once, the phase of each group of coils.
    shots
        Phases between shots, one for each group of navigators, corrected where `AGREE` allows; empty where there is but
        one shot, or the scan is 3-D.
    """

    grid: Complex
    count: NDArray[np.int32]
    source: str
    phases: tuple[tuple[OddEvenPhase, ...], ...]
    shots: tuple[ShotPhase, ...] = ()

    @property
    def is_in_phase(self) -> bool:
        """Whether the phases between shots could be corrected."""
        return all(shot.agreement >= AGREE for shot in self.shots)

    @property
    def differs(self) -> bool:
        """Whether any phase between the directions is more than the entropy of an image without a ghost leaves open."""
        return any(phase.is_clear(self.grid.shape[-1]) for group in self.phases for phase in group)


@dataclass(frozen=True, eq=False)
class Correction:
    """What the lines of one shot are freed of.

    Attributes
    ----------
    phases
        Between the directions, for each group of coils.
    shot
        Against the other shots.
    """

    phases: tuple[OddEvenPhase, ...]
    shot: ShotPhase = field(default_factory=ShotPhase)


def place_lines(
    plan: EpiPlan,
    numbers: Numbers,
    kz: Numbers,
    ky: Numbers,
    shape: tuple[int, int, int],
    read: Read,
    ghost: str,
    source: str,
    coil_groups: Sequence[Numbers] | None = None,
) -> Placed:
    """Bring the lines `numbers` of an image to the grid.

    Parameters
    ----------
    plan
        Of the encoding.
    numbers
        Of the readouts.
    kz, ky
        Rows of all readouts of the file.
    shape
        ``(n_kz, n_coils, n_ky)``.
    read
        Yields number and samples ``(coil sample)`` of readouts in ascending order.
    ghost
        What is done about the odd-even phase, of `GHOST`: navigators, a line or a polynomial fitted to their phase; the image's
        entropy; auto is linear, and entropy where there are no navigators; none.
    source
        Name of the file, for messages.
    coil_groups
        Numbers of the coils of each group, together all coils: those of one coil array. None: one group.

    Raises
    ------
    InputError
        If there are no navigators although they are asked for.
    """
    coils = [np.arange(shape[1])] if coil_groups is None else list(coil_groups)
    both = len(np.unique(plan.is_reversed[numbers])) > 1  # one direction alone has no ghost
    found = _from_navigators(plan, numbers, read, ORDERS[ghost], coils) if both and ghost in ORDERS else {}
    if len(found) > 1 and shape[0] == 1:  # navigators of partitions may be encoded along kz
        _between_shots(plan, found, int(numbers[np.argmin(np.abs(ky[numbers] - shape[2] // 2))]))
    corrections = {group: correction for group, (correction, _) in found.items()}
    in_phase = all(one.shot.agreement >= AGREE for one in corrections.values())
    if both and not corrections and ghost in ("linear", "polynomial"):
        raise InputError("no phase correction navigators", source, f"leave --ghost {ghost} out")
    entropy = both and not corrections and ghost != "none"
    matrices: dict[tuple[int, bool], list[NDArray[np.complex64]]] = {}
    plain = Correction((OddEvenPhase(),) * len(coils))
    halves = np.zeros((2 if entropy else 1, *shape, plan.n), np.complex64)
    count = np.zeros((shape[0], shape[2]), np.int32)
    for number, samples in read(numbers):
        back, group = bool(plan.is_reversed[number]), int(plan.group[number]) if corrections else -1
        if (group, back) not in matrices:
            one = corrections.get(group, plain)
            shot = one.shot if in_phase else None
            matrices[group, back] = [corrected(plan.readouts[back].matrix, p, back, shot) for p in one.phases]
        z, y = kz[number], ky[number]
        for members, matrix in zip(coils, matrices[group, back], strict=True):
            halves[int(back and entropy), z, members, y] += samples[members, plan.kept[back]] @ matrix.T
        count[z, y] += 1
    halves /= np.maximum(count, 1)[:, None, :, None]
    if not entropy:
        phases = tuple(one.phases for one in corrections.values())
        shots = tuple(one.shot for one in corrections.values()) if len(corrections) > 1 and shape[0] == 1 else ()
        return Placed(halves[0], count, "navigators" if corrections else "none", phases, shots)
    grid, phase = by_entropy(halves)
    return Placed(grid, count, "entropy", ((phase,),))


def corrected(
    matrix: NDArray[np.complex128], phase: OddEvenPhase, is_reversed: bool, shot: ShotPhase | None = None
) -> NDArray[np.complex64]:
    """A regridding matrix ``(n, n_samples)`` followed by the correction of `phase` and that of the `shot` in image space."""
    factor = phase.correction(len(matrix), is_reversed)
    if shot is not None:
        factor = factor * shot.correction(len(matrix))
    return _fft(factor[:, None] * _ifft(matrix, 0), 0).astype(np.complex64)


def _from_navigators(
    plan: EpiPlan, numbers: Numbers, read: Read, order: int, coils: Sequence[Numbers]
) -> dict[int, tuple[Correction, Complex]]:
    """For each group of navigators that the lines need: the phases between directions, and the navigators without them,
    ``(navigator coil x)``. Nothing where one of the groups has none."""
    found: dict[int, tuple[Correction, Complex]] = {}
    for group in np.unique(plan.group[numbers]):
        members = plan.navigators[group] if group >= 0 else np.empty(0, np.int64)
        lines = []
        for number, samples in read(members):
            back = bool(plan.is_reversed[number])
            lines.append(_ifft(samples[:, plan.kept[back]] @ plan.readouts[back].matrix.T, 1))
        phases = group_phases(np.stack(lines), plan.is_reversed[members], coils, order) if lines else None
        if phases is None:
            return {}
        free = np.stack(lines)
        for some, phase in zip(coils, phases, strict=True):
            for line, number in zip(free, members, strict=True):
                line[some] *= phase.correction(plan.n, bool(plan.is_reversed[number]))
        found[int(group)] = Correction(phases), free
    return found


def _between_shots(plan: EpiPlan, found: dict[int, tuple[Correction, Complex]], central: int) -> None:
    """Fill in the phase of each shot against that of the readout number `central`."""
    reference = found[int(plan.group[central])][1]
    for group, (correction, free) in found.items():
        found[group] = replace(correction, shot=shot_phase(reference, free)), free


def by_entropy(halves: Complex) -> tuple[Complex, OddEvenPhase]:
    """The grid of forward and reversed lines, complex64 ``(2 kz coil ky kx)``, with the phase between them estimated and taken
    out: complex64 ``(kz coil ky kx)``, and the phase; see `estimate_phase`."""
    columns = _ifft(halves, -1)
    images = _ifft(_ifft(columns, -2), 1)
    coils = images.reshape(2, -1, *images.shape[-2:])
    phase = estimate_phase(coils[0], coils[1])
    n = halves.shape[-1]
    whole = sum(columns[back] * phase.correction(n, bool(back)) for back in (0, 1))
    return _fft(whole, -1).astype(np.complex64), phase


def _ifft(a: NDArray[np.complexfloating], axis: int) -> NDArray[np.complexfloating]:
    import torch  # here: `recon info` reads scans without it

    from kspace.fourier import ifft

    return ifft(torch.from_numpy(np.ascontiguousarray(a)), (axis,)).numpy()


def _fft(a: NDArray[np.complexfloating], axis: int) -> NDArray[np.complexfloating]:
    import torch

    from kspace.fourier import fft

    return fft(torch.from_numpy(np.ascontiguousarray(a)), (axis,)).numpy()


def is_delayed(plan: EpiPlan, numbers: Numbers, read: Read) -> bool:
    """Whether the readouts lie where the header's delay puts them, and not in the middle of their gradient.

    Forward and reversed readouts (navigators, or else neighbouring lines) coincide for the right one: the phase between them
    along the readout is the flatter one.
    """
    if plan.delayed is None:
        return False
    first = int(plan.group[numbers[0]])
    both = list(read(plan.navigators[first] if first >= 0 else numbers))
    slopes = []
    for readouts in (plan.readouts, plan.delayed):
        lines = []
        for number, samples in both:
            back = bool(plan.is_reversed[number])
            lines.append((back, _ifft(samples[:, plan.kept[back]] @ readouts[back].matrix.T, 1)))
        cross = np.zeros(plan.n, np.complex128)
        for (back, one), (turned, other) in pairwise(lines):
            product = np.sum(one * np.conj(other), axis=0)
            cross += 0 if back == turned else np.conj(product) if back else product
        slopes.append(abs(fit_line(cross)[1]))
    return slopes[1] < slopes[0]


def coil_groups(names: Sequence[str], n_coils: int) -> list[Numbers]:
    """Numbers of the coils of each coil array, from names such as ``Head_32:1:H3`` (array, copy, element); else one group."""
    arrays = [name.rpartition(":")[0] for name in names] if len(names) == n_coils else [""] * n_coils
    return [np.flatnonzero([array == one for array in arrays]) for one in dict.fromkeys(arrays)]


def count_shots(rows: Numbers) -> int:
    """Number of echo trains that acquired the lines at `rows` ``(line,)`` in this order: ky turns back between two of them."""
    steps = np.sign(np.diff(rows))
    if not steps.any():
        return 1
    usual = 1 if np.sum(steps) >= 0 else -1
    return 1 + int(np.count_nonzero(steps == -usual))
