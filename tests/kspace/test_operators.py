from __future__ import annotations

import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from torch import Tensor

from kspace.fourier import fft
from kspace.operators import (
    Composition,
    Fourier,
    LinearOperator,
    Sampling,
    Sense,
    Sensitivity,
    data_consistency,
)

SIZES = [(8, 8), (7, 9), (8, 5), (1, 6)]


def normalised_maps(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    maps = torch.randn(*shape, dtype=dtype)
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def some_mask(kind: str, ny: int, nx: int) -> Tensor:
    mask = torch.rand(ny, 1 if kind == "lines" else nx) < 0.6
    mask[ny // 2] = True
    return mask


def cases() -> list[tuple[str, LinearOperator, tuple[int, ...], tuple[int, ...]]]:
    torch.manual_seed(1)
    found = []
    for ny, nx in SIZES:
        for n_coils in (1, 4):
            for batch in ((), (2, 3)):
                image, coils = (*batch, ny, nx), (*batch, n_coils, ny, nx)
                maps = normalised_maps(*coils)
                lines, points = some_mask("lines", ny, nx), some_mask("points", ny, nx)
                name = f"{ny}x{nx} {n_coils} coils, batch {batch}"
                found += [
                    (f"Fourier {name}", Fourier(), coils, coils),
                    (f"Sampling {name}", Sampling(points), coils, coils),
                    (f"Sensitivity {name}", Sensitivity(maps), image, coils),
                    (f"Sense lines {name}", Sense(maps, lines), image, coils),
                    (f"Sense points {name}", Sense(maps, points), image, coils),
                    (f"composition {name}", Sampling(points) @ Fourier() @ Sensitivity(maps), image, coils),
                    (f"adjoint {name}", Sense(maps, points).H, coils, image),
                ]
    return found


@pytest.mark.parametrize(("name", "op", "ishape", "oshape"), cases(), ids=lambda v: v if isinstance(v, str) else "")
def test_adjoint_and_normal(name: str, op: LinearOperator, ishape: tuple[int, ...], oshape: tuple[int, ...]) -> None:
    x, y = torch.randn(ishape, dtype=torch.complex128), torch.randn(oshape, dtype=torch.complex128)
    ax, ahy = op @ x, op.H @ y
    left, right = torch.vdot(y.flatten(), ax.flatten()), torch.vdot(ahy.flatten(), x.flatten())
    assert abs(left - right) <= 1e-12 * x.norm() * y.norm()
    assert (op.normal(x) - op.adjoint(ax)).norm() <= 1e-12 * x.norm()


@pytest.mark.parametrize(("ny", "nx"), SIZES)
@pytest.mark.parametrize("n_coils", [1, 4])
@pytest.mark.parametrize("kind", ["lines", "points"])
def test_equal_to_sigpy(ny: int, nx: int, n_coils: int, kind: str) -> None:
    maps = normalised_maps(n_coils, ny, nx, dtype=torch.complex64)
    mask = some_mask(kind, ny, nx)
    image = torch.randn(ny, nx, dtype=torch.complex64)
    y = torch.randn(n_coils, ny, nx, dtype=torch.complex64)
    pairs = [
        (Fourier(), sigpy.linop.FFT((n_coils, ny, nx), axes=(-2, -1)), y, y),
        (Sampling(mask), sigpy.linop.Multiply((n_coils, ny, nx), mask.numpy().astype(np.float32)), y, y),
        (Sensitivity(maps), sigpy.linop.Multiply((ny, nx), maps.numpy()), image, y),
        (
            Sense(maps, mask),
            sigpy.mri.linop.Sense(maps.numpy(), weights=mask.expand(n_coils, ny, nx).numpy().astype(np.float32)),
            image,
            y,
        ),
    ]
    for op, linop, x, z in pairs:
        for theirs in (linop, op.to_sigpy(tuple(x.shape))):
            close(op.forward(x), theirs(x.numpy()))
            close(op.adjoint(z), theirs.H(z.numpy()))
    composed = Composition(Sampling(mask), Fourier()) @ Sensitivity(maps)
    close(Sense(maps, mask).forward(image), composed.to_sigpy((ny, nx))(image.numpy()))


def close(ours: Tensor, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours.numpy() - theirs) <= 1e-6 * max(np.linalg.norm(theirs), 1e-30)


def test_the_batch_is_a_loop_over_planes() -> None:
    maps, mask = normalised_maps(3, 4, 6, 5), torch.rand(3, 1, 6, 5) < 0.5
    image = torch.randn(3, 6, 5, dtype=torch.complex128)
    op = Sense(maps, mask)
    for i in range(3):
        assert torch.allclose(op.forward(image)[i], Sense(maps[i], mask[i]).forward(image[i]))


def test_errors_name_the_shapes() -> None:
    maps = normalised_maps(4, 6, 5)
    op = Sense(maps, torch.ones(6, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"image of shape \(5, 6\) does not fit"):
        op.forward(torch.zeros(5, 6, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"k-space of shape \(3, 6, 5\) does not fit"):
        op.adjoint(torch.zeros(3, 6, 5, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"mask of shape \(7, 1\) does not fit maps"):
        Sense(maps, torch.ones(7, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        Sense(maps, torch.ones(6, 1))
    with pytest.raises(ValueError, match="maps must be complex"):
        Sense(maps.real, torch.ones(6, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="SigPy's operators have no batch"):
        Sense(normalised_maps(2, 4, 6, 5), torch.ones(6, 1, dtype=torch.bool)).to_sigpy()
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


def test_gradients_of_the_operators() -> None:
    op = Sense(normalised_maps(3, 4, 5), torch.rand(4, 1) < 0.6)
    x = torch.randn(4, 5, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(3, 4, 5, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(op.forward, x)
    assert torch.autograd.gradcheck(op.adjoint, y)
    assert torch.autograd.gradcheck(op.normal, x)


def test_a_solve_that_does_not_converge_says_so() -> None:
    op = Sense(normalised_maps(4, 16, 16), torch.rand(16, 16) < 0.4)
    y = op.forward(torch.randn(16, 16, dtype=torch.complex128))
    with pytest.warns(RuntimeWarning, match="stopped after 2 iterations at relative residual"):
        data_consistency(torch.zeros(16, 16, dtype=torch.complex128), y, op, 1e-4, max_iterations=2)


def test_the_operator_is_a_value() -> None:
    op = Sense(normalised_maps(4, 6, 5), torch.rand(6, 1) < 0.5)
    before = op.maps.clone()
    op.adjoint(op.forward(torch.randn(6, 5, dtype=torch.complex128)))
    assert torch.equal(op.maps, before)
    with pytest.raises(AttributeError):
        op.maps = before  # type: ignore[misc]
    assert op.to("meta").maps.device.type == "meta"
