"""Simulated volumes as scans off the Cartesian grid: ISMRMRD files with trajectories and a noise scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kspace.io.mrd.flags import NOISE
from kspace.io.mrd.write import Space, header_xml, new_acquisition_headers, raw_writer
from kspace.masks import MaskSpec
from kspace.noncartesian.nufft import to_samples
from kspace.simulation.from_images import NOMINAL_PIXEL_M, NOMINAL_THICKNESS_M, SimulatedVolume, complex_noise, generator

KINDS = {"radial-nufft": "radial", "spiral-nufft": "spiral"}
NOISE_SAMPLES = 4096


def write_off_grid(volume: SimulatedVolume, spec: MaskSpec, seed: int, path: Path) -> None:
    """Measure a volume along the trajectory of `spec`, the same for all slices, with noise of its own; write it to `path`.

    Parameters
    ----------
    volume
        The recipe.
    spec
        Of a family off the grid.
    seed
        Of the noise, with the names of the slices.
    path
        ISMRMRD file to write; an existing one is replaced.

    Raises
    ------
    InputError
        If the trajectory does not exist for this matrix, or the file cannot be written.
    """
    ny, nx = volume.objects.shape[-2:]
    points = spec.trajectory((ny, nx), volume.name)
    assert points is not None
    n_coils, (n_readouts, n, _) = len(volume.coils.maps), points.shape
    mixing = volume.coils.mixing * volume.sigma
    fov = (nx * NOMINAL_PIXEL_M, ny * NOMINAL_PIXEL_M, NOMINAL_THICKNESS_M)
    limits = {"kspace_encoding_step_1": (0, n_readouts - 1, 0), "slice": (0, len(volume.objects) - 1, 0)}
    space = Space((nx, ny, 1), (nx, ny, 1), fov, fov, limits=limits, trajectory=KINDS[spec.family])
    sections = {
        "acquisitionSystemInformation": {
            "systemVendor": "simulated",
            "receiverChannels": n_coils,
            "relativeReceiverNoiseBandwidth": 1.0,
        }
    }
    with raw_writer(path, header_xml([space], sections)) as writer:
        noise = new_acquisition_headers(1, n_coils, NOISE_SAMPLES)
        noise["flags"] = NOISE
        scan = torch.einsum("ij,js->is", mixing, complex_noise((n_coils, NOISE_SAMPLES), generator(seed, volume.name, "noise")))
        writer.append(noise, [scan.numpy()], [np.zeros((0, 0), np.float32)])
        stated = [one.astype(np.float32) for one in points.numpy()]
        for i, (key, image) in enumerate(zip(volume.keys, volume.objects, strict=True)):
            y = to_samples(volume.coils.maps * image, points) / volume.sigma
            y = y + complex_noise(tuple(y.shape), generator(seed, key, "samples"))
            y = torch.einsum("ij,jrs->irs", mixing, y)
            headers = new_acquisition_headers(n_readouts, n_coils, n)
            headers["trajectory_dimensions"] = 2
            headers["idx"]["kspace_encode_step_1"] = np.arange(n_readouts)
            headers["idx"]["slice"] = i
            writer.append(headers, [y[:, r].contiguous().numpy() for r in range(n_readouts)], stated)
