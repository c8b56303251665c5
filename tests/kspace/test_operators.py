from __future__ import annotations

import itertools

import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from torch import Tensor

from kspace.operators import (
    Composition,
    Fourier,
    LinearOperator,
    Sampling,
    Sense,
    Sensitivity,
    nearest_circulant,
)
from tests.support.operators import normalised_maps, some_mask

SIZES = [(8, 8), (7, 9), (8, 5), (1, 6)]


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


def test_gradients_of_the_operators() -> None:
    op = Sense(normalised_maps(3, 4, 5), torch.rand(4, 1) < 0.6)
    x = torch.randn(4, 5, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(3, 4, 5, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(op.forward, x)
    assert torch.autograd.gradcheck(op.adjoint, y)
    assert torch.autograd.gradcheck(op.normal, x)


@pytest.mark.parametrize("kind", ["lines", "points"])
def test_the_nearest_circulant_by_its_definition(kind: str) -> None:
    ny, nx = 6, 5
    op = Sense(normalised_maps(3, ny, nx), some_mask(kind, ny, nx))
    identity = torch.eye(ny * nx, dtype=torch.complex128).reshape(-1, ny, nx)
    matrix = torch.stack([op.normal(e).flatten() for e in identity], 1).reshape(ny, nx, ny, nx)
    # The entry for a shift is the mean over all pairs of pixels that far apart: in the plane, or in each column.
    kernel = torch.zeros(ny, nx, dtype=torch.complex128)
    for y, x, v, u in itertools.product(range(ny), range(nx), range(ny), range(nx)):
        if kind == "points":
            kernel[(y - v) % ny, (x - u) % nx] += matrix[y, x, v, u] / (ny * nx)
        elif x == u:
            kernel[(y - v) % ny, x] += matrix[y, x, v, u] / ny
    expected = torch.fft.fft(kernel, dim=0) if kind == "lines" else torch.fft.fft2(kernel)
    assert torch.allclose(op.circulant, expected.real, atol=1e-12)
    assert expected.imag.abs().max() < 1e-12
    batched = Sense(torch.stack([op.maps, op.maps.flip(0)]), op.mask)
    assert torch.allclose(batched.circulant, expected.real.expand(2, ny, nx), atol=1e-12)


def test_the_nearest_circulant_of_one_flat_coil_is_the_operator() -> None:
    op = Sense(torch.ones(1, 7, 6, dtype=torch.complex128), some_mask("points", 7, 6))
    assert torch.allclose(op.circulant, torch.fft.ifftshift(op.mask).double(), atol=1e-12)
    weights = torch.fft.ifftshift(op.weights)
    assert torch.allclose(nearest_circulant(op.maps, weights[None]), op.circulant, atol=1e-12)


def test_the_operator_is_a_value() -> None:
    op = Sense(normalised_maps(4, 6, 5), torch.rand(6, 1) < 0.5)
    before = op.maps.clone()
    op.adjoint(op.forward(torch.randn(6, 5, dtype=torch.complex128)))
    assert torch.equal(op.maps, before)
    with pytest.raises(AttributeError):
        op.maps = before  # type: ignore[misc]
    assert op.to("meta").maps.device.type == "meta"
