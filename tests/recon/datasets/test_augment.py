"""Augmented examples might as well have been measured: white noise stays white, coils stay together, boxes stay on objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from kspace.fourier import fft
from recon.datasets.augment import Augment, flip, quarter_turns, rotate, shrink

NO_BOXES = torch.zeros(0, 5)


def _blob(shape: tuple[int, int], y: float, x: float, width: float = 2.5) -> Tensor:
    """A Gaussian about the point (y, x), pixel k covering k to k + 1."""
    rows, columns = (torch.arange(n) + 0.5 for n in shape)
    return torch.exp(-0.5 * (((rows[:, None] - y) / width) ** 2 + ((columns - x) / width) ** 2)).to(torch.complex64)


def _centre(image: Tensor) -> tuple[float, float]:
    power = image.abs().double().square()
    rows, columns = (torch.arange(n) + 0.5 for n in image.shape)
    return float((power.sum(1) * rows).sum() / power.sum()), float((power.sum(0) * columns).sum() / power.sum())


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64)


@pytest.mark.parametrize("shape", [(64, 64), (63, 63), (64, 50), (51, 64)])
def test_boxes_stay_on_their_objects(shape: tuple[int, int]) -> None:
    y, x = 0.42 * shape[0], 0.6 * shape[1]
    image = torch.stack([_blob(shape, y, x), 2j * _blob(shape, y, x)])
    boxes = torch.tensor([[3.0, y - 5, x - 7, y + 5, x + 7]])
    augment = Augment(rotation_deg=20, smallest=0.8)
    for seed in range(25):
        moved, found = augment(image, boxes, seed)
        assert moved.shape == image.shape
        label, y0, x0, y1, x1 = found[0].tolist()
        assert label == 3
        assert _centre(moved[0]) == pytest.approx(((y0 + y1) / 2, (x0 + x1) / 2), abs=0.05)
        torch.testing.assert_close(moved[1], 2j * moved[0], atol=1e-5, rtol=0)  # coils are treated alike
        inside = moved[0].abs().square()[round(y0) : round(y1), round(x0) : round(x1)].sum()
        assert float(inside / moved[0].abs().square().sum()) > 0.97


@pytest.mark.parametrize("n", [16, 17])
def test_a_flip_mirrors_kspace_about_its_centre(n: int) -> None:
    image = _noise(2, n, n + 3)
    y, flipped = fft(image), fft(flip(image, NO_BOXES, [-2, -1])[0])
    for _ in range(20):
        ky, kx = np.random.default_rng(n).integers(-(n // 2) + 1, (n - 1) // 2, 2)
        mirrored = flipped[:, n // 2 - ky, (n + 3) // 2 - kx]
        torch.testing.assert_close(y[:, n // 2 + ky, (n + 3) // 2 + kx], mirrored, atol=1e-5, rtol=0)


def test_quarter_turns_are_rotations() -> None:
    image = _blob((33, 33), 10.5, 20.5)[None]
    for turns in range(-3, 6):
        turned, _ = quarter_turns(image, NO_BOXES, turns)
        rotated, _ = rotate(image, NO_BOXES, -turns * math.pi / 2)
        if abs(turns) % 4 != 2:  # tan(90 degrees) is no shear
            torch.testing.assert_close(turned, rotated, atol=2e-3, rtol=0)
    assert torch.equal(quarter_turns(image, NO_BOXES, 4)[0], image)
    with pytest.raises(ValueError, match="only square images"):
        quarter_turns(_noise(1, 8, 9), NO_BOXES, 1)


def test_a_rotation_agrees_with_scipy_and_can_be_undone() -> None:
    image = (_blob((65, 65), 24, 40, 3.0) + 0.5 * _blob((65, 65), 40, 20, 4.0))[None]
    rotated, _ = rotate(image, NO_BOXES, math.radians(20))
    reference = scipy.ndimage.rotate(image[0].real.numpy(), -20, reshape=False, order=5)  # about the same centre, odd sizes
    assert np.abs(rotated[0].real.numpy() - reference).max() < 0.01
    noise = _noise(2, 31, 40)
    there, _ = rotate(noise, NO_BOXES, 0.3)
    assert float(there.abs().square().sum()) == pytest.approx(float(noise.abs().square().sum()), rel=1e-5)
    back, _ = rotate(there, NO_BOXES, -0.3)
    torch.testing.assert_close(back, noise, atol=1e-4, rtol=0)


def test_shrinking_is_a_scan_of_a_larger_field_of_view() -> None:
    image = _blob((64, 64), 32.5, 32.5, 4.0)[None]
    shrunk, _ = shrink(image, NO_BOXES, 0.8)
    expected = _blob((64, 64), 32.5, 32.5, 3.2)  # the object is smaller
    torch.testing.assert_close(shrunk[0].abs() / (80 / 64), expected.abs(), atol=2e-3, rtol=0)  # and its voxels larger
    assert shrink(image, NO_BOXES, 1.0)[0] is image


@pytest.mark.parametrize(
    ("augment", "tolerance"),
    # Reflection repeats noise: where half the field of view is reflected, it shows a little.
    [(Augment(), 0.05), (Augment(flip=1, rotation_deg=45, smallest=0.5, phase_std=2), 0.08)],
)
def test_white_noise_stays_white(augment: Augment, tolerance: float) -> None:
    power = torch.stack(
        [fft(augment(_noise(4, 48, 40), NO_BOXES, seed)[0]).abs().square().mean(0) for seed in range(150)]
    ).mean(0)
    assert float(power.mean()) == pytest.approx(1.0, rel=0.03)
    centre = power[12:36, 10:30].mean()
    edge = (power.sum() - power[12:36, 10:30].sum()) / (power.numel() - 24 * 20)
    assert float(edge / centre) == pytest.approx(1.0, rel=tolerance)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    image, boxes = _noise(2, 32, 32), torch.tensor([[0.0, 3, 4, 20, 22]])
    augment = Augment()
    first = augment(image, boxes, 2**62 + 5)
    torch.manual_seed(1)
    again = augment(image.clone(), boxes.clone(), 2**62 + 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], augment(image, boxes, 3)[0])


def test_boxes_that_leave_the_image_are_dropped_and_others_cut() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [1, 0, 10, 30, 20]])
    _, found = rotate(torch.zeros(1, 32, 32, dtype=torch.complex64), boxes, math.radians(45))
    assert found[:, 0].tolist() == [1.0]
    assert float(found[:, 1:].min()) >= 0
    assert float(found[:, 1:].max()) <= 32


def test_nothing_asked_for_is_nothing_done() -> None:
    image = _noise(2, 16, 16)
    same, _ = Augment(flip=0, quarter_turns=False, rotation_deg=0, smallest=1, phase_std=0)(image, NO_BOXES, 5)
    assert torch.equal(same, image)
    with pytest.raises(ValueError, match="out of range"):
        Augment(smallest=1.5)
