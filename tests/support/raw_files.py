"""Small raw files whose truth is known analytically, and ways to damage them. One builder per kind of acquisition.

A builder returns a `Case`: the file, and the `Acquisition` it was made from, whose `true_image` and `true_maps` are the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from kspace.container import Geometry
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    abort,
    accelerate,
    add_lines,
    add_noise_scan,
    asymmetric_echo,
    cartesian,
    coil_covariance,
    discard,
    empty_slice,
    fix_limits,
    interleave_slices,
    join,
    kill_coil,
    mark_last,
    partial_fourier,
    repeat,
    reverse_readouts,
    state_centre_in_user_counters,
)
from kspace.simulation.measurement import true_image, true_maps, write_scan
from kspace.simulation.phantom import AnalyticCoils, Phantom, ellipsoid, head_coils

# Three directions that are neither axial nor orthogonal to any axis of the patient, right-handed.
OBLIQUE = np.linalg.qr(np.array([[1, 0.2, 0.15], [-0.3, 1, 0.2], [0.1, -0.35, 1]]).T)[0].T
OBLIQUE *= np.sign(np.diag(OBLIQUE))[:, None]
# Rows are read, phase and slice direction: nearly axial, nearly sagittal, nearly coronal (its slice direction to the back).
ORIENTATIONS = {"axial": OBLIQUE, "sagittal": OBLIQUE[[1, 2, 0]], "coronal": OBLIQUE[[2, 0, 1]]}


@dataclass(frozen=True, eq=False)
class Case:
    """A raw file and what it was made from."""

    path: Path
    scan: Acquisition

    def image(self, **which: int) -> np.ndarray:
        """True image, complex ``(z, y, x)``, of unit sensitivity; `which` as in `kspace.simulation.measurement.true_image`."""
        return true_image(self.scan, **which)[0]

    def coil_images(self, **which: int) -> np.ndarray:
        """True coil images, complex ``(coil, z, y, x)``."""
        return true_image(self.scan, self.scan.coils, **which)

    def maps(self, **which: int) -> np.ndarray:
        """True sensitivities, complex ``(coil, z, y, x)``."""
        return true_maps(self.scan, **which)

    def geometry(self, **which: int) -> Geometry:
        """Position and directions in the headers of an image's readouts."""
        headers = self.scan.headers[self.scan.imaging]
        for name, value in which.items():
            headers = headers[(headers["encoding_space_ref"] if name == "encoding" else headers["idx"][name]) == value]
        vectors = {name: tuple(headers[0][name].astype(float).tolist()) for name in ("read_dir", "phase_dir", "slice_dir")}
        return Geometry(position_m=tuple((headers[0]["position"].astype(float) * 1e-3).tolist()), **vectors)

    def points(self, **which: int) -> np.ndarray:
        """Patient coordinates (LPS, metres) of every voxel of an image, ``(3, z, y, x)``, from the headers."""
        g, space = self.geometry(**which), self.scan.spaces[which.get("encoding", 0)]
        steps = [(np.arange(n) - n // 2) * fov / n for n, fov in zip(space.recon_matrix, space.recon_fov_m, strict=True)]
        z, y, x = np.meshgrid(*steps[::-1], indexing="ij")
        axes = np.array([g.read_dir, g.phase_dir, g.slice_dir])
        return np.asarray(g.position_m)[:, None, None, None] + np.einsum("ad,azyx->dzyx", axes, np.stack([x, y, z]))


def asymmetric_phantom(scale: float = 1.0) -> Phantom:
    """An ellipsoid with a bright and a dark ellipsoid inside: no mirroring or exchange of axes maps it onto itself."""
    return Phantom(
        (
            ellipsoid((0.0, 0.0, 0.0), (0.06 * scale, 0.08 * scale, 0.07 * scale), 10),
            ellipsoid((0.025 * scale, -0.03 * scale, 0.015 * scale), (0.012 * scale, 0.015 * scale, 0.02 * scale), 0, 1.0),
            ellipsoid((-0.02 * scale, 0.035 * scale, -0.01 * scale), (0.02 * scale, 0.01 * scale, 0.02 * scale), 30, -0.6),
        )
    )


def plain(
    n_coils: int = 4, noise: float = 0.0, phantom: Phantom | None = None, coils: AnalyticCoils | None = None, **protocol: object
) -> Acquisition:
    """A fully sampled 2-D scan; `protocol`: fields of `kspace.simulation.acquisition.ScanProtocol`, matrix 32x30 by default."""
    chosen = ScanProtocol(**{"matrix": (32, 30, 1), "fov_m": (0.2, 0.2, 0.005), **protocol})  # type: ignore[arg-type]
    covariance = coil_covariance(n_coils, noise) if noise else None
    return cartesian(chosen, phantom or asymmetric_phantom(), coils or head_coils(n_coils), covariance)


def save(scan: Acquisition, path: Path, seed: int = 0) -> Case:
    """Write the file and keep its truth."""
    write_scan(scan, path, seed)
    return Case(path, scan)


# -- the eleven kinds of acquisition ---------------------------------------------------------------------------------


def simple(path: Path, **options: object) -> Case:
    """Fully sampled, noiseless, twofold readout oversampling."""
    return save(mark_last(plain(**options)), path)  # type: ignore[arg-type]


def noisy(path: Path, noise: float = 0.05, n_readouts: int = 800, **options: object) -> Case:
    """1: a noise scan of known covariance, with other dwell time and length than the image, and a noise bandwidth."""
    scan = plain(noise=noise, **options)  # type: ignore[arg-type]
    return save(add_noise_scan(scan, n_readouts, n_samples=128, dwell_s=2e-5), path)


def oversampled(path: Path) -> Case:
    """2: oversampling of both axes, and an image matrix larger than the encoded one."""
    return save(plain(matrix=(32, 24, 1), phase_oversampling=1.5, recon_matrix=(48, 48, 1)), path)


def asymmetric(path: Path, missing: int = 10) -> Case:
    """3: the first samples are missing, so `center_sample` is not the middle; the data are complete up to that."""
    return save(asymmetric_echo(plain(), missing), path)


def discarding(path: Path) -> Case:
    """3: samples at both ends that hold garbage and are to be discarded."""
    return save(discard(plain(), pre=6, post=4), path)


def reversed_lines(path: Path, missing: int = 0) -> Case:
    """3: every second line is stored backwards (and starts late, where `missing` is positive)."""
    scan = plain()
    return save(reverse_readouts(asymmetric_echo(scan, missing) if missing else scan), path)


def partial(path: Path, rebase: bool = False) -> Case:
    """4: partial Fourier along ky: the first 8 of 30 lines are missing; with `rebase` counters start at 0 again."""
    return save(partial_fourier(plain(), lines=(8, 30), rebase=rebase), path)


def averaged(path: Path, noise: float = 0.05) -> Case:
    """5: three averages, the last of them aborted half way: 15 lines were measured three times, 15 twice."""
    scan = repeat(plain(noise=noise), "average", [1, 1, 1])
    return save(abort(scan, 75), path)


def slices(path: Path, n: int = 5) -> Case:
    """5: slices acquired line by line, even ones first."""
    return save(interleave_slices(plain(n_slices=n, slice_spacing_m=0.012)), path)


def counters(path: Path) -> Case:
    """5: two contrasts, phases, sets and repetitions of two slices, each with a gain of its own: `COUNTER_GAINS`."""
    scan = plain(n_coils=2, n_slices=2)
    for name, gains in COUNTER_GAINS.items():
        scan = repeat(scan, name, gains)
    return save(mark_last(scan), path)


COUNTER_GAINS = {"contrast": [1.0, 0.5], "phase": [1.0, 1.1], "set": [1.0, 0.8], "repetition": [1.0, 1.3]}


def accelerated(path: Path, factor: int = 3, mode: str | None = "embedded", noise: float = 0.0, **options: object) -> Case:
    """6: R = 3 with 10 calibration lines, ``embedded`` or ``separate`` (then of half the signal)."""
    scan = plain(n_coils=8, noise=noise, **options)  # type: ignore[arg-type]
    return save(accelerate(scan, factor, calibration=10, mode=mode, calibration_gain=0.5 if mode == "separate" else 1.0), path)


def uncalibrated(path: Path, factor: int = 3) -> Case:
    """6: R = 3 without any calibration lines."""
    return save(accelerate(plain(n_coils=8), factor, mode=None), path)


def interleaved(path: Path, factor: int = 3) -> Case:
    """6: R = 3, each of three repetitions one line further: together they fill k-space."""
    return save(accelerate(repeat(plain(n_coils=8), "repetition", [1.0] * factor), factor, mode="interleaved"), path)


def with_other_lines(path: Path) -> Case:
    """7: navigator, phase correction, dummy, feedback and surface coil lines among those of the image."""
    scan = plain()
    for name in ("NAVIGATION_DATA", "PHASECORR_DATA", "DUMMYSCAN_DATA", "RTFEEDBACK_DATA", "HPFEEDBACK_DATA"):
        scan = add_lines(scan, name)
    return save(add_lines(scan, "SURFACECOILCORRECTIONSCAN_DATA"), path)


def volume(path: Path, oblique: bool = False, noise: float = 0.0, **options: object) -> Case:
    """8: 3-D, all partitions."""
    geometry = oblique_geometry() if oblique else Geometry()
    chosen = {"matrix": (24, 20, 16), "fov_m": (0.2, 0.2, 0.2), "geometry": geometry, **options}
    return save(plain(noise=noise, **chosen), path)  # type: ignore[arg-type]


def accelerated_volume(path: Path) -> Case:
    """6 and 8: 3-D, R = 2x2 with an embedded 8x8 centre, and the last partitions missing (4)."""
    scan = plain(n_coils=8, matrix=(24, 20, 16), fov_m=(0.2, 0.2, 0.2))
    return save(partial_fourier(accelerate(scan, 2, 2, calibration=8), partitions=(0, 13)), path)


def without_limits(path: Path, user: bool = False, rebase: bool = False) -> Case:
    """9: no ``encodingLimits``; with `user` (and partial Fourier, `rebase`) the centre stands in ``idx.user`` only."""
    scan = partial_fourier(plain(), lines=(8, 30), rebase=True) if rebase else plain()
    return save(fix_limits(state_centre_in_user_counters(scan) if user else scan, None), path)


def wrong_limits(path: Path) -> Case:
    """9: the header's centre would place lines outside the matrix; ``idx.user[5]`` has the right one."""
    scan = state_centre_in_user_counters(partial_fourier(plain(), lines=(8, 30), rebase=True))
    return save(fix_limits(scan, {"kspace_encoding_step_1": (0, 21, 40), "kspace_encoding_step_2": (0, 0, 0)}), path)


def odd(path: Path) -> Case:
    """9: matrix sizes that are odd."""
    return save(plain(matrix=(31, 27, 1), readout_oversampling=1.0), path)


def dead_coil(path: Path, coil: int = 2) -> Case:
    """10: one of four coils is disconnected."""
    return save(add_noise_scan(kill_coil(plain(noise=0.02), coil), 400), path)


def with_empty_slice(path: Path, index: int = 1) -> Case:
    """10: one of three slices shows nothing but noise."""
    return save(add_noise_scan(empty_slice(plain(noise=0.02, n_slices=3), index), 400), path)


def aborted(path: Path) -> Case:
    """10: three slices, one after the other, of which the last has 10 of its 30 lines."""
    return save(abort(plain(n_slices=3), 70), path)


def two_encodings(path: Path) -> Case:
    """11: a second encoding of another matrix and field of view."""
    first = plain()
    second = plain(phantom=first.phantom, coils=first.coils, matrix=(24, 24, 1), fov_m=(0.24, 0.24, 0.005))
    return save(join(first, second), path)


def oblique_geometry(
    angles_of: np.ndarray = OBLIQUE, position_m: tuple[float, float, float] = (0.012, -0.02, 0.008)
) -> Geometry:
    """An off-centre geometry with the rows of `angles_of` as read, phase and slice direction."""
    read, phase, normal = (tuple(float(v) for v in row) for row in angles_of)
    return Geometry(position_m, read, phase, normal)  # type: ignore[arg-type]


def oblique(path: Path, directions: np.ndarray = OBLIQUE, **options: object) -> Case:
    """Off-centre and oblique: the phantom stays where it is in the patient."""
    return save(plain(**{"n_slices": 3, "geometry": oblique_geometry(directions), **options}), path)  # type: ignore[arg-type]


# -- what goes wrong -------------------------------------------------------------------------------------------------


def _only_noise(path: Path) -> None:
    scan = add_noise_scan(plain(noise=0.05), 20)
    write_scan(abort(scan, 20), path)


def _edit_rows(path: Path, change: Callable[[np.ndarray], None]) -> None:
    simple(path)
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        change(rows)
        file["dataset/data"][...] = rows


def _edit_xml(path: Path, change: Callable[[str], str]) -> None:
    simple(path)
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = change(file["dataset/xml"][0].decode()).encode()


def _set(field: str, value: int, row: int = 7) -> Callable[[Path], None]:
    def change(rows: np.ndarray) -> None:
        target = rows["head"]["idx"] if field in rows["head"]["idx"].dtype.names else rows["head"]
        target[field][row] = value

    return lambda path: _edit_rows(path, change)


def _sample(value: complex) -> Callable[[Path], None]:
    def change(rows: np.ndarray) -> None:
        rows["data"][5][10:12] = value.real, value.imag

    return lambda path: _edit_rows(path, change)


def _scaled(factor: float) -> Callable[[Path], None]:
    def change(rows: np.ndarray) -> None:
        for row in rows:
            row["data"] = (row["data"].astype(np.float64) * factor).astype(np.float32)

    return lambda path: _edit_rows(path, change)


def _truncated(path: Path, fraction: float = 0.6) -> None:
    simple(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def damage(path: Path, seed: int, n_bytes: int = 64) -> None:
    """Overwrite `n_bytes` bytes at random places, the superblock's signature excepted."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for place in rng.integers(8, len(content), n_bytes):
        content[place] = int(rng.integers(256))
    path.write_bytes(content)


def _fastmri(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((2, 4, 16, 12), np.complex64)
        file["ismrmrd_header"] = b"<ismrmrdHeader/>"
        file.attrs["acquisition"] = "AXT2"


def _no_acquisitions(path: Path) -> None:
    simple(path)
    with h5py.File(path, "r+") as file:
        del file["dataset/data"]


def _trajectory(name: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        scan = plain()
        write_scan(replace(scan, spaces=(replace(scan.spaces[0], trajectory=name),)), path)

    return build


BAD: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "not-hdf5": lambda path: path.write_text("These are not the data you are looking for.\n" * 100),
    "truncated": _truncated,
    "fastmri": _fastmri,
    "no-acquisitions": _no_acquisitions,
    "only-noise": _only_noise,
    "header-truncated": lambda path: _edit_xml(path, lambda xml: xml[: len(xml) // 2]),
    "header-not-xml": lambda path: _edit_xml(path, lambda xml: "Dummy XML header"),
    "matrix-zero": lambda path: _edit_xml(path, lambda xml: xml.replace("<x>64</x>", "<x>0</x>")),
    "matrix-huge": lambda path: _edit_xml(path, lambda xml: xml.replace("<x>64</x>", "<x>10000000000</x>")),
    "channels-contradict": _set("active_channels", 3),
    "samples-contradict": _set("number_of_samples", 63),
    "line-outside": _set("kspace_encode_step_1", 4000),
    "partition-outside": _set("kspace_encode_step_2", 5),
    "nan": _sample(complex(np.nan, 0)),
    "infinite": _sample(complex(0, np.inf)),
    "subnormal": _scaled(1e-42),
    "rosette": _trajectory("rosette"),
}
"""Builders of files that must be refused, by what is wrong with them. None of them exists as a file before it is called."""
