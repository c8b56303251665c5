"""Scans whose readouts carry no trajectory, and whose header describes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import recon
from kspace.errors import InputError
from kspace.noncartesian.trajectory import golden_angles, radial, spiral
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from tests.support.off_grid import error, image_of, put, rows_of, scan_of, shown
from tests.support.spirals import ARM, PARAMETERS, described, integrated

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")


def arms() -> NDArray[np.float64]:
    """All arms, in fractions of k-space of 48 pixels over 0.24 m; by Gadgetron's signs."""
    one = -integrated(ARM, 600) * 0.5
    turned = (one[:, 0] + 1j * one[:, 1]) * np.exp(-2j * np.pi * np.arange(8) / 8)[:, None]
    return np.stack([turned.real, turned.imag], -1)


def spiral_file(path: Path, scan: TrajectoryScan, stated: NDArray[np.float64] | None = None, **changes: float) -> Path:
    write_trajectory_scan(scan, path, stated)
    rows = rows_of(path)
    rows["head"]["sample_time_us"] = 4.0
    put(path, rows)
    return described(path, "HargreavesVDS2000", {**PARAMETERS, **changes})


def test_a_spiral_that_the_header_describes(tmp_path: Path) -> None:
    scan = scan_of("spiral", trajectory=arms())
    path = spiral_file(tmp_path / "scan.h5", scan)
    image = image_of(path)
    # Steps of 4 us, 0.1 points of k-space off at most; 0.028 where the truth is stepped as well.
    assert error(image, shown(scan)) < 0.07
    assert error(image[::-1, ::-1], shown(scan)) > 0.3
    with recon.open(path) as opened:
        said = opened.describe()
    assert "the readouts carry none, computed from the header (trajectoryDescription HargreavesVDS2000)" in said
    # What the readouts carry is taken, right or wrong.
    assert error(image_of(spiral_file(tmp_path / "scan.h5", scan, -scan.trajectory)), shown(scan)) > 0.3


def test_samples_beyond_the_arm_are_dropped(tmp_path: Path) -> None:
    scan = scan_of("spiral", trajectory=arms())
    longer = np.concatenate([scan.trajectory, scan.trajectory[:, -1:], np.full((8, 28, 2), 0.1)], 1)
    path = spiral_file(tmp_path / "scan.h5", scan_of("spiral", trajectory=longer))
    with pytest.warns(recon.ReconWarning, match=r"arms computed from .*, 492 of 520 samples used"):
        image = image_of(path)
    assert error(image, shown(scan)) < 0.07


def test_pixels_that_disagree_are_stated_and_the_size_is_that_of_the_field_of_view(tmp_path: Path) -> None:
    scan = scan_of("spiral", trajectory=arms()[:, :430])
    path = spiral_file(tmp_path / "scan.h5", scan, krmax_per_cm=0.9)
    with pytest.warns(recon.ReconWarning, match=r"krmax_per_cm 0.9 makes pixels of 5.56 mm, the encoded ones have 5 x 5:"):
        image = image_of(path)
    assert error(image, shown(scan)) < 0.12  # blurred; 11 % smaller it would be 0.3 off


def test_what_does_not_describe_it(tmp_path: Path) -> None:
    scan = scan_of("spiral", trajectory=arms()[:, :100])
    for changes, message in (
        ({"interleaves": 6}, "kspace_encode_step_1 reaches 7, trajectoryDescription has 6 interleaves"),
        ({"MaxGradient_G_per_cm": 0.0}, "has MaxGradient_G_per_cm = 0, expected more than 0"),
        ({"SamplingTime_ns": 2500}, "sample_time_us is 4, SamplingTime_ns of trajectoryDescription 2500"),
    ):
        path = spiral_file(tmp_path / "scan.h5", scan, **changes)
        with pytest.raises(InputError, match=message):
            image_of(path)
    write_trajectory_scan(scan, path, None)
    with pytest.raises(InputError, match=r"lacks interleaves, .*; complete trajectoryDescription, or give --trajectory FILE"):
        image_of(described(path, "HargreavesVDS2000", {"readTime_ns": 64, "simplingTime_ns": 2}))


@pytest.mark.parametrize("kind", ["radial", "other"])
def test_golden_angles_that_only_the_description_names(kind: str, tmp_path: Path) -> None:
    scan = replace(scan_of("goldenangle"), kind=kind)
    for identifier in ("Golden-Angle", "radialGOLDENratio"):
        write_trajectory_scan(scan, tmp_path / "scan.h5", None)
        assert error(image_of(described(tmp_path / "scan.h5", identifier, {})), shown(scan)) < 0.035


# What files say, and what their spokes are.
ORDERS = {
    "golden as radial": ("radial", golden_angles(60), np.arange(60), 59, "60 equal angles over half a circle"),
    "counters restart": ("goldenangle", golden_angles(60), np.arange(60) % 20, 19, "golden angle,"),
    "whole circle": ("radial", np.arange(60) * 2 * np.pi / 60, np.arange(60), 59, "60 equal angles over half a circle"),
    "no limits": ("radial", np.arange(60) * np.pi / 60, np.arange(60), 0, "1 equal angles over half a circle"),
    "half a circle": ("radial", np.arange(60) * np.pi / 60, np.arange(60), 59, ""),
}


# With much noise half and whole circles are not told apart: what the header says stays.
@pytest.mark.parametrize(
    ("name", "noise_std"), [*((name, 0.01) for name in ORDERS), *((n, 0.3) for n in ORDERS if n != "whole circle")]
)
def test_the_order_of_spokes_that_fits_is_taken(name: str, noise_std: float, tmp_path: Path) -> None:
    kind, angles, counter, last, says = ORDERS[name]
    scan = replace(scan_of(trajectory=radial(60, 96, angles), noise_std=noise_std), kind=kind)
    path = tmp_path / "scan.h5"
    write_trajectory_scan(scan, path, None)
    rows = rows_of(path)
    rows["head"]["idx"]["kspace_encode_step_1"] = counter
    put(path, rows)
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        file["dataset/xml"][0] = xml.replace("<maximum>59</maximum>", f"<maximum>{last}</maximum>", 1).encode()
    with recon.open(path) as opened:
        image = opened.reconstruct(method="zero-filled", gradient_delay="none")[0].numpy()
        warnings = [line for line in opened.warnings if "neighbouring spokes agree" in line]
    assert len(warnings) == bool(says)
    assert all(f"for {says}" in line and line.endswith("which is taken") for line in warnings)
    stated = image_of_stated(scan, path)
    assert np.linalg.norm(np.abs(image) - np.abs(stated)) < 0.02 * np.linalg.norm(stated)


def test_spokes_are_equally_long_whatever_the_encoded_pixels_are(tmp_path: Path) -> None:
    """As where the header has the number of spokes for the encoded matrix along y."""
    scan = scan_of()
    path = tmp_path / "scan.h5"
    write_trajectory_scan(scan, path, None)
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        file["dataset/xml"][0] = xml.replace("<y>48</y>", "<y>36</y>", 1).encode()
    with pytest.warns(recon.ReconWarning, match="encoded pixels are 5 x 6.67 mm: those of x taken for both"):
        assert error(image_of(path), shown(scan)) < 0.035


def test_partial_echoes_reach_the_end_on_their_longer_side(tmp_path: Path) -> None:
    angles = golden_angles(100)
    whole = radial(100, 96, angles)
    scan = replace(scan_of("goldenangle"), trajectory=whole[:, 32:])
    write_trajectory_scan(scan, tmp_path / "scan.h5", None)
    rows = rows_of(tmp_path / "scan.h5")
    rows["head"]["center_sample"] = 16
    put(tmp_path / "scan.h5", rows)
    assert error(image_of(tmp_path / "scan.h5"), shown(scan)) < 0.05


def image_of_stated(scan: TrajectoryScan, path: Path) -> NDArray[np.complex64]:
    write_trajectory_scan(scan, path, scan.trajectory)
    return image_of(path, "zero-filled", gradient_delay="none")


def test_echoes_of_different_length(tmp_path: Path) -> None:
    scans = [scan_of("spiral", trajectory=spiral(24, n, 2.0)) for n in (400, 300)]
    every = []
    for i, scan in enumerate(scans):
        write_trajectory_scan(scan, tmp_path / "scan.h5", scan.trajectory)
        every.append(rows_of(tmp_path / "scan.h5"))
        every[i]["head"]["idx"]["contrast"] = i
    put(tmp_path / "scan.h5", np.concatenate(every))
    with recon.open(tmp_path / "scan.h5") as opened:
        images = opened.reconstruct(method="sense")
        np.save(tmp_path / "k.npy", scans[0].trajectory)
        with pytest.raises(InputError, match="the readouts have 300 to 400 samples, a trajectory for all needs one length"):
            opened.reconstruct(method="sense", trajectory=tmp_path / "k.npy")
    for image, scan in zip(images, scans, strict=True):
        assert error(image.numpy(), shown(scan)) < 0.04
