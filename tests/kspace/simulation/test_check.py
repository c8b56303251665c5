"""The check measures what it says on objects of known phase, spectrum and noise, and the simulation covers the shared scans."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kspace.container import KSpace
from kspace.fourier import fft
from kspace.simulation.check import measure, outside, ranges
from kspace.simulation.from_images import complex_noise, generator, nominal_header


def _scan(image: torch.Tensor, noise: float = 0.0) -> KSpace:
    y = fft(image.to(torch.complex64)[None]) + noise * complex_noise((1, *image.shape), generator(1))
    header = replace(nominal_header("", image.shape), noise_std=noise or None)
    return KSpace(y, torch.ones(1, *image.shape, dtype=torch.bool), header)


def _disc(n: int = 128) -> torch.Tensor:
    x = torch.linspace(-1, 1, n)
    return ((x[:, None] ** 2 + x**2) < 0.6).float() * 100


def test_a_sinusoidal_phase_is_left_by_a_low_pass_below_its_frequency() -> None:
    n, amplitude, periods = 128, 0.3, 20
    phase = amplitude * torch.sin(2 * math.pi * periods * torch.arange(n) / n).expand(n, n)
    found = measure(_scan(torch.polar(_disc(n) + 1e-3, phase)))
    assert found["phase/residual_8"] == pytest.approx(amplitude / math.sqrt(2), rel=0.1)
    assert found["phase/residual_16"] == pytest.approx(amplitude / math.sqrt(2), rel=0.1)
    assert found["phase/residual_32"] < 0.1 * amplitude
    slope = amplitude * 2 * math.pi * periods / n / math.sqrt(2)  # along one of the two axes
    assert found["phase/gradient"] == pytest.approx(slope / math.sqrt(2), rel=0.05)


def test_a_linear_ramp_is_not_rough() -> None:
    phase = 0.1 * torch.arange(128).float().expand(128, 128)
    assert measure(_scan(torch.polar(_disc() + 1e-3, phase)))["phase/gradient"] < 0.12
    assert measure(_scan(_disc()))["phase/residual_8"] < 1e-3


def test_signal_to_noise_ratio_and_spectrum_are_those_of_the_object() -> None:
    clean, noisy = measure(_scan(_disc())), measure(_scan(_disc(), noise=4.0))
    assert noisy["noise/snr"] == pytest.approx(100 / (4 / math.sqrt(2)), rel=0.03)
    unknown = _scan(_disc(), noise=4.0)
    found = measure(KSpace(unknown.data, unknown.mask, replace(unknown.header, noise_std=None)))
    assert found["noise/snr"] == pytest.approx(noisy["noise/snr"], rel=0.25), "estimated from the air"
    for ring in ("0.10-0.15", "0.20-0.25"):
        assert noisy[f"spectrum/{ring}"] == pytest.approx(clean[f"spectrum/{ring}"], rel=0.3)
    assert clean["intensity/p50"] == pytest.approx(1, abs=0.01)


def test_ranges_and_what_lies_outside() -> None:
    rows = [{"a": float(i), "b": 1.0} for i in range(101)]
    limits = ranges(rows)
    assert limits["a"] == pytest.approx((5.0, 95.0))
    assert outside({"a": 96.0, "b": 1.0, "c": 7.0}, limits) == ["a"]
