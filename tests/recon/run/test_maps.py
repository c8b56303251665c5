"""Coil maps that do not come from the samples themselves are for the channels that the samples have by then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kspace.io.mrd.images import read_images
from kspace.simulation.acquisition import accelerate, add_noise_scan, kill_coil
from recon.commands.run import run
from recon.run.options import RunOptions
from tests.support import raw_files


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("virtual_coils", [None, 8, 7])
def test_maps_from_a_file_are_whitened_and_compressed_as_the_samples_are(virtual_coils: int | None, tmp_path: Path) -> None:
    scan = accelerate(kill_coil(raw_files.plain(n_coils=9, noise=0.002), 2), 2, mode=None)
    # One receiver has another gain than the others: maps that are not whitened would be far from the samples.
    scan.coils.coefficients[5] *= 20
    scan.covariance[5, :] *= 20
    scan.covariance[:, 5] *= 20
    case = raw_files.save(add_noise_scan(scan, 800), tmp_path / "scan.h5")
    np.save(tmp_path / "maps.npy", case.maps()[:, 0])
    options = RunOptions(format="mrd", maps=str(tmp_path / "maps.npy"), lamda=1e-5, virtual_coils=virtual_coils)
    assert run([case.path], tmp_path, options) == 0
    alive = [c for c in range(9) if c != 2]
    inverse = np.linalg.inv(scan.covariance[np.ix_(alive, alive)])
    maps = case.maps()[alive]
    gain = np.sqrt(np.einsum("czyx,cd,dzyx->zyx", maps.conj(), inverse, maps).real)
    image = read_images(tmp_path / "scan.mrd.h5")[0].image.data.numpy()
    assert nrmse(image, np.abs(case.image()) * gain) < 0.05


@pytest.mark.parametrize("virtual_coils", [8, 7])
def test_maps_of_averaged_repetitions_are_for_the_virtual_coils_of_each(virtual_coils: int, tmp_path: Path) -> None:
    case = raw_files.interleaved(tmp_path / "scan.h5")
    assert run([case.path], tmp_path, RunOptions(format="mrd", virtual_coils=virtual_coils, lamda=1e-4)) == 0
    for repetition, stored in enumerate(read_images(tmp_path / "scan.mrd.h5")):
        truth = np.sqrt((np.abs(case.coil_images(repetition=repetition)) ** 2).sum(0))
        assert nrmse(stored.image.data.numpy(), truth) < 0.1
