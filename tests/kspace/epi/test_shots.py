"""Phases between shots and between groups of coils, planted in navigators and in files, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kspace import preprocess
from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid, coil_groups, count_shots, group_phases, shot_phase
from kspace.fourier import ifft
from kspace.io.mrd import MrdScan, open_scan
from kspace.io.mrd.flags import PHASE_CORRECTION
from kspace.io.mrd.write import header_xml, write_raw
from kspace.simulation.acquisition import Acquisition, ScanProtocol, cartesian, with_limits
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure, true_image
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.002), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
    )
)
LOBE = Trapezoid(160, 240, 160, 80, 6.2)
Samples = list[NDArray[np.complex64]]


def multi_shot(n_shots: int, n_navigators: int = 3, phase: OddEvenPhase | None = None, n_coils: int = 3) -> Acquisition:
    scan = cartesian(ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005)), PHANTOM, head_coils(n_coils))
    return echo_planar(scan, LOBE, n_shots, n_navigators, phase)


def shots_of(scan: Acquisition) -> NDArray[np.int64]:
    """Number of the shot of each readout of a scan with navigators."""
    navigates = (scan.headers["flags"] & PHASE_CORRECTION) != 0
    return np.cumsum(navigates & ~np.concatenate([[False], navigates[:-1]])) - 1


def written(scan: Acquisition, samples: Samples, path: Path, names: Sequence[str] = ()) -> MrdScan:
    labels = "".join(
        f"<coilLabel><coilNumber>{i}</coilNumber><coilName>{name}</coilName></coilLabel>" for i, name in enumerate(names)
    )
    xml = header_xml(with_limits(scan), {"acquisitionSystemInformation": {"receiverChannels": scan.coils.n_coils}})
    write_raw(path, xml.replace("</receiverChannels>", f"</receiverChannels>{labels}"), scan.headers, samples)
    return open_scan(path)


def error(read: MrdScan, scan: Acquisition) -> float:
    """Of the coil images, relative to the truth, up to one phase."""
    k = preprocess.remove_oversampling(read.load(0, ImageIndex()))
    image = preprocess.to_recon_matrix(ifft(k.data), k.header).numpy()
    truth = true_image(scan, scan.coils)[:, 0]
    turn = np.vdot(image, truth)
    return float(np.linalg.norm(image * turn / abs(turn) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("n_shots", [2, 4])
def test_the_phase_between_shots_is_taken_from_their_navigators(n_shots: int, tmp_path: Path) -> None:
    scan = multi_shot(n_shots, phase=OddEvenPhase(0.7, -0.03))
    planted = np.random.default_rng(n_shots).uniform(-3, 3, n_shots)
    samples = [y * np.exp(1j * planted[s]).astype(np.complex64) for y, s in zip(measure(scan), shots_of(scan), strict=True)]
    read = written(scan, samples, tmp_path / "scan.h5")
    assert error(read, scan) < 0.01
    found = [shot["constant_rad"] for shot in read.load(0, ImageIndex()).header.study["shot_phase"]]
    central = 16 % n_shots
    assert np.abs(np.angle(np.exp(1j * (np.array(found) - planted + planted[central])))).max() < 2e-3
    assert any("phase differs between shots" in w for w in read.warnings)
    read.ghost = "none"
    assert error(read, scan) > 0.2


def test_nothing_is_said_where_shots_are_in_phase(tmp_path: Path) -> None:
    scan = multi_shot(2)
    read = written(scan, measure(scan), tmp_path / "scan.h5")
    assert error(read, scan) < 1e-3
    assert not any("shots" in w for w in read.warnings)


def test_navigators_that_do_not_agree_are_no_measure_of_the_phase(tmp_path: Path) -> None:
    scan = multi_shot(2)
    samples, shots = measure(scan), shots_of(scan)
    rng = np.random.default_rng(0)
    for i in np.flatnonzero(((scan.headers["flags"] & PHASE_CORRECTION) != 0) & (shots == 1)):
        samples[i] = samples[i] * np.exp(2j * np.pi * rng.random((3, 1))).astype(np.complex64)
    read = written(scan, samples, tmp_path / "scan.h5")
    read.ghost = "linear"
    read.load(0, ImageIndex())
    assert any("agree by 0." in w and "the phase between them is not corrected" in w for w in read.warnings)


def test_shots_without_navigators_are_warned_of(tmp_path: Path) -> None:
    scan = multi_shot(4, n_navigators=0)
    read = written(scan, measure(scan), tmp_path / "scan.h5")
    read.load(0, ImageIndex())
    assert any("4 shots without navigators: the phase between them is not corrected" in w for w in read.warnings)


def test_the_linear_phase_between_shots() -> None:
    rng = np.random.default_rng(3)
    a = (rng.standard_normal((3, 2, 40)) + 1j * rng.standard_normal((3, 2, 40))).astype(np.complex64)
    x = np.arange(40) - 20
    found = shot_phase(a, (a * np.exp(1j * (-2.5 + 0.08 * x))).astype(np.complex64))
    assert (found.constant_rad, found.linear_rad) == pytest.approx((-2.5, 0.08), abs=1e-5)
    assert found.agreement == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.correction(40), np.exp(1j * (2.5 - 0.08 * x)), atol=1e-3)
    assert shot_phase(a, 0 * a).agreement == 1  # nothing to correct, nothing to say


def test_coil_arrays_with_delays_of_their_own(tmp_path: Path) -> None:
    """A body and a head array: their receivers differ by a quarter of a sample and half a radian."""
    planted = (OddEvenPhase(0.4, -0.02), OddEvenPhase(0.9, 0.03))
    first, second = (multi_shot(1, phase=phase, n_coils=4) for phase in planted)
    samples = [np.concatenate([a[:2], b[2:]]) for a, b in zip(measure(first), measure(second), strict=True)]
    names = ("Body:1:B1", "Body:1:B2", "Head_32:1:H1", "Head_32:1:H2")
    read = written(first, samples, tmp_path / "scan.h5", names)
    assert error(read, first) < 0.01
    found = read.load(0, ImageIndex()).header.study["odd_even_phase"]
    assert [phase["coils"] for phase in found] == [[0, 1], [2, 3]]
    for phase, wanted in zip(found, planted, strict=True):
        assert (phase["constant_rad"], phase["linear_rad"]) == pytest.approx((wanted.constant_rad, wanted.linear_rad), abs=2e-3)
    assert error(written(first, samples, tmp_path / "unnamed.h5"), first) > 0.05


def test_a_group_of_coils_that_differs_by_noise_alone_gets_the_phase_of_all() -> None:
    rng = np.random.default_rng(0)
    n, reverse = 64, np.array([True, False, True])
    object_ = (np.abs(np.arange(n) - 30) < 20) * np.array([[1.0], [1.0], [0.05]])
    phase = OddEvenPhase(0.5, 0.02)
    lines = np.array([object_ * np.conj(phase.correction(n, back)) for back in reverse])
    lines = lines + 0.03 * (rng.standard_normal(lines.shape) + 1j * rng.standard_normal(lines.shape))
    found = group_phases(lines.astype(np.complex64), reverse, [np.array([0, 1]), np.array([2])])
    assert found is not None
    assert found[1] == found[0]


def test_groups_of_coils_by_their_names() -> None:
    names = ("Body:1:B1", "Head_32:1:H1", "Body:1:B2", "Body:2:B1")
    assert [group.tolist() for group in coil_groups(names, 4)] == [[0, 2], [1], [3]]
    assert [group.tolist() for group in coil_groups((), 3)] == [[0, 1, 2]]
    assert [group.tolist() for group in coil_groups(("a", "b"), 2)] == [[0, 1]]
    assert [group.tolist() for group in coil_groups(("A:1:1",), 2)] == [[0, 1]]


@pytest.mark.parametrize(
    ("rows", "n"),
    [(range(8), 1), (range(7, -1, -1), 1), ([0, 2, 4, 1, 3, 5], 2), ([5, 3, 1, 4, 2, 0], 2), ([3], 1), ([0, 1, 0, 1, 0, 1], 3)],
)
def test_shots_are_told_by_the_order_of_their_lines(rows: Sequence[int], n: int) -> None:
    assert count_shots(np.array(rows)) == n


def test_partitions_are_not_compared(tmp_path: Path) -> None:
    """Navigators of a 3-D scan may be encoded along kz: their phases are not those of shots."""
    scan = cartesian(ScanProtocol((32, 16, 4), (0.24, 0.24, 0.1)), PHANTOM, head_coils(2))
    idx = scan.headers["idx"]["kspace_encode_step_2"].astype(int)
    parts = [
        echo_planar(replace(scan, headers=scan.headers[idx == z].copy(), gain=scan.gain[idx == z]), LOBE) for z in range(4)
    ]
    headers = np.concatenate([part.headers for part in parts])
    whole = replace(parts[0], headers=headers, gain=np.ones(len(headers)))
    samples = [y for part in parts for y in measure(part)]
    read = written(whole, samples, tmp_path / "scan.h5")
    assert "shot_phase" not in read.load(0, ImageIndex()).header.study
    assert not any("shots" in w for w in read.warnings)
