"""Radial, spiral and stack scans of the analytic phantom, written as true ISMRMRD files with their trajectories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.fourier import ifft
from kspace.io.mrd.write import Space, header_xml, new_acquisition_headers, write_raw
from kspace.simulation.phantom import AnalyticCoils, Phantom, uniform_coil


@dataclass(frozen=True, eq=False)
class TrajectoryScan:
    """A scan off the Cartesian grid.

    Attributes
    ----------
    phantom, coils
        Three-dimensional, in patient coordinates (metres).
    trajectory
        Where k-space was sampled, ``(readout sample 2)`` in fractions of k-space (±0.5), or 3 with kz.
    matrix, fov_m
        Points ``(x, y, z)`` and field of view; z above 1: a stack of that many partitions, unless the trajectory has kz.
    kind
        Trajectory of the header: ``radial``, ``goldenangle``, ``spiral`` or ``other``.
    position_m
        Centre of the field of view.
    noise_std
        Square root of E|n|^2 of a sample, in units of `Phantom.kspace` scaled for the orthonormal transform.
    """

    phantom: Phantom
    coils: AnalyticCoils
    trajectory: NDArray[np.float64]
    matrix: tuple[int, int, int] = (64, 64, 1)
    fov_m: tuple[float, float, float] = (0.24, 0.24, 0.005)
    kind: str = "radial"
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise_std: float = 0.0

    def samples(self, seed: int = 0) -> NDArray[np.complex64]:
        """Complex64 ``(partition coil readout sample)``, noise included; `seed` chooses it. One partition where the trajectory
        has kz."""
        size, fov = np.array(self.matrix, float), np.array(self.fov_m)
        kx, ky, *stated = (k * n / length for k, n, length in zip(np.moveaxis(self.trajectory, -1, 0), size, fov, strict=False))
        axes = np.eye(3)[: 3 if self.matrix[2] > 1 else 2]
        phantom, coils = self.phantom.section(self.position_m, *axes), self.coils.section(self.position_m, *axes)
        scale = float(np.prod([np.sqrt(n) / f for n, f in zip(size[: len(axes)], fov[: len(axes)], strict=True)]))
        if stated:
            y = coils.kspace(phantom, kx, ky, stated[0])[None]
        elif len(axes) == 2:
            y = coils.kspace(phantom, kx, ky)[None]
        else:
            kz = (np.arange(self.matrix[2]) - self.matrix[2] // 2) / fov[2]
            y = coils.kspace(phantom, kx, ky, kz[:, None, None]).swapaxes(0, 1)
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((2, *y.shape)) * (self.noise_std / np.sqrt(2))
        return (y * scale + noise[0] + 1j * noise[1]).astype(np.complex64)

    def image(self) -> NDArray[np.float64]:
        """What a perfect reconstruction shows, real ``(z y x)``: the phantom's k-space within the radius of the trajectory, of
        a sphere where that reaches no farther."""
        whole = replace(self, trajectory=_grid(self.matrix), coils=uniform_coil(), noise_std=0.0)
        inside = np.hypot(*np.moveaxis(whole.trajectory, -1, 0)) <= 0.5
        if self.trajectory.shape[-1] == 3 and np.linalg.norm(self.trajectory, axis=-1).max() < 0.51:
            kz = (np.arange(self.matrix[2]) - self.matrix[2] // 2) / self.matrix[2]
            inside = np.hypot(np.hypot(*np.moveaxis(whole.trajectory, -1, 0)), kz[:, None, None]) <= 0.5
        y = torch.from_numpy((whole.samples()[:, 0] * inside).astype(np.complex128))
        image = ifft(y, (-3, -2, -1) if self.matrix[2] > 1 else (-2, -1))
        return image.real.numpy()


def _grid(matrix: tuple[int, int, int]) -> NDArray[np.float64]:
    kx, ky = ((np.arange(n) - n // 2) / n for n in matrix[:2])
    return np.stack(np.broadcast_arrays(kx, ky[:, None]), -1)


def write_trajectory_scan(
    scan: TrajectoryScan,
    path: str | os.PathLike[str],
    stated: NDArray[np.float64] | None,
    repetitions: Sequence[int] | None = None,
    seed: int = 0,
    partitions: Sequence[int] | None = None,
) -> None:
    """Measure a scan and write it.

    Parameters
    ----------
    scan
        The scan.
    path
        File to write.
    stated
        Trajectory in the file, ``(readout sample dimension)`` in whatever units; None: the readouts carry none.
    repetitions
        Counter of each readout; None: 0.
    seed
        Of the noise.
    partitions
        Counter of the partition of each readout, where the trajectory of the scan has kz; None: 0.
    """
    samples = scan.samples(seed)
    nz, n_coils, n_readouts, n = samples.shape
    headers = new_acquisition_headers(nz * n_readouts, n_coils, n, position_m=scan.position_m)
    headers["idx"]["kspace_encode_step_1"] = np.tile(np.arange(n_readouts), nz)
    headers["idx"]["kspace_encode_step_2"] = np.repeat(np.arange(nz), n_readouts)
    if partitions is not None:
        headers["idx"]["kspace_encode_step_2"] = partitions
    if repetitions is not None:
        headers["idx"]["repetition"] = np.tile(repetitions, nz)
    headers["trajectory_dimensions"] = 0 if stated is None else stated.shape[-1]
    last = nz - 1 if partitions is None else scan.matrix[2] - 1
    limits = {"kspace_encoding_step_1": (0, n_readouts - 1, 0), "kspace_encoding_step_2": (0, last, (last + 1) // 2)}
    space = Space(scan.matrix, scan.matrix, scan.fov_m, scan.fov_m, limits=limits, trajectory=scan.kind)
    readouts = [samples[z, :, i] for z in range(nz) for i in range(n_readouts)]
    points = None if stated is None else [stated[i].astype(np.float32) for _ in range(nz) for i in range(n_readouts)]
    xml = header_xml([space], {"acquisitionSystemInformation": {"receiverChannels": n_coils}})
    write_raw(path, xml, headers, readouts, points)
