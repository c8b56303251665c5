"""Raw files that scanners and ISMRMRD's generator wrote, against what is known of them and against other programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import ismrmrd
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Picture

from benchmarks import real_scans
from kspace.container import ImageIndex
from kspace.fourier import ifft
from kspace.io.mrd import open_scan
from kspace.io.mrd.images import read_images
from kspace.preprocess import remove_oversampling, to_recon_matrix


def generate(path: Path, *options: str) -> Path:
    if not real_scans.has_ismrmrd_tools():
        pytest.skip(f"needs {real_scans.GENERATE} and {real_scans.RECONSTRUCT} (Debian package ismrmrd-tools)")
    subprocess.run([real_scans.GENERATE, *options, "-o", str(path)], check=True, capture_output=True)
    return path


def naive(path: Path, slice_number: int = 0) -> np.ndarray:
    """Root sum of squares ``(y x)`` of a fully sampled slice, by ISMRMRD's reader and NumPy alone."""
    dataset = ismrmrd.Dataset(str(path), mode="r")
    header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
    readouts = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    dataset.close()
    encoded, recon = header.encoding[0].encodedSpace.matrixSize, header.encoding[0].reconSpace.matrixSize
    grid = np.zeros((readouts[0].active_channels, encoded.y, encoded.x), np.complex128)
    for readout in readouts:
        if readout.idx.slice == slice_number:
            grid[:, readout.idx.kspace_encode_step_1] = readout.data
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(grid, axes), axes=axes, norm="ortho"), axes)
    cut = (encoded.x - recon.x) // 2
    return np.sqrt((np.abs(images[..., cut : cut + recon.x]) ** 2).sum(0))


# -- the Skyra's bSSFP: noise and aliasing ------------------------------------------------------------------------------


def test_the_noise_of_the_skyra_has_unit_variance(data_dir: Path) -> None:
    power = real_scans.noise_power(data_dir / "raw" / real_scans.BSSFP)
    assert 0.85 < power.mean() < 1.15
    assert power.shape == (14,)


def test_known_noise_becomes_white(tmp_path: Path) -> None:
    assert real_scans.generated_covariance(tmp_path) < 0.02


def test_sense_removes_the_aliases_of_the_skyra(data_dir: Path) -> None:
    path = data_dir / "raw" / real_scans.BSSFP
    energy = real_scans.energy_outside(path)
    assert energy["sense"][0] < energy["zero-filled"][0] < 0.2 * energy["rss"][0]
    aliases = {name: total - noise for name, (total, noise) in energy.items()}
    assert aliases["sense"] < 0.5 * aliases["zero-filled"]
    assert aliases["sense"] < 0.1 * aliases["rss"]
    assert real_scans.held_out_error(path) < 0.07


def test_the_skyra_picture_is_upright(data_dir: Path, tmp_path: Path) -> None:
    """Two bottles side by side, clear of the edges; the brightest spot lies to the patient's right and back."""
    path = data_dir / "raw" / real_scans.BSSFP
    real_scans.run_all(path, tmp_path, format="mrd,png")
    image = read_images(tmp_path / f"{path.stem}.mrd.h5")[0].image
    assert image.data.shape == (1, 144, 192)
    grey = image.data[0].numpy()
    occupied = grey > 0.1 * grey.max()
    rows, columns = (np.flatnonzero(occupied.any(axis)) for axis in (1, 0))
    assert rows[0] > 10
    assert rows[-1] < 133
    assert columns[0] > 5
    assert columns[-1] < 186
    assert occupied[:, 96 - 3 : 96 + 4].sum(0).min() < 0.25 * occupied.sum(0).max()  # between the bottles
    y, x = np.unravel_index(int(grey.argmax()), grey.shape)
    g = image.header.geometry
    read, phase = np.array(g.read_dir), np.array(g.phase_dir)
    place = (x - 96) * 280 / 192 * read + (y - 72) * 210 / 144 * phase
    assert place[1] > 20  # LPS: towards the back, as the notch of the other bottle
    picture = np.asarray(Picture.open(tmp_path / f"{path.stem}.png").convert("L"), float)[:540]
    bright_rows, bright_columns = np.nonzero(picture > 250)
    across, down = np.median(bright_columns) / picture.shape[1] - 0.5, np.median(bright_rows) / picture.shape[0] - 0.5
    assert np.sign(down) == np.sign(place[1])
    assert np.sign(across) == np.sign(place[0])


# -- the gradient echoes: order, spacing, shape ---------------------------------------------------------------------------


def test_the_seven_slices_of_the_ge_scan(data_dir: Path, tmp_path: Path) -> None:
    """In order and 5 mm apart in every format, each showing what NumPy alone makes of its readouts."""
    path = data_dir / "raw" / real_scans.GE
    real_scans.run_all(path, tmp_path, "rss")
    truth = real_scans.read_centres(path)
    np.testing.assert_allclose(np.linalg.norm(np.diff(truth, axis=0), axis=1), 5, atol=1e-3)
    for name, centres in real_scans.slice_centres(tmp_path, path.stem).items():
        np.testing.assert_allclose(centres, truth, atol=1e-3, err_msg=name)
    stored = [image.image.data[0].numpy() for image in read_images(tmp_path / f"{path.stem}.mrd.h5")]
    volume = np.asarray(nibabel.load(tmp_path / f"{path.stem}.nii.gz").dataobj)
    files = sorted((tmp_path / f"{path.stem}_dicom").glob("*.dcm"))
    dicoms = sorted((pydicom.dcmread(p) for p in files), key=lambda d: int(d.InstanceNumber))
    assert len(stored) == volume.shape[2] == len(dicoms) == 7
    assert [float(d.SpacingBetweenSlices) for d in dicoms] == [5] * 7
    for i in range(7):
        expected = naive(path, i)
        assert np.linalg.norm(stored[i] - expected) < 1e-4 * np.linalg.norm(expected)
        np.testing.assert_allclose(volume[:, :, i].T.squeeze(), stored[i], rtol=1e-5, atol=1e-6 * expected.max())
        shown = dicoms[i].pixel_array * float(dicoms[i].RescaleSlope)
        np.testing.assert_allclose(shown, stored[i], atol=1e-3 * max(s.max() for s in stored))


def test_the_oversampled_gradient_echo(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "raw" / real_scans.GRE
    real_scans.run_all(path, tmp_path, "rss", format="mrd")
    ours = read_images(tmp_path / f"{path.stem}.mrd.h5")[0].image.data[0].numpy()
    expected = naive(path)
    assert ours.shape == (160, 160)
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)


# -- ISMRMRD's generator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", real_scans.GENERATOR_OPTIONS)
def test_the_generators_file_becomes_what_ismrmrd_makes_of_it(options: str, tmp_path: Path) -> None:
    generate(tmp_path / "any.h5", "-m", "32", "-c", "1")  # skips where there is none
    assert real_scans.generated_by_ismrmrd(tmp_path, options) < 1e-5


def test_the_last_of_the_generators_repetitions(tmp_path: Path) -> None:
    """ISMRMRD's program writes all repetitions into one grid, so it shows the last."""
    path = generate(tmp_path / "scan.h5", "-m", "48", "-c", "3", "-r", "3")
    real_scans.run_all(path, tmp_path, "rss", format="mrd")
    ours = [image.image.data[0].numpy() for image in read_images(tmp_path / "scan.mrd.h5")]
    theirs = real_scans.ismrmrds_image(path)
    errors = [real_scans.difference(image, theirs) for image in ours]
    assert errors[2] < 1e-5 < 0.01 < min(errors[:2])


def test_the_generators_interleaved_acceleration(tmp_path: Path) -> None:
    """With -a 2 the repetitions fill k-space between them: their sum is ISMRMRD's image, and SENSE makes it from one."""
    path = generate(tmp_path / "scan.h5", "-m", "64", "-c", "8", "-a", "2", "-n", "0.01")
    real_scans.run_all(path, tmp_path, "sense", format="mrd")
    real_scans.run_all(path, tmp_path / "zf", "zero-filled", format="mrd")
    theirs = real_scans.ismrmrds_image(path)
    k = remove_oversampling(open_scan(path).load_average(0, ImageIndex()))
    average = to_recon_matrix(ifft(k.data), k.header).abs().square().sum(0).sqrt().numpy()
    assert real_scans.difference(average, theirs) < 1e-5
    for n in (0, 1):
        sense, aliased = (
            read_images(folder / "scan.mrd.h5")[n].image.data[0].numpy() for folder in (tmp_path, tmp_path / "zf")
        )
        assert real_scans.difference(sense, theirs) < 0.08
        assert real_scans.difference(sense, theirs) < 0.2 * real_scans.difference(aliased, theirs)


def test_the_generators_calibration_lines(tmp_path: Path) -> None:
    path = generate(tmp_path / "scan.h5", "-m", "64", "-c", "8", "-a", "2", "-w", "16", "-n", "0.01")
    real_scans.run_all(path, tmp_path, "sense", format="mrd")
    theirs = real_scans.ismrmrds_image(path)
    for stored in read_images(tmp_path / "scan.mrd.h5"):
        assert real_scans.difference(stored.image.data[0].numpy(), theirs) < 0.08


def test_an_odd_matrix_of_the_generator(tmp_path: Path) -> None:
    """ISMRMRD's program cuts 130 columns to 65 from column 32 on; ours keep the origin at column 65 // 2, one to the left."""
    path = generate(tmp_path / "scan.h5", "-m", "65", "-c", "3")
    real_scans.run_all(path, tmp_path, "rss", format="mrd")
    ours = read_images(tmp_path / "scan.mrd.h5")[0].image.data[0].numpy()
    theirs = real_scans.ismrmrds_image(path)
    assert real_scans.difference(ours[:, :-1], theirs[:, 1:]) < 1e-5
