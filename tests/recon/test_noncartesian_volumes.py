"""Scans whose planes are coupled, from file to image: 3-D radial, rotated and unequal stacks."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import recon
from kspace.errors import InputError
from kspace.io.mrd.flags import NOISE
from kspace.noncartesian import volume
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import kooshball, radial
from recon.compare.cases import volumes_of
from recon.methods.classical import CgSense, L1Wavelet, TotalVariation
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from tests.support import volumes
from tests.support.off_grid import image_of
from tests.support.volumes import (
    KOOSHBALL,
    PARTITIONS,
    STACK,
    UNEQUAL,
    UNEQUAL_PARTITIONS,
    N,
    error,
    shown,
    volume_scan,
    written,
)

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
LIMIT = 0.04


def test_sense_shows_the_phantom(tmp_path: Path) -> None:
    scan = volume_scan()
    image, truth = image_of(written(tmp_path / "scan.h5")), shown(scan)
    assert image.shape == (N, N, N)
    assert error(image, truth) < LIMIT
    assert np.abs(image[[0, -1]]).max() < 0.02 * np.abs(image).max()  # planes beside the object
    for axis in range(3):
        assert error(np.flip(image, axis), truth) > 0.2
    for turned in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        assert error(image.transpose(turned), truth) > 0.1


def test_rotated_and_unequal_partitions(tmp_path: Path) -> None:
    """By their counters alone, and by the kz that they state, whatever the counters."""
    scan, unequal = volume_scan(STACK), volume_scan(UNEQUAL)
    by_counter = image_of(written(tmp_path / "a.h5", scan, STACK[..., :2], partitions=PARTITIONS))
    by_kz = image_of(written(tmp_path / "b.h5", scan))
    assert error(by_counter, shown(scan)) < LIMIT
    assert np.allclose(by_kz, by_counter, atol=1e-3 * np.abs(by_kz).max())
    image = image_of(written(tmp_path / "c.h5", unequal, UNEQUAL[..., :2], partitions=UNEQUAL_PARTITIONS))
    assert error(image, shown(unequal)) < LIMIT


def test_partitions_between_those_of_the_grid(tmp_path: Path) -> None:
    stack = STACK.copy()
    stack[..., 2] += 0.4 / N * np.sin(np.arange(len(stack)))[:, None]
    scan = volume_scan(stack)
    assert error(image_of(written(tmp_path / "scan.h5", scan, partitions=PARTITIONS)), shown(scan)) < LIMIT


def test_equal_planes_are_still_separated(tmp_path: Path) -> None:
    """Also where kz is stated in place of the counters, and then in whatever order."""
    plane = radial(24, 2 * N)
    kz = np.repeat((np.arange(N) - N // 2)[::-1] / N, 24)[:, None, None]
    stack = np.concatenate([np.tile(plane, (N, 1, 1)), np.broadcast_to(kz, (N * 24, 2 * N, 1))], -1)
    scan = volume_scan(stack)
    image = image_of(written(tmp_path / "scan.h5", scan))
    assert error(image, shown(scan)) < LIMIT
    with recon.open(tmp_path / "scan.h5") as opened:
        assert "stack of equal planes" in opened.describe()


@pytest.mark.parametrize("scale", [(N, N, 12), (N / 0.24, N / 0.24, 12 / 0.2)])
def test_units_and_oblong_off_centre_fields_of_view(scale: tuple[float, float, float], tmp_path: Path) -> None:
    """In cycles per field of view, and in 1/m."""
    scan = volume_scan(matrix=(N, N, 12), fov_m=(0.24, 0.24, 0.2), position_m=(0.01, -0.015, 0.02))
    image = image_of(written(tmp_path / "scan.h5", scan, KOOSHBALL * scale), "zero-filled")
    assert image.shape == (12, N, N)
    assert error(image, shown(scan)) < 0.08
    assert error(image[::-1], shown(scan)) > 0.2


@pytest.mark.slow
def test_odd_matrices(tmp_path: Path) -> None:
    scan = volume_scan(matrix=(17, 15, 13), trajectory=kooshball(500, 34))
    image = image_of(written(tmp_path / "scan.h5", scan))
    assert image.shape == (13, 15, 17)
    assert error(image, shown(scan)) < LIMIT


def test_other_methods_agree_with_sense(tmp_path: Path) -> None:
    """With the coils' own maps; TV in space, wavelets in planes."""
    scan = volume_scan()
    maps = torch.from_numpy(volumes.coil_maps(scan)).to(torch.complex64)
    op = NonCartesianSense(maps / maps.abs().square().sum(0).sqrt(), torch.from_numpy(scan.trajectory))
    y, truth = torch.from_numpy(scan.samples()[0]), shown(scan)
    for method in (CgSense(), TotalVariation(iterations=8), L1Wavelet(iterations=6)):
        assert error(method(y, op).numpy(), truth) < 0.03
    zero_filled = op.zero_filled(y).numpy()
    sense = CgSense()(y, op).numpy()
    # In units of the image: zero-filled images compensate the density of samples.
    assert np.linalg.norm(np.abs(zero_filled) - np.abs(sense)) < 0.2 * np.linalg.norm(sense)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zero-filled", "l1-wavelet", "tv", "rss"])
def test_methods_by_name(method: str, tmp_path: Path) -> None:
    scan = volume_scan()
    image = image_of(written(tmp_path / "scan.h5"), method)
    assert error(image, shown(scan)) < 0.07


def test_frames_share_their_maps(tmp_path: Path) -> None:
    scan = volume_scan(kooshball(900, 2 * N))
    written(tmp_path / "scan.h5", scan)
    with recon.open(tmp_path / "scan.h5") as opened:
        frames = opened.reconstruct(method="sense", frames=3)
    assert [image.header.index.repetition for image in frames] == [0, 1, 2]
    for image in frames:
        assert error(image.numpy(), shown(scan)) < 0.06


def test_correlated_noise_is_whitened(tmp_path: Path) -> None:
    scan, rng = volume_scan(noise_std=0.02), np.random.default_rng(0)
    path = written(tmp_path / "scan.h5", scan)
    gains = np.array([1.0, 1.0, 1.0, 20.0])
    with h5py.File(path, "r+") as file:
        rows, kind = file["dataset/data"][:], file["dataset/data"].dtype
        for row in rows:
            row["data"] = (gains[:, None] * row["data"].reshape(4, -1)).astype(np.float32).ravel()
        noise = rows[:20].copy()
        noise["head"]["flags"] = NOISE
        for row in noise:
            row["data"] = (0.02 / np.sqrt(2) * gains[:, None] * rng.standard_normal((4, 4 * N))).astype(np.float32).ravel()
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=np.concatenate([noise, rows]), dtype=kind)
    assert error(image_of(path), shown(scan)) < 0.06
    assert error(image_of(path, virtual_coils=3), shown(scan)) < 0.1


def test_maps_of_a_file(tmp_path: Path) -> None:
    scan = volume_scan()
    maps = volumes.coil_maps(scan).astype(np.complex64)
    np.save(tmp_path / "maps.npy", maps)
    path = written(tmp_path / "scan.h5")
    assert error(image_of(path, maps=str(tmp_path / "maps.npy")), shown(scan)) < 0.02
    np.save(tmp_path / "maps.npy", maps[:, 1:])
    with pytest.raises(InputError, match=r"the data need \(coil z y x\) = \(4, 16, 16, 16\)"):
        image_of(path, maps=str(tmp_path / "maps.npy"))


def test_a_trajectory_of_a_file(tmp_path: Path) -> None:
    scan = volume_scan()
    path = written(tmp_path / "scan.h5", scan, np.zeros_like(KOOSHBALL[..., :2]))
    np.save(tmp_path / "k.npy", KOOSHBALL)
    image = image_of(path, "zero-filled", trajectory=tmp_path / "k.npy")
    assert error(image, shown(scan)) < 0.07


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("nan", "trajectory of readout 3 has 1 NaN or infinite"),
        ("mixed", "trajectories of 2, 3 dimensions are mixed"),
        ("zero", "zero everywhere"),
        ("units", "kz reaches 0.0625 of the end of k-space in the units of kx and ky"),
        ("beyond", "the trajectory reaches 3 times the end of k-space"),
        ("upper half", "third column of the trajectory is nowhere negative and differs between readouts: kz or a density"),
        ("plane", "kz changes along the readouts, and the encoded matrix has one partition"),
        ("falls", "kz falls while the partition counter rises"),
        ("counter", "partitions from .* lie outside the encoded matrix of 16|kspace_encode_step_2 runs from"),
        ("few", r"100 readouts cover . x . x . points of the centre of k-space, coil maps need 8 x 8 x 8: about \d+ readouts"),
    ],
)
def test_trajectories_that_cannot_be(damage: str, match: str, tmp_path: Path) -> None:
    stated, more, scan = KOOSHBALL.copy(), {}, volume_scan()
    if damage == "nan":
        stated[3, 5, 2] = np.nan
    elif damage == "zero":
        stated[:] = 0
    elif damage in ("units", "beyond"):
        stated[..., 2] *= 1 / 16 if damage == "units" else 3
    elif damage == "upper half":
        stated, more = np.abs(stated), {"partitions": np.arange(500) % N}
    elif damage == "plane":
        scan = volume_scan(matrix=(N, N, 1), fov_m=(0.24, 0.24, 0.005), trajectory=KOOSHBALL[..., :2])
    elif damage in ("falls", "counter"):
        scan, stated, more = volume_scan(STACK), STACK.copy(), {"partitions": PARTITIONS}
        stated[..., 2] *= -1
        if damage == "counter":
            stated, more = STACK[..., :2], {"partitions": PARTITIONS + 9}
    elif damage == "few":
        scan = volume_scan(KOOSHBALL[:100])
        stated = KOOSHBALL[:100]
    path = written(tmp_path / "scan.h5", scan, stated, **more)
    if damage == "mixed":
        with h5py.File(path, "r+") as file:
            rows = file["dataset/data"][:]
            rows["head"]["trajectory_dimensions"][3] = 2
            rows["traj"][3] = rows["traj"][3][: 4 * N]
            file["dataset/data"][:] = rows
    with pytest.raises(InputError, match=match) as raised:
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_methods_that_take_planes_for_independent_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.h5", volume_scan(KOOSHBALL[:20]))
    with pytest.raises(InputError, match="--density voronoi: the cells of samples in three dimensions are not computed"):
        reconstruct_file(path, tmp_path / "out", RunOptions(density="voronoi"))
    for options in ({"method": "refinegan"}, {"method": "llr", "frames": 2}):
        with pytest.raises(InputError, match="works plane by plane, and the trajectory couples all planes") as raised:
            reconstruct_file(path, tmp_path / "out", RunOptions(**options))  # type: ignore[arg-type]
        assert "choose rss, zero-filled, sense, l1-wavelet or tv" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_comparison_needs_scans_on_the_grid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples off the Cartesian grid cannot be undersampled by masks"):
        volumes_of("scans", written(tmp_path / "scan.h5", volume_scan(KOOSHBALL[:20])))


def test_volumes_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "scan.h5", volume_scan(KOOSHBALL[:20]))
    monkeypatch.setattr(volume, "LEAST_PER_VOXEL", 10**9)
    with pytest.raises(InputError, match=r"16 x 16 x 16 points and 4 coils needs about \d+\.\d GiB, this machine has"):
        reconstruct_file(path, tmp_path / "out", RunOptions())
    assert not (tmp_path / "out").exists()


def test_samples_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "scan.h5", volume_scan(KOOSHBALL[:20]))
    monkeypatch.setattr("kspace.noncartesian.checks.os.sysconf", lambda name: 100)
    with pytest.raises(InputError, match=r"640 samples of 4 coils need 0\.0 GiB, this machine has 0\.0; give --frames"):
        image_of(path)


def test_averages_are_more_samples(tmp_path: Path) -> None:
    scan = volume_scan(np.concatenate([KOOSHBALL, KOOSHBALL]), noise_std=0.1)
    path = written(tmp_path / "scan.h5", scan)
    alone = image_of(written(tmp_path / "alone.h5", volume_scan(noise_std=0.1)), "zero-filled")
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        rows["head"]["idx"]["average"] = np.repeat([0, 1], 500)
        file["dataset/data"][:] = rows
    assert error(image_of(path, "zero-filled"), shown(scan)) < error(alone, shown(scan))


def test_info_says_what_it_is(tmp_path: Path) -> None:
    with recon.open(written(tmp_path / "k.h5")) as opened:
        assert "trajectory in three dimensions (kz changes along the readouts): 500 readouts" in opened.describe()
    scan = volume_scan(STACK)
    with recon.open(written(tmp_path / "s.h5", scan, STACK[..., :2], partitions=PARTITIONS)) as opened:
        assert "trajectory in three dimensions (partitions differ in their trajectories)" in opened.describe()
