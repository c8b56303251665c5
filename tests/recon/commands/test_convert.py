"""Converted files hold the samples that were measured, and what is known about them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io import fastmri, mrd
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    accelerate,
    add_noise_scan,
    asymmetric_echo,
    cartesian,
    coil_covariance,
    repeat,
)
from kspace.simulation.measurement import true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.commands.convert import convert

N_COILS = 4


def _scan(**protocol: object) -> Acquisition:
    phantom = Phantom((ellipsoid((0.01, -0.02, 0.0), (0.08, 0.06, 0.09)),))
    values = {"matrix": (32, 24, 1), "fov_m": (0.24, 0.18, 0.005), "n_slices": 2} | protocol
    return cartesian(ScanProtocol(**values), phantom, head_coils(N_COILS), coil_covariance(N_COILS, 1e-9))  # type: ignore[arg-type]


def _convert(scan: Acquisition, folder: Path, **options: object) -> fastmri.FastmriVolume:
    write_scan(scan, folder / "scan.h5")
    convert(folder / "scan.h5", folder / "volume.h5", **options)  # type: ignore[arg-type]
    return fastmri.open_volume(folder / "volume.h5")


def test_a_full_scan_keeps_its_samples_and_oversampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = _convert(_scan(), tmp_path)
    scan = mrd.open_scan(tmp_path / "scan.h5")
    assert volume.matrix == (24, 64)  # the readout is as acquired, twice the image's, as in fastMRI's knee files
    assert volume.recon_shape == (24, 32)
    for index in scan.images(0):
        assert torch.equal(volume.load(index.slice).data, scan.load(0, index).data)
    with h5py.File(volume.path, "r") as file:
        assert file["kspace"].shape == (2, N_COILS, 64, 24)  # (slice, coil, readout, phase)
        assert "mask" not in file
    assert volume.noise_covariance is None
    assert "no noise scan" in capsys.readouterr().err


def test_the_target_is_the_phantom(tmp_path: Path) -> None:
    scan = _scan(n_slices=1)
    volume = _convert(scan, tmp_path)
    expected = np.sqrt((np.abs(true_image(scan, scan.coils)) ** 2).sum(0)).squeeze()
    target = volume.target(0)
    assert target is not None
    image = target.numpy()
    gain = float((image * expected).sum() / (expected**2).sum())  # of the orthonormal transform
    assert np.abs(image / gain - expected).max() < 0.01 * expected.max()


def test_the_noise_covariance_is_that_of_the_imaging_samples(tmp_path: Path) -> None:
    scan = add_noise_scan(_scan(n_slices=1), n_readouts=200)
    volume = _convert(scan, tmp_path)
    covariance = volume.noise_covariance
    assert covariance is not None
    error = np.linalg.norm(covariance.numpy() - scan.covariance) / np.linalg.norm(scan.covariance)
    assert error < 0.03  # 25,600 samples


def test_the_noise_scan_of_another_file_is_used_on_request(tmp_path: Path) -> None:
    write_scan(add_noise_scan(_scan(n_slices=1), n_readouts=200), tmp_path / "noise.h5", seed=3)
    volume = _convert(_scan(n_slices=1), tmp_path, noise=tmp_path / "noise.h5")
    assert volume.noise_covariance is not None


def test_lines_give_a_mask_of_lines(tmp_path: Path) -> None:
    volume = _convert(accelerate(_scan(), 3, calibration=6), tmp_path)
    with h5py.File(volume.path, "r") as file:
        mask, kspace = file["mask"][()], file["kspace"][()]
        assert "reconstruction_rss" not in file
    assert mask.shape == (24,)
    expected = np.zeros(24, np.uint8)
    expected[(np.arange(24) - 12) % 3 == 0] = 1
    expected[9:15] = 1
    assert np.array_equal(mask, expected)
    assert not kspace[..., mask == 0].any()


def test_partly_sampled_lines_give_a_2d_mask(tmp_path: Path) -> None:
    volume = _convert(asymmetric_echo(_scan(n_slices=1), 10), tmp_path)
    with h5py.File(volume.path, "r") as file:
        mask = file["mask"][()]
    assert mask.dtype == np.uint8
    assert mask.shape == (64, 24)  # (readout, phase)
    assert not mask[:10].any()
    assert mask[10:].all()


def test_separate_calibration_is_converted(tmp_path: Path) -> None:
    volume = _convert(accelerate(_scan(n_slices=1), 2, calibration=8, mode="separate", calibration_gain=2.0), tmp_path)
    scan = mrd.open_scan(tmp_path / "scan.h5")
    expected = scan.load(0, scan.images(0)[0]).calibration
    found = volume.load(0).calibration
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)


def test_contrasts_and_repetitions_become_separate_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scan(repeat(repeat(_scan(), "contrast", (1.0, 0.5)), "repetition", (1.0, 1.0, 1.0)), tmp_path / "scan.h5")
    convert(tmp_path / "scan.h5", tmp_path / "v.h5")
    names = {f"v_contrast{c}_repetition{r}.h5" for c in range(2) for r in range(3)}
    assert {path.name for path in tmp_path.glob("v*.h5")} == names
    printed = capsys.readouterr().err
    assert all(name in printed for name in names)
    first, second = (fastmri.open_volume(tmp_path / f"v_contrast{c}_repetition0.h5").load(1).data for c in range(2))
    assert float((second - first / 2).abs().max()) < 0.05 * float(first.abs().max())


def test_a_3d_scan_becomes_slices(tmp_path: Path) -> None:
    volume = _convert(_scan(matrix=(32, 24, 6), fov_m=(0.24, 0.18, 0.12), n_slices=1), tmp_path)
    scan = mrd.open_scan(tmp_path / "scan.h5")
    assert volume.n_slices == 6
    expected = ifft(scan.load(0, scan.images(0)[0]).data, (0,))
    for i in range(6):
        torch.testing.assert_close(volume.load(i).data, expected[i])
    z = [volume.load(i).header.geometry.position_m[2] for i in range(6)]
    assert z == pytest.approx([0.02 * (i - 3) for i in range(6)])  # index n // 2 lies on the scan's position


def test_a_3d_scan_undersampled_along_kz_is_refused(tmp_path: Path) -> None:
    write_scan(accelerate(_scan(matrix=(32, 24, 8), fov_m=(0.24, 0.18, 0.12), n_slices=1), 1, 2), tmp_path / "scan.h5")
    with pytest.raises(InputError, match="undersampled along kz"):
        convert(tmp_path / "scan.h5", tmp_path / "volume.h5")
    assert not (tmp_path / "volume.h5").exists()


def test_an_array_gets_the_mask_of_its_nonzero_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((10, 3, 12)) + 1j).astype(np.complex64)  # (kx coil ky)
    data[:, :, ::2] = 0
    np.save(tmp_path / "k.npy", data)
    convert(tmp_path / "k.npy", tmp_path / "v.h5", axes="kx, coil, ky")
    volume = fastmri.open_volume(tmp_path / "v.h5")
    k = volume.load(0)
    assert torch.equal(k.data, torch.from_numpy(data).permute(1, 2, 0))
    assert k.mask.shape == (1, 12, 1)
    assert k.mask[0, :, 0].tolist() == [i % 2 == 1 for i in range(12)]
    assert k.header.geometry.nominal
    printed = capsys.readouterr().err
    assert "non-zero samples, 50.0 % sampled" in printed
    assert "nominal geometry" in printed


def test_the_prospective_poisson_scan(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "raw" / "brain_8ch_poisson_prospective.npy"
    convert(source, tmp_path / "v.h5", axes="coil,ky,kx")
    k = fastmri.open_volume(tmp_path / "v.h5").load(0)
    data = np.load(source)
    assert np.array_equal(k.data.numpy(), data)
    assert np.array_equal(k.mask[0].numpy(), (data != 0).any(0))


def test_real_scans_agree_with_the_distributed_conversion(data_dir: Path, tmp_path: Path) -> None:
    convert(data_dir / "raw" / "ge_gre_8ch_7slices.h5", tmp_path / "v.h5")
    found, expected = (
        fastmri.open_volume(path) for path in (tmp_path / "v.h5", data_dir / "fastmri_style" / "ge_fruit_8ch.h5")
    )
    for i in range(7):
        torch.testing.assert_close(found.load(i).data, expected.load(i).data)
    assert found.max == pytest.approx(expected.max)


def test_the_undersampled_siemens_scan(data_dir: Path, tmp_path: Path) -> None:
    convert(data_dir / "raw" / "skyra_bssfp_14ch_grappa3.h5", tmp_path / "v.h5")
    with h5py.File(tmp_path / "v.h5", "r") as file:
        assert file["kspace"].shape == (1, 14, 384, 144)
        assert int(file["mask"][()].sum()) == 68  # 69 readouts, one of them noise
        assert file["noise_covariance"].shape == (14, 14)


def test_twix_becomes_ismrmrd(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("twixtools", reason="needs the extra 'twix'")
    convert(data_dir / "raw" / "skyra_gre.dat", tmp_path / "scan.h5")
    assert mrd.open_scan(tmp_path / "scan.h5").n_readouts == 160
    assert "scan.h5: ISMRMRD" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "axes", "message"),
    [
        (np.zeros((2, 8, 8), np.complex64), "coil,ky,kx", "all samples are zero"),
        (np.ones((2, 8, 8), np.float32), "coil,ky,kx", "holds float32, expected complex"),
        (np.ones((2, 8, 8), np.complex64), None, "give --axes"),
        (np.ones((2, 8, 8), np.complex64), "coil,ky", "2 axes named|ky and kx included"),
        (np.ones((2, 8, 8), np.complex64), "coil,ky,ky", "each axis once"),
        (np.ones((2, 8, 8), np.complex64), "coil,ky,time", "out of slice, coil, ky, kx"),
        (np.ones((8, 8), np.complex64), "coil,ky,kx", "3 axes named, the array has 2"),
        (np.full((2, 8, 8), np.nan, np.complex64), "coil,ky,kx", "NaN or infinite"),
        (np.stack([np.eye(8), np.ones((8, 8))]).astype(np.complex64), "slice,ky,kx", "have different masks"),
    ],
)  # fmt: skip
def test_a_wrong_array_is_refused(tmp_path: Path, array: np.ndarray, axes: str | None, message: str) -> None:
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "k.npy", tmp_path / "v.h5", axes=axes)
    assert not (tmp_path / "v.h5").exists()


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read the array"):
        convert(tmp_path / "k.npy", tmp_path / "v.h5", axes="kx")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((2, 8, 8), np.complex64))
    (tmp_path / "v.h5").write_text("precious")
    with pytest.raises(InputError, match=r"the file exists.*--force"):
        convert(tmp_path / "k.npy", tmp_path / "v.h5", axes="coil,ky,kx")
    assert (tmp_path / "v.h5").read_text() == "precious"
    convert(tmp_path / "k.npy", tmp_path / "v.h5", axes="coil,ky,kx", force=True)
    assert fastmri.open_volume(tmp_path / "v.h5").n_coils == 2
    write_scan(_scan(n_slices=1), tmp_path / "scan.h5")
    before = (tmp_path / "scan.h5").read_bytes()
    with pytest.raises(InputError, match="input and output are the same file"):
        convert(tmp_path / "scan.h5", tmp_path / "scan.h5", force=True)
    assert (tmp_path / "scan.h5").read_bytes() == before


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((8, 8), np.complex64))
    for source, output, options, message in (
        ("absent.h5", "v.h5", {}, "no such file"),
        (".", "v.h5", {}, "found a folder"),
        ("k.npy", "v.nii", {}, "ending in .h5"),
        ("k.npy", "nowhere/v.h5", {}, "no such folder"),
        ("k.npy", "v.h5", {"noise": Path("n.h5")}, "a noise scan cannot be added to .npy"),
    ):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / source, tmp_path / output, **options)  # type: ignore[arg-type]
    write_scan(_scan(n_slices=1), tmp_path / "scan.h5")
    with pytest.raises(InputError, match=r"axes apply to \.npy"):
        convert(tmp_path / "scan.h5", tmp_path / "v.h5", axes="coil,ky,kx")
