"""Preprocessing against known noise, analytic phantoms and second, naive implementations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kspace import preprocess
from kspace.compression import compress
from kspace.container import Header, ImageIndex, KSpace, ReceiveCoils
from kspace.errors import InputError
from kspace.fourier import fft, ifft, interpolate
from kspace.io.mrd import open_scan, read_noise
from kspace.noise import Noise, noise_covariance
from kspace.partial_fourier import pocs
from kspace.simulation import acquisition as acquire
from kspace.simulation.acquisition import ScanProtocol
from kspace.simulation.measurement import true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

PHANTOM = Phantom(
    (
        ellipsoid((0.005, -0.005, 0.0), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
    )
)
COILS = head_coils(4)
FLAT = ScanProtocol(matrix=(32, 28, 1), fov_m=(0.24, 0.21, 0.005))
COVARIANCE = acquire.coil_covariance(4, 1e-6)


def plain(protocol: ScanProtocol = FLAT, noisy: bool = False) -> acquire.Acquisition:
    return acquire.cartesian(protocol, PHANTOM, COILS, COVARIANCE if noisy else None)


def load(scan: acquire.Acquisition, folder: Path) -> tuple[KSpace, Noise | None]:
    write_scan(scan, folder / "scan.h5")
    read = open_scan(folder / "scan.h5")
    return read.load(0, ImageIndex()), read.noise


def nrmse(image: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> float:
    image, expected = np.asarray(image), np.asarray(expected)
    return float(np.linalg.norm(image - expected) / np.linalg.norm(expected))


def silent(k: KSpace) -> Tensor:
    """Covariance of the samples of a scan of nothing."""
    samples = k.data.movedim(-3, 0).flatten(1).to(torch.complex128)
    return samples @ samples.mH / samples.shape[1]


def test_whitening_makes_the_covariance_the_identity(tmp_path: Path) -> None:
    """From 1e5 noise samples of another dwell time and bandwidth: within 2 %."""
    scan = acquire.cartesian(replace(FLAT, matrix=(256, 200, 1)), Phantom(()), COILS, COVARIANCE)
    scan = acquire.add_noise_scan(scan, n_readouts=100, n_samples=1000, dwell_s=2e-5)
    k, noise = load(scan, tmp_path)
    assert noise is not None
    assert (noise.n_samples, noise.relative_bandwidth) == (100_000, 0.79)
    assert noise.dwell_s == pytest.approx(2e-5)
    np.testing.assert_allclose(noise.covariance_at(5e-6), COVARIANCE, atol=0.02 * np.abs(COVARIANCE).max())
    white = preprocess.whiten(k, noise)
    assert white.header.noise_std == 1
    assert (silent(white) - torch.eye(4)).abs().max() < 0.02
    # and stays so when oversampling is removed
    assert (silent(preprocess.remove_oversampling(white)) - torch.eye(4)).abs().max() < 0.03
    with pytest.raises(InputError, match="step 'whiten' was already applied"):
        preprocess.whiten(white, noise)


def test_the_noise_covariance_is_a_mean_without_mean_subtraction() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((3, 50)) + 1j * rng.standard_normal((3, 50)) + 0.5
    before = samples.copy()
    covariance, n = noise_covariance([samples[:, :20], samples[:, 20:]])
    naive = sum(np.outer(column, column.conj()) for column in samples.T) / 50
    np.testing.assert_allclose(covariance, naive, rtol=1e-12)
    np.testing.assert_array_equal(samples, before)
    assert n == 50


def test_averages_lower_the_noise_as_they_count(tmp_path: Path) -> None:
    scan = acquire.cartesian(replace(FLAT, matrix=(128, 100, 1)), Phantom(()), COILS, COVARIANCE)
    scan = acquire.add_noise_scan(acquire.repeat(scan, "average", [1, 1, 1, 1]), n_readouts=64, n_samples=256)
    k, noise = load(scan, tmp_path)
    assert noise is not None
    white = preprocess.whiten(k, noise)
    assert white.n_averages is not None
    assert (white.n_averages == 4).all()
    assert (silent(white) * 4 - torch.eye(4)).abs().max() < 0.06


def test_a_separate_noise_measurement(tmp_path: Path) -> None:
    write_scan(acquire.add_noise_scan(plain(noisy=True), n_readouts=8), tmp_path / "noise.h5")
    k, noise = load(plain(noisy=True), tmp_path)
    assert noise is None
    other = read_noise(tmp_path / "noise.h5")
    assert other.n_samples == 8 * 128
    assert preprocess.whiten(k, other).header.noise_std == 1


def test_a_missing_bandwidth_is_reported(tmp_path: Path) -> None:
    scan = replace(acquire.add_noise_scan(plain(noisy=True)), noise_bandwidth=None)
    write_scan(scan, tmp_path / "scan.h5")
    read = open_scan(tmp_path / "scan.h5")
    assert read.noise is not None
    assert read.noise.relative_bandwidth == 1
    assert any("no relativeReceiverNoiseBandwidth" in w for w in read.warnings)


def test_a_dead_coil_is_dropped_by_name(tmp_path: Path) -> None:
    scan = acquire.kill_coil(acquire.add_noise_scan(plain(noisy=True)), 2)
    k, noise = load(scan, tmp_path)
    assert noise is not None
    assert preprocess.dead_coils(noise) == (2,)
    named = replace(k, header=replace(k.header, coils=replace(k.header.coils, names=("A", "B", "C", "D"))))
    kept = preprocess.drop_dead_coils(named, noise)
    assert kept.header.coils.dropped_names == ("2 (C)",)
    assert torch.equal(kept.data, k.data[[0, 1, 3]])
    white = preprocess.whiten(kept, noise)
    alone = Noise(noise.covariance[np.ix_([0, 1, 3], [0, 1, 3])], noise.dwell_s, noise.n_samples, noise.relative_bandwidth)
    header = replace(kept.header, coils=ReceiveCoils())
    assert torch.equal(white.data, preprocess.whiten(replace(kept, header=header), alone).data)
    assert white.header.coils.numbers == (0, 1, 3)


def test_without_noise_only_channels_of_zeros_are_dropped(tmp_path: Path) -> None:
    k, _ = load(acquire.kill_coil(plain(), 1), tmp_path)
    kept = preprocess.drop_dead_coils(k, None)
    assert kept.header.coils.dropped_names == ("1",)
    assert kept.n_coils == 3
    empty = replace(k, data=torch.zeros_like(k.data))
    assert preprocess.drop_dead_coils(empty, None).header.coils.dropped == ()


def test_preparation_is_the_steps_in_order(tmp_path: Path) -> None:
    scan = acquire.kill_coil(acquire.add_noise_scan(plain(replace(FLAT, readout_oversampling=2.0), noisy=True)), 2)
    k, noise = load(scan, tmp_path)
    assert noise is not None
    step = preprocess.remove_oversampling(preprocess.whiten(preprocess.drop_dead_coils(preprocess.conjugate(k), noise), noise))
    expected = compress(step, 2)
    found = preprocess.prepare(k, noise, conjugated=True, n_virtual=2)
    assert torch.equal(found.data, expected.data)
    assert torch.equal(found.mask, expected.mask)
    assert found.header.steps == ("read", "conjugate", "drop_dead_coils", "whiten", "remove_oversampling", "compress")
    assert found.header.coils.numbers == (0, 1, 3)
    with pytest.raises(InputError, match="already applied"):
        preprocess.prepare(preprocess.prepare(k, noise), None)


def test_preparation_without_noise_and_of_3d_scans(tmp_path: Path) -> None:
    k, _ = load(acquire.kill_coil(plain(replace(FLAT, matrix=(16, 12, 6))), 1), tmp_path)
    assert preprocess.prepare(k, None).data.shape == (16, 3, 6, 12)
    kept = preprocess.prepare(k, None, keep_silent=True)
    assert kept.data.shape == (16, 4, 6, 12)
    assert not kept.data[:, 1].any()
    assert torch.equal(kept.data[:, [0, 2, 3]], preprocess.prepare(k, None).data)


def test_noise_that_cannot_whiten_is_refused(tmp_path: Path) -> None:
    k, noise = load(acquire.add_noise_scan(plain(noisy=True)), tmp_path)
    assert noise is not None
    with pytest.raises(InputError, match="3 noise samples cannot give the covariance of 4 coils"):
        preprocess.whiten(k, replace(noise, n_samples=3))
    copied = noise.covariance.copy()
    copied[3], copied[:, 3] = copied[2], copied[:, 2]
    copied[3, 3] = copied[2, 2]
    with pytest.raises(InputError, match="covariance of the 4 coils is singular"):
        preprocess.whiten(k, replace(noise, covariance=copied))
    with pytest.raises(InputError, match="singular"):
        preprocess.whiten(k, replace(noise, covariance=0 * copied))
    with pytest.raises(InputError, match="the noise has 3 channels, the scan 4"):
        preprocess.whiten(k, replace(noise, covariance=copied[:3, :3]))
    with pytest.raises(InputError, match="the noise has 3 channels, the scan 4"):
        preprocess.drop_dead_coils(k, replace(noise, covariance=copied[:3, :3]))


def test_separate_calibration_is_whitened_and_cut_with_the_data(tmp_path: Path) -> None:
    scan = acquire.add_noise_scan(acquire.accelerate(plain(noisy=True), 2, calibration=8, mode="separate"))
    k, noise = load(scan, tmp_path)
    assert noise is not None
    assert k.calibration is not None
    white = preprocess.remove_oversampling(preprocess.whiten(k, noise))
    moved = KSpace(k.calibration, torch.ones_like(k.mask), k.header)
    assert white.calibration is not None
    assert torch.equal(white.calibration, preprocess.remove_oversampling(preprocess.whiten(moved, noise)).data)


@pytest.mark.parametrize("oversampling", [1.0, 2.0, 1.25])
def test_readout_oversampling_is_removed_in_image_space(tmp_path: Path, oversampling: float) -> None:
    scan = plain(replace(FLAT, readout_oversampling=oversampling))
    k = preprocess.remove_oversampling(load(scan, tmp_path)[0])
    assert k.data.shape == (4, 28, 32)
    assert k.header.encoded_matrix == (32, 28, 1)
    assert k.header.encoded_fov_m == pytest.approx((0.24, 0.21, 0.005))
    assert nrmse(ifft(k.data), true_image(scan, COILS)[:, 0]) < 1e-5


def test_a_non_integer_size_is_rounded_up_and_reported() -> None:
    header = Header(
        encoded_matrix=(50, 8, 1), recon_matrix=(32, 8, 1), encoded_fov_m=(0.5, 0.2, 0), recon_fov_m=(0.333, 0.2, 0)
    )
    k = KSpace(torch.zeros(1, 8, 50, dtype=torch.complex64), torch.ones(8, 1, dtype=torch.bool), header)
    cut = preprocess.remove_oversampling(k)
    assert cut.data.shape == (1, 8, 34)
    assert cut.header.encoded_fov_m[0] == pytest.approx(0.34)


@pytest.mark.parametrize("missing", [12, 13])
def test_asymmetric_echo_after_removing_oversampling(tmp_path: Path, missing: int) -> None:
    """What counts as acquired is right to 2 % of the peak at the edge, and to 0.5 % from the third sample on."""
    scan = acquire.asymmetric_echo(plain(), missing)
    k = preprocess.remove_oversampling(load(scan, tmp_path)[0])
    full = fft(torch.from_numpy(true_image(scan, COILS)[:, 0]))
    first = 7
    assert k.mask[0, 0].nonzero().flatten().tolist() == list(range(first, 32))
    assert not k.data[..., :first].any()
    error = ((k.data - full).abs() / full.abs().max()).amax((0, 1))
    assert error[first:].max() < 0.02
    assert error[first + 2 :].max() < 0.005


def test_reversed_lines_lose_one_edge_sample_and_keep_the_rest(tmp_path: Path) -> None:
    scan = plain()
    scan.headers["flags"][1::2] |= acquire.REVERSE
    k = preprocess.remove_oversampling(load(scan, tmp_path)[0])
    assert k.mask[0, 0::2].all()
    assert k.mask[0, 1::2, 1:].all()
    assert not k.mask[0, 1::2, 0].any()


def test_decoupling_gives_the_planes_of_the_volume(tmp_path: Path) -> None:
    scan = acquire.cartesian(ScanProtocol(matrix=(16, 12, 10), fov_m=(0.24, 0.2, 0.2)), PHANTOM, COILS)
    scan = acquire.accelerate(scan, 2, 2, calibration=6)
    k = preprocess.remove_oversampling(load(scan, tmp_path)[0])
    planes = preprocess.decouple(k)
    assert planes.data.shape == (16, 4, 10, 12)
    assert planes.mask.shape == (1, 1, 10, 12)
    full = fft(torch.from_numpy(true_image(scan, COILS)), (-3, -2))  # (coil kz ky x)
    expected = torch.where(planes.mask, full.permute(3, 0, 1, 2), 0)
    assert nrmse(planes.data, expected) < 1e-5
    with pytest.raises(InputError, match="must be removed before decoupling"):
        preprocess.remove_oversampling(replace(planes, header=replace(planes.header, steps=("decouple",))))
    with pytest.raises(InputError, match="only 3-D k-space"):
        preprocess.decouple(load(plain(), tmp_path)[0])


def test_decoupling_states_the_noise_of_an_asymmetric_echo() -> None:
    torch.manual_seed(1)
    data = torch.randn(12, 2, 16, 32, dtype=torch.complex64)
    mask = torch.ones(12, 1, 16, 32, dtype=torch.bool)
    mask[..., :8] = False
    header = Header(encoded_matrix=(32, 16, 12), noise_std=1.0)
    planes = preprocess.decouple(KSpace(torch.where(mask, data, 0), mask, header, n_averages=mask.int() * 2))
    assert planes.header.noise_std == pytest.approx(0.75**0.5)
    assert planes.data.abs().square().mean() == pytest.approx(0.75, rel=0.03)
    assert planes.n_averages is not None
    assert (planes.n_averages == 2).all()


def acquired(n_y: int = 12, n_x: int = 9) -> KSpace:
    """k-space that lacks its last line, with averages and a separate calibration."""
    generator = torch.Generator().manual_seed(5)
    data, calibration = (torch.randn(3, n_y, n_x, dtype=torch.complex64, generator=generator) for _ in range(2))
    mask = torch.ones(1, n_y, 1, dtype=torch.bool)
    mask[:, -1] = False
    counts = torch.randint(1, 4, mask.shape, generator=generator) * mask
    header = Header(acceleration=(2.0, 1.0), steps=("whiten",), noise_std=1.0)
    return KSpace(torch.where(mask, data, 0), mask, header, counts, calibration)


@pytest.mark.parametrize("lines", [True, False])
def test_undersampling_keeps_what_the_mask_keeps(lines: bool) -> None:
    k = acquired()
    drawn = torch.rand((12, 1 if lines else 9), generator=torch.Generator().manual_seed(1)) < 0.5
    under = preprocess.undersample(k, drawn)
    assert k.n_averages is not None
    assert under.n_averages is not None
    for y in range(12):
        for x in range(9):
            kept = bool(drawn[y, 0 if lines else x]) and y < 11
            assert bool(under.mask[0, y, 0 if lines else x]) is kept
            assert int(under.n_averages[0, y, 0 if lines else x]) == (int(k.n_averages[0, y, 0]) if kept else 0)
            assert torch.equal(under.data[:, y, x], k.data[:, y, x] if kept else torch.zeros(3, dtype=torch.complex64))
    assert under.calibration is k.calibration
    assert under.header == replace(k.header, steps=("whiten", "undersample"))


def test_what_undersampling_leaves_out_changes_nothing() -> None:
    k = acquired()
    assert k.n_averages is not None
    drawn = torch.arange(12)[:, None] % 3 == 0
    changed = replace(
        k,
        data=torch.where(drawn, k.data, torch.nan),
        n_averages=torch.where(drawn, k.n_averages, 7),
    )
    a, b = preprocess.undersample(k, drawn), preprocess.undersample(changed, drawn)
    assert torch.equal(a.data, b.data)
    assert torch.equal(a.mask, b.mask)
    assert a.n_averages is not None
    assert b.n_averages is not None
    assert torch.equal(a.n_averages, b.n_averages)


def test_undersampling_twice_and_masks_of_numbers_are_refused() -> None:
    k, drawn = acquired(), torch.arange(12)[:, None] % 3 == 0
    with pytest.raises(InputError, match="step 'undersample' was already applied"):
        preprocess.undersample(preprocess.undersample(k, drawn), drawn)
    with pytest.raises(ValueError, match=r"the mask must be bool; got torch\.float32"):
        preprocess.undersample(k, drawn.float())


def with_phase(n_y: int, n_x: int) -> tuple[Tensor, Tensor]:
    """A smooth positive object with a smooth phase, as complex image, and its k-space."""
    y, x = torch.meshgrid(torch.arange(n_y) - n_y // 2, torch.arange(n_x) - n_x // 2, indexing="ij")
    magnitude = torch.zeros(n_y, n_x)
    for cy, cx, ry, rx, value in ((0, 0, 0.35, 0.38, 1.0), (5, -6, 0.1, 0.15, 0.6), (-6, 4, 0.15, 0.06, -0.5)):
        magnitude += value * torch.sigmoid(6 - 6 * (((y - cy) / (ry * n_y)) ** 2 + ((x - cx) / (rx * n_x)) ** 2))
    image = magnitude * torch.exp(1j * (1.2 * x / n_x - 0.9 * y / n_y + 2 * (y / n_y) * (x / n_x)))
    return image[None].to(torch.complex64), fft(image[None].to(torch.complex64))


@pytest.mark.parametrize(("axis", "first"), [(-2, 18), (-2, 0), (-1, 12)])
def test_pocs_fills_what_partial_fourier_left_out(axis: int, first: int) -> None:
    image, y = with_phase(64, 48)
    mask = torch.zeros(1, 64, 48, dtype=torch.bool)
    box = [slice(None)] * 3
    box[axis] = slice(first, None) if first else slice(0, 46)
    mask[tuple(box)] = True
    k = KSpace(torch.where(mask, y, 0), mask, Header(encoded_matrix=(48, 64, 1)), n_averages=mask.int() * 2)
    filled = pocs(k)
    before, after = nrmse(ifft(k.data), image), nrmse(ifft(filled.data), image)
    assert after < 0.4 * before, (before, after)
    assert torch.equal(filled.data[mask], k.data[mask])
    # With an even number of samples the first has no partner on the other side, so where it is missing it stays so.
    estimated = torch.ones_like(mask)
    if first:
        estimated.select(axis, 0).fill_(False)
    assert torch.equal(filled.mask, estimated)
    assert filled.n_averages is not None
    assert torch.equal(filled.n_averages, torch.where(mask, 2, estimated.int()))


def test_pocs_along_partitions() -> None:
    _, y = with_phase(40, 32)
    volume = torch.stack([y, 0.5 * y, 0.2 * y]).expand(3, 1, 40, 32)  # kz ky kx: the phase does not depend on z
    k3 = fft(ifft(volume).repeat_interleave(8, 0), (-4, -2, -1))
    mask = torch.zeros(24, 1, 40, 1, dtype=torch.bool)
    mask[6:] = True
    k = KSpace(torch.where(mask, k3, 0), mask, Header(encoded_matrix=(32, 40, 24)))
    filled = pocs(k)
    assert nrmse(filled.data, k3) < 0.5 * nrmse(k.data, k3)


def test_pocs_refuses_what_it_cannot_fill() -> None:
    data = torch.randn(2, 32, 32, dtype=torch.complex64)
    header = Header(encoded_matrix=(32, 32, 1))

    def lines(*rows: int) -> KSpace:
        mask = torch.zeros(1, 32, 1, dtype=torch.bool)
        mask[:, list(rows)] = True
        return KSpace(torch.where(mask, data, 0), mask, header)

    with pytest.raises(InputError, match="sampled symmetrically"):
        pocs(lines(*range(32)))
    with pytest.raises(InputError, match="the data are undersampled"):
        pocs(lines(*range(10, 32, 2)))
    with pytest.raises(InputError, match="extend 2 samples beyond the centre, POCS needs 4"):
        pocs(lines(*range(14, 32)))


def naive_resample(image: np.ndarray, n: int, m: int, old: float, new: float) -> np.ndarray:
    """Fourier series of the last axis at the voxels of the recon grid, term by term."""
    y = np.asarray(fft(torch.from_numpy(image), (-1,)))
    out = np.zeros((*image.shape[:-1], m), complex)
    for j in range(m):
        position = (j - m // 2) * new / m
        if not -(n // 2) - 0.5 <= position * n / old <= (n - 1) // 2 + 0.5:
            continue
        for i in range(n):
            k = (i - n // 2) / old
            if -(m // 2) <= k * new <= (m - 1) // 2:
                out[..., j] += y[..., i] * np.exp(2j * np.pi * k * position) / np.sqrt(n)
    return out


@pytest.mark.parametrize(
    ("n", "m", "old", "new"),
    [(20, 16, 0.25, 0.2), (20, 32, 0.2, 0.2), (20, 13, 0.2, 0.2), (21, 32, 0.25, 0.2), (21, 17, 0.23, 0.2),
     (20, 24, 0.2, 0.25), (20, 25, 0.2, 0.25), (19, 64, 0.22, 0.2), (16, 10, 0.2, 0.217)],
)  # fmt: skip
def test_resampling_to_the_recon_matrix_is_the_fourier_series(n: int, m: int, old: float, new: float) -> None:
    rng = np.random.default_rng(2)
    image = rng.standard_normal((2, n, 8)) + 1j * rng.standard_normal((2, n, 8))
    header = Header(encoded_matrix=(8, n, 1), recon_matrix=(8, m, 1), encoded_fov_m=(0.1, old, 0), recon_fov_m=(0.1, new, 0))
    out = preprocess.to_recon_matrix(torch.from_numpy(image), header)
    expected = naive_resample(image.swapaxes(-1, -2), n, m, old, new).swapaxes(-1, -2)
    if abs(n * new / old - m) < 1e-3:  # the same voxels: cut or padded, nothing left out
        expected = np.zeros_like(expected)
        shared = min(n, m)
        expected[:, m // 2 - shared // 2 :][:, :shared] = image[:, n // 2 - shared // 2 :][:, :shared]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(out.numpy(), interpolate(torch.from_numpy(image), (m, 8)).numpy(), atol=1e-12)


@pytest.mark.parametrize(("phase_oversampling", "recon"), [(1.5, (32, 28, 1)), (1.5, (64, 56, 1)), (1.3, (48, 40, 1))])
def test_the_object_stays_where_it_is(tmp_path: Path, phase_oversampling: float, recon: tuple[int, int, int]) -> None:
    """Phase oversampling, zero-filling and a ratio that is not whole: against the phantom blurred by its k-space, at the voxels
    of the recon grid."""
    scan = plain(replace(FLAT, phase_oversampling=phase_oversampling, recon_matrix=recon))
    k = preprocess.remove_oversampling(load(scan, tmp_path)[0])
    image = preprocess.to_recon_matrix(ifft(k.data), k.header)
    assert image.shape == (4, recon[1], recon[0])
    space = scan.spaces[0]
    (nx, ny), (fx, fy) = k.header.encoded_matrix[:2], space.encoded_fov_m[:2]
    fx = 0.24
    kx, ky = (np.arange(nx) - nx // 2) / fx, (np.arange(ny) - ny // 2) / fy
    y = COILS.section((0, 0, 0), (1, 0, 0), (0, 1, 0)).kspace(PHANTOM.section((0, 0, 0), (1, 0, 0), (0, 1, 0)), kx, ky[:, None])
    rx, ry = ((np.arange(m) - m // 2) * length / m for m, length in zip(recon, (0.24, 0.21), strict=False))
    expected = np.exp(2j * np.pi * np.outer(ry, ky)) @ y @ np.exp(2j * np.pi * np.outer(kx, rx)) / (fx * fy)
    # The readout was cut, not measured, to the field of view: Gibbs ringing from beyond it is all that differs.
    assert nrmse(image, expected) < 0.03


def test_real_images_stay_real_and_volumes_have_a_third_axis() -> None:
    header = Header(
        encoded_matrix=(8, 6, 4), recon_matrix=(8, 6, 8), encoded_fov_m=(0.1, 0.1, 0.1), recon_fov_m=(0.1, 0.1, 0.1)
    )
    image = torch.ones(2, 4, 6, 8)
    out = preprocess.to_recon_matrix(image, header)
    assert out.shape == (2, 8, 6, 8)
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.ones(()), atol=1e-5)
    with pytest.raises(ValueError, match=r"the image has shape \(4, 6, 9\), its header says \(4, 6, 8\)"):
        preprocess.to_recon_matrix(torch.ones(4, 6, 9), header)


def test_conjugated_samples_are_whitened_with_the_conjugate_covariance(tmp_path: Path) -> None:
    scan = acquire.add_noise_scan(plain(noisy=True))
    k, noise = load(scan, tmp_path)
    assert noise is not None
    assert np.abs(noise.covariance.imag).max() > 0.01 * np.abs(noise.covariance).max()
    whitened = preprocess.whiten(preprocess.conjugate(k), noise)
    assert torch.allclose(whitened.data, preprocess.whiten(k, noise).data.conj(), rtol=1e-5)
    maps = torch.randn(k.n_coils, *k.data.shape[-2:], dtype=torch.complex64)
    expected = preprocess.whiten(replace(preprocess.conjugate(k), data=maps), noise).data
    assert torch.equal(preprocess.match_channels(maps, whitened, noise), expected)


def test_conjugation_rotates_the_image_about_its_centre() -> None:
    image, y = with_phase(16, 12)
    k = preprocess.conjugate(KSpace(y, torch.ones(16, 1, dtype=torch.bool), Header()))
    turned = torch.roll(image.flip(-1, -2), (1, 1), (-2, -1)).conj()
    assert torch.allclose(ifft(k.data), turned, atol=1e-5)


def test_the_skyra_noise_is_white_with_variance_one(data_dir: Path) -> None:
    """Signal-free columns of the readout-transformed data, inside the flat passband of the receiver: mean |n|^2 = 1."""
    scan = open_scan(data_dir / "raw/skyra_bssfp_14ch_grappa3.h5")
    assert scan.noise is not None
    white = preprocess.whiten(scan.load(0, scan.images(0)[0]), scan.noise)
    assert white.mask.sum() == 68
    columns = ifft(white.data[:, white.mask[0, :, 0]], (-1,)).abs().square().mean((0, 1))
    # The bottles lie in columns 104 to 279. Outside 72 to 311 the receiver's filter falls off, to 0.14 at the edge: over all
    # columns it passes relativeReceiverNoiseBandwidth, 0.79, of the noise.
    free = torch.zeros(384, dtype=torch.bool)
    free[72:96] = free[288:312] = True
    power = float(columns[free].mean())
    assert 0.85 < power < 1.15, power


def test_noise_that_single_precision_does_not_hold_is_refused_with_its_size() -> None:
    k = KSpace(torch.ones((2, 4, 4), dtype=torch.complex64), torch.ones((1, 4, 1), dtype=torch.bool), Header(source="scan.h5"))
    with pytest.raises(InputError, match=r"the noise has a standard deviation of 1e-40, below 1.2e-38"):
        preprocess.whiten(k, Noise(1e-80 * np.eye(2, dtype=np.complex128), None, 100))
