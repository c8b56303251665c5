"""The parts of the phase have the amplitudes and spectra that they are described with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kspace.errors import InputError
from kspace.simulation.from_images import generator
from kspace.simulation.phase import PhaseOptions, blobs, draw_phase, global_phase, power_law, tissue_phase

OFF = PhaseOptions(smooth=0, ramp=0, blobs=0, power_law=0, tissue=0, quiet=0)


@pytest.mark.parametrize("exponent", [1.2, 1.8, 2.5])
def test_the_power_law_field_has_its_exponent(exponent: float) -> None:
    power = torch.zeros(256, 256)
    window = torch.hann_window(256)
    for i in range(20):
        field = power_law((256, 256), generator("field", i), exponent)
        assert abs(float(field.mean())) < 1e-5
        assert float(field.std()) == pytest.approx(1, rel=1e-4)
        power += torch.fft.fft2(field * window[:, None] * window).abs().square()
    k = torch.fft.fftfreq(256) * 256
    radius = (k[:, None].square() + k.square()).sqrt()
    rings = [(radius >= r) & (radius < 1.25 * r) for r in (6, 10, 16, 26, 42, 66)]
    slope, _ = np.polyfit(
        [math.log(float(radius[ring].mean())) for ring in rings], [math.log(float(power[ring].mean())) for ring in rings], 1
    )
    assert -slope / 2 == pytest.approx(exponent, abs=0.12)


def test_the_power_law_field_does_not_wrap_around() -> None:
    jumps, steps = [], []
    for i in range(20):
        field = power_law((64, 96), generator("edge", i), 2.0)
        jumps.append(float((field[0] - field[-1]).square().mean()))
        steps.append(float(field.diff(dim=0).square().mean()))
    assert np.mean(jumps) > 20 * np.mean(steps)


def test_a_ramp_is_a_shift_of_the_echo() -> None:
    options = replace(OFF, ramp=0.13, ramp_probability=1.0)
    slopes = []
    for i in range(200):
        phase = global_phase((32, 48), generator("ramp", i), options)
        dy, dx = phase.diff(dim=0), phase.diff(dim=1)
        torch.testing.assert_close(dy, torch.full_like(dy, float(dy[0, 0])), atol=1e-5, rtol=0)
        torch.testing.assert_close(dx, torch.full_like(dx, float(dx[0, 0])), atol=1e-5, rtol=0)
        slopes += [float(dy[0, 0]), float(dx[0, 0])]
    assert max(map(abs, slopes)) <= 0.13
    assert np.std(slopes) == pytest.approx(0.13 / math.sqrt(3), rel=0.1)
    still = sum(
        float(global_phase((8, 8), generator("none", i), replace(options, ramp_probability=0.3)).diff(dim=0).abs().max()) < 1e-6
        for i in range(300)
    )
    assert still / 300 == pytest.approx(0.7, abs=0.08)


def test_blobs_have_their_amplitude_and_width() -> None:
    peaks = []
    for i in range(400):
        phase = blobs((96, 96), generator("blob", i), replace(OFF, blobs=1, blob_sigma=(4.0, 4.0)))
        if float(phase.abs().max()) > 0:
            peaks.append(float(phase.abs().max()))
            width = math.sqrt(float((phase.abs() > 0.5 * phase.abs().max()).sum()) / math.pi)
            assert width < 2.2 * 4.0, "a blob is as wide as it says"
    assert len(peaks) / 400 == pytest.approx(0.5, abs=0.08), "none or one"
    assert np.sqrt(np.mean(np.square(peaks))) == pytest.approx(1.5, rel=0.12)


def test_the_phase_of_tissue_is_a_function_of_its_magnitude() -> None:
    magnitude = torch.rand(40, 30, generator=generator(0)).mul(8).floor() / 8
    phase = tissue_phase(magnitude, generator(1))
    for value in magnitude.unique():
        assert float(phase[magnitude == value].std()) < 1e-6
    values = torch.stack([tissue_phase(torch.linspace(0, 1, 6)[None], generator("v", i))[0] for i in range(500)])
    assert float(values.std()) == pytest.approx(1, rel=0.05)
    slopes = tissue_phase(torch.linspace(0, 1, 501)[None], generator(3))[0].diff().diff().abs()
    assert int((slopes > 1e-5).sum()) <= 2 * 4, "straight between its six knots"


def test_zero_amplitudes_leave_a_constant() -> None:
    phase = draw_phase(torch.rand(16, 12), generator(2), OFF)
    assert float(phase.std()) < 1e-6


def test_a_quiet_phase_is_three_percent() -> None:
    magnitude = torch.rand(32, 32, generator=generator(5))
    loud = draw_phase(magnitude, generator(3), replace(PhaseOptions(), quiet=0.0, smooth=0, ramp=0))
    soft = draw_phase(magnitude, generator(3), replace(PhaseOptions(), quiet=1.0, smooth=0, ramp=0))
    torch.testing.assert_close(soft - soft.mean(), 0.03 * (loud - loud.mean()), atol=1e-4, rtol=1e-3)


def test_the_phase_depends_on_the_seed_alone() -> None:
    magnitude = torch.rand(24, 20, generator=generator(0))
    once, again, other = (draw_phase(magnitude, generator(seed), PhaseOptions()) for seed in (7, 7, 8))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_impossible_amplitudes_are_refused() -> None:
    with pytest.raises(InputError, match="negative or infinite"):
        PhaseOptions(tissue=-1)
    with pytest.raises(InputError, match="range of the phase"):
        PhaseOptions(blob_sigma=(5.0, 3.0))
