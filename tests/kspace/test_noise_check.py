"""The noise scan of an image is recognised as such, and one that cannot be is as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kspace.container import Header, KSpace
from kspace.io.mrd import open_scan
from kspace.noise import Noise
from kspace.noise_check import fit_noise
from kspace.simulation.acquisition import accelerate, add_noise_scan, asymmetric_echo, coil_covariance, partial_fourier
from recon.commands.demo import head_scan
from tests.support import raw_files
from tests.support.raw_files import plain, save


def load(path: Path) -> tuple[KSpace, Noise]:
    scan = open_scan(path)
    assert scan.noise is not None
    return scan.load(0, scan.images(0)[0]), scan.noise


def fitted(k: KSpace, noise: Noise) -> Any:
    fit = fit_noise(k, noise)
    assert fit is not None
    return fit


def with_signal(k: KSpace, noise: Noise, share: float) -> Noise:
    """The noise that a noise scan would give whose readouts hold `share` of the image's mean power."""
    y = k.data.reshape(k.n_coils, -1).numpy().astype(np.complex128)
    return replace(noise, covariance=noise.covariance + share * (y @ y.conj().T) / y.shape[1])


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.5])
@pytest.mark.parametrize(
    "change",
    [
        lambda scan: scan,
        lambda scan: accelerate(scan, 3, calibration=8),
        lambda scan: partial_fourier(scan, lines=(8, 30)),
        lambda scan: asymmetric_echo(scan, 10),
    ],
)
def test_a_scans_own_noise_is_plausible(tmp_path: Path, std: float, change: Callable[..., Any]) -> None:
    case = save(add_noise_scan(change(plain(noise=std)), 100), tmp_path / "scan.h5")
    fit = fitted(*load(case.path))
    assert fit.is_plausible, fit
    assert fit.level > 0.7


def test_noise_of_dead_coils_empty_slices_averages_and_volumes_is_plausible(tmp_path: Path) -> None:
    raw_files.dead_coil(tmp_path / "dead.h5")
    raw_files.with_empty_slice(tmp_path / "empty.h5")
    save(add_noise_scan(plain(noise=0.02, matrix=(24, 20, 16), fov_m=(0.2, 0.2, 0.2)), 100), tmp_path / "volume.h5")
    for path in tmp_path.iterdir():
        scan = open_scan(path)
        assert scan.noise is not None
        for index in scan.images(0):
            fit = fitted(scan.load(0, index), scan.noise)
            assert fit.is_plausible, (path.name, index, fit)


def test_the_noise_of_the_demo_is_plausible(tmp_path: Path) -> None:
    fit = fitted(*load(save(head_scan(matrix=96, n_slices=1), tmp_path / "scan.h5").path))
    assert fit.is_plausible, fit


def test_the_skyras_noise_is_plausible(data_dir: Path) -> None:
    fit = fitted(*load(data_dir / "raw" / "skyra_bssfp_14ch_grappa3.h5"))
    assert fit.is_plausible, fit
    assert fit.level == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_of_another_scan_is_not(tmp_path: Path, seed: int) -> None:
    """Of the same mean power, but other correlations; and of other power, which one coil shows as well."""
    k, noise = load(raw_files.noisy(tmp_path / "scan.h5").path)
    assert not fitted(k, replace(noise, covariance=coil_covariance(4, 0.1, seed))).is_plausible
    fit = fitted(k, replace(noise, covariance=16 * noise.covariance))
    assert not fit.is_plausible
    assert fit.level == pytest.approx(fitted(k, noise).level / 16)
    k, noise = load(raw_files.noisy(tmp_path / "one.h5", n_coils=1).path)
    assert fitted(k, noise).is_plausible
    assert not fitted(k, replace(noise, covariance=16 * noise.covariance)).is_plausible
    assert not fitted(k, replace(noise, covariance=1e-12 * noise.covariance)).is_plausible


@pytest.mark.parametrize(("std", "share"), [(0.01, 1e-3), (0.01, 1.0), (0.05, 0.01), (0.05, 0.1)])
def test_a_noise_scan_that_holds_signal_is_not(tmp_path: Path, std: float, share: float) -> None:
    k, noise = load(raw_files.noisy(tmp_path / "scan.h5", noise=std).path)
    fit = fitted(k, with_signal(k, noise, share))
    assert not fit.is_plausible
    assert fit.likeness > 0.9
    assert f"like the image's by {fit.likeness:.2f} (0 to 1)" in str(fit)


def test_the_unit_of_the_samples_does_not_matter(tmp_path: Path) -> None:
    k, noise = load(raw_files.noisy(tmp_path / "scan.h5").path)
    for factor in (1e-20, 1e20):
        scaled = replace(noise, covariance=noise.covariance * factor**2)
        fit, expected = fitted(replace(k, data=k.data * factor), scaled), fitted(k, noise)
        assert vars(fit) == pytest.approx(vars(expected), rel=1e-4)


def test_too_few_samples_say_nothing() -> None:
    k = KSpace(torch.ones((4, 3, 3), dtype=torch.complex64), torch.ones((1, 3, 1), dtype=torch.bool), Header())
    assert fit_noise(k, Noise(np.eye(4, dtype=np.complex128), None, 100)) is None
    zeros = KSpace(torch.zeros((4, 64, 64), dtype=torch.complex64), torch.ones((1, 64, 1), dtype=torch.bool), Header())
    assert fit_noise(zeros, Noise(np.eye(4, dtype=np.complex128), None, 100)) is None
