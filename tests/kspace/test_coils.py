"""Coil maps against SigPy's ESPIRiT and against known sensitivities; compression against its defining properties."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from torch import Tensor

from kspace import coils
from kspace.coils import NoCalibration, calibration_region, estimate_maps
from kspace.compression import compress
from kspace.container import Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.io.coil_maps import load_maps


def scan(shape: tuple[int, int] = (48, 40), n_coils: int = 5, noise: float = 1e-3) -> tuple[KSpace, Tensor, Tensor]:
    """Fully sampled k-space of a smooth-phased phantom, its true maps (unit norm) and where the object is."""
    maps = torch.from_numpy(sigpy.mri.birdcage_maps((n_coils, *shape), r=1.3).astype(np.complex64))
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    image = torch.from_numpy(sigpy.shepp_logan(shape, dtype=np.complex64)) + 0.0
    y, x = (torch.linspace(-1, 1, n) for n in shape)
    image = image * torch.exp(1j * (0.8 * y[:, None] - 0.5 * x[None, :]))
    data = fft(maps * image)
    data = data + noise * data.abs().max() * torch.randn_like(data) / 10
    return KSpace(data, torch.ones(shape[0], 1, dtype=torch.bool), Header(source="scan.h5")), maps, image.abs() > 0.1


def lines(n: int, centre: int, every: int = 3) -> Tensor:
    """Mask ``(n, 1)`` with a sampled centre and every few lines outside."""
    mask = torch.zeros(n, 1, dtype=torch.bool)
    mask[::every] = True
    mask[n // 2 - centre // 2 : n // 2 - centre // 2 + centre] = True
    return mask


def undersampled(k: KSpace, mask: Tensor) -> KSpace:
    return KSpace(torch.where(mask, k.data, 0), mask, k.header)


def agreement(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """|<a, b>| of unit coil vectors, 1 where they differ by a phase only."""
    return (a * b.conj()).sum(-3).abs()[where]


@pytest.mark.parametrize(("shape", "width"), [((48, 40), 24), ((45, 41), 20)])
def test_espirit_equals_sigpy(shape: tuple[int, int], width: int) -> None:
    k, _, inside = scan(shape)
    ours = estimate_maps(k, calibration_width=width, crop=0.9)
    app = sigpy.mri.app.EspiritCalib(
        k.data.numpy(), calib_width=width, crop=0.9, max_iter=300, show_pbar=False, output_eigenvalue=True
    )
    maps, eigenvalue = (torch.from_numpy(a) for a in app.run())
    clear = (eigenvalue.squeeze() - 0.9).abs() > 1e-3
    assert torch.equal((ours != 0).any(0) & clear, (maps != 0).any(0) & clear)
    # Outside the object several eigenvalues may be close to 1, and which vector comes first is arbitrary.
    phase = (ours * maps.conj()).sum(0)
    difference = (ours - maps * phase / phase.abs().clamp(min=1e-9)).abs().amax(0)
    assert difference[inside].max() < 1e-4


def test_maps_are_the_true_sensitivities_in_the_object() -> None:
    k, truth, inside = scan()
    maps = estimate_maps(undersampled(k, lines(48, 16)))
    assert maps.dtype == torch.complex64
    assert agreement(maps, truth, inside).min() > 0.995
    norms = torch.linalg.vector_norm(maps, dim=0)
    assert ((norms - 1).abs().lt(1e-4) | (norms == 0)).all()


def test_few_lines_use_the_whole_width_of_the_readout() -> None:
    k, truth, inside = scan((64, 48))
    maps = estimate_maps(undersampled(k, lines(64, 8)))
    assert agreement(maps, truth, inside).mean() > 0.99


def test_the_phase_has_no_singularities() -> None:
    # Relative to one coil, as SigPy gives it, the phase jumps where that coil sees nothing.
    k, _, inside = scan()
    maps = estimate_maps(k)
    combined = (ifft(k.data) * maps.conj()).sum(0)
    step = torch.angle(combined[1:] * combined[:-1].conj()).abs()[inside[1:] & inside[:-1]]
    assert step.max() < 0.5


@pytest.mark.parametrize("method", coils.METHODS)
def test_unacquired_samples_have_no_effect(method: str) -> None:
    k, _, _ = scan()
    mask = lines(48, 12)
    clean = undersampled(k, mask)
    dirty = KSpace(torch.where(mask, k.data, torch.full_like(k.data, complex("nan"))), mask, k.header)
    assert torch.equal(estimate_maps(clean, method), estimate_maps(dirty, method))


def test_jsense_finds_the_maps_from_a_centre_with_gaps() -> None:
    k, truth, inside = scan((64, 64))
    mask = lines(64, 4, every=2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must not move
    maps = estimate_maps(undersampled(k, mask), "jsense")
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert agreement(maps, truth, inside).mean() > 0.97
    assert torch.isfinite(torch.view_as_real(maps)).all()


def test_one_coil_has_a_map_of_ones() -> None:
    data = torch.zeros(2, 1, 6, 5, dtype=torch.complex64)
    assert torch.equal(estimate_maps(KSpace(data, torch.zeros(6, 1, dtype=torch.bool), Header())), torch.ones_like(data))


@pytest.mark.parametrize("method", coils.METHODS)
def test_an_empty_slice_gets_no_maps_and_no_nan(method: str) -> None:
    k, _, _ = scan()
    both = KSpace(torch.stack([k.data, torch.zeros_like(k.data)]), k.mask, k.header)
    maps = estimate_maps(both, method)
    assert (maps[1] == 0).all()
    assert torch.equal(maps[0], estimate_maps(k, method))


@pytest.mark.parametrize("factor", [1e-18, 1e15])
@pytest.mark.parametrize("method", coils.METHODS)
def test_the_scale_of_the_data_does_not_matter(method: str, factor: float) -> None:
    k, _, inside = scan()
    scaled = KSpace(k.data * factor, k.mask, k.header)
    assert agreement(estimate_maps(k, method), estimate_maps(scaled, method), inside).min() > 1 - 1e-4


def test_separate_calibration_serves_the_maps_at_its_own_scale() -> None:
    k, _, _ = scan()
    mask = lines(48, 16)
    calibration = torch.where(lines(48, 16, every=48), k.data, 0)
    calibration[:, 0] = 0
    separate = KSpace(torch.where(lines(48, 1), k.data, 0), lines(48, 1), k.header, calibration=1e3 * calibration)
    assert torch.allclose(estimate_maps(separate), estimate_maps(undersampled(k, mask)), atol=1e-4)


def test_too_few_lines_are_refused_by_number() -> None:
    k, _, _ = scan()
    with pytest.raises(NoCalibration, match=r"scan\.h5: 4 calibration lines .* 5 are needed.*jsense"):
        estimate_maps(undersampled(k, lines(48, 4, every=16)))
    columns = torch.zeros(48, 40, dtype=torch.bool)
    columns[:, 18:22] = True
    with pytest.raises(NoCalibration, match="4 calibration samples per line"):
        estimate_maps(undersampled(k, columns))


def test_bad_input_is_refused() -> None:
    k, _, _ = scan()
    with pytest.raises(InputError, match="unknown coil map method 'caldir'"):
        estimate_maps(k, "caldir")
    data = k.data.clone()
    data[0, 20, 20] = complex("inf")
    with pytest.raises(InputError, match="not finite"):
        estimate_maps(KSpace(data, k.mask, k.header))


def naive_region(mask: np.ndarray) -> int:
    """Largest number of samples of a centred full block, by trying all."""
    ny, nx = mask.shape
    sizes = [0]
    for h in range(1, ny + 1):
        for w in range(1, nx + 1):
            y, x = ny // 2 - h // 2, nx // 2 - w // 2
            if mask[y : y + h, x : x + w].all():
                sizes.append(h * w)
    return max(sizes)


@pytest.mark.parametrize("shape", [(8, 8), (9, 7), (7, 10), (1, 6)])
def test_calibration_region_is_the_largest_block(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for density in (0.5, 0.8, 0.9, 0.97, 1.0):
        for _ in range(20):
            mask = rng.random(shape) < density
            height, width = calibration_region(torch.from_numpy(mask))
            assert height * width == naive_region(mask)
            y, x = shape[0] // 2 - height // 2, shape[1] // 2 - width // 2
            assert mask[y : y + height, x : x + width].all()


def test_calibration_region_of_lines_and_batches() -> None:
    assert calibration_region(lines(48, 12, every=6)) == (13, 1)  # line 30, next to the centre's 18..29, is one of every six
    assert calibration_region(lines(48, 12, every=7)) == (12, 1)
    both = torch.stack([lines(48, 12, every=7), lines(48, 7, every=7)]).unsqueeze(1)
    assert calibration_region(both) == (7, 1)


def test_compression_keeps_the_signal_and_white_noise() -> None:
    k, _, _ = scan(n_coils=8)
    virtual = compress(k, 8)
    assert torch.allclose(
        torch.linalg.vector_norm(virtual.data, dim=0), torch.linalg.vector_norm(k.data, dim=0), rtol=1e-4, atol=1e-4
    )
    energy = virtual.data.abs().square().sum((-2, -1))
    assert (energy.diff() <= 1e-6 * energy[0]).all()
    # The best that n channels can hold is the sum of the largest eigenvalues of the coil covariance.
    samples = k.data.reshape(8, -1).to(torch.complex128)
    eigenvalues = torch.linalg.eigvalsh(samples @ samples.mH).flip(0)
    four = compress(k, 4)
    assert four.n_coils == 4
    assert float(four.data.abs().square().sum()) == pytest.approx(float(eigenvalues[:4].sum()), rel=1e-5)
    noise = torch.randn(8, 200, 200, dtype=torch.complex64)
    covariance = torch.einsum("cyx,dyx->cd", *[(a := compress(KSpace(noise, k.mask[:1], Header()), 4).data), a.conj()]) / 200**2
    assert torch.allclose(covariance, torch.eye(4, dtype=torch.complex64), atol=0.03)


def test_compression_uses_acquired_samples_only() -> None:
    k, _, _ = scan()
    mask = lines(48, 12)
    dirty = KSpace(torch.where(mask, k.data, torch.full_like(k.data, complex("nan"))), mask, k.header)
    assert torch.equal(compress(dirty, 3).data, compress(undersampled(k, mask), 3).data)


def test_compression_applies_to_the_calibration() -> None:
    k, _, _ = scan()
    twin = KSpace(k.data, k.mask, k.header, calibration=7 * k.data)
    out = compress(twin, 3)
    assert out.calibration is not None
    assert torch.allclose(out.calibration, 7 * out.data, rtol=1e-4, atol=1e-4)
    assert out.header.steps == ("compress",)
    with pytest.raises(InputError, match="'compress' was already applied"):
        compress(out, 2)


@pytest.mark.parametrize("n", [0, 6])
def test_impossible_numbers_of_virtual_coils_are_refused(n: int) -> None:
    k, _, _ = scan()
    with pytest.raises(InputError, match=rf"scan\.h5: {n} virtual coils requested, the data have 5 coils; choose 1 to 5"):
        compress(k, n)


def test_maps_from_files(tmp_path: Path) -> None:
    k, truth, _ = scan()
    np.save(tmp_path / "maps.npy", 3 * truth.numpy())
    assert torch.allclose(load_maps(tmp_path / "maps.npy", k), truth, atol=1e-6)
    stack = torch.stack([torch.zeros_like(truth), truth])
    with h5py.File(tmp_path / "maps.h5", "w") as f:
        f["maps"] = stack.numpy()
    second = KSpace(k.data, k.mask, Header(index=ImageIndex(slice=1)))
    assert torch.allclose(load_maps(tmp_path / "maps.h5", second), truth, atol=1e-6)
    with pytest.raises(InputError, match="maps of 2 slices, slice 2 is asked for"):
        load_maps(tmp_path / "maps.h5", KSpace(k.data, k.mask, Header(index=ImageIndex(slice=2))))
    planes = KSpace(k.data.expand(3, *k.data.shape), k.mask, k.header)
    assert load_maps(tmp_path / "maps.npy", planes).shape == planes.data.shape


def test_maps_of_a_volume_have_its_shape(tmp_path: Path) -> None:
    volume = torch.randn(3, 6, 5, 4, dtype=torch.complex64)  # coil z y x
    volume = volume / torch.linalg.vector_norm(volume, dim=0)
    np.save(tmp_path / "maps.npy", volume.numpy())
    k = KSpace(
        torch.zeros(4, 3, 6, 5, dtype=torch.complex64), torch.ones(1, 1, 1, dtype=torch.bool), Header(steps=("decouple",))
    )
    assert torch.allclose(load_maps(tmp_path / "maps.npy", k), volume.permute(3, 0, 1, 2), atol=1e-6)
    np.save(tmp_path / "plane.npy", volume[..., 0].numpy())
    with pytest.raises(InputError, match=r"the data need \(coil z y x\) = \(3, 6, 5, 4\)"):
        load_maps(tmp_path / "plane.npy", k)


def test_bad_map_files_are_refused(tmp_path: Path) -> None:
    k, truth, _ = scan()
    with pytest.raises(InputError, match="unreadable coil maps"):
        load_maps(tmp_path / "absent.npy", k)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="unreadable coil maps"):
        load_maps(tmp_path / "object.npy", k)
    np.save(tmp_path / "small.npy", truth[:, :-1].numpy())
    with pytest.raises(InputError, match=r"maps of shape \(5, 47, 40\), the data need \(coil y x\) = \(5, 48, 40\)"):
        load_maps(tmp_path / "small.npy", k)
    np.save(tmp_path / "nan.npy", truth.numpy() * np.nan)
    with pytest.raises(InputError, match="not finite"):
        load_maps(tmp_path / "nan.npy", k)
    np.save(tmp_path / "text.npy", np.array([[["a"]]]))
    with pytest.raises(InputError, match="where complex"):
        load_maps(tmp_path / "text.npy", k)
