"""Scans of an analytic phantom, written as true ISMRMRD files: what a scanner would have measured, known exactly.

A `kspace.simulation.acquisition.Acquisition` says what was acquired. `measure` evaluates the phantom's Fourier transform
wherever the headers say that k-space was sampled, `write_scan` writes the file, and `true_image` is what a perfect
reconstruction of it would show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.epi.trapezoid import Trapezoid
from kspace.fourier import centre_crop, ifft, interpolate
from kspace.io.mrd.flags import CALIBRATION, NOISE, REVERSE
from kspace.io.mrd.write import Space, header_xml, write_raw
from kspace.simulation.acquisition import GEOMETRY, Acquisition, Rows, with_limits
from kspace.simulation.phantom import AnalyticCoils, Phantom, uniform_coil

GARBAGE = 1e3  # what samples hold that the header says to discard: an image that contains them cannot pass a test


def measure(scan: Acquisition, seed: int = 0) -> list[NDArray[np.complex64]]:
    """The samples of every readout, noise included: complex64 ``(coil, n_samples)``, in k-space units of `Phantom.kspace`."""
    signals = [np.zeros((scan.coils.n_coils, int(n)), np.complex64) for n in scan.headers["number_of_samples"]]
    bearing = np.flatnonzero((scan.headers["flags"] & NOISE) == 0)
    for rows in _planes(scan.headers[bearing]):
        _measure_plane(scan, bearing[rows], signals)
    _add_noise(scan, signals, np.random.default_rng(seed))
    for head, signal in zip(scan.headers, signals, strict=True):
        pre, post = int(head["discard_pre"]), int(head["discard_post"])
        signal[:, :pre] = GARBAGE
        signal[:, signal.shape[1] - post :] = GARBAGE
    return signals


def write_scan(scan: Acquisition, path: str | os.PathLike[str], seed: int = 0) -> None:
    """Measure the scan and write it as an ISMRMRD file. `seed` chooses the noise."""
    headers = scan.headers.copy()
    headers["scan_counter"] = np.arange(1, len(headers) + 1)
    # Ticks of 2.5 ms, as Siemens counts them: one readout every 5 ms, from noon on.
    headers["acquisition_time_stamp"] = 12 * 3600 * 400 + 2 * np.arange(len(headers))
    system: dict[str, object] = {"systemVendor": "simulated", "systemModel": "analytic phantom", "systemFieldStrength_T": 3.0}
    if scan.noise_bandwidth is not None:
        system["relativeReceiverNoiseBandwidth"] = scan.noise_bandwidth
    sections: dict[str, Mapping[str, object]] = {
        "measurementInformation": {"measurementID": "simulated_1", "patientPosition": "HFS", "protocolName": "simulated"},
        "acquisitionSystemInformation": {**system, "receiverChannels": scan.coils.n_coils},
        **scan.sections,
    }
    spaces = with_limits(scan) if scan.limits else scan.spaces
    write_raw(path, header_xml(spaces, sections), headers, measure(scan, seed))


def true_image(
    scan: Acquisition, coils: AnalyticCoils | None = None, encoding: int = 0, **counters: int
) -> NDArray[np.complex64]:
    """What a perfect, fully sampled and noiseless acquisition of an image shows, on its recon matrix.

    Parameters
    ----------
    scan
        The scan.
    coils
        Receive coils; `scan.coils` for what they see. None: one coil of sensitivity 1.
    encoding
        Encoding space.
    counters
        Which image: ``slice=2, contrast=1``; the first of all where nothing is given.

    Returns
    -------
    ndarray
        Complex64 ``(coil, z, y, x)``, band-limited, in units of the phantom's intensities times the readouts' gain.
    """
    row = _first_line(scan, encoding, counters)
    space, head = scan.spaces[encoding], scan.headers[row]
    k = [(np.arange(n) - n // 2) / fov for n, fov in zip(space.encoded_matrix, space.encoded_fov_m, strict=True)]
    y = _kspace(scan.phantom, coils or uniform_coil(), space, head, k[0], *np.meshgrid(k[1], k[2])) * scan.gain[row]
    nx, ny, nz = space.encoded_matrix
    image = ifft(torch.from_numpy(y.reshape(-1, nz, ny, nx)), (-3, -2, -1))
    inner = [round(n * r / e) for n, r, e in zip(space.encoded_matrix, space.recon_fov_m, space.encoded_fov_m, strict=True)]
    image = interpolate(centre_crop(image, inner[::-1]), space.recon_matrix[::-1])
    return image.to(torch.complex64).numpy()


def true_maps(scan: Acquisition, encoding: int = 0, **counters: int) -> NDArray[np.complex64]:
    """The coils' sensitivities on the recon matrix of an image, complex64 ``(coil, z, y, x)``; arguments as `true_image`."""
    head, space = scan.headers[_first_line(scan, encoding, counters)], scan.spaces[encoding]
    x, y, z = ((np.arange(n) - n // 2) * fov / n for n, fov in zip(space.recon_matrix, space.recon_fov_m, strict=True))
    coils = scan.coils.section(head["position"] * 1e-3, head["read_dir"], head["phase_dir"], head["slice_dir"])
    return coils.maps(x, y[:, None], z[:, None, None]).astype(np.complex64)


def _first_line(scan: Acquisition, encoding: int, counters: Mapping[str, int]) -> int:
    wanted = scan.imaging & (scan.headers["encoding_space_ref"] == encoding) & ((scan.headers["flags"] & CALIBRATION) == 0)
    for name, value in counters.items():
        wanted &= scan.headers["idx"][name] == value
    if not wanted.any():
        raise ValueError(f"the scan has no image of encoding {encoding} with {counters}")
    return int(np.flatnonzero(wanted)[0])


def _kspace(
    phantom: Phantom,
    coils: AnalyticCoils,
    space: Space,
    head: NDArray[np.void],
    kx: NDArray[np.float64],
    ky: NDArray[np.float64],
    kz: NDArray[np.float64],
) -> NDArray[np.complex128]:
    """Samples ``(coil, *lines, x)`` at `kx` ``(x,)`` and `ky`, `kz` ``(*lines)``, scaled for the orthonormal transform."""
    deep = space.encoded_matrix[2] > 1
    directions = [head["read_dir"], head["phase_dir"], head["slice_dir"]][: 3 if deep else 2]
    origin = head["position"].astype(np.float64) * 1e-3
    k = [kx, ky[..., None], kz[..., None]][: len(directions)]
    y = coils.section(origin, *directions).kspace(phantom.section(origin, *directions), *k)
    sizes = list(zip(space.encoded_matrix, space.encoded_fov_m, strict=True))[: len(directions)]
    return y * float(np.prod([np.sqrt(n) / fov for n, fov in sizes]))


def _measure_plane(scan: Acquisition, rows: Rows, signals: list[NDArray[np.complex64]]) -> None:
    """Fill in the signals of readouts that share encoding and geometry. A line that is acquired often is computed once."""
    headers = scan.headers[rows]
    encoding = int(headers["encoding_space_ref"][0])
    space = scan.spaces[encoding]
    if scan.lobe is not None:
        _measure_echoes(scan, rows, signals, scan.lobe)
        return
    n = headers["number_of_samples"].astype(int)
    is_reversed = (headers["flags"] & REVERSE) != 0
    centre = headers["center_sample"].astype(int)
    centre = np.where(is_reversed, n - 1 - centre, centre)
    left, right = centre.max(), (n - centre).max()
    steps = np.stack([headers["idx"][f"kspace_encode_step_{i}"].astype(int) for i in (1, 2)], -1) - scan.centres[encoding]
    lines, place = np.unique(steps, axis=0, return_inverse=True)
    ky, kz = (lines[:, i] / space.encoded_fov_m[i + 1] for i in (0, 1))
    y = _kspace(scan.phantom, scan.coils, space, headers[0], np.arange(-left, right) / space.encoded_fov_m[0], ky, kz)
    for i, row in enumerate(rows):
        readout = y[:, place.ravel()[i], left - centre[i] : left - centre[i] + n[i]] * scan.gain[row]
        signals[row][:] = readout[:, ::-1] if is_reversed[i] else readout


def _measure_echoes(scan: Acquisition, rows: Rows, signals: list[NDArray[np.complex64]], lobe: Trapezoid) -> None:
    """Fill in the signals of echo-planar readouts that share encoding and geometry."""
    headers = scan.headers[rows]
    encoding = int(headers["encoding_space_ref"][0])
    space, phase = scan.spaces[encoding], scan.odd_even_phase
    assert scan.is_reversed is not None
    n = space.encoded_matrix[0]
    shift = phase.linear_rad * n / (4 * np.pi)
    k = lobe.trajectory(n, lobe.delay_us)
    for back, sign in ((False, 1), (True, -1)):
        some = rows[scan.is_reversed[rows] == back]
        steps = np.stack([scan.headers["idx"][f"kspace_encode_step_{i}"][some].astype(int) for i in (1, 2)], -1)
        ky, kz = ((steps[:, i] - scan.centres[encoding][i]) / space.encoded_fov_m[i + 1] for i in (0, 1))
        y = _kspace(scan.phantom, scan.coils, space, headers[0], sign * (k - shift) / space.encoded_fov_m[0], ky, kz)
        y = y * np.exp(0.5j * sign * phase.constant_rad)
        for i, row in enumerate(some):
            signals[row][:] = y[:, i] * scan.gain[row]


def _add_noise(scan: Acquisition, signals: list[NDArray[np.complex64]], rng: np.random.Generator) -> None:
    values, vectors = np.linalg.eigh(scan.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    for head, signal in zip(scan.headers, signals, strict=True):
        variance = scan.dwell_s * 1e6 / float(head["sample_time_us"])
        if head["flags"] & NOISE:
            variance *= scan.noise_bandwidth or 1.0
        white = rng.standard_normal((2, *signal.shape)) / np.sqrt(2)
        signal += np.sqrt(variance) * (root @ (white[0] + 1j * white[1]))


def _planes(headers: NDArray[np.void]) -> list[Rows]:
    """Indices of the readouts that share encoding and geometry, one array for each such plane (or volume)."""
    keys = np.concatenate([headers["encoding_space_ref"][:, None], *(headers[name] for name in GEOMETRY)], axis=1)
    _, place = np.unique(keys, axis=0, return_inverse=True)
    return [np.flatnonzero(place.ravel() == i) for i in range(place.max(initial=-1) + 1)]
