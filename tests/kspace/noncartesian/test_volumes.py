"""The forward model of volumes whose planes are coupled: trajectories with kz."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kspace.data_consistency import regularised_solve
from kspace.noncartesian.density import pipe_density, visited
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import kooshball
from kspace.operators import Sense
from tests.support.operators import normalised_maps

SIZES = [(9, 10, 11), (4, 7, 6)]


def volume_maps(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    """``(*batch coil z y x)`` of maps with a root sum of squares of 1."""
    *batch, n_coils, nz, ny, nx = shape
    folded = normalised_maps(*batch, n_coils, nz * ny, nx, dtype=dtype)
    return folded.reshape(shape)


def random_trajectory(*batch: int, n_readouts: int = 5, n_samples: int = 11) -> Tensor:
    return torch.rand(*batch, n_readouts, n_samples, 3, dtype=torch.float64) - 0.5


def direct(op: NonCartesianSense, x: Tensor) -> Tensor:
    """The model of one volume, term by term."""
    z, y, u = (torch.arange(n) - n // 2 for n in op.shape)
    kx, ky, kz = (k[..., None, None, None] for k in op.trajectory.unbind(-1))
    waves = torch.exp(-2j * math.pi * (kz * z[:, None, None] + ky * y[:, None] + kx * u)) / math.sqrt(math.prod(op.shape))
    return torch.einsum("rszyx,czyx->crs", waves, op.maps * x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("shared", [True, False])
def test_adjoint_and_normal(size: tuple[int, int, int], batch: tuple[int, ...], shared: bool) -> None:
    torch.manual_seed(1)
    op = NonCartesianSense(volume_maps(*batch, 3, *size), random_trajectory(*(() if shared else batch)))
    x = torch.randn(*batch, *size, dtype=torch.complex128)
    y = torch.randn(*batch, 3, 5, 11, dtype=torch.complex128)
    ax, ahy = op @ x, op.H @ y
    assert abs(torch.vdot(y.flatten(), ax.flatten()) - torch.vdot(ahy.flatten(), x.flatten())) <= 1e-10 * x.norm() * y.norm()
    assert (op.normal(x) - op.adjoint(ax)).norm() <= 1e-10 * op.adjoint(ax).norm()


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_the_sum(size: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    op = NonCartesianSense(volume_maps(2, *size), random_trajectory())
    x = torch.randn(*size, dtype=torch.complex128)
    assert (op.forward(x) - direct(op, x)).norm() <= 1e-10 * x.norm()
    single = NonCartesianSense(op.maps.to(torch.complex64), op.trajectory)
    assert (single.forward(x.to(torch.complex64)) - direct(op, x)).norm() <= 1e-5 * x.norm()
    expected = op.normal(x)
    assert (single.normal(x.to(torch.complex64)) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.slow  # SigPy compiles its loops
def test_equal_to_sigpy() -> None:
    torch.manual_seed(3)
    op = NonCartesianSense(volume_maps(2, 12, 14, 10), 0.9 * random_trajectory())
    linop = op.to_sigpy()
    x, y = torch.randn(12, 14, 10, dtype=torch.complex128), torch.randn(2, 5, 11, dtype=torch.complex128)
    for ours, theirs in ((op.forward(x).numpy(), linop(x.numpy())), (op.adjoint(y).numpy(), linop.H(y.numpy()))):
        assert np.linalg.norm(ours - theirs) <= 2e-2 * np.linalg.norm(theirs)


def test_a_stack_of_equal_planes_is_its_planes() -> None:
    """Transformed along kz, each plane is a problem of its own: the two ways agree."""
    torch.manual_seed(4)
    nz, ny, nx = 5, 6, 7
    maps, x = volume_maps(3, nz, ny, nx), torch.randn(nz, ny, nx, dtype=torch.complex128)
    plane = torch.rand(4, 9, 2, dtype=torch.float64) - 0.5
    kz = (torch.arange(nz, dtype=torch.float64) - nz // 2) / nz
    every = torch.cat([plane.expand(nz, 4, 9, 2), kz[:, None, None, None].expand(nz, 4, 9, 1)], -1).reshape(nz * 4, 9, 3)
    flat = NonCartesianSense(maps.transpose(0, 1), plane)
    expected = flat.normal(x)
    assert (NonCartesianSense(maps, every).normal(x) - expected).norm() <= 1e-10 * expected.norm()


def test_on_the_points_of_a_grid_density_is_one_and_every_point_visited() -> None:
    shape = (6, 5, 8)
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    kz, ky, kx = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([kx, ky, kz], -1).reshape(30, 8, 3)
    assert visited(points, shape).all()
    assert visited(points[:8], shape).sum() == 64
    assert torch.allclose(pipe_density(points, shape), torch.ones(30, 8, dtype=torch.float64), atol=1e-3)
    op = NonCartesianSense(volume_maps(2, *shape), points)
    x = torch.randn(*shape, dtype=torch.complex128)
    assert (op.zero_filled(op.forward(x)) - x).norm() <= 1e-3 * x.norm()
    assert float(op.sampled_fraction) == 1


def test_density_of_a_kooshball_grows_with_the_square_of_the_radius() -> None:
    n, n_spokes = 16, 400
    points = torch.from_numpy(kooshball(n_spokes, 2 * n))
    radius = points.square().sum(-1).sqrt()
    found = pipe_density(points, (n, n, n))
    # Shells of half a point's width, each shared by two samples of every spoke.
    shell = 4 * math.pi * (radius * n) ** 2 / 2 / (2 * n_spokes)
    inside = (radius > 0.15) & (radius < 0.4)
    assert torch.allclose(found[inside].mean() / shell[inside].mean(), torch.tensor(1.0, dtype=torch.float64), rtol=0.1)


def test_gradients() -> None:
    torch.manual_seed(5)
    op = NonCartesianSense(volume_maps(2, 2, 2, 3), random_trajectory(n_readouts=1, n_samples=4))
    x = torch.randn(2, 2, 3, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(2, 1, 4, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(op.forward, x)
    assert torch.autograd.gradcheck(op.adjoint, y)
    assert torch.autograd.gradcheck(op.normal, x)
    assert torch.autograd.gradcheck(lambda b: regularised_solve(None, b, op, 0.3, tolerance=1e-12), x)


def test_large_volumes_are_streamed_to_the_same_result() -> None:
    torch.manual_seed(6)
    maps = volume_maps(3, 24, 24, 24, dtype=torch.complex64)  # beyond what is small
    op = NonCartesianSense(maps, random_trajectory(n_readouts=30, n_samples=20))
    x = torch.randn(24, 24, 24, dtype=torch.complex64)
    expected = op.adjoint(op.forward(x))
    assert (op.normal(x) - expected).norm() <= 1e-5 * expected.norm()
    tracked = op.normal(x.clone().requires_grad_())
    assert (tracked - expected).norm() <= 1e-5 * expected.norm()


def test_weights() -> None:
    torch.manual_seed(7)
    op = NonCartesianSense(volume_maps(3, 4, 5, 6), random_trajectory(), torch.rand(5, 11, dtype=torch.float64))
    x = torch.randn(4, 5, 6, dtype=torch.complex128)
    expected = op.adjoint(op.weights * op.forward(x))
    assert op.unit_weight.shape == (1, 1, 1)
    for factor in (1, 0.25):
        assert (op.gram(factor * op.weights)(x) - factor * expected).norm() <= 1e-10 * expected.norm()
    y, balanced = op.balanced(op.forward(x))
    assert (balanced.zero_filled(y) - op.zero_filled(op.forward(x))).norm() <= 1e-10 * x.norm()
    assert (balanced.normal(x) - balanced.adjoint(balanced.forward(x))).norm() <= 1e-10 * x.norm()


def test_the_nearest_circulant_by_its_definition() -> None:
    torch.manual_seed(8)
    nz, ny, nx = shape = (3, 4, 3)
    op = NonCartesianSense(volume_maps(2, *shape), random_trajectory())
    identity = torch.eye(nz * ny * nx, dtype=torch.complex128).reshape(-1, *shape)
    matrix = torch.stack([op.normal(e).flatten() for e in identity], 1).reshape(*shape, *shape)
    kernel = torch.zeros(shape, dtype=torch.complex128)
    for z, y, x, w, v, u in itertools.product(*(range(n) for n in (*shape, *shape))):
        kernel[(z - w) % nz, (y - v) % ny, (x - u) % nx] += matrix[z, y, x, w, v, u] / (nz * ny * nx)
    expected = torch.from_numpy(np.fft.fftn(kernel.numpy()))
    assert torch.allclose(op.circulant, expected.real.clamp(min=0), atol=1e-10)


def test_volumes_of_a_batch_are_solved_as_alone() -> None:
    torch.manual_seed(9)
    maps, points = volume_maps(2, 3, 4, 6, 5, dtype=torch.complex64), random_trajectory(2, n_readouts=30)
    y = torch.randn(2, 3, 30, 11, dtype=torch.complex64)
    op = NonCartesianSense(maps, points)
    together = regularised_solve(None, op.back_projection(y), op, 1e-2)
    for i in range(2):
        one = NonCartesianSense(maps[i], points[i])
        b = one.back_projection(y[i])
        alone = regularised_solve(None, b, one, 1e-2)
        assert (together[i] - alone).norm() <= 1e-4 * alone.norm()
        assert (one.normal(alone) + 1e-2 * alone - b).norm() <= 1e-5 * b.norm()
    chosen = op.flattened((2,)).planes(torch.tensor([1]))
    assert (chosen.forward(together[1:]) - op.forward(together)[1:]).norm() <= 1e-5 * together.norm()


def test_errors_name_the_shapes() -> None:
    op = NonCartesianSense(volume_maps(2, 3, 4, 5), random_trajectory())
    with pytest.raises(ValueError, match=r"image of shape \(4, 5\) does not fit"):
        op.forward(torch.zeros(4, 5, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"maps of shape \(2, 4, 5\) do not fit kz"):
        NonCartesianSense(op.maps[:, 0], random_trajectory())
    with pytest.raises(ValueError, match="does not fit maps"):
        Sense(op.maps, torch.ones(3, 3, dtype=torch.bool))
