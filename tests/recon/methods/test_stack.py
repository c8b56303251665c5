"""Stacks and residual refinement: acquired samples only, homogeneous, no worse than their members, and on record."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from kspace.fourier import fft, ifft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.methods import refine, solvers
from recon.methods.classical import L1Wavelet
from recon.methods.generator import GeneratorReconstructor
from recon.methods.held_out import Candidates, noise_variance, without
from recon.methods.refine import RefinedGenerator, Residual
from recon.methods.regularisers import Wavelet
from recon.methods.stack import FEWEST, Evidence, Stack, combine, gain, simplex_minimum
from recon.methods.twin import twin
from tests.support.scans import coil_maps, ellipses

SHAPE = (64, 48)
NOISE = 0.02


@dataclass(eq=False)
class Network:
    """Stands for a generator: an image from k-space and operator by any function."""

    function: Callable[[Tensor, Sense], Tensor]
    name: str = "network"
    seen: list[tuple[Tensor, Sense]] = field(default_factory=list)

    def __call__(self, y: Tensor, op: Sense) -> Tensor:
        self.seen.append((y, op))
        return self.function(y, op)


def network(function: Callable[[Tensor, Sense], Tensor]) -> GeneratorReconstructor:
    return cast(GeneratorReconstructor, Network(function))


def scan(mask: str = "poisson2d:3,centre=12", seed: int = 0) -> tuple[Tensor, Tensor, Sense]:
    """k-space, noise-free ground truth and operator."""
    truth, maps = ellipses(SHAPE, seed), coil_maps(4, SHAPE)
    op = Sense(maps, MaskSpec.parse(mask).draw(SHAPE, "scan"), NOISE)
    noise = NOISE * torch.randn(4, *SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return op.mask * (fft(maps * truth) + noise), truth * op.support, op


def blurred(truth: Tensor, to_lines: int = 8) -> Tensor:
    """An image whose low frequencies are wrong."""
    spectrum = fft(truth)
    n_y, n_x = SHAPE
    block = slice(n_y // 2 - to_lines, n_y // 2 + to_lines), slice(n_x // 2 - to_lines, n_x // 2 + to_lines)
    spectrum[(..., *block)] *= 0.7
    return ifft(spectrum)


def error(image: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(image - truth) / torch.linalg.vector_norm(truth))


def test_the_minimum_over_the_simplex_is_that_of_a_fine_grid() -> None:
    g = torch.Generator().manual_seed(1)
    n = 40
    grid = [(i / n, j / n, (n - i - j) / n) for i, j in itertools.product(range(n + 1), repeat=2) if i + j <= n]
    points = torch.tensor(grid, dtype=torch.float64)
    for _ in range(20):
        e = torch.randn(3, 5, dtype=torch.float64, generator=g) + torch.rand(3, 1, dtype=torch.float64, generator=g)
        q = e @ e.T
        a = simplex_minimum(q)
        assert float(a.min()) >= 0
        assert float(a.sum()) == pytest.approx(1)
        assert float(a @ q @ a) <= float(torch.einsum("ni,ij,nj->n", points, q, points).min()) + 1e-9


def test_importance_counts_what_was_not_acquired() -> None:
    for text in ("random1d:4", "poisson2d:4"):
        mask = MaskSpec.parse(text).draw((128, 96), "scan")
        found = Candidates.among(mask.reshape(-1, *mask.shape[-2:])[0], (128, 96))
        missing = int((~mask).expand(1, *found.where.shape).sum())
        assert float(found.importance().sum()) == pytest.approx(missing, rel=1e-6)
        assert not bool(found.importance()[~found.where].any())


def test_residual_refinement_mends_what_the_samples_contradict() -> None:
    y, truth, op = scan()
    image = blurred(truth)
    refined = Residual()(image, y, op)
    assert error(refined, truth) < 0.3 * error(image, truth)
    # What agrees with all samples is left alone.
    assert error(Residual()(truth, op.forward(truth), op), truth) < 1e-5


def test_a_residual_from_nothing_is_the_wavelet_image() -> None:
    y, _, op = scan()
    converged = Residual(iterations=300)(torch.zeros(SHAPE, dtype=torch.complex64), y, op)
    lamda = max(Residual().lamda, refine.NOISE * float(refine.relative_noise(y, op)))
    planes = solvers.Planes.of(y[None], op.flattened((1,)))
    norm = Wavelet(planes.shape, approximation=refine.APPROXIMATION)
    assert error(converged, planes.finish(solvers.sparse(planes, norm, lamda, 300, 1e-5))[0]) < 1e-3


def test_the_residual_of_a_noisy_scan_does_not_bring_its_noise_back() -> None:
    _, truth, op = scan()
    noise = 10 * NOISE * torch.randn(4, *SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    noisy = replace(op, noise_std=10 * op.noise_std)
    y = op.mask * (fft(op.maps * truth) + noise)
    assert error(Residual()(truth, y, noisy), truth) < 0.2 * error(L1Wavelet(lamda=Residual().lamda)(y, noisy), truth)


def methods(truth: Tensor) -> list[Any]:
    function = network(lambda y, op: op.adjoint(y) + 0.1 * blurred(op.adjoint(y)))
    return [RefinedGenerator(function), Stack(function)]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("mask", ["random1d:3", "poisson2d:3"])
def test_acquired_samples_alone_count_and_scale_carries_through(number: int, mask: str) -> None:
    y, truth, op = scan(mask)
    method = methods(truth)[number]
    image = method(y, op)
    assert torch.equal(method(torch.where(op.mask, y, 1e3 * torch.ones_like(y)), op), image)
    assert torch.equal(method(torch.where(op.mask, y, torch.full_like(y, torch.nan)), op), image)
    assert torch.equal(method(y, op), image)
    scaled = method(1e-3 * y, replace(op, noise_std=1e-3 * NOISE))
    assert error(1e3 * scaled, image) < 1e-4


@pytest.mark.parametrize("number", [0, 1])
def test_planes_of_a_batch_are_what_they_are_alone(number: int) -> None:
    (y1, t1, op), (y2, _, _) = scan(seed=0), scan(seed=1)
    method = methods(t1)[number]
    if isinstance(method, Stack):
        method = method.fitted([(y1, op), (y2, op)])
    together = method(torch.stack([y1, y2]), op)
    for i, y in enumerate((y1, y2)):
        assert error(together[i], method(y, op)) < 1e-5


def test_a_good_generator_is_taken_and_nonsense_is_not() -> None:
    y, truth, op = scan()
    classical = error(L1Wavelet()(y, op), truth)
    good = Stack(network(lambda y, op: truth.expand(*y.shape[:-3], *SHAPE))).fitted([(y, op)])
    assert good.fit is not None
    assert good.fit.weights[1] + good.fit.weights[2] > 0.9
    assert error(good(y, op), truth) < 0.5 * classical
    other = torch.randn(SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    bad = Stack(network(lambda y, op: other.expand(*y.shape[:-3], *SHAPE))).fitted([(y, op)])
    assert bad.fit is not None
    assert bad.fit.weights[1] < 0.05
    assert error(bad(y, op), truth) < 1.02 * classical


def test_no_candidate_sees_what_it_is_judged_by() -> None:
    y, _, op = scan("random1d:2")
    method = Stack(network(lambda y, op: op.adjoint(y)))
    method.fitted([(y, op)])
    samples, batch = cast(Network, method.network).seen[0]
    lines = op.mask.reshape(SHAPE[0], -1)[:, 0]
    folds = batch.mask[:-1].reshape(len(batch.mask) - 1, SHAPE[0], -1)[..., 0]
    assert len(folds) == 3
    assert not bool(samples[:-1][~batch.mask[:-1].expand_as(samples[:-1])].any())
    held = lines & ~folds
    assert bool(held.any(1).all())
    assert int(held.sum(0).max()) == 1  # no line is held out twice
    n = SHAPE[0]
    assert bool(folds[:, n // 2 - 2 : n // 2 + 2].all())  # never the centre


def test_few_lines_leave_the_decision_to_the_twin_and_say_so() -> None:
    y, _, op = scan("random1d:6")
    fit = Stack(network(lambda y, op: op.adjoint(y))).fitted([(y, op)]).fit
    assert fit is not None
    assert fit.n_candidates < FEWEST
    assert fit.proposed == fit.prior
    assert "weights of a simulated twin" in fit.says
    full = replace(op, mask=torch.ones_like(op.mask))
    fit = Stack(network(lambda y, op: op.adjoint(y))).fitted([(y, full)]).fit
    assert fit is not None
    assert "nothing could be held out" in fit.why


def test_a_gain_is_measured_by_folds_that_did_not_choose_the_weights() -> None:
    # The second candidate is better in the first fold and worse in the second: no gain that would last.
    e = torch.tensor([[[1.0, 0.0], [0.0, 0.1]], [[1.0, 0.0], [0.0, 10.0]]], dtype=torch.float64)
    mean, _ = gain(Evidence(e, torch.tensor([0, 1])), torch.tensor([0.5, 0.5], dtype=torch.float64), False, 0)
    assert mean < 0
    chosen = combine(Evidence(e, torch.tensor([0, 1])), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert chosen[0] > chosen[1]


def test_a_twin_has_the_energy_and_the_samples_of_its_scan() -> None:
    y, _, op = scan()
    measured, truth = twin(y, op, NOISE**2, 0)
    assert not bool(measured[~op.mask.expand_as(measured)].any())
    assert float(measured.abs().square().sum() / y.abs().square().sum()) == pytest.approx(1, rel=0.05)
    residual = (measured - op.forward(truth))[op.mask.expand_as(measured)]
    assert float(residual.abs().square().mean()) == pytest.approx(NOISE**2, rel=0.1)
    assert torch.equal(twin(y, op, NOISE**2, 0)[0], measured)


def test_noise_is_told_by_samples_without_signal_only() -> None:
    g = torch.Generator().manual_seed(0)
    noise = 3 * torch.randn(4, *SHAPE, dtype=torch.complex64, generator=g)
    full = Sense(coil_maps(4, SHAPE), torch.ones(1, *SHAPE, dtype=torch.bool), 1.0)
    assert noise_variance(noise, full) == pytest.approx(9, rel=0.2)
    signal = torch.randn(4, *SHAPE, dtype=torch.complex64, generator=g) ** 3  # heavy tails: not noise
    assert noise_variance(100 * signal, full) == 1.0
    assert noise_variance(1e-3 * signal, full) is None  # too weak for what is stated


def test_an_operator_without_samples_keeps_its_averages_consistent() -> None:
    _, _, op = scan("random1d:3")
    counted = replace(op, n_averages=2 * op.mask.int())
    held = torch.zeros(SHAPE[0], 1, dtype=torch.bool)
    held[3] = True
    rest = without(counted, held)
    assert rest.n_averages is not None
    assert torch.equal(rest.n_averages > 0, rest.mask)
    assert not bool(rest.mask.reshape(SHAPE[0], -1)[3].any())
