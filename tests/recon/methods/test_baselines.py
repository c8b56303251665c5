"""The baselines against BART on real images: the short form of ``python -m benchmarks.baselines images`` and ``brain``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.baselines import image_case, psnr, scan_case
from recon.methods import bart
from recon.methods.classical import L1Wavelet, TotalVariation

needs_bart = pytest.mark.skipif(not bart.available(), reason="needs the program bart (Debian package bart)")


@needs_bart
@pytest.mark.parametrize(("percent", "weights"), [(10, (1.8e-2, 2.7e-2)), (30, (5e-3, 8e-3))])
def test_total_variation_is_at_least_as_good_as_barts(data_dir: Path, percent: int, weights: tuple[float, ...]) -> None:
    y, op, truth = image_case(data_dir, percent, 61)
    ours = psnr(TotalVariation()(y, op), truth, peak=255)
    theirs = [psnr(bart.pics(y, op.maps, "-R", f"T:3:0:{w}", "-i100")[0], truth, peak=255) for w in weights]
    assert ours >= max(theirs)


@needs_bart
def test_wavelets_are_at_least_as_good_as_barts(data_dir: Path) -> None:
    y, op, truth = scan_case(data_dir, "brain_8ch", 0, "random1d:4")
    ours = psnr(L1Wavelet()(y, op), truth, op.support)
    theirs = [psnr(bart.pics(y, op.maps, "-R", f"W:3:0:{w}", "-i100")[0], truth, op.support) for w in (3e-3, 4.5e-3)]
    assert ours >= max(theirs)
