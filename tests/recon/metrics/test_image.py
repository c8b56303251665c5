"""Metrics: equal to fastMRI's code, and to hand calculations where a convention has no code of its own here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastmri import evaluate as fastmri_evaluate
from fastmri.data import transforms
from scipy.ndimage import gaussian_laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from recon.metrics.image import (
    DAGAN,
    FASTMRI,
    GANCS,
    RECON_GLGAN,
    RECON_GLGAN_ROI,
    REFINEGAN,
    SEITZER,
    foreground,
    hfen,
    laplacian_of_gaussian,
    mean_and_spread,
    mse,
    nmse,
    nrmse,
    psnr,
    square_crop,
    ssim,
)


def volumes(shape: tuple[int, ...] = (3, 40, 32), scale: float = 1.0, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    disc = ((x**2 + y**2) < 0.7) * (0.6 + 0.3 * np.cos(9 * x) * np.sin(7 * y))
    target = disc * np.linspace(0.5, 1, shape[0])[:, None, None]
    image = np.abs(target + noise * generator.standard_normal(shape))
    return (scale * target).astype(np.float32), (scale * image).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(3, 40, 32), (2, 41, 32), (1, 36, 36), (2, 40, 33)])
def test_equal_to_fastmris_evaluation(shape: tuple[int, ...], scale: float) -> None:
    target, image = volumes(shape, scale)
    ours = FASTMRI.measure(target, image)
    side = (shape[-1], shape[-1])
    gt, pred = transforms.center_crop(target, side), transforms.center_crop(image, side)
    for name, function in fastmri_evaluate.METRIC_FUNCS.items():
        assert ours[name.lower()].shape == (1,)
        assert ours[name.lower()][0] == pytest.approx(float(np.squeeze(function(gt, pred))), rel=1e-6), name


def test_wider_than_high_is_cut_to_the_height() -> None:
    target, image = volumes((2, 30, 41))
    with pytest.raises(ValueError, match="Invalid shapes"):
        transforms.center_crop(target, (41, 41))
    ours = FASTMRI.measure(target, image)
    turned = FASTMRI.measure(target.swapaxes(1, 2), image.swapaxes(1, 2))
    np.testing.assert_array_equal(square_crop(target), target[:, :, 5:35])
    for name, value in ours.items():
        assert value == pytest.approx(turned[name], rel=1e-5)


def test_support() -> None:
    target, image = volumes()
    support = np.zeros(target.shape, bool)
    support[:, 12:20, 10:20] = True
    values = FASTMRI.measure(target, image, support)
    inside_t, inside_x = target[support].astype(np.float64), image[support].astype(np.float64)
    error = np.mean((inside_t - inside_x) ** 2)
    assert values["mse_support"][0] == pytest.approx(error, rel=1e-6)
    assert values["nmse_support"][0] == pytest.approx(error / np.mean(inside_t**2), rel=1e-6)
    assert values["psnr_support"][0] == pytest.approx(10 * np.log10(target.max() ** 2 / error), rel=1e-6)
    cut_t, cut_x, cut_s = (square_crop(x) for x in (target, image, support))
    maps = [structural_similarity(t, x, data_range=cut_t.max(), full=True)[1] for t, x in zip(cut_t, cut_x, strict=True)]
    assert values["ssim_support"][0] == pytest.approx(np.mean(np.stack(maps)[cut_s]), rel=1e-6)
    whole = FASTMRI.measure(target, image, np.ones(target.shape, bool))
    for name in ("mse", "nmse", "psnr"):
        assert whole[f"{name}_support"] == pytest.approx(whole[name], rel=1e-6)


def test_dagan() -> None:
    target, image = volumes()
    values = DAGAN.measure(target, image)
    for i in range(3):
        t, x = target[i].astype(np.float64), image[i].astype(np.float64)
        assert values["nmse"][i] == pytest.approx(np.linalg.norm(x - t) / np.linalg.norm(t), rel=1e-5)
        assert values["psnr"][i] == pytest.approx(peak_signal_noise_ratio(t, x, data_range=1), rel=1e-5)
        assert values["ssim"][i] == pytest.approx(structural_similarity(t, x, data_range=2), rel=1e-5)
        assert values["ssim"][i] > structural_similarity(t, x, data_range=1)  # the published range flatters


def test_refinegan_takes_magnitudes_of_complex_images() -> None:
    target, image = volumes((1, 16, 16), scale=255)
    turned = image * np.exp(1j * np.linspace(0, 3, 16))
    error = np.mean((target.astype(np.float64) - image) ** 2)
    expected = 20 * np.log10(255) - 10 * np.log10(error + 1e-6)
    assert REFINEGAN.measure(target, turned)["psnr"][0] == pytest.approx(expected, rel=1e-5)
    assert REFINEGAN.measure(target, target)["psnr"][0] == pytest.approx(20 * np.log10(255) + 60)


def test_refinegans_zero_filled_figure(data_dir: Path) -> None:
    """Zero-filled, radial 30 %, on RefineGAN's own slices: the published 29.0 dB (validation set) holds within 1.5 dB."""
    from PIL import Image

    folder = data_dir / "refinegan_brain"
    mask = np.asarray(Image.open(folder / "masks" / "mask_30.png").convert("L")) > 127
    values = []
    for path in sorted((folder / "train").glob("*.png"))[:20]:
        image = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        # Scaled to [-1, 1] the empty imaginary channel is -1 everywhere, as the system sees it.
        scaled = (image / 255 - 0.5) * 2 - 1j
        filled = np.fft.ifft2(np.fft.fft2(scaled) * mask)
        back = ((filled.real / 2 + 0.5) + 1j * (filled.imag / 2 + 0.5)) * 255
        values.append(REFINEGAN.measure(image[None], back[None])["psnr"][0])
    assert np.mean(values) == pytest.approx(29.0, abs=1.5)


def test_gancs() -> None:
    target = np.full((2, 8, 8), 2.0)
    assert GANCS.measure(target, target * 1.1)["snr"] == pytest.approx([20.0, 20.0])
    assert np.isposinf(GANCS.measure(target, target)["snr"]).all()


def test_recon_glgan_cuts() -> None:
    target, image = volumes((2, 200, 180))
    inner = FASTMRI.measure(target[:, 25:175, 15:165], image[:, 25:175, 15:165])
    values = RECON_GLGAN.measure(target, image)
    for name, value in values.items():
        assert value == pytest.approx(inner[name], rel=1e-6)
    roi = FASTMRI.measure(target[:, 70:130, 60:120], image[:, 70:130, 60:120])
    assert RECON_GLGAN_ROI.measure(target, image)["psnr"] == pytest.approx(roi["psnr"], rel=1e-6)


def test_seitzer() -> None:
    target, image = volumes()
    values = SEITZER.measure(target, image)
    for i in range(3):
        peak = target[i].max()
        expected = structural_similarity(target[i], image[i], data_range=peak, gaussian_weights=True, sigma=1.5)
        assert values["ssim"][i] == pytest.approx(expected, rel=1e-6)
        expected = peak_signal_noise_ratio(target[i], image[i], data_range=peak)
        assert values["psnr"][i] == pytest.approx(expected, rel=1e-5)


def test_hfen() -> None:
    kernel = laplacian_of_gaussian()
    assert kernel.shape == (15, 15)
    assert kernel.sum() == pytest.approx(0, abs=1e-15)
    assert kernel[7, 7] == pytest.approx(-1 / (np.pi * 1.5**4), rel=1e-3)  # the continuous one at the origin
    target, image = (x.astype(np.float64) for x in volumes())
    edges = [np.stack([gaussian_laplace(s, 1.5, mode="constant", truncate=7 / 1.5) for s in x]) for x in (target, image)]
    expected = np.linalg.norm(edges[1] - edges[0]) / np.linalg.norm(edges[0])
    assert hfen(target, image) == pytest.approx(expected, rel=2e-2)
    assert hfen(target, target) == 0
    assert hfen(1e-6 * target, 1e-6 * image) == pytest.approx(hfen(target, image), rel=1e-6)
    assert hfen(target, target + 5)  # a jump at the border is an edge; in the middle a constant is none
    support = np.zeros(target.shape, bool)
    support[:, 16:24, 12:20] = True
    assert hfen(target, target + 5, support) == pytest.approx(0, abs=1e-9)


def test_perfect_and_empty_images() -> None:
    target, _ = volumes()
    values = FASTMRI.measure(target, target)
    assert np.isposinf(values["psnr"][0])
    assert (values["nmse"][0], values["ssim"][0]) == (0, pytest.approx(1))
    empty = np.zeros_like(target)
    assert np.isnan(FASTMRI.measure(empty, target)["nmse"][0])
    assert np.isnan(FASTMRI.measure(empty, target)["ssim"][0])
    nothing = np.zeros(target.shape, bool)
    for metric in (mse, nmse, nrmse, psnr, ssim, hfen):
        assert np.isnan(metric(target, target + 1, nothing)), metric


def test_foreground() -> None:
    y, x = np.mgrid[-32:32, -32:32]
    ring = ((np.hypot(x, y) < 24) & (np.hypot(x, y) > 12)).astype(float)
    noise = np.random.default_rng(0).standard_normal(ring.shape) * 0.01
    mask = foreground(1e-7 * np.stack([ring, np.abs(ring + noise)]))
    disc = np.hypot(x, y) < 24
    for plane in mask:
        assert plane[disc].all()
        assert plane[np.hypot(x, y) > 28].sum() == 0


def test_shapes_are_checked() -> None:
    target, image = volumes()
    with pytest.raises(ValueError, match="must both be"):
        FASTMRI.measure(target, image[:2])
    with pytest.raises(ValueError, match="must both be"):
        FASTMRI.measure(target[0], image[0])
    with pytest.raises(ValueError, match="must have the target's shape"):
        FASTMRI.measure(target, image, np.ones(3, bool))


def test_mean_and_spread() -> None:
    from runstats import Statistics

    values = np.array([1.0, 2.0, 4.0])
    statistics = Statistics(values)
    assert mean_and_spread(values) == (pytest.approx(statistics.mean()), pytest.approx(2 * statistics.stddev()))
    assert np.isnan(mean_and_spread(values[:1])[1])
