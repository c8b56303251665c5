"""What the options of `recon run` and the counters of readouts do to scans off the Cartesian grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import recon
from kspace.errors import InputError
from kspace.io.mrd.flags import NOISE
from kspace.simulation.measurement import write_scan
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from tests.support.off_grid import error, image_of, scan_of, shown
from tests.support.raw_files import plain

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
Rows = NDArray[np.void]


def rows_of(path: Path) -> Rows:
    with h5py.File(path) as file:
        rows: Rows = file["dataset/data"][:]
    return rows


def put(path: Path, rows: Rows) -> None:
    with h5py.File(path, "r+") as file:
        kind = file["dataset/data"].dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=rows, dtype=kind)


def combined(folder: Path, scans: list[TrajectoryScan], change: Callable[[Rows, int], None]) -> Path:
    """The readouts of several scans in turn in one file, after `change` of the headers of each."""
    every = []
    for i, scan in enumerate(scans):
        write_trajectory_scan(scan, folder / "one.h5", scan.trajectory, seed=i)
        rows = rows_of(folder / "one.h5")
        change(rows["head"], i)
        every.append(rows)
    put(folder / "one.h5", np.stack(every, 1).ravel())
    return folder / "one.h5"


def test_averages_are_more_samples(tmp_path: Path) -> None:
    scan = scan_of(noise_std=0.1)

    def average(head: Rows, i: int) -> None:
        head["idx"]["average"] = i

    four = image_of(combined(tmp_path, [scan] * 4, average))
    write_trajectory_scan(scan, tmp_path / "alone.h5", scan.trajectory)
    ratio = error(image_of(tmp_path / "alone.h5"), shown(scan)) / error(four, shown(scan))
    assert 1.5 < ratio < 2.5  # half the noise


def test_interleaved_slices_are_told_apart(tmp_path: Path) -> None:
    scans = [scan_of(), scan_of(position_m=(0.0, 0.0, 0.03))]

    def slices(head: Rows, i: int) -> None:
        head["idx"]["slice"] = i
        head["position"] = 1e3 * np.array(scans[i].position_m)

    with recon.open(combined(tmp_path, scans, slices)) as opened:
        images = opened.reconstruct(method="sense")
    assert [image.header.index.slice for image in images] == [0, 1]
    for image, scan in zip(images, scans, strict=True):
        assert error(image.numpy(), shown(scan)) < 0.04


def test_correlated_noise_is_whitened(tmp_path: Path) -> None:
    scan, rng = scan_of(noise_std=0.03), np.random.default_rng(0)
    mixing = np.eye(4) + 0.4 * np.tril(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)), -1)
    mixing[3] *= 20  # a channel with twenty times the gain
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    rows = rows_of(tmp_path / "scan.h5")
    for row in rows:
        samples = row["data"].view(np.complex64).reshape(4, -1)
        row["data"] = np.ascontiguousarray((mixing @ samples).astype(np.complex64)).view(np.float32).ravel()
    noise = rows[:20].copy()
    noise["head"]["flags"] = NOISE
    n = 0.03 / np.sqrt(2) * (rng.standard_normal((20, 4, 96)) + 1j * rng.standard_normal((20, 4, 96)))
    for row, one in zip(noise, n, strict=True):
        row["data"] = np.ascontiguousarray((mixing @ one).astype(np.complex64)).view(np.float32).ravel()
    put(tmp_path / "scan.h5", np.concatenate([noise, rows]))
    assert error(image_of(tmp_path / "scan.h5"), shown(scan)) < 0.045
    assert error(image_of(tmp_path / "scan.h5", no_whiten=True), shown(scan)) > 0.1


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        pytest.param({"maps": "jsense"}, 0.13, marks=pytest.mark.slow),
        ({"virtual_coils": 3}, 0.06),
        ({"no_whiten": True}, 0.035),
    ],
)
def test_options(options: dict[str, object], limit: float, tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    assert error(image_of(tmp_path / "scan.h5", **options), shown(scan)) < limit


def test_off_centre_odd_and_oblong(tmp_path: Path) -> None:
    scan = scan_of(position_m=(0.015, -0.01, 0.01), matrix=(45, 48, 1), fov_m=(0.225, 0.24, 0.005))
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    image = image_of(tmp_path / "scan.h5")
    assert error(image, shown(scan)) < 0.05
    assert error(image, shown(replace(scan, position_m=(0.0, 0.0, 0.01)))) > 0.3


def test_a_trajectory_for_samples_of_a_grid_is_refused(tmp_path: Path) -> None:
    write_scan(plain(), tmp_path / "scan.h5")
    np.save(tmp_path / "k.npy", scan_of().trajectory)
    with pytest.raises(InputError, match=r"scan.h5: samples lie on a grid \(cartesian\); leave --trajectory out"):
        image_of(tmp_path / "scan.h5", trajectory=tmp_path / "k.npy")
