"""Positions of samples that the file states itself: trajectories of readouts, and Pulseq sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid
from kspace.epi.pulseq import read_lines
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io.mrd import open_scan
from kspace.io.mrd.flags import REVERSE
from kspace.io.mrd.write import header_xml, write_raw
from kspace.io.twix import to_ismrmrd
from kspace.simulation.acquisition import ScanProtocol, cartesian, with_limits
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

LOBE = Trapezoid(160, 240, 160, 80, 6.2)
SEQUENCE = """# Pulseq sequence file
[VERSION]
major 1
minor 4
revision 0
[DEFINITIONS]
BlockDurationRaster 1e-05
FOV 0.2 0.2 0.004
[BLOCKS]
1 100 1 0 0 0 0 0
2 20 0 1 2 0 0 0
3 40 0 3 0 0 1 0
4 2 0 0 4 0 0 0
5 40 0 5 0 0 1 0
6 2 0 0 4 0 0 0
7 40 0 3 0 0 1 0
8 2 0 0 4 0 0 0
9 40 0 5 0 0 1 0
[TRAP]
1 -100000 50 0 50 0
2 -200000 50 0 50 0
3 25641.0256 10 380 10 0
4 500000 10 0 10 0
5 -25641.0256 10 380 10 0
[ADC]
1 40 9000 20 0 0
"""


def _written(path: Path, scale: float, dimensions: NDArray[np.int64] | None = None) -> None:
    phantom = Phantom((ellipsoid((0.01, -0.005, 0.0), (0.06, 0.08, 0.08), 20.0),))
    scan = echo_planar(cartesian(ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005)), phantom, head_coils(2)), LOBE)
    k = LOBE.trajectory(64).astype(np.float32)[:, None] * scale
    scan.headers["trajectory_dimensions"] = 1 if dimensions is None else dimensions[: len(scan.headers)]
    ways = [-k if back else k for back in (scan.is_reversed if scan.is_reversed is not None else [])]
    points = [way if n else way[:0] for way, n in zip(ways, scan.headers["trajectory_dimensions"], strict=True)]
    plain = [replace(space, parameters={}) for space in with_limits(scan)]
    write_raw(path, header_xml(plain), scan.headers, measure(scan), points)
    write_raw(path.with_name("described.h5"), header_xml(with_limits(scan)), scan.headers, measure(scan), points)


@pytest.mark.parametrize("scale", [1.0, 1 / 64, 1 / 0.48])  # of 1 / (field of view), cycles per pixel, 1 / m
def test_the_trajectory_of_readouts_stands_in_for_the_trapezoid(scale: float, tmp_path: Path) -> None:
    _written(tmp_path / "scan.h5", scale)
    image = ifft(open_scan(tmp_path / "scan.h5").load(0, ImageIndex()).data)
    described = ifft(open_scan(tmp_path / "described.h5").load(0, ImageIndex()).data)
    assert (image - described).abs().max() < 1e-4 * described.abs().max()


def test_a_trajectory_in_no_known_unit_is_refused(tmp_path: Path) -> None:
    _written(tmp_path / "scan.h5", 1e4)
    with pytest.raises(InputError, match=r"trajectory along the readout reaches .*, expected about 0.5, 32 or"):
        open_scan(tmp_path / "scan.h5")


def test_lines_with_and_without_a_trajectory_in_one_encoding_are_refused(tmp_path: Path) -> None:
    _written(tmp_path / "scan.h5", 1.0, np.arange(100) % 7 > 0)
    with pytest.raises(InputError, match=r"readout \d+ of encoding 0 carries a trajectory, readout 7 none"):
        open_scan(tmp_path / "scan.h5")


def test_a_trajectory_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    _written(tmp_path / "scan.h5", np.nan)
    with pytest.raises(InputError, match=r"readout 3 has 80 trajectory values, 80 of them NaN"):
        open_scan(tmp_path / "scan.h5")


@pytest.mark.parametrize("says", ["flags and counters", "counters", "nothing"])
@pytest.mark.parametrize(("trajectory", "units"), [("other", (1 / 64, 1 / 32)), ("cartesian", (1 / 0.48, 1 / 0.24))])
def test_trajectories_tell_echo_trains_directions_and_lines(
    trajectory: str, units: tuple[float, float], says: str, tmp_path: Path
) -> None:
    """As converters of Pulseq data write them; `units` of kx and ky in those of 1 / (field of view)."""
    phantom = Phantom((ellipsoid((0.01, -0.005, 0.0), (0.06, 0.08, 0.08), 20.0),))
    scan = echo_planar(
        cartesian(ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005)), phantom, head_coils(2)), LOBE, phase=OddEvenPhase(0.7, -0.03)
    )
    samples = measure(scan)
    write_raw(tmp_path / "described.h5", header_xml(with_limits(scan)), scan.headers, samples)
    back = scan.is_reversed
    assert back is not None
    k, ky = LOBE.trajectory(64), scan.headers["idx"]["kspace_encode_step_1"].astype(int) - 16
    points = [
        np.stack([(-k if b else k) * units[0], np.full(80, y * units[1])], 1).astype(np.float32)
        for b, y in zip(back, ky, strict=True)
    ]
    headers = scan.headers.copy()
    headers["trajectory_dimensions"] = 2
    headers["flags"] &= ~(REVERSE if says != "flags and counters" else np.uint64(0))
    headers["idx"]["kspace_encode_step_1"] *= says != "nothing"
    spaces = [replace(space, parameters={}, trajectory=trajectory) for space in with_limits(scan)]
    write_raw(tmp_path / "scan.h5", header_xml(spaces), headers, samples, points)
    read = open_scan(tmp_path / "scan.h5")
    described = open_scan(tmp_path / "described.h5").load(0, ImageIndex()).data
    assert (read.load(0, ImageIndex()).data - described).abs().max() < 1e-4 * described.abs().max()
    assert any("its trajectories are lines both ways along kx: taken as echo-planar" in w for w in read.warnings)


def test_the_lines_of_a_pulseq_sequence(tmp_path: Path) -> None:
    (tmp_path / "epi.seq").write_text(SEQUENCE)
    lines = read_lines(tmp_path / "epi.seq")
    assert lines.rows.tolist() == [0, 1, 2, 3]
    assert lines.fov_m == (0.2, 0.2, 0.004)
    assert lines.matrix[1] == 4
    forward, backward = lines.kx[0], lines.kx[1]
    assert np.all(np.diff(forward) > 0)
    np.testing.assert_allclose(backward, forward[::-1], atol=1e-6)
    np.testing.assert_allclose(np.diff(forward), 25641.0256 * 9e-6 * 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("FOV 0.2 0.2 0.004", ""), "defines no field of view"),
        (("[ADC]", "[OTHER]"), "not a Pulseq sequence with readouts"),
        (("3 40 0 3 0 0 1 0", "3 40 0 9 0 0 1 0"), "a gradient is not a trapezoid"),
        (("3 40 0 3 0 0 1 0", "3 40 0 3 3 0 1 0"), "not lines along kx"),
    ],
)
def test_other_sequences_are_refused(change: tuple[str, str], text: str, tmp_path: Path) -> None:
    (tmp_path / "epi.seq").write_text(SEQUENCE.replace(*change))
    with pytest.raises(InputError, match=text):
        read_lines(tmp_path / "epi.seq")


def test_a_pulseq_scan_takes_the_sequence_beside_it(data_dir: Path, tmp_path: Path) -> None:
    notes = to_ismrmrd(data_dir / "raw" / "pulseq_epi_02_01_ro_dur_1200_pep.dat", tmp_path / "epi.h5")
    assert notes == ("trajectory from pulseq_epi_02_01_ro_dur_1200_pep.seq",)
    scan = open_scan(tmp_path / "epi.h5")
    assert scan.encodings[0].encoded_matrix == (60, 60, 1)
    image = ifft(scan.load(0, ImageIndex()).data).abs()[0]
    corners = image[:12, :12].mean() + image[-12:, :12].mean() + image[-12:, -12:].mean()
    assert corners < 0.15 * image[20:40, 20:40].mean()


def test_the_ghost_of_a_real_phantom_is_below_two_percent(data_dir: Path, tmp_path: Path) -> None:
    to_ismrmrd(data_dir / "raw" / "skyra_epi.dat", tmp_path / "epi.h5")
    scan = open_scan(tmp_path / "epi.h5")
    energies = {}
    inside = None
    for ghost in ("linear", "polynomial", "entropy", "none"):
        scan.ghost = ghost
        energy = ifft(scan.load(0, ImageIndex()).data).abs().square().sum(0)[:, 40:120].numpy()
        inside = energy > 0.01 * np.percentile(energy, 99.5) if inside is None else inside
        shifted = np.roll(inside, 40, axis=0) & ~inside
        energies[ghost] = float(energy[shifted].sum() / energy[inside].sum())
    assert max(energies["linear"], energies["polynomial"], energies["entropy"]) < 0.005
    assert energies["none"] > 2 * energies["linear"]


def test_navigators_carry_no_image_lines(tmp_path: Path) -> None:
    _written(tmp_path / "scan.h5", 1.0)
    scan = open_scan(tmp_path / "scan.h5")
    assert scan.encodings[0].n_readouts == 32
    assert scan.n_readouts == 35
