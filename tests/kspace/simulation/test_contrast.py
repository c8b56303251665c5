"""Intensity maps keep edges and zero, dead leaves have the spectrum of natural images."""

from __future__ import annotations

import math

import numpy as np
import torch

from kspace.simulation.contrast import dead_leaves, map_intensities
from kspace.simulation.from_images import generator
from kspace.simulation.phase import power_law


def test_an_intensity_map_is_a_function_that_keeps_zero() -> None:
    image = (torch.rand(64, 64, generator=generator(0)) * 256).floor()
    image[:8] = 0
    for i in range(20):
        mapped = map_intensities(image, generator("map", i))
        assert not mapped[:8].any()
        assert float(mapped.min()) >= 0
        for value in image.unique()[::40]:
            assert float(mapped[image == value].std()) < 1e-4
        assert 0.9 * 255 < float(mapped.max()) < 1.1 * 255


def test_half_of_the_intensity_maps_are_monotone() -> None:
    ramp = torch.arange(256).float()[None].repeat(4, 1)
    monotone = [bool((map_intensities(ramp, generator("m", i))[0].diff() > -1e-3).all()) for i in range(300)]
    assert 0.42 < np.mean(monotone) < 0.68, "sorted in half of the cases, and a few of the others by chance"


def test_dead_leaves_have_a_power_law_spectrum() -> None:
    n, power = 128, torch.zeros(128, 128, dtype=torch.float64)
    window = torch.hann_window(n)
    for i in range(24):
        leaves = dead_leaves((n, n), generator("leaves", i))
        assert float(leaves.min()) >= 0
        assert math.isclose(float(leaves.max()), 255, rel_tol=1e-5)
        scaled = (leaves - leaves.mean()) / leaves.std()
        power += torch.fft.fft2(scaled * window[:, None] * window).abs().square().double()
    k = torch.fft.fftfreq(n) * n
    radius = (k[:, None].square() + k.square()).sqrt()
    rings = [(radius >= r) & (radius < 1.3 * r) for r in (4, 7, 12, 20, 34)]
    slope, _ = np.polyfit(
        [math.log(float(radius[ring].mean())) for ring in rings], [math.log(float(power[ring].mean())) for ring in rings], 1
    )
    assert -3.4 < slope < -1.8, "natural images: -2 and somewhat steeper"


def test_dead_leaves_depend_on_the_seed_alone() -> None:
    assert torch.equal(dead_leaves((60, 80), generator(1)), dead_leaves((60, 80), generator(1)))
    assert not torch.equal(dead_leaves((60, 80), generator(1)), dead_leaves((60, 80), generator(2)))
    assert dead_leaves((60, 80), generator(1)).shape == power_law((60, 80), generator(1), 1.0).shape
