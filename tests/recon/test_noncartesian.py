"""Radial, spiral and stack scans from file to image."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import recon
from kspace.errors import InputError
from kspace.noncartesian.delay import GradientDelay, corrected, estimate_delay
from kspace.noncartesian.trajectory import guess_units, radial, spiral
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from tests.support.off_grid import TRAJECTORIES, N, error, image_of, scan_of, shown

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")


@pytest.mark.parametrize("kind", TRAJECTORIES)
def test_sense_shows_the_phantom(kind: str, tmp_path: Path) -> None:
    scan = scan_of(kind)
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    image = image_of(tmp_path / "scan.h5")
    assert error(image, shown(scan)) < 0.035
    turned = image[::-1]
    assert error(turned, shown(scan)) > 0.3


@pytest.mark.parametrize("method", ["zero-filled", "l1-wavelet", "tv"])
def test_other_methods_agree_with_sense(method: str, tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    sense, other = image_of(tmp_path / "scan.h5"), image_of(tmp_path / "scan.h5", method)
    # In units of the image, not up to a factor: zero-filled images compensate the density of samples.
    assert np.linalg.norm(np.abs(other) - np.abs(sense)) < 0.15 * np.linalg.norm(sense)


def test_units_do_not_matter(tmp_path: Path) -> None:
    scan = scan_of()
    images = []
    for name, scale in (("fraction", 1.0), ("grid", N), ("1/m", N / 0.24), ("rad", 2 * np.pi), ("rad/m", 2 * np.pi * N / 0.24)):
        path = tmp_path / f"{name.replace('/', '')}.h5"
        write_trajectory_scan(scan, path, scan.trajectory * scale)
        images.append(image_of(path, "zero-filled"))
    for image in images[1:]:
        assert np.allclose(image, images[0], atol=1e-4 * np.abs(images[0]).max())


def test_a_density_column_is_no_third_dimension(tmp_path: Path) -> None:
    scan = scan_of("spiral")
    density = 7 + 0.1 * np.hypot(*np.moveaxis(scan.trajectory, -1, 0))[..., None]  # nearly uniform, in any unit
    write_trajectory_scan(scan, tmp_path / "with.h5", np.concatenate([scan.trajectory, density], -1))
    write_trajectory_scan(scan, tmp_path / "without.h5", scan.trajectory)
    for name in ("with.h5", "without.h5"):
        assert error(image_of(tmp_path / name), shown(scan)) < 0.035


def test_computed_and_given_trajectories(tmp_path: Path) -> None:
    for kind in ("radial", "goldenangle"):
        scan = scan_of(kind)
        stated, computed, given = (tmp_path / f"{kind}{i}.h5" for i in range(3))
        write_trajectory_scan(scan, stated, scan.trajectory)
        write_trajectory_scan(scan, computed, None)
        write_trajectory_scan(scan, given, np.zeros_like(scan.trajectory))
        np.save(tmp_path / "k.npy", scan.trajectory)
        expected = image_of(stated, "zero-filled")
        assert np.allclose(image_of(computed, "zero-filled"), expected, atol=1e-4)
        assert np.allclose(image_of(given, "zero-filled", trajectory=tmp_path / "k.npy"), expected, atol=1e-4)


def test_a_gradient_delay_is_recovered_and_corrected(tmp_path: Path) -> None:
    planted = GradientDelay(-0.6, 0.4, 0.1, 0, 0)
    stated = radial(61, 2 * N, np.arange(61) * 2 * np.pi / 61)
    scan = scan_of(trajectory=corrected(stated, planted))
    found = estimate_delay(scan.samples()[0], stated)
    assert isinstance(found, GradientDelay)
    assert np.allclose([found.xx, found.yy, found.xy], [-0.6, 0.4, 0.1], atol=0.06)
    write_trajectory_scan(scan, tmp_path / "scan.h5", stated)
    with_it, without = (image_of(tmp_path / "scan.h5", gradient_delay=g) for g in ("auto", "none"))
    assert error(with_it, shown(scan)) < 0.035
    assert error(without, shown(scan)) > error(with_it, shown(scan)) + 0.01
    assert "opposite" in str(estimate_delay(scan.samples()[0][:, :20], stated[:20]))


@pytest.mark.parametrize("centre", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("planted", [GradientDelay(-0.61, -0.65, 0, 0, 0), GradientDelay(1.3, 0.2, -0.3, 0, 0)])
def test_a_delay_is_relative_to_the_trajectory_that_is_stated(centre: float, planted: GradientDelay) -> None:
    """With the centre of k-space on a sample, or half a sample beside it as BART's symmetric spokes have it."""
    angles = np.arange(40) * 2 * np.pi / 40
    away = np.stack([np.cos(angles), np.sin(angles)], -1)[:, None] * centre / (2 * N)
    stated = radial(40, 2 * N, angles) + away
    found = estimate_delay(scan_of(trajectory=corrected(stated, planted), noise_std=0.0).samples()[0], stated)
    assert isinstance(found, GradientDelay)
    assert np.allclose([found.xx, found.yy, found.xy], [planted.xx, planted.yy, planted.xy], atol=0.05)


def test_stack_of_stars_and_an_off_centre_field_of_view(tmp_path: Path) -> None:
    scan = scan_of(matrix=(N, N, 8), fov_m=(0.24, 0.24, 0.24), position_m=(0.01, -0.02, 0.03), noise_std=0.0)
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    volume = image_of(tmp_path / "scan.h5", maps="espirit")
    assert volume.shape == (8, N, N)
    middle = volume[4]
    assert error(middle, shown(scan, 4)) < 0.04
    assert error(middle[:, ::-1], shown(scan, 4)) > error(middle, shown(scan, 4)) + 0.1


def test_odd_matrices(tmp_path: Path) -> None:
    scan = scan_of(matrix=(45, 47, 1), trajectory=radial(72, 2 * N))
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    image = image_of(tmp_path / "scan.h5")
    assert image.shape == (47, 45)
    assert error(image, shown(scan)) < 0.035


def test_frames_are_repetitions_and_their_maps_are_shared(tmp_path: Path) -> None:
    scan = scan_of("goldenangle")
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
    with recon.open(tmp_path / "scan.h5") as opened:
        frames = opened.reconstruct(method="sense", spokes_per_frame=20)
        whole = opened.reconstruct(method="sense")
    assert [image.header.index.repetition for image in frames] == [0, 1, 2]
    assert len(whole) == 1
    for image in frames:
        assert error(image.numpy(), shown(scan)) < 0.045


def test_a_trajectory_beyond_the_encoded_matrix_gets_finer_pixels(tmp_path: Path) -> None:
    scan = scan_of("spiral", trajectory=1.5 * spiral(30, 500, 2.0))
    write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory * N / 0.24)
    with pytest.warns(recon.ReconWarning, match=r"reaches 1.50 x 1.49 of the end of k-space for encoded pixels of 5 x 5 mm"):
        image = image_of(tmp_path / "scan.h5")
    assert image.shape == (N, N)
    assert error(image, shown(scan)) < 0.045
    assert error(image[::-1], shown(scan)) > 0.3


def written(scan: TrajectoryScan, path: Path, stated: NDArray[np.float64]) -> Path:
    write_trajectory_scan(scan, path, stated)
    return path


def damaged(path: Path, change: str) -> Path:
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        if change == "short":
            rows["traj"][3] = rows["traj"][3][:-2]
        elif change == "nan":
            rows["traj"][3][5] = np.nan
        elif change == "mixed":
            rows["head"]["trajectory_dimensions"][3] = 0
            rows["traj"][3] = np.zeros(0, np.float32)
        file["dataset/data"][:] = rows
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("short", "readout 3 holds 190 trajectory values, its head says 96 samples x 2 dimensions"),
        ("nan", "trajectory of readout 3 has 1 NaN or infinite"),
        ("mixed", "trajectories of 0, 2 dimensions are mixed"),
    ],
)
def test_damaged_trajectories(change: str, match: str, tmp_path: Path) -> None:
    scan = scan_of()
    path = damaged(written(scan, tmp_path / "scan.h5", scan.trajectory), change)
    with pytest.raises(InputError, match=match):
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("factor", "match"),
    [(0.0, "zero everywhere"), (7.0, "largest .k. of the trajectory is 3.5, outside of every unit"), (1e5, "outside of every")],
)
def test_trajectories_in_no_unit(factor: float, match: str, tmp_path: Path) -> None:
    scan = scan_of()
    path = written(scan, tmp_path / "scan.h5", factor * scan.trajectory)
    with pytest.raises(InputError, match=match):
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert not (tmp_path / "out").exists()


def test_ambiguous_units() -> None:
    with pytest.raises(InputError, match="grid or 1/m"):
        guess_units(24.0, 1 / 48, (48,), "scan.h5")
    assert guess_units(0.45, 0.005, (48,), "scan.h5") == "fraction"
    with pytest.raises(InputError, match="rad or grid"):
        guess_units(3.1, 0.005, (6,), "scan.h5")
    for other in (0.999, 0.837, 1.33, 0.133, 2.5, 47.9):  # ±1, 1/mm, 1/cm, rad/mm, nothing, ±n
        with pytest.raises(InputError, match=r"outside of every unit: .*; give --trajectory-units, or --trajectory FILE"):
            guess_units(other, 0.00375, (24,), "scan.h5")


def test_a_trajectory_of_other_samples_is_refused(tmp_path: Path) -> None:
    scan = scan_of("spiral")
    path = written(scan, tmp_path / "scan.h5", scan.trajectory[:, ::-1])
    with pytest.raises(InputError, match=r"strongest at 0.\d+ of the end of k-space, not at its centre; it is reversed or of"):
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert not (tmp_path / "out").exists()


def test_too_few_spokes_for_maps_says_how_many(tmp_path: Path) -> None:
    scan = scan_of(trajectory=radial(7, 2 * N))
    path = written(scan, tmp_path / "scan.h5", scan.trajectory)
    with pytest.raises(InputError, match=r"7 readouts cover .* coil maps need 8 x 8: about \d+ readouts"):
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    scan = scan_of()
    path = written(scan, tmp_path / "scan.h5", scan.trajectory)
    np.save(tmp_path / "k.npy", scan.trajectory[:5])
    cases: tuple[tuple[dict[str, object], str], ...] = (
        ({"trajectory": tmp_path / "k.npy"}, r"the readouts need real numbers of shape \(72, 96, 2\)"),
        ({"trajectory": tmp_path / "none.npy"}, "cannot be read"),
        ({"trajectory": tmp_path / "k.txt"}, r"'.txt' files are not read"),
        ({"trajectory_units": "grid"}, "zero|cover"),
        ({"trajectory_units": "1/m"}, "cover"),
        ({"frames": 100}, "72 readouts cannot be divided"),
        ({"partial_fourier": "pocs"}, "POCS needs samples on a Cartesian grid"),
    )
    for options, match in cases:
        with pytest.raises(InputError, match=match):
            reconstruct_file(path, tmp_path / "out", RunOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give one of them"):
        RunOptions(frames=2, spokes_per_frame=3)
