from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kspace.data_consistency import data_consistency, regularised_solve
from kspace.fourier import fft
from kspace.operators import Sense
from tests.support.operators import normalised_maps, some_mask


def test_errors_name_the_missing_argument() -> None:
    op = Sense(normalised_maps(4, 6, 5), torch.ones(6, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="lamda must be positive"):
        data_consistency(torch.zeros(6, 5, dtype=torch.complex128), op.forward(torch.ones(6, 5) + 0j), op, 0.0)
    with pytest.raises(ValueError, match="4 coils need lamda"):
        data_consistency(torch.zeros(6, 5, dtype=torch.complex128), op.forward(torch.ones(6, 5) + 0j), op)
    with pytest.raises(ValueError, match="unit modulus"):
        data_consistency(torch.zeros(6, 5) + 0j, torch.zeros(1, 6, 5) + 0j, Sense(torch.zeros(1, 6, 5) + 0j, op.mask))


def test_exact_replacement_of_one_coil() -> None:
    truth, proposal = torch.randn(2, 9, 8, dtype=torch.complex128)
    phase = torch.polar(torch.ones(1, 9, 8, dtype=torch.float64), torch.randn(1, 9, 8, dtype=torch.float64))
    op = Sense(phase, torch.rand(9, 8) < 0.5)
    y = op.forward(truth)
    image = data_consistency(proposal, y, op)
    spectrum = fft(image * phase[0])
    assert torch.allclose(spectrum[op.mask], y[0][op.mask], atol=1e-12)
    assert torch.allclose(spectrum[~op.mask], fft(proposal * phase[0])[~op.mask], atol=1e-12)
    assert torch.allclose(data_consistency(truth, y, op), truth, atol=1e-12)


def dense(op: Sense, ny: int, nx: int) -> Tensor:
    eye = torch.eye(ny * nx, dtype=torch.complex128).reshape(-1, ny, nx)
    return torch.stack([op.forward(e).flatten() for e in eye], dim=1)


@pytest.mark.parametrize("kind", ["lines", "points"])
@pytest.mark.parametrize("averaged", [False, True])
def test_regularised_solve_equals_the_dense_one(kind: str, averaged: bool) -> None:
    ny, nx, n_coils, lamda = 6, 5, 3, 0.03
    mask = some_mask(kind, ny, nx)
    n_averages = torch.randint(1, 5, mask.shape) * mask if averaged else None
    op = Sense(normalised_maps(n_coils, ny, nx), mask, n_averages=n_averages)
    y, z = torch.randn(n_coils, ny, nx, dtype=torch.complex128), torch.randn(ny, nx, dtype=torch.complex128)
    a = dense(op, ny, nx)
    w = op.weights.expand(n_coils, ny, nx).flatten()
    expected = torch.linalg.solve(
        a.mH @ (w[:, None] * a) + lamda * torch.eye(ny * nx, dtype=torch.float64),
        a.mH @ (w * y.flatten()) + lamda * z.flatten(),
    )
    solved = data_consistency(z, y, op, lamda, tolerance=1e-12)
    assert (solved.flatten() - expected).norm() <= 1e-10 * expected.norm()


def test_planes_of_different_difficulty_converge_together() -> None:
    maps = normalised_maps(3, 4, 8, 8).to(torch.complex64)
    op = Sense(maps, torch.rand(3, 1, 8, 8) < 0.5)
    y = torch.randn(3, 4, 8, 8, dtype=torch.complex64) * torch.tensor([1e-6, 0.0, 1e6]).reshape(3, 1, 1, 1)
    lamda = torch.tensor([1e-3, 1e-2, 10.0]).reshape(3, 1, 1)
    z = torch.zeros(3, 8, 8, dtype=torch.complex64)
    together = data_consistency(z, y, op, lamda)
    assert together[1].abs().max() == 0
    for i in (0, 2):
        alone = data_consistency(z[i], y[i], Sense(maps[i], op.mask[i]), lamda[i])
        assert (together[i] - alone).norm() <= 1e-5 * alone.norm()
        residual = op.adjoint(y)[i] - op.normal(together)[i] - lamda[i] * together[i]
        assert residual.norm() <= 2e-6 * op.adjoint(y)[i].norm()


@pytest.mark.parametrize("lamda_shape", [(), (2, 1, 1)])
def test_gradients_of_the_solve(lamda_shape: tuple[int, ...]) -> None:
    op = Sense(normalised_maps(2, 3, 4, 5), torch.rand(4, 5) < 0.6, n_averages=torch.randint(1, 4, (4, 5)))
    z = torch.randn(2, 4, 5, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(2, 3, 4, 5, dtype=torch.complex128, requires_grad=True)
    lamda = torch.full(lamda_shape, 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c: data_consistency(a, b, op, c, tolerance=1e-13), (z, y, lamda))


def test_a_solve_that_does_not_converge_warns() -> None:
    op = Sense(normalised_maps(4, 16, 16), torch.rand(16, 16) < 0.4)
    y = op.forward(torch.randn(16, 16, dtype=torch.complex128))
    with pytest.warns(RuntimeWarning, match="stopped after 2 iterations at relative residual"):
        data_consistency(torch.zeros(16, 16, dtype=torch.complex128), y, op, 1e-4, max_iterations=2)


@pytest.mark.parametrize("averaged", [False, True])
def test_many_solves_share_a_back_projection(averaged: bool) -> None:
    mask = some_mask("points", 7, 6)
    op = Sense(normalised_maps(2, 3, 7, 6), mask, n_averages=torch.randint(1, 5, mask.shape) * mask if averaged else None)
    y, z = torch.randn(2, 3, 7, 6, dtype=torch.complex128), torch.randn(2, 7, 6, dtype=torch.complex128)
    back = op.back_projection(y)
    assert torch.allclose(back, op.adjoint(y * op.weights), atol=1e-12)
    for image in (z, torch.zeros_like(z)):
        there = data_consistency(image, y, op, 0.05, tolerance=1e-12)
        assert torch.allclose(regularised_solve(image, back, op, 0.05, tolerance=1e-12), there, atol=1e-10)
    assert torch.allclose(regularised_solve(None, back, op, 0.05, tolerance=1e-12), there, atol=1e-10)


def test_gradients_of_a_solve_without_initial_image() -> None:
    op = Sense(normalised_maps(2, 3, 4, 5), torch.rand(4, 1) < 0.6)
    back = torch.randn(2, 4, 5, dtype=torch.complex128, requires_grad=True)
    lamda = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b, c: regularised_solve(None, b, op, c, tolerance=1e-13), (back, lamda))


@pytest.mark.parametrize("kind", ["lines", "points"])
def test_smooth_maps_need_fewer_iterations_than_without_a_preconditioner(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gaussian coils around a square, as smooth as those of a scan; the centre and some of the rest sampled.
    from kspace import normal_equations
    from kspace.cg import conjugate_gradients

    # Of whole lines each column is a system of its own: of 32 points it would be solved after as many steps as it has samples.
    n, sampled = (192, 0.35) if kind == "lines" else (32, 0.2)
    at = (torch.arange(n) - n // 2).double() / n
    centres = [(0.6, 0.0), (-0.6, 0.0), (0.0, 0.6), (0.0, -0.6)]
    maps = torch.stack([torch.exp(-3 * ((at[:, None] - a) ** 2 + (at - b) ** 2)) for a, b in centres]) + 0j
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.rand(n, 1 if kind == "lines" else n, generator=torch.Generator().manual_seed(2)) < sampled
    mask |= (at.abs() < 0.1)[:, None] & (at[: mask.shape[1]].abs() < (9 if kind == "lines" else 0.1))
    op = Sense(maps, mask)
    back = op.adjoint(op.forward(torch.randn(n, n, dtype=torch.complex128)))
    products = []

    def solve(preconditioned: bool) -> Tensor:
        count = [0]

        def counted(matrix, precondition, *more, **options):  # type: ignore[no-untyped-def]
            def product(x: Tensor) -> Tensor:
                count[0] += 1
                return matrix(x)

            return conjugate_gradients(product, precondition if preconditioned else lambda r: r, *more, **options)

        monkeypatch.setattr(normal_equations, "conjugate_gradients", counted)
        found = regularised_solve(None, back, op, 0.01, tolerance=1e-8)
        products.append(count[0])
        return found

    assert torch.allclose(solve(True), solve(False), atol=1e-5 * float(back.abs().max()))
    assert products[0] < 0.8 * products[1], products


def test_nan_does_not_become_zero() -> None:
    op = Sense(normalised_maps(2, 3, 6, 5), torch.rand(6, 5) < 0.6)
    back = op.adjoint(op.forward(torch.randn(2, 6, 5, dtype=torch.complex128)))
    back[1, 2, 3] = torch.inf
    found = regularised_solve(None, back, op, 0.1)
    assert not found[1].isfinite().all()
    assert found[0].isfinite().all()


def test_the_backward_pass_has_its_own_tolerance() -> None:
    op = Sense(normalised_maps(2, 3, 8, 7), torch.rand(8, 7) < 0.5)
    back = op.adjoint(op.forward(torch.randn(2, 8, 7, dtype=torch.complex128)))
    image = torch.randn(2, 8, 7, dtype=torch.complex128, requires_grad=True)
    (exact,) = torch.autograd.grad(regularised_solve(image, back, op, 0.01, tolerance=1e-12).abs().sum(), image)
    solved = regularised_solve(image, back, op, 0.01, tolerance=1e-12, gradient_tolerance=1e-2)
    (loose,) = torch.autograd.grad(solved.abs().sum(), image)
    # u = M^-1 g is off by M^-1 of a residual of 1e-2 |g|; what is returned is lamda u, and lamda M^-1 is at most 1.
    gradient = torch.sgn(solved.detach())
    assert 1e-9 < (loose - exact).norm() / gradient.norm() < 2e-2


def test_the_prior_image_is_kept_outside_the_support() -> None:
    op = Sense(normalised_maps(3, 12, 10), torch.rand(12, 1) < 0.5)
    op.maps[:, :3], op.maps[:, :, 7:] = 0, 0
    outside = ~op.support
    assert 0.3 < float(outside.double().mean()) < 0.7
    back = op.adjoint(op.forward(torch.randn(12, 10, dtype=torch.complex128)))
    found = regularised_solve(None, back, op, 0.05, tolerance=1e-2)
    assert bool((found[outside] == 0).all()), "however early the iterations stop"
    proposed = torch.randn(12, 10, dtype=torch.complex128, requires_grad=True)
    solved = regularised_solve(proposed, back, op, 0.05, tolerance=1e-2)
    assert torch.equal(solved[outside], proposed[outside])
    (gradient,) = torch.autograd.grad(solved.real.sum(), proposed)
    assert torch.allclose(gradient[outside], torch.ones((), dtype=torch.complex128), atol=1e-2)
