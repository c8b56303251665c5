"""Metrics of posterior samplers on distributions whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from recon.metrics.posterior import apsd, cfid, gain_of_a_posterior, psnr_of_means

SHAPE = (64, 64)


def test_draws_of_the_posterior_gain_what_theory_says() -> None:
    """Truth and draws alike from N(m, s^2): the mean of K draws has the error s^2 (1 + 1/K)."""
    rng = np.random.default_rng(0)
    truth = 10 + rng.standard_normal(SHAPE)
    draws = 10 + rng.standard_normal((32, *SHAPE)) + 0j
    found = psnr_of_means(truth, draws, np.ones(SHAPE, bool), (1, 8, 32))
    for n in (8, 32):
        assert found[n] - found[1] == pytest.approx(gain_of_a_posterior(n), abs=0.25)
    assert gain_of_a_posterior(8) == pytest.approx(2.5, abs=0.01)
    error = np.abs(draws[0]) - truth
    assert found[1] == pytest.approx(20 * np.log10(truth.max()) - 10 * np.log10((error**2).mean()))


def test_spread_is_the_standard_deviation_over_the_magnitude() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((200, *SHAPE)) + 1j * rng.standard_normal((200, *SHAPE))
    support = np.zeros(SHAPE, bool)
    support[10:50, 10:50] = True
    assert apsd(20 + noise * support, support) == pytest.approx(np.sqrt(2) / 20, rel=0.02)
    assert apsd(np.ones((4, *SHAPE), complex), support) == 0


def test_cfid_is_zero_for_equal_conditional_distributions_only() -> None:
    rng = np.random.default_rng(2)
    n, d = 40_000, 3
    condition = rng.standard_normal((n, d))

    def given(slope: float, std: float, shift: float = 0.0) -> np.ndarray:
        return slope * condition + shift + std * rng.standard_normal((n, d))

    target = given(1.0, 0.5)
    assert cfid(target, given(1.0, 0.5), condition) == pytest.approx(0, abs=0.005)
    assert cfid(target, given(1.0, 0.5, shift=1.0), condition) == pytest.approx(d, rel=0.05)
    assert cfid(target, given(1.0, 0.0), condition) == pytest.approx(d * 0.25, rel=0.05), "no spread"
    # The same marginal distribution, but unrelated to the condition: Frechet distance without it would be 0.
    unrelated = np.sqrt(1.25) * rng.standard_normal((n, d))
    assert cfid(target, unrelated, condition) == pytest.approx(d * (1 + (np.sqrt(1.25) - 0.5) ** 2), rel=0.05)
