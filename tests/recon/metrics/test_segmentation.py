"""The semantic score: classes by intensity, Dice by hand, and a network that is trained in the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from kspace.errors import InputError
from models.parts.segmentation import load_tissue
from recon.commands.train_features import train_features
from recon.compare.metrics import is_better
from recon.metrics.segmentation import dice, semantic_score, tissue_labels, why_not
from recon.train import segmentation


def head(seed: int, n: int = 64) -> NDArray:
    """Discs of three intensities in a black frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n] - n / 2 + rng.integers(-4, 5, (2, 1, 1))
    image = np.where(x**2 + y**2 < (0.4 * n) ** 2, 0.4, 0.0)
    image = np.where((x - 6) ** 2 + y**2 < (0.22 * n) ** 2, 0.7, image)
    return np.where((x + 8) ** 2 + (y - 4) ** 2 < (0.12 * n) ** 2, 1.0, image).astype(np.float32)


def test_classes_are_the_three_intensities_and_the_background() -> None:
    image = head(0)
    labels = tissue_labels(5 * image)
    assert labels is not None
    inside = gaussian_filter(image, 3) == pytest.approx(image, abs=0.02)  # away from edges
    for value, label in ((0.0, 0), (0.4, 1), (0.7, 2), (1.0, 3)):
        there = inside & (image == np.float32(value))
        assert (labels[there] == label).all()
    assert tissue_labels(np.zeros((32, 32))) is None


def test_dice_by_hand() -> None:
    a = np.array([[0, 1, 1, 2]])
    b = np.array([[0, 1, 2, 2]])
    assert dice(a, b) == pytest.approx((2 * 1 / 3 + 2 * 1 / 3) / 2), "the third class is in neither and does not count"
    assert dice(a, a) == 1
    assert dice(np.zeros((2, 2), int), np.zeros((2, 2), int)) == 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on a few drawn heads, by the command."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "in" / "a").mkdir(parents=True)
    for i in range(24):
        Image.fromarray((255 * head(i)).astype(np.uint8)).save(folder / "in" / "a" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "SIZE", 64)
        patch.setattr(segmentation, "EVERY", 1)
        out = folder / "tissue.safetensors"
        train_features(folder / "in", out, "segmentation", group_size=2, val_fraction=0.25, gap=0, epochs=14, batch_size=6)
    return out


def test_the_score_is_one_for_the_truth_and_falls_with_blur(weights: Path) -> None:
    truth = np.stack([head(100), head(101)])
    assert semantic_score(truth, truth, weights) == 1
    blurred = [semantic_score(truth, np.stack([gaussian_filter(x, s) for x in truth]), weights) for s in (1.0, 4.0)]
    assert blurred[0] is not None
    assert blurred[1] is not None
    assert 1.05 > blurred[0] > blurred[1]
    assert semantic_score(7 * truth, (7 * truth).astype(np.complex64), weights) == pytest.approx(1), "of magnitudes, scale-free"
    assert is_better("semantic_score", 0.9, 0.8)


def test_without_weights_there_is_no_score_and_a_reason(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    assert semantic_score(head(0)[None], head(0)[None], missing) is None
    said = why_not(missing)
    assert said is not None
    assert "the weights of the segmentation network are absent" in said
    with pytest.raises(InputError, match=r"segmentation network"):
        load_tissue(missing)


def test_a_slice_of_zeros_is_left_out(weights: Path) -> None:
    truth = np.stack([head(100), np.zeros((64, 64), np.float32)])
    assert semantic_score(truth, truth, weights) == 1
    assert semantic_score(truth[1:], truth[1:], weights) is None
