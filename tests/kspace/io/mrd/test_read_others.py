"""Files that other programs and scanners wrote."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from kspace.container import ImageIndex, KSpace
from kspace.fourier import ifft
from kspace.io.mrd import open_scan
from kspace.preprocess import remove_oversampling, to_recon_matrix

GENERATE, RECONSTRUCT = "ismrmrd_generate_cartesian_shepp_logan", "ismrmrd_recon_cartesian_2d"


def generate(path: Path, *options: str) -> None:
    if shutil.which(GENERATE) is None or shutil.which(RECONSTRUCT) is None:
        pytest.skip(f"needs {GENERATE} and {RECONSTRUCT} (Debian package ismrmrd-tools)")
    subprocess.run([GENERATE, *options, "-o", str(path)], check=True, capture_output=True)


def rss(k: KSpace) -> np.ndarray:
    k = remove_oversampling(k)
    image: np.ndarray = to_recon_matrix(ifft(k.data), k.header).abs().square().sum(0).sqrt().numpy()
    return image


@pytest.mark.parametrize(
    "options", [("-m", "64", "-c", "4"), ("-m", "64", "-c", "2", "-C"), ("-m", "48", "-c", "3", "-O", "1", "-k")]
)
def test_images_are_those_of_ismrmrds_own_tools(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "shepp.h5"
    generate(path, *options)
    scan = open_scan(path)
    assert (scan.noise is not None) == ("-C" in options)
    image = rss(scan.load(0, ImageIndex()))
    subprocess.run([RECONSTRUCT, str(path)], check=True, capture_output=True, cwd=tmp_path)
    with h5py.File(path, "r") as file:
        theirs = np.abs(np.squeeze(file["dataset/cpp/data"][()]))
    # Their transform is scaled otherwise; nothing else may differ.
    scale = (theirs * image).sum() / (image**2).sum()
    assert np.linalg.norm(theirs - scale * image) < 1e-5 * np.linalg.norm(theirs)


def test_interleaved_repetitions_of_ismrmrds_generator(tmp_path: Path) -> None:
    path = tmp_path / "shepp.h5"
    generate(path, "-m", "32", "-c", "2", "-r", "2", "-a", "2", "-n", "0")
    full = tmp_path / "full.h5"
    generate(full, "-m", "32", "-c", "2", "-n", "0")
    scan = open_scan(path)
    assert scan.encodings[0].calibration_mode == "interleaved"
    assert [i.repetition for i in scan.images(0)] == [0, 1, 2, 3]
    average = scan.load_average(0, ImageIndex())
    assert average.n_averages is not None
    assert (average.n_averages == 2).all()
    truth = open_scan(full).load(0, ImageIndex()).data
    assert (average.data - truth).abs().max() < 1e-5 * truth.abs().max()


def test_skyra_lines_lie_about_the_centre_of_the_header(data_dir: Path) -> None:
    scan = open_scan(data_dir / "raw/skyra_bssfp_14ch_grappa3.h5")
    assert scan.warnings == ()
    encoding = scan.encodings[0]
    assert (encoding.centre, encoding.calibration, encoding.acceleration) == ((54, 0), "embedded", (3, 1))
    k = scan.load(0, scan.images(0)[0])
    rows = k.mask[0, :, 0].nonzero().flatten().tolist()
    assert (rows[0], rows[-1], len(rows)) == (18, 123, 68)
    # The strongest line is the one at the centre of the matrix, and the strongest sample of it that at center_sample.
    energy = k.data.abs().square().sum(0)
    assert int(energy.sum(-1).argmax()) == 72
    assert abs(int(energy[72].argmax()) - 192) <= 1
    assert scan.noise is not None
    assert (scan.noise.n_samples, scan.noise.relative_bandwidth) == (384, 0.793)


def test_the_seven_slices_of_the_ge_scan_are_in_order(data_dir: Path) -> None:
    scan = open_scan(data_dir / "raw/ge_gre_8ch_7slices.h5")
    positions = [scan.load(0, index).header.geometry.position_m[2] for index in scan.images(0)]
    assert positions == pytest.approx(np.arange(-0.015, 0.016, 0.005), abs=1e-6)


def test_the_oversampled_skyra_scan(data_dir: Path) -> None:
    scan = open_scan(data_dir / "raw/skyra_gre_2ch_oversampled.h5")
    image = rss(scan.load(0, ImageIndex()))
    assert image.shape == (160, 160)
    y, x = (np.average(np.arange(160), weights=(image**2).sum(axis)) for axis in (1, 0))
    assert abs(y - 80) < 25
    assert abs(x - 80) < 25
