"""Trajectories of Pulseq sequences against the gradients that were put into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kspace.errors import InputError
from kspace.noncartesian.pulseq import read_trajectory
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.simulation.noncartesian import write_trajectory_scan
from tests.support.off_grid import N, error, image_of, scan_of, shown

pypulseq = pytest.importorskip("pypulseq")
pytestmark = pytest.mark.filterwarnings("ignore")
SPOKES, FOV = 60, 0.24


def sequence(path: Path, n: int = 2 * N, tilt: float = 0.0) -> np.ndarray:
    """Golden-angle spokes through the centre, and where their samples lie in 1/m, ``(spoke sample 2)``."""
    made = pypulseq.Sequence(pypulseq.Opts(max_grad=40, grad_unit="mT/m", max_slew=150, slew_unit="T/m/s"))
    pulse = pypulseq.make_block_pulse(flip_angle=0.1, duration=1e-3, use="excitation")
    dwell, width = 1e-5, N / FOV
    expected = []
    for angle in golden_angles(SPOKES):
        made.add_block(pulse)
        flat = pypulseq.make_trapezoid("x", flat_area=width, flat_time=n * dwell)
        back = pypulseq.make_trapezoid("x", area=-flat.area / 2, duration=1e-3)
        adc = pypulseq.make_adc(n, dwell=dwell, delay=flat.rise_time)
        tilted = [pypulseq.scale_grad(pypulseq.make_trapezoid("z", flat_area=width, flat_time=n * dwell), tilt)] if tilt else []
        made.add_block(*pypulseq.rotate(back, angle=angle, axis="z"))
        made.add_block(*pypulseq.rotate(flat, angle=angle, axis="z"), *tilted, adc)
        k = (np.arange(n) + 0.5 - n / 2) / n * width
        expected.append(np.stack([np.cos(angle) * k, np.sin(angle) * k], -1))
    made.write(str(path))
    return np.stack(expected)


def test_spokes_of_a_sequence(tmp_path: Path) -> None:
    expected = sequence(tmp_path / "radial.seq")
    found = read_trajectory(tmp_path / "radial.seq")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    scan = scan_of(trajectory=expected * FOV / N)
    write_trajectory_scan(scan, tmp_path / "scan.h5", None)
    image = image_of(tmp_path / "scan.h5", trajectory=tmp_path / "radial.seq")
    assert error(image, shown(scan)) < 0.04


def test_sequences_that_do_not_fit(tmp_path: Path) -> None:
    scan = scan_of()
    write_trajectory_scan(scan, tmp_path / "scan.h5", None)
    sequence(tmp_path / "radial.seq")
    with pytest.raises(InputError, match="the sequence has 60 readouts of 96 samples, the scan 72 of 96"):
        image_of(tmp_path / "scan.h5", trajectory=tmp_path / "radial.seq")
    (tmp_path / "text.seq").write_text("nothing of the kind")
    with pytest.raises(InputError, match=r"cannot be read as a Pulseq sequence|no readouts"):
        read_trajectory(tmp_path / "text.seq")
    sequence(tmp_path / "tilted.seq", tilt=0.5)
    assert read_trajectory(tmp_path / "tilted.seq").shape[-1] == 3
    write_trajectory_scan(scan_of(trajectory=radial(60, 96)), tmp_path / "scan.h5", None)
    with pytest.raises(InputError, match="the trajectory has kz, and the encoded matrix has one partition"):
        image_of(tmp_path / "scan.h5", trajectory=tmp_path / "tilted.seq")
