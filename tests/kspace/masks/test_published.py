"""Masks of published systems against measurements on the published files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kspace.fourier import fft, ifft
from kspace.masks import MaskSpec

PERCENT = [1, 5, 10, 20, 30, 40, 50]
LINES = [4, 14, 24, 56, 75, 105, 127]
CENTRES = [(128, 128), (126, 133), (123, 134), (118, 139), (111, 140), (110, 146), (104, 151)]
GAUSSIAN = [0.0096, 0.0497, 0.1009, 0.2009, 0.3001, 0.4002, 0.5004]
GAUSSIAN_CENTRES = [3, 5, 9, 17, 25, 35, 43]
POISSON = [0.0100, 0.0508, 0.0963, 0.1855, 0.3550, 0.4018, 0.4883]
POISSON_CENTRES = [19, 29, 29, 29, 29, 29, 29]


def square(mask: torch.Tensor) -> int:
    """Side of the largest fully sampled square around index 128."""
    side = 1
    while mask[128 - side // 2 - 1 : 129 + side // 2 + 1, 128 - side // 2 - 1 : 129 + side // 2 + 1].all():
        side += 2
    return side


@pytest.mark.parametrize(("percent", "lines", "centre"), list(zip(PERCENT, LINES, CENTRES, strict=True)))
def test_dagan_lines(percent: int, lines: int, centre: tuple[int, int]) -> None:
    for key in "abc":
        mask = MaskSpec.parse(f"dagan-g1d:{percent}%").draw((256, 256), key)
        assert mask.shape == (256, 1)
        assert mask.sum() == lines
        assert mask[centre[0] : centre[1] + 1].all()
        if percent > 1:
            assert not mask[centre[0] - 1]
            assert not mask[centre[1] + 1]


@pytest.mark.parametrize("percent", PERCENT)
def test_dagan_points(percent: int) -> None:
    i = PERCENT.index(percent)
    for key in "ab":
        gaussian = MaskSpec.parse(f"dagan-g2d:{percent}%").draw((256, 256), key)
        assert gaussian.float().mean().item() == pytest.approx(GAUSSIAN[i], abs=1e-5)
        assert square(gaussian) == GAUSSIAN_CENTRES[i]
        poisson = MaskSpec.parse(f"dagan-p2d:{percent}%").draw((256, 256), key)
        assert poisson.float().mean().item() == pytest.approx(POISSON[i], abs=1e-5)
        assert square(poisson) == POISSON_CENTRES[i]


@pytest.mark.parametrize("percent", [2, 7, 15, 25, 33.3, 45])
@pytest.mark.parametrize("shape", [(256, 256), (203, 181), (64, 96)])
def test_dagan_between_published_percentages_has_the_requested_fraction(percent: float, shape: tuple[int, int]) -> None:
    for family in ("g1d", "g2d", "p2d"):
        mask = MaskSpec.parse(f"dagan-{family}:{percent}%").draw(shape)
        assert abs(mask.float().mean().item() - percent / 100) <= max(0.005, 0.5 / shape[0])
        assert mask.expand(shape)[shape[0] // 2, shape[1] // 2]


@pytest.fixture(scope="module")
def brain(data_dir: Path) -> torch.Tensor:
    folder = data_dir / "refinegan_brain" / "train"
    if not folder.is_dir():
        pytest.skip(f"needs RefineGAN's brain slices: {folder} is absent")
    images = [np.asarray(Image.open(path).convert("L"), np.float32) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(images)) / 255


def psnr(brain: torch.Tensor, text: str, key: str = "") -> float:
    mask = MaskSpec.parse(text).draw((256, 256), key)
    if mask.shape[1] == 1 and text.startswith("dagan"):
        mask = mask.T  # DAGAN samples columns
    zero_filled = ifft(fft(brain.to(torch.complex64)) * mask).abs()
    return float((-10 * ((zero_filled - brain) ** 2).mean((1, 2)).log10()).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "published", "tolerance"),
    [
        # With the published files, on the validation slices: mean PSNR of the zero-filled images at 10, 30 and 50 %.
        ("dagan-g1d", [21.273, 25.911, 30.261], 0.8),  # depends strongly on the drawn lines
        ("dagan-g2d", [23.731, 27.184, 31.345], 0.3),
        ("dagan-p2d", [26.330, 29.993, 31.562], 0.6),
        ("radial", [22.296, 28.997, 34.443], 0.6),
        ("spiral", [21.821, 28.505, 34.368], 0.7),
    ],
)
def test_zero_filled_psnr_matches_the_published_files(
    brain: torch.Tensor, family: str, published: list[float], tolerance: float
) -> None:
    keys = ("", "a") if family.startswith("dagan") else ("",)
    ours = [np.mean([psnr(brain, f"{family}:{percent}%", key) for key in keys]) for percent in (10, 30, 50)]
    assert np.abs(np.array(ours) - published).max() < tolerance, ours


@pytest.mark.parametrize("percent", [10, 20, 30, 40])
def test_refinegan_mask_files_give_the_published_psnr(brain: torch.Tensor, data_dir: Path, percent: int) -> None:
    published = {10: 22.296, 20: 25.806, 30: 28.997, 40: 31.699}[percent]
    path = data_dir / "refinegan_brain" / "masks" / f"mask_{percent}.png"
    assert psnr(brain, f"file:{path}") == pytest.approx(published, abs=0.05)
    assert psnr(brain, f"file:{path},dc=corner") == pytest.approx(published, abs=0.05)
