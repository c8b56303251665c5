"""Simulated scans against a second, naive way to the same: readouts as ISMRMRD's library reads them, sample by sample."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
import torch

from kspace.fourier import ifft
from kspace.io.mrd.write import Space, header_xml
from kspace.simulation.acquisition import (
    add_noise_scan,
    coil_covariance,
    interleave_slices,
    join,
    mark_last,
    repeat,
    reverse_readouts,
)
from kspace.simulation.measurement import GARBAGE, measure, true_image, write_scan
from tests.support import raw_files
from tests.support.raw_files import Case


def _readouts(path: Path) -> list[ismrmrd.Acquisition]:
    with ismrmrd.File(str(path), "r") as file:
        return file["dataset"].acquisitions[:]


def _header(path: Path) -> ismrmrd.xsd.ismrmrdHeader:
    with ismrmrd.Dataset(str(path), mode="r") as dataset:
        return ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())


def _naive(case: Case, readouts: list[ismrmrd.Acquisition]) -> tuple[np.ndarray, np.ndarray]:
    """Place readouts on the encoded grid ``(kz coil ky kx)``, line by line; also how often each sample came."""
    nx, ny, nz = case.scan.spaces[readouts[0].encoding_space_ref].encoded_matrix
    centre_y, centre_z = case.scan.centres[readouts[0].encoding_space_ref]
    y, count = np.zeros((nz, readouts[0].active_channels, ny, nx), np.complex128), np.zeros((nz, 1, ny, nx))
    for a in readouts:
        line = a.idx.kspace_encode_step_1 - centre_y + ny // 2
        part = a.idx.kspace_encode_step_2 - centre_z + nz // 2
        for j in range(a.discard_pre, a.number_of_samples - a.discard_post):
            step = j - a.center_sample
            x = nx // 2 + (-step if a.is_flag_set(ismrmrd.ACQ_IS_REVERSE) else step)
            y[part, :, line, x] += a.data[:, j]
            count[part, :, line, x] += 1
    return y / np.maximum(count, 1), count


def _full(case: Case, **which: int) -> np.ndarray:
    """The scan as `simple` would have acquired it: fully sampled k-space ``(kz coil ky kx)`` on the encoded grid."""
    space = case.scan.spaces[which.get("encoding", 0)]
    protocol = {
        "matrix": space.recon_matrix,
        "fov_m": space.recon_fov_m,
        "readout_oversampling": space.encoded_fov_m[0] / space.recon_fov_m[0],
        "geometry": case.geometry(**which),
    }
    plain = raw_files.plain(phantom=case.scan.phantom, coils=case.scan.coils, **protocol)
    ny, nz = plain.spaces[0].encoded_matrix[1:]
    return np.stack(measure(plain)).reshape(nz, ny, case.scan.coils.n_coils, -1).transpose(0, 2, 1, 3)


def _image(y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    image = ifft(torch.from_numpy(y)).numpy()
    top, left = (image.shape[-2] - shape[0]) // 2, (image.shape[-1] - shape[1]) // 2
    return image[..., top : top + shape[0], left : left + shape[1]]


def test_naive_reconstruction_of_the_file_is_the_truth(tmp_path: Path) -> None:
    case = raw_files.simple(tmp_path / "scan.h5")
    y, count = _naive(case, _readouts(case.path))
    assert (count == 1).all()
    truth = case.coil_images()
    np.testing.assert_allclose(_image(y[0], truth.shape[-2:]), truth[:, 0], atol=1e-6)
    # Sensitivity times image, up to what the band limit changes at edges.
    product = case.image() * case.maps()
    assert np.linalg.norm(product - truth) < 0.03 * np.linalg.norm(truth)


def test_programs_of_ismrmrd_reconstruct_it(tmp_path: Path) -> None:
    if shutil.which("ismrmrd_recon_cartesian_2d") is None:
        pytest.skip("needs ismrmrd_recon_cartesian_2d (Debian package ismrmrd-tools)")
    case = raw_files.simple(tmp_path / "scan.h5", matrix=(32, 32, 1))
    subprocess.run(["ismrmrd_recon_cartesian_2d", str(case.path)], check=True, capture_output=True, timeout=60)
    with h5py.File(case.path, "r") as file:
        theirs = np.squeeze(file["dataset/cpp/data"][()])
    ours = np.linalg.norm(case.coil_images()[:, 0], axis=0)
    # Their transform leaves a factor of the number of points, which depends on the FFT they were built with.
    scale = (theirs * ours).sum() / (ours**2).sum()
    assert np.linalg.norm(theirs / scale - ours) < 1e-5 * np.linalg.norm(ours)


@pytest.mark.parametrize(
    "build",
    [
        raw_files.asymmetric,
        raw_files.discarding,
        raw_files.reversed_lines,
        lambda path: raw_files.reversed_lines(path, missing=9),
        raw_files.partial,
        lambda path: raw_files.partial(path, rebase=True),
        raw_files.slices,
        raw_files.accelerated,
        raw_files.uncalibrated,
        raw_files.without_limits,
        raw_files.odd,
        raw_files.aborted,
        raw_files.oblique,
        raw_files.volume,
        lambda path: raw_files.volume(path, oblique=True),
        raw_files.accelerated_volume,
    ],
)
def test_every_readout_holds_the_samples_its_header_says(build: Callable[[Path], Case], tmp_path: Path) -> None:
    case = build(tmp_path / "scan.h5")
    readouts = _readouts(case.path)
    for index in sorted({a.idx.slice for a in readouts}):
        y, count = _naive(case, [a for a in readouts if a.idx.slice == index])
        full = _full(case, slice=index)
        assert 0 < count.sum() <= count.size
        np.testing.assert_allclose(y, np.where(count > 0, full, 0), atol=1e-5 * np.abs(full).max())


def test_lines_that_are_kept(tmp_path: Path) -> None:
    def lines(case: Case) -> list[int]:
        return sorted(a.idx.kspace_encode_step_1 for a in _readouts(case.path))

    assert lines(raw_files.partial(tmp_path / "a.h5")) == list(range(8, 30))
    assert lines(raw_files.partial(tmp_path / "b.h5", rebase=True)) == list(range(22))
    limits = _header(tmp_path / "b.h5").encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limits.minimum, limits.maximum, limits.center) == (0, 21, 7)
    assert lines(raw_files.uncalibrated(tmp_path / "c.h5")) == list(range(0, 30, 3))
    assert lines(raw_files.accelerated(tmp_path / "d.h5")) == sorted({*range(0, 30, 3), *range(10, 20)})
    interleaved = _readouts(raw_files.interleaved(tmp_path / "e.h5").path)
    assert sorted(a.idx.kspace_encode_step_1 for a in interleaved) == list(range(30))
    assert all(a.idx.kspace_encode_step_1 % 3 == a.idx.repetition for a in interleaved)
    volume = _readouts(raw_files.accelerated_volume(tmp_path / "f.h5").path)
    centre = [(a.idx.kspace_encode_step_1, a.idx.kspace_encode_step_2) for a in volume if 6 <= a.idx.kspace_encode_step_1 < 14]
    assert {(y, z) for y in range(6, 14) for z in range(4, 12)} <= set(centre)
    assert max(a.idx.kspace_encode_step_2 for a in volume) == 12
    mode = _header(tmp_path / "f.h5").encoding[0].parallelImaging
    assert mode.accelerationFactor.kspace_encoding_step_1 == mode.accelerationFactor.kspace_encoding_step_2 == 2
    assert mode.calibrationMode.value == "embedded"


def test_flags_of_calibration_lines(tmp_path: Path) -> None:
    embedded = _readouts(raw_files.accelerated(tmp_path / "embedded.h5").path)
    for a in embedded:
        line = a.idx.kspace_encode_step_1
        inside, on_grid = 10 <= line < 20, line % 3 == 0
        assert a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) == (inside and not on_grid)
        assert a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING) == (inside and on_grid)
    separate = _readouts(raw_files.accelerated(tmp_path / "separate.h5", mode="separate").path)
    calibration = [a for a in separate if a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)]
    image = {a.idx.kspace_encode_step_1: a for a in separate if a not in calibration}
    assert separate[:10] == calibration
    assert sorted(image) == list(range(0, 30, 3))
    for a in calibration:
        if a.idx.kspace_encode_step_1 in image:
            np.testing.assert_allclose(a.data, 0.5 * image[a.idx.kspace_encode_step_1].data, rtol=1e-6)


def test_counters_and_gains(tmp_path: Path) -> None:
    case = raw_files.counters(tmp_path / "scan.h5")
    readouts = _readouts(case.path)
    assert len(readouts) == 2**5 * 30
    full = _full(case, slice=1)
    for which in (
        {"contrast": 1, "phase": 0, "set": 1, "repetition": 0},
        {"contrast": 0, "phase": 1, "set": 0, "repetition": 1},
    ):
        lines = [a for a in readouts if a.idx.slice == 1 and all(getattr(a.idx, k) == v for k, v in which.items())]
        gain = np.prod([raw_files.COUNTER_GAINS[k][v] for k, v in which.items()])
        np.testing.assert_allclose(_naive(case, lines)[0], gain * full, atol=1e-5 * np.abs(full).max())
        np.testing.assert_allclose(case.image(slice=1, **which), gain * case.image(slice=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"no image of encoding 0 with \{'slice': 2\}"):
        case.image(slice=2)


def test_last_flags_stand_on_the_last_line_of_each_image(tmp_path: Path) -> None:
    scan = mark_last(repeat(interleave_slices(raw_files.plain(n_coils=1, n_slices=3)), "repetition", [1, 1]))
    write_scan(scan, tmp_path / "scan.h5")
    readouts = _readouts(tmp_path / "scan.h5")
    assert [i for i, a in enumerate(readouts) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)] == [87, 88, 89, 177, 178, 179]
    assert [readouts[i].idx.slice for i in (87, 88, 89)] == [0, 2, 1]
    assert [i for i, a in enumerate(readouts) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)] == [89, 179]
    assert [i for i, a in enumerate(readouts) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT)] == [179]
    assert [a.scan_counter for a in readouts] == list(range(1, 181))
    assert np.all(np.diff([a.acquisition_time_stamp for a in readouts]) > 0)


def test_noise_has_the_covariance_that_was_asked_for(tmp_path: Path) -> None:
    scan = raw_files.plain(n_coils=4, noise=0.3, matrix=(128, 128, 1))
    scan = add_noise_scan(scan, n_readouts=150, n_samples=256, dwell_s=2e-5)
    noise = np.concatenate(measure(scan, 1)[:150], 1)
    image = np.concatenate([a - b for a, b in zip(measure(scan, 1)[150:], measure(scan, 2)[150:], strict=True)], 1) / np.sqrt(2)
    assert np.trace(scan.covariance).real / 4 == pytest.approx(0.09)

    def covariance(x: np.ndarray) -> np.ndarray:
        return x @ x.conj().T / x.shape[1]

    scale = np.abs(scan.covariance).max()
    assert np.abs(covariance(image) - scan.covariance).max() < 0.03 * scale
    # A quarter of the bandwidth, of which the receiver passes 0.79.
    assert np.abs(covariance(noise) - scan.covariance / 4 * 0.79).max() < 0.03 * scale / 4
    assert np.abs((image**2).mean()) < 0.03 * scale  # circular: real and imaginary parts are alike and independent


def test_seed_decides_the_noise() -> None:
    scan = raw_files.plain(n_coils=2, noise=0.1)
    first, again, other = (np.stack(measure(scan, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(first - other) > 0


def test_noise_scan_says_what_it_is(tmp_path: Path) -> None:
    case = raw_files.noisy(tmp_path / "scan.h5", n_readouts=20)
    readouts = _readouts(case.path)
    assert all(a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for a in readouts[:20])
    assert not any(a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for a in readouts[20:])
    assert {(a.number_of_samples, round(a.sample_time_us, 3)) for a in readouts[:20]} == {(128, 20.0)}
    assert {(a.number_of_samples, round(a.sample_time_us, 3)) for a in readouts[20:]} == {(64, 5.0)}
    assert _header(case.path).acquisitionSystemInformation.relativeReceiverNoiseBandwidth == pytest.approx(0.79)


def test_discarded_samples_and_other_lines_would_ruin_an_image(tmp_path: Path) -> None:
    readouts = _readouts(raw_files.discarding(tmp_path / "a.h5").path)
    assert all((a.data[:, :6] == GARBAGE).all() and (a.data[:, -4:] == GARBAGE).all() for a in readouts)
    case = raw_files.with_other_lines(tmp_path / "b.h5")
    readouts = _readouts(case.path)
    others = [a for a in readouts if a.flags]
    assert len(others) == 36
    assert {a.flags for a in others} == {1 << 22, 1 << 23, 1 << 25, 1 << 26, 1 << 27, 1 << 28}
    y, count = _naive(case, [a for a in readouts if not a.flags])
    assert (count == 1).all()
    centre = y[0, :, 15]
    np.testing.assert_allclose(others[0].data, 10 * centre, rtol=1e-4, atol=1e-4 * np.abs(centre).max())


def test_reversed_lines_come_backwards() -> None:
    scan = raw_files.plain(n_coils=1)
    forward, turned = measure(scan), measure(reverse_readouts(scan))
    np.testing.assert_array_equal(turned[3], forward[3][:, ::-1])
    np.testing.assert_array_equal(turned[4], forward[4])
    assert reverse_readouts(scan).headers["center_sample"][3] == 31  # of 64: as it is stored, before the middle


def test_dead_coil_and_empty_slice(tmp_path: Path) -> None:
    case = raw_files.dead_coil(tmp_path / "a.h5")
    power = np.mean([np.abs(a.data[:, :64]) ** 2 for a in _readouts(case.path)], axis=(0, 2))
    assert power[2] < 1e-8 * np.median(power)
    case = raw_files.with_empty_slice(tmp_path / "b.h5")
    power = [np.mean([np.abs(a.data) ** 2 for a in _readouts(case.path)[400:] if a.idx.slice == s]) for s in range(3)]
    assert power[1] == pytest.approx(0.02**2, rel=0.1)
    assert min(power[0], power[2]) > 50 * power[1]
    assert not case.image(slice=1).any()


def test_averages_of_an_aborted_scan(tmp_path: Path) -> None:
    case = raw_files.averaged(tmp_path / "scan.h5")
    _, count = _naive(case, _readouts(case.path))
    assert (count[0, 0, :15] == 3).all()
    assert (count[0, 0, 15:] == 2).all()
    limits = _header(case.path).encoding[0].encodingLimits
    assert (limits.average.maximum, limits.kspace_encoding_step_1.maximum) == (2, 29)


def test_limits_can_be_missing_or_wrong_and_the_centre_stand_elsewhere(tmp_path: Path) -> None:
    case = raw_files.without_limits(tmp_path / "a.h5", user=True, rebase=True)
    with h5py.File(case.path, "r") as file:
        assert b"encodingLimits" not in file["dataset/xml"][0]
    assert {(a.idx.user[5], a.idx.user[6]) for a in _readouts(case.path)} == {(7, 0)}
    case = raw_files.wrong_limits(tmp_path / "b.h5")
    assert _header(case.path).encoding[0].encodingLimits.kspace_encoding_step_1.center == 40
    assert {a.idx.user[5] for a in _readouts(case.path)} == {7}


def test_two_encodings(tmp_path: Path) -> None:
    case = raw_files.two_encodings(tmp_path / "scan.h5")
    assert [e.encodedSpace.matrixSize.x for e in _header(case.path).encoding] == [64, 48]
    lines = [a for a in _readouts(case.path) if a.encoding_space_ref == 1]
    y, count = _naive(case, lines)
    assert (count == 1).all()
    np.testing.assert_allclose(_image(y[0], (24, 24)), case.coil_images(encoding=1)[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="only scans of the same phantom with the same coils"):
        join(raw_files.plain(), raw_files.plain())


def test_oversampling_and_zero_filling_keep_place_and_intensity(tmp_path: Path) -> None:
    case = raw_files.oversampled(tmp_path / "scan.h5")
    assert case.scan.spaces[0].encoded_matrix == (64, 36, 1)
    assert case.scan.spaces[0].encoded_fov_m == pytest.approx((0.4, 0.3, 0.005))
    _agrees_with_the_phantom(case, np.abs(case.image()))


def _agrees_with_the_phantom(case: Case, image: np.ndarray, **which: int) -> None:
    """Voxels that lie in a homogeneous neighbourhood of the patient show its intensity; mirrored ones do not."""
    points = case.points(**which)
    rho = case.scan.phantom.image(*points)
    space, phantom = case.scan.spaces[0], case.scan.phantom
    reach = 2.5 * max(fov / n for fov, n in zip(space.recon_fov_m, space.recon_matrix, strict=True) if n > 1)
    flat = np.ones(rho.shape, bool)
    for step in itertools.product((-reach, 0, reach), repeat=3):
        flat &= phantom.image(*(p + d for p, d in zip(points, step, strict=True))) == rho
    assert flat.sum() > 100
    assert np.sqrt(np.mean((image - rho)[flat] ** 2)) < 0.04
    for axis in (-2, -1):
        mirrored = np.flip(image, axis)
        assert np.linalg.norm((mirrored - rho)[flat]) > 2 * np.linalg.norm((image - rho)[flat])


@pytest.mark.parametrize("name", raw_files.ORIENTATIONS)
def test_every_voxel_lies_where_the_headers_say(name: str, tmp_path: Path) -> None:
    case = raw_files.oblique(tmp_path / "scan.h5", raw_files.ORIENTATIONS[name], matrix=(64, 60, 1))
    for index in range(3):
        _agrees_with_the_phantom(case, np.abs(case.image(slice=index)), slice=index)


def test_every_voxel_of_a_volume_lies_where_the_headers_say(tmp_path: Path) -> None:
    case = raw_files.volume(tmp_path / "scan.h5", oblique=True, matrix=(36, 38, 40))
    _agrees_with_the_phantom(case, np.abs(case.image()))


def test_covariance_of_coils_is_positive_definite_and_of_the_level_asked_for() -> None:
    covariance = coil_covariance(8, 0.2)
    np.testing.assert_allclose(covariance, covariance.conj().T)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert np.trace(covariance).real / 8 == pytest.approx(0.04)


def test_headers_of_unknown_sections_are_refused() -> None:
    space = Space((8, 8, 1), (8, 8, 1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="no such section in an ISMRMRD header: sequence"):
        header_xml([space], {"sequence": {"TR": 1}})
    assert true_image(raw_files.plain()).shape == (1, 1, 30, 32)


@pytest.mark.parametrize("name", raw_files.BAD)
def test_damaged_files_are_damaged(name: str, tmp_path: Path) -> None:
    raw_files.BAD[name](tmp_path / "bad.h5")
    assert (tmp_path / "bad.h5").exists()
