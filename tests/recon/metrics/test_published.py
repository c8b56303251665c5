"""A table that others can check: zero-filled PSNR of RefineGAN's public slices under its own masks, in its convention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.metrics.image import REFINEGAN

# Percent sampled: mean over the 100 training slices, in dB. RefineGAN's masks have the zero frequency in the corner.
TABLE = {10: 22.284, 20: 25.817, 30: 29.013, 40: 31.717}


@pytest.fixture(scope="module")
def slices(data_dir: Path) -> np.ndarray:
    """``(slice y x)`` in 0 to 255."""
    files = sorted((data_dir / "refinegan_brain" / "train").glob("*.png"))
    assert len(files) == 100
    return np.stack([np.asarray(Image.open(file).convert("L"), dtype=np.float64) for file in files])


@pytest.mark.parametrize("percent", TABLE)
def test_zero_filled_psnr(data_dir: Path, slices: np.ndarray, percent: int) -> None:
    mask = np.asarray(Image.open(data_dir / "refinegan_brain" / "masks" / f"mask_{percent}.png").convert("L")) == 255
    assert mask[0, 0]
    assert 100 * mask.mean() == pytest.approx(percent, abs=0.3)
    filled = np.fft.ifft2(np.where(mask, np.fft.fft2(slices), 0))
    by_hand = []
    for true, found in zip(slices, filled, strict=True):
        difference = np.sqrt(found.real**2 + found.imag**2) - true
        by_hand.append(10 * np.log10(255.0**2 / (np.sum(difference**2) / 65536 + 1e-6)))
    assert np.mean(by_hand) == pytest.approx(TABLE[percent], abs=5e-4)
    np.testing.assert_allclose(REFINEGAN.measure(slices, filled)["psnr"], by_hand, rtol=1e-12)
