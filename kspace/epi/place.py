"""Echo-planar lines on the grid of the encoded matrix: regridded, turned, and freed of the odd-even phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kspace.epi.entropy import estimate_phase
from kspace.epi.navigators import navigator_phase
from kspace.epi.phase import OddEvenPhase
from kspace.epi.plan import EpiPlan, Numbers
from kspace.errors import InputError

GHOST = ("auto", "linear", "polynomial", "entropy", "none")
ORDERS = {"auto": 1, "linear": 1, "polynomial": 4}
Complex = NDArray[np.complex64]
Read = Callable[[Numbers], Iterable[tuple[int, Complex]]]


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
        What was corrected, one for each group of navigators, or one.
    """

    grid: Complex
    count: NDArray[np.int32]
    source: str
    phases: tuple[OddEvenPhase, ...]


def place_lines(
    plan: EpiPlan, numbers: Numbers, kz: Numbers, ky: Numbers, shape: tuple[int, int, int], read: Read, ghost: str, source: str
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

    Raises
    ------
    InputError
        If there are no navigators although they are asked for, or they cannot be used.
    """
    both = len(np.unique(plan.is_reversed[numbers])) > 1  # one direction alone has no ghost
    phases = _from_navigators(plan, numbers, read, ORDERS[ghost], source) if both and ghost in ORDERS else {}
    if both and not phases and ghost in ("linear", "polynomial"):
        raise InputError("no phase correction navigators", source, f"leave --ghost {ghost} out")
    entropy = both and not phases and ghost != "none"
    matrices: dict[tuple[int, bool], NDArray[np.complex64]] = {}
    halves = np.zeros((2 if entropy else 1, *shape, plan.n), np.complex64)
    count = np.zeros((shape[0], shape[2]), np.int32)
    for number, samples in read(numbers):
        back, group = bool(plan.is_reversed[number]), int(plan.group[number]) if phases else -1
        if (group, back) not in matrices:
            matrices[group, back] = corrected(plan.readouts[back].matrix, phases.get(group, OddEvenPhase()), back)
        z, y = kz[number], ky[number]
        halves[int(back and entropy), z, :, y] += samples[:, plan.kept[back]] @ matrices[group, back].T
        count[z, y] += 1
    halves /= np.maximum(count, 1)[:, None, :, None]
    if not entropy:
        return Placed(halves[0], count, "navigators" if phases else "none", tuple(phases.values()))
    grid, phase = _by_entropy(halves)
    return Placed(grid, count, "entropy", (phase,))


def corrected(matrix: NDArray[np.complex128], phase: OddEvenPhase, is_reversed: bool) -> NDArray[np.complex64]:
    """A regridding matrix ``(n, n_samples)`` followed by the correction of `phase` in image space."""
    factor = phase.correction(len(matrix), is_reversed)
    return _fft(factor[:, None] * _ifft(matrix, 0), 0).astype(np.complex64)


def _from_navigators(plan: EpiPlan, numbers: Numbers, read: Read, order: int, source: str) -> dict[int, OddEvenPhase]:
    """Phase of each group of navigators that the lines need; nothing where one of them has none."""
    found: dict[int, OddEvenPhase] = {}
    for group in np.unique(plan.group[numbers]):
        members = plan.navigators[group] if group >= 0 else np.empty(0, np.int64)
        lines = []
        for number, samples in read(members):
            if samples.shape[1] != plan.n_samples:
                raise InputError(
                    f"navigator readout {number} has {samples.shape[1]} samples, the lines of the image {plan.n_samples}",
                    source,
                    "convert the scan again, or give --ghost entropy",
                )
            back = bool(plan.is_reversed[number])
            lines.append(_ifft(samples[:, plan.kept[back]] @ plan.readouts[back].matrix.T, 1))
        phase = navigator_phase(np.stack(lines), plan.is_reversed[members], order) if lines else None
        if phase is None:
            return {}
        found[int(group)] = phase
    return found


def _by_entropy(halves: Complex) -> tuple[Complex, OddEvenPhase]:
    """The grid of forward and reversed lines ``(2 kz coil ky kx)`` with the phase between them estimated and taken out."""
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


def alternates(plan: EpiPlan, numbers: Numbers, read: Read) -> bool:
    """Whether lines that follow each other in time are more alike when every second one is turned around.

    For scans that mark no readout as reversed: either none is (fly-back), or the marks are missing.
    """
    same = turned = 0.0
    before: Complex | None = None
    for _, samples in read(numbers):
        if before is not None:
            same += _likeness(before, samples)
            turned += _likeness(before, samples[:, ::-1])
        before = samples
    return turned > same


def _likeness(a: Complex, b: Complex) -> float:
    """Largest magnitude of the cross-correlation along the readout, coils together."""
    import torch

    from kspace.fourier import fft_corner, ifft_corner

    of_a, of_b = (fft_corner(torch.from_numpy(np.ascontiguousarray(x)), (-1,)) for x in (a, b))
    return float(ifft_corner(of_a * of_b.conj(), (-1,)).sum(0).abs().max()) * a.shape[-1] ** 0.5
