"""Echo-planar files whose marks do not say how their readouts run: the samples do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kspace import preprocess
from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid, shot_parity
from kspace.fourier import ifft
from kspace.io.mrd import MrdScan, open_scan
from kspace.io.mrd.flags import CALIBRATION, PHASE_CORRECTION, REVERSE
from kspace.io.mrd.write import header_xml, write_raw
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    accelerate,
    cartesian,
    coil_covariance,
    discard,
    reverse_readouts,
    with_limits,
)
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure, true_image
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.0), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
    )
)
LOBE = Trapezoid(160, 240, 160, 80, 6.2)
PLANTED = OddEvenPhase(0.7, -0.03)
Flags = NDArray[np.bool_]


def plain(oversampling: float = 1.0) -> Acquisition:
    return cartesian(ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005), oversampling), PHANTOM, head_coils(3))


def navigators(scan: Acquisition) -> Flags:
    return (scan.headers["flags"] & PHASE_CORRECTION) != 0


def written(scan: Acquisition, path: Path, turned: Flags | None = None) -> MrdScan:
    """The scan with the readouts `turned` turned around."""
    samples = measure(scan)
    if turned is not None:
        samples = [np.ascontiguousarray(y[:, ::-1]) if t else y for y, t in zip(samples, turned, strict=True)]
    write_raw(path, header_xml(with_limits(scan)), scan.headers, samples)
    return open_scan(path)


def error(read: MrdScan, scan: Acquisition) -> float:
    """Of the coil images, relative to the truth."""
    k = preprocess.remove_oversampling(read.load(0, ImageIndex()))
    image = preprocess.to_recon_matrix(ifft(k.data), k.header).numpy()
    truth = true_image(scan, scan.coils)[:, 0]
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("n_navigators", [3, 2])
@pytest.mark.parametrize("like_lines", [True, False])
def test_the_directions_of_unmarked_navigators_are_those_of_the_central_line(
    n_navigators: int, like_lines: bool, tmp_path: Path
) -> None:
    """The first line may run as the last navigator did, or against it."""
    scan = echo_planar(plain(), LOBE, 1, n_navigators, PLANTED, is_marked=False)
    assert scan.is_reversed is not None
    if like_lines:
        scan = replace(scan, is_reversed=scan.is_reversed ^ navigators(scan))
    assert error(written(scan, tmp_path / "scan.h5"), scan) < 0.02


def test_marks_on_the_lines_alone_are_enough(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, phase=PLANTED)
    scan.headers["flags"][navigators(scan)] &= ~REVERSE
    read = written(scan, tmp_path / "scan.h5")
    assert error(read, scan) < 0.02
    assert not any("minimum entropy" in w for w in read.warnings)


@pytest.mark.parametrize(
    ("n_navigators", "of"),
    [(0, lambda scan: scan.is_reversed), (3, lambda scan: scan.is_reversed & ~navigators(scan))],
)
def test_lines_that_were_turned_already_are_told_by_their_neighbours(
    n_navigators: int, of: Callable[[Acquisition], Flags], tmp_path: Path
) -> None:
    """Marked and turned: without navigators, and where only the lines were turned."""
    scan = echo_planar(plain(), LOBE, 1, n_navigators, PLANTED)
    read = written(scan, tmp_path / "scan.h5", of(scan))
    assert error(read, scan) < 0.02
    assert any("run like the others: not turned" in w for w in read.warnings)


@pytest.mark.parametrize("is_marked", [True, False])
def test_samples_to_discard_tell_nothing(is_marked: bool, tmp_path: Path) -> None:
    scan = discard(echo_planar(plain(), LOBE, phase=PLANTED, is_marked=is_marked), 3, 1)
    read = written(scan, tmp_path / "scan.h5")
    assert error(read, scan) < 0.1  # the outermost points of the grid are lost
    assert not any("not turned" in w for w in read.warnings)


def test_lines_that_were_turned_and_lost_their_marks_keep_no_ghost(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, phase=PLANTED)
    turned = scan.is_reversed
    scan.headers["flags"] &= ~REVERSE
    read = written(scan, tmp_path / "scan.h5", turned)
    assert error(read, scan) < 0.02
    assert any("every second one has another phase" in w for w in read.warnings)


def flat() -> Acquisition:
    """Evenly spaced, in an encoding that is Cartesian by its header, without a description."""
    scan = echo_planar(plain(2.0), Trapezoid(0, 320, 0, 64, 5.0), 1, 0, PLANTED)
    return replace(scan, spaces=(replace(scan.spaces[0], trajectory="cartesian", parameters={}),))


def test_an_echo_train_that_nothing_names_is_told_by_its_lines(tmp_path: Path) -> None:
    """As philips_to_ismrmrd writes it."""
    scan = flat()
    scan.headers["flags"] &= ~REVERSE
    read = written(scan, tmp_path / "scan.h5")
    assert error(read, scan) < 0.02
    assert any("every second line is mirrored: taken as echo-planar" in w for w in read.warnings)


def test_marked_lines_of_a_cartesian_encoding_keep_no_ghost(tmp_path: Path) -> None:
    scan = flat()
    read = written(scan, tmp_path / "scan.h5")
    assert error(read, scan) < 0.02
    assert any("lines run both ways and differ in phase" in w for w in read.warnings)
    read.ghost = "none"
    assert error(read, scan) > 0.2


@pytest.mark.parametrize("change", ["none", "noise", "marked"])
def test_a_cartesian_scan_stays_one(change: str, tmp_path: Path) -> None:
    scan = reverse_readouts(plain(2.0)) if change == "marked" else plain(2.0)
    if change == "noise":
        scan = replace(scan, gain=0 * scan.gain, covariance=coil_covariance(3, 1.0))
    read = written(scan, tmp_path / "scan.h5")
    read.load(0, ImageIndex())
    assert not read.encodings[0].is_epi
    assert not any("both ways" in w for w in read.warnings)


def test_missing_ramp_times_are_warned_of(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, phase=PLANTED)
    read = written(replace(scan, spaces=(replace(scan.spaces[0], parameters={"etl": 32}),)), tmp_path / "scan.h5")
    assert any("no ramp times of the EPI readout" in w for w in read.warnings)


def test_reference_lines_of_a_gradient_echo_in_the_same_encoding_are_no_echo_trains(tmp_path: Path) -> None:
    """As siemens_to_ismrmrd writes them without --flashPatRef; the protocol may even call them embedded."""
    fast, slow = echo_planar(accelerate(plain(), 2), LOBE, phase=PLANTED), plain(2.0)
    rows = np.flatnonzero(np.abs(slow.headers["idx"]["kspace_encode_step_1"].astype(int) - 16) <= 6)
    headers = slow.headers[rows].copy()
    headers["flags"] |= CALIBRATION
    lines = measure(replace(slow, headers=slow.headers[rows].copy(), gain=slow.gain[rows]))
    write_raw(
        tmp_path / "scan.h5", header_xml(with_limits(fast)), np.concatenate([headers, fast.headers]), [*lines, *measure(fast)]
    )
    read = open_scan(tmp_path / "scan.h5")
    k = read.load(0, ImageIndex())
    whole = written(echo_planar(plain(), LOBE), tmp_path / "whole.h5").load(0, ImageIndex())
    assert k.calibration is not None
    off = 2**0.5 * k.calibration[:, 10:23] - whole.data[:, 10:23]  # the units of `Phantom.kspace` go with the encoded matrix
    assert (off.abs() / whole.data.abs().max()).max() < 0.03
    assert any("its calibration lines run one way: no echo trains" in w for w in read.warnings)


def test_reference_trains_of_another_length_are_not_used(tmp_path: Path) -> None:
    scan = echo_planar(accelerate(plain(), 2, calibration=12, mode="separate"), LOBE)
    reference = (scan.headers["flags"] & CALIBRATION) != 0
    samples = [y[:, 4:-4] if one else y for y, one in zip(measure(scan), reference, strict=True)]
    scan.headers["number_of_samples"][reference] -= 8
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(scan)), scan.headers, samples)
    read = open_scan(tmp_path / "scan.h5")
    assert read.load(0, ImageIndex()).calibration is None
    assert any("calibration lines of 72 samples run both ways, those of its images have 80" in w for w in read.warnings)


@pytest.mark.parametrize(
    ("rows", "parity"),
    [(range(4), [0, 1, 0, 1]), ([0, 2, 4, 1, 3, 5], [0, 1, 0, 0, 1, 0]), ([5, 3, 1, 4, 2, 0], [0, 1, 0, 0, 1, 0]), ([7], [0])],
)
def test_every_shot_starts_anew(rows: list[int], parity: list[int]) -> None:
    assert shot_parity(np.array(rows)).astype(int).tolist() == parity
