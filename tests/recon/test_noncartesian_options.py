"""What the options of `recon run` and the counters of readouts do to scans off the Cartesian grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import recon
from kspace.errors import InputError
from kspace.io.mrd.flags import NOISE
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import radial
from kspace.simulation.measurement import write_scan
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from recon.methods.classical import CgSense
from tests.support.off_grid import N, Rows, error, image_of, put, rows_of, scan_of, shown
from tests.support.raw_files import plain

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")


def test_trajectories_count_where_the_header_says_cartesian(tmp_path: Path) -> None:
    scan = replace(scan_of("spiral"), kind="cartesian")
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    assert error(image_of(tmp_path / "scan.h5"), shown(scan)) < 0.04
    with recon.open(tmp_path / "scan.h5") as opened:
        said = opened.reconstruct(method="zero-filled").warnings
    assert any("Cartesian by its header, but its trajectories are no lines along kx" in line for line in said)


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


def coil_maps(scan: TrajectoryScan, plane: int = 0) -> NDArray[np.complex64]:
    """Sensitivities of a plane, ``(coil y x)``."""
    x = (np.arange(N) - N // 2) * scan.fov_m[0] / N
    z = (plane - scan.matrix[2] // 2) * scan.fov_m[2] / scan.matrix[2]
    found: NDArray[np.complex64] = scan.coils.section((0, 0, z), (1, 0, 0), (0, 1, 0)).maps(x, x[:, None]).astype(np.complex64)
    return found


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
        ({"maps": "jsense"}, 0.04),
        ({"virtual_coils": 3}, 0.06),
        ({"no_whiten": True}, 0.035),
    ],
)
def test_options(options: dict[str, object], limit: float, tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    assert error(image_of(tmp_path / "scan.h5", **options), shown(scan)) < limit


@pytest.mark.parametrize("kind", ["radial", "spiral"])
def test_the_density_is_chosen_and_recorded(kind: str, tmp_path: Path) -> None:
    scan = scan_of(kind)
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    with recon.open(tmp_path / "scan.h5") as opened:
        images = {density: opened.reconstruct("zero-filled", density=density) for density in ("pipe", "voronoi")}
    for density, made in images.items():
        assert error(made[0].numpy(), shown(scan)) < 0.03
        assert f"density_{density}" in made[0].header.steps
        assert made.records[0]["provenance"]["configuration"]["density"] == density
    assert not np.array_equal(images["pipe"][0].numpy(), images["voronoi"][0].numpy())
    write_scan(plain(), tmp_path / "plain.h5")
    with pytest.raises(InputError, match=r"plain.h5: samples lie on a grid \(cartesian\); leave --density out"):
        image_of(tmp_path / "plain.h5", density="voronoi")


def test_the_tolerance_of_sense(tmp_path: Path) -> None:
    """Off the grid further iterations fit noise, and without noise still come nearer to the truth."""
    scan = scan_of(trajectory=radial(20, 2 * N), noise_std=0.0)
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    np.save(tmp_path / "maps.npy", coil_maps(scan))
    with recon.open(tmp_path / "scan.h5") as opened:
        made = {t: opened.reconstruct("sense", tolerance=t, maps=tmp_path / "maps.npy") for t in (None, 3e-4, 1e-6)}
        with pytest.raises(InputError, match=r"--tolerance: tv does not stop at a residual; .* --method sense"):
            opened.reconstruct("tv", tolerance=1e-3)
        with pytest.raises(InputError, match="tolerance must be at least 0"):
            opened.reconstruct("sense", tolerance=-1.0)
    assert np.array_equal(made[None][0].numpy(), made[3e-4][0].numpy())
    assert made[1e-6].records[0]["provenance"]["configuration"]["tolerance"] == 1e-6
    errors = {t: error(images[0].numpy(), shown(scan)) for t, images in made.items()}
    assert errors[1e-6] < errors[None]


def test_sense_stops_where_the_noise_is_known_and_left_over() -> None:
    """Neither the tolerance for scans of unknown noise nor full convergence is as near to the truth."""
    scan = scan_of(trajectory=radial(24, 2 * N), noise_std=0.15)
    maps = torch.from_numpy(coil_maps(scan))
    op = NonCartesianSense(maps, torch.from_numpy(scan.trajectory), noise_std=0.15, noise_known=True)
    y, truth = torch.from_numpy(scan.samples()[0]), shown(scan)
    known, unknown, converged = (
        error(CgSense(tolerance=tolerance)(y, which).numpy(), truth)
        for tolerance, which in ((None, op), (None, replace(op, noise_known=False)), (1e-6, op))
    )
    assert known < 0.9 * unknown < 0.9 * converged
    faint = replace(op, noise_std=1e-6)
    assert error(CgSense()(y, faint).numpy(), truth) == pytest.approx(error(CgSense(tolerance=3e-5)(y, op).numpy(), truth))


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


def test_maps_of_a_file_serve_planes_and_stacks(tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    np.save(tmp_path / "maps.npy", coil_maps(scan))
    assert error(image_of(tmp_path / "scan.h5", maps=tmp_path / "maps.npy"), shown(scan)) < 0.02
    stack = replace(scan, matrix=(N, N, 8), fov_m=(0.24, 0.24, 0.24), noise_std=0.0)
    write_trajectory_scan(stack, tmp_path / "stack.h5", stack.trajectory)
    np.save(tmp_path / "maps.npy", np.stack([coil_maps(stack, plane) for plane in range(8)], 1))
    images = image_of(tmp_path / "stack.h5", maps=tmp_path / "maps.npy")
    assert error(images[4], shown(stack, 4)) < 0.03
    with pytest.raises(InputError, match=r"maps of shape \(8, 48, 48\), the data need \(coil y x\) = \(4, 48, 48\)"):
        image_of(tmp_path / "scan.h5", maps=tmp_path / "maps.npy")


def test_priors_are_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    for method in ("csgm", "iagan"):
        with pytest.raises(
            InputError, match=rf"{method}: its samples do not lie on a Cartesian grid; choose another generator"
        ):
            image_of(tmp_path / "scan.h5", method)
