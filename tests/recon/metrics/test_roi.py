"""Metrics in boxes, against values worked out by hand and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from recon.metrics.roi import box_mask, contrast_errors, contrasts, measure

BOX = (1, 0, 10.0, 12.0, 18.0, 20.0)


def lesion(inside: float, around: float = 0.2) -> np.ndarray:
    """Two slices; in the second a bright square that just fills `BOX`. The brightest point of the volume is 1."""
    volume = np.full((2, 40, 36), around)
    volume[1, 10:18, 12:20] = inside
    volume[0, 0, 0] = 1.0
    return volume


def test_contrast_by_hand() -> None:
    boxes = np.array([BOX])
    assert contrasts(lesion(0.6), boxes) == pytest.approx([0.5])  # (0.6 - 0.2) / (0.6 + 0.2)
    assert contrasts(lesion(0.05), boxes) == pytest.approx([-0.6])
    # Half of the lesion's signal over the background is gone: C = 0.2 / 0.6.
    errors = contrast_errors(lesion(0.6), lesion(0.4), boxes)
    assert errors == pytest.approx([(1 / 3 - 0.5) / 0.5])
    assert measure(lesion(0.6), lesion(0.4), boxes)["lesion_contrast_error"] == pytest.approx(1 / 3)
    # A dark lesion that grew darker: the sign tells more contrast from less whatever the lesion's own is.
    assert contrast_errors(lesion(0.1), lesion(0.15), boxes)[0] > 0  # -1/3 to -1/7
    scaled = contrast_errors(lesion(0.6), 7e-4 * lesion(0.4) * np.exp(0.3j), boxes)
    assert scaled == pytest.approx(errors)  # neither unit nor phase matters


def test_the_ring_leaves_other_lesions_out_and_stops_at_the_border() -> None:
    volume = lesion(0.6)
    volume[1, 10:18, 21:29] = 0.9  # within the ring of the first
    assert contrasts(volume, np.array([BOX]))[0] < 0.49
    both = np.array([BOX, (1, 1, 10, 21, 18, 29)])
    assert contrasts(volume, both) == pytest.approx([0.5, (0.9 - 0.2) / (0.9 + 0.2)])
    corner = lesion(0.2)
    corner[1, :8, :8] = 0.6
    assert contrasts(corner, np.array([(1, 0, 0, 0, 8, 8)])) == pytest.approx([0.5])
    everything = np.array([(1, 0, 0, 0, 40, 36)])
    assert np.isnan(contrasts(corner, everything)).all()  # nothing around it


def test_psnr_and_similarity_in_the_box() -> None:
    generator = np.random.default_rng(0)
    truth = lesion(0.6) + 0.05 * generator.random((2, 40, 36))
    image = truth + 0.03 * generator.standard_normal(truth.shape)
    values = measure(truth, image, np.array([BOX]))
    error = np.mean((truth - image)[1, 10:18, 12:20] ** 2)
    assert values["roi_psnr"] == pytest.approx(10 * np.log10(truth.max() ** 2 / error))
    similar = structural_similarity(truth[1], image[1], data_range=truth.max(), full=True)[1]
    assert values["roi_ssim"] == pytest.approx(similar[10:18, 12:20].mean())
    elsewhere = image.copy()
    elsewhere[0] = 0
    elsewhere[1, :, 30:] = 5
    assert measure(truth, elsewhere, np.array([BOX])) == pytest.approx(values)  # only the boxes and their rings count
    worse = measure(truth, truth + 2 * (image - truth), np.array([BOX]))
    assert worse["roi_psnr"] == pytest.approx(values["roi_psnr"] - 20 * np.log10(2))
    assert worse["roi_ssim"] < values["roi_ssim"]


def test_corners_between_points() -> None:
    # The middle of pixel k lies at k + 0.5.
    mask = box_mask(np.array([(0, 0, 2.4, 3.6, 5.6, 6.4)]), (1, 8, 8))
    assert np.flatnonzero(mask[0].any(1)).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(mask[0].any(0)).tolist() == [4, 5]


def test_several_boxes_are_pooled() -> None:
    truth, image = lesion(0.6), lesion(0.4)
    truth[0, 20:28, 20:28], image[0, 20:28, 20:28] = 0.2, 0.21  # a box that shows nothing
    boxes = np.array([BOX, (0, 0, 20, 20, 28, 28)])
    true, found = contrasts(truth, boxes), contrasts(image, boxes)
    expected = np.abs(found - true).sum() / np.abs(true).sum()
    assert measure(truth, image, boxes)["lesion_contrast_error"] == pytest.approx(expected)
    assert expected == pytest.approx(1 / 3, abs=0.06)


def test_without_boxes_nothing_is_measured() -> None:
    for boxes in (np.zeros((0, 6)), np.zeros(0)):
        values = measure(lesion(0.6), lesion(0.4), boxes)
        assert set(values) == {"roi_psnr", "roi_ssim", "lesion_contrast_error"}
        assert np.isnan(list(values.values())).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        measure(lesion(0.6), lesion(0.6)[:1], np.array([BOX]))
    with pytest.raises(ValueError, match="a volume of 2 slices"):
        measure(lesion(0.6), lesion(0.6), np.array([(2, *BOX[1:])]))
    with pytest.raises(ValueError, match="rows"):
        measure(lesion(0.6), lesion(0.6), np.array([BOX[:5]]))
