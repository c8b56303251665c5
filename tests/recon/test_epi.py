"""Echo-planar scans from file to image: acceleration, partial Fourier, conversion, and what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import recon
from kspace.epi import OddEvenPhase, Trapezoid
from kspace.io import fastmri
from kspace.io.mrd.flags import PHASE_CORRECTION
from kspace.io.mrd.write import header_xml, write_raw
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    accelerate,
    cartesian,
    coil_covariance,
    partial_fourier,
    repeat,
    with_limits,
)
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure, true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.cli import execute

pytestmark = pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.0), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
        ellipsoid((0.03, -0.02, 0.0), (0.01, 0.03, 0.02), -35.0, -0.4),
    )
)
LOBE = Trapezoid(160, 240, 160, 96, 5.2)
PLANTED = OddEvenPhase(0.7, -0.03)


def plain(n: int = 48, n_coils: int = 8, noise: float = 0.0) -> Acquisition:
    covariance = coil_covariance(n_coils, noise) if noise else None
    return cartesian(ScanProtocol((n, n, 1), (0.24, 0.24, 0.005)), PHANTOM, head_coils(n_coils), covariance)


def truth(scan: Acquisition) -> NDArray[np.float64]:
    """Root sum of squares of what the coils see, ``(y x)``."""
    return np.sqrt((np.abs(true_image(scan, scan.coils)[:, 0]) ** 2).sum(0))


def image_of(path: Path, method: str = "sense", **options: object) -> NDArray[np.float64]:
    with recon.open(path) as opened:
        return np.abs(opened.reconstruct(method=method, **options)[0].numpy())  # type: ignore[arg-type]


def error(image: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(image - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("n_shots", [1, 2])
@pytest.mark.parametrize("factor", [2, 3])
def test_accelerated_scans_with_separate_reference_lines_show_the_truth(factor: int, n_shots: int, tmp_path: Path) -> None:
    scan = accelerate(plain(), factor, calibration=24, mode="separate")
    epi = echo_planar(scan, LOBE, n_shots, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    wanted = truth(epi)
    assert error(image_of(tmp_path / "scan.h5"), wanted) < 0.06
    assert error(image_of(tmp_path / "scan.h5", "grappa"), wanted) < 0.06
    assert error(image_of(tmp_path / "scan.h5", "zero-filled"), wanted) > 0.3
    assert error(image_of(tmp_path / "scan.h5", ghost="none"), wanted) > 0.15


def test_reference_lines_of_the_first_repetition_serve_all(tmp_path: Path) -> None:
    scan = repeat(accelerate(plain(), 2, calibration=24, mode="separate"), "repetition", [1.0, 1.2])
    left = (scan.headers["idx"]["repetition"] == 0) | ((scan.headers["flags"] & 2**19) == 0)
    epi = echo_planar(replace(scan, headers=scan.headers[left].copy(), gain=scan.gain[left]), LOBE, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    with recon.open(tmp_path / "scan.h5") as opened:
        images = opened.reconstruct(method="sense")
    assert len(images) == 2
    for image, gain in zip(images, (1.0, 1.2), strict=True):
        assert error(np.abs(image.numpy()) / gain, truth(epi)) < 0.06


def test_reference_lines_that_grappa_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, calibration in (("few", 6), ("none", 0)):
        path = tmp_path / f"{name}.h5"
        write_scan(echo_planar(accelerate(plain(), 3, calibration=calibration, mode="separate"), LOBE), path)
        maps = tmp_path / "maps.npy"
        np.save(maps, np.ones((8, 48, 48), np.complex64))
        arguments = ["run", str(path), "-o", str(tmp_path / "out"), "--method", "grappa", "--maps", str(maps)]
        assert execute(arguments) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        have = "6" if calibration else "no"
        wanted = rf"method grappa: {have} reference lines, 9 are needed \(spacing 3, 8 coils\); choose sense or l1-wavelet"
        assert re.search(wanted, last), last
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("rebase", [True, False])
def test_partial_fourier_zero_filled_and_by_pocs(rebase: bool, tmp_path: Path) -> None:
    """Zero-filled is the truth without the missing lines; POCS is nearer to the whole truth."""
    epi = echo_planar(partial_fourier(plain(), lines=(12, 48), rebase=rebase), LOBE, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    wanted = truth(echo_planar(plain(), LOBE))
    filled, estimated = (image_of(tmp_path / "scan.h5", "rss", partial_fourier=how) for how in ("zero-filled", "pocs"))
    coils = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(true_image(plain(), plain().coils)[:, 0], 1), axis=1), 1)
    coils[:, :12] = 0
    without = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(coils, 1), axis=1), 1)
    assert error(filled, np.sqrt((np.abs(without) ** 2).sum(0))) < 0.01
    assert error(estimated, wanted) < 0.5 * error(filled, wanted)


def test_pocs_fills_the_lines_of_several_shots(tmp_path: Path) -> None:
    epi = echo_planar(partial_fourier(plain(), lines=(12, 48)), LOBE, 2, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    wanted = truth(echo_planar(plain(), LOBE))
    errors = [error(image_of(tmp_path / "scan.h5", partial_fourier=how), wanted) for how in ("zero-filled", "pocs")]
    assert errors[1] < 0.75 * errors[0]


def test_a_converted_scan_gives_the_same_images(tmp_path: Path) -> None:
    epi = echo_planar(accelerate(plain(), 2, calibration=24), LOBE, 2, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    assert execute(["convert", str(tmp_path / "scan.h5"), str(tmp_path / "volume.h5")]) == 0
    assert fastmri.open_volume(tmp_path / "volume.h5").n_coils == 8
    a, b = (image_of(tmp_path / name, "zero-filled") for name in ("scan.h5", "volume.h5"))
    assert error(b, a) < 1e-5


def stated(name: str, value: str) -> Callable[[Path], None]:
    """Let the trajectory description of a file state another value."""
    pattern, replacement = rf"(<name>{name}</name>\s*<value>)[^<]*", rf"\g<1>{value}"

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            xml, n = re.subn(pattern, replacement, file["dataset/xml"][0].decode(), flags=re.DOTALL)
            assert n
            file["dataset/xml"][0] = xml.encode()

    return change


def nan_in(navigator: bool) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            rows = file["dataset/data"][:]
            number = int(np.flatnonzero(((rows["head"]["flags"] & PHASE_CORRECTION) != 0) == navigator)[1])
            row = rows[number]
            row["data"] = np.full_like(row["data"], np.nan)
            file["dataset/data"][number] = row

    return change


def mixed_trajectories(path: Path) -> None:
    epi = echo_planar(plain(), LOBE)
    k = LOBE.trajectory(96).astype(np.float32)[:, None]
    epi.headers["trajectory_dimensions"] = np.arange(len(epi.headers)) % 5 > 0
    points = [k if n else k[:0] for n in epi.headers["trajectory_dimensions"]]
    write_raw(path, header_xml(with_limits(epi)), epi.headers, measure(epi), points)


def at_once(path: Path) -> None:
    """Two slices in each readout, as the schema of ISMRMRD 1.5 says it."""
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        multiband = "<parallelImaging><multiband><multiband_factor>2</multiband_factor></multiband></parallelImaging>"
        file["dataset/xml"][0] = xml.replace("</encodingLimits>", f"</encodingLimits>{multiband}").encode()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (at_once, "encoding 0 has 2 slices excited at once .*; separate them first, or give a scan without"),
        (stated("flatTopTime", "40"), "too short for 96 samples"),
        (stated("rampUpTime", "-9"), "rampUpTime -9"),
        (stated("dwellTime", "nan"), "<value> of the XML header is .nan., expected a number"),
        (nan_in(True), r"readout 1 has \d+ NaN or infinite values"),
        (nan_in(False), r"readout 4 has \d+ NaN or infinite values"),
        (mixed_trajectories, "readout 3 of encoding 0 carries a trajectory, readout 5 none"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    change: Callable[[Path], None], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.h5"
    write_scan(echo_planar(plain(), LOBE), path)
    change(path)
    before = path.read_bytes()
    assert execute(["run", str(path), "-o", str(tmp_path / "out")]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.startswith("recon: warning: ")]
    assert re.match(r"recon: error: .*scan\.h5: .*; .+", line), line
    assert re.search(text, line), line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert path.read_bytes() == before


def test_a_scan_without_navigators_is_reconstructed_and_the_ghost_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epi = echo_planar(plain(), LOBE, n_navigators=0, phase=PLANTED)
    write_scan(epi, tmp_path / "scan.h5")
    assert execute(["run", str(tmp_path / "scan.h5"), "-o", str(tmp_path / "out"), "--method", "rss", "--format", "png"]) == 0
    lines = [one for one in capsys.readouterr().err.splitlines() if "navigators" in one]
    assert len(lines) == 1
    assert "no phase correction navigators" in lines[0]
    assert "a Nyquist ghost may remain" in lines[0]
    assert error(image_of(tmp_path / "scan.h5", "rss"), truth(epi)) < 0.02


def test_aliases_of_a_single_coil_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for factor in (1, 2):
        write_scan(echo_planar(accelerate(plain(32, n_coils=1), factor), LOBE), tmp_path / "scan.h5")
        assert execute(["run", str(tmp_path / "scan.h5"), "-o", str(tmp_path / "out"), "--format", "png", "--force"]) == 0
        told = "one coil cannot separate the aliases of R = 2" in capsys.readouterr().err
        assert told == (factor > 1)
