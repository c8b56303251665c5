"""Prescribing a scan: which readouts are acquired, in which order, and what their headers say.

`cartesian` prescribes a plain scan; the functions ``Acquisition -> Acquisition`` change it (`accelerate`, `reverse_readouts`,
...) by editing acquisition headers only, and are meant to be chained. `kspace.simulation.measurement` then measures what the
headers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kspace.container import Geometry, Matrix, Vector
from kspace.epi.phase import OddEvenPhase
from kspace.epi.trapezoid import Trapezoid
from kspace.io.mrd.flags import CALIBRATION, CALIBRATION_AND_IMAGING, LAST, NOISE, REVERSE, flag
from kspace.io.mrd.write import Space, new_acquisition_headers
from kspace.simulation.phantom import AnalyticCoils, Phantom

Rows = NDArray[np.intp]
COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")
GEOMETRY = ("position", "read_dir", "phase_dir", "slice_dir")


@dataclass(frozen=True)
class ScanProtocol:
    """What a person prescribes at the scanner.

    Attributes
    ----------
    matrix
        Points ``(x, y, z)`` of the image before oversampling; z above 1 is a 3-D scan.
    fov_m
        Field of view ``(x, y, z)``; z is the slice thickness of a 2-D scan (whose sections are infinitely thin).
    readout_oversampling, phase_oversampling
        Factors by which the encoded field of view and matrix exceed them along x and y.
    recon_matrix
        Points of the image to deliver over the same field of view; `matrix` where None.
    geometry
        Position of voxel ``n // 2`` (of the centre of the stack, where there are several slices) and directions.
    n_slices, slice_spacing_m
        Number of slices, and distance of their centres.
    dwell_s
        Time between samples.
    """

    matrix: Matrix = (64, 64, 1)
    fov_m: Vector = (0.24, 0.24, 0.005)
    readout_oversampling: float = 2.0
    phase_oversampling: float = 1.0
    recon_matrix: Matrix | None = None
    geometry: Geometry = field(default_factory=Geometry)
    n_slices: int = 1
    slice_spacing_m: float = 0.01
    dwell_s: float = 5e-6


@dataclass(frozen=True, eq=False)
class Acquisition:
    """A scan: what was acquired, of what, with what.

    Attributes
    ----------
    phantom, coils
        Three-dimensional, in patient coordinates (LPS, metres).
    covariance
        Complex ``(coil, coil)``: E n n^H of a sample with dwell time `dwell_s`; variance is inversely proportional to dwell.
    headers
        Acquisition headers in the order of acquisition, `kspace.io.mrd.write.HEAD_DTYPE`.
    gain
        ``(readout,)``: factor of the signal in each readout (contrasts, scaled calibration lines, empty
        slices).
    spaces
        Encoding spaces as the file's header describes them; their limits are filled in by `write_scan` where `limits` is True.
    centres
        For each encoding, the counters ``(kspace_encode_step_1, kspace_encode_step_2)`` that truly are the centre of k-space.
    limits
        Whether `write_scan` states the limits of the counters; where False those in `spaces` stand as they are.
    noise_bandwidth
        ``relativeReceiverNoiseBandwidth``: a noise scan sees this part of the variance; None leaves it out of the header (1).
    sections
        Further header elements, see `kspace.io.mrd.write.header_xml`.
    lobe, odd_even_phase, is_reversed
        Of an echo-planar scan: its readout gradient, the phase between its directions, and which readouts ``(readout,)`` are
        reversed, whatever their flags say; see `kspace.simulation.echo_planar`.
    """

    phantom: Phantom
    coils: AnalyticCoils
    covariance: NDArray[np.complex128]
    dwell_s: float
    headers: NDArray[np.void]
    gain: NDArray[np.float64]
    spaces: tuple[Space, ...]
    centres: tuple[tuple[int, int], ...]
    limits: bool = True
    noise_bandwidth: float | None = 0.79
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    lobe: Trapezoid | None = None
    odd_even_phase: OddEvenPhase = field(default_factory=OddEvenPhase)
    is_reversed: NDArray[np.bool_] | None = None

    @property
    def imaging(self) -> NDArray[np.bool_]:
        """Which readouts carry lines of the image or of its calibration."""
        return (self.headers["flags"] & ~(REVERSE | CALIBRATION | CALIBRATION_AND_IMAGING | LAST)) == 0


def cartesian(
    protocol: ScanProtocol, phantom: Phantom, coils: AnalyticCoils, covariance: NDArray[np.complex128] | None = None
) -> Acquisition:
    """A fully sampled Cartesian scan, lines from first to last, slice after slice.

    `covariance` is that of the noise, complex128 ``(coil coil)``; None: no noise.
    """
    nx, ny, nz = protocol.matrix
    encoded = (round(nx * protocol.readout_oversampling), round(ny * protocol.phase_oversampling), nz)
    fov = protocol.fov_m
    space = Space(
        encoded_matrix=encoded,
        recon_matrix=protocol.recon_matrix or protocol.matrix,
        encoded_fov_m=(fov[0] * encoded[0] / nx, fov[1] * encoded[1] / ny, fov[2]),
        recon_fov_m=fov,
    )
    g = protocol.geometry
    slices = []
    for s in range(protocol.n_slices):
        offset = (s - (protocol.n_slices - 1) / 2) * protocol.slice_spacing_m
        headers = new_acquisition_headers(
            encoded[1] * nz,
            coils.n_coils,
            encoded[0],
            dwell_s=protocol.dwell_s,
            position_m=np.add(g.position_m, offset * np.asarray(g.slice_dir)).tolist(),
            read_dir=g.read_dir,
            phase_dir=g.phase_dir,
            slice_dir=g.slice_dir,
        )
        headers["patient_table_position"] = np.asarray(g.table_position_m) * 1e3
        headers["idx"]["kspace_encode_step_1"] = np.tile(np.arange(encoded[1]), nz)
        headers["idx"]["kspace_encode_step_2"] = np.repeat(np.arange(nz), encoded[1])
        headers["idx"]["slice"] = s
        slices.append(headers)
    headers = np.concatenate(slices)
    silent = np.zeros((coils.n_coils, coils.n_coils), np.complex128)
    return Acquisition(
        phantom=phantom,
        coils=coils,
        covariance=silent if covariance is None else covariance,
        dwell_s=protocol.dwell_s,
        headers=headers,
        gain=np.ones(len(headers)),
        spaces=(space,),
        centres=((encoded[1] // 2, nz // 2),),
    )


def coil_covariance(n_coils: int, std: float, seed: int = 0) -> NDArray[np.complex128]:
    """A noise covariance such as coil arrays have: levels that differ by up to a factor 2, correlations of neighbours.

    Complex ``(coil, coil)``, Hermitian, positive definite; the mean variance is ``std ** 2``.
    """
    rng = np.random.default_rng(seed)
    mixing = np.eye(n_coils) + 0.25 * np.roll(np.eye(n_coils), 1, 0) * np.exp(2j * np.pi * rng.random(n_coils))
    mixing = mixing * rng.uniform(0.7, 1.4, n_coils)[:, None]
    covariance = mixing @ mixing.conj().T
    return np.asarray(covariance * (std**2 * n_coils / np.trace(covariance).real))


def accelerate(
    scan: Acquisition,
    factor: int,
    factor_z: int = 1,
    calibration: int = 0,
    mode: str | None = "embedded",
    calibration_gain: float = 1.0,
) -> Acquisition:
    """Keep every `factor`-th line (and every `factor_z`-th partition), counted from the centre.

    Parameters
    ----------
    factor, factor_z
        Acceleration along ky and kz.
    calibration
        Number of lines (and of partitions, in 3-D) around the centre that are acquired in full.
    mode
        The header's ``calibrationMode``. ``embedded``: calibration lines belong to the image, those off the grid with flag 20,
        those on it with flag 21. ``separate``: they come first, with flag 20, `calibration_gain` times the signal.
        ``interleaved``: repetition r is shifted by r lines. None: nothing stands in the header.
    """
    y, z = _from_centre(scan)
    shift = scan.headers["idx"]["repetition"].astype(int) if mode == "interleaved" else 0
    grid = ((y - shift) % factor == 0) & (z % factor_z == 0)
    half = calibration // 2
    deep = np.array([space.encoded_matrix[2] > 1 for space in scan.spaces])[scan.headers["encoding_space_ref"]]
    centre = (-half <= y) & (y < calibration - half) & (~deep | ((-half <= z) & (z < calibration - half)))
    others = ~scan.imaging
    marked = _copy(scan)
    if mode == "separate":
        lines = _take(scan, np.flatnonzero(centre & ~others))
        lines.headers["flags"] |= CALIBRATION
        marked = _concatenate(replace(lines, gain=lines.gain * calibration_gain), _take(scan, np.flatnonzero(grid | others)))
    else:
        marked.headers["flags"][centre & ~grid & ~others] |= CALIBRATION
        marked.headers["flags"][centre & grid & ~others] |= CALIBRATION_AND_IMAGING
        marked = _take(marked, np.flatnonzero(grid | centre | others))
    factors = (factor, factor_z)
    return replace(marked, spaces=tuple(replace(s, acceleration=factors, calibration_mode=mode) for s in scan.spaces))


def partial_fourier(
    scan: Acquisition, lines: tuple[int, int] | None = None, partitions: tuple[int, int] | None = None, rebase: bool = False
) -> Acquisition:
    """Keep the lines and partitions whose counters lie in the half-open ranges.

    With `rebase` the counters start again from 0, as scanners write them; the centre of k-space then has a lower counter.
    """
    e1, e2 = (scan.headers["idx"][f"kspace_encode_step_{i}"].astype(int) for i in (1, 2))
    y0, y1 = lines or (0, 65536)
    z0, z1 = partitions or (0, 65536)
    kept = _take(scan, np.flatnonzero(~scan.imaging | ((y0 <= e1) & (e1 < y1) & (z0 <= e2) & (e2 < z1))))
    if not rebase:
        return kept
    imaging = kept.imaging
    kept.headers["idx"]["kspace_encode_step_1"][imaging] -= np.uint16(y0)
    kept.headers["idx"]["kspace_encode_step_2"][imaging] -= np.uint16(z0)
    return replace(kept, centres=tuple((y - y0, z - z0) for y, z in scan.centres))


def asymmetric_echo(scan: Acquisition, missing: int) -> Acquisition:
    """Leave out the first `missing` samples of every line: the echo comes earlier in the readout."""
    cut = _copy(scan)
    imaging = cut.imaging
    cut.headers["number_of_samples"][imaging] -= np.uint16(missing)
    cut.headers["center_sample"][imaging] -= np.uint16(missing)
    return cut


def discard(scan: Acquisition, pre: int, post: int) -> Acquisition:
    """Mark the first `pre` and last `post` samples of every line as to be discarded; they will hold garbage."""
    marked = _copy(scan)
    marked.headers["discard_pre"][marked.imaging] = pre
    marked.headers["discard_post"][marked.imaging] = post
    return marked


def reverse_readouts(scan: Acquisition, every: int = 2) -> Acquisition:
    """Acquire every `every`-th line (of odd counter, by default) from right to left.

    `center_sample` is the index, in the samples as they are stored, of the one on the centre of k-space; so it changes too,
    and so do the numbers of samples to discard.
    """
    reversed_scan = _copy(scan)
    rows = reversed_scan.imaging & (reversed_scan.headers["idx"]["kspace_encode_step_1"] % every == every - 1)
    part = reversed_scan.headers[rows]
    part["flags"] |= REVERSE
    part["center_sample"] = part["number_of_samples"] - 1 - part["center_sample"]
    part["discard_pre"], part["discard_post"] = part["discard_post"].copy(), part["discard_pre"].copy()
    reversed_scan.headers[rows] = part
    return reversed_scan


def repeat(scan: Acquisition, counter: str, gains: Sequence[float]) -> Acquisition:
    """Acquire everything once for each of `gains`, one after the other, told apart by `counter`.

    `counter` is ``average``, ``contrast``, ``phase``, ``repetition`` or ``set``; `gains` are the factors of the signal.
    """
    copies = []
    for i, gain in enumerate(gains):
        copy = _copy(scan)
        copy.headers["idx"][counter] = i
        copies.append(replace(copy, gain=copy.gain * gain))
    return _concatenate(*copies)


def interleave_slices(scan: Acquisition) -> Acquisition:
    """Acquire line by line, in each of them first the even and then the odd slices."""
    slices = scan.headers["idx"]["slice"].astype(int)
    place = np.where(slices % 2 == 0, slices, slices + 65536)
    lines = scan.headers["idx"]["kspace_encode_step_1"].astype(int)
    return _take(scan, np.lexsort((place, lines)))


def add_lines(scan: Acquisition, name: str, n: int = 3, gain: float = 10.0) -> Acquisition:
    """Acquire `n` lines that are not part of the image before the others and `n` in their midst, flagged ``ACQ_IS_<name>``.

    They hold the centre of k-space times `gain`: an image that contains them cannot pass a test.
    """
    lines = _take(scan, np.flatnonzero(scan.imaging)[np.zeros(n, int)])
    lines.headers["flags"] = flag(f"IS_{name}")
    lines.headers["idx"]["kspace_encode_step_1"], lines.headers["idx"]["kspace_encode_step_2"] = scan.centres[0]
    lines = replace(lines, gain=np.full(n, gain))
    half = len(scan.headers) // 2
    rest = np.arange(len(scan.headers))
    return _concatenate(lines, _take(scan, rest[:half]), lines, _take(scan, rest[half:]))


def add_noise_scan(scan: Acquisition, n_readouts: int = 32, n_samples: int = 128, dwell_s: float = 2e-5) -> Acquisition:
    """Acquire a noise scan first, with its own length and dwell time."""
    first = scan.headers[0]
    headers = new_acquisition_headers(n_readouts, scan.coils.n_coils, n_samples, center_sample=0, dwell_s=dwell_s)
    headers["flags"] = NOISE
    for name in GEOMETRY:
        headers[name] = first[name]
    return _concatenate(replace(scan, headers=headers, gain=np.zeros(n_readouts)), scan)


def state_centre_in_user_counters(scan: Acquisition) -> Acquisition:
    """Write the true centre of k-space to ``idx.user[5]`` and ``idx.user[6]`` of every line, as Siemens does."""
    stated = _copy(scan)
    centres = np.array(scan.centres)[stated.headers["encoding_space_ref"]]
    stated.headers["idx"]["user"][..., 5:7] = np.where(stated.imaging[:, None], centres, 0)
    return stated


def fix_limits(scan: Acquisition, limits: Mapping[str, tuple[int, int, int]] | None) -> Acquisition:
    """Let the header state these counter limits for every encoding, true or not; None: no ``encodingLimits`` at all."""
    return replace(scan, limits=False, spaces=tuple(replace(space, limits=limits) for space in scan.spaces))


def abort(scan: Acquisition, n: int) -> Acquisition:
    """End after `n` readouts. The header was written before and still promises all of them."""
    promised = replace(scan, limits=False, spaces=with_limits(scan))
    return _take(promised, np.arange(n))


def kill_coil(scan: Acquisition, coil: int, level: float = 1e-5) -> Acquisition:
    """Disconnect a coil: it hears nothing but electronic noise, `level` times the standard deviation it had."""
    weights = scan.coils.coefficients.copy()
    weights[coil] = 0
    covariance = scan.covariance.copy()
    variance = covariance[coil, coil] * level**2
    covariance[coil, :] = covariance[:, coil] = 0
    covariance[coil, coil] = variance
    return replace(scan, coils=AnalyticCoils(scan.coils.frequencies, weights), covariance=covariance)


def empty_slice(scan: Acquisition, index: int) -> Acquisition:
    """Let slice `index` show nothing but noise."""
    return replace(scan, gain=np.where(scan.headers["idx"]["slice"] == index, 0.0, scan.gain))


def join(first: Acquisition, *others: Acquisition) -> Acquisition:
    """One measurement of several encodings: the others' readouts follow those of the first, of the same phantom and coils.

    Raises
    ------
    ValueError
        If they were prescribed for another phantom or other coils.
    """
    if any(other.phantom is not first.phantom or other.coils is not first.coils for other in others):
        raise ValueError("only scans of the same phantom with the same coils can be joined")
    parts, spaces, centres = [_copy(first)], first.spaces, first.centres
    for other in others:
        copy = _copy(other)
        copy.headers["encoding_space_ref"] += np.uint16(len(spaces))
        parts.append(copy)
        spaces, centres = spaces + other.spaces, centres + other.centres
    return replace(_concatenate(*parts), spaces=spaces, centres=centres)


def mark_last(scan: Acquisition) -> Acquisition:
    """Flag the last line of every image, of every repetition and of the measurement, as scanners (mostly) do."""
    marked = _copy(scan)
    idx, imaging = marked.headers["idx"], np.flatnonzero(marked.imaging)
    keys = np.stack([marked.headers["encoding_space_ref"], *(idx[c] for c in COUNTERS if c != "average")], -1)[imaging]
    for columns, name in ((slice(None), "LAST_IN_SLICE"), ([0, 4], "LAST_IN_REPETITION"), ([], "LAST_IN_MEASUREMENT")):
        chosen = keys[:, columns].tolist()
        last = {tuple(key): row for key, row in zip(chosen, imaging, strict=True)}
        marked.headers["flags"][list(last.values())] |= flag(name)
    return marked


def with_limits(scan: Acquisition) -> tuple[Space, ...]:
    """The scan's encoding spaces, with the limits of the counters that its readouts reach and their true centres."""
    names = {"kspace_encode_step_1": "kspace_encoding_step_1", "kspace_encode_step_2": "kspace_encoding_step_2"}
    spaces = []
    for i, (space, centre) in enumerate(zip(scan.spaces, scan.centres, strict=True)):
        idx = scan.headers["idx"][scan.imaging & (scan.headers["encoding_space_ref"] == i)]
        centres = dict(zip(names, centre, strict=True))
        limits = {
            names.get(name, name): (int(idx[name].min()), int(idx[name].max()), centres.get(name, 0))
            for name in (*names, *COUNTERS)
        }
        spaces.append(replace(space, limits=limits))
    return tuple(spaces)


def _from_centre(scan: Acquisition) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    centres = np.array(scan.centres)[scan.headers["encoding_space_ref"]]
    y, z = (scan.headers["idx"][f"kspace_encode_step_{i + 1}"].astype(np.int64) - centres[:, i] for i in (0, 1))
    return y, z


def _copy(scan: Acquisition) -> Acquisition:
    return replace(scan, headers=scan.headers.copy(), gain=scan.gain.copy())


def _take(scan: Acquisition, rows: Rows) -> Acquisition:
    return replace(scan, headers=scan.headers[rows].copy(), gain=scan.gain[rows].copy())


def _concatenate(*scans: Acquisition) -> Acquisition:
    headers = np.concatenate([scan.headers for scan in scans])
    return replace(scans[0], headers=headers, gain=np.concatenate([scan.gain for scan in scans]))
