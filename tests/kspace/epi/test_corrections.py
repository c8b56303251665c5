"""The parts of the echo-planar correction, each against what was planted."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from kspace.epi import (
    OddEvenPhase,
    Trapezoid,
    estimate_phase,
    navigator_phase,
    read_trapezoid,
    regridding_matrix,
    shifting_matrix,
)
from kspace.errors import InputError

LOBE = Trapezoid(160, 240, 160, 160, 3.1)
DESCRIBED = {"rampUpTime": 160.0, "flatTopTime": 240.0, "rampDownTime": 160.0, "acqDelayTime": 32.0, "numSamples": 160.0}


def test_the_trajectory_is_the_integral_of_the_gradient() -> None:
    t = np.linspace(0, 560, 56001)
    gradient = np.interp(t, [0, 160, 400, 560], [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * np.diff(t))])
    start, stop = np.interp([32, 528], t, area)
    wanted = (np.interp(32 + 3.1 * (np.arange(160) + 0.5), t, area) - area[-1] / 2) * 80 / (stop - start)
    np.testing.assert_allclose(LOBE.trajectory(80), wanted, atol=1e-6)


@pytest.mark.parametrize("lobe", [LOBE, Trapezoid(100, 300, 180, 150, 3.4), Trapezoid(0, 496, 0, 160, 3.1)])
def test_both_directions_of_a_readout_give_the_same_line(lobe: Trapezoid) -> None:
    n = 80
    k = lobe.trajectory(n)
    x = np.array([-0.31, 0.02, 0.29])  # point sources, fractions of the field of view
    weights = np.array([1.0, 0.5j, -0.7])
    grid = np.arange(n) - n // 2
    line = np.exp(-2j * np.pi * np.outer(grid, x)) @ weights
    for ways in (k, -k):
        samples = np.exp(-2j * np.pi * np.outer(ways, x)) @ weights
        got = regridding_matrix(ways, n).matrix @ samples
        covered = (grid >= ways.min()) & (grid <= ways.max())
        np.testing.assert_allclose(got[covered], line[covered], atol=0.02)
        np.testing.assert_allclose(got, line, atol=0.8)  # the outermost point may lie beyond the samples


def test_signal_from_beyond_the_field_of_view_does_not_fold_in() -> None:
    """Ramp samples are dense enough for a wider field of view than that of the encoded matrix."""
    n = 80
    k = LOBE.trajectory(n)
    line = regridding_matrix(k, n).matrix @ np.exp(-2j * np.pi * k * 0.62)
    wanted = np.exp(-2j * np.pi * (np.arange(n) - n // 2) * 0.62)
    np.testing.assert_allclose(line, wanted, atol=0.01)


def test_the_noise_gain_is_that_of_white_noise() -> None:
    readout = regridding_matrix(LOBE.trajectory(160), 160)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((160, 4000))
    assert np.mean((readout.matrix.real @ noise) ** 2) == pytest.approx(readout.noise_gain, rel=0.02)
    assert readout.noise_gain == pytest.approx(1, abs=0.15)


def test_evenly_spaced_samples_on_the_grid_stay_as_they_are() -> None:
    np.testing.assert_allclose(shifting_matrix(-8, 16, 16).matrix, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(shifting_matrix(-8, 16, 16, is_reversed=True).matrix, np.eye(16)[::-1], atol=1e-12)


def test_evenly_spaced_samples_between_the_points_of_the_grid_are_moved_onto_it() -> None:
    x = np.array([-0.2, 0.11])
    for n_samples, n in ((32, 32), (64, 32)):
        k = (np.arange(n_samples) - (n_samples - 1) / 2) * n / n_samples
        pixels = np.round(x * n) / n
        samples = np.exp(-2j * np.pi * np.outer(k, pixels)).sum(1)
        wanted = np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, pixels)).sum(1)
        np.testing.assert_allclose(shifting_matrix(-(n_samples - 1) / 2, n_samples, n).matrix @ samples, wanted, atol=1e-10)
        back = shifting_matrix(-(n_samples - 1) / 2, n_samples, n, is_reversed=True).matrix @ samples[::-1]
        np.testing.assert_allclose(back, wanted, atol=1e-10)


def _navigators(phase: OddEvenPhase, drift_rad: float, reverse: list[bool], noise: float = 0.0) -> NDArray[np.complex64]:
    rng = np.random.default_rng(1)
    n = 64
    object_ = (np.abs(np.arange(n) - 30) < 20) * (1 + 0.3 * rng.random((3, n))) * np.exp(2j * np.pi * rng.random((3, 1)))
    lines = [object_ * np.conj(phase.correction(n, back)) * np.exp(1j * drift_rad * p) for p, back in enumerate(reverse)]
    made = np.array(lines) + noise * (
        rng.standard_normal((len(reverse), 3, n)) + 1j * rng.standard_normal((len(reverse), 3, n))
    )
    return made.astype(np.complex64)


@pytest.mark.parametrize("reverse", [[True, False, True], [False, True, False], [False, True] * 4, [True, False] * 5])
def test_navigators_give_the_planted_phase_whatever_drifts_between_them(reverse: list[bool]) -> None:
    planted = OddEvenPhase(2.4, -0.11)
    found = navigator_phase(_navigators(planted, 0.9, reverse), np.array(reverse))
    assert found is not None
    assert found.constant_rad == pytest.approx(2.4, abs=1e-4)
    assert found.linear_rad == pytest.approx(-0.11, abs=1e-5)


def test_two_navigators_are_enough_where_nothing_drifts() -> None:
    reverse = np.array([False, True])
    found = navigator_phase(_navigators(OddEvenPhase(-0.4, 0.05), 0.0, [False, True]), reverse)
    assert found is not None
    assert (found.constant_rad, found.linear_rad) == pytest.approx((-0.4, 0.05), abs=1e-4)


def test_noise_moves_the_phase_of_navigators_by_as_much_as_theory_allows() -> None:
    reverse = [True, False, True]
    found = navigator_phase(_navigators(OddEvenPhase(0.5, 0.03), 0.2, reverse, noise=0.02), np.array(reverse))
    assert found is not None
    assert (found.constant_rad, found.linear_rad) == pytest.approx((0.5, 0.03), abs=0.01)


def test_a_polynomial_follows_what_a_line_cannot() -> None:
    planted = OddEvenPhase(0.3, 0.04, (0.5, -0.2, 0.1))
    reverse = [True, False, True]
    lines = _navigators(planted, 0.1, reverse)
    found = navigator_phase(lines, np.array(reverse), order=4)
    assert found is not None
    inside = np.abs(np.arange(64) - 30) < 20
    np.testing.assert_allclose(found.at(64)[inside], planted.at(64)[inside], atol=1e-3)
    straight = navigator_phase(lines, np.array(reverse))
    assert straight is not None
    assert np.abs(straight.at(64) - planted.at(64))[inside].max() > 0.05


def test_navigators_of_one_direction_tell_nothing() -> None:
    reverse = [False, False, False]
    assert navigator_phase(_navigators(OddEvenPhase(0.3), 0.0, reverse), np.array(reverse)) is None


@pytest.mark.parametrize(("constant", "linear"), [(0.0, 0.0), (0.8, -0.06), (-1.4, 0.09), (2.6, 0.02), (-2.9, 0.0)])
def test_the_least_entropy_is_at_the_planted_phase(constant: float, linear: float) -> None:
    planted = OddEvenPhase(constant, linear)
    y, x = np.mgrid[-24:24, -24:24]
    image = ((x / 18.0) ** 2 + ((y - 2) / 15.0) ** 2 < 1) * (1.0 + 0.5 * ((x + 5) ** 2 + y**2 < 30))
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, 0), axis=0), 0)
    halves = []
    for back in (False, True):
        lines = kspace * (np.arange(48) % 2 == back)[:, None] * np.conj(planted.correction(48, back))
        halves.append(np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(lines, 0), axis=0), 0)[None].astype(np.complex64))
    found = estimate_phase(halves[0], halves[1])
    assert np.angle(np.exp(1j * (found.constant_rad - constant))) == pytest.approx(0, abs=0.01)
    assert found.linear_rad == pytest.approx(linear, abs=1e-3)


def test_an_empty_image_has_no_phase() -> None:
    nothing = np.zeros((2, 8, 8), np.complex64)
    assert estimate_phase(nothing, nothing) == OddEvenPhase()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"numSamples": 128.0, "flatTopTime": 900.0}, "numSamples of the EPI trajectory is 128, the readouts have 160 samples"),
        ({"rampUpTime": 20.0, "flatTopTime": 300.0}, "gradient lasts 480 us, too short for 160 samples of 3.1 us"),
        ({"rampDownTime": -160.0}, "rampDownTime -160, dwellTime 3.1 us, expected times of 0 or more"),
        ({"dwellTime": -1.0}, "dwellTime -1 us, expected"),
    ],
)
def test_a_trapezoid_that_contradicts_itself_is_refused(change: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        read_trapezoid(DESCRIBED | change, 160, 3.1, "scan.h5", [])


def test_a_readout_that_is_not_in_the_middle_of_its_gradient_is_noted() -> None:
    warnings: list[str] = []
    lobe = read_trapezoid(DESCRIBED | {"acqDelayTime": 10.0}, 160, 3.1, "scan.h5", warnings)
    assert lobe == Trapezoid(160, 240, 160, 160, 3.1, 10.0)
    assert not lobe.is_centred
    assert not warnings


@pytest.mark.parametrize("delay", [-5.0, 200.0])
def test_a_delay_that_puts_samples_outside_of_the_gradient_is_not_used(delay: float) -> None:
    warnings: list[str] = []
    lobe = read_trapezoid(DESCRIBED | {"acqDelayTime": delay}, 160, 3.1, "scan.h5", warnings)
    assert lobe == Trapezoid(160, 240, 160, 160, 3.1)
    assert f"acqDelayTime of the EPI trajectory is {delay:g} us" in warnings[0]


def test_no_times_mean_no_ramp_sampling() -> None:
    assert read_trapezoid({"etl": 64.0, "numSamples": 99.0}, 160, 3.1, "scan.h5", []) is None


@pytest.mark.parametrize(
    ("changed", "dwell_us", "text"),
    [
        ({"dwellTime": 3100.0}, 3.1, "dwellTime .* 3.1 us taken"),  # nanoseconds
        ({"dwellTime": 2.0}, 3.1, "dwellTime .* 3.1 us taken"),  # ge_to_ismrmrd's constant: the delay tells
        ({"numSamples": 80.0}, 3.1, "numSamples .* is 80, the readouts have 160 samples of 3.1 us, which fit"),
        (
            {"rampUpTime": 1.6e-4, "flatTopTime": 2.4e-4, "rampDownTime": 1.6e-4, "acqDelayTime": 3.2e-5},
            3.1,
            "taken as seconds",
        ),
        ({}, 0.0, None),  # converters of Pulseq data write no sample_time_us
    ],
)
def test_what_the_description_says_in_other_units_is_told_by_the_readouts(
    changed: dict[str, float], dwell_us: float, text: str | None
) -> None:
    warnings: list[str] = []
    found = read_trapezoid({**DESCRIBED, "dwellTime": 3.1, **changed}, 160, dwell_us, "scan.h5", warnings)
    assert found is not None
    np.testing.assert_allclose(found.trajectory(80), LOBE.trajectory(80), atol=1e-9)
    assert len(warnings) == (text is not None)
    assert text is None or re.search(text, warnings[0])
