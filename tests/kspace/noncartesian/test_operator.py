from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kspace.data_consistency import data_consistency, regularised_solve
from kspace.fourier import fft, ifft_corner
from kspace.linear_operators import stacked
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.operators import Sense
from tests.support.operators import normalised_maps
from tests.support.scans import coil_maps

SIZES = [(8, 8), (7, 9), (8, 5)]


def random_trajectory(*batch: int, n_readouts: int = 5, n_samples: int = 11) -> Tensor:
    return torch.rand(*batch, n_readouts, n_samples, 2, dtype=torch.float64) - 0.5


def direct(op: NonCartesianSense, x: Tensor) -> Tensor:
    """The model of one plane, term by term."""
    ny, nx = op.shape
    y, u = torch.arange(ny) - ny // 2, torch.arange(nx) - nx // 2
    kx, ky = op.trajectory.unbind(-1)
    waves = torch.exp(-2j * math.pi * (ky[..., None, None] * y[:, None] + kx[..., None, None] * u)) / math.sqrt(ny * nx)
    return torch.einsum("rsyx,cyx->crs", waves, op.maps * x)


def grid(ny: int, nx: int) -> Tensor:
    ky, kx = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (ny, nx))
    return torch.stack(torch.broadcast_tensors(kx, ky[:, None]), -1)


@pytest.mark.parametrize(("ny", "nx"), SIZES)
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_adjoint_and_normal(ny: int, nx: int, batch: tuple[int, ...], shared: bool) -> None:
    torch.manual_seed(1)
    maps = normalised_maps(*batch, 3, ny, nx)
    op = NonCartesianSense(maps, random_trajectory(*(() if shared else batch)))
    x = torch.randn(*batch, ny, nx, dtype=torch.complex128)
    y = torch.randn(*batch, 3, 5, 11, dtype=torch.complex128)
    ax, ahy = op @ x, op.H @ y
    assert abs(torch.vdot(y.flatten(), ax.flatten()) - torch.vdot(ahy.flatten(), x.flatten())) <= 1e-10 * x.norm() * y.norm()
    assert (op.normal(x) - op.adjoint(ax)).norm() <= 1e-10 * op.adjoint(ax).norm()


@pytest.mark.parametrize(("ny", "nx"), SIZES)
def test_equal_to_the_sum(ny: int, nx: int) -> None:
    torch.manual_seed(2)
    op = NonCartesianSense(normalised_maps(2, ny, nx), random_trajectory())
    x = torch.randn(ny, nx, dtype=torch.complex128)
    assert (op.forward(x) - direct(op, x)).norm() <= 1e-10 * x.norm()
    single = NonCartesianSense(op.maps.to(torch.complex64), op.trajectory)
    assert (single.forward(x.to(torch.complex64)) - direct(op, x)).norm() <= 1e-5 * x.norm()


def test_equal_to_sigpy() -> None:
    torch.manual_seed(3)
    op = NonCartesianSense(normalised_maps(2, 24, 20), 0.9 * random_trajectory())
    linop = op.to_sigpy()
    x = torch.randn(24, 20, dtype=torch.complex128)
    ours, theirs = op.forward(x).numpy(), linop(x.numpy())
    assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs)
    y = torch.randn(2, 5, 11, dtype=torch.complex128)
    ours, theirs = op.adjoint(y).numpy(), linop.H(y.numpy())
    assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs)


@pytest.mark.parametrize(("ny", "nx"), SIZES)
def test_on_the_points_of_a_grid_it_is_the_cartesian_model(ny: int, nx: int) -> None:
    torch.manual_seed(4)
    maps, x = normalised_maps(3, ny, nx), torch.randn(ny, nx, dtype=torch.complex128)
    op = NonCartesianSense(maps, grid(ny, nx))
    whole = Sense(maps, torch.ones(ny, nx, dtype=torch.bool))
    y = whole.forward(x)
    assert (op.forward(x) - y).norm() <= 1e-10 * y.norm()
    assert (op.zero_filled(y) - x).norm() <= 1e-4 * x.norm()  # the compensation of a grid is 1
    assert float(op.sampled_fraction) == 1
    assert torch.allclose(torch.stack(torch.broadcast_tensors(*op.frequencies)).squeeze(1),
                          torch.stack(torch.broadcast_tensors(*whole.frequencies)), atol=1e-12)  # fmt: skip


def test_gradients() -> None:
    torch.manual_seed(5)
    op = NonCartesianSense(normalised_maps(3, 4, 5), random_trajectory(n_readouts=2, n_samples=6))
    x = torch.randn(4, 5, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(3, 2, 6, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(op.forward, x)
    assert torch.autograd.gradcheck(op.adjoint, y)
    assert torch.autograd.gradcheck(op.normal, x)
    assert torch.autograd.gradcheck(lambda x, y: data_consistency(x, y, op, 0.3, tolerance=1e-12), (x, y))


def test_weights_and_scaled_weights() -> None:
    torch.manual_seed(6)
    op = NonCartesianSense(normalised_maps(3, 7, 8), random_trajectory(), torch.rand(5, 11, dtype=torch.float64))
    x = torch.randn(7, 8, dtype=torch.complex128)
    expected = op.adjoint(op.weights * op.forward(x))
    for factor in (1, 0.25):
        assert (op.gram(factor * op.weights)(x) - factor * expected).norm() <= 1e-10 * expected.norm()
    others = torch.rand(1, 5, 11, dtype=torch.float64)
    assert (op.gram(others)(x) - op.adjoint(others * op.forward(x))).norm() <= 1e-10 * x.norm()
    y, balanced = op.balanced(op.forward(x))
    assert (balanced.zero_filled(y) - op.zero_filled(op.forward(x))).norm() <= 1e-10 * x.norm()
    assert (balanced.normal(x) - balanced.adjoint(balanced.forward(x))).norm() <= 1e-10 * x.norm()


def test_samples_of_weight_zero_have_no_effect() -> None:
    torch.manual_seed(7)
    weights = torch.ones(5, 11)
    weights[2, 3:] = 0
    op = NonCartesianSense(normalised_maps(3, 7, 8, dtype=torch.complex64), random_trajectory(), weights)
    y = torch.randn(3, 5, 11, dtype=torch.complex64)
    other = y.clone()
    other[:, 2, 3:] = 1e6
    assert torch.equal(op.back_projection(y), op.back_projection(other))
    assert not op.forward(torch.ones(7, 8, dtype=torch.complex64))[:, 2, 3:].any()


def test_the_nearest_circulant_by_its_definition() -> None:
    torch.manual_seed(8)
    ny, nx = 6, 5
    op = NonCartesianSense(normalised_maps(3, ny, nx), random_trajectory())
    identity = torch.eye(ny * nx, dtype=torch.complex128).reshape(-1, ny, nx)
    matrix = torch.stack([op.normal(e).flatten() for e in identity], 1).reshape(ny, nx, ny, nx)
    kernel = torch.zeros(ny, nx, dtype=torch.complex128)
    for y, x, v, u in itertools.product(range(ny), range(nx), range(ny), range(nx)):
        kernel[(y - v) % ny, (x - u) % nx] += matrix[y, x, v, u] / (ny * nx)
    expected = torch.fft.fft2(kernel)
    assert torch.allclose(op.circulant, expected.real.clamp(min=0), atol=1e-10)
    assert ifft_corner(expected).shape == op.circulant.shape


def test_planes_of_a_batch_are_solved_as_alone() -> None:
    torch.manual_seed(9)
    maps, points = normalised_maps(3, 4, 10, 9, dtype=torch.complex64), random_trajectory(3, n_readouts=20, n_samples=12)
    y = torch.randn(3, 4, 20, 12, dtype=torch.complex64)
    op = NonCartesianSense(maps, points)
    together = regularised_solve(None, op.back_projection(y), op, 1e-2)
    for i in range(3):
        one = NonCartesianSense(maps[i], points[i])
        alone = regularised_solve(None, one.back_projection(y[i]), one, 1e-2)
        assert (together[i] - alone).norm() <= 1e-4 * alone.norm()
    flat = op.flattened((3,))
    chosen = flat.planes(torch.tensor([2]))
    assert (chosen.forward(together[2:]) - op.forward(together)[2:]).norm() <= 1e-5 * together.norm()


def test_errors_name_the_shapes() -> None:
    maps = normalised_maps(4, 6, 5)
    op = NonCartesianSense(maps, random_trajectory())
    with pytest.raises(ValueError, match=r"image of shape \(5, 6\) does not fit"):
        op.forward(torch.zeros(5, 6, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"k-space of shape \(3, 5, 11\) does not fit"):
        op.adjoint(torch.zeros(3, 5, 11, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"trajectory must be real \(\*batch readout sample 2\)"):
        NonCartesianSense(maps, random_trajectory()[..., :1])
    with pytest.raises(ValueError, match=r"density of shape \(5, 10\)"):
        NonCartesianSense(maps, random_trajectory(), density=torch.ones(5, 10))
    with pytest.raises(ValueError, match="defined on the Cartesian grid"):
        data_consistency(fft(maps[0]), op.forward(maps[0]), op)


def test_shared_maps_are_stacked_without_a_copy() -> None:
    maps = coil_maps(3, (12, 10))
    trajectories = [torch.from_numpy(radial(6, 20, golden_angles(6) + turn)) for turn in (0.0, 0.4)]
    ops = [NonCartesianSense(maps, one) for one in trajectories]
    joined = stacked(ops)
    assert joined.maps.data_ptr() == maps.data_ptr()
    for i, op in enumerate(ops):
        assert torch.allclose(joined.circulant[i], op.circulant, atol=1e-6)
    others = stacked([ops[0], NonCartesianSense(maps.roll(1, 0), trajectories[1])])
    assert torch.equal(others.maps[1], maps.roll(1, 0))
    with pytest.raises(ValueError, match="different shapes"):
        stacked([ops[0], NonCartesianSense(maps, trajectories[1][:3])])
